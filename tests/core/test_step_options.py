"""What the options of a step demand of it and of where it is used; all of it is found at assembly."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from flowlet import Registry, Retry, Run, compensate, provided, step
from flowlet.errors import DefinitionError


@pytest.fixture
def registry() -> Registry:
    return Registry()


def problems_of(assemble: Any) -> str:
    with pytest.raises(DefinitionError) as raised:
        assemble()
    return "\n".join(raised.value.problems)


@step(pivot=True)
async def turn(n: int) -> int:
    return n


@step
async def go(turn: int) -> int:
    return turn


@pytest.mark.parametrize("shape", ["assembled", "function", "class"])
def test_a_pipeline_has_no_pivot(registry: Registry, shape: str) -> None:
    async def body(n: int) -> int:
        return await go(await turn(n))

    class Body:
        @step(pivot=True)
        async def turn(self, n: int) -> int:
            return n

        async def __call__(self, n: int) -> int:
            return await self.turn(n)

    things = {"assembled": ("pipe", turn, go), "function": (body,), "class": (Body,)}
    problems = problems_of(lambda: registry.pipeline(*things[shape]))  # type: ignore[call-overload]
    assert "step 'turn' is a pivot, but a pipeline never goes back; make it a saga" in problems


def test_pivots_are_exported(registry: Registry) -> None:
    registry.saga("sale", turn, go)
    (definition,) = registry.definitions.values()
    assert [(s["name"], s["pivot"]) for s in definition.export()["steps"]] == [("turn", True), ("go", False)]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"at_most_once": True, "retry": 2}, "at_most_once=True excludes retry="),
        ({"at_most_once": True, "retry": Retry(attempts=1)}, "at_most_once=True excludes retry="),
        ({"at_most_once": True, "transactional": True}, "is exactly once already"),
    ],
)
def test_what_excludes_each_other_is_refused_at_the_mark(options: dict[str, Any], problem: str) -> None:
    async def charge() -> None: ...

    assert problem in problems_of(lambda: step(**options)(charge))
    assert "charge" in problems_of(lambda: step(**options)(charge))


def test_a_transactional_step_takes_the_connection_and_no_timeout(registry: Registry) -> None:
    @step(transactional=True)
    async def without() -> None: ...

    @step(transactional=True)
    async def with_a_run_only(run: Run = provided) -> None: ...

    @step(transactional=True, timeout=1)
    async def timed(connection: sqlite3.Connection = provided) -> None: ...

    async def body() -> None:
        await without()
        await with_a_run_only()
        await timed()

    problems = sorted(problems_of(lambda: registry.saga(body)).splitlines(), key=lambda p: "excludes" in p)
    assert {p.partition(":")[0].rpartition(".")[2] for p in problems[:2]} == {"without", "with_a_run_only"}
    assert all("needs a parameter for the store's connection" in p for p in problems[:2])
    assert "timed: transactional=True excludes timeout=" in problems[2]
    assert len(problems) == 3


def test_an_unknown_outcome_can_only_be_undone_without_a_result(registry: Registry) -> None:
    @step(compensate_unknown=True)
    async def alone() -> int:
        return 1

    @step(compensate_unknown=True)
    async def charge() -> int:
        return 1

    @compensate(charge)
    async def refund(charge: int) -> None: ...

    @step(compensate_unknown=True, at_most_once=True)
    async def fine() -> int:
        return 1

    @compensate(fine)
    async def unfine(fine: int | None) -> None: ...

    async def body() -> None:
        await alone()
        await charge()
        await fine()

    problems = problems_of(lambda: registry.saga(body))
    assert len(problems.splitlines()) == 2
    assert "alone: compensate_unknown=True needs a @compensate for the step" in problems
    assert "parameter 'charge' must take None as well" in problems


def test_all_of_them_together(registry: Registry) -> None:
    @step(pivot=True, compensate_unknown=True, transactional=True, timeout=1)
    def all_wrong() -> int:
        return 1

    problems = problems_of(lambda: registry.pipeline("pipe", all_wrong))
    assert "needs a @compensate" in problems
    assert "needs a parameter for the store's connection" in problems
    assert "excludes timeout=" in problems
