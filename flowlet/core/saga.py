"""Sagas: steps one after another, undone in reverse when one of them fails.

Law: the decision to undo is noted in the journal before the first compensation. Compensations run in
reverse order of completion, or together if the saga says so, each a step of its own, given the *recorded*
input and result of what it undoes. One that fails for good does not stop the others; an operator decides
about those that did. (Garcia-Molina and Salem, "Sagas", 1987, backward recovery.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from flowlet.core.bodies import StepBook
from flowlet.core.codec import encode, pack
from flowlet.core.current import run_context
from flowlet.core.definitions import Context, Undone
from flowlet.core.engine import COMPENSATING, Pending, Question, StepCall
from flowlet.core.program import Program
from flowlet.core.steps import ERROR, RESULT, UNENCODABLE, StepDefinition

Body = Callable[[Program], Awaitable[Any]]
"""What a saga does: the user's function with its inputs, or a list of steps, given the run's program."""


class SagaInterpretation(msgspec.Struct, eq=False):
    """One run of a saga, however it was spelled.

    Attributes:
        together: compensations run in parallel instead of one after another.
    """

    _starter: StepDefinition
    _body: Body
    _book: StepBook
    _context: Context
    together: bool = False

    @property
    def undoes(self) -> bool:
        """Whether a completed step has a compensation."""
        return bool(self._context.engine.done())

    async def forward(self) -> bytes:
        """Run the body; return its encoded result."""
        context = self._context
        current_task = context.current_task
        program = Program(context.engine, self._book, current_task, current_task(), context.instance)
        token = run_context.set(program)
        try:
            value = await self._body(program)
        finally:
            run_context.reset(token)
        starter = self._starter
        if type(value) is starter.scalar:
            try:
                return pack(value)
            except UNENCODABLE:
                pass  # such as a number that is too large
        what = f"the result of {starter.name!r}"
        data = encode(value, what)
        starter.result.decode(data, what)  # here a wrong type can still be undone
        return data

    async def backward(self, error: Exception) -> Undone:
        """Undo the completed steps that have a compensation; return when all of them are undone, or given up."""
        engine = self._context.engine
        done = engine.done()
        if not done:
            return Undone()
        engine.note(COMPENSATING, pack(engine.describe(error)))
        left: _Left = {}
        for call, value in reversed(done):
            left.setdefault(call.key, (call, value))  # of a step that was tried anew, the last that is known
        undone = Undone(tuple(left))
        tried: dict[str, StepCall] = {}
        while failed := await self._compensate(left, tried, error):
            left = {key: left[key] for key in await self._ask(failed, error)}
        return undone

    async def _compensate(self, left: _Left, tried: dict[str, StepCall], error: Exception) -> dict[str, Exception]:
        """Undo what is left, by keys; return what could not be undone and why.

        Args:
            tried: the calls that were made before, by the keys of what they undo; made ones are added.
        """
        failed: dict[str, Exception] = {}
        waiting: dict[Pending, str] = {}
        engine = self._context.engine
        for key, (done, value) in left.items():
            try:
                call = tried[key].anew() if key in tried else compensation_call(done, value, error)
                tried[key] = call
                if self.together:
                    waiting[engine.step(call)] = key
                else:
                    await engine.perform(call)
            except Exception as reason:
                failed[key] = reason
        while waiting:
            for pending in await engine.first(waiting):
                key = waiting.pop(pending)
                try:
                    await engine.value(pending)
                except Exception as reason:
                    failed[key] = reason
        return {key: failed[key] for key in left if key in failed}

    async def _ask(self, failed: dict[str, Exception], error: Exception) -> list[str]:
        """Have an operator decide about compensations that failed; return the keys of what to undo again."""
        while failed:
            question = Question(
                status="compensation_failed",
                reason=_describe(failed),
                steps=tuple(failed),
                errors=tuple(failed.values()),
                error=error,
            )
            verdict = await self._context.engine.attend(question)
            if verdict.action == "retry":
                return list(failed)
            failed = {key: reason for key, reason in failed.items() if key != verdict.step}
        return []


_Left = dict[str, tuple[StepCall, bytes | None]]
"""What is to be undone, by keys: the calls and their encoded results."""


def _describe(failed: dict[str, Exception]) -> str:
    what = "; ".join(f"{key!r} with {type(e).__name__}: {e}" for key, e in failed.items())
    return (
        f"compensation failed for {what}. What these steps did still stands: resume() compensates for just them "
        "again, skip() says that one was undone by hand"
    )


def compensation_call(call: StepCall, value: bytes | None, error: Exception) -> StepCall:
    """Make the call that undoes a recorded one, from what the journal keeps of it.

    Args:
        value: the step's encoded result, None if nobody knows whether it had one.
    """
    compensation = call.definition.compensation
    assert compensation is not None
    recorded: Sequence[Any] = call.definition.input.decode(call.input, f"the input of step {call.definition.name!r}")
    args: list[Any] = []
    for source in compensation.sources:
        if source == RESULT:
            args.append(None if value is None else call.definition.decode(value))
        elif source == ERROR:
            args.append(error)
        else:
            args.append(recorded[source])
    key = f"{call.key}~{compensation.step.name}"
    return StepCall(call.engine, compensation.step, key, tuple(args), call.input + (value or b""), call.owner)
