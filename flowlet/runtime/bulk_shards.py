"""The shards of a bulk operation, as one process goes through them.

Law: items are read once, in order; one is handed out only under the lease of its shard. What others have is waited for
at the end (or in between, where order is asked for) and taken over as soon as nobody alive has it. It ends when every
item is on record.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from time import perf_counter
from typing import Any, Protocol

import anyio

from flowlet.core.bulk import Outcome
from flowlet.core.bulk_records import rebuild_outcome
from flowlet.core.codec import Codec
from flowlet.errors import Conflict, LeaseLost, RunError
from flowlet.runtime.bulk_account import Account
from flowlet.runtime.bulk_operation import Operation
from flowlet.runtime.bulk_shard import Shard
from flowlet.runtime.feed import LULL, Pair, number, number_plainly
from flowlet.runtime.worker import Worker
from flowlet.store import Stored

_POLL = 0.25
"""Seconds between two looks at what other processes do, at most; a store tells of many changes at once."""

_LEAST_POLL = 0.05


class ShardsHost(Protocol):
    """What shards need of the process they are worked on in.

    Attributes:
        deadline: the time of ``perf_counter`` up to which the leases surely hold.
    """

    @property
    def deadline(self) -> float: ...
    @property
    def worker(self) -> Worker: ...


class Shards:
    """The shards that this process has, and those that others have.

    Args:
        held: ids of the shards that are worked on in this process, by all its bulk operations.
        accept: takes the outcome of an item that needs no call.
        make_due: asked to have recorded what has ended.

    Attributes:
        active: those that are written to here, by number.
        count: how many were read.
        is_over: every item is on record.
        recorded: set, and replaced, after something was recorded.
    """

    def __init__(
        self,
        account: Account,
        operation: Operation,
        codec: Codec[Any],
        host: ShardsHost,
        held: set[str],
        accept: Callable[[Outcome[Any, Any]], bool],
        make_due: Callable[[], None],
    ) -> None:
        self.active: dict[int, Shard] = {}
        self.count: int = 0
        self.is_over: bool = False
        self.recorded: anyio.Event = anyio.Event()
        self._account = account
        self._operation = operation
        self._plan = operation.plan
        self._codec = codec
        self._host = host
        self._held = held
        self._accept = accept
        self._make_due = make_due
        self._foreign: list[Shard] = []

    # -------------------------------------------------------------- going through them
    async def pairs(self) -> AsyncGenerator[Pair, None]:
        """Yield the items that are to be done here; of an operation that has ended, tell what is on record.

        Raises:
            IdConflict: the items are not those on record.
        """
        items, n, total = self._plan.items, 0, 0
        source = number(items) if hasattr(items, "__aiter__") else number_plainly(items)
        try:
            pair = await anext(source, None)
            while pair is not None:
                shard = await self._obtain(n)
                while pair is not None and len(shard.items) < self._account.size:
                    if await self._take_in(shard, pair[1]):
                        yield pair
                    pair = await anext(source, None)
                self._read_all(shard)
                n, total = n + 1, total + len(shard.items)
                self.count = n
                while self._plan.ordered and shard in self._foreign:
                    for todo in await self._settle():
                        yield todo
                    yield LULL
                    await self._wait_for_change()
        finally:
            with anyio.CancelScope(shield=True):
                await source.aclose()
        await self._check_end(n, total)
        while self.active or self._foreign:
            for todo in await self._settle():
                yield todo
            yield LULL
            await self._wait_for_change()
        self.is_over = True

    async def _take_in(self, shard: Shard, item: Any) -> bool:
        """Read an item; tell whether it is to be done here and now."""
        if shard.add(item):
            return shard.journal is not None and self._is_storable(shard, len(shard.items) - 1)
        await self._tell(shard, len(shard.items) - 1)
        return False

    def _is_storable(self, shard: Shard, place: int) -> bool:
        """Tell whether an item can be done; one that cannot be stored has failed."""
        problem = shard.problems.get(place)
        if problem is not None:
            self._accept(Outcome(shard.start + place, shard.items[place], None, problem))
        return problem is None

    def _read_all(self, shard: Shard) -> None:
        """Take note that the last item of a shard was read: the shard may be over already."""
        shard.close()
        if shard.is_complete and shard.journal is None:
            self.let_go(shard)
        elif shard.is_ready:
            self._make_due()

    async def _check_end(self, n: int, total: int) -> None:
        """See that there are no more items on record than these, and that each of them is accounted for.

        Raises:
            IdConflict: there are more.
        """
        if not self._account.is_new and await self._account.load(n, limit=0) is not None:
            raise self._account.shard(n).too_few(total)
        self._operation.tally.total = total

    async def _tell(self, shard: Shard, place: int) -> None:
        """Tell of an item that is on record already."""
        ended = shard.recorded.pop(place, None)
        if ended is None:
            return
        outcome = rebuild_outcome(ended, shard.start + place, shard.items[place], self._codec)
        self._operation.tally.earlier += 1
        if self._operation.accept(outcome):
            await self._operation.wait_for_room()

    # -------------------------------------------------------------- having them
    async def _obtain(self, n: int) -> Shard:
        """Make or claim a shard, if nobody else has it, and learn what is on record of it."""
        shard = self._account.shard(n)
        if self._account.is_new and await self._created(shard):
            return shard
        while (stored := await self._account.load(n)) is None:
            if self._account.ended is not None or await self._created(shard):
                return shard
        await self._claim(shard, stored)
        if shard.journal is None:
            self._foreign.append(shard)
        return shard

    async def _created(self, shard: Shard) -> bool:
        await self.check_lease()
        items, account = self._plan.items, self._account
        ahead = items[shard.start : shard.start + account.size] if isinstance(items, Sequence) else ()
        shard.create(account.store, account.definition, self._host.worker.id, ahead)
        self._held.add(shard.id)
        try:
            await shard.begin()
        except BaseException as error:
            self._held.discard(shard.id)
            if isinstance(error, Conflict):
                return False
            raise
        self.active[shard.number] = shard
        return True

    async def _claim(self, shard: Shard, stored: Stored) -> None:
        """Take a shard if nobody alive has it, and learn what is on record of it."""
        account, worker, head = self._account, self._host.worker.id, stored.head
        shard.absorb(stored)
        if account.ended is not None or head.closed is not None or head.status == "completed" or shard.id in self._held:
            return
        self._held.add(shard.id)
        try:
            if head.owner == worker:  # from a call that was cut off before it was told, or could give it back
                await account.insist(lambda: account.store.release(worker, (shard.id,)))
            claimed = (await account.insist(lambda: account.store.claim(worker, ids=(shard.id,)))).heads
            if claimed and claimed[0].version != head.version:
                now = await account.load(shard.number)
                if now is not None:
                    shard.absorb(now)
        except BaseException as error:
            self._held.discard(shard.id)
            if isinstance(error, LeaseLost):  # held up for too long; another time
                return
            raise
        if claimed:  # not before: what is active is written to
            shard.own(account.store, claimed[0].version, claimed[0].fence)
            self.active[shard.number] = shard
        else:
            self._held.discard(shard.id)

    async def _settle(self) -> list[Pair]:
        """Look once at what others have, and take what they have left; return what is to be done."""
        found: list[Pair] = []
        for shard in list(self._foreign):
            stored = await self._account.load(shard.number)
            if stored is None:
                raise RunError(f"{shard.id!r} has gone from the store; was it pruned?")
            await self._claim(shard, stored)
            for place in sorted(shard.recorded):
                await self._tell(shard, place)
            if shard.journal is not None:
                self._foreign.remove(shard)
                if shard.is_ready:  # all of it was recorded, but not that this is all
                    self._make_due()
                todo = [place for place in shard.todo() if self._is_storable(shard, place)]
                found += [(shard.start + place, shard.items[place]) for place in todo]
            elif shard.is_complete or self._account.ended is not None:
                self._foreign.remove(shard)
        return found

    async def _wait_for_change(self) -> None:
        """Wait until something was recorded here, or may have been elsewhere."""
        if self._foreign or self.active:
            with anyio.move_on_after(_POLL if self._foreign else None):
                await self.recorded.wait()

    def let_go(self, shard: Shard) -> None:
        """Forget a shard that is not written to any more."""
        if self.active.pop(shard.number, None) is not None:
            self._held.discard(shard.id)
        if shard.is_complete and shard in self._foreign:
            self._foreign.remove(shard)

    def lose(self, shard: Shard) -> None:
        """Leave a shard to who has it now."""
        shard.drop()
        self.let_go(shard)
        self._foreign.append(shard)

    # -------------------------------------------------------------- leases
    async def check(self, index: int) -> None:
        """Let an item begin only under a lease that surely holds.

        Raises:
            LeaseLost: somebody else has its shard.
        """
        if perf_counter() > self._host.deadline:
            await self.check_lease()
            for shard in list(self.active.values()):
                stored = await self._account.load(shard.number, limit=0)
                journal = shard.journal
                if journal is not None and (stored is None or stored.head.fence != journal.fence):
                    self.lose(shard)
        n = index // self._account.size
        if n not in self.active:
            raise LeaseLost(f"the shard of item {index} is somebody else's now", self._account.shard_id(n))

    async def check_lease(self) -> None:
        """Wait until the lease of this process surely holds."""
        while perf_counter() > self._host.deadline:  # noqa: ASYNC110 - nobody tells of a heartbeat
            await anyio.sleep(_LEAST_POLL)
