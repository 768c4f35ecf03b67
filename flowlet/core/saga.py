"""Sagas: steps one after another, undone in reverse when one of them fails.

Law: the decision to undo is noted in the journal before the first compensation. Compensations run in
reverse order of completion, each a step of its own, given the *recorded* input and result of what it
undoes; one that fails for good does not stop the others. (Garcia-Molina and Salem, "Sagas", 1987,
backward recovery.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from flowlet.core.bodies import StepBook
from flowlet.core.codec import Codec, encode, pack
from flowlet.core.current import run_context
from flowlet.core.definitions import Context, Undone
from flowlet.core.engine import COMPENSATING, Decided, StepCall
from flowlet.core.failures import Failure, rebuild_failure
from flowlet.core.run import Program
from flowlet.core.steps import ERROR, RESULT, StepDefinition

failure_codec: Codec[Failure] = Codec(Failure)

Body = Callable[[Program], Awaitable[Any]]
"""What a saga does: the user's function with its inputs, or a list of steps, given the run's program."""


class SagaInterpretation:
    """One run of a saga, however it was spelled."""

    __slots__ = ("_body", "_book", "_context", "_program", "_starter")

    def __init__(self, starter: StepDefinition, body: Body, book: StepBook, context: Context) -> None:
        self._starter = starter
        self._body = body
        self._book = book
        self._context = context
        self._program: Program | None = None

    @property
    def undoes(self) -> bool:
        """Whether a completed step has a compensation."""
        return self._program is not None and bool(self._program.completed)

    async def forward(self) -> bytes:
        """Run the body; return its encoded result."""
        context = self._context
        book = self._book
        program = self._program = Program(
            context.engine, book.by_mark, book.define, context.current_task, context.instance
        )
        token = run_context.set(program)
        try:
            value = await self._body(program)
        except Decided as decision:
            raise rebuild_failure(failure_codec.decode(decision.value, "a recorded failure")) from None
        finally:
            run_context.reset(token)
        starter = self._starter
        what = f"the result of {starter.name!r}"
        data = encode(value, what)
        if type(value) is not starter.scalar:
            starter.result.decode(data, what)  # here a wrong type can still be undone
        return data

    async def backward(self, error: Exception) -> Undone:
        """Undo the completed steps that have a compensation."""
        if self._program is None or not self._program.completed:
            return Undone()
        engine = self._context.engine
        engine.note(COMPENSATING, pack(engine.describe(error)))
        undone: list[str] = []
        failed: list[str] = []
        errors: list[Exception] = []
        for call, value in reversed(self._program.completed):
            try:
                await engine.perform(compensation_call(call, value, error))
                undone.append(call.key)
            except Exception as reason:
                failed.append(call.key)
                errors.append(reason)
        return Undone(tuple(undone), tuple(failed), tuple(errors))


def compensation_call(call: StepCall, value: bytes, error: Exception) -> StepCall:
    """Make the call that undoes a recorded one, from what the journal keeps of it."""
    compensation = call.definition.compensation
    assert compensation is not None
    recorded = call.definition.input.decode(call.input, f"the input of step {call.definition.name!r}")
    args: list[Any] = []
    for source in compensation.sources:
        if source == RESULT:
            args.append(call.definition.decode(value))
        elif source == ERROR:
            args.append(error)
        else:
            args.append(recorded[source])
    key = f"{call.key}~{compensation.step.name}"
    return StepCall(call.engine, compensation.step, key, tuple(args), call.input + value, call.owner)
