"""The half of the local engine that has steps executed, and sees them end.

Law: the interpreter's task is the only one that touches the journal. Effects start only when what was recorded is
durable and the lease holds. A step that is the only thing the run waits for runs inline, without a task; several
run in tasks that post their outcome to the engine's inbox, from which it enters the journal in the order of
completion.
"""

from __future__ import annotations

from typing import NoReturn

import anyio

from flowlet.core.codec import pack
from flowlet.core.engine import (
    COMPENSATING,
    Question,
    StepCancelled,
    StepWaits,
    Suspended,
    cut_off,
)
from flowlet.core.run_records import (
    Attention,
)
from flowlet.errors import RunError, StepTimeout
from flowlet.runtime.engine_lanes import LaneEngine
from flowlet.runtime.engine_replay import Reread
from flowlet.runtime.journal import Perform
from flowlet.runtime.pendings import LocalPending, Notice
from flowlet.runtime.replay import name_item
from flowlet.runtime.tasks import Task, check_cancelled, spawn


class EffectsEngine(LaneEngine):
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
        self.order: Exception | None = None
        self.interrupted: bool = True
        self.committed: bool = False
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
        halted = [p for p in self._open.values() if p.start not in ended and self._has_halted(p)]
        if halted:
            await self._take_ended()
            await self._save_all()
        for pending in halted:
            await self._see_halted(pending)

    async def _see_halted(self, pending: LocalPending) -> None:
        """Wait until what a stopped step has set going has ended: before that, nothing is undone."""
        halt = pending.call.definition.halt
        if halt is not None:
            await halt(pending.call)
        await self._host.halt_under(pending.call.idempotency_key, self._called.get(pending.key, ()))

    def _has_halted(self, pending: LocalPending) -> bool:
        """Tell whether a stopped step may have set something going that is to end with it."""
        call = pending.call
        halts = call.definition.halt is not None or pending.key in self._called
        return halts or self._host.has_under(call.idempotency_key)

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
        self._fresh, self._landed = [], []
        self.cut: bool = False

    async def judge_cut(self) -> NoReturn:
        """Find out why a wait for steps was cut off: the task is cancelled, or the body went on without them.

        Raises:
            RunError: the body has put a timeout or cancel scope around them, which a replay cannot repeat.
        """
        await check_cancelled()
        await self.refuse_timeout()

    async def refuse_timeout(self) -> NoReturn:
        """Fail a wait that a body has put a timeout of its own around."""
        keys = [p.key for p in (*self._open.values(), *self._waits.values())]
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
            while self.journal.pending and not self.journal.busy:
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
        if self._waits:
            self._set_timers()
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
        if self._waits and not self._inbox and await self._fire_due():
            return
        if not self._inbox:
            await self._save_all()
            await self._hear()
        if self._inbox:
            await self._take(self._inbox.popleft())

    async def _receive(self) -> Notice:
        """Wait for the next message of a step's task."""
        assert self._inbox is not None
        while not self._inbox:
            self._bell = anyio.Event()
            await self._bell.wait()
        return self._inbox.popleft()

    async def _run_inline(self, pending: LocalPending) -> None:
        pending.launched = True
        pending.call.doubtful |= self._doubt
        try:
            value = await self._runner.attempt(pending.start, pending.call, self._past(pending))
        except StepWaits as waits:
            self._set_at_rest(pending, waits)
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
        stopped = [
            p
            for p in self._open.values()
            if p.stopping and (p.rest is not None or not p.launched) and p.start not in self._begun
        ]
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
        if notice.rest is not None:
            self._set_at_rest(pending, notice.rest)
            self._is_stopping |= pending.stopping  # meanwhile, so that nobody sees to it otherwise
            return
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


_NOTHING = pack(None)


def _is_known(notice: Notice) -> bool:
    """Tell whether a step that failed while it was being stopped has failed by itself."""
    return (
        notice.error is not None
        and notice.seen is None
        and notice.pending.call.definition.at_most_once
        and not isinstance(notice.error, StepTimeout)
    )
