"""The local engine: executes what interpreters ask for, over any `Store`.

Law: the interpreter's task is the only one that touches the journal. Effects start only when the
replay is exhausted, what was recorded is durable and the lease holds. A step that is the only thing
the run waits for runs inline, without a task; several run in tasks that post their outcome to the
engine's inbox, from which it enters the journal in the order of completion.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic, perf_counter
from typing import Any, Protocol

import anyio

from flowlet.core.codec import pack
from flowlet.core.current import run_context
from flowlet.core.engine import COMPENSATING, Decided, Pending, StepCall, StepCancelled, Suspended
from flowlet.core.failures import Failure, describe_failure, rebuild_failure
from flowlet.core.run import Run
from flowlet.core.run_records import AttemptErred, Noted, Outcome, Parked, RunRecord, StepEnded, StepErred, Started
from flowlet.core.steps import Provide, digest
from flowlet.errors import EncodeError, HistoryMismatch, LeaseLost, PayloadTooLarge, StepTimeout
from flowlet.runtime.journal import Journal
from flowlet.runtime.logs import Log
from flowlet.runtime.tasks import Latch, Task, spawn

_ENCODE_ERRORS = (TypeError, ValueError, OverflowError, RecursionError)


class Host(Protocol):
    """What an engine needs of the process it runs in.

    Attributes:
        closing: the process wants to stop: no further step may start.
        deadline: the local monotonic time at which the lease may have run out.
    """

    closing: bool
    deadline: float
    log: Log
    max_payload: int | None
    provide: Provide

    def now(self) -> float:
        """Return the time of the store's clock."""
        ...


class LocalPending(Pending):
    """A step that was started.

    Attributes:
        ended: its outcome is in the journal (and may be read).
        launched: its effect may have begun.
        stopping: the interpreter has asked for it to be cancelled.
    """

    __slots__ = ("call", "digest", "ended", "error", "launched", "stopping", "task", "value")

    def __init__(self, key: str, start: int, call: StepCall) -> None:
        super().__init__(key, start)
        self.call = call
        self.digest = digest(call.input)
        self.ended = False
        self.launched = False
        self.stopping = False
        self.task: Task | None = None
        self.value: bytes = b""
        self.error: Exception | None = None


class _Notice:
    """What a step's task posts to the inbox: a record, and for its end the pending's outcome."""

    __slots__ = ("error", "pending", "record", "seen", "value")

    def __init__(
        self, pending: LocalPending, record: bytes, value: bytes | None = None, error: Exception | None = None
    ) -> None:
        self.pending = pending
        self.record = record
        self.value = value
        self.error = error
        self.seen: Latch | None = None  # set: the task waits until the record is durable


