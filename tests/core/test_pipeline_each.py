"""A step for each item of a list: order, failures, empty lists, what it is called in reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from msgspec import Struct

from flowlet import Flowlet, Retry, Run, provided, step
from flowlet.errors import DecodeError, DefinitionError, RunError

pytestmark = pytest.mark.anyio


class Broken(Exception):
    pass


class Row(Struct):
    n: int


async def extract(count: int) -> list[Row]:
    return [Row(n) for n in range(count)]


async def clean(extract: Row, scale: int = 10) -> int:
    await anyio.sleep(0.002 * (3 - extract.n % 3))  # the first ones take longest
    if extract.n == 3:
        raise Broken("three")
    return extract.n * scale


async def load(clean: list[int]) -> int:
    return sum(clean)


async def test_results_are_in_the_order_of_the_items(flow: Flowlet) -> None:
    pipe = flow.pipeline("p", extract, clean, each={clean: "extract"})
    whole = flow.pipeline("whole", extract, clean, load, each={"clean": extract})
    async with flow:
        assert await pipe(3) == [0, 10, 20]
        assert await whole(3, scale=2) == 6
        handle = await flow.start(whole, 3, id="e")
        assert await handle.result() == 30
        report = (await handle.report()).steps
    assert list(report)[:2] == ["extract", "clean"]
    assert sorted(report) == ["clean", "clean[0]", "clean[1]", "clean[2]", "extract", "load"]
    assert (report["clean"].value, report["clean"].status, report["clean"].attempts) == ([0, 10, 20], "completed", 3)
    assert report["clean"].seconds == pytest.approx(sum(report[f"clean[{i}]"].seconds for i in range(3)))
    assert report["clean[2]"].value == 20


async def test_an_empty_list_is_done_at_once(flow: Flowlet) -> None:
    whole = flow.pipeline("whole", extract, clean, load, each={clean: "extract"})
    async with flow:
        handle = await flow.start(whole, 0)
        assert await handle.result() == 0
        report = (await handle.report()).steps
    assert (report["clean"].value, report["clean"].status) == ([], "completed")


async def test_items_of_an_input(flow: Flowlet) -> None:
    async def square(numbers: int) -> int:
        return numbers * numbers

    async def count(numbers: Sequence[int]) -> int:
        return len(numbers)

    alone = flow.pipeline("alone", square, each={square: "numbers"})
    both = flow.pipeline("both", count, square, each={square: "numbers"})
    reverse = flow.pipeline("reverse", square, count, each={square: "numbers"})
    assert str(flow.registry.definitions["alone", "1"].starter.signature) == "(numbers: list[int]) -> list[int]"
    async with flow:
        assert await alone([1, 2, 3]) == [1, 4, 9]
        assert await both([1, 2, 3]) == [1, 4, 9]
        assert await reverse([1, 2, 3]) == 3
        handle = await flow.start(both, [])
        assert await handle.result() == []
        assert (await handle.report()).steps["square"].value == []


async def test_items_of_items(flow: Flowlet) -> None:
    async def double(clean: int) -> int:
        return 2 * clean

    pipe = flow.pipeline("p", extract, clean, double, each={clean: "extract", double: "clean"})
    async with flow:
        handle = await flow.start(pipe, 3)
        assert await handle.result() == [0, 20, 40]
        assert (await handle.report()).steps["double"].status == "completed"


async def test_each_item_is_a_step_with_a_key_and_attempts_of_its_own(flow: Flowlet) -> None:
    seen: list[tuple[str, int]] = []

    @step(retry=Retry(attempts=2, wait=0))
    async def fetch(urls: str, run: Run = provided) -> str:
        seen.append((run.idempotency_key, run.attempt))
        if run.attempt == 1 and urls == "b":
            raise Broken
        return urls.upper()

    pipe = flow.pipeline("p", fetch, each={fetch: "urls"})
    async with flow:
        handle = await flow.start(pipe, ["a", "b"], id="r")
        assert await handle.result() == ["A", "B"]
        report = (await handle.report()).steps
    assert sorted(seen) == [("r/fetch[0]", 1), ("r/fetch[1]", 1), ("r/fetch[1]", 2)]
    assert (report["fetch"].attempts, report["fetch[1]"].attempts) == (3, 2)


@pytest.mark.parametrize("limit", [1, 2])
async def test_items_count_for_the_limit(flow: Flowlet, limit: int) -> None:
    now, most = [0], [0]
    complete = anyio.Event()

    async def work(items: int) -> int:
        now[0] += 1
        most[0] = max(most[0], now[0])
        if now[0] == limit:
            complete.set()
        with anyio.fail_after(10):
            await complete.wait()
        await anyio.lowlevel.checkpoint()
        now[0] -= 1
        return items

    pipe = flow.pipeline("p", work, each={work: "items"}, max_concurrency=limit)
    async with flow:
        assert await pipe(list(range(20))) == list(range(20))
    assert most == [limit]


# ------------------------------------------------------------------ failures
async def test_a_failing_item_stops_the_pipeline(flow: Flowlet) -> None:
    pipe = flow.pipeline("p", extract, clean, load, each={clean: "extract"})
    async with flow:
        handle = await flow.start(pipe, 5)
        with pytest.raises(Broken, match="three"):
            await handle.result()
        report = (await handle.report()).steps
    assert report["clean"].status == "failed"
    assert report["clean"].error == "clean[3]: Broken: three"
    assert "load" not in report


async def test_a_failing_item_is_left_out(flow: Flowlet) -> None:
    pipe = flow.pipeline("p", extract, clean, load, each={clean: "extract"}, on_error={clean: "skip"})
    async with flow:
        handle = await flow.start(pipe, 5)
        assert await handle.result() == 70
        report = (await handle.report()).steps
    assert (report["clean"].value, report["clean"].status) == ([0, 10, 20, 40], "completed")
    assert report["clean[3]"].status == "failed"
    assert report["load"].status == "completed"


async def test_a_value_stands_in_for_a_failing_item(flow: Flowlet) -> None:
    pipe = flow.pipeline("p", extract, clean, load, each={clean: "extract"}, on_error={clean: -1})
    async with flow:
        handle = await flow.start(pipe, 5)
        assert await handle.result() == 69
        report = (await handle.report()).steps
    assert report["clean"].value == [0, 10, 20, -1, 40]
    assert (report["clean[3]"].value, report["clean[3]"].status) == (-1, "failed")


async def test_a_handler_is_told_the_item(flow: Flowlet) -> None:
    async def mend(error: Exception, extract: Row, count: int) -> int:
        await anyio.lowlevel.checkpoint()
        return extract.n * 1000 + count

    pipe = flow.pipeline("p", extract, clean, each={clean: "extract"}, on_error={clean: mend})
    async with flow:
        handle = await flow.start(pipe, 5)
        assert await handle.result() == [0, 10, 20, 3005, 40]
        report = (await handle.report()).steps
    assert (report["clean[3]"].status, report["clean[3]"].value) == ("failed", 3005)
    assert (report["clean[3]:mend"].status, report["clean[3]:mend"].value) == ("completed", 3005)
    assert (report["clean"].value, report["clean"].status) == ([0, 10, 20, 3005, 40], "completed")


async def test_a_condition_is_asked_once_for_all_items(flow: Flowlet) -> None:
    pipe = flow.pipeline(
        "p", extract, clean, load, each={clean: "extract"}, when={clean: lambda extract: len(extract) > 1}
    )
    async with flow:
        assert await pipe(3) == 30
        handle = await flow.start(pipe, 1)
        assert await handle.result() is None
        report = (await handle.report()).steps
    assert {name: s.status for name, s in report.items()} == {
        "extract": "completed",
        "clean": "skipped",
        "load": "skipped",
    }


async def test_a_list_that_is_none(flow: Flowlet) -> None:
    async def maybe(n: int) -> list[int] | None:
        return None

    async def use(maybe: int) -> int:
        return maybe

    pipe = flow.pipeline("p", maybe, use, each={use: "maybe"})
    async with flow:
        with pytest.raises(
            RunError, match="each= of step 'use' takes the items of 'maybe', which is no list but NoneType"
        ):
            await pipe(1)


async def test_an_item_of_another_type(flow: Flowlet) -> None:
    async def mixed(n: int) -> list[int | str]:
        return [1, "two"]

    async def use(mixed: int) -> int:
        return mixed

    pipe = flow.pipeline("p", mixed, use, each={use: "mixed"})
    async with flow:
        with pytest.raises(DecodeError, match="argument 'mixed' of 'use'"):
            await pipe(1)


# ------------------------------------------------------------------ faults
def faults(flow: Flowlet, *steps: Any, **options: Any) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        flow.pipeline("p", *steps, **options)
    return list(caught.value.problems)


async def test_parameters_and_steps_that_are_not_there(flow: Flowlet) -> None:
    assert faults(flow, extract, clean, each={"claen": "extract", clean: "extrat"}) == [
        "p: each= names 'claen', which is no step of it; did you mean 'clean'?",
        "p: each= names 'extrat', which is no parameter of step 'clean'; did you mean 'extract'?",
    ]


async def test_what_has_no_items_in_an_order(flow: Flowlet) -> None:
    async def names() -> set[str]:
        return set()

    async def ages() -> dict[str, int]:
        return {}

    async def word() -> str:
        return ""

    async def use(names: str, ages: int, word: str) -> int:
        return 0

    for source, kind in (("names", "set[str]"), ("ages", "dict[str, int]"), ("word", "str")):
        found = faults(flow, names, ages, word, use, each={use: source})
        assert (
            f"p: each= of step 'use' takes the items of a list or tuple, but step {source!r} returns {kind}; return a "
            "list, or use a bulk operation for the entries of large data"
        ) in found


async def test_items_that_the_step_cannot_take(flow: Flowlet) -> None:
    async def use(extract: str) -> str:
        return extract

    async def all_of(use: list[int]) -> int:
        return 0

    assert faults(flow, extract, use, all_of, each={use: "extract"}) == [
        "p: step 'use' takes for each item extract: str, but step 'extract' returns list[Row], whose items are Row; "
        "change one of the annotations",
        "p: step 'all_of' takes use: list[int], but step 'use' returns list[str]; change one of the annotations",
    ]


async def test_an_input_of_two_types_of_items(flow: Flowlet) -> None:
    async def one(items: int) -> int:
        return items

    async def two(items: str) -> str:
        return items

    async def whole(items: list[bytes]) -> int:
        return 0

    assert faults(flow, one, two, each={one: "items", two: "items"}) == [
        "p: input 'items' is annotated list[int] and, in step 'two', list[str]; use one type or another name",
        "p: step 'two' takes for each item items: str, but input 'items' is list[int], whose items are int; "
        "change one of the annotations",
    ]
    assert faults(flow, one, whole, each={one: "items"}) == [
        "p: step 'one' takes for each item items: int, but input 'items' is list[bytes], whose items are bytes; "
        "change one of the annotations"
    ]
