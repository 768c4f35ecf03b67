"""Bringing runs into being: under a new id, under a given one, or as a part of somebody else's append.

Law: the same id, definition and input is the same run; anything else under a taken id is `IdConflict`. A run is
created with an owner, this process, which begins to execute it once the store has it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from flowlet.core.codec import pack
from flowlet.core.definitions import RunDefinition
from flowlet.core.engine import Suspended
from flowlet.core.ids import check_id
from flowlet.core.program import exchange_call
from flowlet.core.run_records import RunRecord, Started
from flowlet.core.sizes import check_size
from flowlet.errors import Conflict, IdConflict
from flowlet.runtime.execution import Execution
from flowlet.runtime.execution_ends import Ending
from flowlet.runtime.ids import Ids
from flowlet.runtime.journal import Journal
from flowlet.runtime.stored_runs import Find, StoredRuns
from flowlet.store import New, Store, Write

if TYPE_CHECKING:
    from flowlet.runtime.logs import Log
    from flowlet.runtime.worker import Worker


class Prepared(msgspec.Struct, frozen=True, eq=False):
    """A run that somebody else's append is to create.

    Attributes:
        write: what creates it; this process owns it then.
        begin: has it executed here, once the write is stored.
        data: its encoded input.
    """

    id: str
    definition: RunDefinition
    write: Write
    begin: Callable[[], None]
    data: bytes


class CreatingRuns(StoredRuns):
    """The half of `Runs` that brings them into being.

    Attributes:
        live: what is executed here.
        max_payload: bytes that one record may have, or None.
    """

    log: Log
    worker: Worker

    def __init__(self, store: Store, find: Find) -> None:
        super().__init__(store, find)
        self.live: dict[str, Execution] = {}
        self.max_payload: int | None = store.capabilities.max_payload
        self._creations: dict[RunDefinition, Write] = {}
        self._orphans: set[str] = set()
        self._ids = Ids()

    @abstractmethod
    def now(self) -> float:
        """Return the time of the store's clock."""

    @abstractmethod
    def _make_execution(self, definition: RunDefinition, journal: Journal, instance: Any = None) -> Execution:
        """Make what executes a run here."""

    @abstractmethod
    def _keep_to(self, execution: Ending, started: Started) -> None:
        """Tell a run to unwind at its deadline."""

    @abstractmethod
    def _spawn_run(self, execution: Execution, records: Sequence[RunRecord]) -> None:
        """Have a run executed in a task of flowlet's own."""

    def new_id(self) -> str:
        """Return an id that nobody has used."""
        return self._ids.next()

    def doubt(self, id: str) -> None:
        """Note that a run may have been created without this process having heard of it: then it is ours to run."""
        self._orphans.add(id)

    def prepare(
        self,
        definition: RunDefinition,
        inputs: tuple[Any, ...],
        id: str | None = None,
        deadline: float | None = None,
        parent: str | None = None,
    ) -> Prepared:
        """Describe a run that somebody else's append is to create.

        Args:
            inputs: in the order of the parameters.
            deadline: seconds of the store's clock.
            parent: the run that is told of its end.

        Raises:
            EncodeError, DecodeError, PayloadTooLarge: an input cannot be stored, or is not of its type.
            IdConflict: the id is none.
        """
        data, _ = definition.starter.exchange_input(inputs)
        run_id = self._ids.next() if id is None else check_id(id)
        started = self._started(run_id, definition, data, deadline, parent)
        journal = self._new_journal(run_id, definition, started)

        def begin() -> None:
            if run_id not in self.live:
                journal.created()
                self._spawn_run(self._begin(self._make_execution(definition, journal), started), (started,))

        return Prepared(run_id, definition, journal.creation(), begin, data)

    async def check_same(self, prepared: Prepared) -> None:
        """See whether a run that is there already is the one that was to be created.

        Raises:
            IdConflict: it is not.
        """
        await self._check_same(prepared.id, prepared.definition, prepared.data)

    def _create_unseen(
        self, definition: RunDefinition, inputs: tuple[Any, ...], instance: Any, deadline: float | None
    ) -> tuple[Execution, Started, tuple[Any, ...]]:
        """Create a run whose first append may wait until somebody can see it: new id, no process to survive."""
        id = self._ids.next()
        data, given = exchange_call(definition.starter, inputs)
        started = self._started(id, definition, data, deadline)
        journal = self._new_journal(id, definition, started)
        return self._begin(self._make_execution(definition, journal, instance), started), started, given

    async def _create(
        self,
        definition: RunDefinition,
        inputs: tuple[Any, ...],
        id: str | None,
        instance: Any = None,
        deadline: float | None = None,
        parent: str | None = None,
    ) -> tuple[Execution, Started, tuple[Any, ...]] | str:
        """Create a run, or return the id of the one that is there."""
        data, given = definition.starter.exchange_input(inputs)
        run_id = self._ids.next() if id is None else check_id(id)
        if run_id in self.live:
            await self._check_same(run_id, definition, data)
            return run_id
        started = self._started(run_id, definition, data, deadline, parent)
        journal = self._new_journal(run_id, definition, started)
        try:
            await journal.commit()
        except Suspended:
            pass
        except BaseException:
            self.doubt(run_id)  # cancelled: it may have been stored, and then it is ours to run
            raise
        if isinstance(journal.trouble, Conflict):
            await self._check_same(run_id, definition, data)
            return run_id
        if journal.trouble is not None:
            self.doubt(run_id)
            raise journal.trouble
        return self._begin(self._make_execution(definition, journal, instance), started), started, given

    async def _check_same(self, id: str, definition: RunDefinition, data: bytes) -> None:
        stored = await self.load(id, limit=1)
        if stored.head.kind != "run" or stored.head.definition != definition.name:
            raise IdConflict(
                f"id {id!r} belongs to a {stored.head.kind} of {stored.head.definition!r}, not of {definition.name!r}; "
                "use another id"
            )
        first = self.decode(id, 1, stored.records[0])
        if not isinstance(first, Started) or first.input != data:
            raise IdConflict(f"run {id!r} was started with another input; use another id, or the same input")

    def _begin(self, execution: Execution, started: Started) -> Execution:
        """Take note of a run that is executed here from its start."""
        id = execution.journal.id
        self.live[id] = execution
        if self.log.active:
            self.log.info("run.started", run_id=id, definition=started.definition)
        if started.deadline is not None:
            self._keep_to(execution, started)
        return execution

    def _new_journal(self, id: str, definition: RunDefinition, started: Started) -> Journal:
        """Make the journal of a run that is yet to be created, with its first record."""
        create = self._creations.get(definition)
        if create is None:
            new = New("run", definition.name, definition.version)
            create = self._creations[definition] = Write(
                id="", expect=0, create=new, status="running", wake=0.0, owner=self.worker.id
            )
        journal = Journal(self._store, id, 0, 1, create)
        record = pack(started)
        if self.max_payload is not None:
            check_size(record, self.max_payload, f"the input of run {id!r}")
        journal.pending.append(record)
        return journal

    def _started(
        self, id: str, definition: RunDefinition, data: bytes, deadline: float | None, parent: str | None = None
    ) -> Started:
        """Make the first record of a run."""
        now = self.now()
        if deadline is None and definition.deadline is not None:
            deadline = now + definition.deadline
        trace = None
        if self.log.active and self.log.observing is not None:
            trace = self.log.observing.trace(id, definition.name)
        if deadline is None and parent is None and trace is None:
            return Started(definition.name, definition.version, data, now)
        return Started(definition.name, definition.version, data, now, parent, deadline, (), trace)
