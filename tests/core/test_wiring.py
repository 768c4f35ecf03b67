"""Assembled definitions are wired by parameter names: results of steps, else inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from flowlet import Run, provided, step
from flowlet.core.faults import Faults
from flowlet.core.wiring import Wiring, wire


async def reserve(order: str, count: int) -> int:
    return 1


async def charge(order: str, reserve: int, run: Run = provided) -> str:
    return ""


async def ship(charge: str, reserve: int, fast: bool = False) -> float:
    return 0.5


def wired(*steps: Callable[..., Any], any_order: bool = False) -> Wiring:
    faults = Faults()
    found = wire("checkout", steps, {}, faults, any_order=any_order)
    assert faults.problems == []
    assert found is not None
    return found


def problems(*steps: Any, any_order: bool = False) -> list[str]:
    faults = Faults()
    assert wire("checkout", steps, {}, faults, any_order=any_order) is None
    return faults.problems


def test_inputs_are_what_no_step_provides_in_order_of_appearance_defaults_last() -> None:
    def late(zebra: int) -> None: ...

    wiring = wired(reserve, charge, ship, late)
    assert [(p.name, p.required) for p in wiring.inputs] == [
        ("order", True),
        ("count", True),
        ("zebra", True),
        ("fast", False),
    ]
    assert str(wiring.starter.signature) == "(order: str, count: int, zebra: int, fast: bool = False) -> None"


def test_arguments_are_picked_from_inputs_and_earlier_results() -> None:
    wiring = wired(reserve, charge, ship)
    inputs, values = ("o-1", 2, True), (10, "pay", None)
    assert [w.arguments(inputs, values) for w in wiring.steps] == [("o-1", 2), ("o-1", 10), ("pay", 10, True)]
    assert [w.needs for w in wiring.steps] == [(), (0,), (1, 0)]


def test_the_result_is_that_of_the_last_step() -> None:
    assert wired(reserve, charge, ship).starter.result.type is float


def test_steps_in_any_order_where_that_is_allowed() -> None:
    wiring = wired(ship, charge, reserve, any_order=True)
    assert [w.needs for w in wiring.steps] == [(1, 2), (2,), ()]
    assert wiring.starter.result.type is int


def test_a_step_before_what_it_needs() -> None:
    assert problems(charge, reserve) == [
        "checkout: step 'charge' takes the result of 'reserve', which comes later; "
        "reorder the steps or rename the parameter"
    ]


def test_a_step_that_needs_itself() -> None:
    async def loop(loop: int) -> int:
        return 1

    assert problems(loop) == ["checkout: step 'loop' takes its own result; reorder the steps or rename the parameter"]
    assert problems(loop, any_order=True) == [
        "checkout: steps need each other's results in a cycle: loop -> loop; rename a parameter to break it"
    ]


def test_a_cycle_is_shown_with_its_path() -> None:
    async def a(c: int) -> int:
        return 1

    async def b(a: int) -> int:
        return 1

    async def c(b: int) -> int:
        return 1

    async def after(c: int) -> int:
        return 1

    (problem,) = problems(after, a, b, c, any_order=True)
    prefix = "checkout: steps need each other's results in a cycle: "
    assert problem.startswith(prefix)
    path = problem.removeprefix(prefix).partition(";")[0].split(" -> ")
    needs = {"a": "c", "b": "a", "c": "b"}
    assert path[0] == path[-1]
    assert sorted(path[1:]) == ["a", "b", "c"]
    assert all(needs[after_] == before for before, after_ in itertools.pairwise(path))


def test_two_steps_of_one_name() -> None:
    @step(name="reserve")
    async def other(order: str) -> int:
        return 1

    assert problems(reserve, other) == ["checkout: has two steps named 'reserve'; rename one with @step(name=...)"]
    assert problems(reserve, reserve) == ["checkout: has two steps named 'reserve'; rename one with @step(name=...)"]


def test_things_that_are_no_functions() -> None:
    class Thing: ...

    found = problems("reserve", 3, Thing)
    assert found[:2] == [
        "checkout: 'reserve' is no function, so it cannot be a step",
        "checkout: 3 is no function, so it cannot be a step",
    ]
    assert len(found) == 3


def test_no_steps_at_all() -> None:
    assert problems() == ["checkout: has no steps; list the functions it is made of"]


def test_a_lambda_needs_a_name() -> None:
    found = problems(lambda: None)
    assert found == ["checkout: a step is named '<lambda>'; give it a name with @step(name=...)"]


def test_an_input_of_two_types() -> None:
    async def weigh(order: bytes) -> None: ...

    assert problems(reserve, weigh) == [
        "checkout: input 'order' is annotated str and, in step 'weigh', bytes; use one type or another name"
    ]


def test_faults_of_all_steps_are_reported_together() -> None:
    async def bare(x):  # type: ignore[no-untyped-def]
        return x

    async def loose(y: Any) -> None: ...

    found = problems(bare, loose)
    assert any(p.startswith("bare: its result has no annotation") for p in found)
    assert any(p.startswith("loose: parameter 'y' is annotated Any") for p in found)
