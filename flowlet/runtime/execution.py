"""One run that this process executes, from its start or claim to its end.

Law: a run is executed by one task at a time: the caller's, as long as the caller waits, or one of
flowlet's own. A cancelled caller detaches, and the run goes on from its journal. Compensations always
run in a task of flowlet's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import CodeType
from typing import Any, ClassVar

import anyio

from flowlet.core.annotations import Parameter
from flowlet.core.definitions import Context, Interpretation, Undone
from flowlet.core.engine import Decided, Suspended
from flowlet.core.run import Run
from flowlet.core.run_records import RunRecord, Started
from flowlet.errors import DecodeError, LeaseLost, RunError, RunNotFound, StoreUnavailable
from flowlet.runtime.drive import Drive
from flowlet.runtime.engine import LocalEngine
from flowlet.runtime.execution_ends import Ending
from flowlet.runtime.steps import StepRunner


class Execution(Ending):
    """One run in this process.

    Attributes:
        engine_class, runner_class: what its engine is made of.
    """

    engine_class: ClassVar[type[LocalEngine]] = LocalEngine
    runner_class: ClassVar[type[StepRunner]] = StepRunner

    # -------------------------------------------------------------- in the caller's task
    async def run_here(self, inputs: tuple[Any, ...], records: Sequence[RunRecord]) -> Any:
        """Execute the run in the caller's task; if the caller is cancelled, the run goes on without it."""
        try:
            is_ready = not self.definition.takes_provided or await self._make_provided()
            interpretation = self._interpret(inputs, records) if is_ready else None
            if interpretation is None:
                await self._park_unbegun()
                return
            assert self._engine is not None
            try:
                value = await self._go_forward(interpretation)
                await self._end_returned(value)
            except Exception as error:
                engine = self._engine
                if interpretation.undoes or engine.committed or engine.order is not None:
                    await self._unwind_aside(interpretation, error)
                else:
                    await self._failed(error, Undone())
            except Decided as decision:
                await self._unwind_aside(interpretation, decision.error)
        except Suspended:
            try:
                await self._suspended()
                await self.done.wait()
            except BaseException:  # the clauses below do not see what is raised in this one
                self._detach()
                raise
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
    async def run_aside(self, records: Sequence[RunRecord], *, resumed: bool = False) -> None:
        """Execute the run in this task, which is flowlet's own."""
        try:
            is_ready = not self.definition.takes_provided or await self._make_provided()
            interpretation = self._interpret(None, records, resumed=resumed) if is_ready else None
            if interpretation is None:
                await self._park_unbegun()
                return
            assert self._engine is not None
            self._engine.in_own_task = True
            try:
                value = await self._go_forward(interpretation)
                await self._end_returned(value)
            except Exception as error:
                await self._unwind(interpretation, error)
            except Decided as decision:
                await self._unwind(interpretation, decision.error)
            except anyio.get_cancelled_exc_class():
                if self._host.closing:
                    with anyio.CancelScope(shield=True):
                        await self._engine.shut_down()
                    raise
                # Nobody cancelled this task: the body awaited something that was cancelled elsewhere.
                await self._unwind(interpretation, RunError("the body awaited something that was cancelled"))
        except Suspended:
            await self._suspended()

    async def _go_forward(self, interpretation: Interpretation) -> bytes:
        """Run the body, in whatever task this is; return its encoded result.

        Raises:
            Exception: what the body raised.
            Decided: it was told to unwind, and has not ended before that.
        """
        engine = self._engine
        assert engine is not None
        value: bytes | None = None
        breaker = self._breaker = self._host.make_breaker()
        try:
            with breaker:
                body = interpretation.forward()
                try:
                    waited = body.send(None)
                except StopIteration as stop:  # most bodies wait for nothing but their steps, and these for nothing
                    value = stop.value
                else:
                    self._host.limit(self)
                    value = await Drive(body, waited, engine, breaker)
        except (Exception, Decided, Suspended):
            self._breaker = None
            if breaker.is_cut:
                await breaker.absorb()
            raise
        finally:
            self._breaker = None
        if breaker.is_cut:
            await breaker.absorb()
        if not engine.is_straight:
            order = engine.decided() if value is None else engine.decision
            if order is not None:
                raise Decided(order)
        if value is None:  # it was cut as a pivot returned, behind which that must not be
            engine.reread()
        if engine.cut:
            await engine.judge_cut()
        return value

    async def _make_provided(self) -> bool:
        """Have made what the body or the class takes; where that fails, set ``error`` and return False."""
        definition, providers = self.definition, self._host.providers
        if providers is not None:
            try:
                await providers.make(p.annotation for p in (*definition.constructor, *definition.starter.providers))
            except Exception as error:
                self.error = error
                return False
        return True

    def _interpret(
        self, inputs: tuple[Any, ...] | None, records: Sequence[RunRecord], *, resumed: bool = False
    ) -> Interpretation | None:
        """Set up engine and interpretation; return None, and set ``error``, where that cannot be done."""
        definition = self.definition
        started = records[0]
        assert isinstance(started, Started)
        self._parent = started.parent
        try:
            if isinstance(definition.target, type) and self._instance is None:
                arguments = {p.name: self._host.provide(p.annotation) for p in definition.constructor}
                self._instance = definition.target(**arguments)
        except Exception as error:
            self.error: BaseException | None = error
            return None
        journal, host = self.journal, self._host
        runner = self.runner_class(journal, host, definition.name, records[0].at, records[0].at)
        engine = self._engine = self.engine_class(
            journal.id, journal, host, definition, runner, self._instance, resumed
        )
        if len(records) > 1:
            engine.repeat(records)
        if self._order is not None:
            engine.order = self._order
        if self._signals:
            engine.hear_of(self._signals)
        try:
            if inputs is None:
                decoded: tuple[Any, ...] = definition.starter.input.decode(
                    started.input, f"the input of run {self.journal.id!r}"
                )
                inputs = decoded
            provided = self._provide(definition.starter.providers) if definition.starter.providers else {}
        except Exception as error:
            self.error = error
            return None
        context = Context(engine, self._host.current_task, self._instance, provided, self._host.graph_limits)
        return definition.interpret(context, inputs)

    def _provide(self, parameters: Sequence[Parameter]) -> dict[str, Any]:
        return {p.name: self._host.provide(p.annotation) for p in parameters if p.annotation is not Run}

    async def _park_unbegun(self) -> None:
        """Park a run for which engine and interpretation could not be set up."""
        error = self.error
        assert isinstance(error, Exception)
        await self._park(f"run {self.journal.id!r} of {self.definition.name!r} cannot begin here: {error}", error)

    def _detach(self) -> None:
        """The caller has gone: go on from the journal in a task of flowlet's own, or stop if all do."""
        if self.state != "running" or self._is_aside:
            return
        self._is_aside = True
        if self._engine is not None and self._engine.order is None and not self._engine.committed:
            # Cut off with the run that waits for it, it is told in a moment, and is not to begin anything until then.
            self._engine.order = self._host.order_from_above(self.journal.id)
        self._host.spawn(self._stop if self._host.closing else self.go_on, self)

    async def _stop(self) -> None:
        """See the steps end that the caller has left; the task's end tells who waits."""
        if self._engine is not None:
            await self._engine.shut_down()

    async def go_on(self) -> None:
        """Wait until nothing of the old attempt runs, then replay."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.shut_down()
            await engine.settle()
            self._order = engine.order
        try:
            if engine is not None:
                with contextlib.suppress(Suspended):
                    await engine.keep_finished()
            if self.journal.create is not None:
                await self.journal.commit()
            records = await self._host.reload(self)
        except StoreUnavailable as error:
            self._leave("left", error)
            return
        except (DecodeError, RunNotFound) as error:
            reason = f"the history of run {self.journal.id!r} cannot be read: {error}"
            await self._park(reason, error, is_readable=False)
            return
        if records is not None:
            await self.run_aside(records, resumed=True)
        elif self.state == "running":
            self._leave("left", LeaseLost(f"run {self.journal.id!r} was taken over by another process"))

    async def show(self) -> None:
        """Put a run into the store that nobody could see so far, beside its step that is under way."""
        if self._engine is not None:
            self._engine.save_soon()
            await self._engine.settle()

    @property
    def frames(self) -> tuple[CodeType, ...]:
        """The code whose frames hold this object, in the traceback of what a body raises."""
        return FRAMES


FRAMES = (Execution.run_here.__code__, Execution.run_aside.__code__, Execution._go_forward.__code__)
