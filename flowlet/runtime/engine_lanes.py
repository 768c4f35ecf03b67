"""The part of the local engine that executes steps side by side, in lanes.

Law: a step's task touches no journal: it posts how it went to the engine's inbox, from which the interpreter's task
takes it, in the order of completion.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from time import perf_counter
from typing import Any

from flowlet.core.current import run_context
from flowlet.core.engine import Decided, StepWaits, Suspended
from flowlet.core.run_records import AttemptErred
from flowlet.core.sizes import ALWAYS_FITS
from flowlet.errors import RunError
from flowlet.runtime.engine_waits import WaitingEngine
from flowlet.runtime.journal import Perform
from flowlet.runtime.lanes import Lanes
from flowlet.runtime.pendings import LocalPending, Notice
from flowlet.runtime.tasks import Latch, Task


class LaneEngine(WaitingEngine):
    """An engine as far as steps run in tasks of their own."""

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

    def _post(self, notice: Notice) -> None:
        assert self._inbox is not None
        notice.pending.told = notice.seen is None
        notice.at = self._runner.last  # of its record, which was made just now
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
                saver = TaskSaver(self._post, pending)
                value = await self._runner.attempt(pending.start, call, past, saver, records)
        except Exception as error:
            failure = error
        except Decided:  # it was stopped, and says so when it is over
            self.note_stopped(pending)
            return
        except StepWaits as waits:
            notice = Notice(pending, b"")
            notice.rest = waits
            self._post(notice)
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
            saver = TaskSaver(self._post, pending)
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

    def __init__(self, engine: LaneEngine, pending: LocalPending, past: Sequence[AttemptErred]) -> None:
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


class TaskSaver:
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
