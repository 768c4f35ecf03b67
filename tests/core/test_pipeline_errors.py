"""What follows a failure: one rule for all steps or one for each, functions and values that stand in."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

import anyio
import pytest
from msgspec import Struct

from flowlet import Flowlet, Retry, Run, current_run, provided, step
from flowlet.core.faults import describe
from flowlet.errors import DefinitionError, StepTimeout

pytestmark = pytest.mark.anyio


class Broken(Exception):
    pass


class Point(Struct):
    x: int


async def source(n: int) -> int:
    return n


async def bad(source: int) -> int:
    raise Broken("bad")


async def worse(source: int) -> int:
    raise Broken("worse")


async def end(bad: int, worse: int) -> int:
    return bad + worse


async def after(source: int) -> int:
    return source


# ------------------------------------------------------------------ values
async def test_a_value_stands_in_for_a_result(flow: Flowlet) -> None:
    pipe = flow.pipeline("p", source, bad, worse, end, on_error={bad: 40, "worse": 2})
    async with flow:
        handle = await flow.start(pipe, 1)
        assert await handle.result() == 42
        report = (await handle.report()).steps
    assert (report["bad"].status, report["bad"].value, report["bad"].error) == ("failed", 40, "Broken: bad")


async def test_one_value_for_all(flow: Flowlet) -> None:
    pipe = flow.pipeline("p", source, bad, worse, end, on_error=1)
    async with flow:
        assert await pipe(1) == 2


async def test_none_stands_in_where_the_step_may_return_none(flow: Flowlet) -> None:
    async def find(n: int) -> Point | None:
        raise Broken

    async def show(find: Point | None) -> str:
        return "nothing" if find is None else str(find.x)

    pipe = flow.pipeline("p", find, show, on_error={find: None})
    async with flow:
        assert await pipe(1) == "nothing"


async def test_what_stands_in_is_of_the_type_of_the_result_and_belongs_to_one_run(flow: Flowlet) -> None:
    async def points(n: int) -> list[Point]:
        raise Broken

    async def use(points: list[Point]) -> list[int]:
        points.append(Point(9))
        return [p.x for p in points]

    pipe = flow.pipeline("p", points, use, on_error={points: [Point(1)]})
    async with flow:
        assert await pipe(1) == [1, 9]
        assert await pipe(1) == [1, 9]
        handle = await flow.start(pipe, 1)
        await handle.result()
        assert (await handle.report()).steps["points"].value == [Point(1)]


async def test_a_mapping_that_stands_in_is_given_by_step(flow: Flowlet) -> None:
    async def ages(n: int) -> dict[str, int]:
        raise Broken

    pipe = flow.pipeline("p", ages, on_error={ages: {"ann": 40}})
    async with flow:
        assert await pipe(1) == {"ann": 40}


# ------------------------------------------------------------------ rules
async def test_others_are_those_that_are_not_named(flow: Flowlet) -> None:
    lenient = flow.pipeline("lenient", source, bad, worse, end, after, on_error={"*": "skip", bad: 1})
    strict = flow.pipeline("strict", source, bad, worse, end, after, on_error={"*": "stop", bad: 1})
    async with flow:
        handle = await flow.start(lenient, 5)
        assert await handle.result() == 5
        report = (await handle.report()).steps
        assert (report["end"].status, report["end"].error) == ("skipped", "worse failed")
        with pytest.raises(Broken, match="worse"):
            await strict(5)


async def test_a_rule_is_asked_after_the_last_attempt(flow: Flowlet) -> None:
    seen: list[int] = []

    @step(retry=Retry(attempts=3, wait=0))
    async def flaky(n: int) -> int:
        seen.append(current_run().attempt)
        raise Broken

    pipe = flow.pipeline("p", flaky, on_error={flaky: 0})
    async with flow:
        assert await pipe(1) == 0
    assert seen == [1, 2, 3]


async def test_a_timeout_is_a_failure_like_any_other(flow: Flowlet) -> None:
    @step(timeout=0.01)
    async def slow(n: int) -> int:
        await anyio.sleep_forever()
        return n

    seen: list[Exception] = []
    pipe = flow.pipeline("p", slow, on_error=lambda error: seen.append(error) or 7)  # type: ignore[func-returns-value]
    async with flow:
        assert await pipe(1) == 7
    assert isinstance(seen[0], StepTimeout)


async def test_a_failure_that_is_let_go_does_not_hide_one_that_stops(flow: Flowlet) -> None:
    pipe = flow.pipeline("p", source, bad, worse, end, on_error={bad: "skip"})
    async with flow:
        with pytest.raises(Broken, match="worse"):
            await pipe(1)


# ------------------------------------------------------------------ functions
async def test_a_handler_takes_inputs_and_results_by_name(flow: Flowlet) -> None:
    async def mend(n: int, error: Exception, source: int, run: Run = provided) -> int:
        await anyio.lowlevel.checkpoint()
        assert isinstance(error, Broken)
        return n * 100 + source + len(run.idempotency_key)

    pipe = flow.pipeline("p", source, bad, on_error={bad: mend})
    async with flow:
        assert await flow.execute(pipe, 2, id="r") == 202 + len("r/bad:mend")


async def test_a_handler_with_defaults_takes_the_error(flow: Flowlet) -> None:
    def mend(exception: Exception, extra: int = 5) -> int:
        return len(str(exception)) + extra

    pipe = flow.pipeline("p", source, bad, on_error={bad: mend})
    async with flow:
        assert await pipe(1) == 8


async def test_a_handler_that_is_a_step_is_tried_again(flow: Flowlet) -> None:
    seen: list[int] = []

    @step(retry=Retry(attempts=3, wait=0))
    async def mend(error: Exception) -> int:
        seen.append(current_run().attempt)
        if len(seen) < 3:
            raise Broken("not yet")
        return 3

    pipe = flow.pipeline("p", source, bad, on_error={bad: mend})
    async with flow:
        assert await pipe(1) == 3
    assert seen == [1, 2, 3]


async def test_a_handler_that_fails_says_of_what(flow: Flowlet) -> None:
    def mend(error: Exception) -> int:
        raise KeyError("mend")

    pipe = flow.pipeline("p", source, bad, on_error={bad: mend})
    async with flow:
        with pytest.raises(KeyError, match="mend") as caught:
            await pipe(1)
    assert isinstance(caught.value.__cause__, Broken)


async def test_steps_begin_while_a_handler_works(flow: Flowlet) -> None:
    begun, handling = anyio.Event(), anyio.Event()

    async def mend(error: Exception) -> int:
        handling.set()
        with anyio.fail_after(10):
            await begun.wait()  # of a step that begins after the handler has
        return 1

    async def slow(source: int) -> int:
        await handling.wait()
        return source

    async def later(slow: int) -> int:
        begun.set()
        return slow

    async def join(bad: int, later: int) -> int:
        return bad + later

    pipe = flow.pipeline("p", source, bad, slow, later, join, on_error={bad: mend})
    async with flow:
        assert await pipe(1) == 2


# ------------------------------------------------------------------ faults
def faults(flow: Flowlet, **options: Any) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        flow.pipeline("p", source, bad, after, **options)
    return list(caught.value.problems)


async def test_texts_that_are_no_rule(flow: Flowlet) -> None:
    assert faults(flow, on_error="skp") == [
        "p: on_error= is \"stop\", \"skip\", a function or a value, not the text 'skp'; did you mean 'skip'?; a text "
        "that stands in wants a function: lambda error: 'skp'"
    ]


async def test_values_that_no_step_returns(flow: Flowlet) -> None:
    found = faults(flow, on_error={bad: [1], after: object()})
    assert found[0].startswith("p: on_error= [1] is not what step 'bad' returns: ")
    assert found[1].startswith("p: on_error= <object object at ")
    assert "cannot be stored" in found[1]


async def test_functions_that_take_what_there_is_not(flow: Flowlet) -> None:
    def early(error: Exception, after: int) -> int:
        return 0

    def wild(*error: Exception) -> int:
        return 0

    found = faults(flow, on_error={bad: early, "nobody": 1, after: wild, "source": int})
    assert [problem.partition(";")[0] for problem in found] == [
        "p: on_error= names 'nobody', which is no step of it",
        "p: on_error= int: has no signature that can be read",
        f"p: on_error= {early.__name__}: parameter 'after' comes not before it",
        f"p: on_error= {wild.__name__}: must take one argument, the exception",
    ]


async def test_annotations_of_a_function_that_do_not_fit(flow: Flowlet) -> None:
    def as_text(error: Exception) -> str:
        return "forty"

    def of_text(error: Exception, source: str) -> int:
        return 0

    def raises(error: Exception, n: int) -> NoReturn:
        raise error

    assert faults(flow, on_error={bad: as_text, after: of_text}) == [
        f"p: on_error= {as_text.__name__}: returns str, but step 'bad' returns int",
        f"p: on_error= {of_text.__name__}: takes source: str, but 'source' is int",
    ]
    flow.pipeline("q", source, bad, after, on_error=raises)


async def test_an_item_that_a_function_does_not_take(flow: Flowlet) -> None:
    async def rows(n: int) -> list[int]:
        return [n]

    async def clean(rows: int) -> int:
        return rows

    def mend(error: Exception, rows: list[int]) -> int:
        return 0

    with pytest.raises(DefinitionError, match=r"takes rows: list\[int\], but 'rows' is int"):
        flow.pipeline("p", rows, clean, each={clean: rows}, on_error={clean: mend})


async def test_objects_that_can_be_called_are_no_functions(flow: Flowlet) -> None:
    def mend(error: Exception, scale: int) -> int:
        return scale

    half = partial(mend, scale=2)
    told = "is an object and no function; write a function of the exception, such as a lambda"
    assert faults(flow, on_error={bad: half}, finally_=[half]) == [
        f"p: on_error= {describe(half)}: {told}",
        f"p: finally_= has {half!r}, which is no function",
    ]
