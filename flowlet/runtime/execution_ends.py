"""What a run in this process is told, and how the work on it ends: the run has ended, or is left to whoever comes.

Law: whatever ends it, what is on record is all that the next one needs. Nothing but the body's failure makes a run
fail. A signal that has come in is seen before the last word is said.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any, Literal, Protocol

import msgspec

from flowlet.core.codec import pack
from flowlet.core.definitions import GraphLimits, Interpretation, RunDefinition, Undone
from flowlet.core.engine import Decided, Suspended
from flowlet.core.failures import describe_failure
from flowlet.core.run_records import Attention, Ended, EndStatus, Parked, RunRecord, StuckStatus
from flowlet.core.sizes import FRAME, check_size, fit, fit_all, fit_text
from flowlet.errors import EncodeError, HistoryMismatch, PayloadTooLarge, RunCancelled, RunError, RunParked
from flowlet.runtime.children import end_of_child
from flowlet.runtime.drive import drive
from flowlet.runtime.engine import LocalEngine
from flowlet.runtime.engine_replay import Reread, Unresolved
from flowlet.runtime.engine_waits import Waiting
from flowlet.runtime.journal import Journal, SignalArrived
from flowlet.runtime.outcomes import asked_error, ended_error, stuck_error
from flowlet.runtime.steps import Host
from flowlet.runtime.tasks import Breaker, Latch, Task
from flowlet.store import Signal

State = Literal["running", "ended", "parked", "waiting", "left"]


class ExecutionHost(Host, Protocol):
    """What an execution needs of the process it runs in."""

    current_task: Callable[[], object]
    graph_limits: GraphLimits
    make_breaker: Callable[[], Breaker]

    def now(self) -> float:
        """Return the time of the store's clock."""
        ...

    def spawn(self, main: Callable[[], Any], execution: Ending) -> Task:
        """Start a task of flowlet's own."""
        ...

    def limit(self, execution: Ending) -> None:
        """Tell a run to unwind when a process has spent as much time on it as its definition allows."""
        ...

    def order_from_above(self, id: str) -> Exception | None:
        """Return what a run is about to be told, if one that waits for it here is being undone."""
        ...

    async def reload(self, execution: Ending) -> Sequence[RunRecord] | None:
        """Read a run's journal again; None when this process has nothing more to do with it."""
        ...

    async def look(self, execution: Ending) -> None:
        """See what signals have come in for a run, and tell it."""
        ...

    def tell_parent(self, id: str) -> None:
        """See to it that a run soon hears that a child of it has ended."""
        ...

    def is_awaited(self, id: str) -> bool:
        """Tell whether somebody waits for a run in this process, and needs not be told of its end."""
        ...

    def expect(self, at: float) -> None:
        """See to it that a run is taken up which falls due at a time."""
        ...

    def finished(self, execution: Ending) -> None:
        """Forget an execution that has ended, was parked or is left to somebody else."""
        ...


