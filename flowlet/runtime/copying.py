"""Copying all that one store keeps into another, and proving that it is there.

Law: both are stores and nothing more: what is read comes from `load` and `scan`, what is written goes through
`append` with the versions and fences that were seen, so that nothing is ever overwritten. A few records and a few
megabytes are held at a time, however much there is. Nothing falls due in the other store before all of it is
there and was compared; cut off anywhere, the copy goes on where it was when it is asked for again.

What the protocol gives no way to copy: the times of creation, last change and end, which a store sets itself, so
that they are those of the copy; and the message ids of signals that were consumed, so that one which is sent again
after the move is received again. Leases, fences and the count of claims begin anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from itertools import zip_longest
from math import inf
from typing import Literal

import anyio
import anyio.lowlevel
import msgspec
from msgspec.structs import replace

from flowlet.errors import Conflict, CopyMismatch, DecodeError, LeaseLost, RunFinished, RunNotFound, StoreInUse
from flowlet.runtime.copy_plan import facts, is_filler, may_go_on, new_entity, record_writes, rest, size_of
from flowlet.runtime.owners import Owners
from flowlet.store import Head, Store, Stored, Write

__all__ = ["CopyProgress", "CopyReport", "Phase", "copy"]

Phase = Literal["copying", "verifying"]

_HEADS = 500
"""Heads of a page."""

_FIRST, _MOST = 8, 32
"""Records that are read at once: of an entity of which nothing is known, and the most."""

_AIM = 16 << 20
"""Bytes that one reading should not exceed, as far as the sizes of the last one tell of those of the next."""

_WRITES, _BYTES = 500, 4 << 20
"""What is gathered before it is appended: entities and bytes."""

_OVERTAKEN = (Conflict, LeaseLost, RunFinished, RunNotFound)


class CopyProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a copy is.

    Attributes:
        phase: everything is copied, and then compared.
        done: runs, machines and definitions that this phase is through with.
        total: how many there are.
    """

    phase: Phase
    done: int
    total: int


class CopyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is now in both stores.

    Attributes:
        runs, machines, definitions: how many.
        records: of them all.
        size: of records, snapshots and waiting signals, in bytes, as they are stored here.
        copied: of runs, machines and definitions, how many this call has begun to copy.
        continued: of how many an earlier call had copied a part.
        present: how many were there already.
        digest: of all that was compared, in hexadecimal; equal for equal histories, in whatever stores they are.
    """

    runs: int = 0
    machines: int = 0
    definitions: int = 0
    records: int = 0
    size: int = 0
    copied: int = 0
    continued: int = 0
    present: int = 0
    digest: str = ""


async def copy(source: Store, target: Store, progress: Callable[[CopyProgress], object] | None = None) -> CopyReport:
    """Copy everything that is in one store into another and compare it; see `flowlet.Flowlet.copy_to`."""
    return await _Copy(source, target, progress).run()


class _Stride:
    """How many records to read at once, by the size of those that were read last."""

    def __init__(self) -> None:
        self._limit = _FIRST

    @property
    def first(self) -> int:
        """For an entity of which nothing was read yet."""
        return min(self._limit, _FIRST)

    @property
    def next(self) -> int:
        """For the entity that was read last."""
        return self._limit

    def note(self, stored: Stored) -> None:
        largest = max(1, len(stored.snapshot or b""), *map(len, stored.records))
        self._limit = max(1, min(2 * self._limit, _MOST, _AIM // largest))


class _Copy:
    """One copy of one store to another."""

    def __init__(self, source: Store, target: Store, progress: Callable[[CopyProgress], object] | None) -> None:
        self._source, self._target, self._progress = source, target, progress
        self._stride = _Stride()
        self._owners = Owners(source)
        self._began = 0.0
        self._kept: set[str] = set()  # definitions that the target has in a form of its own
        self._gathered: list[list[Write]] = []  # the writes of new entities, to be appended together
        self._size = 0
        self._is_empty = False  # the target was, so that nobody has to ask what it has
        self._phase: Phase = "copying"
        self._done = self._total = 0
        self._counts = {"run": 0, "machine": 0, "definition": 0}
        self._copied = self._continued = self._records = self._bytes = 0
        self._digest = hashlib.blake2b(digest_size=32)
        self._seen, self._seen_again = hashlib.blake2b(), hashlib.blake2b()

    async def run(self) -> CopyReport:
        self._began = await self._source.now()
        await self._refuse_owned()
        self._is_empty = not await self._target.scan(limit=1)
        await self._through(self._copy_page)
        await self._flush()
        self._tell(self._total)
        self._phase, self._done = "verifying", 0
        await self._through(self._verify_page)
        await self._through(self._look_again)
        if self._seen.digest() != self._seen_again.digest():
            raise _changed("")
        await self._through(self._wake_page, wake_before=inf)
        return CopyReport(
            runs=self._counts["run"],
            machines=self._counts["machine"],
            definitions=self._counts["definition"],
            records=self._records,
            size=self._bytes,
            copied=self._copied,
            continued=self._continued,
            present=self._done - self._copied - self._continued,
            digest=self._digest.hexdigest(),
        )

    async def _through(
        self, do: Callable[[Sequence[Head]], Awaitable[None]], *, wake_before: float | None = None
    ) -> None:
        """Do something with each page of the source's heads."""
        after = 0
        while heads := await self._source.scan(wake_before=wake_before, after=after, limit=_HEADS):
            await do(heads)
            after = heads[-1].order

    def _tell(self, done: int) -> None:
        self._done = done
        if self._progress is not None:
            self._progress(CopyProgress(phase=self._phase, done=done, total=max(done, self._total)))

    # Who owns what ----------------------------------------------------------------------------------
    async def _refuse_owned(self) -> None:
        """Count what there is; refuse when a living worker owns some of it."""
        owned: list[str] = []

        async def count(heads: Sequence[Head]) -> None:
            self._total += len(heads)
            owned.extend([head.id for head in heads if await self._owners.is_owned(head)])

        try:
            await self._through(count)
        finally:
            await self._owners.release_dead()
        if owned:
            raise StoreInUse(
                f"{len(owned)} of the runs and machines of this store, {owned[0]!r} among them, are owned by a living "
                "worker: leave or drain every Flowlet on it, then copy again; nothing was copied",
                len(owned),
                owned[0],
            )

    # Copying ----------------------------------------------------------------------------------------
    async def _copy_page(self, heads: Sequence[Head]) -> None:
        for head in heads:
            stored = await self._read(self._source, head.id, 0, self._stride.first)
            there = None if self._is_empty else await self._target.load(head.id, limit=0)
            if there is None:
                await self._copy_new(await self._read_on(stored))
            elif stored.head.kind == "definition":
                await self._complete_definition(stored, there)
            elif _lacks(there, stored):  # if it seems to lack nothing, the comparison will tell
                await self._continue(stored, there)
        await self._flush()
        self._tell(self._done + len(heads))

    async def _read_on(self, stored: Stored) -> Stored:
        """Read the rest of an entity's records too, as far as they may be held together."""
        records, size = list(stored.records), sum(map(len, stored.records))
        while len(records) < stored.head.version and size < _BYTES:
            more = (await self._read(self._source, stored.head.id, len(records), self._stride.next)).records
            records += more
            size += sum(map(len, more))
        return replace(stored, records=records)

    async def _copy_new(self, stored: Stored) -> None:
        self._copied += 1
        if len(stored.records) == stored.head.version:
            await self._gather(new_entity(stored))
        else:
            await self._flush()
            await self._append_rest(stored, None)

    async def _gather(self, writes: list[Write]) -> None:
        self._gathered.append(writes)
        self._size += sum(map(size_of, writes))
        if self._size >= _BYTES or len(self._gathered) >= _WRITES:
            await self._flush()

    async def _flush(self) -> None:
        """Append what was gathered: everybody's first writes, then everybody's second ones, and so on."""
        gathered, self._gathered, self._size = self._gathered, [], 0
        for writes in zip_longest(*gathered):
            await self._append([write for write in writes if write is not None])

    async def _continue(self, stored: Stored, there: Stored) -> None:
        """Copy what is missing of an entity that is there in part."""
        await self._flush()
        if difference := await self._difference(stored, there):
            raise _mismatch(stored.head.id, difference)
        self._continued += 1
        await self._append_rest(stored, there)

    async def _complete_definition(self, stored: Stored, there: Stored) -> None:
        """Leave it as it is if it differs: a Flowlet on the target has written its own, as each of them does."""
        if await self._difference(stored, there):
            self._kept.add(stored.head.id)
        elif _lacks(there, stored):
            await self._continue(stored, there)

    async def _difference(self, stored: Stored, there: Stored) -> str:
        """Return why what is there is not the beginning of what is to be copied; nothing when it is."""
        head, other = stored.head, there.head
        if facts(head)[:3] != facts(other)[:3]:
            return f"a {other.kind} of {other.definition!r}, not a {head.kind} of {head.definition!r}"
        if other.version > head.version or other.inbox > head.inbox:
            return "more of it"
        if not may_go_on(head, other):
            return f"it as {other.status or other.state!r} at version {other.version}"
        consumed = head.inbox - len(stored.signals)
        behind = [signal for signal in there.signals if signal.number > consumed]
        before = [signal for signal in there.signals if signal.number <= consumed]
        if not all(map(is_filler, before)) or list(stored.signals[: len(behind)]) != behind:
            return "other signals"
        return await self._difference_of_records(stored, there)

    async def _difference_of_records(self, stored: Stored, there: Stored) -> str:
        after, version = 0, there.head.version
        ours = (stored.snapshot_version, stored.snapshot)
        if ours[0] <= version and (there.snapshot_version, there.snapshot) != ours:
            return "another snapshot"  # a later one takes the place of what is there
        while after < version:
            limit = min(self._stride.first, version - after)
            original = await self._read(self._source, stored.head.id, after, limit)
            copied = await self._read(self._target, stored.head.id, after, limit)
            if list(original.records) != list(copied.records):
                return f"another record among {after + 1} to {after + limit}"
            after += limit
        return ""

    async def _append_rest(self, stored: Stored, there: Stored | None) -> None:
        """Append the records behind those that are there, and then how the entity stands."""
        head = stored.head
        at, fence = (0, 0) if there is None else (there.head.version, there.head.fence)
        if at:
            stored = await self._read(self._source, head.id, at, self._stride.first)
        while True:
            for write in record_writes(stored, at, fence):
                await self._append([write])
            at += len(stored.records)
            if at >= head.version:
                break
            stored = await self._read(self._source, head.id, at, self._stride.next)
        for write in rest(stored, there):
            await self._append([write])

    async def _append(self, writes: Sequence[Write]) -> None:
        try:
            await self._target.append(writes)
        except _OVERTAKEN as error:
            raise _mismatch(error.id, "something that was not there before: somebody else writes to it") from error

    # Comparing --------------------------------------------------------------------------------------
    async def _verify_page(self, heads: Sequence[Head]) -> None:
        for head in heads:
            await self._verify(head.id)
        await anyio.lowlevel.checkpoint()
        self._tell(self._done + len(heads))

    async def _verify(self, id: str) -> None:
        """Read an entity from both stores and compare all of it."""
        try:
            at, version = 0, 1
            while True:
                count, ours = await self._compare_page(id, at)
                version = version if at else ours.head.version
                at += count
                if at >= version:
                    break
        except CopyMismatch as error:
            latest = await self._source.load(id, limit=0)
            if latest is None or latest.head.updated >= self._began:
                raise _changed(id) from error
            raise
        self._digest.update(msgspec.msgpack.encode((ours.snapshot_version, ours.snapshot, ours.signals)))
        self._bytes += len(ours.snapshot or b"") + sum(len(signal.payload) for signal in ours.signals)
        self._records += version
        self._counts[ours.head.kind] = self._counts.get(ours.head.kind, 0) + 1

    async def _compare_page(self, id: str, at: int) -> tuple[int, Stored]:
        """Compare the records behind number ``at``; return how many, and what was read but for them."""
        ours = await self._read(self._source, id, at, self._stride.next if at else self._stride.first)
        theirs = await self._target.load(id, after=at, limit=len(ours.records))
        if not at:
            form = _form(ours.head)
            self._seen.update(form)
            self._digest.update(form)
        if theirs is None:
            raise _mismatch(id, "nothing")
        if id not in self._kept:
            _compare(ours, theirs, at)
        for record in ours.records:
            self._digest.update(len(record).to_bytes(8))
            self._digest.update(record)
            self._bytes += len(record)
        return len(ours.records), replace(ours, records=())

    async def _look_again(self, heads: Sequence[Head]) -> None:
        """See whether the source is as it was when it was compared, and is nobody's now."""
        for head in heads:
            if self._owners.may_own(head):
                raise _changed(head.id)
            self._seen_again.update(_form(head))

    async def _wake_page(self, heads: Sequence[Head]) -> None:
        """Let those fall due in the target that wait for a time."""
        writes: list[Write] = []
        for head in heads:
            there = await self._target.load(head.id, limit=0)
            if there is not None and there.head.wake != head.wake:
                writes.append(Write(id=head.id, expect=head.version, fence=there.head.fence, wake=head.wake))
        if writes:
            await self._append(writes)

    async def _read(self, store: Store, id: str, after: int, limit: int) -> Stored:
        stored = await store.load(id, after=after, limit=limit)
        if stored is None:
            raise _changed(id)
        expected = min(limit, stored.head.version - after)
        if len(stored.records) != expected:
            text = f"{id!r} has {stored.head.version} records, but {len(stored.records)} where {expected} should be"
            raise DecodeError(f"{text}, behind number {after}: the store is damaged; restore it from a backup")
        self._stride.note(stored)
        return stored


