"""Pipelines over a store: taken up by another process, told apart in reports, limited in time, mended by operators."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import anyio
import msgspec
import pytest

from flowlet import Flowlet, Registry, Retry, Run, current_run, gather, provided, step
from flowlet.errors import DecodeError, DefinitionError, RunError, RunParked, RunTimeout
from flowlet.runtime.report import StepReport
from flowlet.store import Store

pytestmark = pytest.mark.anyio

NewStore = Callable[[], Store]


class Broken(Exception):
    pass


class World:
    """What outlives a process."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.hang: set[str] = set()
        self.fail: set[str] = set()
        self.begun = anyio.Event()

    async def act(self) -> str:
        key = current_run().idempotency_key.partition("/")[2]
        if key in self.hang:
            self.begun.set()
            await anyio.sleep_forever()
        if key in self.fail:
            raise Broken(key)
        self.done.append(key)
        return key


@pytest.fixture
def world() -> World:
    return World()


def make(world: World) -> tuple[Registry, Any]:
    """Make the same pipeline once more, as another process would."""

    async def extract(n: int) -> list[int]:
        await world.act()
        return list(range(n))

    async def audit(n: int) -> str:
        return await world.act()

    async def clean(extract: int) -> int:
        await world.act()
        return 10 * extract

    async def load(clean: list[int]) -> int:
        await world.act()
        return sum(clean)

    async def close(extract: list[int] | None, load: int | None, error: Exception | None) -> str:
        await world.act()
        return f"{extract} {load} {error!r}"

    async def leave(n: int) -> None:
        await world.act()

    registry = Registry()
    pipe = registry.pipeline(
        "etl",
        extract,
        audit,
        clean,
        load,
        needs={load: audit},
        each={clean: "extract"},
        on_error={clean: lambda error: -1},
        finally_=[close, leave],
        max_concurrency=2,
    )
    return registry, pipe


async def first_of(*waits: Callable[[], Any]) -> None:
    """Wait until one of them has ended, by whatever."""

    async def wait(for_: Callable[[], Any]) -> None:
        with contextlib.suppress(Exception):
            await for_()
        group.cancel_scope.cancel()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for each in waits:
                group.start_soon(wait, each)


STEPS = ["extract", "audit", "clean[0]", "clean[1]", "clean[2]", "load", "~close", "~leave"]


@pytest.mark.parametrize("where", STEPS)
@pytest.mark.parametrize("fails", [(), ("clean[1]",), ("load",), ("audit", "clean[0]"), ("~close",)], ids=str)
async def test_another_process_goes_on_where_one_has_left(
    new_store: NewStore, world: World, where: str, fails: tuple[str, ...]
) -> None:
    world.fail = set(fails)
    outcomes = []
    for first in (True, False):
        world.hang = {where} if first else set()
        world.begun = anyio.Event()
        registry, pipe = make(world)
        flow = Flowlet(new_store(), registry=registry, grace=0)
        async with flow:
            if first:
                handle = await flow.start(pipe, 3, id="r")
                await first_of(world.begun.wait, handle.result)  # it may end before it comes there
                continue
            handle = flow.handle("r", pipe)
            with anyio.fail_after(10):
                try:
                    outcomes.append(await handle.result())
                except Broken as error:
                    outcomes.append(error)
            report = (await handle.report()).steps
    assert max(Counter(world.done).values()) == 1
    if not fails or fails == ("clean[1]",):
        value = 30 if not fails else 19
        assert outcomes == [value]
        assert sorted(world.done) == sorted({*STEPS} - {*fails})
        assert report["close"].value == f"[0, 1, 2] {value} None"
    else:
        assert isinstance(outcomes[0], Broken)
        assert str(outcomes[0]) in fails
        assert "~leave" in world.done
        assert report["leave"].status == "completed"


