"""Executing a step: its attempts, timeout and retries, and the record of how it ended.

Law: a failed attempt is durable before the next one begins, and its number goes on over restarts. tenacity
decides about another attempt; this module waits. It knows one step at a time and nothing of replay.
"""

from __future__ import annotations

import contextvars
from collections.abc import Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from time import perf_counter
from typing import Any, Protocol, cast

import anyio
import msgspec

from flowlet.core.codec import pack
from flowlet.core.current import run_context
from flowlet.core.engine import Decided, StepCall, StepWaits, Suspended
from flowlet.core.failures import Failure, describe_failure
from flowlet.core.run import Run
from flowlet.core.run_records import AttemptErred
from flowlet.core.sizes import ALWAYS_FITS, FRAME, fit, too_large
from flowlet.core.steps import UNENCODABLE, Provide, digest
from flowlet.errors import ConfigError, EncodeError, LeaseLost, RunError, StepTimeout
from flowlet.runtime.journal import Journal, Perform
from flowlet.runtime.logs import Log
from flowlet.runtime.providers import Providers
from flowlet.runtime.tasks import call_in_thread

_LONG = 5.0
"""A pause before another attempt that is longer than so many seconds is waited for by nobody: the run is set aside."""


class Saver(Protocol):
    """How a step's records become durable before the step has ended.

    Attributes:
        stopping: the step was asked to stop, so that what it raises may be what came of that.
    """

    @property
    def stopping(self) -> bool: ...

    async def persist(self, record: bytes) -> None:
        """Make the record of a failed attempt durable."""
        ...

    async def transact(self, perform: Perform) -> None:
        """Commit what a transactional step does on the store's connection, together with its record."""
        ...


class Host(Protocol):
    """What an engine needs of the process it runs in.

    Attributes:
        closing: the process wants to stop: no further step may start.
        stopping: steps are being cut off, so that what they raise is no failure of theirs.
        deadline: the time of ``perf_counter`` at which the lease may have run out.
        epoch: the store's time when ``perf_counter`` was 0.
        durable: the store outlives the process. What is in one that does not needs to be up to date only
            when somebody else gets to run, which is when the body suspends.
    """

    closing: bool
    stopping: bool
    deadline: float
    epoch: float
    durable: bool
    log: Log
    max_payload: int | None
    provide: Provide
    providers: Providers | None

    def now(self) -> float:
        """Return the time of the store's clock."""
        ...

    def rouse_at(self, id: str, at: float) -> None:
        """Have a run look again at a time, which it waits for here."""
        ...

    def has_under(self, key: str) -> bool:
        """Tell whether what a step calls, or a body, may have runs under way that are to end with it."""
        ...

    async def halt_under(self, key: str, recorded: Collection[str] = ()) -> None:
        """Cancel these runs, and those that are on record, and wait until they have ended."""
        ...

    async def look_at(self, id: str) -> None:
        """See what signals have come in for a run that is executed here, and tell it."""
        ...

    async def pause(self, seconds: float) -> None:
        """Wait between two attempts, but not once the process wants to stop."""
        ...


class _Ordered(Protocol):
    """An engine, as far as it is asked here why its run is to unwind."""

    @property
    def ordered(self) -> Exception | None: ...


