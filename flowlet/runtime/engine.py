"""The local engine: executes what interpreters ask for, over any `Store`.

Law: this is the face that an interpreter sees; what it repeats is in `engine_replay`, what it executes in
`engine_effects`. A sequence of single steps costs no task: `perform` has a path of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from time import perf_counter

from flowlet.core.current import run_context
from flowlet.core.engine import (
    Decided,
    Pending,
    StepCall,
    StepCancelled,
    StepWaits,
    Suspended,
    cut_off,
)
from flowlet.core.run_records import (
    Attention,
)
from flowlet.core.sizes import ALWAYS_FITS
from flowlet.runtime.engine_effects import EffectsEngine
from flowlet.runtime.pendings import LocalPending, Wait
from flowlet.runtime.steps import Host

# Looked up once: Python makes an object for each method of an imported thing that is called.
_enter, _leave = run_context.set, run_context.reset


class LocalEngine(EffectsEngine):
    """The engine of one run in this process.

    Attributes:
        plain_up_to: bytes of input that the plainest steps may have to be executed right in `perform`.
    """

    plain_up_to: int = ALWAYS_FITS

    async def perform(self, call: StepCall, /) -> bytes:
        """Start one step and wait for its encoded result."""
        if self._open or self._replay or self._doubt:
            if self.over is not None:
                raise Decided(self.over)
            if self.cut:
                await self.judge_cut()
            return await self._perform_pending(self.step(call))
        self._starts = start = self._starts + 1
        host, journal, definition = self._host, self.journal, call.definition
        began = perf_counter()
        if (
            began > host.deadline
            or host.closing
            or (journal.pending and host.durable)
            or journal.trouble is not None
            or self.saving is not None
            or self.order is not None
        ):
            await self._open_way(start, call)
            began = perf_counter()
        if definition.special:
            return await self._perform_pending(self._start(start, call))
        try:
            if definition.plain and len(call.input) <= self.plain_up_to:
                # The plain case in one piece: every call saved here is paid by each step of each run.
                token = _enter(call)
                try:
                    result = await definition.function(*call.args)
                except Exception as error:
                    _leave(token)
                    value = await self._runner.fail(start, call, began, began, error)
                except BaseException:
                    _leave(token)
                    raise
                else:
                    _leave(token)
                    value = self._runner.record_value(start, call, began, result)
            else:
                value = await self._runner.attempt(start, call, ())
        except StepWaits as waits:
            self._open[start] = pending = LocalPending(start, call)
            self._set_at_rest(pending, waits)
            return await self._perform_pending(pending)
        except (Exception, Suspended):
            raise
        except BaseException:
            self._open[start] = pending = LocalPending(start, call)
            pending.launched = True
            self._was_cut()
            raise
        if definition.compensation is not None:
            self._done.append((call, value))
        if self.order is not None and not definition.pivot:  # told meanwhile: the body goes no further
            self._obey()
        return value

    async def _open_way(self, start: int, call: StepCall) -> None:
        """Let a step begin whose run has records that are not durable, or is not to go on.

        Raises:
            Decided, Suspended: it must not begin.
        """
        if self.over is not None:
            self._starts -= 1
            raise Decided(self.over)
        try:
            await self._before_effect()
        except Decided:
            self._start(start, call)
            raise
        except (Exception, Suspended):
            raise
        except BaseException:  # cut off as it was about to begin: it has its place in the order of starts
            self._start(start, call)
            self._was_cut()
            raise

    def _was_cut(self) -> None:
        """Take note that a cancellation has passed through a wait for steps."""
        self.cut: bool = True
        if self.over is None:
            self.over: Exception | None = self.ordered

    async def _perform_pending(self, pending: LocalPending) -> bytes:
        await self.first((pending,))
        if isinstance(pending.error, StepCancelled):  # nobody asks for a step that it waits for to be stopped
            raise cut_off(pending.key)
        if pending.launched and self.order is not None and not pending.call.definition.pivot:
            self._obey()
        return await self.value(pending)

    def step(self, call: StepCall, /) -> LocalPending:
        """Start a step; its effect begins when the interpreter waits."""
        if self.over is not None:
            raise Decided(self.over)
        self._starts += 1
        return self._start(self._starts, call)

    def _start(self, start: int, call: StepCall) -> LocalPending:
        pending = self._open[start] = LocalPending(start, call)
        self._fresh.append(pending)
        return pending

    def cancel(self, pending: Pending, /) -> None:
        """Ask for a pending to be stopped."""
        assert isinstance(pending, (LocalPending, Wait))
        if pending.ended:
            return
        pending.stopping = self._is_stopping = True
        if isinstance(pending, LocalPending) and not pending.call.definition.at_most_once:
            pending.cancel()

    async def first(self, pending: Collection[Pending], /) -> Sequence[Pending]:
        """Wait until at least one has ended."""
        while True:
            landed = self._landed
            if len(landed) == 1 and landed[0] in pending:
                self._landed = []
                return landed
            if landed and (done := [p for p in landed if p in pending]):
                self._landed = [p for p in landed if p not in pending]
                return done
            if self._replay:
                self._forget_patches()
            if self._replay:
                if isinstance(self._replay[0], Attention):
                    await self._ask_recorded(self._replay[0])
                else:
                    self._deliver_recorded()
            elif self._is_stopping:
                await self._stop_unlaunched()
            elif not (self._waits and self._take_signals()) and not self._rouse_rested():
                if self.cut:
                    await self.judge_cut()
                if self._inbox and self._take_plainly():
                    continue
                try:
                    await self._work()
                except (Exception, Suspended):
                    raise
                except BaseException:
                    self._was_cut()
                    raise

    async def value(self, pending: Pending, /) -> bytes:
        """Return the encoded result of one that has ended, or raise what it raised."""
        assert isinstance(pending, (LocalPending, Wait))
        if pending.error is not None:
            raise pending.error
        return pending.value

    @property
    def host(self) -> Host:
        """What executes the run in this process."""
        return self._host
