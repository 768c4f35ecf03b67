"""The seam between interpreters and the world.

Law: an interpreter is one task. It starts work through an `Engine` without awaiting it, and waits in
`Engine.first` (or `perform`, which is one start and one wait) and nowhere else. The answers of
`first` are history: a replay gives them in the recorded order before anything unrecorded starts. So an
interpreter that only uses this protocol runs on every engine, local or distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from flowlet.errors import RunError

if TYPE_CHECKING:
    from flowlet.core.failures import Failure
    from flowlet.core.program import Program
    from flowlet.core.run import Run
    from flowlet.core.run_records import AttemptErred, Resolved, StuckStatus
    from flowlet.core.steps import StepDefinition


class Suspended(BaseException):
    """The run cannot go on here and now; its journal has all it needs to go on later.

    Not an `Exception`, so that user code and interpreters let it pass.
    """


class StepWaits(Suspended):
    """Nothing is to be done for a step for now: its run may leave it if it has nothing else to do.

    Attributes:
        child: a run that it waits for and that goes on elsewhere, or later; its end is told to the run of the step.
        due: the time of its next attempt, in seconds of the store's clock, instead.
        failed: the attempt that has failed, if that was just now.
    """

    child: str | None
    due: float | None
    failed: AttemptErred | None

    def __init__(self, child: str | None = None, due: float | None = None, failed: AttemptErred | None = None) -> None:
        self.child, self.due, self.failed = child, due, failed
        super().__init__(child, due)


class Decided(BaseException):
    """The run is to unwind from here: it was told to, or its journal says that it did. The body must not go on.

    Not an `Exception`, so that interpreters and user code let it pass to whoever executes the run.

    Attributes:
        error: why.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error
        super().__init__(str(error))


OURS = "flowlet/"
"""What the topics of flowlet's own signals begin with."""

COMPENSATING = "compensating"
"""The key under which an interpreter notes its decision to unwind, with the encoded `Failure`."""

PATCHED = "patched/"
"""Prefix of the key under which `Engine.patch` notes that a run takes a new path."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a run asks its operator: how to go on where it cannot decide itself.

    Attributes:
        status: what listings say of the run meanwhile.
        reason: what happened and what can be done, for people.
        steps: the keys of the steps in question, with ``errors`` beside.
        error: why the run was being undone, if it was.
    """

    status: StuckStatus
    reason: str
    steps: tuple[str, ...]
    errors: tuple[Exception, ...] = ()
    error: Exception | None = None


class StepCall(msgspec.Struct, eq=False):
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
        spent: attempts made before an operator had the step tried anew; they do not count for its policy.
        doubtful: an earlier attempt was cut off, so that what it did is unknown.
        engine: the engine that executes it.
        result: what the user's function returned, if it was executed in this process.
    """

    # A struct, and not frozen: it is made for every step of every run, and made by C code.
    engine: Engine
    definition: StepDefinition
    key: str
    args: tuple[Any, ...]
    input: bytes
    owner: object | None = None
    scope: Program | None = None
    attempt: int = 1
    spent: int = 0
    doubtful: bool = False
    result: Any = msgspec.UNSET
    inside: Any = True
    _run: Run | None = None
    _begun: bool = False

    def begin(self, attempt: int) -> None:
        """Make this the scope of a further attempt."""
        if self._begun or attempt > 1:
            self.args = self._renew()
        self._begun = True
        self.attempt = attempt
        self._run = None

    def _renew(self) -> tuple[Any, ...]:
        """Return the inputs as they are on record, whatever an attempt has made of those that it was given."""
        if None not in self.definition.kinds:  # nothing of it can be changed, or it is no step of the user's
            return self.args
        return tuple(self.definition.input.decode(self.input, f"the input of step {self.key!r}"))

    def anew(self) -> StepCall:
        """Return the same call, to be made once more after it has failed for good, or was stopped."""
        call = StepCall(self.engine, self.definition, self.key, self._renew(), self.input, self.owner, self.scope)
        call.spent = self.attempt
        call.attempt = self.attempt + 1
        return call

    @property
    def idempotency_key(self) -> str:
        """That of the step; see `flowlet.Run`."""
        return f"{self.engine.run_id}/{self.key}"

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
        ended: it has a result, or has failed, or was stopped.
    """

    __slots__ = ("ended", "key", "start")

    def __init__(self, key: str, start: int) -> None:
        self.key: str = key
        self.start: int = start
        self.ended: bool = False


