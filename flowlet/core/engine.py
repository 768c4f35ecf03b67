"""The seam between interpreters and the world.

Law: an interpreter is one task. It starts work through an `Engine` without awaiting it, and waits in
`Engine.first` (or `perform`, which is one start and one wait) and nowhere else. The answers of
`first` are history: a replay gives them in the recorded order before anything unrecorded starts. So an
interpreter that only uses this protocol runs on every engine, local or distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
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

    Attributes:
        args: the inputs, in the order of the step's parameters.
        input: the same, encoded.
        owner: the object the step is a method of, or None.
    """

    __slots__ = ("args", "definition", "input", "owner")

    def __init__(
        self, definition: StepDefinition, args: tuple[Any, ...], input: bytes, owner: object | None = None
    ) -> None:
        self.definition = definition
        self.args = args
        self.input = input
        self.owner = owner


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


class Engine(Protocol):
    """What a run may ask of the world. Starters never wait; only `first`, `value` and `perform` do."""

    run_id: str

    def step(self, key: str, call: StepCall, /) -> Pending:
        """Start a step; the same key gives the same pending."""
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

    async def perform(self, key: str, call: StepCall, /) -> bytes:
        """Start one step and wait for its encoded result; cheaper than the three calls it stands for."""
        ...

    def now(self) -> float:
        """Return the time of the last record that the run has seen, in the store's seconds."""
        ...


class StepCancelled(Exception):
    """What `Engine.value` raises for a pending that was cancelled; never shown to users."""


CurrentTask = Callable[[], object]
"""Tells the task that runs now, whatever the event loop; injected by the runtime."""
