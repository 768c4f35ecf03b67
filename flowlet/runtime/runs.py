"""The runs of one `Flowlet`: starting, executing, resuming and finding them.

Law: `start` returns when the input is durable. The same id, definition and input is the same run;
anything else under a taken id is `IdConflict`. What is executed here is in `live`; everything else is
known through the store alone.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import msgspec

from flowlet.core.codec import pack
from flowlet.core.current import run_context
from flowlet.core.definitions import RunDefinition
from flowlet.core.engine import Suspended
from flowlet.core.ids import check_id
from flowlet.core.run import exchange_call
from flowlet.core.run_records import RunRecord, Started, StuckStatus
from flowlet.core.sizes import check_size
from flowlet.core.steps import Provide
from flowlet.errors import (
    Conflict,
    IdConflict,
    LeaseLost,
    RunError,
    RunTimeout,
    StoreUnavailable,
)
from flowlet.runtime.alarms import Alarms
from flowlet.runtime.drain import Drain
from flowlet.runtime.execution import Execution
from flowlet.runtime.handle import Handle
from flowlet.runtime.ids import Ids
from flowlet.runtime.journal import Journal, outlives_process
from flowlet.runtime.logs import Log
from flowlet.runtime.orders import CANCEL, ORDERED, STUCK, Orders, cancelled
from flowlet.runtime.stored_runs import Find, StoredRuns
from flowlet.runtime.tasks import Breaker, Task, breaker_class, current_task_function, spawn
from flowlet.runtime.worker import Worker
from flowlet.store import Head, New, Store, Stored, Write

_MOST_CLAIMS = 20
"""A run that was taken up so often without a record of progress is parked."""

_IDLE = {*STUCK, "waiting"}
"""Statuses of runs that do nothing by themselves, so that being looked at says nothing of them."""

_PASSING = (StoreUnavailable, LeaseLost, Conflict)
"""Troubles with the store after which a run may go on here, if it is still ours."""


class Runs(StoredRuns):
    """Executes runs over a store. It is the host of their executions and the source of their handles.

    Args:
        find: looks a definition up by name and version.
        provide: gives the value for a provided parameter's annotation.
    """

    def __init__(
        self,
        store: Store,
        find: Find,
        provide: Provide,
        log: Log,
        lease: float,
        kinds: Any,
        name: str | None = None,
    ) -> None:
        super().__init__(store, find)
        self.provide = provide
        self.log = log
        self._lease = lease
        self.durable = outlives_process(store)
        self.max_payload = store.capabilities.max_payload
        self.closing = self.stopping = False
        self.live: dict[str, Execution] = {}
        self._creations: dict[RunDefinition, Write] = {}
        self._orphans: set[str] = set()
        self.tasks: set[Task] = set()
        self._drain = Drain(self, store)
        self.pause = self._drain.pause
        self._ids = Ids()
        self.deadline = 0.0
        self.epoch = 0.0
        self.current_task: Callable[[], object] = _no_task
        self.worker = Worker(
            store,
            lease,
            name,
            log,
            kinds,
            self._adopt,
            self._find_orders,
            self._recover,
            self._renewed,
            self._leave_taken,
        )
        self.orders = Orders(store, self)
        self._above: dict[str, str] = {}
        self.adopt_machine: Callable[[Head], None] | None = None
        self.make_breaker: Callable[[], Breaker] = _no_breaker
        self.limits: Mapping[str, float | None] = {}
        self._alarms = Alarms(self.now, self._expire, self._alarms_broke)

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
        self.make_breaker = breaker_class()
        await self._set_clock()
        await self.worker.start()

    async def _set_clock(self) -> None:
        """Learn the store's time, as an offset to a local clock that is cheap and never jumps."""
        before = time.perf_counter()
        theirs = await self._store.now()
        self.epoch = theirs - (before + time.perf_counter()) / 2

    async def close(self, grace: float) -> None:
        """Start no further step, give running ones ``grace`` seconds, then leave the rest to a restart."""
        self._alarms.stop()
        await self._drain.run(grace)
        await self._drain.wait_for_tasks()

    async def drain(self, grace: float) -> None:
        """Do the same, but wait for no step that will not end: the process may."""
        if self.log.active and not self.closing:
            self.log.info("worker.draining", worker=self.worker.id, runs=len(self.live))
        await self._drain.run(grace)

    def check_open(self) -> None:
        """Refuse what would begin a run here while this process leaves its runs.

        A step may still start one: a refusal would be the step's failure, and a shutdown fails nothing.

        Raises:
            RunError: it does.
        """
        if self.closing and run_context.get() is None:
            raise RunError("this Flowlet is drained and begins no run; leave it and enter it again, or ask another one")

    # -------------------------------------------------------------- starting
    async def start(
        self, definition: RunDefinition, inputs: tuple[Any, ...], id: str | None, deadline: float | None = None
    ) -> Handle[Any]:
        """Start a run in a task of flowlet's own, or find the one that has the id."""
        if self.closing:
            self.check_open()
        id = id if id is not None else self.derived_id(definition)
        created = await self._create(definition, inputs, id, deadline=deadline)
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
        self,
        definition: RunDefinition,
        inputs: tuple[Any, ...],
        id: str | None,
        instance: Any = None,
        deadline: float | None = None,
    ) -> Any:
        """Run a definition in the caller's task, or wait for the run that has the id."""
        if self.closing:
            self.check_open()
        created: Any
        if id is None and not self.durable:
            created = self._create_unseen(definition, inputs, instance, deadline)
        else:
            created = await self._create(definition, inputs, id, instance, deadline)
            if isinstance(created, str):
                return await self.result(created, definition)
        execution, started, given = created
        await execution.run_here(given, (started,))
        error, value = execution.error, execution.value
        if value is not None and error is None:
            return definition.starter.decode(value)
        if error is None or isinstance(error, (Conflict, LeaseLost)):  # it waits, or somebody else has it
            return await self.result(execution.journal.id, definition)
        try:
            raise error
        finally:  # what is raised holds this frame, which must not hold what holds it
            del execution, created, error

    async def execute_child(
        self,
        definition: RunDefinition,
        inputs: tuple[Any, ...],
        id: str,
        instance: Any = None,
        deadline: float | None = None,
    ) -> Any:
        """Execute a run for a step of another; what only holds it up holds up that step, and fails nothing.

        Raises:
            Suspended: this process stops before the child has ended.
        """
        seen = -1
        scope = run_context.get()
        if scope is not None:
            self._above[id] = scope.run().id
        try:
            while True:
                try:
                    return await self.execute(definition, inputs, id, instance, deadline)
                except IdConflict:
                    raise
                except Exception as error:
                    if not await self._is_open(id):
                        raise
                    if self.closing:
                        raise Suspended from error
                seen = await self._store.watch(seen, 1.0)
        finally:
            self._above.pop(id, None)

    def order_from_above(self, id: str) -> Exception | None:
        """Return what a run is about to be told, if one that waits for it here is being undone."""
        above = self._above.get(id)
        while above is not None:
            execution = self.live.get(above)
            if execution is not None and execution.is_told:
                return cancelled(id)
            above = self._above.get(above)
        return None

    async def halt(self, id: str) -> None:
        """Have a child run undo what it has done, if it has not ended, and wait for its end.

        Raises:
            Suspended: this process stops before that.
        """
        execution, is_told, seen = self.live.get(id), False, -1
        if execution is not None:
            execution.tell(cancelled(id))  # at once: what was cut off with its parent is not to begin anew
        while await self._is_open(id):
            if self.closing:
                raise Suspended
            try:
                if not is_told:
                    await self.orders.cancel(id)
                    is_told = True
                seen = await self._store.watch(seen, 1.0)
            except StoreUnavailable:
                await self.pause(0.1)
            except RunError:  # it has ended, or waits for its operator, and so does its parent
                is_told = True

    async def _is_open(self, id: str) -> bool:
        """Tell whether a run exists and has not ended, as far as can be told."""
        try:
            stored = await self._store.load(id, limit=0)
        except StoreUnavailable:
            return True
        return stored is not None and stored.head.closed is None

    def _create_unseen(
        self, definition: RunDefinition, inputs: tuple[Any, ...], instance: Any, deadline: float | None
    ) -> tuple[Execution, Started, tuple[Any, ...]]:
        """Create a run whose first append may wait until somebody can see it: new id, no process to survive."""
        id = self._ids.next()
        data, given = exchange_call(definition.starter, inputs)
        started = self._started(id, definition, data, deadline)
        journal = self._new_journal(id, definition, started)
        return self._begin(Execution(self, definition, journal, instance), started), started, given

    def _begin(self, execution: Execution, started: Started) -> Execution:
        """Take note of a run that is executed here from its start."""
        id = execution.journal.id
        self.live[id] = execution
        if self.log.active:
            self.log.info("run.started", run_id=id, definition=started.definition)
        if started.deadline is not None:
            self._keep_to(execution, started)
        return execution

    def _keep_to(self, execution: Execution, started: Started) -> None:
        """Tell a run to unwind at its deadline."""
        if started.deadline is None:
            return
        execution.wait_until(started.deadline)
        if started.deadline <= self.now():
            execution.tell(_expired(execution.journal.id))
        else:
            self._alarms.set(execution.journal.id, started.deadline)

    def limit(self, execution: Execution) -> None:
        """Tell a run to unwind when this process has spent as much time on it as its definition allows."""
        definition = execution.definition
        seconds = definition.timeout
        if seconds is msgspec.UNSET:
            seconds = self.limits.get(definition.kind)
        if seconds is not None:
            execution.spent = self.now() + seconds
            self._alarms.set_sooner(execution.journal.id, execution.spent)

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

    def _started(self, id: str, definition: RunDefinition, data: bytes, deadline: float | None) -> Started:
        """Make the first record of a run."""
        now = self.now()
        if deadline is None and definition.deadline is None:
            return Started(definition.name, definition.version, data, now)
        if deadline is None:
            deadline = now + (definition.deadline or 0.0)
        return Started(definition.name, definition.version, data, now, deadline=deadline)

    async def _create(
        self,
        definition: RunDefinition,
        inputs: tuple[Any, ...],
        id: str | None,
        instance: Any = None,
        deadline: float | None = None,
    ) -> tuple[Execution, Started, tuple[Any, ...]] | str:
        starter = definition.starter
        data, given = starter.exchange_input(inputs)
        run_id = self._ids.next() if id is None else check_id(id)
        if run_id in self.live:
            await self._check_same(run_id, definition, data)
            return run_id
        started = self._started(run_id, definition, data, deadline)
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
        return self._begin(Execution(self, definition, journal, instance), started), started, given

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

    # -------------------------------------------------------------- taking up
    async def _adopt(self, heads: Sequence[Head]) -> None:
        for head in heads:
            if head.kind == "machine" and self.adopt_machine is not None:
                self.adopt_machine(head)
            if head.kind != "run":
                continue
            before = self.live.get(head.id)
            if before is not None:
                if before.journal.fence != head.fence:  # it has just been given back here, and is on its way out
                    self._adopt_behind(before, head)
                continue
            definition = self.find(head.definition, head.definition_version)
            if definition is None:
                await self._store.release(self.worker.id, (head.id,))
                continue
            execution = Execution(self, definition, Journal(self._store, head.id, head.version, head.fence))
            self.live[head.id] = execution
            if head.claims >= _MOST_CLAIMS and head.status not in _IDLE:
                self.spawn(functools.partial(execution.give_up_on, head.claims), execution)
                continue
            if self.log.active:
                self.log.info("run.resumed", run_id=head.id, definition=head.definition, records=head.version)
            self._spawn_reloaded(execution)

    def _adopt_behind(self, before: Execution, head: Head) -> None:
        """Take a run up that was claimed before the one that gave it back here had left."""

        async def main() -> None:
            await before.done.wait()
            if not self.closing:
                await self._adopt((head,))

        self.tasks.add(spawn(main, self._alarms_broke, self.tasks.discard))

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
            self.tasks.discard(task)
            if execution.task is task:
                execution.abandon()

        task = execution.task = spawn(main, execution.broke, over)
        self.tasks.add(task)
        return task

    async def reload(self, execution: Execution) -> Sequence[RunRecord] | None:
        """Read a run's journal; None when there is nothing more to do with it here."""
        journal = execution.journal
        stored = await self.load(journal.id)
        if stored.head.closed is not None:
            last = self.decode(journal.id, stored.head.version, stored.records[-1])
            execution.absorb(last)
            return None
        if stored.head.fence != journal.fence:
            return None
        journal.version = stored.head.version
        journal.pending.clear()
        journal.trouble = None
        is_ordered = self._see(execution, stored)
        records = [self.decode(journal.id, n, r) for n, r in enumerate(stored.records, 1)]
        if stored.head.status in STUCK and not is_ordered:
            await execution.put_back(cast("StuckStatus", stored.head.status), records[-1])
            return None
        started = records[0]
        if isinstance(started, Started):
            self._keep_to(execution, started)
        return records

    async def look(self, execution: Execution) -> None:
        """See what signals have come in for a run, and tell it."""
        self._see(execution, await self.load(execution.journal.id, limit=0))

    def _see(self, execution: Execution, stored: Stored) -> bool:
        """Tell a run of the orders among its signals; return whether there are any."""
        execution.journal.inbox = stored.head.inbox
        execution.journal.marked = stored.head.state == ORDERED
        execution.hear_of(stored.signals)
        if any(signal.topic == CANCEL for signal in stored.signals):
            execution.tell(cancelled(stored.head.id))
            return True
        return False

    async def _find_orders(self) -> None:
        """See whether somebody, perhaps in another process, has ordered something of what is executed here."""
        if not self.live or not self._store.capabilities.signals:
            return
        after = 0
        while heads := await self._store.scan(kind="run", state=ORDERED, after=after):
            for head in heads:
                execution = self.live.get(head.id)
                if execution is not None and head.inbox > execution.journal.inbox:
                    await self.look(execution)
                elif execution is not None:  # told once more what it knows
                    execution.journal.marked = True
            after = heads[-1].order

    def _expire(self, id: str) -> None:
        execution = self.live.get(id)
        if execution is not None:
            is_spent = execution.spent is not None and execution.spent <= self.now()
            execution.tell(_spent(id) if is_spent else _expired(id))

    def _alarms_broke(self, error: BaseException) -> None:
        self.log.error("worker.broken", worker=self.worker.id, error=repr(error))

    def new_id(self) -> str:
        """Return an id that nobody has used."""
        return self._ids.next()

    async def take_up(self, id: str) -> None:
        """Execute a run here, unless somebody has it already."""
        if self.closing:
            return
        try:
            claims = await self._store.claim(self.worker.id, ids=(id,))
        except LeaseLost:  # held up for too long: it is due, and found as soon as this worker has its lease again
            return
        await self._adopt(claims.heads)

    async def load(self, id: str, *, after: int = 0, limit: int | None = None) -> Stored:
        """See `StoredRuns.load`; what only its own code can have asked for is stored before."""
        execution = self.live.get(id)
        if execution is not None and execution.journal.create is not None:
            await execution.show()
        return await super().load(id, after=after, limit=limit)

    def finished(self, execution: Execution) -> None:
        """Forget an execution; one that trouble with the store has stopped is taken up later, if it is still ours."""
        self.live.pop(execution.journal.id, None)
        self._alarms.drop(execution.journal.id)
        if self.closing and execution.state == "left":
            self._drain.note_left(execution.journal.id)
        if execution.state == "left" and isinstance(execution.error, _PASSING):
            self._orphans.add(execution.journal.id)

    # -------------------------------------------------------------- for handles

    async def result(self, id: str, definition: RunDefinition | None) -> Any:
        """Wait for a run's end, wherever it is executed."""
        seen, nobodys_since = -1, None
        while True:
            execution = self.live.get(id)
            if execution is not None:
                await execution.done.wait()
                error, value, state = execution.error, execution.value, execution.state
                starter = execution.definition.starter
                del execution  # what is raised from here holds this frame, and must not hold what holds it
                if value is not None:
                    return starter.decode(value)
                if error is not None and not isinstance(error, (Conflict, LeaseLost)):
                    raise self._left(id) if self.closing and state == "left" else error
            head = await self.head(id)
            if head.closed is not None or (head.status in STUCK and head.owner is None and head.wake is None):
                return await self.recorded_outcome(head, definition or self.definition_of(head))
            if self.closing:
                raise self._left(id)
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

    def _left(self, id: str) -> BaseException:
        """Return what is told to who waits for a run that goes on elsewhere, or later: a step is as little failed."""
        if run_context.get() is not None:
            return Suspended()
        return RunError(f"run {id!r} goes on when its Flowlet is entered again")


def _expired(id: str) -> RunTimeout:
    return RunTimeout(f"run {id!r} had not ended at its deadline; what has a compensation was undone")


def _spent(id: str) -> RunTimeout:
    return RunTimeout(
        f"run {id!r} had not ended within its timeout; give it more with timeout=, which counts from when a process "
        "takes it up"
    )


def _no_breaker() -> Breaker:
    raise AssertionError("not opened")  # pragma: no cover


def _no_task() -> object:
    raise AssertionError("not opened")  # pragma: no cover
