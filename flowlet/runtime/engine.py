"""The local engine: executes what interpreters ask for, over any `Store`.

Law: the interpreter's task is the only one that touches the journal. Effects start only when the
replay is exhausted, what was recorded is durable and the lease holds. A step that is the only thing
the run waits for runs inline, without a task; several run in tasks that post their outcome to the
engine's inbox, from which it enters the journal in the order of completion.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import perf_counter
from types import MappingProxyType
from typing import NoReturn

import anyio

from flowlet.core.codec import pack
from flowlet.core.current import run_context
from flowlet.core.engine import COMPENSATING, Decided, Pending, StepCall, StepCancelled, Suspended, cut_off
from flowlet.core.failures import Failure, rebuild_failure
from flowlet.core.run_records import (
    AttemptErred,
    Ended,
    Noted,
    Outcome,
    Parked,
    RunRecord,
    Started,
    StepEnded,
    StepErred,
)
from flowlet.errors import HistoryMismatch, RunError
from flowlet.runtime.journal import Journal
from flowlet.runtime.pendings import LocalPending, Notice
from flowlet.runtime.steps import Host, StepRunner
from flowlet.runtime.tasks import Latch, Task, check_cancelled, spawn


class LocalEngine:
    """The engine of one run in this process.

    Attributes:
        cut: a cancellation has passed through a wait for steps, which then stay open.
    """

    cut = False

    # Defaults of what most runs never touch: a run is short, and setting up its engine is most of it.
    _replay: deque[Outcome | Noted] | tuple[()] = ()
    _attempts: Mapping[int, list[AttemptErred]] = MappingProxyType({})
    _inbox: deque[Notice] | None = None
    _bell: anyio.Event | None = None
    _saving: Task | None = None

    def __init__(self, journal: Journal, host: Host, records: Sequence[RunRecord], definition: str) -> None:
        self.run_id = journal.id
        self.journal = journal
        self._host = host
        self._definition = definition
        self._starts = 0
        self._open: dict[int, LocalPending] = {}
        self._runner = StepRunner(journal, host, definition, records[0].at)
        if len(records) > 1:
            self._read(records)

    def _read(self, records: Sequence[RunRecord]) -> None:
        replay: deque[Outcome | Noted] = deque()
        attempts: dict[int, list[AttemptErred]] = {}
        for record in records:
            if isinstance(record, AttemptErred):
                attempts.setdefault(record.start, []).append(record)
            elif not isinstance(record, (Started, Parked, Ended)):
                replay.append(record)
        self._replay, self._attempts = replay, attempts

    # -------------------------------------------------------------- the interpreter's side
    async def perform(self, call: StepCall, /) -> bytes:
        """Start one step and wait for its encoded result."""
        if self._open or self._replay:
            if self.cut:
                await self.judge_cut()
            pending = self.step(call)
            await self.first((pending,))
            if isinstance(pending.error, StepCancelled):  # nobody asks for a step that it waits for to be stopped
                raise cut_off(call.key)
            return await self.value(pending)
        self._starts = start = self._starts + 1
        host, journal = self._host, self.journal
        began = perf_counter()
        if (
            host.closing
            or began > host.deadline
            or (journal.pending and journal.durable)
            or journal.trouble is not None
            or self._saving is not None
        ):
            await self._before_effect()
            began = perf_counter()
        definition = call.definition
        try:
            if not definition.plain or start in self._attempts:
                return await self._runner.attempt(start, call, self._past(start, call), self._runner.persist)
            # The plain case in one piece: every call saved here is paid by each step of each run.
            token = run_context.set(call)
            try:
                result = await definition.function(*call.args)
            except Exception as error:
                run_context.reset(token)
                return await self._runner.fail(start, call, began, began, error, self._runner.persist)
            except BaseException:
                run_context.reset(token)
                raise
            run_context.reset(token)
            return self._runner.record_value(start, call, began, result)
        except (Exception, Suspended):
            raise
        except BaseException:
            self._open[start] = pending = LocalPending(start, call)
            pending.launched = self.cut = True
            raise

    def step(self, call: StepCall, /) -> LocalPending:
        """Start a step; its effect begins when the interpreter waits."""
        self._starts += 1
        pending = self._open[self._starts] = LocalPending(self._starts, call)
        return pending

    def cancel(self, pending: Pending, /) -> None:
        """Ask for a pending to be stopped."""
        assert isinstance(pending, LocalPending)
        if not pending.ended:
            pending.stopping = True
            if pending.task is not None:
                pending.task.cancel()

    def note(self, key: str, value: bytes, /) -> bytes:
        """Record a decision, or return the recorded one."""
        if self._replay:
            front = self._replay[0]
            if not isinstance(front, Noted) or front.key != key:
                self._mismatch(f"decision {key!r}", _name_record(front))
            self._replay.popleft()
            self._runner.now = front.at
            return front.value
        self.journal.pending.append(pack(("n", key, value, self._runner.tick())))
        if key == COMPENSATING:
            self.journal.status = COMPENSATING
        return value

    async def first(self, pending: Sequence[Pending], /) -> Sequence[Pending]:
        """Wait until at least one has ended."""
        while True:
            done = [p for p in pending if p.ended]  # type: ignore[attr-defined]  # all are LocalPending
            if done:
                return done
            if self._replay:
                self._deliver_recorded()
            elif not self._stop_unlaunched():
                if self.cut:
                    await self.judge_cut()
                try:
                    await self._work()
                except (Exception, Suspended):
                    raise
                except BaseException:
                    self.cut = True
                    raise

    async def value(self, pending: Pending, /) -> bytes:
        """Return the encoded result of one that has ended, or raise what it raised."""
        assert isinstance(pending, LocalPending)
        if pending.error is not None:
            raise pending.error
        return pending.value

    def describe(self, error: Exception, /) -> Failure:
        """Turn an exception into what is recorded of it."""
        return self._runner.describe(error)

    def now(self) -> float:
        """Return the time of the last record the run has seen."""
        return self._runner.now

    async def judge_cut(self) -> NoReturn:
        """Find out why a wait for steps was cut off: the task is cancelled, or the body went on without them.

        Raises:
            RunError: the body has put a timeout or cancel scope around them, which a replay cannot repeat.
        """
        await check_cancelled()
        keys = [p.key for p in self._open.values()]
        await self.settle_cut()
        raise cut_off(*keys)

    async def settle_cut(self) -> None:
        """Stop the steps that a wait was cut off from, and record that they were stopped."""
        for pending in self._open.values():
            pending.stopping = True
        await self.shut_down()
        ended = {n.pending.start: n for n in self._inbox or () if n.value is not None}
        for pending in list(self._open.values()):
            notice = ended.get(pending.start)
            if notice is None:
                self.journal.pending.append(self._runner.pack_stopped(pending.start, pending.call))
                self._end(pending, b"", StepCancelled(pending.key))
            else:
                await self._take(notice)
        if self._inbox is not None:
            self._inbox.clear()
        self.cut = False

    # -------------------------------------------------------------- the execution's side
    @property
    def host(self) -> Host:
        """What executes the run in this process."""
        return self._host

    def decided(self) -> bytes | None:
        """Return the note of a recorded decision to unwind that the interpreter has come to, or None."""
        front = self._replay[0] if self._replay else None
        return front.value if isinstance(front, Noted) and front.key == COMPENSATING else None

    def check_end(self) -> None:
        """Refuse an end that leaves recorded work unused."""
        if self._replay:
            self._mismatch("the end of the run", _name_record(self._replay[0]))

    async def shut_down(self) -> None:
        """Cancel and await the tasks of steps, after the interpreter has gone."""
        tasks = [p.task for p in self._open.values() if p.task is not None]
        for task in tasks:
            task.cancel()
        for task in tasks:
            await task.done.wait()

    async def keep_finished(self) -> None:
        """After `shut_down`, save what the interpreter had no time to, and the steps it has not seen return.

        Only those that returned: an error may be what came of being cancelled.
        """
        journal = self.journal
        if journal.pending:
            await journal.catch_up()
        journal.pending.extend(n.record for n in self._inbox or () if n.value is not None)
        if journal.pending and journal.trouble is None:
            await journal.commit()

    def save_soon(self) -> None:
        """Make what is recorded durable while the body waits for something that is not flowlet's."""
        if self.journal.pending and not self.journal.busy and self._saving is None:
            self._saving = spawn(self._save, self._not_saved)

    async def _save(self) -> None:
        try:
            await self.journal.commit()
        except Suspended:
            pass  # `journal.trouble` is set; the interpreter meets it at its next step
        finally:
            self._saving = None

    def _not_saved(self, error: BaseException) -> None:
        self._host.log.error("run.save_failed", run_id=self.run_id, error=repr(error))

    async def settle(self) -> None:
        """Wait for a save that is under way, so that the journal has one writer again."""
        while self._saving is not None:
            await self._saving.done.wait()

    # -------------------------------------------------------------- replay
    def _deliver_recorded(self) -> None:
        """Give the next recorded outcome to the pending that it belongs to."""
        assert self._replay
        record = self._replay[0]
        if isinstance(record, Noted):
            if record.key == COMPENSATING:
                # Whatever is open now was not started when the decision fell: the body has gone astray.
                self._starts -= len(self._open)
                self._open.clear()
                raise Decided(record.value)
            self._mismatch("a wait for a step", _name_record(record))
        pending = self._open.get(record.start)
        if pending is None:
            started = ", ".join(repr(p.key) for p in self._open.values())
            self._mismatch(f"step {started}", _name_record(record))
        self._check_same(pending, record)
        self._replay.popleft()
        self._runner.now = record.at
        if isinstance(record, StepEnded):
            self._end(pending, record.value, None)
        elif isinstance(record, StepErred):
            self._end(pending, b"", rebuild_failure(record.error))
        else:
            self._end(pending, b"", StepCancelled(record.key))

    def _check_same(self, pending: LocalPending, record: Outcome | AttemptErred) -> None:
        if pending.key != record.key:
            self._mismatch(f"step {pending.key!r}", f"step {record.key!r}")
        if pending.digest != record.digest:
            self._mismatch(f"step {pending.key!r} with this input", "the same step with another input")

    def _past(self, start: int, call: StepCall) -> Sequence[AttemptErred]:
        """Return the recorded attempts of a step that has no recorded outcome."""
        past = self._attempts.get(start, ())
        if past:
            self._check_same(LocalPending(start, call), past[-1])
        return past

    def _mismatch(self, found: str, expected: str) -> NoReturn:
        self.journal.trouble = HistoryMismatch(
            f"run {self.run_id!r} of {self._definition!r}, start {self._starts}: the code now asks for {found}, "
            f"but the history has {expected}; bring back the code that the run began with and await "
            f"flow.handle({self.run_id!r}).resume(); new code wants a new version= beside the old"
        )
        raise Suspended

    def _end(self, pending: LocalPending, value: bytes, error: Exception | None) -> None:
        pending.ended = True
        pending.value = value
        pending.error = error
        del self._open[pending.start]

    # -------------------------------------------------------------- effects
    async def _before_effect(self) -> None:
        """Let nothing happen before what was recorded is durable, and nothing without a lease."""
        if self.journal.pending or self._saving is not None or self.journal.trouble is not None:
            await self._save_all()
        self._runner.check_leave()

    async def _save_all(self) -> None:
        await self.settle()
        if self.journal.trouble is not None:
            raise Suspended
        if self.journal.pending:
            await self.journal.commit()

    async def _work(self) -> None:
        """Begin what was started, then wait for one message of a step's task."""
        fresh = [p for p in self._open.values() if not p.launched]
        if fresh:
            await self._before_effect()
        else:
            await self._save_all()
        if len(fresh) == 1 and len(self._open) == 1:
            pending = fresh[0]
            pending.launched = True
            await self._run_inline(pending)
            return
        if self._inbox is None:
            self._inbox = deque()
        for pending in fresh:
            pending.launched = True
            pending.task = spawn(self._task_main(pending), self._task_broke(pending), self._task_over(pending))
        while not self._inbox:
            self._bell = anyio.Event()
            await self._bell.wait()
        await self._take(self._inbox.popleft())

    async def _run_inline(self, pending: LocalPending) -> None:
        try:
            value = await self._runner.attempt(
                pending.start, pending.call, self._past(pending.start, pending.call), self._runner.persist
            )
        except Exception as error:
            self._end(pending, b"", error)
        else:
            self._end(pending, value, None)

    def _stop_unlaunched(self) -> bool:
        """End what was cancelled before it began; it needs no effect to be stopped."""
        stopped = [p for p in self._open.values() if p.stopping and not p.launched]
        for pending in stopped:
            self.journal.pending.append(self._runner.pack_stopped(pending.start, pending.call))
            self._end(pending, b"", StepCancelled(pending.key))
        return bool(stopped)

    async def _take(self, notice: Notice) -> None:
        if not notice.record:  # the step cannot go on here, so the run cannot
            raise Suspended
        self.journal.pending.append(notice.record)
        if notice.seen is not None:
            await self.journal.commit()
            notice.seen.set()
        elif notice.value is None and notice.error is None:
            self._end(notice.pending, b"", StepCancelled(notice.pending.key))
        else:
            self._end(notice.pending, notice.value or b"", notice.error)

    def _post(self, notice: Notice) -> None:
        assert self._inbox is not None
        notice.pending.told = notice.seen is None
        self._inbox.append(notice)
        if self._bell is not None:
            self._bell.set()

    def _task_main(self, pending: LocalPending) -> Callable[[], Awaitable[None]]:
        async def persist(record: bytes) -> None:
            # The journal has one writer: the interpreter's task saves it and says so.
            notice = Notice(pending, record)
            notice.seen = Latch()
            self._post(notice)
            await notice.seen.wait()

        past = self._past(pending.start, pending.call)
        records: list[bytes] = []

        async def main() -> None:
            value: bytes | None = None
            failure: Exception | None = None
            try:
                value = await self._runner.attempt(pending.start, pending.call, past, persist, records)
            except Exception as error:
                failure = error
            except Suspended:
                self._post(Notice(pending, b""))
                return
            self._post(Notice(pending, records[-1], value, failure))

        return main

    def _task_over(self, pending: LocalPending) -> Callable[[Task], None]:
        def over(_: Task) -> None:
            if pending.told:
                return
            if pending.stopping:  # stopped by the interpreter, perhaps before it began: that is its outcome
                self._post(Notice(pending, self._runner.pack_stopped(pending.start, pending.call)))
                return
            error = RunError(f"step {pending.key!r} awaited something that was cancelled elsewhere")
            records: list[bytes] = []
            self._runner.record_error(pending.start, pending.call, 0.0, error, records)
            self._post(Notice(pending, records[0], None, error))

        return over

    def _task_broke(self, pending: LocalPending) -> Callable[[BaseException], None]:
        def report(error: BaseException) -> None:
            self._host.log.error("step.task_failed", run_id=self.run_id, step=pending.key, error=repr(error))

        return report


def _name_record(record: Outcome | Noted) -> str:
    return f"decision {record.key!r}" if isinstance(record, Noted) else f"step {record.key!r}"
