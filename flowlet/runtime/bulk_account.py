"""A bulk operation's own entity: that it was begun, with which items, and how it ended.

Law: what is given now must be what was given first, or it is `IdConflict`, which names the first item that differs as
nearly as the records tell. The end is written once, in the same append that closes the shards.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import anyio
import anyio.lowlevel

from flowlet.core.bulk import BulkReport
from flowlet.core.bulk_records import (
    BULK,
    WIDTH,
    BulkFacts,
    BulkSums,
    digest_shard,
    facts_codec,
    shard_size,
    sums_codec,
)
from flowlet.core.codec import pack
from flowlet.core.failures import describe_failure
from flowlet.core.run_records import Ended, EndStatus, Started, run_record_codec
from flowlet.errors import Conflict, DecodeError, IdConflict, RunCancelled, StoreUnavailable
from flowlet.runtime.bulk_options import BulkPlan
from flowlet.runtime.bulk_shard import Shard, digest_items, shard_id
from flowlet.runtime.logs import Log
from flowlet.runtime.orders import CANCEL
from flowlet.store import New, Store, Stored, Write

T = TypeVar("T")

_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between the attempts to reach a store that is down."""

_CLOSED_AT_ONCE = 500
"""Shards closed in the append that ends the operation; if there are more, the others are closed before."""


class AccountHost(Protocol):
    """What an account needs of the process it is in."""

    log: Log
    max_payload: int | None

    def now(self) -> float: ...