def _lacks(there: Stored, stored: Stored) -> bool:
    return facts(there.head) != facts(stored.head) or list(there.signals) != list(stored.signals)


def _compare(ours: Stored, theirs: Stored, at: int) -> None:
    """Refuse a copy that differs; ``at`` is the number before the first of these records."""
    head, other = ours.head, theirs.head
    if facts(head) != facts(other):
        raise _mismatch(head.id, f"it as {other.status or other.state!r} at version {other.version}")
    if other.wake not in (None, head.wake):
        raise _mismatch(head.id, "another time at which it falls due")
    if (ours.snapshot_version, ours.snapshot) != (theirs.snapshot_version, theirs.snapshot):
        raise _mismatch(head.id, "another snapshot")
    if list(ours.signals) != list(theirs.signals):
        raise _mismatch(head.id, "other signals")
    if list(ours.records) != list(theirs.records):
        raise _mismatch(head.id, f"another record among {at + 1} to {at + len(ours.records)}")


def _form(head: Head) -> bytes:
    return msgspec.msgpack.encode((head.id, *facts(head), head.wake))


def _mismatch(id: str, what: str) -> CopyMismatch:
    text = f"the other store has under the id {id!r} {what}; it was left as it is"
    return CopyMismatch(f"{text}. Copy into a store of its own, or remove it there and copy again", id)


def _changed(id: str) -> StoreInUse:
    what = f"{id!r} was changed" if id else "something was changed"
    text = f"{what} while the store was copied: leave or drain every Flowlet on it, then copy again"
    return StoreInUse(f"{text}; what was copied so far stays", 0, id)
