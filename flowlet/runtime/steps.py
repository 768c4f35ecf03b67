"""Executing a step: its attempts, timeout and retries, and the record of how it ended.

Law: a failed attempt is durable before the next one begins, and its number goes on over restarts. tenacity
decides about another attempt; this module waits. It knows one step at a time and nothing of replay.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any, Protocol, TypeAlias

import anyio

from flowlet.core.codec import pack
from flowlet.core.current import run_context
from flowlet.core.engine import StepCall, Suspended
from flowlet.core.failures import Failure, describe_failure
from flowlet.core.run import Run
from flowlet.core.run_records import AttemptErred
from flowlet.core.steps import UNENCODABLE, Provide, digest
from flowlet.errors import EncodeError, LeaseLost, PayloadTooLarge, StepTimeout
from flowlet.runtime.journal import Journal
from flowlet.runtime.logs import Log

Persist: TypeAlias = Callable[[bytes], Awaitable[None]]


class Host(Protocol):
    """What an engine needs of the process it runs in.

    Attributes:
        closing: the process wants to stop: no further step may start.
        stopping: steps are being cut off, so that what they raise is no failure of theirs.
        deadline: the time of ``perf_counter`` at which the lease may have run out.
        epoch: the store's time when ``perf_counter`` was 0.
    """

    closing: bool
    stopping: bool
    deadline: float
    epoch: float
    log: Log
    max_payload: int | None
    provide: Provide


class StepRunner:
    """Executes the steps of one run.

    Attributes:
        now: the time of the last record.
    """

    __slots__ = ("_definition", "_failure", "_host", "_journal", "now")

    def __init__(self, journal: Journal, host: Host, definition: str, now: float) -> None:
        self._journal = journal
        self._host = host
        self._definition = definition
        self.now = now
        self._failure: tuple[Exception, Failure] | None = None

    async def attempt(
        self,
        start: int,
        call: StepCall,
        past: Sequence[AttemptErred],
        persist: Persist,
        records: list[bytes] | None = None,
    ) -> bytes:
        """Execute a step with its retries and timeout.

        Args:
            past: the attempts that are on record.
            persist: makes the record of a failed attempt durable.
            records: takes the step's last record, instead of the journal.
        """
        attempt, began = await self._past_attempts(past)
        call.begin(attempt)
        token = run_context.set(call)
        attempt_began = perf_counter()
        try:
            result = await self._invoke(call)
        except Exception as error:
            run_context.reset(token)
            return await self.fail(start, call, began, attempt_began, error, persist, records)
        except BaseException:
            run_context.reset(token)
            raise
        run_context.reset(token)
        return self.record_value(start, call, attempt_began, result, records)

    async def _past_attempts(self, past: Sequence[AttemptErred]) -> tuple[int, float]:
        """Go on where the recorded attempts ended: the next number, after the rest of the drawn delay."""
        if not past:
            return 1, perf_counter()
        first, last = past[0], past[-1]
        await anyio.sleep(max(0.0, last.at + last.delay - self.tick()))
        self.check_leave()
        return last.attempt + 1, first.at - first.seconds - self._host.epoch

    def check_leave(self) -> None:
        """Let no effect begin in a process that wants to stop, or without a lease.

        Raises:
            Suspended: it may not.
        """
        journal, host = self._journal, self._host
        if journal.trouble is None and perf_counter() > host.deadline:
            journal.trouble = LeaseLost(f"the lease on run {journal.id!r} ran out before it was renewed")
        if host.closing or journal.trouble is not None:
            raise Suspended

    async def _invoke(self, call: StepCall) -> Any:
        """Call the user's function once, in a thread if it is a plain def, within its timeout."""
        definition = call.definition
        provided = self._provided(call) if definition.providers else None
        limit = definition.timeout
        if limit is None and definition.is_async:
            return await definition.call(call.owner, call.args, provided)
        with anyio.move_on_after(limit) as scope:
            if definition.is_async:
                return await definition.call(call.owner, call.args, provided)
            return await anyio.to_thread.run_sync(
                definition.call, call.owner, call.args, provided, abandon_on_cancel=limit is not None
            )
        assert scope.cancelled_caught
        raise StepTimeout(f"step {call.key!r} did not end within {limit} s; give it more with timeout=")

    def _provided(self, call: StepCall) -> dict[str, Any]:
        return {
            p.name: call.run() if p.annotation is Run else self._host.provide(p.annotation)
            for p in call.definition.providers
        }

    async def fail(
        self,
        start: int,
        call: StepCall,
        began: float,
        attempt_began: float,
        error: Exception,
        persist: Persist,
        records: list[bytes] | None = None,
    ) -> bytes:
        """Decide what follows a failed attempt: another one, or the step's failure.

        Args:
            began: when the first attempt began.
            persist: makes the record of a failed attempt durable.
        """
        while True:
            if self._host.stopping:
                raise Suspended from error
            ended = perf_counter()
            delay = None
            if call.definition.retry is not None:
                from flowlet.runtime.retrying import next_delay

                try:
                    delay = next_delay(call.definition.retry, call.attempt, error, ended - began)
                except Exception as broken:  # a stop, wait or retry of the user's own
                    error = broken
            if delay is None:
                self.record_error(start, call, ended - attempt_began, error, records)
                raise error
            await persist(self._pack("a", start, call, ended - attempt_began, delay, describe_failure(error)))
            self._log_retry(call, delay, error)
            await anyio.sleep(delay)
            self.check_leave()
            call.begin(call.attempt + 1)
            attempt_began = perf_counter()
            token = run_context.set(call)
            try:
                result = await self._invoke(call)
            except Exception as again:
                error = again
                continue
            finally:
                run_context.reset(token)
            return self.record_value(start, call, attempt_began, result, records)

    def _log_retry(self, call: StepCall, delay: float, error: Exception) -> None:
        log = self._host.log
        if log.active:
            log.info(
                "step.retried",
                run_id=self._journal.id,
                definition=self._definition,
                step=call.key,
                attempt=call.attempt,
                delay=delay,
                error=repr(error),
            )

    async def persist(self, record: bytes) -> None:
        """Make a record durable from the interpreter's own task."""
        self._journal.pending.append(record)
        await self._journal.commit()

    def record_value(
        self, start: int, call: StepCall, began: float, result: Any, records: list[bytes] | None = None
    ) -> bytes:
        """Record what a step returned; return it encoded.

        Raises:
            EncodeError, PayloadTooLarge: it cannot be stored, so the step has failed.
        """
        try:
            value = pack(result)
        except UNENCODABLE as error:
            if call.definition.result.type is Any:  # a compensation, whose result nobody reads
                return self.record_value(start, call, began, None, records)
            problem: Exception = EncodeError(
                f"the result of step {call.key!r} cannot be stored: {error}; return msgspec types (Struct, "
                "dataclass, datetime, list ...)"
            )
            problem.__cause__ = error
        else:
            limit = self._host.max_payload
            if limit is None or len(value) <= limit:
                call.result = result
                call.here = True
                ended = perf_counter()
                self.now = at = self._host.epoch + ended
                data = call.input
                seen = data if len(data) <= 32 else digest(data)
                kept = None if call.definition.compensation is None else data
                # The shape of StepEnded, as a tuple: it is the one record that every step pays for.
                record = pack(("s", start, call.key, seen, call.attempt, at, ended - began, value, kept))
                (self._journal.pending if records is None else records).append(record)
                return value
            problem = PayloadTooLarge(
                f"the result of step {call.key!r} has {len(value)} bytes, the store takes {limit}; keep it elsewhere "
                "and return a reference"
            )
        self.record_error(start, call, perf_counter() - began, problem, records)
        raise problem

    def record_error(
        self, start: int, call: StepCall, seconds: float, error: Exception, records: list[bytes] | None
    ) -> None:
        """Record the failure of a step."""
        record = self._pack("e", start, call, seconds, self.describe(error, call))
        (self._journal.pending if records is None else records).append(record)

    def describe(self, error: Exception, call: StepCall | None = None) -> Failure:
        """Describe a failure, once: a step's error is recorded as the step's, the decision's and the run's."""
        if self._failure is None or self._failure[0] is not error:
            step, attempts = ("", 1) if call is None else (call.key, call.attempt)
            self._failure = (error, describe_failure(error, step, attempts))
        return self._failure[1]

    def _pack(self, tag: str, start: int, call: StepCall, *rest: Any) -> bytes:
        return pack((tag, start, call.key, digest(call.input), call.attempt, self.tick(), *rest))

    def pack_stopped(self, start: int, call: StepCall) -> bytes:
        """Return the record of a step that was cancelled."""
        return pack(("c", start, call.key, digest(call.input), self.tick()))

    def tick(self) -> float:
        """Read the store's clock for a record."""
        self.now = now = self._host.epoch + perf_counter()
        return now
