"""What running code sees of its run: `Run`, `current_run`, `gather`, and the body's `Program`.

Law: a body is one task. It performs steps one by one through `Program.call_step`, or several through
`gather`, which starts them in argument order and hands results out in the order of the journal. Keys
are the step's name plus an ordinal in the order first awaited, so they are the same on every replay.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar, cast, overload
from uuid import UUID

from flowlet.core.current import run_context
from flowlet.core.engine import CurrentTask, Engine, Pending, StepCall, StepCancelled
from flowlet.core.marks import STEP_CODE, StepMark
from flowlet.core.steps import StepDefinition
from flowlet.errors import RunError

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

    __slots__ = ("_draws", "_engine", "_events", "_key", "attempt", "id", "program")

    def __init__(self, id: str, key: str, attempt: int, engine: Engine, program: Program | None) -> None:
        self.id = id
        self._key = key
        self.attempt = attempt
        self.program = program
        self._engine = engine
        self._draws = 0
        self._events: dict[str, int] | None = None

    @property
    def idempotency_key(self) -> str:
        """Constant over retries, crashes and processes: give it to whatever the step talks to."""
        return f"{self.id}/{self._key}" if self._key else self.id

    def now(self) -> datetime:
        """Return the time (UTC) of the run's last record: the same on every replay."""
        return datetime.fromtimestamp(self._engine.now(), timezone.utc)

    def uuid(self) -> UUID:
        """Return an id that is the same on every replay and attempt, and different at every call."""
        return UUID(bytes=self._draw(16), version=4)

    def random(self) -> float:
        """Return a number in [0, 1) that is the same on every replay and attempt, and different at every call."""
        return (int.from_bytes(self._draw(8), "big") >> 11) / (1 << 53)

    def _draw(self, size: int) -> bytes:
        """Derive bytes from the idempotency key and the number of draws before: no state to restore."""
        self._draws += 1
        return hashlib.blake2b(f"{self.idempotency_key}/{self._draws}".encode(), digest_size=size).digest()

    def event_key(self, machine_id: str, event: str) -> str:
        """Return the key under which a machine remembers an event that this code fires, once per firing."""
        name = f"{machine_id}/{event}"
        if self._events is None:
            self._events = {}
        number = self._events[name] = self._events.get(name, 0) + 1
        return f"{self.idempotency_key}/{event}" if number == 1 else f"{self.idempotency_key}/{event}#{number}"

    def __repr__(self) -> str:
        return f"<Run {self.idempotency_key!r} attempt {self.attempt}>"


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
    run = run_context.get()
    if run is None:
        raise RunError("current_run() was called outside of a run: only steps and bodies have one")
    return run


