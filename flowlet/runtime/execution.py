"""One run that this process executes, from its start or claim to its end.

Law: a run is executed by one task at a time: the caller's, as long as the caller waits, or one of
flowlet's own. A cancelled caller detaches, and the run goes on from its journal. Compensations always
run in a task of flowlet's own. Nothing but the body's failure makes a run fail.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import anyio

from flowlet.core.codec import Codec, pack
from flowlet.core.definitions import Context, Interpretation, RunDefinition, Undone
from flowlet.core.engine import Suspended
from flowlet.core.failures import Failure, describe_failure, rebuild_failure
from flowlet.core.run import Run
from flowlet.core.run_records import Ended, EndStatus, RunRecord, Started
from flowlet.errors import (
    CompensationFailed,
    DecodeError,
    FlowletError,
    HistoryMismatch,
    LeaseLost,
    RunError,
    RunNotFound,
    RunParked,
    StoreUnavailable,
)
from flowlet.runtime.drive import Drive
from flowlet.runtime.engine import LocalEngine
from flowlet.runtime.journal import Journal
from flowlet.runtime.steps import Host
from flowlet.runtime.tasks import Latch, Task

_failure_codec: Codec[Failure] = Codec(Failure)

State = Literal["running", "ended", "parked", "left"]


class ExecutionHost(Host, Protocol):
    """What an execution needs of the process it runs in."""

    current_task: Callable[[], object]

    def now(self) -> float:
        """Return the time of the store's clock."""
        ...

    def spawn(self, main: Callable[[], Any], execution: Execution) -> Task:
        """Start a task of flowlet's own."""
        ...

    async def reload(self, execution: Execution) -> Sequence[RunRecord] | None:
        """Read a run's journal again; None when this process has nothing more to do with it."""
        ...

    def finished(self, execution: Execution) -> None:
        """Forget an execution that has ended, was parked or is left to somebody else."""
        ...