class StepRunner(msgspec.Struct, eq=False):
    """Executes the steps of one run.

    Attributes:
        now: the time of the last record that says how something ended: what the run sees as the time.
        last: the time of the last record of all; none is older than the one before it.
    """

    _journal: Journal
    _host: Host
    _definition: str
    now: float
    last: float
    _failure: tuple[Exception, Failure] | None = None
    stopping: bool = False

    async def attempt(
        self,
        start: int,
        call: StepCall,
        past: Sequence[AttemptErred],
        saver: Saver | None = None,
        records: list[bytes] | None = None,
    ) -> bytes:
        """Execute a step with its retries and timeout.

        Args:
            past: the attempts that are on record.
            saver: makes records durable, by default in the interpreter's own task.
            records: takes the step's last record, instead of the journal.
        """
        if len(call.input) > ALWAYS_FITS:
            self._check_input(start, call, records)
        if past:
            attempt, began = await self._past_attempts(call, past)
            attempt_began = perf_counter()
        else:
            attempt, began = call.spent + 1, perf_counter()
            attempt_began = began
        call.begin(attempt)
        try:
            result = await self._once(start, call, attempt_began, saver or self)
        except Exception as error:
            return await self.fail(start, call, began, attempt_began, error, saver, records)
        if call.definition.transactional:
            return bytes(result)
        return self.record_value(start, call, attempt_began, result, records)

    def _check_input(self, start: int, call: StepCall, records: list[bytes] | None) -> None:
        """Let a step fail before its effect if its record would have no room for what undoing it needs.

        Raises:
            PayloadTooLarge: it has not; that is recorded.
        """
        limit, size = self._host.max_payload, len(call.input) + len(call.key) + FRAME
        if limit is not None and size > limit and call.definition.compensation is not None:
            problem = too_large(size, limit, f"the input of step {call.key!r}, which is kept for its compensation,")
            self.record_error(start, call, 0.0, problem, records)
            raise problem

    async def _once(self, start: int, call: StepCall, began: float, saver: Saver) -> Any:
        """Make one attempt; return what the user's function did, of a transactional step encoded."""
        definition = call.definition
        token = run_context.set(call)
        try:
            if definition.transactional:
                return await self._transact(start, call, began, saver)
            provided = None
            if definition.providers:
                providers = self._host.providers
                if providers is not None and not providers.is_plain:
                    scope = providers.scope(definition.providers)
                    if scope is not None:
                        return await self._within(scope, call)
                provided = self._provided(call, self._host.provide)
            if definition.is_async and definition.timeout is None:
                return await definition.call(call.owner, call.args, provided)
            return await self._invoke(call, provided)
        finally:
            run_context.reset(token)

    async def _transact(self, start: int, call: StepCall, began: float, saver: Saver) -> bytes:
        """Make an attempt inside of the append that stores its record."""
        providers = self._host.providers
        scope = None if providers is None else providers.scope(call.definition.providers)
        async with nullcontext(self._host.provide) if scope is None else scope as provide:
            transaction = Transaction(self, start, call, began, self._offered(call, provide))
            await saver.transact(transaction)
        return transaction.value

    async def _within(self, scope: AbstractAsyncContextManager[Provide], call: StepCall) -> Any:
        """Make an attempt with values that are made, or taken, for it; what was taken is closed with it."""
        definition = call.definition
        async with AsyncExitStack() as stack:
            with anyio.move_on_after(definition.timeout) as limit:
                provide = await stack.enter_async_context(scope)
            if limit.cancelled_caught:
                raise StepTimeout(f"what step {call.key!r} takes was not made within {definition.timeout} s")
            provided = self._provided(call, provide)  # pyright: ignore[reportPossiblyUnboundVariable] - or it was cancelled
            if definition.is_async and definition.timeout is None:
                return await definition.call(call.owner, call.args, provided)
            return await self._invoke(call, provided)

    def _offered(self, call: StepCall, provide: Provide) -> dict[str, Any]:
        """Return what there is for provided parameters, and for the others why there is nothing."""
        offered: dict[str, Any] = {}
        for parameter in call.definition.providers:
            if parameter.annotation is not Run:
                try:
                    offered[parameter.name] = provide(parameter.annotation)
                except ConfigError as error:
                    offered[parameter.name] = error
        return offered

    async def _past_attempts(self, call: StepCall, past: Sequence[AttemptErred]) -> tuple[int, float]:
        """Go on where the recorded attempts ended: the next number, after the rest of the drawn delay."""
        first, last = past[0], past[-1]
        call.doubtful |= any(_timed_out(a) for a in past)
        left = last.at + last.delay - self._host.now()
        if left > _LONG:
            raise StepWaits(due=last.at + last.delay)
        await self._host.pause(left)
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

    async def _invoke(self, call: StepCall, provided: dict[str, Any] | None) -> Any:
        """Call the user's function once, in a thread if it is a plain def, within its timeout."""
        definition = call.definition
        limit = definition.timeout
        if not definition.is_async:
            done, result = await call_in_thread(
                lambda: definition.call(call.owner, call.args, provided), limit, lambda: self._host.stopping
            )
            if done:
                return result
        else:
            with anyio.move_on_after(limit):
                return await definition.call(call.owner, call.args, provided)
        raise StepTimeout(f"step {call.key!r} did not end within {limit} s; give it more with timeout=")

    def _provided(self, call: StepCall, provide: Provide) -> dict[str, Any]:
        return {p.name: call.run() if p.annotation is Run else provide(p.annotation) for p in call.definition.providers}

    async def fail(
        self,
        start: int,
        call: StepCall,
        began: float,
        attempt_began: float,
        error: Exception,
        saver: Saver | None = None,
        records: list[bytes] | None = None,
    ) -> bytes:
        """Decide what follows a failed attempt: another one, or the step's failure.

        Args:
            began: when the first attempt began.
            saver: as in `attempt`.

        Raises:
            Decided: it was to stop, so that nobody knows what its error says; no record is made of it.
        """
        saver = saver or self
        while True:
            if self._host.stopping:
                raise Suspended from error
            order = cast("_Ordered", call.engine).ordered
            if (order is not None or saver.stopping) and not call.definition.at_most_once:  # which nothing cuts off
                raise Decided(order or error) from error
            ended = perf_counter()
            delay = None
            if call.definition.retry is not None:
                from flowlet.runtime.retrying import next_delay

                try:
                    delay = next_delay(call.definition.retry, call.attempt - call.spent, error, ended - began)
                except Exception as broken:  # a stop, wait or retry of the user's own
                    error = broken
            if isinstance(error, StepTimeout):
                call.doubtful = True
            if delay is None:
                if self._host.has_under(call.idempotency_key):
                    await self._host.halt_under(call.idempotency_key)
                self.record_error(start, call, ended - attempt_began, error, records)
                try:
                    raise error
                finally:
                    del error  # this frame, which the error holds now, must not hold the error
            failure = fit(describe_failure(error), self._host.max_payload, len(call.key))
            seconds = ended - attempt_began
            record = self._pack("a", start, call, seconds, delay, failure)
            at = self.last
            await saver.persist(record)
            self._log_retry(call, delay, error)
            if delay > _LONG:
                failed = AttemptErred(start, call.key, digest(call.input), call.attempt, at, seconds, delay, failure)
                raise StepWaits(due=at + delay, failed=failed) from error
            await self._host.pause(delay)
            self.check_leave()
            call.begin(call.attempt + 1)
            attempt_began = perf_counter()
            try:
                result = await self._once(start, call, attempt_began, saver)
            except Exception as again:
                error = again
                continue
            if call.definition.transactional:
                return bytes(result)
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

    async def transact(self, perform: Perform) -> None:
        """Commit a transactional step from the interpreter's own task."""
        await self._journal.commit_with(perform)

    def record_value(
        self,
        start: int,
        call: StepCall,
        began: float,
        result: Any,
        records: list[bytes] | None = None,
        at: float | None = None,
    ) -> bytes:
        """Record what a step returned; return it encoded.

        Args:
            at: the time of the record, if it is not now.

        Raises:
            EncodeError, PayloadTooLarge: it cannot be stored, so the step has failed.
        """
        definition = call.definition
        try:
            value = pack(result)
        except UNENCODABLE as error:
            if definition.result.type is Any:  # a compensation, whose result nobody reads
                return self.record_value(start, call, began, None, records, at)
            problem: Exception = EncodeError(
                f"the result of step {call.key!r} cannot be stored: {error}; return msgspec types (Struct, "
                "dataclass, datetime, list ...)"
            )
            problem.__cause__ = error
        else:
            ended, host = perf_counter(), self._host
            if at is None:
                at = host.epoch + ended
                if at < self.last:  # written by a process that reads the store's clock a little later
                    at = self.last
                self.now = self.last = at
            seen = data = call.input
            if len(data) > 32:
                seen = digest(data)
            kept = None if definition.compensation is None else data
            # The shape of StepEnded, as a tuple: it is the one record that every step pays for.
            record = pack(("s", start, call.key, seen, call.attempt, at, ended - began, value, kept))
            limit = host.max_payload
            if limit is None or len(record) <= limit:
                call.result = result
                (self._journal.pending if records is None else records).append(record)
                return value
            if definition.result.type is Any and result is not None:
                return self.record_value(start, call, began, None, records, at)
            beside = "" if kept is None else ", with its input, which is kept for its compensation,"
            problem = too_large(len(record), limit, f"the result of step {call.key!r}{beside}")
        self.record_error(start, call, perf_counter() - began, problem, records)
        raise problem

    def record_error(
        self, start: int, call: StepCall, seconds: float, error: Exception, records: list[bytes] | None
    ) -> None:
        """Record the failure of a step."""
        record = self._pack("e", start, call, seconds, self.describe(error, call), call.doubtful)
        (self._journal.pending if records is None else records).append(record)

    def describe(self, error: Exception, call: StepCall | None = None) -> Failure:
        """Describe a failure, once: a step's error is recorded as the step's, the decision's and the run's."""
        if self._failure is None or self._failure[0] is not error:
            step, attempts = ("", 1) if call is None else (call.key, call.attempt)
            failure = describe_failure(error, step, attempts)
            self._failure = (error, fit(failure, self._host.max_payload, len(step)))
        return self._failure[1]

    def remember(self, error: Exception, failure: Failure) -> None:
        """Describe an error, which was rebuilt from its record, as that does."""
        self._failure = (error, failure)

    def forget(self) -> None:
        """Let go of the last failure, whose traceback holds this object."""
        self._failure = None

    def _pack(self, tag: str, start: int, call: StepCall, *rest: Any) -> bytes:
        at = self.tick() if tag == "e" else self.mark()
        return pack((tag, start, call.key, digest(call.input), call.attempt, at, *rest))

    def pack_stopped(self, start: int, call: StepCall, begun: bool, at: float) -> bytes:
        """Return the record of a step that was cancelled."""
        return pack(("c", start, call.key, digest(call.input), at, begun))

    def pack_began(self, start: int, call: StepCall) -> bytes:
        """Return the record that an attempt is about to begin."""
        return self._pack("b", start, call)

    def tick(self) -> float:
        """Read the store's clock for a record, which is never older than the one before it."""
        self.now = self.mark()
        return self.now

    def mark(self) -> float:
        """Do the same for a record that no interpreter sees: for the run, time does not go on with it."""
        now = self._host.now()
        if now > self.last:
            self.last = now
        return self.last