class Parked:
    """Awaited by a gathered step call: hands its pending to the gathering program and takes the result."""

    __slots__ = ("pending",)

    def __init__(self, pending: Pending) -> None:
        self.pending: Pending = pending

    def __await__(self) -> Generator[Pending, bytes, bytes]:
        return (yield self.pending)


class Engine(Protocol):
    """What a run may ask of the world. Starters never wait; only `first`, `value`, `perform` and `attend` do.

    Any of those may raise `Decided` or `Suspended`, which an interpreter lets pass.

    Attributes:
        run_id: the run's id.
        origin: the id that draws of the body derive from: another run's, while a fork repeats what that one did.
        committed: set by an interpreter that from here on only goes forward: the run can no longer be told to unwind.
    """

    run_id: str
    committed: bool

    @property
    def origin(self) -> str: ...

    def step(self, call: StepCall, /) -> Pending:
        """Start a step under its key."""
        ...

    def signal(self, key: str, topic: str, /, *, timeout: float | None = None) -> Pending:
        """Wait for a signal of a topic that no other wait has taken; its value is the signal's payload.

        Args:
            timeout: seconds, from when the run first waits, after which it ends with `SignalTimeout`.
        """
        ...

    def timer(self, key: str, /, *, delay: float | None = None, at: float | None = None) -> Pending:
        """Wait for a time; its value is of no meaning.

        Args:
            delay: seconds, from when the run first waits.
            at: seconds of the store's clock, instead.
        """
        ...

    def publish(self, key: str, value: bytes, /, *, in_step: bool = False) -> None:
        """Let others see a value under a key; a body that is replayed does not do so again.

        Raises:
            PayloadTooLarge: it has more bytes than may be stored.
        """
        ...

    def cancel(self, pending: Pending, /) -> None:
        """Ask for a pending to be stopped; it still ends, with a result or as `StepStopped`."""
        ...

    def note(self, key: str, value: bytes, /) -> bytes:
        """Record a decision before anything that follows from it; on replay, return the recorded one."""
        ...

    def patch(self, key: str, /) -> bool:
        """Tell whether the run takes the new path under this key: not if it is past this place already."""
        ...

    def keep(self, key: str, value: bytes | None, /) -> bytes | None:
        """Return a setting of the process that began the run, which goes for the run in every later one.

        To be asked before anything else.

        Args:
            value: the setting of this process; None for the default, of which there is no record.
        """
        ...

    def done(self) -> Sequence[tuple[StepCall, bytes | None]]:
        """Return the calls that can be undone, in the order of the journal, each with its encoded result.

        The result is None if nobody knows whether the step did anything and it wants to be undone even so.
        """
        ...

    def obey(self) -> None:
        """Go no further if the run has been told to unwind: to be asked before ``committed`` is set.

        Raises:
            Decided: it has been told.
        """
        ...

    async def attend(self, question: Question, /) -> Resolved:
        """Ask the operator and wait for the answer, which is ``"retry"`` or ``"skip"``."""
        ...

    async def first(self, pending: Collection[Pending], /) -> Sequence[Pending]:
        """Wait until at least one has ended; return those that have, as the journal orders them, each once."""
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
        "itself with @step(timeout=...), and a wait with receive(timeout=...)"
    )


CurrentTask = Callable[[], object]
"""Tells the task that runs now, whatever the event loop; injected by the runtime."""
