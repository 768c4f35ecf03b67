"""What running code sees of its run: `Run`, `current_run`, `gather`, and the body's `Program`.

Law: a body is one task. It performs steps one by one through `Program.call_step`, or several through
`gather`, which starts them in argument order and hands results out in the order of the journal. Keys
are the step's name plus an ordinal in the order first awaited, so they are the same on every replay.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import msgspec

from flowlet.core.current import run_context
from flowlet.core.engine import (
    PATCHED,
    CurrentTask,
    Engine,
    Parked,
    Pending,
    Question,
    StepCall,
    StepCancelled,
    cut_off,
)
from flowlet.core.marks import STEP_CODE, StepMark
from flowlet.core.steps import UNENCODABLE, StepDefinition, encode_input
from flowlet.errors import RunError

if TYPE_CHECKING:
    from uuid import UUID

    from flowlet.core.bodies import StepBook

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")
T6 = TypeVar("T6")


class Run:
    """The run that the code belongs to, as its body or one of its steps sees it.

    Take it with a parameter ``run: Run = provided`` or with `current_run`.

    Attributes:
        id: the run's id.
        idempotency_key: ``run id/step key`` in a step: constant over retries, crashes and processes;
            the run's id in its body.
        attempt: which attempt of the step this is, from 1; over all processes.

    Example:
        >>> from flowlet import Run, provided, step
        >>> @step
        ... async def charge(amount: int, run: Run = provided) -> str:
        ...     return f"{run.idempotency_key} attempt {run.attempt}"
    """

    __slots__ = ("_draws", "_engine", "_events", "_key", "_patches", "attempt", "id")

    def __init__(self, id: str, key: str, attempt: int, engine: Engine) -> None:
        self.id = id
        self._key = key
        self.attempt = attempt
        self._engine = engine
        self._draws = 0
        self._events: dict[str, int] | None = None
        self._patches: dict[str, bool] | None = None

    @property
    def idempotency_key(self) -> str:
        """Constant over retries, crashes and processes: give it to whatever the step talks to."""
        return f"{self.id}/{self._key}" if self._key else self.id

    def now(self) -> datetime:
        """Return the time (UTC) of the run's last record: the same on every replay."""
        return datetime.fromtimestamp(self._engine.now(), UTC)

    def uuid(self) -> UUID:
        """Return an id that is the same on every replay and attempt, and different at every call."""
        from uuid import UUID

        return UUID(bytes=self._draw(16), version=4)

    def random(self) -> float:
        """Return a number in [0, 1) that is the same on every replay and attempt, and different at every call."""
        return (int.from_bytes(self._draw(8), "big") >> 11) / (1 << 53)

    def patched(self, name: str, /) -> bool:
        """Tell whether the body takes its new path here: True in new runs, False in those that are past this place.

        The answer is recorded, so that it stays the same for this run. It lets unfinished runs end on the path
        that they began, without a new ``version=``.

        Args:
            name: of the change; one name has one answer in a run.

        Raises:
            RunError: it is asked in a step.

        Example:
            >>> from flowlet import Run, provided
            >>> async def checkout(order: str, run: Run = provided) -> None:      # the body of a saga
            ...     if run.patched("check-stock-first"):
            ...         ...  # the new step
        """
        if self._key:
            raise RunError("patched() is asked in the body of a run; a step may take either path")
        if not isinstance(name, str) or not name:
            raise RunError(f"patched() takes the name of a change, not {name!r}")
        if self._patches is None:
            self._patches = {}
        answer = self._patches.get(name)
        if answer is None:
            answer = self._patches[name] = self._engine.patch(PATCHED + name)
        return answer

    def _draw(self, size: int) -> bytes:
        """Derive bytes from the idempotency key and the number of draws before: no state to restore."""
        self._draws += 1
        seed = self.idempotency_key if self._key else self._engine.origin
        return hashlib.blake2b(f"{seed}/{self._draws}".encode(), digest_size=size).digest()

    def event_key(self, machine_id: str, event: str) -> str:
        """Return the key under which a machine remembers an event that this code fires, once per firing."""
        name = f"{machine_id}/{event}"
        if self._events is None:
            self._events = {}
        number = self._events[name] = self._events.get(name, 0) + 1
        return f"{self.idempotency_key}/{event}" if number == 1 else f"{self.idempotency_key}/{event}#{number}"

    def __repr__(self) -> str:
        return f"<Run {self.idempotency_key!r} attempt {self.attempt}>"