# ------------------------------------------------------------------ reports
async def test_a_report_where_the_definition_is_not_known(new_store: NewStore, world: World) -> None:
    registry, pipe = make(world)
    world.fail = {"clean[1]"}
    async with Flowlet(new_store(), registry=registry) as flow:
        await flow.execute(pipe, 3, id="r")
    async with Flowlet(new_store()) as stranger:
        report = (await stranger.handle("r").report()).steps
    assert report["clean"].value == [0, -1, 20]  # that of the handler is on record
    assert report["clean[1]"].error == "Broken: clean[1]"
    assert report["close"].value == "[0, 1, 2] 19 None"
    assert "~close" not in report


async def test_a_report_of_items_under_way(flow: Flowlet, world: World) -> None:
    registry, pipe = make(world)
    flow.include(registry)
    world.hang = {"clean[2]"}
    async with flow:
        handle = await flow.start(pipe, 4)
        while "clean[3]" not in world.done:
            await anyio.sleep(0.001)
        while "clean[3]" not in (await handle.report()).steps:
            await anyio.sleep(0.001)
        report = (await handle.report()).steps
        assert (report["clean"].status, report["clean"].value) == ("running", [0, 10, 30])
        await handle.cancel()
        with pytest.raises(RunError):
            await handle.result()
        report = (await handle.report()).steps
        assert report["clean"].status == "cancelled"
        assert report["close"].value.startswith("[0, 1, 2, 3] None RunCancelled(")


async def test_a_report_is_data(flow: Flowlet, world: World) -> None:
    registry, pipe = make(world)
    flow.include(registry)
    async with flow:
        handle = await flow.start(pipe, 1)
        await handle.result()
        report = await handle.report()
    assert isinstance(report.steps["clean"], StepReport)
    data = msgspec.json.decode(msgspec.json.encode(report))
    assert list(data["steps"]) == ["extract", "audit", "clean", "clean[0]", "load", "close", "leave"]


# ------------------------------------------------------------------ time
async def test_pipelines_that_say_nothing_have_the_timeout_of_their_flowlet(new_store: NewStore, world: World) -> None:
    world.hang = {"load", "body", "other"}
    registry, pipe = make(world)

    @step
    async def body(n: int) -> str:
        return await world.act()

    @registry.pipeline
    async def function(n: int) -> str:
        return await body(n)

    @registry.saga
    async def saga(n: int) -> str:
        return await body(n)

    async with Flowlet(new_store(), registry=registry, pipeline_timeout=0.15) as flow:
        for definition in (pipe, function):
            with pytest.raises(RunTimeout, match="timeout="), anyio.fail_after(10):
                await flow.execute(definition, 1)
        handle = await flow.start(saga, 1)
        with anyio.move_on_after(0.3):
            await handle.result()
        assert await handle.status() == "running"
        await handle.cancel()
    assert world.done[-2:] == ["~close", "~leave"]


async def test_a_pipeline_says_how_long_it_may_take(new_store: NewStore, world: World) -> None:
    registry = Registry()
    world.hang = {"work", "step_of"}

    async def work(n: int) -> str:
        return await world.act()

    @step
    async def step_of(n: int) -> str:
        return await world.act()

    short = registry.pipeline("short", work, timeout=0.1)
    endless = registry.pipeline("endless", work, timeout=None)

    @registry.pipeline(timeout=0.1)
    async def function(n: int) -> str:
        return await step_of(n)

    async with Flowlet(new_store(), registry=registry, pipeline_timeout=0.1) as flow:
        for definition in (short, function):
            with pytest.raises(RunTimeout), anyio.fail_after(10):
                await flow.execute(definition, 1)
        handle = await flow.start(endless, 1)
        with anyio.move_on_after(0.3):
            await handle.result()
        assert await handle.status() == "running"
        await handle.cancel()


def test_timeouts_that_are_none() -> None:
    async def work(n: int) -> int:
        return n

    with pytest.raises(DefinitionError, match="timeout"):
        Registry().pipeline("p", work, timeout=-1)