class Transaction:
    """One attempt of a transactional step, for the store to make on its connection.

    Args:
        offered: see `call_within`.

    Attributes:
        value: what the step has returned, encoded.
    """

    def __init__(
        self, runner: StepRunner, start: int, call: StepCall, began: float, offered: Mapping[str, Any]
    ) -> None:
        self._runner = runner
        self._start = start
        self._call = call
        self._began = began
        self._offered = offered
        self._context = contextvars.copy_context()  # the store may call from a thread of its own
        # Not when it has returned: what ends meanwhile is recorded behind it, and must not be older.
        self._at = runner.tick()
        self.value: bytes = b""

    def __call__(self, connection: object, /) -> bytes:
        """Make it and return its record. A store whose transaction was lost may call again."""
        self._call.begin(self._call.attempt)
        return self._record(self._context.copy().run(self._make_at_once, connection))

    async def awaited(self, connection: object, /) -> bytes:
        """Do the same for a store that awaits it on the event loop: the step may wait for what its connection does."""
        call = self._call
        call.begin(call.attempt)
        token = run_context.set(call)  # it may run in the task of the run and not of the step
        try:
            result = call_within(call, connection, self._offered)
            if call.definition.is_async:
                result = await result
        finally:
            run_context.reset(token)
        return self._record(result)

    def _make_at_once(self, connection: object) -> Any:
        result = call_within(self._call, connection, self._offered)
        definition = self._call.definition
        return _finish_at_once(result, definition.name) if definition.is_async else result

    def _record(self, result: Any) -> bytes:
        records: list[bytes] = []
        self.value = self._runner.record_value(self._start, self._call, self._began, result, records, self._at)
        return records[-1]