class LocalEngine:
    """The engine of one run in this process."""

    def __init__(self, journal: Journal, host: Host, records: Sequence[RunRecord], definition: str) -> None:
        self.run_id = journal.id
        self.journal = journal
        self._host = host
        self._definition = definition
        self._starts = 0
        self._now = 0.0
        self._replay: deque[Outcome | Noted] = deque()
        self._attempts: dict[int, list[AttemptErred]] = {}
        self._open: dict[int, LocalPending] = {}
        self._inbox: deque[_Notice] = deque()
        self._bell: anyio.Event | None = None
        self._saving: Task | None = None
        self._read(records)

    def _read(self, records: Sequence[RunRecord]) -> None:
        for record in records:
            if isinstance(record, Started):
                self._now = record.at
            elif isinstance(record, AttemptErred):
                self._attempts.setdefault(record.start, []).append(record)
            elif not isinstance(record, Parked):
                self._replay.append(record)  # type: ignore[arg-type]  # a run that has ended is not replayed

    # -------------------------------------------------------------- the interpreter's side
    async def perform(self, key: str, call: StepCall, /) -> bytes:
        """Start one step and wait for its encoded result."""
        if self._open:
            pending = self.step(key, call)
            await self.first((pending,))
            return await self.value(pending)
        self._starts = start = self._starts + 1
        if self._replay:
            pending = LocalPending(key, start, call)
            self._open[start] = pending
            self._deliver_recorded()
            return await self.value(pending)
        await self._before_effect()
        if self._attempts or call.definition.timeout is not None or not call.definition.is_async:
            return await self._attempt(key, start, call, self._persist)
        # The plain case in one piece: every call saved here is paid by each step of each run.
        run = Run(self.run_id, key, 1, self, None)
        token = run_context.set(run)
        began = perf_counter()
        try:
            result = await self._invoke(call, run)
        except Exception as error:
            run_context.reset(token)
            return await self._fail(key, start, call, 1, began, began, error, self._persist)
        except BaseException:
            run_context.reset(token)
            raise
        run_context.reset(token)
        return self._record_value(key, start, call, 1, began, result)

    def step(self, key: str, call: StepCall, /) -> LocalPending:
        """Start a step; its effect begins when the interpreter waits."""
        self._starts += 1
        pending = self._open[self._starts] = LocalPending(key, self._starts, call)
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
            self._now = front.at  # type: ignore[union-attr]  # _mismatch raises
            return front.value  # type: ignore[union-attr]  # _mismatch raises
        self._add(pack(("n", key, value, self._tick())))
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
                await self._work()

    async def value(self, pending: Pending, /) -> bytes:
        """Return the encoded result of one that has ended, or raise what it raised."""
        assert isinstance(pending, LocalPending)
        if pending.error is not None:
            raise pending.error
        return pending.value

    def now(self) -> float:
        """Return the time of the last record the run has seen."""
        return self._now

    # -------------------------------------------------------------- the execution's side
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
        record = self._replay[0]
        if isinstance(record, Noted):
            if record.key == COMPENSATING:
                # Whatever is open now was not started when the decision fell: the body has gone astray.
                self._starts -= len(self._open)
                self._open.clear()
                raise Decided(record.value)
            self._mismatch("a wait for a step", _name_record(record))
            return
        pending = self._open.get(record.start)
        if pending is None:
            started = ", ".join(repr(p.key) for p in self._open.values())
            self._mismatch(f"step {started}", _name_record(record))
            return
        self._check_same(pending, record)
        self._replay.popleft()
        self._attempts.pop(record.start, None)
        self._now = record.at
        if isinstance(record, StepEnded):
            self._end(pending, record.value, None)
        elif isinstance(record, StepErred):
            self._end(pending, b"", rebuild_failure(record.error, record.key, record.attempt))
        else:
            self._end(pending, b"", StepCancelled(record.key))

    def _check_same(self, pending: LocalPending, record: Outcome | AttemptErred) -> None:
        if pending.key != record.key:
            self._mismatch(f"step {pending.key!r}", f"step {record.key!r}")
        if pending.digest != record.digest:
            self._mismatch(f"step {pending.key!r} with this input", "the same step with another input")

    def _mismatch(self, found: str, expected: str) -> None:
        self.journal.trouble = HistoryMismatch(
            f"run {self.run_id!r} of {self._definition!r}, start {self._starts}: the code now asks for {found}, but the "
            f"history has {expected}; bring back the code that the run began with, or give the new code a new version="
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
        host = self._host
        if host.closing:
            raise Suspended
        if monotonic() > host.deadline:
            self.journal.trouble = LeaseLost(f"the lease on run {self.run_id!r} ran out before it was renewed")
            raise Suspended

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
        for pending in fresh:
            pending.launched = True
            pending.task = spawn(self._task_main(pending), self._task_broke(pending))
        while not self._inbox:
            self._bell = anyio.Event()
            await self._bell.wait()
        await self._take(self._inbox.popleft())

    async def _run_inline(self, pending: LocalPending) -> None:
        try:
            value = await self._attempt(pending.key, pending.start, pending.call, self._persist)
        except Exception as error:
            self._end(pending, b"", error)
        else:
            self._end(pending, value, None)

    def _stop_unlaunched(self) -> bool:
        """End what was cancelled before it began; it needs no effect to be stopped."""
        stopped = [p for p in self._open.values() if p.stopping and not p.launched]
        for pending in stopped:
            self._add(pack(("c", pending.start, pending.key, pending.digest, self._tick())))
            self._end(pending, b"", StepCancelled(pending.key))
        return bool(stopped)

    async def _take(self, notice: _Notice) -> None:
        self._add(notice.record)
        if notice.seen is not None:
            await self.journal.commit()
            notice.seen.set()
        elif notice.value is None and notice.error is None:
            self._end(notice.pending, b"", StepCancelled(notice.pending.key))
        else:
            self._end(notice.pending, notice.value or b"", notice.error)

    def _post(self, notice: _Notice) -> None:
        self._inbox.append(notice)
        if self._bell is not None:
            self._bell.set()

    def _task_main(self, pending: LocalPending) -> Callable[[], Awaitable[None]]:
        async def persist(record: bytes) -> None:
            notice = _Notice(pending, record)
            notice.seen = Latch()
            self._post(notice)
            await notice.seen.wait()

        records: list[bytes] = []

        async def main() -> None:
            value: bytes | None = None
            failure: Exception | None = None
            try:
                value = await self._attempt(pending.key, pending.start, pending.call, persist, records)
            except Exception as error:
                failure = error
            except BaseException:
                if pending.stopping:  # stopped by the interpreter: that is its outcome
                    stopped = pack(("c", pending.start, pending.key, pending.digest, self._tick()))
                    self._post(_Notice(pending, stopped))
                raise
            self._post(_Notice(pending, records[-1], value, failure))

        return main

    def _task_broke(self, pending: LocalPending) -> Callable[[BaseException], None]:
        def report(error: BaseException) -> None:
            self._host.log.error("step.task_failed", run_id=self.run_id, step=pending.key, error=repr(error))

        return report

    # -------------------------------------------------------------- attempts
    async def _attempt(
        self,
        key: str,
        start: int,
        call: StepCall,
        persist: Callable[[bytes], Awaitable[None]],
        records: list[bytes] | None = None,
    ) -> bytes:
        """Execute a step with its retries and timeout; its last record goes to ``records`` or the journal."""
        attempt, began = await self._past_attempts(key, start, call)
        run = Run(self.run_id, key, attempt, self, None)
        token = run_context.set(run)
        attempt_began = perf_counter()
        try:
            result = await self._invoke(call, run)
        except Exception as error:
            run_context.reset(token)
            return await self._fail(key, start, call, attempt, began, attempt_began, error, persist, records)
        except BaseException:
            run_context.reset(token)
            raise
        run_context.reset(token)
        return self._record_value(key, start, call, attempt, attempt_began, result, records)

    async def _past_attempts(self, key: str, start: int, call: StepCall) -> tuple[int, float]:
        """Go on where the recorded attempts ended: the next number, after the rest of the drawn delay."""
        past = self._attempts.pop(start, None)
        now = perf_counter()
        if not past:
            return 1, now
        last = past[-1]
        self._check_same(LocalPending(key, start, call), last)
        await anyio.sleep(max(0.0, last.at + last.delay - self._host.now()))
        elapsed = max(0.0, self._host.now() - past[0].at + past[0].seconds)
        return last.attempt + 1, perf_counter() - elapsed

    async def _invoke(self, call: StepCall, run: Run) -> Any:
        """Call the user's function once, in a thread if it is a plain def, within its timeout."""
        definition = call.definition
        provided = self._provided(call, run) if definition.providers else None
        if definition.timeout is None and definition.is_async:
            return await definition.call(call.owner, call.args, provided)
        limit = definition.timeout
        with anyio.move_on_after(limit) as scope:
            if definition.is_async:
                return await definition.call(call.owner, call.args, provided)
            return await anyio.to_thread.run_sync(
                definition.call, call.owner, call.args, provided, abandon_on_cancel=limit is not None
            )
        assert scope.cancelled_caught
        raise StepTimeout(f"step {definition.name!r} did not end within {limit} s")

    def _provided(self, call: StepCall, run: Run) -> dict[str, Any]:
        return {
            p.name: run if p.annotation is Run else self._host.provide(p.annotation) for p in call.definition.providers
        }

    async def _fail(
        self,
        key: str,
        start: int,
        call: StepCall,
        attempt: int,
        began: float,
        attempt_began: float,
        error: Exception,
        persist: Callable[[bytes], Awaitable[None]],
        records: list[bytes] | None = None,
    ) -> bytes:
        """Decide what follows a failed attempt: another one, or the step's failure."""
        while True:
            seconds = perf_counter() - attempt_began
            delay = None
            if call.definition.retry is not None:
                from flowlet.runtime.retrying import next_delay

                delay = next_delay(call.definition.retry, attempt, error, perf_counter() - began)
            failure = describe_failure(error)
            if delay is None:
                self._record_error(key, start, call, attempt, seconds, failure, records)
                raise error
            at = self._tick()
            await persist(
                pack(("a", start, key, digest(call.input), attempt, at, seconds, delay, failure))
            )
            self._log_retry(key, attempt, delay, error)
            await anyio.sleep(delay)
            if self._host.closing:
                raise Suspended
            attempt += 1
            run = Run(self.run_id, key, attempt, self, None)
            attempt_began = perf_counter()
            token = run_context.set(run)
            try:
                result = await self._invoke(call, run)
            except Exception as again:
                error = again
                continue
            finally:
                run_context.reset(token)
            return self._record_value(key, start, call, attempt, attempt_began, result, records)

    def _log_retry(self, key: str, attempt: int, delay: float, error: Exception) -> None:
        log = self._host.log
        if log.active:
            log.info(
                "step.retried",
                run_id=self.run_id,
                definition=self._definition,
                step=key,
                attempt=attempt,
                delay=delay,
                error=repr(error),
            )

    async def _persist(self, record: bytes) -> None:
        """Make a record durable from the interpreter's own task."""
        self._add(record)
        await self.journal.commit()

    def _record_value(
        self,
        key: str,
        start: int,
        call: StepCall,
        attempt: int,
        began: float,
        result: Any,
        records: list[bytes] | None = None,
    ) -> bytes:
        try:
            value = pack(result)
        except _ENCODE_ERRORS as error:
            problem: Exception = EncodeError(
                f"the result of step {key!r} cannot be stored: {error}; return msgspec types (Struct, dataclass, ...)"
            )
            problem.__cause__ = error
        else:
            limit = self._host.max_payload
            if limit is None or len(value) <= limit:
                kept = call.input if call.definition.compensation is not None else None
                seconds = perf_counter() - began
                # The shape of StepEnded, as a tuple: it is the one record that every step pays for.
                record = pack(("s", start, key, digest(call.input), attempt, self._tick(), seconds, value, kept))
                if records is None:
                    self.journal.pending.append(record)
                else:
                    records.append(record)
                return value
            problem = PayloadTooLarge(
                f"the result of step {key!r} has {len(value)} bytes, the store takes {limit}; keep it elsewhere and "
                "return a reference"
            )
        self._record_error(key, start, call, attempt, perf_counter() - began, describe_failure(problem), records)
        raise problem

    def _record_error(
        self,
        key: str,
        start: int,
        call: StepCall,
        attempt: int,
        seconds: float,
        failure: Failure,
        records: list[bytes] | None,
    ) -> None:
        record = pack(("e", start, key, digest(call.input), attempt, self._tick(), seconds, failure))
        if records is None:
            self._add(record)
        else:
            records.append(record)

    def _add(self, record: bytes) -> None:
        self.journal.pending.append(record)

    def _tick(self) -> float:
        self._now = now = self._host.now()
        return now


def _name_record(record: Outcome | Noted) -> str:
    return f"decision {record.key!r}" if isinstance(record, Noted) else f"step {record.key!r}"
