"""Runs of a `Flowlet` that has observers: the same execution, told at each point.

Law: nothing is decided here. Each method tells what its own original does, before and after, and raises what that
raises. Runs without observers are made of the originals, which know nothing of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from types import CodeType
from typing import Any

from flowlet.core.definitions import Interpretation
from flowlet.core.engine import Decided, StepCall, StepWaits
from flowlet.core.run_records import AttemptErred, RunRecord, Started, StuckStatus
from flowlet.errors import Conflict, LeaseLost
from flowlet.observing import AttemptBegan, AttemptEnded, RunBegan, RunLeft, StepBegan, StepEnded
from flowlet.observing import LeaseLost as LeaseLostEvent
from flowlet.runtime.engine import LocalEngine
from flowlet.runtime.engine_lanes import TaskSaver
from flowlet.runtime.execution import FRAMES, Execution
from flowlet.runtime.execution_ends import State
from flowlet.runtime.observing import Observing
from flowlet.runtime.pendings import LocalPending
from flowlet.runtime.steps import Saver, StepRunner


class ObservedRunner(StepRunner):
    """Executes steps, and tells of them."""

    async def attempt(
        self,
        start: int,
        call: StepCall,
        past: Sequence[AttemptErred],
        saver: Saver | None = None,
        records: list[bytes] | None = None,
    ) -> bytes:
        """Execute a step with its retries and timeout; see `StepRunner.attempt`."""
        observing = _observing(self._host)
        run_id, key, name = self._journal.id, call.key, call.definition.name
        observing.tell(StepBegan(run_id=run_id, definition=self._definition, step=key, name=name))
        began = perf_counter()
        outcome: Any = "stopped"
        problem: BaseException | None = None
        try:
            value = await super().attempt(start, call, past, saver, records)
            outcome = "completed"
            return value
        except StepWaits:
            outcome = "waiting"
            raise
        except Decided:
            raise
        except Exception as error:
            outcome, problem = "failed", error
            raise
        finally:
            observing.tell(
                StepEnded(
                    run_id=run_id,
                    definition=self._definition,
                    step=key,
                    name=name,
                    outcome=outcome,
                    attempts=call.attempt,
                    seconds=perf_counter() - began,
                    error=problem,
                )
            )
            del problem  # which holds this frame

    async def _once(self, start: int, call: StepCall, began: float, saver: Saver) -> Any:
        observing = _observing(self._host)
        run_id, key, name, number = self._journal.id, call.key, call.definition.name, call.attempt
        attempt = AttemptBegan(run_id=run_id, definition=self._definition, step=key, name=name, attempt=number)
        observing.tell(attempt)
        problem: BaseException | None = None
        try:
            with observing.around(attempt):
                return await super()._once(start, call, began, saver)
        except BaseException as error:
            problem = error
            raise
        finally:
            observing.tell(
                AttemptEnded(
                    run_id=run_id,
                    definition=self._definition,
                    step=key,
                    name=name,
                    attempt=number,
                    seconds=perf_counter() - began,
                    error=problem,
                )
            )
            del problem


class ObservedEngine(LocalEngine):
    """The engine of an observed run: all of its steps are executed by its runner, which tells of them."""

    plain_up_to: int = -1

    async def _attempt_plainly(self, pending: LocalPending, records: list[bytes]) -> bytes:
        return await self._runner.attempt(pending.start, pending.call, (), TaskSaver(self._post, pending), records)


class ObservedExecution(Execution):
    """One observed run in this process."""

    _seen: RunBegan | None = None
    _since: float = 0.0
    _is_news: bool = True

    def _interpret(
        self, inputs: tuple[Any, ...] | None, records: Sequence[RunRecord], *, resumed: bool = False
    ) -> Interpretation | None:
        if self._seen is None:
            started, definition = records[0], self.definition
            assert isinstance(started, Started)
            self._since = perf_counter()
            self._seen = RunBegan(
                run_id=self.journal.id,
                definition=definition.name,
                version=definition.version,
                kind=definition.kind,
                resumed=resumed,
                records=len(records),
                parent=started.parent,
                trace=started.trace,
            )
            _observing(self._host).tell(self._seen)
        return super()._interpret(inputs, records, resumed=resumed)

    async def _go_forward(self, interpretation: Interpretation) -> bytes:
        assert self._seen is not None
        with _observing(self._host).around(self._seen):
            return await super()._go_forward(interpretation)

    async def put_back(self, status: StuckStatus, last: RunRecord | None) -> None:
        """Leave the run to its operator as before, of which nobody is told again."""
        self._is_news = False
        await super().put_back(status, last)

    def _leave(self, state: State, error: BaseException | None) -> None:
        super()._leave(state, error)
        observing, definition, id = _observing(self._host), self.definition, self.journal.id
        if state == "left" and isinstance(error, (Conflict, LeaseLost)):
            observing.tell(LeaseLostEvent(kind="run", id=id))
        if self._seen is None and not (state == "parked" and self._is_news):
            return  # it has ended elsewhere before anything was done here
        observing.tell(
            RunLeft(
                run_id=id,
                definition=definition.name,
                kind=definition.kind,
                status="left" if state == "left" else self.status,
                ended=state == "ended",
                seconds=perf_counter() - self._since if self._seen is not None else 0.0,
                error=error,
            )
        )

    @property
    def frames(self) -> tuple[CodeType, ...]:
        """The code whose frames hold this object, in the traceback of what a body raises."""
        return _FRAMES


ObservedExecution.engine_class = ObservedEngine
ObservedExecution.runner_class = ObservedRunner

_FRAMES = (*FRAMES, ObservedExecution._go_forward.__code__)


def _observing(host: Any) -> Observing:
    # A step that outlives its Flowlet may end when that has been entered again without observers.
    found: Observing | None = host.log.observing
    return found or Observing((), host.log)
