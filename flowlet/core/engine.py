"""The seam between interpreters and the world.

Law: an interpreter is one task. It starts work through an `Engine` without awaiting it, and waits in
`Engine.first` (or `perform`, which is one start and one wait) and nowhere else. The answers of
`first` are history: a replay gives them in the recorded order before anything unrecorded starts. So an
interpreter that only uses this protocol runs on every engine, local or distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from flowlet.errors import RunError

if TYPE_CHECKING:
    from flowlet.core.failures import Failure
    from flowlet.core.run import Program, Run
    from flowlet.core.steps import StepDefinition


class Suspended(BaseException):
    """The run cannot go on here and now; its journal has all it needs to go on later.

    Not an `Exception`, so that user code and interpreters let it pass.
    """


class Decided(BaseException):
    """The journal says that the run had decided to unwind here; the body must not go on.

    Attributes:
        value: what was noted with the decision.
    """

    def __init__(self, value: bytes) -> None:
        self.value = value
        super().__init__("the run has decided to unwind")


COMPENSATING = "compensating"
"""The key under which an interpreter notes its decision to unwind, with the encoded `Failure`."""


class StepCall:
    """One call of a step: what an engine needs to execute it and to recognise it on replay.

    While the step executes in a task of its own it is also the scope that `run_context` holds, with a
    `Run` that is made when somebody asks for it.

    Attributes:
        definition: the step.
        key: unique within the run, the same on every replay.
        args: the inputs, in the order of the step's parameters.
        input: the same, encoded.
        owner: the object the step is a method of, or None.
        scope: the program whose body makes the call, or None.
        attempt: the attempt that executes now, from 1.
        engine: the engine that executes it.
        result: what the user's function returned, if it was executed ``here``.
    """

    # Not slots: most calls never set these, and defaults in the class cost nothing per step.
    inside: Any = True
    scope: Program | None = None
    owner: object | None = None
    attempt: int = 1
    result: Any = None
    here: bool = False
    _run: Run | None = None

    def __init__(
        self,
        engine: Engine,
        definition: StepDefinition,
        key: str,
        args: tuple[Any, ...],
        input: bytes,
        owner: object | None = None,
        scope: Program | None = None,
    ) -> None:
        self.engine = engine
        self.definition = definition
        self.key = key
        self.args = args
        self.input = input
        if scope is not None:
            self.scope = scope
        if owner is not None:
            self.owner = owner

    def begin(self, attempt: int) -> None:
        """Make this the scope of a further attempt."""
        self.attempt = attempt
        self._run = None

    def run(self) -> Run:
        """Return the run as this attempt of the step sees it."""
        if self._run is None:
            from flowlet.core.run import Run

            self._run = Run(self.engine.run_id, self.key, self.attempt, self.engine)
        return self._run

    def event_key(self, machine_id: str, event: str) -> str:
        """See `Run.event_key`."""
        return self.run().event_key(machine_id, event)


class Pending:
    """Work that was started and may not have ended.

    Attributes:
        key: unique within the run, the same on every replay.
        start: its place in the order of starts, from 1.
    """

    __slots__ = ("key", "start")

    def __init__(self, key: str, start: int) -> None:
        self.key = key
        self.start = start


class Parked:
    """Awaited by a gathered step call: hands its pending to the gathering program and takes the result."""

    __slots__ = ("pending",)

    def __init__(self, pending: Pending) -> None:
        self.pending = pending

    def __await__(self) -> Generator[Pending, bytes, bytes]:
        return (yield self.pending)


class Engine(Protocol):
    """What a run may ask of the world. Starters never wait; only `first`, `value` and `perform` do."""

    run_id: str

    def step(self, call: StepCall, /) -> Pending:
        """Start a step under its key."""
        ...

    def cancel(self, pending: Pending, /) -> None:
        """Ask for a pending to be stopped; it still ends, with a result or as `StepStopped`."""
        ...

    def note(self, key: str, value: bytes, /) -> bytes:
        """Record a decision before anything that follows from it; on replay, return the recorded one."""
        ...

    async def first(self, pending: Sequence[Pending], /) -> Sequence[Pending]:
        """Wait until at least one has ended; return those that have, as the journal orders them."""
        ...

    async def value(self, pending: Pending, /) -> bytes:
        """Return the encoded result of one that has ended, or raise what it raised."""
        ...

    async def perform(self, call: StepCall, /) -> bytes:
        """Start one step and wait for its encoded result; cheaper than the three calls it stands for."""
        ...

    def describe(self, error: Exception, /) -> Failure:
        """Turn an exception into what is recorded of it."""
        ...

    def now(self) -> float:
        """Return the time of the last record that the run has seen, in the store's seconds."""
        ...


class StepCancelled(Exception):
    """What `Engine.value` raises for a pending that was cancelled; never shown to users."""


def cut_off(*keys: str) -> RunError:
    """Make the error for steps that a body has cut off by a timeout or cancel scope of its own."""
    names = ", ".join(repr(k) for k in keys)
    return RunError(
        f"a timeout or cancel scope in the body cut off step {names}, which a replay cannot repeat; limit the step "
        "itself with @step(timeout=...)"
    )


CurrentTask = Callable[[], object]
"""Tells the task that runs now, whatever the event loop; injected by the runtime."""
