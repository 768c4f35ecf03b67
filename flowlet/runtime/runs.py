"""The runs of one `Flowlet`: starting, executing, resuming and finding them.

Law: `start` returns when the input is durable. What is executed here is in `live`; everything else is
known through the store alone.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, cast

import msgspec

from flowlet.core.current import machine_context, run_context
from flowlet.core.definitions import GraphLimits, RunDefinition
from flowlet.core.engine import StepWaits, Suspended
from flowlet.core.ids import fit_id
from flowlet.core.run_records import RunRecord, Started, StuckStatus
from flowlet.core.steps import Provide
from flowlet.errors import (
    Conflict,
    LeaseLost,
    RunError,
    RunTimeout,
    StoreError,
    StoreUnavailable,
)
from flowlet.runtime.alarms import Alarms
from flowlet.runtime.children import Children
from flowlet.runtime.creating import CreatingRuns
from flowlet.runtime.drain import Drain
from flowlet.runtime.execution import Execution
from flowlet.runtime.execution_ends import Ending
from flowlet.runtime.handle import Handle
from flowlet.runtime.journal import Journal, outlives_process
from flowlet.runtime.logs import Log
from flowlet.runtime.orders import CANCEL, ORDERED, STUCK, Orders, cancelled
from flowlet.runtime.outbox import outbox_of
from flowlet.runtime.providers import Providers
from flowlet.runtime.stored_runs import Find
from flowlet.runtime.tasks import Breaker, Task, breaker_class, current_task_function, spawn
from flowlet.runtime.worker import Worker
from flowlet.store import Head, Store, Stored

_MOST_CLAIMS = 20
"""A run that was taken up so often without a record of progress is parked."""

_IDLE = {*STUCK, "waiting"}
"""Statuses of runs that do nothing by themselves, so that being looked at says nothing of them."""

_PASSING = (StoreUnavailable, LeaseLost, Conflict)
"""Troubles with the store after which a run may go on here, if it is still ours."""


_MOST_LIVE = 1000
"""So many runs may be executed here before more are claimed: what is due when nobody was there comes bit by bit."""

_STALLED = 1.0
"""Seconds in which none of these has ended, after which a few more are claimed: perhaps the others wait for them."""

_BATCH = 100
"""Runs that are claimed at once."""


class Runs(CreatingRuns):
    """Executes runs over a store. It is the host of their executions and the source of their handles.

    Args:
        find: looks a definition up by name and version.
        provide: gives the value for a provided parameter's annotation.

    Attributes:
        adopters: what takes over what this process has claimed that is no run, by kind.
        providers: makes the values that ``provide`` gives, as far as they have to be made.
        clock_moved: called when a clock that is moved by hand has been.
        further_times: tell when something else is to ring.
    """

    closing: bool

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
        self.providers: Providers | None = None
        self.log = log
        self._lease = lease
        self.durable: bool = outlives_process(store)
        self.closing = self.stopping = False
        self.tasks: set[Task] = set()
        self._drain = Drain(self, store)
        self.deadline: float = 0.0
        self.epoch: float = 0.0
        self.current_task: Callable[[], object] = _no_task
        self.worker: Worker = Worker(
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
            self._room,
        )
        self.orders: Orders = Orders(store, self)
        self.children: Children = Children(store, self)
        self.adopters: dict[str, Callable[[Head], None]] = {}
        self.make_breaker: Callable[[], Breaker] = _no_breaker
        self.limits: Mapping[str, float | None] = {}
        self.graph_limits: GraphLimits = GraphLimits()
        self._alarms = Alarms(self.now, self._expire, self._alarms_broke)
        self._dozes = Alarms(self.now, self._rouse, self._alarms_broke)
        self._last_end = 0.0
        self._missed: set[str] = set()
        self.further_times: list[Callable[[], Mapping[str, float]]] = []
        self.clock_moved: list[Callable[[], None]] = [self._alarms.look, self._dozes.look]
        self._execution_class = Execution
        if log.observing is not None:
            from flowlet.runtime.observed_runs import ObservedExecution

            self._execution_class = ObservedExecution

    # -------------------------------------------------------------- opening and closing
    def now(self) -> float:
        """Return the time of the store's clock."""
        return self.epoch + time.perf_counter()

    async def pause(self, seconds: float) -> None:
        """Wait between two attempts of a step, but not once the process wants to stop; see `Drain.pause`."""
        await self._drain.pause(seconds)

    def _renewed(self, deadline: float) -> None:
        self.deadline = deadline

    async def _leave_taken(self) -> None:
        """Let no run go on that somebody else took while the lease had run out; no effect begins meanwhile."""
        if self.log.observing is not None:
            self.log.observing.lapsed(self.worker.id)
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
        await self._leave(grace)
        await self._drain.wait_for_tasks()
        self._dozes.stop()

    async def drain(self, grace: float) -> None:
        """Do the same, but wait for no step that will not end: the process may."""
        if self.log.active and not self.closing:
            self.log.info("worker.draining", worker=self.worker.id, runs=len(self.live))
        await self._leave(grace)

    async def _leave(self, grace: float) -> None:
        self.closing = True
        for execution in list(self.live.values()):
            execution.rouse()  # what waits for a time that is near need not be waited for
        await self._drain.run(grace)

    def check_open(self) -> None:
        """Refuse what would begin a run here while this process leaves its runs.

        A step or a machine's hook may still start one: a refusal would be its failure, and a shutdown fails nothing.

        Raises:
            RunError: it does.
        """
        if self.closing and run_context.get() is None and machine_context.get() is None:
            raise RunError("this Flowlet is drained and begins no run; leave it and enter it again, or ask another one")

    # -------------------------------------------------------------- starting
    async def start(
        self,
        definition: RunDefinition,
        inputs: tuple[Any, ...],
        id: str | None,
        deadline: float | None = None,
        parent: str | None = None,
    ) -> Handle[Any]:
        """Start a run in a task of flowlet's own, or find the one that has the id; in an action, with its commit."""
        box = outbox_of(self._store)
        if box is not None:
            return Handle(box.start(self, definition, inputs, id, deadline), self, definition)
        if self.closing:
            self.check_open()
        id = id if id is not None else self.derived_id(definition)
        created = await self._create(definition, inputs, id, deadline=deadline, parent=parent)
        if isinstance(created, str):
            return Handle(created, self, definition)
        execution, started, _ = created
        self._spawn_run(execution, (started,))
        return Handle(execution.journal.id, self, definition)

    def derived_id(self, definition: RunDefinition) -> str | None:
        """Return the id of a run that another run starts without naming it: the same on every replay."""
        scope = run_context.get()
        return None if scope is None else fit_id(scope.event_key("run", f"{definition.name}()"))

    async def execute(
        self,
        definition: RunDefinition,
        inputs: tuple[Any, ...],
        id: str | None,
        instance: Any = None,
        deadline: float | None = None,
        parent: str | None = None,
        *,
        is_patient: bool = True,
    ) -> Any:
        """Run a definition in the caller's task, or wait for the run that has the id.

        Args:
            parent: the run that is told of its end.
            is_patient: wait also while it waits, or is executed elsewhere.

        Raises:
            StepWaits: it does, or is.
        """
        if self.closing:
            self.check_open()
        created: Any
        if id is None and not self.durable:
            created = self._create_unseen(definition, inputs, instance, deadline)
        else:
            created = await self._create(definition, inputs, id, instance, deadline, parent)
            if isinstance(created, str):
                return await self.settled(created, definition, is_patient=is_patient)
        execution, started, given = created
        await execution.run_here(given, (started,))
        error, value = execution.error, execution.value
        if value is not None and error is None:
            return definition.starter.decode(value)
        if error is None or isinstance(error, (Conflict, LeaseLost)):  # it waits, or somebody else has it
            return await self.settled(execution.journal.id, definition, is_patient=is_patient)
        try:
            raise error
        finally:  # what is raised holds this frame, which must not hold what holds it
            del execution, created, error

    async def settled(self, id: str, definition: RunDefinition, *, is_patient: bool) -> Any:
        """Return the result of a run, or raise its error.

        Raises:
            StepWaits: nobody executes it here and it has not ended, unless that is waited for.
        """
        if is_patient:
            return await self.result(id, definition)
        execution = self.live.get(id)
        if execution is not None:
            await execution.done.wait()
            error, value, state = execution.error, execution.value, execution.state
            del execution
            if value is not None:
                return definition.starter.decode(value)
            if error is not None and state == "ended":
                raise error
        head = await self.head(id)
        if head.closed is not None:
            return await self.recorded_outcome(head, definition)
        raise StepWaits(id)

    def _make_execution(self, definition: RunDefinition, journal: Journal, instance: Any = None) -> Execution:
        return self._execution_class(self, definition, journal, instance)

    # -------------------------------------------------------------- deadlines
    def _keep_to(self, execution: Ending, started: Started) -> None:
        """Tell a run to unwind at its deadline."""
        if started.deadline is None:
            return
        execution.wait_until(started.deadline)
        if started.deadline <= self.now():
            execution.tell(_expired(execution.journal.id))
        else:
            self._alarms.set(execution.journal.id, started.deadline)

    def limit(self, execution: Ending) -> None:
        """Tell a run to unwind when this process has spent as much time on it as its definition allows."""
        definition = execution.definition
        seconds = definition.timeout
        if seconds is msgspec.UNSET:
            seconds = self.limits.get(definition.kind)
        if seconds is not None:
            execution.spent = self.now() + seconds
            self._alarms.set_sooner(execution.journal.id, execution.spent)

    # -------------------------------------------------------------- taking up
    async def _adopt(self, heads: Sequence[Head]) -> None:
        for head in heads:
            if head.kind != "run":
                adopt = self.adopters.get(head.kind)
                if adopt is not None:
                    adopt(head)
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
            execution = self._make_execution(definition, Journal(self._store, head.id, head.version, head.fence))
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
        if self.log.observing is not None:
            await self.log.observing.count(self._store, self.now(), len(self.live))
        for id in self._orphans - self.live.keys():
            stored = await self._store.load(id, limit=1)
            if stored is None and id not in self._missed:
                self._missed.add(id)  # an append that was cut off may still be on its way: it is looked for once more
                continue
            self._orphans.discard(id)
            self._missed.discard(id)
            if stored is not None and stored.head.owner == self.worker.id and stored.head.closed is None:
                await self._adopt((stored.head,))
        if self.worker.has_lost:
            await self._find_lost()

    async def _find_lost(self) -> None:
        """Take up what this process has claimed without having been told so: the store's answer was lost."""
        after = 0
        while heads := await self._store.scan(kind="run", wake_before=self.now() + 1, after=after):
            after = heads[-1].order
            # What was created here, and is not executed yet, was never claimed.
            await self._adopt([h for h in heads if h.owner == self.worker.id and h.claims and h.id not in self.live])
        self.worker.has_lost = False

    def _spawn_run(self, execution: Execution, records: Sequence[RunRecord]) -> None:
        async def main() -> None:
            await execution.run_aside(records)

        self.spawn(main, execution)

    def _spawn_reloaded(self, execution: Execution) -> None:
        async def main() -> None:
            await execution.go_on()

        self.spawn(main, execution)

    def spawn(self, main: Callable[[], Awaitable[None]], execution: Ending) -> Task:
        """Start a task of flowlet's own for an execution."""

        def over(task: Task) -> None:
            self.tasks.discard(task)
            if execution.task is task:
                execution.abandon()

        task = execution.task = spawn(main, execution.broke, over)
        self.tasks.add(task)
        return task

    async def reload(self, execution: Ending) -> Sequence[RunRecord] | None:
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
        if stored.head.status == "waiting":
            journal.status = "running"
        if stored.head.status in STUCK and not is_ordered:
            await execution.put_back(cast("StuckStatus", stored.head.status), records[-1])
            return None
        started = records[0]
        if isinstance(started, Started):
            self._keep_to(execution, started)
        return records

    async def look(self, execution: Ending) -> None:
        """See what signals have come in for a run, and tell it."""
        self._see(execution, await self.load(execution.journal.id, limit=0))

    def _see(self, execution: Ending, stored: Stored) -> bool:
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

    def _rouse(self, id: str) -> None:
        execution = self.live.get(id)
        if execution is not None:
            execution.rouse()

    def has_under(self, key: str) -> bool:
        """Tell whether what a step calls, or a body, may have runs under way that are to end with it."""
        return self.children.has_under(key)

    async def halt_under(self, key: str, recorded: Collection[str] = ()) -> None:
        """Cancel these runs and wait until they have ended."""
        await self.children.halt_under(key, recorded)

    async def look_at(self, id: str) -> None:
        """See what signals have come in for a run that is executed here, and tell it."""
        execution = self.live.get(id)
        if execution is not None:
            await self.look(execution)

    def is_awaited(self, id: str) -> bool:
        """Tell whether somebody waits for a run in this process, and needs not be told of its end."""
        return self.children.is_awaited(id)

    def order_from_above(self, id: str) -> Exception | None:
        """Return what a run is about to be told, if one that waits for it here is being undone."""
        return self.children.order_from_above(id)

    def expect(self, at: float) -> None:
        """See to it that a run is taken up which falls due at a time."""
        self.worker.expect(at)

    def rouse_at(self, id: str, at: float) -> None:
        """Have a run look again at a time, which it waits for here."""
        self._dozes.set(id, at)

    def tell_parent(self, id: str) -> None:
        """See to it that a run soon hears that a child of it has ended."""

        async def main() -> None:
            try:
                execution = self.live.get(id)
                if execution is None:
                    await self.take_up(id)
                else:
                    await self.look(execution)
            except StoreError as error:  # whoever looks for work finds it
                self.log.warning("store.unavailable", error=str(error))

        if not self.closing:
            self.tasks.add(spawn(main, self._alarms_broke, self.tasks.discard))

    def _room(self) -> int:
        """Return how many more runs may be claimed now."""
        left = _MOST_LIVE - len(self.live)
        if left > 0:
            return min(left, _BATCH)
        return _BATCH if time.perf_counter() - self._last_end > _STALLED else 0

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

    def finished(self, execution: Ending) -> None:
        """Forget an execution; one that trouble with the store has stopped is taken up later, if it is still ours."""
        if len(self.live) >= _MOST_LIVE:
            self._last_end = time.perf_counter()
            if len(self.live) == _MOST_LIVE:
                self.worker.nudge()
        self.live.pop(execution.journal.id, None)
        self._alarms.drop(execution.journal.id)
        self._dozes.drop(execution.journal.id)
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
            if head.owner is not None or head.status == "waiting" or self.definition_of(head) is not None:
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
