"""Runs that the body of a run starts without waiting for them.

Law: starting is a step, and so is waiting for the result, so that a replay starts nothing twice and sees the same. What
belongs to its parent is undone with it: the start is compensated by cancelling the child.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from flowlet.core.faults import describe
from flowlet.core.ids import check_id
from flowlet.core.steps import StepDefinition
from flowlet.errors import RunError

if TYPE_CHECKING:
    from flowlet.core.program import Program

R_co = TypeVar("R_co", covariant=True)

STARTS: Final = "__flowlet_starts__"
"""The attribute of what takes the place of an assembled definition that makes its `Starts`."""


class Starts(msgspec.Struct, frozen=True, eq=False):
    """The steps by which the body of a run starts another one.

    Attributes:
        starter: the definition seen as a call, which binds the inputs.
        attached: starts one that is undone with its parent; its last input is the id, or None.
        detached: starts one that is on its own.
        result: waits for one, given its id.
        cancel: cancels one and waits until it has ended.
    """

    starter: StepDefinition
    attached: StepDefinition
    detached: StepDefinition
    result: StepDefinition
    cancel: StepDefinition


class Child(Generic[R_co]):
    """A run that the body of another one has started.

    Attributes:
        id: the run's id.
    """

    __slots__ = ("_detached", "_program", "_starts", "id")

    def __init__(self, id: str, program: Program, starts: Starts, *, detached: bool) -> None:
        self.id: str = id
        self._program = program
        self._starts = starts
        self._detached = detached

    async def result(self) -> R_co:
        """Wait for its end and return its result; while it waits, the parent costs no task and no memory.

        Only if somebody else has started it, the parent waits where it is: it is not told of the end.

        Raises:
            Exception: what it failed with.
            RunError: it is detached, or the code is not the body of its parent.
        """
        if self._detached:
            raise RunError(f"run {self.id!r} was started with detached=True, so its parent is not told of its end")
        value: R_co = await _perform(self._program, self._starts.result, (self.id,))
        return value

    async def cancel(self) -> None:
        """Cancel it, and wait until it has undone what it did; nothing happens if it has ended."""
        await _perform(self._program, self._starts.cancel, (self.id,))

    def __repr__(self) -> str:
        return f"<Child {self.id!r}>"


async def start_child(
    program: Program, definition: Any, args: tuple[Any, ...], id: str | None, *, detached: bool
) -> Child[Any]:
    """Start a run from the body of another one; see `Run.start`."""
    make = getattr(definition, STARTS, None)
    if make is None:
        raise RunError(f"start() takes an assembled saga, pipeline or graph and its inputs, not {describe(definition)}")
    starts: Starts = make()
    if id is not None:
        check_id(id)
    step = starts.detached if detached else starts.attached
    made = await _perform(program, step, (*starts.starter.bind(args, {}), id))
    return Child(made, program, starts, detached=detached)


async def _perform(program: Program, step: StepDefinition, args: tuple[Any, ...]) -> Any:
    call = program.prepare(step, args, None)
    if program.unusual:
        return program.end(call, await program.perform_unusually(call))
    return program.end(call, await program.engine.perform(call))
