"""What a store says of the runs in it, whoever executes them.

Law: it reads, and writes nothing. What is missing or damaged is a typed error with the id in it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, TypeAlias

from flowlet.core.bulk import BulkReport
from flowlet.core.bulk_records import BULK, sums_codec
from flowlet.core.definitions import RunDefinition
from flowlet.core.run_records import Attention, Ended, Parked, Published, RunRecord, run_record_codec
from flowlet.errors import DecodeError, FlowletError, RunNotFound, RunParked
from flowlet.runtime.iterating import readable
from flowlet.runtime.orders import STUCK
from flowlet.runtime.outbox import refuse_queued
from flowlet.runtime.outcomes import asked_error, ended_error
from flowlet.store import Head, Store, Stored

Find: TypeAlias = Callable[[str, str], RunDefinition | None]

_PAGE = 500

_FEW = 50
"""Records that are read at once where the last ones are looked through."""

_LOOK_AGAIN = 1.0
"""Seconds after which a run is looked at although the store says nothing."""


class StoredRuns:
    """Reads the runs of a store.

    Args:
        find: looks a definition up by name and version.
    """

    def __init__(self, store: Store, find: Find) -> None:
        self._store = store
        self.find = find

    async def head(self, id: str) -> Head:
        """Return a run's head."""
        head = (await self.load(id, limit=0)).head
        if head.kind != "run":
            raise RunNotFound(f"{id!r} is a {head.kind} of {head.definition!r}, not a run")
        return head

    async def records(self, id: str) -> Sequence[RunRecord]:
        """Return a run's records."""
        return [record async for _, record in self.stream(id)]

    @readable
    async def stream(self, id: str) -> AsyncGenerator[tuple[int, RunRecord], None]:
        """Yield a run's records with their numbers, page by page."""
        after = 0
        while True:
            stored = await self.load(id, after=after, limit=_PAGE)
            for data in stored.records:
                after += 1
                yield after, self.decode(id, after, data)
            if after >= stored.head.version:
                return

    async def published(self, id: str, key: str) -> bytes | None:
        """Return what a run has published last under a key; read from the end, where it is likely to be."""
        upto = (await self.head(id)).version
        while upto:
            after = max(0, upto - _FEW)
            stored = await self.load(id, after=after, limit=upto - after)
            for number in range(len(stored.records), 0, -1):
                record = self.decode(id, after + number, stored.records[number - 1])
                if isinstance(record, Published) and record.key == key:
                    return record.value
            upto = after
        return None

    @readable
    async def follow(self, id: str) -> AsyncGenerator[tuple[int, RunRecord], None]:
        """Yield a run's records with their numbers as they are stored, until it has ended."""
        after, seen = 0, -1
        while True:
            seen = await self._store.watch(seen, _LOOK_AGAIN)
            head = (await self.load(id, limit=0)).head
            while after < head.version:
                stored = await self.load(id, after=after, limit=_PAGE)
                for data in stored.records:
                    after += 1
                    yield after, self.decode(id, after, data)
                head = stored.head
            if head.closed is not None:
                return

    def definition_of(self, head: Head) -> RunDefinition | None:
        """Return the definition of a run, if this process knows it."""
        return self.find(head.definition, head.definition_version)

    async def recorded_outcome(self, head: Head, definition: RunDefinition | None) -> Any:
        if head.status in STUCK:
            raise await self._stuck(head)
        stored = await self.load(head.id, after=head.version - 1)
        last = self.decode(head.id, head.version, stored.records[-1])
        if not isinstance(last, Ended):
            raise DecodeError(f"run {head.id!r} is marked {head.status!r}, but its last record does not say so")
        if last.value is None:
            raise ended_error(last)
        if head.definition.startswith(BULK):
            sums = sums_codec.decode(last.value, f"the result of bulk operation {head.id!r}")
            return BulkReport(
                status="completed",
                total=sums.total,
                succeeded=sums.succeeded,
                failed=sums.failed,
                seconds=sums.seconds,
            )
        if definition is None:
            raise FlowletError(
                f"run {head.id!r} completed, but definition {head.definition!r} version {head.definition_version} is "
                "not known here: include it, or read the run with report()"
            )
        return definition.starter.decode(last.value)

    async def _stuck(self, head: Head) -> Exception:
        """Return what who waits for a run is told while it waits for an operator."""
        parked = RunParked(
            f"run {head.id!r} was set aside by a process that could not read its history, or not record what "
            "happened (its codec, a key, a size); its log says why, under run.parked: mend that and await "
            f"flow.handle({head.id!r}).resume()"
        )
        try:
            last = (await self.records(head.id))[-1]
        except DecodeError as error:
            parked = RunParked(f"the history of run {head.id!r} cannot be read: {error}")
            parked.__cause__ = error
            return parked
        if isinstance(last, Attention):
            return asked_error(last)
        return RunParked(last.reason) if isinstance(last, Parked) else parked

    async def load(self, id: str, *, after: int = 0, limit: int | None = None) -> Stored:
        """Read a run, a machine or a definition from the store.

        Raises:
            RunNotFound: there is none.
            RunError: there will be one, when a transition is committed.
            DecodeError: some of its records are missing.
        """
        stored = await self._store.load(id, after=after, limit=limit)
        if stored is None:
            refuse_queued(id, self._store)
            raise RunNotFound(f"there is no run {id!r} in this store; look at the id and the store's URL")
        if limit is None and len(stored.records) != stored.head.version - after:
            raise DecodeError(
                f"run {id!r} has {stored.head.version} records, but {len(stored.records)} are there behind "
                f"number {after}: the store is damaged; restore it from a backup"
            )
        return stored

    def decode(self, id: str, number: int, data: bytes) -> RunRecord:
        return run_record_codec.decode(data, f"record {number} of run {id!r}")
