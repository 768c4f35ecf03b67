"""What a Redis server runs for everything but an append: leases, listings, pruning, opening.

Law: no script looks at more than it returns or changes, but for one entry per worker, definition and word
of a listing; what may be large is done in bounded pieces, since nobody else is served meanwhile.
The keys are described in `flowlet.stores.redis_append`.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

from flowlet.stores.redis_append import APPEND, COMMON

__all__ = ["SCRIPTS", "VERSION", "name_of"]

VERSION: Final = 1
"""Of the layout of the keys; a server with a higher one is refused."""

_CLAIM = """
local worker, limit, wanted, ids = ARGV[2], tonumber(ARGV[3]), cmsgpack.unpack(ARGV[4]), cmsgpack.unpack(ARGV[5])
local lease = call('ZSCORE', P .. ':workers', worker)
if not lease or tonumber(lease) <= tonumber(now) then return {0} end
local alive = {}
for _, name in ipairs(call('ZRANGEBYSCORE', P .. ':workers', '(' .. now, '+inf')) do alive[name] = true end

local function urgency(a, b)
  if a[1] ~= b[1] then return a[1] < b[1] end
  return order_of(a[2]) < order_of(b[2])
end

local function take(due, wake)
  table.sort(due, urgency)
  local heads = {}
  for i = 1, math.min(limit, #due) do
    local e = read(id_of(due[i][2]))
    local key, score = place(e)
    own(e, worker)
    call('HSET', e.key, 'owner', worker, 'fence', e.fence, 'claims', e.claims + 1)
    move(e, key, score)
    heads[i] = head_of(e.id)
  end
  if due[limit + 1] then wake = string.format('%.17g', due[limit + 1][1]) end
  return {1, heads, wake or false}
end

if #ids > 0 then
  local free = {}
  for _, id in ipairs(ids) do
    local e = read(id)
    if e and not e.closed and not (e.owner and alive[e.owner]) then
      free[#free + 1] = {e.wake and tonumber(e.wake) or math.huge, e.member}
    end
  end
  local taken = take(free)
  return {1, taken[2], false}
end

-- The queues of what nobody alive owns. A worker that owns nothing any more is forgotten here.
local queues = {}
for _, type in ipairs(wanted) do queues[#queues + 1] = P .. ':due:' .. type_of(type[1], type[2], type[3]) end
for _, name in ipairs(call('SMEMBERS', P .. ':owners')) do
  if not alive[name] then
    for _, type in ipairs(wanted) do queues[#queues + 1] = owned(name, type_of(type[1], type[2], type[3])) end
    local owns = false
    for _, type in ipairs(call('SMEMBERS', P .. ':types')) do
      owns = owns or call('EXISTS', owned(name, type)) == 1
    end
    if not owns then call('SREM', P .. ':owners', name) end
  end
end

local due, wake = {}, nil
for _, queue in ipairs(queues) do
  local rows = call('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit + 1)
  for i = 1, #rows, 2 do due[#due + 1] = {tonumber(rows[i + 1]), rows[i]} end
  local later = call('ZRANGEBYSCORE', queue, '(' .. now, '1.7976931348623157e+308', 'WITHSCORES', 'LIMIT', 0, 1)
  if later[2] and (not wake or tonumber(later[2]) < tonumber(wake)) then wake = later[2] end
end
return take(due, wake)
"""

_HEARTBEAT = """
call('ZADD', P .. ':workers', string.format('%.17g', tonumber(now) + tonumber(ARGV[3])), ARGV[2])
return call('ZRANGE', P .. ':workers', 0, -1)
"""

_RELEASE = """
local worker = ARGV[2]
for i = 3, #ARGV do
  local e = read(ARGV[i])
  if e and e.owner == worker then disown(e) end
end
return {1, news()}
"""

_LEAVE = """
local worker, left = ARGV[2], 500
for _, type in ipairs(call('SMEMBERS', P .. ':types')) do
  local members = left > 0 and call('ZRANGE', owned(worker, type), 0, left - 1) or {}
  for _, member in ipairs(members) do disown(read(id_of(member))) end
  left = left - #members
end
if left > 0 then
  call('ZREM', P .. ':workers', worker)
  call('SREM', P .. ':owners', worker)
  notable = true
end
return {left > 0 and 1 or 0, news()}
"""
"""Gives back everything that a worker owns, so many at a time; then it is on record no more, and that is all."""

_SCAN = """
local question = cmsgpack.unpack(ARGV[2])
local kind, definition, statuses, state = question[1], question[2], question[3], question[4]
local wake_before, after, limit = question[5], question[6], question[7]
if limit <= 0 then return {} end
local wanted = statuses and {}
for _, status in ipairs(statuses or {}) do wanted[status] = true end

local function fits(words)
  return (not kind or words[1] == kind) and (not definition or words[2] == definition)
    and (not wanted or not words[4] or wanted[words[4]]) and (not state or not words[5] or words[5] == state)
end

-- As soon as a page is full, only what comes before its end is of interest.
local page, last = {}, '+inf'
local function by_order(a, b) return order_of(a) < order_of(b) end
local function cut()
  table.sort(page, by_order)
  for i = #page, limit + 1, -1 do page[i] = nil end
  if page[limit] then last = '(' .. order_of(page[limit]) end
end

if wake_before then
  local queues, owners = {}, call('SMEMBERS', P .. ':owners')
  for _, type in ipairs(call('SMEMBERS', P .. ':types')) do
    if fits(words_of(type, 3)) then
      queues[#queues + 1] = P .. ':due:' .. type
      for _, owner in ipairs(owners) do queues[#queues + 1] = owned(owner, type) end
    end
  end
  for _, queue in ipairs(queues) do
    for _, member in ipairs(call('ZRANGEBYSCORE', queue, '-inf', '(' .. wake_before)) do
      local e = order_of(member) > after and read(id_of(member))
      -- A score stands for the wake only as `place` says.
      local falls_due = e and e.wake and tonumber(e.wake) < tonumber(wake_before)
      if falls_due and (not wanted or wanted[e.status]) and (not state or e.state == state) then
        page[#page + 1] = member
      end
    end
  end
else
  for _, name in ipairs(call('SMEMBERS', P .. ':words')) do
    local words, rest = words_of(name, 4)
    words[5] = rest
    if fits(words) then
      local key = P .. ':is:' .. name
      local members = call('ZRANGEBYSCORE', key, '(' .. after, last, 'LIMIT', 0, limit)
      if #members == 0 and call('EXISTS', key) == 0 then redis.pcall('SREM', P .. ':words', name) end
      for _, member in ipairs(members) do page[#page + 1] = member end
      if #page > 2 * limit + 100 then cut() end
    end
  end
end
cut()
local heads = {}
for i, member in ipairs(page) do heads[i] = head_of(id_of(member)) end
return heads
"""

_LOAD = """
local id, after, limit = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local head = head_of(id)
if not head[2][1] then return false end
local records = limit ~= 0 and call('LRANGE', P .. ':records:' .. id, after, limit and after + limit - 1 or -1) or {}
local version = call('HGET', P .. ':head:' .. id, 'snapshot_version')
local snapshot = version and call('GET', P .. ':snapshot:' .. id)
local signals = tonumber(head[2][12]) > 0 and call('LRANGE', P .. ':signals:' .. id, 0, -1) or {}
return {head, records, snapshot, tonumber(version or 0), signals}
"""
"""No transaction of Redis's own, which a server without memory would refuse."""

_PRUNE = """
local members = call('ZRANGEBYSCORE', P .. ':ended', '-inf', '(' .. ARGV[2], 'LIMIT', 0, ARGV[3])
for _, member in ipairs(members) do
  local e = read(id_of(member))
  local key = place(e)
  -- A large value is freed by a thread of the server's own.
  call('UNLINK', e.key, P .. ':records:' .. e.id, P .. ':signals:' .. e.id, P .. ':messages:' .. e.id,
    P .. ':snapshot:' .. e.id)
  call('ZREM', P .. ':is:' .. bucket(e), member)
  if key then call('ZREM', key, member) end
  call('ZREM', P .. ':ended', member)
end
return #members
"""

_OPEN = """
local version, key = ARGV[2], P .. ':probe'
local found = call('GET', P .. ':schema')
if found and found ~= version then return found end
-- Nothing that a script is not allowed to do may be found out in the middle of one.
local function may(...)
  local reply = redis.pcall(...)
  return type(reply) == 'table' and reply.err and reply
end
local refused = may('UNLINK', key) or may('HSET', key, 'a', 1) or may('HDEL', key, 'a') or may('RPUSH', key, 1)
  or may('LLEN', key) or may('LTRIM', key, 1, -1) or may('SADD', key, 1) or may('SREM', key, 1)
  or may('ZADD', key, 1, 1) or may('ZSCORE', key, 1) or may('ZREM', key, 1) or may('INCR', key) or may('UNLINK', key)
  or may('SET', P .. ':schema', version)
  or may('HMGET', key, 1) or may('LRANGE', key, 0, 0) or may('SMEMBERS', key) or may('ZRANGE', key, 0, 0)
  or may('ZRANGEBYSCORE', key, 0, 0) or may('EXISTS', key)
-- Who only reads may do so while the server has no room for more.
if refused and not (found and (string.find(refused.err, 'OOM') or string.find(refused.err, 'MISCONF'))) then
  return refused
end
return version
"""

SCRIPTS: Final = {
    "append": COMMON + APPEND,
    "claim": COMMON + _CLAIM,
    "heartbeat": COMMON + _HEARTBEAT,
    "release": COMMON + _RELEASE,
    "leave": COMMON + _LEAVE,
    "load": COMMON + _LOAD,
    "scan": COMMON + _SCAN,
    "prune": COMMON + _PRUNE,
    "open": COMMON + _OPEN,
}
"""The text of each script, by its name."""


def name_of(script: str) -> bytes:
    """Return the name by which a server knows a script that it was given before: the SHA-1 of its text."""
    return sha1(SCRIPTS[script].encode(), usedforsecurity=False).hexdigest().encode()
