"""The store that keeps everything in this process: for tests, scripts and work that may be lost.

Law: no method but `MemoryStore.watch` suspends in the middle of a change, so a change is atomic without
a lock; entities are mutable and private, and a `Head` is built only when somebody reads one.
One thread at a time.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import anyio.lowlevel

from flowlet.store import UNCHANGED, Capabilities, Claims, Head, New, Signal, Stored, Work, Write
from flowlet.stores.bell import Bell
from flowlet.stores.refusal import malformed, refusal, worker_unknown, written

__all__ = ["MemoryStore"]

_Kind: TypeAlias = tuple[str, str, str]
"""Kind, definition and version: what a worker says that it can run."""

_FEW = 1000
"""So many entries that are no longer so may be kept beside those that are."""

_SCAN_STRIDE = 10_000
"""Entities that `MemoryStore.scan` looks at before it lets others run: about two milliseconds."""


class _Entity:
    """One run, machine or definition: what a `Head` tells, its journal and its inbox."""

    __slots__ = (
        "claims",
        "closed",
        "created",
        "fence",
        "id",
        "inbox",
        "message_ids",
        "new",
        "order",
        "owner",
        "records",
        "signals",
        "snapshot",
        "snapshot_version",
        "state",
        "status",
        "updated",
        "wake",
    )

    def __init__(self, id: str, new: New, order: int, now: float) -> None:
        self.id, self.new, self.order = id, new, order
        self.created = self.updated = now
        self.closed: float | None = None
        self.status = self.state = ""
        self.wake: float | None = None
        self.owner: str | None = None
        self.fence = self.claims = self.inbox = self.snapshot_version = 0
        self.snapshot: bytes | None = None
        self.records: list[bytes] = []
        self.signals: Sequence[Signal] = ()
        self.message_ids: set[str] | None = None

    @property
    def version(self) -> int:
        return len(self.records)

    def head(self) -> Head:
        new = self.new
        return Head(
            id=self.id,
            kind=new.kind,
            definition=new.definition,
            definition_version=new.definition_version,
            order=self.order,
            version=len(self.records),
            status=self.status,
            state=self.state,
            wake=self.wake,
            owner=self.owner,
            fence=self.fence,
            claims=self.claims,
            inbox=self.inbox,
            created=self.created,
            updated=self.updated,
            closed=self.closed,
        )

    def receive(self, signals: Iterable[Signal]) -> bool:
        """Put those signals into the inbox that never were there; return whether one was new."""
        before = self.inbox
        known = self.message_ids
        if known is None:
            known = self.message_ids = set()
        arrived: list[Signal] = []
        for signal in signals:
            message_id = signal.message_id
            if message_id is not None:
                if message_id in known:
                    continue
                known.add(message_id)
            self.inbox += 1
            arrived.append(Signal(signal.topic, signal.payload, message_id, self.inbox))
        self.signals = (*self.signals, *arrived)
        return self.inbox > before


class MemoryStore:
    """Keep history in this object.

    `close` keeps the data: the object may be used again, also on another event loop. ``work`` gets the
    store itself as its connection and runs at once on the loop; what it does elsewhere is not undone
    when the append is refused.

    Args:
        clock: returns the store's time, in seconds since the epoch.
    """

    capabilities: Capabilities = Capabilities(transactional=True)

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._entities: dict[str, _Entity] = {}
        self._by_order: dict[int, _Entity] = {}
        self._last_order = 0
        # What a claim, a release and a prune look for, so that none of them reads everything.
        self._waiting: dict[_Kind, list[tuple[float, int, str]]] = {}  # heaps of what nobody owns, by wake and order
        self._pushes = 0
        self._owned: dict[str, dict[str, _Entity]] = {}
        self._ended: list[tuple[float, int, str]] = []  # a heap, oldest first
        self._workers: dict[str, float] = {}
        self._bell = Bell()

    @property
    def clock(self) -> Callable[[], float] | None:
        """The clock it was given, if time does not pass by itself in it."""
        return None if self._clock is time.time else self._clock

    # Writing ------------------------------------------------------------------------------------
    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        """Store all writes or none of them; see `flowlet.store.Store.append`. Never suspends."""
        if work is not None:
            self._check(writes)
            writes = [*writes, *written(work(self))]
        if len(writes) == 1:
            write = writes[0]
            entity = self._entities.get(write.id)
            # The usual write follows the last record and sends nothing; any other is judged in full.
            if (
                entity is None
                or write.expect != len(entity.records)
                or write.create is not None
                or (write.fence is not None and write.fence != entity.fence)
                or write.inbox is not None
                or write.signals
            ):
                self._check(writes)
            self._apply(write, entity)
            return
        self._check(writes)
        for write in writes:
            self._apply(write, self._entities.get(write.id))

    def _check(self, writes: Sequence[Write]) -> None:
        error = malformed(writes)
        if error is not None:
            raise error
        for write in writes:
            error = refusal(write, self._entities.get(write.id))
            if error is not None:
                raise error

    def _apply(self, write: Write, entity: _Entity | None) -> None:
        now = self._clock()
        if entity is None:
            entity = self._create(write, now)
        if write.records:
            entity.records.extend(write.records)
            entity.claims = 0
        entity.updated = now
        if write.status is not UNCHANGED:
            entity.status = write.status
        if write.state is not UNCHANGED:
            entity.state = write.state
        if write.snapshot is not UNCHANGED:
            entity.snapshot, entity.snapshot_version = write.snapshot, len(entity.records)
        if write.consumed and entity.signals:
            entity.signals = tuple(signal for signal in entity.signals if signal.number > write.consumed)
        if write.owner is not UNCHANGED:
            self._own(entity, write.owner)
        if write.wake is not UNCHANGED or write.signals or write.close or write.owner is None:
            self._schedule(write, entity, now)

    def _create(self, write: Write, now: float) -> _Entity:
        assert write.create is not None
        self._last_order += 1
        entity = _Entity(write.id, write.create, self._last_order, now)
        self._entities[write.id] = self._by_order[self._last_order] = entity
        return entity

    def _own(self, entity: _Entity, owner: str | None) -> None:
        if entity.owner is not None:
            del self._owned[entity.owner][entity.id]
        elif owner is None:
            return
        entity.owner = owner
        entity.fence += 1
        if owner is None:
            self._wait_for(entity)
        else:
            self._owned.setdefault(owner, {})[entity.id] = entity

    def _schedule(self, write: Write, entity: _Entity, now: float) -> None:
        """Set when the entity is to be looked at, and tell those who watch."""
        if write.wake is not UNCHANGED:
            entity.wake = write.wake
        arrived = bool(write.signals) and entity.receive(write.signals)
        if arrived:
            entity.wake = 0.0
        ends = write.close and entity.closed is None
        if ends:
            entity.closed = now
            heapq.heappush(self._ended, (now, entity.order, entity.id))
        if entity.closed is not None:
            entity.wake = None
        self._wait_for(entity)
        if arrived or ends or (entity.wake is not None and entity.owner is None):
            self._bell.ring()

    def _wait_for(self, entity: _Entity) -> None:
        """Let claims find an entity; what they find that is no longer so, they drop."""
        if entity.wake is None or entity.owner is not None:
            return
        self._pushes += 1
        if self._pushes > 2 * len(self._entities) + _FEW:
            self._rebuild()
        new = entity.new
        heap = self._waiting.setdefault((new.kind, new.definition, new.definition_version), [])
        heapq.heappush(heap, (entity.wake, entity.order, entity.id))

    def _rebuild(self) -> None:
        self._pushes = len(self._entities)
        for heap in self._waiting.values():
            heap[:] = {entry for entry in heap if self._find(entry) is not None}
            heapq.heapify(heap)

    def _find(self, entry: tuple[float, int, str]) -> _Entity | None:
        """Return the entity that is found under an entry, if that still says how it is."""
        wake, order, id = entry
        entity = self._entities.get(id)
        if entity is None or entity.order != order or entity.wake != wake or entity.owner is not None:
            return None
        return entity

    # Reading ------------------------------------------------------------------------------------
    async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Stored | None:
        """Read an entity; see `flowlet.store.Store.load`."""
        entity = self._entities.get(id)
        if entity is None:
            return None
        return Stored(
            head=entity.head(),
            records=tuple(entity.records[after : None if limit is None else after + limit]),
            snapshot=entity.snapshot,
            snapshot_version=entity.snapshot_version,
            signals=entity.signals,
        )

    async def scan(
        self,
        *,
        kind: str | None = None,
        definition: str | None = None,
        status: Sequence[str] | None = None,
        state: str | None = None,
        wake_before: float | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[Head]:
        """List heads in the order of creation; see `flowlet.store.Store.scan`."""
        heads: list[Head] = []
        for order in range(after + 1, self._last_order + 1):
            if len(heads) >= limit:
                break
            if order % _SCAN_STRIDE == 0:
                await anyio.lowlevel.checkpoint()
            entity = self._by_order.get(order)
            if (
                entity is not None
                and (kind is None or entity.new.kind == kind)
                and (definition is None or entity.new.definition == definition)
                and (status is None or entity.status in status)
                and (state is None or entity.state == state)
                and (wake_before is None or (entity.wake is not None and entity.wake < wake_before))
            ):
                heads.append(entity.head())
        return heads

    # Leases -------------------------------------------------------------------------------------
    async def claim(
        self,
        worker: str,
        /,
        *,
        definitions: Sequence[tuple[str, str, str]] = (),
        ids: Sequence[str] = (),
        limit: int = 100,
    ) -> Claims:
        """Take entities that nobody alive owns; see `flowlet.store.Store.claim`."""
        now = self._clock()
        if self._workers.get(worker, now) <= now:
            raise worker_unknown(worker)
        if ids:
            named = [entity for id in dict.fromkeys(ids) if (entity := self._entities.get(id)) is not None]
            free, wanted = [entity for entity in named if self._is_free(entity, now)], frozenset[_Kind]()
        else:
            wanted = frozenset(definitions)
            free = self._due(wanted, now, limit)
        free.sort(key=_urgency)
        for entity in free[:limit]:
            self._own(entity, worker)
            entity.claims += 1
        for entity in free[limit:]:
            if not ids:
                self._wait_for(entity)
        return Claims(heads=[entity.head() for entity in free[:limit]], wake=self._next_wake(wanted, now))

    def _due(self, wanted: frozenset[_Kind], now: float, limit: int) -> list[_Entity]:
        """Return what is due: what the dead own, and of each definition up to ``limit`` that nobody owns."""
        due = [entity for entity in self._left(wanted, now) if entity.wake is not None and entity.wake <= now]
        for kind in wanted:
            heap, found = self._waiting.get(kind, []), dict[int, _Entity]()
            while heap and heap[0][0] <= now and len(found) < limit:
                entity = self._find(heapq.heappop(heap))
                if entity is not None:
                    found[entity.order] = entity
            due += found.values()
        return due

    def _left(self, wanted: frozenset[_Kind], now: float) -> list[_Entity]:
        """Return what workers own that are not alive."""
        return [
            entity
            for owner, owned in self._owned.items()
            if self._workers.get(owner, now) <= now
            for entity in owned.values()
            if (entity.new.kind, entity.new.definition, entity.new.definition_version) in wanted
            and entity.closed is None
        ]

    def _next_wake(self, wanted: frozenset[_Kind], now: float) -> float | None:
        """Return when the next of these is due that has not been taken."""
        wakes = [entity.wake for entity in self._left(wanted, now) if entity.wake is not None]
        for kind in wanted:
            heap = self._waiting.get(kind, [])
            while heap and self._find(heap[0]) is None:
                heapq.heappop(heap)
            wakes += [heap[0][0]] if heap else []
        return min(wakes, default=None)

    def _is_free(self, entity: _Entity, now: float) -> bool:
        owner = entity.owner
        return entity.closed is None and (owner is None or self._workers.get(owner, now) <= now)

    async def heartbeat(self, worker: str, lease: float, /) -> Sequence[str]:
        """Say that the worker lives for ``lease`` more seconds; return the others on record."""
        self._workers[worker] = self._clock() + lease
        return sorted(self._workers.keys() - {worker})

    async def release(self, worker: str, /, ids: Sequence[str] | None = None) -> None:
        """Give back the worker's leases on these ids, or all of them and its place on record."""
        owned = self._owned.get(worker, {})
        for id in list(owned) if ids is None else [id for id in dict.fromkeys(ids) if id in owned]:
            self._own(owned[id], None)
        if ids is None:
            self._owned.pop(worker, None)
            self._workers.pop(worker, None)
        self._bell.ring()

    async def now(self) -> float:
        """Return the store's own time, in seconds since the epoch."""
        return self._clock()

    async def watch(self, seen: int, timeout: float, /) -> int:
        """Wait until the change counter differs from ``seen``, or ``timeout`` seconds; return it."""
        return await self._bell.wait(seen, timeout)

    async def prune(self, *, closed_before: float, limit: int = 1000) -> int:
        """Delete at most ``limit`` entities closed before this time, oldest first; return how many."""
        count, ended = 0, self._ended
        while count < limit and ended and ended[0][0] < closed_before:
            _, order, id = heapq.heappop(ended)
            self._own(self._entities.pop(id), None)
            del self._by_order[order]
            count += 1
        return count

    async def close(self) -> None:
        """Wake those who watch; the data stays."""
        self._bell.ring()


def _urgency(entity: _Entity) -> tuple[float, int]:
    return (float("inf") if entity.wake is None else entity.wake, entity.order)
