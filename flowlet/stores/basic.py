"""A store made of three methods: `BasicStore` derives the others from `append`, `load` and `scan`.

Law: what is derived goes through these three only, so it is as atomic, as durable and as visible to
other processes as they are. Leases are writes like others: they are guarded by the fence, which is why two
workers cannot take the same entity.

What it costs: a claim reads the heads that wait for a time, a release of everything and a prune read all
heads. That is well for some ten thousand entities; a store for more overrides these methods.
"""

from __future__ import annotations

import heapq
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from math import inf

import msgspec

from flowlet.errors import Conflict, LeaseLost, RunFinished, RunNotFound, StoreError
from flowlet.store import UNCHANGED, Capabilities, Claims, Head, New, Stored, Work, Write
from flowlet.stores.bell import Bell
from flowlet.stores.entity import WORKERS, Change, Entity, applied
from flowlet.stores.refusal import worker_unknown

__all__ = ["BasicStore", "Change", "Entity"]

_PAGE = 1000
_STRIDE = 100
_TRIES = 10
_LOST = (Conflict, LeaseLost, RunFinished, RunNotFound)
"""What a derived write is refused with when somebody else was faster."""

Workers = dict[str, float]
"""When the lease of each worker on record ends, in seconds of the store's clock."""


class BasicStore(ABC):
    """A base for stores of your own: define `append`, `load` and `scan`, and say what the store can do.

    The contract of the three, beside what `flowlet.store.Store` says of them:

    - ``append`` reads the entities that the writes name, gives them to `apply`, which raises if they are
      refused, and stores all entities that it returns, or none, before anybody else writes one of them. Then
      it calls `notify`. How "before anybody else" comes about is the store's affair: a lock, a transaction,
      or a revision number of its own that is compared at the commit.
    - `Head.order` rises with creation and is never given twice, also after a prune: keep the highest.
    - ``load`` and ``scan`` see every append that was acknowledged; `view` and `select` do their reckoning.

    `capabilities` begin with what three methods can promise: nothing durable, one process, no ``work=``.
    Say more where it is true, and less where it is not (``leases=False``, ``signals=False``): what a store
    says it cannot do is refused with a `StoreError` that names the flag.

    Attributes:
        poll: seconds between two wake-ups of those who watch a store with ``multi_process=True``, which
            cannot hear of the appends of others.

    Args:
        clock: returns the store's time, in seconds since the epoch. Processes that share a store need the same
            time: override `now` and give it to `apply` where that is not this host's clock.

    Example:
        >>> from flowlet import Flowlet
        >>> from flowlet.store import BasicStore
        >>> class Dictionary(BasicStore):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.entities, self.last = {}, 0
        ...     async def append(self, writes, *, work=None):
        ...         for id, entity in self.apply(writes, self.entities, last=self.last, work=work).items():
        ...             if entity is None:
        ...                 del self.entities[id]
        ...             else:
        ...                 self.entities[id] = entity
        ...                 self.last = max(self.last, entity.head.order)
        ...         self.notify(writes)
        ...     async def load(self, id, /, *, after=0, limit=None):
        ...         return self.view(self.entities.get(id), after=after, limit=limit)
        ...     async def scan(self, **question):
        ...         return self.select([entity.head for entity in self.entities.values()], **question)
        >>> flow = Flowlet(Dictionary())
        >>> @flow.saga
        ... async def double(n: int) -> int:
        ...     return 2 * n
        >>> flow.run(double, 21)
        42
    """

    capabilities: Capabilities = Capabilities()
    poll: float = 0.25

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._bell = Bell()

    @property
    def clock(self) -> Callable[[], float] | None:
        """The clock it was given, if time does not pass by itself in it."""
        return None if self._clock is time.time else self._clock

    # What a store of one's own defines ------------------------------------------------------------
    @abstractmethod
    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        """Store all writes or none of them; see `flowlet.store.Store.append`, and `apply`."""

    @abstractmethod
    async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Stored | None:
        """Read an entity; see `flowlet.store.Store.load`, and `view`."""

    @abstractmethod
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
        """List heads in the order of creation; see `flowlet.store.Store.scan`, and `select`."""

    # What it defines them with ----------------------------------------------------------------------
    def apply(
        self,
        writes: Sequence[Write],
        entities: Mapping[str, Entity],
        *,
        last: int,
        now: float | None = None,
        work: Work | None = None,
    ) -> dict[str, Entity | None]:
        """Judge the writes of one append and return what is to be stored; changes nothing itself.

        Args:
            writes: of one append.
            entities: at least those that the writes name, as they are now; what is missing does not exist.
            last: the highest `Head.order` that was ever given; new entities get the next ones.
            now: the store's time in seconds, that of its clock when it is not given.
            work: what ``append`` was given. A store with ``transactional=True`` calls it itself, with its
                connection, and gives the writes that it returns with the others.

        Returns:
            For each id the whole entity, to be stored in the place of the old one; None for one to be deleted.

        Raises:
            FlowletError: the writes are refused, as `flowlet.store.Store.append` says: store nothing.
        """
        if work is not None:
            raise self._cannot("transactional", "run work inside of an append")
        if not self.capabilities.signals and any(write.signals for write in writes):
            raise self._cannot("signals", "receive signals")
        now = self._clock() if now is None else now
        return applied(writes, entities, now=now, last=last, largest=self.capabilities.max_payload)

    def notify(self, writes: Sequence[Write]) -> None:
        """Wake those who watch, if these writes concern them. To be called on the loop, after they are stored."""
        if any(map(_is_notable, writes)):
            self._bell.ring()

    @staticmethod
    def view(entity: Entity | None, *, after: int = 0, limit: int | None = None) -> Stored | None:
        """Return what `load` returns of an entity."""
        if entity is None:
            return None
        return Stored(
            head=entity.head,
            records=entity.records[after : None if limit is None else after + limit],
            snapshot=entity.snapshot,
            snapshot_version=entity.snapshot_version,
            signals=entity.signals,
        )

    @staticmethod
    def select(
        heads: Iterable[Head],
        *,
        kind: str | None = None,
        definition: str | None = None,
        status: Sequence[str] | None = None,
        state: str | None = None,
        wake_before: float | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[Head]:
        """Return what `scan` returns, of these heads in any order."""
        matching = (
            head
            for head in heads
            if head.order > after
            and (kind is None or head.kind == kind)
            and (definition is None or head.definition == definition)
            and (status is None or head.status in status)
            and (state is None or head.state == state)
            and (wake_before is None or (head.wake is not None and head.wake < wake_before))
        )
        return heapq.nsmallest(limit, matching, key=_order)

    # What it is given -----------------------------------------------------------------------------------
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
        self._needs_leases("claim")
        for _ in range(_TRIES):
            heads = await self._named(ids) if ids else await self._waiting(definitions)
            # In this order: whoever owns one of them was on record before. Read the other way round, a worker that
            # came and claimed in between would be taken for a dead one.
            now, (workers, _) = await self.now(), await self._workers()
            if workers.get(worker, now) <= now:
                raise worker_unknown(worker)
            free = [head for head in heads if head.closed is None and _is_free(head, workers, now)]
            free.sort(key=_urgency)
            due = [head for head in free if ids or (head.wake is not None and head.wake <= now)][:limit]
            taken = await self._take(worker, due)
            if taken or not due:
                left = free[len(due) :]
                return Claims(heads=taken, wake=left[0].wake if left and not ids else None)
        return Claims()  # others are always faster: they work, and a later claim finds what they leave

    async def heartbeat(self, worker: str, lease: float, /) -> Sequence[str]:
        """Say that the worker lives for ``lease`` more seconds; return the others on record."""
        self._needs_leases("heartbeat")
        expires = await self.now() + lease

        def prolong(workers: Workers) -> None:
            workers[worker] = expires

        return sorted((await self._change_workers(prolong)).keys() - {worker})

    async def release(self, worker: str, /, ids: Sequence[str] | None = None) -> None:
        """Give back the worker's leases on these ids, or all of them and its place on record."""
        self._needs_leases("release")
        heads = [head async for head in self._heads()] if ids is None else await self._named(ids)
        owned = [head for head in heads if head.owner == worker]
        await self._write([Change(id=head.id, fence=head.fence, owner=None, lease=True) for head in owned])
        if ids is None and worker in (await self._workers())[0]:
            await self._change_workers(lambda workers: workers.pop(worker, None))

    async def now(self) -> float:
        """Return the store's own time, in seconds since the epoch."""
        return self._clock()

    async def watch(self, seen: int, timeout: float, /) -> int:
        """Wait until the change counter differs from ``seen``, or ``timeout`` seconds; return it."""
        if not self.capabilities.multi_process or timeout <= self.poll:
            return await self._bell.wait(seen, timeout)
        count = await self._bell.wait(seen, self.poll)
        if count == seen:
            self._bell.ring()  # perhaps another process has written: whoever watches has to look
        return self._bell.count

    async def prune(self, *, closed_before: float, limit: int = 1000) -> int:
        """Delete at most ``limit`` entities closed before this time, oldest first; return how many."""
        ended = [
            (head.closed, head.order, head.id)
            async for head in self._heads()
            if head.closed is not None and head.closed < closed_before
        ]
        oldest = heapq.nsmallest(limit, ended)
        return len(await self._write([Change(id=id, deletes=order) for _, order, id in oldest]))

    async def close(self) -> None:
        """Wake those who watch. Override it to close what the store has opened, and call it."""
        self._bell.ring()

    # How ----------------------------------------------------------------------------------------------
    async def _heads(self, **question: object) -> AsyncIterator[Head]:
        after = 0
        while page := await self.scan(**question, after=after, limit=_PAGE):  # type: ignore[arg-type]
            for head in page:
                yield head
            after = page[-1].order

    async def _named(self, ids: Sequence[str]) -> list[Head]:
        found = [await self.load(id, limit=0) for id in dict.fromkeys(ids)]
        return [stored.head for stored in found if stored is not None]

    async def _waiting(self, definitions: Sequence[tuple[str, str, str]]) -> list[Head]:
        return [
            head
            for kind, definition, version in dict.fromkeys(definitions)
            async for head in self._heads(kind=kind, definition=definition, wake_before=inf)
            if head.definition_version == version
        ]

    async def _take(self, worker: str, heads: Sequence[Head]) -> list[Head]:
        changes = [Change(id=head.id, fence=head.fence, owner=worker, lease=True) for head in heads]
        return await self._named(await self._write(changes))

    async def _write(self, changes: Sequence[Change]) -> list[str]:
        """Append these independent changes; return the ids of those that nobody else came before."""
        stored: list[str] = []
        for start in range(0, len(changes), _STRIDE):
            together = changes[start : start + _STRIDE]
            try:
                await self.append(together)
                stored += [change.id for change in together]
            except _LOST:
                stored += [change.id for change in together if await self._is_written(change)]
        return stored

    async def _is_written(self, change: Change) -> bool:
        try:
            await self.append([change])
        except _LOST:
            return False
        return True

    async def _workers(self) -> tuple[Workers, int | None]:
        """Return who is on record, and the fence of that record, None when there is none yet."""
        stored = await self.load(WORKERS, limit=0)
        if stored is None:
            return {}, None
        return msgspec.json.decode(stored.snapshot or b"{}", type=Workers), stored.head.fence

    async def _change_workers(self, change: Callable[[Workers], object]) -> Workers:
        # The record's own fence is raised by each change, so that none of two at once is lost.
        while True:
            workers, fence = await self._workers()
            change(workers)
            snapshot = msgspec.json.encode(workers)
            if fence is None:
                new = New("flowlet", "workers")
                write = Write(id=WORKERS, expect=0, create=new, records=(b"",), owner="flowlet", snapshot=snapshot)
            else:
                write = Write(id=WORKERS, fence=fence, owner="flowlet", snapshot=snapshot)
            try:
                await self.append([write])
                return workers
            except _LOST:
                pass

    def _needs_leases(self, method: str) -> None:
        if not self.capabilities.leases:
            raise self._cannot("leases", method)

    def _cannot(self, flag: str, what: str) -> StoreError:
        name = type(self).__name__
        return StoreError(f"{name} cannot {what}: its capabilities say {flag}=False; use a store that says True")


def _is_notable(write: Write) -> bool:
    return (
        bool(write.signals)
        or write.close
        or write.owner is None
        or (write.wake is not UNCHANGED and write.wake is not None)
    )


def _is_free(head: Head, workers: Workers, now: float) -> bool:
    return head.owner is None or workers.get(head.owner, now) <= now


def _order(head: Head) -> int:
    return head.order


def _urgency(head: Head) -> tuple[float, int]:
    return (inf if head.wake is None else head.wake, head.order)
