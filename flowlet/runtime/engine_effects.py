"""The half of the local engine that has steps executed, and sees them end.

Law: the interpreter's task is the only one that touches the journal. Effects start only when what was recorded is
durable and the lease holds. A step that is the only thing the run waits for runs inline, without a task; several
run in tasks that post their outcome to the engine's inbox, from which it enters the journal in the order of
completion.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from time import perf_counter
from typing import Any, NoReturn

import anyio

from flowlet.core.codec import pack
from flowlet.core.current import run_context
from flowlet.core.engine import (
    COMPENSATING,
    Decided,
    Question,
    StepCancelled,
    Suspended,
    cut_off,
)
from flowlet.core.run_records import (
    AttemptErred,
    Attention,
)
from flowlet.core.sizes import ALWAYS_FITS
from flowlet.errors import RunError, StepTimeout
from flowlet.runtime.engine_replay import ReplayingEngine, Reread, Waiting
from flowlet.runtime.journal import Perform
from flowlet.runtime.lanes import Lanes
from flowlet.runtime.pendings import LocalPending, Notice, SignalWait
from flowlet.runtime.replay import name_item
from flowlet.runtime.tasks import Latch, Task, check_cancelled, spawn
from flowlet.store import Signal


class EffectsEngine(ReplayingEngine):
    """An engine without its face."""

    async def settle_cut(self) -> None:
        """Stop the steps that a wait was cut off from, and record that they were stopped.

        Raises:
            Suspended: the journal knows more of them than is known here.
        """
        await self._halt()
        await self._halt_children()
        await self._end_halted()

    async def settle_order(self) -> None:
        """Record that the run was told to unwind, and right behind it what became of what was under way.

        Raises:
            Suspended: the journal knows more of that than is known here, or a pivot among it has returned.
        """
        order = self.order
        assert order is not None
        await self._halt()
        if not self.forced and any(p.call.definition.pivot and p.start in self._ended() for p in self._open.values()):
            self.reread()
        await self._halt_children()
        self.order, self.interrupted, self.committed = None, True, False
        self.journal.pending.append(pack(("i", self._stamp(), self.describe(order))))
        await self._end_halted()
        self.journal.status = COMPENSATING

    def reread(self) -> NoReturn:
        """Leave what is known here, and go on from the journal."""
        self.journal.trouble = Reread("its journal knows more")
        raise Suspended

    async def _halt(self) -> None:
        """Stop what is under way and see it end."""
        for pending in self._open.values():
            pending.stopping = True
        await self.shut_down()
        await self.settle()
        if self.journal.unsure and not await self.journal.catch_up():
            self.reread()

    async def _halt_children(self) -> None:
        """Wait until what stopped steps have set going has ended; what is known until then is saved before."""
        ended = self._ended()
        halted = [p for p in self._open.values() if p.call.definition.halt is not None and p.start not in ended]
        if halted:
            await self._take_ended()
            await self._save_all()
        for pending in halted:
            await self._see_halted(pending)

    async def _see_halted(self, pending: LocalPending) -> None:
        """Wait until what a stopped step has set going has ended: before that, nothing is undone."""
        halt = pending.call.definition.halt
        if halt is not None:
            await halt(pending.call.run())

    def _ended(self) -> dict[int, Notice]:
        """Return how steps have ended whose end the interpreter has not seen, by start."""
        return {n.pending.start: n for n in self._inbox or () if n.value is not None or _is_known(n)}

    async def _take_ended(self) -> None:
        for notice in self._ended().values():  # in the order in which they have ended
            if not notice.pending.ended:
                await self._take(notice)

    async def _end_halted(self) -> None:
        await self._take_ended()
        for pending in list(self._open.values()):
            self._stop(pending)
        for wait in list(self._waits.values()):
            self._stop_wait(wait)
        if self._inbox is not None:
            self._inbox.clear()
        self._fresh, self._landed, self.cut = [], [], False

    async def judge_cut(self) -> NoReturn:
        """Find out why a wait for steps was cut off: the task is cancelled, or the body went on without them.

        Raises:
            RunError: the body has put a timeout or cancel scope around them, which a replay cannot repeat.
        """
        await check_cancelled()
        keys = [p.key for p in self._open.values()]
        await self.settle_cut()
        raise cut_off(*keys)

    async def shut_down(self) -> None:
        """Cancel and await the tasks of steps, after the interpreter has gone."""
        if self._lanes is not None:
            self._lanes.queue.clear()
        running = [p for p in self._open.values() if p.is_running]
        for pending in running:
            # What must not be repeated is better waited for: cut off, nobody would know what it did.
            if self._host.stopping or not pending.call.definition.at_most_once:
                pending.cancel()
        for pending in running:
            if pending.task is not None:
                await self._see_end(pending.task)

    async def _see_end(self, task: Task) -> None:
        try:
            await task.done.wait()
        except BaseException:
            if not self._host.stopping:
                raise
            task.cancel()  # its time is over while it is waited for: nothing of the run outlives it
            with anyio.CancelScope(shield=True):
                await task.done.wait()
            raise

    async def keep_finished(self) -> None:
        """After `shut_down`, save what the interpreter had no time to, and the steps it has not seen return.

        Only those that returned: an error may be what came of being cancelled.
        """
        journal = self.journal
        if journal.pending or journal.unsure:
            await journal.catch_up()
        journal.pending.extend(
            n.record
            for n in self._inbox or ()
            if n.record and not n.pending.ended and (n.value is not None or _is_known(n))
        )
        if journal.pending and journal.trouble is None:
            await journal.commit()

    def save_soon(self) -> None:
        """Make what is recorded durable while the body waits for something that is not flowlet's."""
        if self.journal.pending and not self.journal.busy and self.saving is None:
            self.saving = spawn(self._save, self._not_saved)

    async def _save(self) -> None:
        try:
            await self.journal.commit()
        except Suspended:
            pass  # `journal.trouble` is set; the interpreter meets it at its next step
        finally:
            self.saving = None

    def _not_saved(self, error: BaseException) -> None:
        self._host.log.error("run.save_failed", run_id=self.run_id, error=repr(error))

    async def settle(self) -> None:
        """Wait for a save that is under way, so that the journal has one writer again."""
        while self.saving is not None:
            await self.saving.done.wait()

    async def _before_effect(self) -> None:
        """Let nothing happen before what was recorded is durable, and nothing without a lease."""
        self._obey()
        if self.journal.pending or self.saving is not None or self.journal.trouble is not None:
            await self._save_all()
        self._runner.check_leave()

    async def _save_all(self) -> None:
        await self.settle()
        if self.journal.trouble is not None:
            raise Suspended
        if self.journal.pending:
            await self.journal.commit()

    async def _work(self) -> None:
        """Begin what was started, then take what steps' tasks say, or wait for that."""
        # What has ended goes to the interpreter first, one by one as a replay does it; all of it is one commit.
        if self._fresh and not self._inbox:
            await self._before_effect()
            stuck = [p for p in self._fresh if p.start in self._begun and not p.ended]
            fresh = [p for p in self._fresh if p.start not in self._begun and not p.ended]
            if stuck and len(stuck) == len(self._open):
                await self._ask(stuck[0])
                return
            self._fresh = stuck
            if len(fresh) == 1 == len(self._open) and not self._waits and not fresh[0].call.definition.at_most_once:
                await self._run_inline(fresh[0])
                return
            if fresh:
                await self._launch(fresh)
        if not self._inbox:
            await self._save_all()
            await self._hear()
        if self._inbox:
            await self._take(self._inbox.popleft())

    async def _hear(self) -> None:
        """Wait for a message of a step's task, or for a signal; leave the run if only a signal can come.

        Raises:
            Suspended: only that, and it may be long.
        """
        if not self._open:
            self._obey()
            self.journal.trouble = Waiting()
            raise Suspended
        while not self._inbox and not self._has_news:
            self._bell = anyio.Event()
            await self._bell.wait()
        self._has_news = False

    def hear_of(self, signals: Sequence[Signal]) -> None:
        """Take note of what is in the run's inbox."""
        self.signals = signals
        if self._waits:
            self._has_news = True
            if self._bell is not None:
                self._bell.set()

    def _find_signal(self) -> tuple[SignalWait, Signal] | None:
        """Return the first signal that something waits for, with the first that does."""
        for signal in self.signals if self._waits else ():
            if signal.number not in self._taken:
                wait = next((w for w in self._waits.values() if w.topic == signal.topic), None)
                if wait is not None:
                    return wait, signal
        return None

    @property
    def has_signal(self) -> bool:
        """Whether there is a signal for something that waits."""
        return self._find_signal() is not None

    def _take_signals(self) -> bool:
        """Give a signal to what waits for it; tell whether there was one."""
        found = None if self.ordered is not None else self._find_signal()
        if found is not None:
            self._take_signal(*found)
        return found is not None

    def _take_signal(self, wait: SignalWait, signal: Signal) -> None:
        journal = self.journal
        journal.pending.append(
            pack(("g", wait.start, wait.key, wait.topic, self._stamp(), signal.number, signal.payload))
        )
        self._taken = {*self._taken, signal.number}
        kept = [s.number for s in self.signals if s.number not in self._taken]
        journal.consumed = min(kept) - 1 if kept else max(s.number for s in self.signals)
        journal.status = "running"
        self._end_wait(wait, signal.payload, None)

    async def _receive(self) -> Notice:
        """Wait for the next message of a step's task."""
        assert self._inbox is not None
        while not self._inbox:
            self._bell = anyio.Event()
            await self._bell.wait()
        return self._inbox.popleft()

    async def _launch(self, fresh: Sequence[LocalPending]) -> None:
        """Start tasks for steps."""
        if self._inbox is None:
            self._inbox = deque()
        intents = [p for p in fresh if p.call.definition.at_most_once]
        if intents:
            for pending in intents:
                pending.call.spent += self._intents.get(pending.start, 0)
                pending.call.begin(pending.call.spent + 1)
            self.journal.pending.extend(self._runner.pack_began(p.start, p.call) for p in intents)
            await self.journal.commit()
            # What is on record as begun begins first, all of it: nobody could tell that it had not.
            fresh = [*intents, *(p for p in fresh if p not in intents)]
        jobs = [_StepJob(self, pending, self._past(pending)) for pending in fresh]
        for pending in fresh:
            pending.call.doubtful |= self._doubt
        if self._lanes is None:
            self._lanes = Lanes(self._lane_broke)
        self._told_at = self._runner.now
        self._lanes.queue.extend(jobs)
        self._lanes.go(len(intents) or 1)

    async def _run_inline(self, pending: LocalPending) -> None:
        pending.launched = True
        pending.call.doubtful |= self._doubt
        try:
            value = await self._runner.attempt(pending.start, pending.call, self._past(pending))
        except Exception as error:
            self._doubt = False
            self._end(pending, b"", error)
        else:
            self._doubt = False
            self._end(pending, value, None)

    async def _ask(self, pending: LocalPending) -> None:
        """Have the operator say what became of a step that must not be repeated unawares."""
        verdict = await self.attend(
            Question(
                status="parked",
                reason=f"step {pending.key!r} runs at most once, and was cut off before its outcome was on record: "
                "nobody knows whether it did anything. Find out, then skip() it with its result if it did, or "
                "resume() to execute it if it did not, or compensate()",
                steps=(pending.key,),
                errors=(RunError(f"nobody knows what became of step {pending.key!r}"),),
            )
        )
        if verdict.action == "skip":
            self._end(pending, _NOTHING if verdict.value is None else verdict.value, None)

    async def _ask_recorded(self, question: Attention) -> None:
        """Repeat a question about a step that is open."""
        for pending in self._open.values():
            if question.status == "parked" and question.steps == (pending.key,):
                await self._ask(pending)
                return
        self._mismatch("a wait for a step", name_item(question))

    async def _stop_unlaunched(self) -> None:
        """End what was cancelled before it began; it needs no effect to be stopped."""
        self._is_stopping = False
        # What has begun and must not be repeated is not ended by that: nobody knows yet what it did.
        stopped = [p for p in self._open.values() if p.stopping and not p.launched and p.start not in self._begun]
        for pending in stopped:
            await self._see_halted(pending)
            self._stop(pending)
        waits = [w for w in self._waits.values() if w.stopping]
        for wait in waits:
            self._stop_wait(wait)

    def _take_plainly(self) -> bool:
        """Take the next message at once if it is that of a step which has returned; tell whether it is."""
        assert self._inbox is not None
        notice = self._inbox[0]
        if notice.value is None or notice.error is not None or notice.seen is not None or notice.pending.ended:
            return False
        self._inbox.popleft()
        self.journal.pending.append(notice.record)
        self._told_at = notice.at
        self._doubt = False
        self._end(notice.pending, notice.value, None)
        return True

    async def _take(self, notice: Notice) -> None:
        pending = notice.pending
        if pending.ended:  # by its transaction, from which its task then comes back
            return
        if notice.suspended:  # the step cannot go on here, so the run cannot
            await self._see_out()
            raise Suspended
        if notice.perform is not None:
            await self._commit_with(pending, notice, notice.perform)
            return
        if isinstance(notice.error, StepTimeout) and pending.call.definition.at_most_once:
            # Cut off: the operator is asked when nothing else runs.
            self._begun = {**self._begun, pending.start: pending.key}
            pending.launched, pending.task = False, None
            self._fresh.append(pending)
            return
        if notice.seen is None and notice.value is None and notice.error is None:
            await self._see_halted(pending)
        if notice.record:
            self.journal.pending.append(notice.record)
            self._told_at = notice.at
        if notice.seen is not None:
            await self.journal.commit()
            notice.seen.set()
            return
        self._doubt = False
        if notice.value is None and notice.error is None:
            self._end(pending, b"", StepCancelled(pending.key))
        else:
            self._end(pending, notice.value or b"", notice.error)

    async def _commit_with(self, pending: LocalPending, notice: Notice, perform: Perform) -> None:
        """Commit a transactional step, which ends it: it can no longer be stopped."""
        if pending.stopping:  # meanwhile; its task will say so
            return
        try:
            await self.journal.commit_with(perform)
        except Exception as error:
            notice.error = error
        else:
            self._doubt = False
            self._end(pending, perform.value, None)
        assert notice.seen is not None
        notice.seen.set()

    async def _see_out(self) -> None:
        """Let the steps that run beside the one that cannot go on use their grace time as well."""
        while self.journal.trouble is None and (self._inbox or any(p.is_running for p in self._open.values())):
            notice = await self._receive()
            if not notice.suspended:
                await self._take(notice)
                await self._save_all()

    def _post(self, notice: Notice) -> None:
        assert self._inbox is not None
        notice.pending.told = notice.seen is None
        notice.at = self._runner.now  # of its record, which was made just now
        self._inbox.append(notice)
        if self._bell is not None:
            self._bell.set()

    async def attempt_in_lane(self, pending: LocalPending, past: Sequence[AttemptErred]) -> None:
        """Execute a step beside others, and post how it ended."""
        records: list[bytes] = []
        value: bytes | None = None
        failure: Exception | None = None
        call = pending.call
        try:
            if call.definition.plain and not past and not call.spent and len(call.input) <= ALWAYS_FITS:
                value = await self._attempt_plainly(pending, records)
            else:
                saver = _TaskSaver(self._post, pending)
                value = await self._runner.attempt(pending.start, call, past, saver, records)
        except Exception as error:
            failure = error
        except Decided:  # it was stopped, and says so when it is over
            self.note_stopped(pending)
            return
        except Suspended:
            self.post_suspended(pending)
            return
        self._post(Notice(pending, records[-1] if records else b"", value, failure))

    async def _attempt_plainly(self, pending: LocalPending, records: list[bytes]) -> bytes:
        """Make the first attempt of a step that is nothing but a call."""
        call, runner = pending.call, self._runner
        began = perf_counter()
        run_context.set(call)  # of this lane's job alone
        try:
            result = await call.definition.function(*call.args)
        except Exception as error:
            saver = _TaskSaver(self._post, pending)
            return await runner.fail(pending.start, call, began, began, error, saver, records)
        return runner.record_value(pending.start, call, began, result, records)

    def may_begin(self) -> bool:
        """Tell whether a step may still begin here."""
        try:
            self._runner.check_leave()
        except Suspended:
            return False
        return True

    def post_suspended(self, pending: LocalPending) -> None:
        """Post that a step cannot go on here."""
        notice = Notice(pending, b"")
        notice.suspended = True
        self._post(notice)

    def note_stopped(self, pending: LocalPending) -> None:
        """Post that a step was stopped by the interpreter, or by something else."""
        if pending.stopping:  # perhaps before it began: that is its outcome
            self._post(
                Notice(pending, self._runner.pack_stopped(pending.start, pending.call, True, self._runner.tick()))
            )
            return
        error = RunError(f"step {pending.key!r} awaited something that was cancelled elsewhere")
        records: list[bytes] = []
        self._runner.record_error(pending.start, pending.call, 0.0, error, records)
        self._post(Notice(pending, records[0], None, error))

    def _lane_broke(self, error: BaseException) -> None:
        self._host.log.error("step.task_failed", run_id=self.run_id, error=repr(error))