class Ending(msgspec.Struct, eq=False):
    """One run in this process, as others see it: what it is told, and how it ends.

    Attributes:
        state: ``"waiting"`` means that nobody works on it until a signal comes, ``"left"`` that this process no longer
            does; the journal has the rest.
        spent: when this process will have spent on it what its definition allows, if that is limited.
        task: the last of flowlet's own tasks that works on it, if one does.
        value: its encoded result, once it has completed.
        error: why it did not, or why this process left it.
    """

    _host: ExecutionHost
    definition: RunDefinition
    journal: Journal
    _instance: Any = None
    _engine: LocalEngine | None = None
    _breaker: Breaker | None = None
    _order: Exception | None = None
    _vain: tuple[type[Exception], ...] = ()
    _is_aside: bool = False
    _is_unwinding: bool = False
    _signals: Sequence[Signal] = ()
    _until: float | None = None
    _parent: str | None = None
    _done: Latch | None = None
    spent: float | None = None
    state: State = "running"
    status: str = "running"
    value: bytes | None = None
    error: BaseException | None = None
    task: Task | None = None

    @property
    def done(self) -> Latch:
        """Is set when this process no longer works on the run; made when somebody wants to wait for that."""
        if self._done is None:
            self._done = Latch()
            if self.state != "running":
                self._done.set()
        return self._done

    @abstractmethod
    async def go_on(self) -> None:
        """Wait until nothing of the old attempt runs, then replay."""

    @property
    @abstractmethod
    def frames(self) -> tuple[CodeType, ...]:
        """The code whose frames hold this object, in the traceback of what a body raises."""

    # -------------------------------------------------------------- what it is told
    def tell(self, order: Exception) -> None:
        """Tell the run to undo what it has done; it does so at its next wait, which is cut short."""
        engine = self._engine
        if self.state != "running" or self._is_unwinding:
            return
        if engine is None:
            self._order = order if self._order is None else self._order
        elif engine.committed:
            self._tell_in_vain(order)
        elif engine.order is None:  # what it is told first stands
            engine.order = order
            if self._breaker is not None and engine.is_due:
                self._breaker.cut()

    def hear_of(self, signals: Sequence[Signal]) -> None:
        """Take note of what is in the run's inbox."""
        self._signals = signals
        if self._engine is not None:
            self._engine.hear_of(signals)

    def rouse(self) -> None:
        """Look again at what the run waits for here: a time has come."""
        if self._engine is not None:
            self._engine.rouse()

    def wait_until(self, deadline: float | None) -> None:
        """Take note of when somebody has to look at the run even if it waits for something else."""
        self._until = deadline

    @property
    def is_told(self) -> bool:
        """Whether the run was told to undo what it has done."""
        return self._order is not None or (self._engine is not None and self._engine.order is not None)

    def _tell_in_vain(self, order: Exception) -> None:
        if type(order) in self._vain:
            return
        self._vain = (*self._vain, type(order))
        self._host.log.warning(
            "run.not_undone", run_id=self.journal.id, definition=self.definition.name, order=str(order)
        )

    async def give_up_on(self, claims: int) -> None:
        """Park a run that has been taken up often and has never come further."""
        await self._park(
            f"run {self.journal.id!r} of {self.definition.name!r} was taken up {claims} times and never came further: "
            "what it does next seems to end the process; look at that step, then resume()"
        )

    async def put_back(self, status: StuckStatus, last: RunRecord | None) -> None:
        """Leave the run to its operator as before: what woke it up was no answer."""
        error = asked_error(last) if isinstance(last, Attention) else RunParked(f"run {self.journal.id!r} is {status}")
        if isinstance(last, Parked):
            error = RunParked(last.reason)
        await self._set_aside(status, None, "", error)

    def absorb(self, record: RunRecord) -> None:
        """Take over the end that the journal turns out to have."""
        if isinstance(record, Ended):
            self.status = record.status
            self.value = record.value
            self._leave("ended", None if record.value is not None else ended_error(record))

    def give_up(self) -> None:
        """Let a caller that is still busy with a step write no more: the Flowlet is left."""
        if self.journal.trouble is None:
            self.journal.trouble = RunError(f"run {self.journal.id!r} goes on when its Flowlet is entered again")

    def abandon(self) -> None:
        """Tell who waits that no task works on the run any more, if it has not ended."""
        if self.state == "running":
            self._leave("left", RunError(f"run {self.journal.id!r} goes on when its Flowlet is entered again"))

    # -------------------------------------------------------------- ends
    async def _end_returned(self, value: bytes) -> None:
        """End the run as completed, unless it turns out that it is to be undone."""
        engine, limit = self._engine, self._host.max_payload
        assert engine is not None
        while True:
            if not engine.is_straight:
                error = engine.decided()
                if error is not None:  # the history says so, or somebody, and that stands
                    raise Decided(error)
                engine.check_end()
            if limit is not None:
                check_size(value, limit, f"the result of run {self.journal.id!r}", FRAME)
            try:
                await self._end("completed", value, None)
            except SignalArrived:
                await self._host.look(self)
                continue
            if engine.order is not None:
                self._tell_in_vain(engine.order)
            self.value = value
            self._leave("ended", None)
            return

    async def _unwind(self, interpretation: Interpretation, error: Exception) -> None:
        """Undo what the run has done, or ask for help where there is only forward."""
        try:
            await self._unwind_for(interpretation, error)
        except Decided as decision:  # by its history, elsewhere: then the records say what to undo
            await self._unwind_for(interpretation, decision.error)

    async def _unwind_for(self, interpretation: Interpretation, error: Exception) -> None:
        engine, log = self._engine, self._host.log
        assert engine is not None
        self._is_unwinding = True
        if engine.over is not None:  # whatever the body has made of that
            error, engine.over = engine.over, None
        if self._host.has_under(self.journal.id):  # what the body has called through its Flowlet
            await self._host.halt_under(self.journal.id)
        if engine.is_astray:
            engine.check_end()
        order = None if engine.is_decided else engine.ordered
        if order is not None:
            error = order
            await engine.settle_order()
        elif engine.cut:
            await engine.settle_cut()
        if engine.order is not None:
            self._tell_in_vain(engine.order)
            engine.order = None
        if engine.committed:
            reason = (
                f"run {self.journal.id!r} has failed behind its pivot, with {type(error).__name__}: {error}; mend the "
                "cause and resume(), or compensate()"
            )
            await self._park(reason, error, status="needs_attention")
            return
        if log.active and interpretation.undoes:
            log.info("run.compensating", run_id=self.journal.id, definition=self.definition.name, error=repr(error))
        await self._failed(error, await drive(interpretation.backward(error), engine))

    async def _failed(self, error: Exception, undone: Undone) -> None:
        engine = self._engine
        assert engine is not None
        if engine.cut:
            await engine.settle_cut()
        engine.check_end()
        status: EndStatus = "compensated" if undone.steps else "failed"
        if engine.interrupted and isinstance(error, RunCancelled):
            status = "cancelled"
        while True:
            try:
                await self._end(status, None, engine.describe(error))
            except SignalArrived:
                await self._host.look(self)
            else:
                break
        self._leave("ended", error)

    async def _end(self, status: EndStatus, *outcome: Any) -> None:
        engine = self._engine
        assert engine is not None
        if engine.saving is not None:
            await engine.settle()
        if self.journal.trouble is not None:
            raise Suspended
        parent = self._parent
        if parent is not None and self._host.is_awaited(self.journal.id):
            parent = None
        record = pack(("z", status, engine.tick(), *outcome))
        await self.journal.end(status, record, None if parent is None else end_of_child(parent, self.journal.id))
        if parent is not None:
            self._host.tell_parent(parent)
        self.status = status
        log = self._host.log
        if log.active:
            log.info(f"run.{status}", run_id=self.journal.id, definition=self.definition.name)

    async def _suspended(self) -> None:
        """Work out why the run cannot go on here, and leave it in a state that can be resumed."""
        trouble = self.journal.trouble
        if self._engine is not None:
            await self._engine.shut_down()
            if trouble is None:  # before the lease is given back: what has been done is to be done once
                with contextlib.suppress(Suspended):
                    await self._engine.settle()
                    await self._engine.keep_finished()
                trouble = self.journal.trouble
        if isinstance(trouble, Reread):
            self.journal.trouble = None
            self._is_unwinding, self._is_aside = False, True
            self._host.spawn(self.go_on, self)
        elif isinstance(trouble, HistoryMismatch):
            await self._park(str(trouble))
        elif isinstance(trouble, Unresolved):
            await self._await_operator(trouble)
        elif isinstance(trouble, Waiting):
            await self._await_news(trouble.due)
        elif isinstance(trouble, (EncodeError, PayloadTooLarge)) and self.journal.create is None:
            # The codec or the store refuses what happened, and would again: repeating its effect would not help.
            reason = f"what run {self.journal.id!r} did last cannot be recorded: {trouble}; then resume() it"
            await self._park(reason, trouble, is_readable=False)
        elif trouble is not None:
            self._host.log.warning(
                "run.left", run_id=self.journal.id, definition=self.definition.name, error=str(trouble)
            )
            self._leave("left", trouble)
        else:
            self._leave("left", RunError(f"run {self.journal.id!r} goes on when its Flowlet is entered again"))

    def _tick(self) -> float:
        """Read the store's clock for a record, of a run whose history may be unread."""
        return self._host.now() if self._engine is None else self._engine.tick()

    async def _await_news(self, due: float | None) -> None:
        """Leave the run to whoever is there when a signal or a time comes, or a child ends."""
        self.journal.trouble = None
        wake = min((at for at in (due, self._until) if at is not None), default=None)
        try:
            assert self._engine is not None
            if self._engine.has_news:  # it has come in, and was seen, since the run looked
                raise SignalArrived
            if self._told is not None:
                wake = 0.0
            await self.journal.park("waiting", None, wake)
        except SignalArrived:
            self._is_aside = True
            self._host.spawn(self.go_on, self)
        except Suspended:
            self._leave("left", self.journal.trouble)
        else:
            log = self._host.log
            if log.active:
                log.info("run.waiting", run_id=self.journal.id, definition=self.definition.name)
            self.status = "waiting"
            self._leave("waiting", None)
            if wake is not None:
                self._host.expect(wake)

    async def _await_operator(self, trouble: Unresolved) -> None:
        """Leave the run until its operator has answered a question."""
        question = trouble.question
        record = None
        if not trouble.asked:
            part = None if self._host.max_payload is None else self._host.max_payload // 4
            error = None if question.error is None else fit(describe_failure(question.error), part)
            errors = fit_all([describe_failure(e) for e in question.errors], part)
            reason = fit_text(question.reason, part)
            fields = (question.status, self._tick(), reason, question.steps, errors, error)
            record = pack(("q", *fields))
        await self._set_aside(question.status, record, question.reason, stuck_error(question), question.steps)

    async def _park(
        self,
        reason: str,
        error: Exception | None = None,
        *,
        status: StuckStatus = "parked",
        is_readable: bool = True,
    ) -> None:
        """Leave the run until its operator has it go on.

        Args:
            is_readable: its history decodes here; to one that does not, nothing is added that might not, either.
        """
        if not is_readable:
            self.journal.pending.clear()
        parked = RunParked(reason)
        parked.__cause__ = error
        record = pack(("p", fit_text(reason, self._host.max_payload), self._tick())) if is_readable else None
        await self._set_aside(status, record, reason, parked)

    async def _set_aside(
        self, status: StuckStatus, record: bytes | None, reason: str, error: Exception, steps: Sequence[str] = ()
    ) -> None:
        self.journal.trouble = None
        before = self._told
        while True:
            try:
                # A run that has been told to unwind meanwhile is looked at again, by whoever claims it.
                await self.journal.park(status, record, None if self._told is before else 0.0)
            except Suspended:
                self._leave("left", self.journal.trouble)
                return
            except SignalArrived:
                record = None  # it waits in the journal's pending ones
                await self._host.look(self)
            else:
                break
        if reason:
            extra = {"steps": steps} if steps else {}
            self._host.log.error(
                f"run.{status}", run_id=self.journal.id, definition=self.definition.name, reason=reason, **extra
            )
        self.status = status
        self._leave("parked", error)

    @property
    def _told(self) -> Exception | None:
        """Why the run is to unwind, if it was told to."""
        return self._order if self._engine is None else self._engine.ordered

    def _leave(self, state: State, error: BaseException | None) -> None:
        self.state = state
        self.error = error
        if error is not None:
            traceback = error.__traceback__
            while traceback is not None and traceback.tb_frame.f_code in self.frames:
                traceback = traceback.tb_next  # its first frames hold this object
            error.__traceback__ = traceback
        if self._engine is not None:
            self._engine.forget()
        self._host.finished(self)
        if self._done is not None:
            self._done.set()

    def broke(self, error: BaseException) -> None:
        """Take note of an error in flowlet's own code: the run is left as its journal has it."""
        self._host.log.error("run.broken", run_id=self.journal.id, definition=self.definition.name, error=repr(error))
        self._leave("left", error)
