"""A mark annotates and registers nothing; what it returns is what was given, or still looks like it."""

from __future__ import annotations

import enum
import inspect
from datetime import timedelta
from typing import Any, cast

import pytest

from flowlet import Retry, compensate, guard, state, step, transition
from flowlet.core.marks import COMPENSATES, GUARD, STATE, TRANSITIONS, StateMark, step_mark
from flowlet.errors import DefinitionError, MachineError

pytestmark = pytest.mark.anyio


def test_state_returns_the_class_and_notes_the_options() -> None:
    class Draft: ...

    class Done: ...

    assert state(Draft) is Draft
    assert state(final=True, value="the end")(Done) is Done
    plain, final = getattr(Draft, STATE), getattr(Done, STATE)
    assert (plain.initial, plain.final, plain.parallel, plain.value) == (False, False, False, None)
    assert (final.initial, final.final, final.value) == (False, True, "the end")


def test_equal_state_marks_are_different_members_of_an_enum() -> None:
    class Door(enum.Enum):
        CLOSED = state(initial=True)
        OPEN = state()
        AJAR = state()  # noqa: PIE796 - that they differ is the point

    assert [d.name for d in Door] == ["CLOSED", "OPEN", "AJAR"]
    assert isinstance(Door.OPEN.value, StateMark)


def test_state_on_a_function_is_refused() -> None:
    def draft() -> None: ...

    with pytest.raises(DefinitionError, match="draft: @state marks a class"):
        state()(cast(Any, draft))


def test_guard_returns_the_function() -> None:
    def ready(self: object) -> bool:
        return True

    def steady(self: object) -> bool:
        return True

    assert guard(ready) is ready
    assert guard(name="calm")(steady) is steady
    assert (getattr(ready, GUARD), getattr(steady, GUARD)) == ("ready", "calm")


async def test_transition_is_a_coroutine_function_that_says_that_the_class_is_not_assembled() -> None:
    class Lamp:
        @state(initial=True)
        class Off: ...

        @state
        class On: ...

        @transition(Off, On)
        async def press(self, hard: bool) -> str:
            """Press it."""
            return "light"

    assert inspect.iscoroutinefunction(Lamp.press)
    assert Lamp.press.__doc__ == "Press it."
    assert list(inspect.signature(Lamp.press).parameters) == ["self", "hard"]
    with pytest.raises(MachineError, match=r"Lamp has not been assembled: put @flow\.machine"):
        await Lamp().press(True)


def test_stacked_transitions_keep_their_order_top_first() -> None:
    @transition("a", "b")
    @transition(("b", "c"), "a", event="back", on_conflict="retry", exclusive=True)
    async def move(self: object) -> None: ...

    trigger = getattr(move, TRANSITIONS)
    assert [(m.sources, m.target, m.event) for m in trigger.transitions] == [
        (("a",), "b", None),
        (("b", "c"), "a", "back"),
    ]
    assert trigger.transitions[1].exclusive
    assert trigger.transitions[1].on_conflict == "retry"
    assert trigger.action.__name__ == "move"
    assert not hasattr(trigger.action, TRANSITIONS)


async def test_a_step_outside_of_a_run_is_just_the_function() -> None:
    @step
    async def double(n: int, *, plus: int = 0) -> int:
        """Twice."""
        return 2 * n + plus

    @step(retry=3, timeout=0.5)
    def halve(n: int) -> int:
        return n // 2

    assert inspect.iscoroutinefunction(double)
    assert not inspect.iscoroutinefunction(halve)
    assert await double(4, plus=1) == 9
    assert halve(4) == 2
    assert double.__doc__ == "Twice."
    assert str(inspect.signature(double)) == "(n: 'int', *, plus: 'int' = 0) -> 'int'"


async def test_a_step_outside_of_a_run_is_not_retried_and_raises_its_own_error() -> None:
    calls = []

    @step(retry=3)
    async def fail() -> None:
        calls.append(1)
        raise KeyError("no")

    with pytest.raises(KeyError):
        await fail()
    assert calls == [1]


def test_what_a_step_notes() -> None:
    policy = Retry(attempts=2)

    @step(name="other", retry=policy, timeout=timedelta(seconds=90), key=str)
    async def one(n: int) -> int:
        return n

    @step(retry=4)
    def two() -> None: ...

    first, second = step_mark(one), step_mark(two)
    assert first is not None
    assert second is not None
    assert (first.name, first.retry, first.timeout, first.is_async) == ("other", policy, 90.0, True)
    assert (second.name, second.timeout, second.is_async) == ("two", None, False)
    assert second.retry is not None
    assert second.retry.attempts == 4
    assert step_mark(len) is None


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "3", True])
def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    with pytest.raises(DefinitionError, match="timeout: must be"):
        step(timeout=timeout)(lambda: None)
    with pytest.raises(DefinitionError, match="timeout: must be"):
        compensate(lambda: None, timeout=timeout)


@pytest.mark.parametrize("retry", [0, -1, True, "3", 2.0, object()])
def test_a_retry_is_a_policy_or_a_number_of_attempts(retry: Any) -> None:
    with pytest.raises(DefinitionError, match=r"attempts must be a whole number|retry= takes a Retry or a number"):
        step(retry=retry)(lambda: None)
    with pytest.raises(DefinitionError, match=r"attempts must be a whole number|retry= takes a Retry or a number"):
        compensate(lambda: None, retry=retry)


def test_compensate_returns_the_function_and_is_noted_on_both() -> None:
    @step
    async def charge() -> str:
        return "p"

    async def refund(charge: str) -> None: ...

    assert compensate(charge, retry=2, timeout=1)(refund) is refund
    mark = getattr(refund, COMPENSATES)
    noted = step_mark(charge)
    assert noted is not None
    assert noted.compensations == [mark]
    assert (mark.function, mark.step, mark.timeout) == (refund, charge, 1.0)
    assert mark.retry.attempts == 2


async def test_a_compensation_called_by_hand_is_just_the_function() -> None:
    @step
    async def charge() -> str:
        return "p"

    @compensate(charge)
    async def refund(charge: str) -> str:
        return f"back {charge}"

    assert await refund("p-1") == "back p-1"