class Account:
    """A bulk operation, as its own entity has it.

    Attributes:
        definition: the name by which it is kept.
        size: items of a shard.
        began: when it was begun, in seconds of the store's clock.
        is_new: it was begun by this call.
        ended: how it ended, if it has.
        sums: the same in numbers.
    """

    def __init__(self, plan: BulkPlan, store: Store, host: AccountHost) -> None:
        assert plan.id is not None
        self.id: str = plan.id
        self.definition: str = BULK + plan.function.name
        self.store = store
        self.size: int = 0
        self.began: float = 0.0
        self.is_new: bool = False
        self.ended: Ended | None = None
        self.sums: BulkSums | None = None
        self._plan = plan
        self._host = host

    # -------------------------------------------------------------- beginning
    async def open(self) -> None:
        """Find it in the store, or make it.

        Raises:
            IdConflict: the id is taken by something else.
        """
        size = shard_size(self._plan.total, self._host.max_payload)
        facts = BulkFacts(size, self._plan.total, await self._digest_shards(size))
        began = self._host.now()
        started = Started(self.definition, "1", pack(facts), began)
        new = New("run", self.definition)
        write = Write(id=self.id, expect=0, create=new, status="running", records=(pack(started),))
        try:
            await self.append([write])
        except Conflict:
            await self._resume()
        else:
            self.is_new, self.began, self.size = True, began, size

    async def _digest_shards(self, size: int) -> bytes:
        """Return a digest of each shard of items that are all there; nothing if it would be too much."""
        items, limit = self._plan.items, self._host.max_payload
        digests: list[bytes] = []
        if isinstance(items, Sequence) and (limit is None or len(items) // size * WIDTH < limit // 2):
            for start in range(0, len(items), size):
                digests.append(digest_shard(digest_items(items[start : start + size])[0]))
                await anyio.lowlevel.checkpoint()
        return b"".join(digests)

    async def _resume(self) -> None:
        stored = await self.insist(lambda: self.store.load(self.id))
        if stored is None:
            raise IdConflict(f"bulk operation {self.id!r} was pruned just now; call it again")
        head = stored.head
        if head.kind != "run" or head.definition != self.definition:
            raise IdConflict(
                f"id {self.id!r} belongs to a {head.kind} of {head.definition!r}, not of {self.definition!r}; use "
                "another id"
            )
        records = [run_record_codec.decode(data, f"a record of {self.id!r}") for data in stored.records]
        started, last = records[0], records[-1]
        if not isinstance(started, Started):
            raise DecodeError(f"the first record of bulk operation {self.id!r} does not say that it was begun")
        facts = facts_codec.decode(started.input, f"the input of {self.id!r}")
        self.began, self.size = started.at, facts.size
        self.check_total(facts.total, self._plan.total)
        if isinstance(last, Ended):
            self._read_end(last)
            return
        await self._check_items(facts)
        if head.status != "running":
            await self.mark("running")

    def _read_end(self, ended: Ended) -> None:
        self.ended = ended
        if ended.value is not None:
            self.sums = sums_codec.decode(ended.value, f"the result of {self.id!r}")
            if ended.status == "completed":
                self.check_total(self.sums.total, self._plan.total)

    def check_total(self, recorded: int | None, given: int | None) -> None:
        """Compare two numbers of items, as far as they are known.

        Raises:
            IdConflict: they differ.
        """
        if recorded is None or given is None or recorded == given:
            return
        raise IdConflict(
            f"bulk operation {self.id!r} was begun with {recorded} items, and is now given {given}: item "
            f"{min(recorded, given)} is the first that is in only one of them; use another id, or the same items"
        )

    async def _check_items(self, facts: BulkFacts) -> None:
        """Compare items that are all there with all that is on record, before any of them is begun.

        Raises:
            IdConflict: they differ.
        """
        items, size = self._plan.items, self.size
        if not isinstance(items, Sequence):
            return
        known = await self._digest_shards(size) if facts.shards else b""
        for n in range(-(-len(items) // size)):
            part, span = items[n * size : (n + 1) * size], slice(n * WIDTH, n * WIDTH + WIDTH)
            if known and known[span] == facts.shards[span]:
                continue
            await self._compare(n, part)
            if known:
                raise IdConflict(
                    f"bulk operation {self.id!r} was begun with other items: one of the items {n * size} to "
                    f"{n * size + len(part) - 1} is the first that differs; use another id, or the same items in the "
                    "same order"
                )

    async def _compare(self, n: int, items: Sequence[Any]) -> None:
        """Compare all items of a shard with what is on record of it."""
        stored = await self.load(n)
        if stored is not None:
            shard = self.shard(n)
            for item in items:
                shard.add(item)
            shard.absorb(stored)
            shard.close()

    # -------------------------------------------------------------- while it goes on, and ending
    async def is_cancelled(self) -> bool:
        """Tell whether somebody has cancelled it, here or elsewhere."""
        stored = await self.store.load(self.id, after=1)
        if stored is None:
            return False
        return stored.head.status == "cancelled" or any(signal.topic == CANCEL for signal in stored.signals)

    async def mark(self, status: str) -> None:
        """Have listings show how it stands."""
        await self.append([Write(id=self.id, status=status)])

    async def end(self, status: EndStatus, report: BulkReport[Any], seconds: float, shards: int) -> None:
        """Record how it has ended, and close all that belongs to it; somebody else may have done so.

        Args:
            shards: how many there are at least.
        """
        sums = BulkSums(report.total, report.succeeded, report.failed, seconds)
        error = None
        if status != "completed":
            error = describe_failure(RunCancelled(f"bulk operation {self.id!r} was cancelled; what it had done stands"))
        ended = Ended(status, self._host.now(), pack(sums), error)
        parent = Write(id=self.id, expect=1, records=(pack(ended),), status=status, state="", wake=None, close=True)
        ids = await self._shard_ids(shards)
        while len(ids) > _CLOSED_AT_ONCE:
            some, ids = ids[:_CLOSED_AT_ONCE], ids[_CLOSED_AT_ONCE:]
            await self.append([Write(id=id, close=True, owner=None) for id in some])
        try:
            await self.append([parent, *(Write(id=id, close=True, owner=None) for id in ids)])
        except Conflict:
            self._host.log.debug("bulk.ended_elsewhere", run_id=self.id)

    async def _shard_ids(self, known: int) -> list[str]:
        """Return the ids of all shards there are; another process may have made more of them."""
        while await self.load(known, limit=0) is not None:
            known += 1
        return [self.shard_id(n) for n in range(known)]

    # -------------------------------------------------------------- the store
    def shard_id(self, n: int) -> str:
        """Return the id of a shard."""
        return shard_id(self.id, self.began, n)

    def shard(self, n: int) -> Shard:
        """Return a shard of which nothing is known yet."""
        return Shard(self.id, self.shard_id(n), n, self.size)

    async def load(self, n: int, limit: int | None = None) -> Stored | None:
        """Read a shard."""
        return await self.insist(lambda: self.store.load(self.shard_id(n), limit=limit))

    async def append(self, writes: list[Write]) -> None:
        """Write, as often as it takes within the patience for a store that is down."""
        await self.insist(lambda: self.store.append(writes))

    async def insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the store, for a bounded time again and again while it is down.

        Raises:
            StoreUnavailable: it is down for longer.
        """
        for pause in _PAUSES:
            try:
                return await ask()
            except StoreUnavailable:
                await anyio.sleep(pause)
        return await ask()