# ------------------------------------------------------------------ operators
async def test_an_item_that_must_not_be_repeated_is_asked_about(new_store: NewStore, world: World) -> None:
    def build() -> tuple[Registry, Any]:
        @step(at_most_once=True)
        async def pay(bills: int, run: Run = provided) -> int:
            await world.act()
            return bills

        async def total(pay: list[int]) -> int:
            return sum(pay)

        registry = Registry()
        return registry, registry.pipeline("paying", pay, total, each={pay: "bills"})

    world.hang = {"pay[1]"}
    registry, pipe = build()
    async with Flowlet(new_store(), registry=registry, grace=0) as flow:
        await flow.start(pipe, [1, 2, 3], id="r")
        await world.begun.wait()
        while sorted(world.done) != ["pay[0]", "pay[2]"]:
            await anyio.sleep(0.001)
    world.hang = set()
    registry, pipe = build()
    async with Flowlet(new_store(), registry=registry) as flow:
        handle = flow.handle("r", pipe)
        with pytest.raises(RunParked, match=r"pay\[1\]"), anyio.fail_after(10):
            await handle.result()
        await handle.skip("pay[1]", 200)
        assert await handle.result() == 204
        assert (await handle.report()).steps["pay"].value == [1, 200, 3]


async def test_a_fork_from_an_item(flow: Flowlet, world: World) -> None:
    registry, pipe = make(world)
    flow.include(registry)
    async with flow:
        handle = await flow.start(pipe, 2, id="r")
        assert await handle.result() == 10
        before = list(world.done)
        fork = await handle.fork(from_step="load", id="f")
        assert await fork.result() == 10
    assert world.done[len(before) :] == ["load", "~close", "~leave"]


# ------------------------------------------------------------------ what a step makes of what it is given
@pytest.mark.parametrize("kind", ["step", "handler", "saga", "gather"])
async def test_what_a_step_changes_is_its_own(new_store: NewStore, kind: str) -> None:
    """Who takes the run up does not see it, so nobody else may; else the run is parked, or has another result."""
    seen: list[list[int]] = []
    hangs = True
    begun = anyio.Event()

    @step
    async def rows(n: int) -> list[int]:
        return [n, 1]

    @step(retry=Retry(attempts=2, wait=0))
    async def change(rows: list[int]) -> int:
        seen.append([*rows])
        rows.append(99)
        if len(seen) < 2 or kind == "handler":
            raise Broken("once")
        return len(rows)

    async def mend(error: Exception, rows: list[int]) -> int:
        rows.sort()
        return 3

    @step
    async def use(change: int, rows: list[int]) -> list[int]:
        return rows

    @step
    async def last(use: list[int]) -> list[int]:
        if hangs:
            begun.set()
            await anyio.sleep_forever()
        return use

    def make() -> tuple[Registry, Any]:
        registry = Registry()
        if kind in ("step", "handler"):
            return registry, registry.pipeline("p", rows, change, use, last, on_error={change: mend})

        @registry.saga
        async def body(n: int) -> list[int]:
            found = await rows(n)
            changed = (await gather(change(found), rows(0)))[0] if kind == "gather" else await change(found)
            return await last(await use(changed, found))

        return registry, body

    registry, pipe = make()
    async with Flowlet(new_store(), registry=registry, grace=0) as flow:
        await flow.start(pipe, 5, id="r")
        with anyio.fail_after(10):
            await begun.wait()
    hangs = False
    registry, pipe = make()
    async with Flowlet(new_store(), registry=registry) as flow:
        with anyio.fail_after(10):
            assert await flow.handle("r", pipe).result() == [5, 1]
    assert seen == [[5, 1], [5, 1]]


async def test_a_result_of_another_type_is_reported_as_the_failure_that_it_is(flow: Flowlet) -> None:
    async def count(n: int) -> int:
        return cast("int", "five" if n else 5)

    async def show(count: int) -> int:
        return count

    plain = flow.pipeline("plain", count, show)
    mended = flow.pipeline("mended", count, show, on_error={count: -1})
    async with flow:
        for pipe, value in ((plain, "five"), (mended, -1)):
            handle = await flow.start(pipe, 1)
            with contextlib.suppress(DecodeError):
                assert await handle.result() == value
            found = (await handle.report()).steps["count"]
            assert (found.status, found.value) == ("failed", value)
            assert (
                found.error
                == "DecodeError: the result of step 'count' does not decode to int: Expected `int`, got `str`"
            )