def call_within(call: StepCall, connection: object, offered: Mapping[str, Any]) -> Any:
    """Call a transactional step with the connection of the transaction that it is part of.

    Args:
        offered: the values of its other provided parameters, or the errors that say why there is none.

    Returns:
        What its function returns: a coroutine, where it is a coroutine function.

    Raises:
        ConfigError: it takes a connection of another kind.
    """
    definition = call.definition
    kinds = type(connection).__mro__[:-1]  # by name and not by shape: a connection fits many a protocol
    wanted = {p.name for p in definition.providers if p.annotation in kinds}
    if not wanted:
        kind = type(connection)
        raise ConfigError(
            f"this store gives transactional steps a {kind.__module__}.{kind.__qualname__}, and step "
            f"{definition.name!r} takes none: annotate a parameter with it, as in `connection: ... = provided`"
        )
    provided: dict[str, Any] = {}
    for parameter in definition.providers:
        value = connection if parameter.name in wanted else offered.get(parameter.name)
        if isinstance(value, ConfigError) and parameter.name not in wanted:
            raise value
        provided[parameter.name] = call.run() if parameter.annotation is Run else value
    return definition.call(call.owner, call.args, provided)


def _finish_at_once(coroutine: Coroutine[Any, Any, Any], step: str) -> Any:
    """Run a coroutine that must not wait; there may be no event loop where it runs."""
    advice = f"transactional step {step!r} waits for something while its transaction is open; do that in a step before"
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    except (RuntimeError, AttributeError) as error:
        if _misses_a_loop(error):
            raise RunError(advice) from error
        raise
    coroutine.close()
    raise RunError(advice)


def _misses_a_loop(error: Exception) -> bool:
    """Tell whether a library for waiting has raised it, since no event loop runs in this thread."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] in ("asyncio", "anyio", "sniffio", "trio")


def _timed_out(attempt: AttemptErred) -> bool:
    return attempt.error.type == f"{StepTimeout.__module__}:{StepTimeout.__qualname__}"
