"""Order without a value, how much runs at once, and runs of other definitions as steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, compensate, step
from flowlet.errors import DefinitionError

pytestmark = pytest.mark.anyio


class Broken(Exception):
    pass


class Crowd:
    """Steps that count how many of them run at once; the first ones wait until so many are there."""

    def __init__(self, size: int = 1) -> None:
        self.now = self.most = 0
        self.order: list[str] = []
        self._size = size
        self._complete = anyio.Event()

    def make(self, name: str) -> Callable[..., Any]:
        async def work(n: int) -> int:
            self.order.append(name)
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now == self._size:
                self._complete.set()
            with anyio.fail_after(10):
                await self._complete.wait()
            await anyio.lowlevel.checkpoint()
            self.now -= 1
            return n

        return step(name=name)(work)


# ------------------------------------------------------------------ needs=
async def test_a_step_comes_after_another_without_its_value(flow: Flowlet) -> None:
    order: list[str] = []

    loaded = anyio.Event()

    async def audit(n: int) -> str:
        if n == 1:
            await loaded.wait()
        order.append("audit")
        return "seen"

    async def load(n: int) -> int:
        order.append("load")
        loaded.set()
        return n

    loose = flow.pipeline("loose", audit, load)
    strict = flow.pipeline("strict", audit, load, needs={load: audit})
    several = flow.pipeline("several", load, audit, needs={"load": ["audit"]})
    async with flow:
        assert await loose(1) == 1
        assert order == ["load", "audit"]
        assert await strict(2) == 2
        assert await several(3) == "seen"
    assert order[2:] == ["audit", "load", "audit", "load"]
    assert flow.registry.definitions["strict", "1"].export()["steps"][1]["needs"] == ["audit"]


async def test_what_comes_after_a_skipped_or_failed_step_is_skipped_and_says_so(flow: Flowlet) -> None:
    async def audit(n: int) -> int:
        if n > 1:
            raise Broken
        return n

    async def load(n: int) -> int:
        return n

    async def end(n: int) -> int:
        return n

    pipe = flow.pipeline(
        "p", audit, load, end, needs={load: [audit]}, when={audit: lambda n: n != 1}, on_error={audit: "skip"}
    )
    async with flow:
        for n, reason in ((1, "audit was skipped"), (2, "audit failed")):
            handle = await flow.start(pipe, n)
            assert await handle.result() == n
            report = (await handle.report()).steps
            assert (report["load"].status, report["load"].error) == ("skipped", reason)


# ------------------------------------------------------------------ max_concurrency=
@pytest.mark.parametrize("limit", [1, 2, 3, None])
async def test_so_many_steps_run_at_once_and_none_is_dropped(flow: Flowlet, limit: int | None) -> None:
    crowd = Crowd(limit or 7)
    steps = [crowd.make(f"s{i}") for i in range(7)]
    pipe = flow.pipeline("p", *steps, max_concurrency=limit)
    async with flow:
        assert await pipe(5) == 5
    assert crowd.most == (limit or 7)
    assert sorted(crowd.order) == [f"s{i}" for i in range(7)]
    if limit == 1:
        assert crowd.order == sorted(crowd.order)


async def test_what_waits_for_its_turn_is_not_begun_when_the_pipeline_stops(flow: Flowlet) -> None:
    begun: list[str] = []

    async def a(n: int) -> int:
        begun.append("a")
        await anyio.sleep_forever()
        return n

    async def bad(n: int) -> int:
        raise Broken

    async def late(n: int) -> int:
        begun.append("late")
        return n

    pipe = flow.pipeline("p", a, bad, late, max_concurrency=2)
    async with flow:
        handle = await flow.start(pipe, 1)
        with pytest.raises(Broken):
            await handle.result()
        assert begun == ["a"]
        assert sorted((await handle.report()).steps) == ["a", "bad"]


# ------------------------------------------------------------------ other definitions
async def double(n: int) -> int:
    return 2 * n


async def add(double: int, n: int) -> int:
    return double + n


async def test_a_pipeline_in_a_pipeline_is_a_run_of_its_own(flow: Flowlet) -> None:
    triple = flow.pipeline("triple", double, add)

    async def write(triple: int) -> str:
        return f"{triple}!"

    outer = flow.pipeline("outer", triple, write)
    async with flow:
        assert await outer(5) == "15!"
        handle = await flow.start(outer, 7, id="o")
        assert await handle.result() == "21!"
        assert await flow.handle("o/triple").result() == 21
        assert (await handle.report()).steps["triple"].value == 21


async def test_functions_and_classes_that_are_assembled_are_steps(flow: Flowlet) -> None:
    first = step(double)

    @flow.pipeline
    async def one(n: int) -> int:
        return await first(n) + 1

    @flow.saga
    class Two:
        async def __call__(self, one: int) -> int:
            return one + 1

    async def three(Two: int) -> int:
        return Two + 1

    outer = flow.pipeline("outer", one, Two, three)
    async with flow:
        assert await outer(5) == 13


async def test_a_saga_in_a_pipeline_that_fails_is_undone_by_itself(flow: Flowlet) -> None:
    undone: list[int] = []

    @step
    async def book(n: int) -> int:
        return n

    @compensate(book)
    async def unbook(book: int) -> None:
        undone.append(book)

    async def fly(book: int) -> int:
        raise Broken("no plane")

    trip = flow.saga("trip", book, fly)
    outer = flow.pipeline("outer", trip, double, on_error={trip: "skip"})
    async with flow:
        assert await outer(4) == 8
    assert undone == [4]


async def test_a_definition_for_each_item(flow: Flowlet) -> None:
    triple = flow.pipeline("triple", double, add)

    async def n(count: int) -> list[int]:
        return list(range(count))

    outer = flow.pipeline("outer", n, triple, each={triple: "n"})
    async with flow:
        assert await flow.execute(outer, 4, id="o") == [0, 3, 6, 9]
        assert await flow.handle("o/triple[3]").result() == 9


async def test_a_definition_with_a_name_that_is_no_identifier(flow: Flowlet) -> None:
    triple = flow.pipeline("tri-ple", double, add)
    with pytest.raises(DefinitionError, match="a step is named 'tri-ple'; give it a name with name="):
        flow.pipeline("outer", triple)


async def test_a_pipeline_in_a_saga_of_steps(flow: Flowlet) -> None:
    triple = flow.pipeline("triple", double, add)
    undone: list[int] = []

    @step
    async def book(n: int) -> int:
        return n

    @compensate(book)
    async def unbook(book: int) -> None:
        undone.append(book)

    async def fly(triple: int) -> int:
        if triple > 10:
            raise Broken
        return triple

    trip = flow.saga("trip", book, triple, fly)
    async with flow:
        assert await trip(3) == 9
        with pytest.raises(Broken):
            await trip(4)
    assert undone == [4]


# ------------------------------------------------------------------ faults
def faults(flow: Flowlet, *steps: Any, **options: Any) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        flow.pipeline("p", *steps, **options)
    return list(caught.value.problems)


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "2"])
async def test_limits_that_are_none(flow: Flowlet, limit: Any) -> None:
    assert faults(flow, double, max_concurrency=limit) == [
        f"p: max_concurrency= must be a whole number of at least 1, or None, not {limit!r}"
    ]


async def test_what_is_no_mapping(flow: Flowlet) -> None:
    assert faults(flow, double, needs=[double], each=3, finally_="close") == [
        f"p: needs= is a mapping by step, not {[double]!r}",
        "p: each= is a mapping by step, not 3",
        "p: finally_= is a function or a list of functions, not 'close'",
    ]


async def test_needs_of_what_is_not_there_and_cycles(flow: Flowlet) -> None:
    assert faults(flow, double, add, needs={"ad": "double", add: ["duble"]}) == [
        "p: needs= names 'ad', which is no step of it; did you mean 'add'?",
        "p: needs= names 'duble', which is no step of it; did you mean 'double'?",
    ]
    assert faults(flow, double, add, needs={add: None}) == ["p: needs= of 'add' is a step or a list of steps, not None"]
    assert faults(flow, double, add, needs={double: add}) == [
        "p: steps wait for each other in a cycle: double -> add -> double; change needs= or a parameter to break it"
    ]
    assert faults(flow, double, needs={double: double}) == [
        "p: steps wait for each other in a cycle: double -> double; change needs= or a parameter to break it"
    ]


async def test_a_name_given_twice(flow: Flowlet) -> None:
    assemble: Any = flow.pipeline
    with pytest.raises(DefinitionError, match=r"pipeline 'p': .* has its name in front; leave name='q' out"):
        assemble("p", double, name="q")
    assemble = flow.saga
    with pytest.raises(DefinitionError, match=r"saga 's': .* has its name in front; leave name='q' out"):
        assemble("s", double, name="q")


async def test_all_that_is_wrong_is_said_at_once(flow: Flowlet) -> None:
    found = faults(
        flow,
        double,
        add,
        version=0,
        needs={add: "duble"},
        when={"ad": lambda double: True},
        on_error={"*": "skip", "doubel": 1},
        max_concurrency=0,
    )
    assert found == [
        "p: version must be a whole number of at least 1, not 0",
        "p: needs= names 'duble', which is no step of it; did you mean 'double'?",
        "p: max_concurrency= must be a whole number of at least 1, or None, not 0",
        "p: when= names 'ad', which is no step of it; did you mean 'add'?",
        "p: on_error= names 'doubel', which is no step of it; did you mean 'double'?",
    ]


async def test_conditions_that_cannot_be_asked(flow: Flowlet) -> None:
    assert faults(flow, double, add, when={double: max, add: lambda *double: True}) == [
        "p: when= of 'double': has no signature that can be read; write a function, such as a lambda",
        "p: when= of 'add': takes *args or **kwargs; name what it takes",
    ]


async def test_a_consumer_that_cannot_take_what_is_produced(flow: Flowlet) -> None:
    async def shout(double: str) -> str:
        return double

    async def count(shout: list[int]) -> int:
        return 0

    assert faults(flow, double, shout, count) == [
        "p: step 'shout' takes double: str, but step 'double' returns int; change one of the annotations",
        "p: step 'count' takes shout: list[int], but step 'shout' returns str; change one of the annotations",
    ]
