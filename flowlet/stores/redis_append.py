"""What a Redis server runs for an append: one Lua script that judges all writes, then stores them.

Law: Redis runs a script alone and as a whole, but rolls nothing back; so nothing is written before all
writes of an append are judged, and no command after that can be refused for what it is given. Who may
write is told by the same facts as in every store: the script only finds the first write that is refused,
`flowlet.stores.refusal` says why.

Keys, all under ``PREFIX:``
    ``schema``, ``order``, ``news``: version of this layout, last order given, counter of changes.
    ``head:ID`` (hash), ``records:ID`` (list), ``signals:ID`` (list: those not consumed, so that the last has
    the number ``inbox``), ``messages:ID`` (set of message ids), ``snapshot:ID``: an entity.
    ``is:WORDS`` (sorted set, by order): entities of one kind, definition, version, status and state; all
    WORDS there are in the set ``words``.
    ``due:TYPE`` (sorted set, by wake): nobody's entities that wait for a time; ``owned:WORKER:TYPE``:
    somebody's; ``ended`` (by end). All TYPEs there are in the set ``types``, all workers that may own
    something in ``owners``; ``workers`` (sorted set, by end of lease): who is alive.

A member of a sorted set is an entity's order in 16 digits and its id: among equals, Redis sorts by that.
"""

from __future__ import annotations

__all__ = ["APPEND", "COMMON"]

COMMON = """
local call, P, now = redis.call, string.sub(KEYS[1], 1, -2), ARGV[1]
if now == '' then
  local time = call('TIME')
  now = string.format('%d.%06d', time[1], time[2])
end
local FIELDS = {'order', 'kind', 'definition', 'definition_version', 'version', 'status', 'state', 'wake', 'owner',
  'fence', 'claims', 'inbox', 'created', 'updated', 'closed'}
local notable = false

local function word(text) return #text .. ':' .. text end
local function type_of(kind, definition, version) return word(kind) .. word(definition) .. word(version) end

-- Splits what `word` has joined: a table of so many words, and the rest.
local function words_of(text, count)
  local words, at = {}, 1
  for i = 1, count do
    local _, colon, length = string.find(text, '^(%d+):', at)
    at = colon + 1 + length
    words[i] = string.sub(text, colon + 1, at - 1)
  end
  return words, string.sub(text, at)
end

local function id_of(member) return string.sub(member, 17) end
local function order_of(member) return tonumber(string.sub(member, 1, 16)) end
local function head_of(id) return {id, call('HMGET', P .. ':head:' .. id, unpack(FIELDS))} end

local function read(id)
  local key = P .. ':head:' .. id
  local h = call('HMGET', key, unpack(FIELDS))
  if not h[1] then return nil end
  return {id = id, key = key, order = tonumber(h[1]), member = string.format('%016d', h[1]) .. id,
    type = type_of(h[2], h[3], h[4]), version = tonumber(h[5]), status = h[6], state = h[7], wake = h[8], owner = h[9],
    fence = tonumber(h[10]), claims = tonumber(h[11]), inbox = tonumber(h[12]), closed = h[15]}
end

local function bucket(e) return e.type .. word(e.status) .. e.state end
local function owned(worker, type) return P .. ':owned:' .. word(worker) .. type end

-- Where a claim finds the entity: a key and a score, or nothing. Infinity is for those that wait for no time.
local function place(e)
  local score = e.wake or '+inf'
  if e.wake == 'inf' then score = '1.7976931348623157e+308' end
  if e.owner then return owned(e.owner, e.type), score end
  if e.wake then return P .. ':due:' .. e.type, score end
end

local function move(e, key, score)
  local new_key, new_score = place(e)
  if key and key ~= new_key then call('ZREM', key, e.member) end
  if new_key and (new_key ~= key or new_score ~= score) then call('ZADD', new_key, new_score, e.member) end
end

-- Changes the owner and the fence; the caller stores both, and moves the entity.
local function own(e, owner)
  if not owner and not e.owner then return false end
  e.owner, e.fence = owner, e.fence + 1
  if owner then call('SADD', P .. ':owners', owner) end
  return true
end

local function disown(e)
  local key, score = place(e)
  own(e, false)
  call('HSET', e.key, 'fence', e.fence)
  call('HDEL', e.key, 'owner')
  move(e, key, score)
  notable = true
end

-- Tells those who watch. Who may not publish still counts: the others look at the counter from time to time.
local function news()
  if not notable then return 0 end
  local count = call('INCR', P .. ':news')
  redis.pcall('PUBLISH', P .. ':news', count)
  return count
end
"""
"""What all scripts begin with.

``KEYS[1]`` is the prefix and a colon, as it must be for users who may use no other keys; ``ARGV[1]`` is the
time, empty for the server's own.
"""

