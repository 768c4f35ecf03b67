"""The runs of one `Flowlet`: starting, executing, resuming and finding them.

Law: `start` returns when the input is durable. The same id, definition and input is the same run;
anything else under a taken id is `IdConflict`. What is executed here is in `live`; everything else is
known through the store alone.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import anyio

from flowlet.core.codec import pack
from flowlet.core.current import run_context
from flowlet.core.definitions import RunDefinition
from flowlet.core.engine import Suspended
from flowlet.core.ids import check_id
from flowlet.core.run_records import Ended, Parked, RunRecord, Started, run_record_codec
from flowlet.core.steps import Provide
from flowlet.errors import (
    Conflict,
    DecodeError,
    FlowletError,
    IdConflict,
    LeaseLost,
    RunError,
    RunFinished,
    RunNotFound,
    RunParked,
    StoreUnavailable,
)
from flowlet.runtime.execution import Execution, ended_error
from flowlet.runtime.handle import Handle
from flowlet.runtime.ids import Ids
from flowlet.runtime.journal import Journal
from flowlet.runtime.logs import Log
from flowlet.runtime.tasks import Task, current_task_function, spawn
from flowlet.runtime.worker import Worker
from flowlet.store import Head, New, Store, Stored, Write

Find = Callable[[str, str], RunDefinition | None]

_PAGE = 500
_PASSING = (StoreUnavailable, LeaseLost, Conflict)
"""Troubles with the store after which a run may go on here, if it is still ours."""


class Runs:
    """Executes runs over a store. It is the host of their executions and the source of their handles.

    Args:
        find: looks a definition up by name and version.
        provide: gives the value for a provided parameter's annotation.
    """

    def __init__(self, store: Store, find: Find, provide: Provide, log: Log, lease: float, kinds: Any) -> None:
        self._store = store
        self.find = find
        self.provide = provide
        self.log = log
        self._lease = lease
        self._durable = store.capabilities.durable
        self.max_payload = store.capabilities.max_payload
        self.closing = self.stopping = False
        self.live: dict[str, Execution] = {}
        self._orphans: set[str] = set()
        self._tasks: set[Task] = set()
        self._ids = Ids()
        self.deadline = 0.0
        self.epoch = 0.0
        self.current_task: Callable[[], object] = _no_task
        self.worker = Worker(store, lease, log, kinds, self._adopt, self._recover, self._renewed, self._leave_taken)

    # -------------------------------------------------------------- opening and closing
    def now(self) -> float:
        """Return the time of the store's clock."""
        return self.epoch + time.perf_counter()

    def _renewed(self, deadline: float) -> None:
        self.deadline = deadline

    async def _leave_taken(self) -> None:
        """Let no run go on that somebody else took while the lease had run out; no effect begins meanwhile."""
        for id, execution in list(self.live.items()):
            stored = await self._store.load(id, limit=0)
            if stored is not None and stored.head.fence != execution.journal.fence and execution.journal.version:
                execution.journal.trouble = LeaseLost(f"run {id!r} was taken over while this process was held up")

    async def open(self) -> None:
        """Measure the store's clock, begin to heartbeat, and take up unfinished runs."""
        self.closing = False
        self.current_task = current_task_function()
        await self._set_clock()
        await self.worker.start()

    async def _set_clock(self) -> None:
        """Learn the store's time, as an offset to a local clock that is cheap and never jumps."""
        before = time.perf_counter()
        theirs = await self._store.now()
        self.epoch = theirs - (before + time.perf_counter()) / 2

    async def close(self, grace: float) -> None:
        """Start no further step, give running ones ``grace`` seconds, then leave the rest to a restart."""
        self.closing = True
        await self.worker.stop_looking()
        async with anyio.create_task_group() as group:
            group.start_soon(self.worker.keep_lease)
            with anyio.move_on_after(grace):
                await self._wait_for_tasks()
                for execution in list(self.live.values()):  # those that callers execute in their own tasks
                    await execution.done.wait()
            group.cancel_scope.cancel()
        self.stopping = True
        for task in list(self._tasks):
            task.cancel()
        await self._wait_for_tasks()
        for execution in list(self.live.values()):
            execution.give_up()
        await self.worker.stop()

    async def _wait_for_tasks(self) -> None:
        for task in list(self._tasks):
            await task.done.wait()

    # -------------------------------------------------------------- starting
    async def start(self, definition: RunDefinition, inputs: tuple[Any, ...], id: str | None) -> Handle[Any]:
        """Start a run in a task of flowlet's own, or find the one that has the id."""
        id = id if id is not None else self.derived_id(definition)
        created = await self._create(definition, inputs, id)
        if isinstance(created, str):
            return Handle(created, self, definition)
        execution, started, _ = created
        self._spawn_run(execution, (started,))
        return Handle(execution.journal.id, self, definition)

    def derived_id(self, definition: RunDefinition) -> str | None:
        """Return the id of a run that another run starts without naming it: the same on every replay."""
        scope = run_context.get()
        return None if scope is None else scope.event_key("run", f"{definition.name}()")

    async def execute(
        self, definition: RunDefinition, inputs: tuple[Any, ...], id: str | None, instance: Any = None
    ) -> Any:
        """Run a definition in the caller's task, or wait for the run that has the id."""
        created: Any
        if id is None and not self._durable:
            created = self._create_unseen(definition, inputs, instance)
        else:
            created = await self._create(definition, inputs, id, instance)
            if isinstance(created, str):
                return await self.result(created, definition)
        execution, started, given = created
        await execution.run_here(given, (started,))
        error, value = execution.error, execution.value
        if isinstance(error, (Conflict, LeaseLost)):
            return await self.result(execution.journal.id, definition)
        if error is not None:
            del execution, created  # what is raised holds this frame, which must not hold what holds it
            raise error
        assert value is not None
        return definition.starter.decode(value)

    async def execute_child(
        self, definition: RunDefinition, inputs: tuple[Any, ...], id: str, instance: Any = None
    ) -> Any:
        """Execute a run for a step of another; what only holds it up holds up that step, and fails nothing.

        Raises:
            Suspended: this process stops before the child has ended.
        """
        seen = -1
        while True:
            try:
                return await self.execute(definition, inputs, id, instance)
            except IdConflict:
                raise
            except Exception as error:
                if not await self._is_open(id):
                    raise
                if self.closing:
                    raise Suspended from error
            seen = await self._store.watch(seen, 1.0)

    async def _is_open(self, id: str) -> bool:
        """Tell whether a run exists and has not ended, as far as can be told."""
        try:
            stored = await self._store.load(id, limit=0)
        except StoreUnavailable:
            return True
        return stored is not None and stored.head.closed is None

    def _create_unseen(
        self, definition: RunDefinition, inputs: tuple[Any, ...], instance: Any
    ) -> tuple[Execution, Started, tuple[Any, ...]]:
        """Create a run whose first append may wait until somebody can see it: new id, no process to survive."""
        id = self._ids.next()
        starter = definition.starter
        data, given = starter.exchange_input(inputs)
        started = Started(definition.name, definition.version, data, self.now())
        journal = self._new_journal(id, definition, started)
        execution = self.live[id] = Execution(self, definition, journal, instance)
        if self.log.active:
            self.log.info("run.started", run_id=id, definition=definition.name)
        return execution, started, given

    def _new_journal(self, id: str, definition: RunDefinition, started: Started) -> Journal:
        """Make the journal of a run that is yet to be created, with its first record."""
        write = Write(
            id=id,
            expect=0,
            create=New("run", definition.name, definition.version),
            status="running",
            wake=0.0,
            owner=self.worker.id,
        )
        journal = Journal(self._store, id, 0, 1, write)
        journal.pending.append(pack(started))
        return journal

    async def _create(
        self, definition: RunDefinition, inputs: tuple[Any, ...], id: str | None, instance: Any = None
    ) -> tuple[Execution, Started, tuple[Any, ...]] | str:
        starter = definition.starter
        data, given = starter.exchange_input(inputs)
        run_id = self._ids.next() if id is None else check_id(id)
        if run_id in self.live:
            await self._check_same(run_id, definition, data)
            return run_id
        started = Started(definition.name, definition.version, data, self.now())
        journal = self._new_journal(run_id, definition, started)
        try:
            await journal.commit()
        except Suspended:
            pass
        except BaseException:
            self._orphans.add(run_id)  # cancelled: it may have been stored, and then it is ours to run
            raise
        if isinstance(journal.trouble, Conflict):
            await self._check_same(run_id, definition, data)
            return run_id
        if journal.trouble is not None:
            self._orphans.add(run_id)
            raise journal.trouble
        execution = self.live[run_id] = Execution(self, definition, journal, instance)
        if self.log.active:
            self.log.info("run.started", run_id=run_id, definition=definition.name)
        return execution, started, given

    async def _check_same(self, id: str, definition: RunDefinition, data: bytes) -> None:
        stored = await self._load(id, limit=1)
        if stored.head.kind != "run" or stored.head.definition != definition.name:
            raise IdConflict(
                f"id {id!r} belongs to a {stored.head.kind} of {stored.head.definition!r}, not of {definition.name!r}; "
                "use another id"
            )
        first = self._decode(id, 1, stored.records[0])
        if not isinstance(first, Started) or first.input != data:
            raise IdConflict(f"run {id!r} was started with another input; use another id, or the same input")

    # -------------------------------------------------------------- taking up
    async def _adopt(self, heads: Sequence[Head]) -> None:
        for head in heads:
            if head.kind != "run" or head.id in self.live:
                continue
            definition = self.find(head.definition, head.definition_version)
            if definition is None:
                await self._store.release(self.worker.id, (head.id,))
                continue
            execution = Execution(self, definition, Journal(self._store, head.id, head.version, head.fence))
            self.live[head.id] = execution
            if self.log.active:
                self.log.info("run.resumed", run_id=head.id, definition=head.definition, records=head.version)
            self._spawn_reloaded(execution)

    async def _recover(self) -> None:
        """Set the clock again, and take up what was left while the store was down: its leases are ours still."""
        await self._set_clock()
        for id in self._orphans - self.live.keys():
            stored = await self._store.load(id, limit=1)
            self._orphans.discard(id)
            if stored is not None and stored.head.owner == self.worker.id and stored.head.closed is None:
                await self._adopt((stored.head,))

    def _spawn_run(self, execution: Execution, records: Sequence[RunRecord]) -> None:
        async def main() -> None:
            await execution.run_aside(records)

        self.spawn(main, execution)

    def _spawn_reloaded(self, execution: Execution) -> None:
        async def main() -> None:
            await execution.go_on()

        self.spawn(main, execution)

    def spawn(self, main: Callable[[], Awaitable[None]], execution: Execution) -> Task:
        """Start a task of flowlet's own for an execution."""

        def over(task: Task) -> None:
            self._tasks.discard(task)
            execution.abandon()

        task = spawn(main, execution.broke, over)
        self._tasks.add(task)
        return task

    async def reload(self, execution: Execution) -> Sequence[RunRecord] | None:
        """Read a run's journal; None when there is nothing more to do with it here."""
        journal = execution.journal
        stored = await self._load(journal.id)
        if stored.head.closed is not None:
            last = self._decode(journal.id, stored.head.version, stored.records[-1])
            execution.absorb(last)
            return None
        if stored.head.fence != journal.fence:
            return None
        journal.version = stored.head.version
        journal.pending.clear()
        journal.trouble = None
        return [self._decode(journal.id, n, r) for n, r in enumerate(stored.records, 1)]

    def finished(self, execution: Execution) -> None:
        """Forget an execution; one that trouble with the store has stopped is taken up later, if it is still ours."""
        self.live.pop(execution.journal.id, None)
        if execution.state == "left" and isinstance(execution.error, _PASSING):
            self._orphans.add(execution.journal.id)

    # -------------------------------------------------------------- for handles
    async def head(self, id: str) -> Head:
        """Return a run's head."""
        head = (await self._load(id, limit=0)).head
        if head.kind != "run":
            raise RunNotFound(f"{id!r} is a {head.kind} of {head.definition!r}, not a run")
        return head

    async def records(self, id: str) -> Sequence[RunRecord]:
        """Return a run's records."""
        return [record async for _, record in self.stream(id)]

    async def stream(self, id: str) -> AsyncIterator[tuple[int, RunRecord]]:
        """Yield a run's records with their numbers, page by page."""
        after = 0
        while True:
            stored = await self._load(id, after=after, limit=_PAGE)
            for data in stored.records:
                after += 1
                yield after, self._decode(id, after, data)
            if after >= stored.head.version:
                return

    def definition_of(self, head: Head) -> RunDefinition | None:
        """Return the definition of a run, if this process knows it."""
        return self.find(head.definition, head.definition_version)

    async def result(self, id: str, definition: RunDefinition | None) -> Any:
        """Wait for a run's end, wherever it is executed."""
        seen, nobodys_since = -1, None
        while True:
            execution = self.live.get(id)
            if execution is not None:
                await execution.done.wait()
                error, value, starter = execution.error, execution.value, execution.definition.starter
                del execution  # what is raised from here holds this frame, and must not hold what holds it
                if value is not None:
                    return starter.decode(value)
                if error is not None and not isinstance(error, (Conflict, LeaseLost)):
                    raise error
            head = await self.head(id)
            if head.closed is not None or head.status == "parked":
                return await self._recorded_outcome(head, definition or self.definition_of(head))
            if self.closing:
                raise RunError(f"run {id!r} has not ended; ask again when its Flowlet is entered again")
            if head.owner is not None or self.definition_of(head) is not None:
                nobodys_since = None
            elif nobodys_since is None:
                nobodys_since = time.perf_counter()
            elif time.perf_counter() - nobodys_since > self._lease:
                raise RunError(
                    f"run {id!r} is of {head.definition!r} version {head.definition_version}, which is not included "
                    "here, and no process runs it: include the code of that version, or start under another id"
                )
            seen = await self._store.watch(seen, min(1.0, self._lease))

    async def resume(self, id: str) -> None:
        """Let a parked run go on, here."""
        head = await self.head(id)
        if head.closed is not None:
            raise RunFinished(f"run {id!r} has ended as {head.status!r}; start a new one under another id")
        if head.status != "parked":
            return
        await self._store.append((Write(id=id, expect=head.version, status="running", wake=0.0),))
        claims = await self._store.claim(self.worker.id, ids=(id,))
        await self._adopt(claims.heads)

    async def _recorded_outcome(self, head: Head, definition: RunDefinition | None) -> Any:
        stored = await self._load(head.id, after=head.version - 1)
        last = self._decode(head.id, head.version, stored.records[-1])
        if isinstance(last, Parked):
            raise RunParked(last.reason)
        if not isinstance(last, Ended):
            raise DecodeError(f"run {head.id!r} is marked {head.status!r}, but its last record does not say so")
        if last.value is None:
            raise ended_error(last)
        if definition is None:
            raise FlowletError(
                f"run {head.id!r} completed, but definition {head.definition!r} version {head.definition_version} is "
                "not known here: include it, or read the run with report()"
            )
        return definition.starter.decode(last.value)

    async def _load(self, id: str, *, after: int = 0, limit: int | None = None) -> Stored:
        stored = await self._store.load(id, after=after, limit=limit)
        if stored is None:
            raise RunNotFound(f"there is no run {id!r} in this store; look at the id and the store's URL")
        if limit is None and len(stored.records) != stored.head.version - after:
            raise DecodeError(
                f"run {id!r} has {stored.head.version} records, but {len(stored.records)} are there behind "
                f"number {after}: the store is damaged; restore it from a backup"
            )
        return stored

    def _decode(self, id: str, number: int, data: bytes) -> RunRecord:
        return run_record_codec.decode(data, f"record {number} of run {id!r}")


def _no_task() -> object:
    raise AssertionError("not opened")  # pragma: no cover