class InsideEvent:
    """The scope of a machine's callbacks when the body of a run has fired the event: like that of a step.

    The event is remembered under its key, so what the callbacks call is not journaled beside it.
    """

    __slots__ = ("_run",)
    inside: Any = True

    def __init__(self, run: Run, key: str) -> None:
        self._run = Run(run.id, key.removeprefix(f"{run.id}/"), 1, run._engine)

    def run(self) -> Run:
        """Return the run as the callbacks see it."""
        return self._run

    def event_key(self, machine_id: str, event: str) -> str:
        """See `Run.event_key`."""
        return self._run.event_key(machine_id, event)


def host_of(run: Run) -> Any:
    """Return what executes a run in this process, or None where its engine has no such thing."""
    return getattr(run._engine, "host", None)


def current_run() -> Run:
    """Return the run that this code is part of.

    Raises:
        RunError: the code runs outside of any run.

    Example:
        >>> from flowlet import current_run, step
        >>> @step
        ... async def charge(amount: int) -> str:
        ...     return current_run().idempotency_key
    """
    scope = run_context.get()
    if scope is None:
        raise RunError("current_run() was called outside of a run: only steps and bodies have one")
    return scope.run()


class Program(msgspec.Struct, eq=False):
    """The running body of one run: it turns step calls into starts and waits of the engine.

    Attributes:
        engine: the run's engine.
        inside: None: the code that runs is a body's.
        gathering: step calls are being collected, and must not wait.
        pivoted: a pivot has returned, so that from here on there is only forward.
        unusual: one of these two; steps take the longer way then.
    """

    engine: Engine
    _book: StepBook
    _current_task: CurrentTask
    _task: object
    _owner: object | None = None
    inside: None = None
    gathering: bool = False
    pivoted: bool = False
    unusual: bool = False
    _counts: dict[str, int] = {}
    _gathered: dict[Pending, StepCall] = {}
    _run: Run | None = None

    def run(self) -> Run:
        """Return the run as its body sees it."""
        if self._run is None:
            self._run = Run(self.engine.run_id, "", 1, self.engine)
        return self._run

    def event_key(self, machine_id: str, event: str) -> str:
        """See `Run.event_key`."""
        return self.run().event_key(machine_id, event)

    def begin(self, mark: StepMark, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepCall:
        """Make the call of a step that the body awaits.

        Raises:
            RunError: the body's task is not the one that runs.
            EncodeError: an argument cannot be stored.
        """
        owner, instance = None, self._owner
        if (mark.method or instance is not None) and args and (mark.method or args[0] is instance):
            owner, args = args[0], args[1:]
        definition = self._book.by_mark.get(mark)
        if definition is None or definition.method is (owner is None):
            definition = self._book.define(mark, owner is not None)
        return self.prepare(definition, args, kwargs, owner)

    def prepare(
        self,
        definition: StepDefinition,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        owner: object | None = None,
    ) -> StepCall:
        """Make the call of a step that is known; without ``kwargs``, ``args`` are bound already."""
        current_task = self._current_task
        if current_task() is not self._task:
            raise RunError(
                f"step {definition.name!r} was called from another task than its run's; for parallel steps write "
                "`a, b = await gather(f(x), g(y))` with flowlet's gather"
            )
        if kwargs or (len(args) != definition.arity and kwargs is not None):
            args = definition.bind(args, kwargs)
        data, given = exchange_call(definition, args)
        key = definition.name
        if definition.key is None and key not in self._counts:
            self._counts[key] = 1
        else:
            key = self._next_key(definition, args)
        return StepCall(self.engine, definition, key, given, data, owner, self)

    def end(self, call: StepCall, value: bytes) -> Any:
        """Give the body the result of a call, as a replay would."""
        definition = call.definition
        if definition.pivot:
            self.pivoted = self.unusual = self.engine.committed = True
        if type(call.result) is definition.scalar:
            return call.result  # an int, a str ... is what its encoding decodes to
        return definition.decode(value)

    async def perform(self, definition: StepDefinition, args: tuple[Any, ...], owner: object | None) -> Any:
        """Perform a step that is known, with bound arguments."""
        call = self.prepare(definition, args, None, owner)
        if self.unusual:
            return self.end(call, await self.perform_unusually(call))
        return self.end(call, await self.engine.perform(call))

    async def perform_unusually(self, call: StepCall) -> bytes:
        """Perform a call that is gathered, or comes after a pivot; return its encoded result."""
        if self.gathering:
            pending = self.engine.step(call)
            self._gathered[pending] = call
            return await Parked(pending)
        return await self._insist(call)

    async def _insist(self, call: StepCall, error: Exception | None = None) -> bytes:
        """Perform a call until it succeeds or an operator says how to go on: there is no way back.

        Args:
            error: what it has failed with already, if it has.
        """
        while True:
            if error is None:
                try:
                    return await self.engine.perform(call)
                except Exception as failure:
                    error = failure
            name = type(error).__name__
            question = Question(
                status="needs_attention",
                reason=f"step {call.key!r} has failed for good behind the pivot, with {name}: {error}; "
                "resume() tries it again, skip() goes on without it, compensate() undoes the run",
                steps=(call.key,),
                errors=(error,),
            )
            verdict = await self.engine.attend(question)
            if verdict.action == "skip":
                return _NOTHING if verdict.value is None else verdict.value
            error, call = None, call.anew()

    def _next_key(self, definition: StepDefinition, inputs: tuple[Any, ...]) -> str:
        """Return the step's own choice of a key, or its name and ordinal."""
        name = definition.name
        if definition.key is not None:
            chosen = definition.key(*inputs)
            if not isinstance(chosen, str) or not chosen or "~" in chosen:
                raise RunError(f"key= of step {name!r} must return a text without ~, not {chosen!r}")
            name = f"{name}:{chosen}"
        count = self._counts[name] = self._counts.get(name, 0) + 1
        if count == 1:
            return name
        if definition.key is not None:
            raise RunError(f"step key {name!r} was used twice in one run: make key= unique among its calls")
        return f"{name}#{count}"

    async def gather(self, calls: Sequence[Coroutine[Any, Any, Any]]) -> tuple[Any, ...]:
        """Start step calls in order, wait for all, hand out results in the order of the journal."""
        parked: dict[Pending, tuple[int, Coroutine[Any, Any, Any]]] = {}
        results: list[Any] = [None] * len(calls)
        failure: Exception | None = None
        self.gathering = self.unusual = True
        try:
            for index, call in enumerate(calls):
                try:
                    parked[call.send(None)] = (index, call)
                except Exception as error:  # an argument that cannot be stored, a key that is taken
                    failure = error
                    for pending in parked:
                        self.engine.cancel(pending)
                    break
            failure = await self._collect(parked, results, failure)
        finally:
            # A run that is suspended here tells the engine nothing: what was started is going on, or will.
            self.gathering = False
            self.unusual = self.pivoted
            self._gathered.clear()
            for call in calls:
                call.close()
        if failure is not None:
            raise failure
        return tuple(results)

    async def _collect(
        self,
        parked: dict[Pending, tuple[int, Coroutine[Any, Any, Any]]],
        results: list[Any],
        failure: Exception | None,
    ) -> Exception | None:
        """Wait for all; return why they failed together. Behind a pivot, also one among them, they do not.

        Args:
            failure: why the rest was not even started, if it was not.
        """
        first = failure
        left: list[tuple[Pending, int, Coroutine[Any, Any, Any], Exception | None]] = []
        while parked:
            for pending in await self.engine.first(parked):
                index, call = parked.pop(pending)
                try:
                    value = await self.engine.value(pending)
                except StepCancelled:
                    if first is None:  # nobody here has stopped it: on replay, that is where a body cut it off
                        first = failure = cut_off(pending.key)
                    left.append((pending, index, call, None))
                    continue
                except Exception as error:
                    problem = error
                    left.append((pending, index, call, error))
                else:
                    try:
                        results[index] = _hand_over(call, value)
                    except Exception as error:  # it does not decode to its type
                        problem = failure = error
                    else:
                        continue
                if first is None:
                    first = problem
                    if not self.pivoted:
                        for other in parked:
                            self.engine.cancel(other)
        if failure is not None or not self.pivoted:
            return first
        for pending, index, call, reason in left:
            gathered = self._gathered[pending]  # the pivot may have returned after another had been stopped
            value = await self._insist(gathered.anew() if reason is None else gathered, reason)
            results[index] = _hand_over(call, value)
        return None


def exchange_call(definition: StepDefinition, args: tuple[Any, ...]) -> tuple[bytes, tuple[Any, ...]]:
    """Do as `StepDefinition.exchange_input`; values that are what their encoding decodes to are not decoded."""
    kinds = definition.kinds
    if len(args) == 1 == len(kinds):  # most steps take one value, which takes a third of the time by itself
        is_known = type(args[0]) is kinds[0]
    else:
        is_known = tuple(map(type, args)) == kinds
    if is_known:
        try:
            return encode_input(args), args
        except UNENCODABLE:
            pass  # such as a number that is too large: the definition says which argument it is
    return definition.exchange_input(args)


_NOTHING = b"\xc0"
"""None, encoded."""


def _hand_over(call: Coroutine[Any, Any, Any], value: bytes) -> Any:
    """Give a parked call its outcome, with which it ends; return what it made of it."""
    try:
        call.send(value)
    except StopIteration as stop:
        return stop.value
    raise RunError("gather takes step calls only")  # pragma: no cover - a step call parks once


Direct = Callable[[tuple[Any, ...], dict[str, Any], "Run | None"], Coroutine[Any, Any, Any]]
"""Runs a definition for a direct call; the `Run` is that of the step which makes the call, if any."""


def make_caller(child: StepDefinition, direct: Direct) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return the coroutine function that stands for a definition: a child run in a body, else a run."""

    async def call_run(*args: Any, **kwargs: Any) -> Any:
        program = run_context.get()
        if program is None or program.inside is not None:
            return await direct(args, kwargs, None if program is None else program.run())
        assert isinstance(program, Program)
        call = program.prepare(child, args, kwargs)
        if program.unusual:
            value = await program.perform_unusually(call)
        else:
            value = await program.engine.perform(call)
        return program.end(call, value)

    return call_run


_GATHERABLE = (STEP_CODE, make_caller(cast(Any, None), cast(Any, None)).__code__)


@overload
async def gather(a: Awaitable[T1], /) -> tuple[T1]: ...
@overload
async def gather(a: Awaitable[T1], b: Awaitable[T2], /) -> tuple[T1, T2]: ...
@overload
async def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], /) -> tuple[T1, T2, T3]: ...
@overload
async def gather(
    a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], /
) -> tuple[T1, T2, T3, T4]: ...
@overload
async def gather(
    a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], e: Awaitable[T5], /
) -> tuple[T1, T2, T3, T4, T5]: ...
@overload
async def gather(
    a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], e: Awaitable[T5], f: Awaitable[T6], /
) -> tuple[T1, T2, T3, T4, T5, T6]: ...
@overload
async def gather(*awaitables: Awaitable[T]) -> tuple[T, ...]: ...
async def gather(*awaitables: Awaitable[Any]) -> tuple[Any, ...]:
    """Perform several steps in parallel, in a way that a replay repeats exactly.

    When one fails, the others are cancelled and awaited, and the failure is raised.

    Args:
        awaitables: step calls, such as ``ship(order)``; nothing else.

    Returns:
        The results in the order of the arguments.

    Raises:
        RunError: an argument is no step call, or the code is not the body of a run.

    Example:
        >>> from flowlet import gather, step
        >>> @step
        ... async def ship(order: str) -> str:
        ...     return f"label for {order}"
        >>> @step
        ... async def notify(order: str) -> str:
        ...     return f"mail about {order}"
        >>> async def checkout(order: str) -> str:      # the body of a saga
        ...     label, mail = await gather(ship(order), notify(order))
        ...     return label
    """
    scope = run_context.get()
    program = scope if isinstance(scope, Program) and scope.inside is None else None
    strangers = [a for a in awaitables if not (inspect.iscoroutine(a) and a.cr_code in _GATHERABLE)]
    if program is None or strangers:
        for awaitable in awaitables:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
        if program is None:
            raise RunError("gather works in the body of a run; elsewhere use an anyio task group or asyncio.gather")
        raise RunError(f"gather takes step calls only, not {strangers[0]!r}: mark the function with @step")
    return await program.gather(cast("tuple[Coroutine[Any, Any, Any], ...]", awaitables))
