"""Looking at the runs of a store, and telling them things, from a process that executes none.

Law: it opens no worker and claims nothing. An order that it gives is in the store when the call returns; whichever
process has the code comes to see it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flowlet.core.codec import pack
from flowlet.core.definitions import RunDefinition
from flowlet.core.run_records import Started
from flowlet.core.sizes import check_size
from flowlet.errors import IdConflict
from flowlet.runtime.creating import Prepared
from flowlet.runtime.ids import Ids
from flowlet.runtime.orders import STUCK, Orders
from flowlet.runtime.stored_runs import Find, StoredRuns
from flowlet.store import Head, New, Store, Write

_LOOK_AGAIN = 1.0
"""Seconds after which a run is looked at although the store says nothing."""


class Reader(StoredRuns):
    """The runs of a store, for people and tools; what handles and approvals need of a process.

    Args:
        store: where they are.
        find: looks a definition up by name and version, where there is code.

    Attributes:
        orders: tells runs things.
        live: what is executed here: nothing.
        max_payload: bytes that one record may have, or None.
    """

    def __init__(self, store: Store, find: Find | None = None) -> None:
        super().__init__(store, find or _know_nothing)
        self.live: dict[str, Any] = {}
        self.max_payload: int | None = store.capabilities.max_payload
        self.orders: Orders = Orders(store, self)
        self.clock: Callable[[], float] = time.time
        self.closing = False
        self.worker: _Nobody = _Nobody()
        self._ids = Ids()

    async def set_clock(self) -> None:
        """Go by the store's clock, as far as it can be told."""
        offset = await self._store.now() - time.time()
        self.clock = lambda: time.time() + offset

    def now(self) -> float:
        """Return the time of the store's clock; of this host's, before `set_clock`."""
        return self.clock()

    def new_id(self) -> str:
        """Return an id that nobody has used."""
        return self._ids.next()

    async def take_up(self, id: str) -> None:
        """Do nothing: a worker does."""

    async def look(self, execution: Any) -> None:
        """Do nothing: nothing is executed here."""

    async def result(self, id: str, definition: RunDefinition | None) -> Any:
        """Wait for a run's end and return its result; see `Handle.result`."""
        seen = -1
        while True:
            head = await self.head(id)
            if head.closed is not None or (head.status in STUCK and head.owner is None and head.wake is None):
                return await self.recorded_outcome(head, definition or self.definition_of(head))
            seen = await self._store.watch(seen, _LOOK_AGAIN)

    # -------------------------------------------------------------- for schedules
    def check_open(self) -> None:
        """Do nothing: what is begun here is begun for somebody else."""

    def prepare(self, definition: RunDefinition, inputs: tuple[Any, ...], id: str) -> Prepared:
        """Describe a run that an append is to create, for whoever has its code; see `CreatingRuns.prepare`."""
        data, _ = definition.starter.exchange_input(inputs)
        now = self.now()
        deadline = None if definition.deadline is None else now + definition.deadline
        record = pack(Started(definition.name, definition.version, data, now, None, deadline))
        check_size(record, self.max_payload, f"the input of run {id!r}")
        write = Write(
            id=id,
            expect=0,
            create=New("run", definition.name, definition.version),
            status="running",
            wake=0.0,
            records=(record,),
        )
        return Prepared(id, definition, write, _begin_nothing, data)

    async def check_same(self, prepared: Prepared) -> None:
        """See whether a run that is there already is the one that was to be created.

        Raises:
            IdConflict: it is not.
        """
        stored = await self.load(prepared.id, limit=1)
        first = self.decode(prepared.id, 1, stored.records[0]) if stored.head.kind == "run" else None
        if not isinstance(first, Started) or (first.definition, first.input) != (
            prepared.definition.name,
            prepared.data,
        ):
            raise IdConflict(f"id {prepared.id!r} belongs to something else; use another id")

    def doubt(self, id: str) -> None:
        """Do nothing: whoever finds the run goes on with it."""

    def definition_of(self, head: Head) -> RunDefinition | None:
        """Return the definition of a run, if there is code for it here."""
        return None if head.kind != "run" else super().definition_of(head)


class _Nobody:
    """The worker of a process that executes nothing."""

    id = ""

    def expect(self, at: float) -> None:
        """Do nothing: a worker elsewhere looks by itself."""


def _begin_nothing() -> None:
    return None


def _know_nothing(name: str, version: str) -> None:
    return None