class Execution:
    """One run in this process.

    Attributes:
        state: ``"left"`` means that this process no longer works on it; the journal has the rest.
        value: its encoded result, once it has completed.
        error: why it did not, or why this process left it.
    """

    __slots__ = (
        "_engine",
        "_host",
        "_instance",
        "_is_aside",
        "definition",
        "done",
        "error",
        "journal",
        "state",
        "status",
        "value",
    )

    def __init__(
        self,
        host: ExecutionHost,
        definition: RunDefinition,
        journal: Journal,
        instance: Any = None,
    ) -> None:
        self._host = host
        self._instance = instance
        self._engine: LocalEngine | None = None
        self._is_aside = False
        self.definition = definition
        self.journal = journal
        self.done = Latch()
        self.state: State = "running"
        self.status: str = "running"
        self.value: bytes | None = None
        self.error: BaseException | None = None

    # -------------------------------------------------------------- in the caller's task
    async def run_here(self, inputs: tuple[Any, ...], records: Sequence[RunRecord]) -> Any:
        """Execute the run in the caller's task; if the caller is cancelled, the run goes on without it."""
        try:
            interpretation = await self._interpret(inputs, records)
            if interpretation is None:
                return
            assert self._engine is not None
            try:
                value = await Drive(interpretation.forward(), self._engine)
                if self._engine.cut:
                    await self._engine.judge_cut()
            except Exception as error:
                if not interpretation.undoes:
                    await self._failed(error, Undone())
                else:
                    await self._unwind_aside(interpretation, error)
            else:
                await self._returned(interpretation, value)
        except Suspended:
            await self._suspended()
        except Exception:
            raise
        except BaseException:
            self._detach()
            raise

    async def _unwind_aside(self, interpretation: Interpretation, error: Exception) -> None:
        async def main() -> None:
            try:
                await self._unwind(interpretation, error)
            except Suspended:
                await self._suspended()

        self._is_aside = True
        self._host.spawn(main, self)
        await self.done.wait()

    # -------------------------------------------------------------- in a task of flowlet's own
    async def run_aside(self, records: Sequence[RunRecord]) -> None:
        """Execute the run in this task, which is flowlet's own."""
        try:
            interpretation = await self._interpret(None, records)
            if interpretation is None:
                return
            assert self._engine is not None
            try:
                value = await Drive(interpretation.forward(), self._engine)
                if self._engine.cut:
                    await self._engine.judge_cut()
            except Exception as error:
                await self._unwind(interpretation, error)
            except anyio.get_cancelled_exc_class():
                if self._host.closing:
                    with anyio.CancelScope(shield=True):
                        await self._engine.shut_down()
                    raise
                # Nobody cancelled this task: the body awaited something that was cancelled elsewhere.
                await self._unwind(interpretation, RunError("the body awaited something that was cancelled"))
            else:
                await self._returned(interpretation, value)
        except Suspended:
            await self._suspended()

    async def _interpret(self, inputs: tuple[Any, ...] | None, records: Sequence[RunRecord]) -> Interpretation | None:
        """Set up engine and interpretation; park a run for which that cannot be done, and return None."""
        definition = self.definition
        engine = self._engine = LocalEngine(self.journal, self._host, records, definition.name)
        try:
            if inputs is None:
                started = records[0]
                assert isinstance(started, Started)
                inputs = definition.starter.input.decode(started.input, f"the input of run {self.journal.id!r}")
            if isinstance(definition.target, type) and self._instance is None:
                arguments = {p.name: self._host.provide(p.annotation) for p in definition.constructor}
                self._instance = definition.target(**arguments)
            wanted = [p for p in definition.starter.providers if p.annotation is not Run]
            provided = {p.name: self._host.provide(p.annotation) for p in wanted}
        except Exception as error:
            await self._park(f"run {self.journal.id!r} of {definition.name!r} cannot begin here: {error}", error)
            return None
        context = Context(engine, self._host.current_task, self._instance, provided)
        return definition.interpret(context, inputs)

    def _detach(self) -> None:
        """The caller has gone: go on from the journal in a task of flowlet's own, or stop if all do."""
        if self.state != "running" or self._is_aside:
            return
        self._is_aside = True
        self._host.spawn(self._stop if self._host.closing else self.go_on, self)

    async def _stop(self) -> None:
        """See the steps end that the caller has left; the task's end tells who waits."""
        if self._engine is not None:
            await self._engine.shut_down()

    async def go_on(self) -> None:
        """Wait until nothing of the old attempt runs, then replay."""
        if self._engine is not None:
            await self._engine.shut_down()
            await self._engine.settle()
        try:
            if self._engine is not None:
                with contextlib.suppress(Suspended):
                    await self._engine.keep_finished()
            if self.journal.create is not None:
                await self.journal.commit()
            records = await self._host.reload(self)
        except StoreUnavailable as error:
            self._leave("left", error)
            return
        except (DecodeError, RunNotFound) as error:
            await self._park(f"the history of run {self.journal.id!r} cannot be read: {error}", error)
            return
        if records is not None:
            await self.run_aside(records)
        elif self.state == "running":
            self._leave("left", LeaseLost(f"run {self.journal.id!r} was taken over by another process"))

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
    async def _returned(self, interpretation: Interpretation, value: bytes) -> None:
        engine = self._engine
        assert engine is not None
        decided = engine.decided()
        if decided is not None:  # the history says that it failed here before; that decision stands
            await self._unwind(interpretation, rebuild_failure(_failure_codec.decode(decided, "a recorded failure")))
            return
        engine.check_end()
        await self._end("completed", ("completed", self._host.now(), value, None, (), ()))
        self.value = value
        self._leave("ended", None)

    async def _unwind(self, interpretation: Interpretation, error: Exception) -> None:
        log = self._host.log
        if log.active and interpretation.undoes:
            log.info("run.compensating", run_id=self.journal.id, definition=self.definition.name, error=repr(error))
        assert self._engine is not None
        if self._engine.cut:
            await self._engine.settle_cut()
        await self._failed(error, await Drive(interpretation.backward(error), self._engine))

    async def _failed(self, error: Exception, undone: Undone) -> None:
        engine = self._engine
        assert engine is not None
        if engine.cut:
            await engine.settle_cut()
        engine.check_end()
        status: EndStatus = "compensation_failed" if undone.failed else "compensated" if undone.steps else "failed"
        failures = tuple(describe_failure(e) for e in undone.errors)
        await self._end(status, (status, self._host.now(), None, engine.describe(error), undone.failed, failures))
        self._leave("ended", attach(error, undone.failed, undone.errors))
        if undone.failed:
            self._host.log.error(
                "run.compensation_failed", run_id=self.journal.id, definition=self.definition.name, steps=undone.failed
            )

    async def _end(self, status: EndStatus, fields: tuple[Any, ...]) -> None:
        engine = self._engine
        assert engine is not None
        await engine.settle()
        if self.journal.trouble is not None:
            raise Suspended
        await self.journal.end(status, pack(("z", *fields)))
        self.status = status
        log = self._host.log
        if log.active:
            log.info(f"run.{status}", run_id=self.journal.id, definition=self.definition.name)

    async def _suspended(self) -> None:
        """Work out why the run cannot go on here, and leave it in a state that can be resumed."""
        trouble = self.journal.trouble
        if self._engine is not None:
            await self._engine.shut_down()
        if isinstance(trouble, HistoryMismatch):
            await self._park(str(trouble))
        elif trouble is not None:
            self._host.log.warning(
                "run.left", run_id=self.journal.id, definition=self.definition.name, error=str(trouble)
            )
            self._leave("left", trouble)
        else:
            self._leave("left", RunError(f"run {self.journal.id!r} goes on when its Flowlet is entered again"))

    async def _park(self, reason: str, error: Exception | None = None) -> None:
        self.journal.trouble = None
        self.journal.pending[:] = [pack(("p", reason, self._host.now()))]
        try:
            await self.journal.park()
        except Suspended:
            self._leave("left", self.journal.trouble)
            return
        self._host.log.error("run.parked", run_id=self.journal.id, definition=self.definition.name, reason=reason)
        self.status = "parked"
        parked = RunParked(reason)
        parked.__cause__ = error
        self._leave("parked", parked)

    def _leave(self, state: State, error: BaseException | None) -> None:
        self.state = state
        self.error = error
        if error is not None and error.__traceback__ is not None and error.__traceback__.tb_frame.f_code in _OWN:
            error.__traceback__ = error.__traceback__.tb_next  # its first frame holds this object
        self._host.finished(self)
        self.done.set()

    def broke(self, error: BaseException) -> None:
        """Take note of an error in flowlet's own code: the run is left as its journal has it."""
        self._host.log.error("run.broken", run_id=self.journal.id, definition=self.definition.name, error=repr(error))
        self._leave("left", error)


_OWN = (Execution.run_here.__code__, Execution.run_aside.__code__)


def attach(error: Exception, failed: Sequence[str], errors: Sequence[Exception]) -> Exception:
    """Hang the failed compensations under the error that started the rollback, as its last cause."""
    if not failed:
        return error
    end: BaseException = error
    seen = {id(end)}
    while end.__cause__ is not None and id(end.__cause__) not in seen:
        end = end.__cause__
        seen.add(id(end))
    end.__cause__ = CompensationFailed(failed, errors)
    return error


def ended_error(record: Ended) -> Exception:
    """Rebuild what the run's caller is told of an end that is no completion."""
    error: Exception
    if record.error is None:
        error = FlowletError(f"the run ended as {record.status}")
    else:
        error = rebuild_failure(record.error)
    return attach(error, record.failed, [rebuild_failure(f) for f in record.errors])