class _StepJob:
    """A step that was started, as something for a lane to do."""

    __slots__ = ("_engine", "_past", "_pending")

    def __init__(self, engine: EffectsEngine, pending: LocalPending, past: Sequence[AttemptErred]) -> None:
        self._engine = engine
        self._pending = pending
        self._past = past

    @property
    def stopping(self) -> bool:
        return self._pending.stopping

    def begin(self, task: Task, /) -> Coroutine[Any, Any, None] | None:
        engine, pending = self._engine, self._pending
        if pending.ended or pending.stopping:
            return None
        pending.task = task
        if not engine.may_begin():
            engine.post_suspended(pending)
            return None
        pending.launched = True
        return engine.attempt_in_lane(pending, self._past)

    def over(self) -> None:
        if not self._pending.told:
            self._engine.note_stopped(self._pending)


class _TaskSaver:
    """Saves for a step that runs in a task of its own: the journal has one writer, the interpreter's task."""

    __slots__ = ("_pending", "_post")

    def __init__(self, post: Callable[[Notice], None], pending: LocalPending) -> None:
        self._post = post
        self._pending = pending

    @property
    def stopping(self) -> bool:
        return self._pending.stopping

    async def persist(self, record: bytes) -> None:
        await self._hand_over(Notice(self._pending, record))

    async def transact(self, perform: Perform) -> None:
        notice = Notice(self._pending, b"")
        notice.perform = perform
        await self._hand_over(notice)
        if notice.error is not None:
            raise notice.error

    async def _hand_over(self, notice: Notice) -> None:
        notice.seen = Latch()
        self._post(notice)
        await notice.seen.wait()


_NOTHING = pack(None)


def _is_known(notice: Notice) -> bool:
    """Tell whether a step that failed while it was being stopped has failed by itself."""
    return (
        notice.error is not None
        and notice.seen is None
        and notice.pending.call.definition.at_most_once
        and not isinstance(notice.error, StepTimeout)
    )
