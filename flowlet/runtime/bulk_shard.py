"""A shard of a bulk operation: a range of its items, worked on by one process at a time.

Law: an outcome is given out when it is on record, and not before. Records are written under the shard's lease: a
process that has lost it can write nothing, and what it had not recorded is somebody else's to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio

from flowlet.core.bulk import Outcome
from flowlet.core.bulk_records import (
    KIND,
    WIDTH,
    ItemEnded,
    ShardRecord,
    digest_item,
    pack_shard_record,
    shard_codec,
)
from flowlet.core.codec import pack
from flowlet.core.engine import Suspended
from flowlet.core.sizes import FRAME
from flowlet.errors import Conflict, DecodeError, EncodeError, IdConflict, LeaseLost
from flowlet.runtime.journal import Journal
from flowlet.store import New, Store, Stored, Write

_LARGEST = 1 << 20
"""Bytes of outcomes in one record, unless a single one has more or the store takes less."""


def shard_id(id: str, began: float, number: int) -> str:
    """Return the id of a shard.

    Args:
        began: when the bulk operation was begun: one that is begun anew, after it was pruned, has shards of its own,
            even if some of the old ones are still there.
    """
    return f"{id}/shard-{round(began * 1e6):x}-{number}"


class Shard:
    """A range of items, what is on record of them, and what is about to be.

    Attributes:
        start: the index of its first item.
        items: those of them that were read here.
        count: how many items it has; None until all of them were read.
        journal: writes its records, while it is this process's to work on.
        pending: outcomes that are not on record yet, each with its encoded form.
        recorded: what is on record and was not given out yet, by place.
        problems: why items cannot be stored, by place; these have failed, and are not to be done.
    """

    def __init__(self, bulk: str, id: str, number: int, size: int) -> None:
        self.id = id
        self.number = number
        self.start: int = number * size
        self.items: list[Any] = []
        self.count: int | None = None
        self.journal: Journal | None = None
        self.pending: list[tuple[Outcome[Any, Any], bytes]] = []
        self.recorded: dict[int, ItemEnded] = {}
        self.problems: dict[int, EncodeError] = {}
        self._bulk = bulk
        self._digests = bytearray()
        self._saved = 0  # bytes of digests on record
        self._trusted = 0  # those of them that are known to be of these very items
        self._done: set[int] = set()
        self._total: int | None = None  # as whoever completed it has recorded

    # -------------------------------------------------------------- the record
    def create(self, store: Store, definition: str, worker: str, items: Sequence[Any]) -> None:
        """Become a new shard, of this worker; `begin` makes it.

        Args:
            items: those that it will have, if they are all there.
        """
        digests, self.problems = digest_items(items)
        new = New(KIND, definition)
        write = Write(id=self.id, expect=0, create=new, status="running", wake=0.0, owner=worker)
        self.journal = Journal(store, self.id, 0, 1, write)
        self.journal.pending.append(pack(ShardRecord(digests, worker=worker)))
        self._digests[:] = digests
        self._saved = self._trusted = len(digests)

    def own(self, store: Store, version: int, fence: int) -> None:
        """Become this worker's, which has just claimed it."""
        self.journal = Journal(store, self.id, version, fence)

    def absorb(self, stored: Stored) -> None:
        """Learn what is on record.

        Raises:
            IdConflict: it is of other items.
            DecodeError: it cannot be read.
        """
        if stored.head.kind != KIND:
            raise IdConflict(f"id {self.id!r} belongs to a {stored.head.kind}; use another id than {self._bulk!r}")
        if len(stored.records) != stored.head.version:
            raise DecodeError(f"{self.id!r} is damaged: some of its records are missing")
        digests = bytearray()
        for number, data in enumerate(stored.records, 1):
            record = shard_codec.decode(data, f"record {number} of {self.id!r}")
            digests += record.digests
            for ended in record.ended:
                if ended.place not in self._done:
                    self._done.add(ended.place)
                    self.recorded[ended.place] = ended
        self._compare(digests)
        if stored.head.status == "completed":
            self._total = len(digests) // WIDTH
        self._check_count()
        if len(digests) > len(self._digests):
            self._digests = digests
        self._saved = len(digests)

    def _compare(self, digests: bytearray) -> None:
        """See whether two accounts of the items agree as far as both go."""
        common = min(len(digests), len(self._digests))
        if digests[:common] == self._digests[:common]:
            return
        for place in range(common // WIDTH):
            span = slice(place * WIDTH, place * WIDTH + WIDTH)
            if digests[span] != self._digests[span]:
                raise self._other_item(place)

    def _other_item(self, place: int) -> IdConflict:
        given = f", and is now given {self.items[place]!r:.80}" if place < len(self.items) else ""
        return IdConflict(
            f"bulk operation {self._bulk!r} was begun with other items: item {self.start + place} is the first that "
            f"differs{given}; use another id, or the same items in the same order"
        )

    def add(self, item: Any) -> bool:
        """Take note of the next item; tell whether it has not ended yet.

        Raises:
            IdConflict: another one is on record in its place.
        """
        place = len(self.items)
        self.items.append(item)
        if place * WIDTH < self._trusted:
            return place not in self._done
        digest, problem = digest_item(item)
        if problem is not None:
            self.problems[place] = problem
        known = self._digests[place * WIDTH : place * WIDTH + WIDTH]
        if not known:
            self._digests += digest
        elif known != digest:
            raise self._other_item(place)
        return place not in self._done

    def close(self) -> None:
        """Take note that it has no further item.

        Raises:
            IdConflict: there are more on record.
        """
        self.count = len(self.items)
        if len(self._digests) > self.count * WIDTH:
            raise self.too_few(self.start + self.count)
        self._check_count()

    def _check_count(self) -> None:
        if self._total is not None and self.count is not None and self.count > self._total:
            first = self.start + self._total
            raise IdConflict(
                f"bulk operation {self._bulk!r} was begun with {first} items, and now there are more: item {first} is "
                "the first that is new; use another id, or the same items"
            )

    def too_few(self, total: int) -> IdConflict:
        """Make the error for items that end too early."""
        return IdConflict(
            f"bulk operation {self._bulk!r} was begun with more items: now there are {total}, and item {total} is the "
            "first that is missing; use another id, or the same items"
        )

    # -------------------------------------------------------------- how it stands
    @property
    def is_complete(self) -> bool:
        """Whether everything of it is on record."""
        return self.count is not None and len(self._done) == self.count

    @property
    def is_ready(self) -> bool:
        """Whether everything of it has ended, so that one commit completes it."""
        return self.count is not None and len(self._done) + len(self.pending) == self.count

    def todo(self) -> list[int]:
        """Return the places of items that were read and have not ended."""
        under_way = {outcome.index - self.start for outcome, _ in self.pending}
        return [p for p in range(len(self.items)) if p not in self._done and p not in under_way]

    def drop(self) -> None:
        """Forget what is not on record: the lease is lost, and with it the right to record it."""
        self.journal = None
        self.pending.clear()

    # -------------------------------------------------------------- writing
    async def commit(
        self, limit: int | None, least: int, most: int, give: Callable[[Outcome[Any, Any]], object]
    ) -> None:
        """Record what has ended, and give it out; the last commit gives the lease back.

        Args:
            limit: bytes that a record may have.
            least: 1 if all there are now are due, `most` if there must be enough for a record.
            most: outcomes in a record.
            give: told each outcome once it is on record.

        Raises:
            Conflict, LeaseLost: it is somebody else's now.
            StoreUnavailable: it could not be recorded.
        """
        due = len(self.pending) if least == 1 else 0  # not what comes meanwhile: it would be a commit for a few
        while self.journal is not None and (due > 0 or len(self.pending) >= most or self.is_ready):
            new, count = self._next_part(limit, most)
            batch = self.pending[:count]
            is_last = self.is_ready and count == len(self.pending) and self._saved + len(new) == len(self._digests)
            if new or batch:
                self.journal.pending.append(pack_shard_record(new, [record for _, record in batch]))
            await self._write(self.journal, "completed" if is_last else None)
            self._saved += len(new)
            del self.pending[:count]
            due -= max(count, 1)
            self._done.update(outcome.index - self.start for outcome, _ in batch)
            for outcome, _ in batch:
                give(outcome)

    async def give_back(self) -> None:
        """Give the lease back, for whoever goes on with it.

        Raises:
            Conflict, LeaseLost, StoreUnavailable: as `commit`.
        """
        if self.journal is not None:
            await self._write(self.journal, "running", wake=0.0)

    async def begin(self) -> None:
        """Create it in the store.

        Raises:
            Conflict: somebody else has.
            StoreUnavailable: it could not be created.
        """
        assert self.journal is not None
        await self._write(self.journal, None)

    async def _write(self, journal: Journal, status: str | None, wake: float | None = None) -> None:
        """Write what the journal has; with a status, for the last time."""
        try:
            with anyio.CancelScope(shield=True):  # what was handed to the store is not abandoned
                await (journal.commit() if status is None else journal.park(status, None, wake=wake))
        except Suspended:
            self.journal = None
            assert journal.trouble is not None
            raise journal.trouble from journal.trouble.__cause__
        if status is not None:
            self.journal = None

    def _next_part(self, limit: int | None, most: int) -> tuple[bytes, int]:
        """Return the digests for the next record, and how many of the pending outcomes go with them.

        No outcome is on record before its item's digest is.
        """
        new = bytes(self._digests[self._saved :])
        room = _LARGEST if limit is None else limit - FRAME
        if len(new) > room // 2:
            return new[: room // 2 // WIDTH * WIDTH], 0
        room -= len(new)
        count = 0
        for _, record in self.pending[:most]:
            room -= len(record)
            if room < 0 and count:
                break
            count += 1
        return new, count


def is_lost(error: Exception) -> bool:
    """Tell whether an error of `Shard.commit` says that somebody else has the shard."""
    return isinstance(error, (Conflict, LeaseLost))


def digest_items(items: Sequence[Any]) -> tuple[bytes, dict[int, EncodeError]]:
    """Return the digests of items, and which of them cannot be stored, and why."""
    digests: list[bytes] = []
    problems: dict[int, EncodeError] = {}
    for place, item in enumerate(items):
        digest, problem = digest_item(item)
        digests.append(digest)
        if problem is not None:
            problems[place] = problem
    return b"".join(digests), problems