class Program:
    """The running body of one run: it turns step calls into starts and waits of the engine.

    Attributes:
        completed: the calls that have returned, in the order of the journal, with key and result.
    """

    __slots__ = (
        "_counts",
        "_current_task",
        "_define",
        "_engine",
        "_gathering",
        "_owner",
        "_task",
        "completed",
    )

    def __init__(
        self,
        engine: Engine,
        define: Callable[[StepMark, bool], StepDefinition],
        current_task: CurrentTask,
        owner: object | None = None,
    ) -> None:
        self._engine = engine
        self._define = define
        self._owner = owner
        self._current_task = current_task
        self._task = current_task()
        self._counts: dict[str, int] = {}
        self._gathering = False
        self.completed: list[tuple[StepCall, str, bytes]] = []

    async def call_step(self, mark: StepMark, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Perform the step that the body awaits, or give back its recorded result."""
        if self._current_task() is not self._task:
            raise _foreign_task(mark.name)
        owner = self._owner
        method = owner is not None and len(args) > 0 and args[0] is owner
        definition = self._define(mark, method)
        inputs = definition.bind(args[1:] if method else args, kwargs)
        return await self.perform(definition, inputs, owner if method else None)

    async def call_child(self, child: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Perform another definition as a child run; in this run it is a step."""
        if self._current_task() is not self._task:
            raise _foreign_task(child.name)
        return await self.perform(child, child.bind(args, kwargs))

    async def perform(self, definition: StepDefinition, inputs: tuple[Any, ...], owner: object | None = None) -> Any:
        """Perform a step on bound inputs."""
        call = StepCall(definition, inputs, definition.encode_input(inputs), owner)
        key = self.key(definition, inputs)
        if self._gathering:
            value: bytes = await _Park(self._engine.step(key, call))
        else:
            value = await self._engine.perform(key, call)
        if definition.compensation is not None:
            self.completed.append((call, key, value))
        return definition.decode(value)

    def key(self, definition: StepDefinition, inputs: tuple[Any, ...]) -> str:
        """Return the key of a call: the step's own choice, or its name and ordinal."""
        name = definition.name
        if definition.key is not None:
            name = f"{name}:{definition.key(*inputs)}"
        count = self._counts.get(name, 0) + 1
        self._counts[name] = count
        if count == 1:
            return name
        if definition.key is not None:
            raise RunError(f"step key {name!r} was used twice in one run: make key= unique among its calls")
        return f"{name}#{count}"

    async def gather(self, calls: Sequence[Coroutine[Any, Any, Any]]) -> tuple[Any, ...]:
        """Start step calls in order, wait for all, hand out results in the order of the journal."""
        parked: dict[Pending, tuple[int, Coroutine[Any, Any, Any]]] = {}
        results: list[Any] = [None] * len(calls)
        self._gathering = True
        try:
            for index, call in enumerate(calls):
                parked[call.send(None)] = (index, call)
            failure = await self._collect(parked, results)
        except BaseException:
            for pending in parked:
                self._engine.cancel(pending)
            for call in calls:
                call.close()
            raise
        finally:
            self._gathering = False
        if failure is not None:
            raise failure
        return tuple(results)

    async def _collect(
        self, parked: dict[Pending, tuple[int, Coroutine[Any, Any, Any]]], results: list[Any]
    ) -> Exception | None:
        failure: Exception | None = None
        while parked:
            for pending in await self._engine.first(list(parked)):
                index, call = parked.pop(pending)
                try:
                    results[index] = await self._finish(call, pending)
                except StepCancelled:
                    continue
                except Exception as error:
                    if failure is None:
                        failure = error
                        for other in parked:
                            self._engine.cancel(other)
        return failure

    async def _finish(self, call: Coroutine[Any, Any, Any], pending: Pending) -> Any:
        """Give a parked call its outcome; a step call ends then."""
        try:
            value = await self._engine.value(pending)
        except Exception:
            call.close()
            raise
        try:
            call.send(value)
        except StopIteration as stop:
            return stop.value
        raise RunError("gather takes step calls only")  # pragma: no cover - a step call parks once


def _foreign_task(name: str) -> RunError:
    return RunError(
        f"step {name!r} was called from another task than its run's; for parallel steps write "
        "`a, b = await gather(f(x), g(y))` with flowlet's gather"
    )


Direct = Callable[[tuple[Any, ...], dict[str, Any], "Run | None"], Coroutine[Any, Any, Any]]
"""Runs a definition for a direct call; the `Run` is that of the step which makes the call, if any."""


def make_caller(child: StepDefinition, direct: Direct) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return the coroutine function that stands for a definition: a child run in a body, else a run."""

    async def call_run(*args: Any, **kwargs: Any) -> Any:
        run = run_context.get()
        if run is not None and run.program is not None:
            return await run.program.call_child(child, args, kwargs)
        return await direct(args, kwargs, run)

    return call_run


_GATHERABLE = (STEP_CODE, make_caller(cast(Any, None), cast(Any, None)).__code__)  # type: ignore[attr-defined]


class _Park:
    """Awaited by a gathered step call: hands its pending to `Program.gather` and takes the result."""

    __slots__ = ("pending",)

    def __init__(self, pending: Pending) -> None:
        self.pending = pending

    def __await__(self) -> Generator[Pending, bytes, bytes]:
        return (yield self.pending)


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
    run = run_context.get()
    program = None if run is None else run.program
    strangers = [a for a in awaitables if not (inspect.iscoroutine(a) and a.cr_code in _GATHERABLE)]
    if program is None or strangers:
        for awaitable in awaitables:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
        if program is None:
            raise RunError("gather works in the body of a run; elsewhere use an anyio task group or asyncio.gather")
        raise RunError(f"gather takes step calls only, not {strangers[0]!r}: mark the function with @step")
    return await program.gather(awaitables)  # type: ignore[arg-type]  # checked to be coroutines above