APPEND = """
local function refused(w, e)
  if w[5] then return e ~= nil end
  return e == nil
    or (w[3] and w[3] ~= e.fence)
    or (w[2] and w[2] ~= e.version)
    or (w[4] and e.inbox > w[4])
    or (#w[13] > 0 and e.closed)
end

local function push(key, from, count)
  for first = from, from + count - 1, 1000 do
    call('RPUSH', key, unpack(ARGV, first, math.min(first + 999, from + count - 1)))
  end
end

local function create(w)
  local id, new, order = w[1], w[5], call('INCR', P .. ':order')
  local e = {id = id, key = P .. ':head:' .. id, order = order, member = string.format('%016d', order) .. id,
    type = type_of(new[1], new[2], new[3]), version = 0, status = '', state = '', wake = false, owner = false,
    fence = 0, claims = 0, inbox = 0, closed = false}
  call('SADD', P .. ':types', e.type)
  local fields = {'order', order, 'kind', new[1], 'definition', new[2], 'definition_version', new[3], 'fence', 0,
    'claims', 0, 'inbox', 0, 'status', '', 'state', '', 'created', now}
  return e, fields
end

local function consume(e, upto)
  local key = P .. ':signals:' .. e.id
  local length = call('LLEN', key)
  local gone = upto - (e.inbox - length)
  if gone > 0 then call('LTRIM', key, gone, -1) end
end

-- Returns whether something arrived that had not been received before.
local function receive(e, message_ids, from)
  local before = e.inbox
  for i, message_id in ipairs(message_ids) do
    if not message_id or call('SADD', P .. ':messages:' .. e.id, message_id) == 1 then
      call('RPUSH', P .. ':signals:' .. e.id, ARGV[from + i - 1])
      e.inbox = e.inbox + 1
    end
  end
  return e.inbox > before
end

-- Sets when the entity is to be looked at.
local function schedule(w, e, put)
  if w[9] then e.wake = w[9] ~= '' and w[9] end
  local arrived = #w[13] > 0 and receive(e, w[13], w.at + w[6] + (w[12] and 1 or 0))
  if arrived then
    e.wake = '0.0'
    put('inbox', e.inbox)
  end
  local ends = w[10] and not e.closed
  if ends then
    e.closed = now
    put('closed', now)
    call('ZADD', P .. ':ended', now, e.member)
  end
  if e.closed then e.wake = false end
  if arrived or ends or (e.wake and not e.owner) then notable = true end
end

local function file(e, old)
  local new = bucket(e)
  if old == new then return end
  if old then call('ZREM', P .. ':is:' .. old, e.member) end
  if call('ZADD', P .. ':is:' .. new, e.order, e.member) == 1 then call('SADD', P .. ':words', new) end
end

local function store(w, e)
  local fields, old_bucket, old_place, old_score = {}, nil, nil, nil
  if e then
    old_bucket = bucket(e)
    old_place, old_score = place(e)
  else
    e, fields = create(w)
  end
  local had_wake, had_owner = e.wake, e.owner
  local function put(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  put('updated', now)
  if w[6] > 0 then
    push(P .. ':records:' .. e.id, w.at, w[6])
    e.version = e.version + w[6]
    put('version', e.version)
    if e.claims > 0 then put('claims', 0) end
  end
  if w[7] then e.status = w[7]; put('status', e.status) end
  if w[8] then e.state = w[8]; put('state', e.state) end
  if w[12] then
    call('SET', P .. ':snapshot:' .. e.id, ARGV[w.at + w[6]])
    put('snapshot_version', e.version)
  end
  if w[14] > 0 and e.inbox > 0 then consume(e, w[14]) end
  if w[11] then
    if own(e, w[11] ~= true and w[11][1]) then put('fence', e.fence) end
    if e.owner then put('owner', e.owner) end
  end
  if w[9] or w[10] or w[11] == true or #w[13] > 0 then schedule(w, e, put) end
  if e.wake and e.wake ~= had_wake then put('wake', e.wake) end
  call('HSET', e.key, unpack(fields))
  if had_wake and not e.wake then call('HDEL', e.key, 'wake') end
  if had_owner and not e.owner then call('HDEL', e.key, 'owner') end
  file(e, old_bucket)
  move(e, old_place, old_score)
end

-- Judges and stores one append, whose payloads are at `at`; or returns the write that is refused, and what was found.
local function append(writes, at)
  local entities = {}
  for i, w in ipairs(writes) do
    local e = read(w[1])
    if refused(w, e) then
      if not e then return {i - 1, 0, 0, 0, 0, ''} end
      return {i - 1, 1, e.version, e.fence, e.inbox, e.closed or ''}
    end
    entities[i] = e or false
    w.at = at
    at = at + w[6] + (w[12] and 1 or 0) + #w[13]
  end
  for i, w in ipairs(writes) do store(w, entities[i]) end
end

local failures, at, index = {}, 2, 0
while at <= #ARGV do
  local request = cmsgpack.unpack(ARGV[at])
  local ok, result = pcall(append, request[2], at + 1)
  if not ok then result = {'failed', type(result) == 'table' and result.err or tostring(result)} end
  if result then failures[#failures + 1] = {index, result} end
  at, index = at + 1 + request[1], index + 1
end
return {news(), failures}
"""
"""Appends of many callers, each on its own: ``ARGV`` has for each a header (see `redis_forms`) and its payloads.

Returns the counter of changes, 0 when nobody need hear of it, and of each append that was not stored its
place and why.
"""
