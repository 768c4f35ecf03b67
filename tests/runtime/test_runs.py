"""Starting, finding, resuming and recovering runs, over stores that work and stores that do not."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, Retry, Run, compensate, current_run, gather, provided, step
from flowlet.errors import (
    DecodeError,
    EncodeError,
    IdConflict,
    RunError,
    RunFinished,
    RunNotFound,
    RunParked,
    StoreUnavailable,
)
from flowlet.store import Store

pytestmark = pytest.mark.anyio

Until = Callable[[Callable[[], Any]], Awaitable[None]]


class Broken(Exception):
    pass


@step
async def double(n: int) -> int:
    return 2 * n


@dataclass
class World:
    """What outlives a process: effects, and where a step hangs."""

    log: list[str] = field(default_factory=list)
    hang: set[str] = field(default_factory=set)
    reached: dict[str, anyio.Event] = field(default_factory=dict)

    async def act(self, name: str) -> None:
        if name in self.hang:
            self.reached.setdefault(name, anyio.Event()).set()
            await anyio.sleep_forever()
        self.log.append(name)

    async def wait_for(self, name: str) -> None:
        with anyio.fail_after(20):
            await self.reached.setdefault(name, anyio.Event()).wait()


@pytest.fixture
def world() -> World:
    return World()


def trip(flow: Flowlet, world: World, *, fail: str = "") -> Any:
    """Assemble the same program again, as another process would."""

    @step
    async def reserve(name: str) -> str:
        await world.act(f"book {name}")
        if name == fail:
            raise Broken(name)
        return f"{name} booked"

    @compensate(reserve)
    async def cancel(name: str, reserve: str) -> None:
        await world.act(f"cancel {name}")
        assert reserve == f"{name} booked"

    @flow.saga
    async def trip(who: str) -> str:
        for name in ("flight", "hotel", "car"):
            await reserve(name)
        return f"{who} may go"

    return trip


# ------------------------------------------------------------------ start and its id
async def test_start_returns_when_the_input_is_durable(flow: Flowlet, new_store: Callable[[], Store]) -> None:
    twice = flow.saga("twice", double)
    async with flow:
        handle = await flow.start(twice, 21, id="r")
        store = new_store()
        stored = await store.load("r")
        await store.close()
        assert stored is not None
        assert stored.head.definition == "twice"
        assert await handle.result() == 42


async def test_the_same_id_and_input_is_the_same_run(flow: Flowlet) -> None:
    calls: list[int] = []

    @flow.saga
    async def count(n: int) -> int:
        calls.append(n)
        return n + len(calls)

    async with flow:
        assert await (await flow.start(count, 10, id="r")).result() == 11
        assert await (await flow.start(count, 10, id="r")).result() == 11
        assert await flow.execute(count, 10, id="r") == 11
        assert await flow.execute(count, 10) == 12
    async with flow:
        assert await flow.execute(count, 10, id="r") == 11
    assert calls == [10, 10]


async def test_a_hundred_concurrent_starts_are_one_execution(flow: Flowlet) -> None:
    calls: list[int] = []
    results: list[int] = []

    @step
    async def note(n: int) -> int:
        calls.append(n)
        await anyio.sleep(0)
        return n

    @flow.saga
    async def body(n: int) -> int:
        return await note(n)

    async def one(index: int) -> None:
        if index % 2:
            results.append(await flow.execute(body, 7, id="r"))
        else:
            results.append(await (await flow.start(body, 7, id="r")).result())

    async with flow, anyio.create_task_group() as group:
        for index in range(100):
            group.start_soon(one, index)
    assert calls == [7]
    assert results == [7] * 100


async def test_the_same_id_with_another_input_or_definition(flow: Flowlet) -> None:
    twice = flow.saga("twice", double)
    other = flow.saga("other", double)
    hold = anyio.Event()

    @flow.saga
    async def slow(n: int) -> int:
        await hold.wait()
        return n

    async with flow:
        await (await flow.start(twice, 1, id="r")).result()
        await flow.start(slow, 1, id="live")
        for start in (flow.start, flow.execute):
            with pytest.raises(IdConflict, match="run 'r' was started with another input"):
                await start(twice, 2, id="r")
            with pytest.raises(IdConflict, match="id 'r' belongs to a run of 'twice', not of 'other'"):
                await start(other, 1, id="r")
            with pytest.raises(IdConflict, match="another input"):
                await start(slow, 2, id="live")
            with pytest.raises(IdConflict, match="belongs to a run of 'slow'"):
                await start(twice, 1, id="live")
        hold.set()


@pytest.mark.parametrize("id", [3, b"r", "", "x" * 501, "a\0b", "\ud800", object(), True])
async def test_ids_of_another_kind(flow: Flowlet, id: Any) -> None:
    twice = flow.saga("twice", double)
    async with flow:
        for start in (flow.start, flow.execute):
            with pytest.raises(IdConflict, match="an id is a text of 1 to 500 characters"):
                await start(twice, 1, id=id)


async def test_an_unknown_id(flow: Flowlet) -> None:
    async with flow:
        handle = flow.handle("nobody")
        for ask in (handle.result, handle.status, handle.report, handle.resume):
            with pytest.raises(RunNotFound, match="there is no run 'nobody'"):
                await ask()
        with pytest.raises(RunNotFound):
            async for _ in handle.history():
                pass


async def test_the_id_of_something_else_than_a_run(flow: Flowlet) -> None:
    twice = flow.saga("twice", double)
    async with flow:
        handle = flow.handle("definition/saga/twice/1")
        for ask in (handle.result, handle.status, handle.report, handle.resume):
            with pytest.raises(RunNotFound, match="is a definition of 'twice', not a run"):
                await ask()
        for start in (flow.start, flow.execute):
            with pytest.raises(IdConflict, match="ids that begin with 'definition/' are kept for definitions"):
                await start(twice, 1, id="definition/saga/twice/1")


async def test_an_input_that_cannot_be_stored_or_is_of_another_type_leaves_nothing_behind(flow: Flowlet) -> None:
    twice = flow.saga("twice", double)
    async with flow:
        for start in (flow.start, flow.execute):
            for id in (None, "r"):
                with pytest.raises(EncodeError, match="an argument of 'twice' cannot be stored"):
                    await start(twice, object(), id=id)  # type: ignore[arg-type]
                with pytest.raises(DecodeError, match="argument 'n' of 'twice' does not decode to int"):
                    await start(twice, "1", id=id)  # type: ignore[arg-type]
                with pytest.raises(TypeError):
                    await start(twice, 1, 2, id=id)
        assert flow._open_runs.live == {}
        assert await flow.store.scan(kind="run") == []


# ------------------------------------------------------------------ recovery
async def test_a_run_left_in_the_middle_is_taken_up_where_it_was(new_store: Callable[[], Store], world: World) -> None:
    world.hang = {"book hotel"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(trip(flow, world), "ann", id="t")
        await world.wait_for("book hotel")
    assert world.log == ["book flight"]
    world.hang = set()
    flow = Flowlet(new_store())
    body = trip(flow, world)
    async with flow:
        assert await flow.handle("t", body).result() == "ann may go"
        assert (await flow.handle("t").report()).steps.keys() == {"reserve", "reserve#2", "reserve#3"}
    assert world.log == ["book flight", "book hotel", "book car"]


async def test_compensations_go_on_where_they_were(new_store: Callable[[], Store], world: World) -> None:
    world.hang = {"cancel flight"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        handle = await flow.start(trip(flow, world, fail="car"), "ann", id="t")
        await world.wait_for("cancel flight")
        with anyio.fail_after(20):
            while await handle.status() != "compensating":
                await anyio.sleep(0.002)
    assert world.log == ["book flight", "book hotel", "book car", "cancel hotel"]
    world.hang = set()
    world.log.clear()
    flow = Flowlet(new_store())
    body = trip(flow, world)  # the car would succeed now: the decision stands
    async with flow:
        with pytest.raises(Broken, match="car"):
            await flow.handle("t", body).result()
        assert await flow.handle("t").status() == "compensated"
    assert world.log == ["cancel flight"]


@pytest.mark.parametrize("changed", ["goes on", "returns"])
async def test_a_decision_without_a_failed_step_stands_too(
    new_store: Callable[[], Store], world: World, changed: str
) -> None:
    """The body's own error came from outside of the journal; on resume it is not there any more."""

    def program(flow: Flowlet, *, decline: bool) -> Any:
        @step
        async def charge() -> int:
            await world.act("charge")
            return 1

        @compensate(charge)
        async def refund(error: Exception) -> None:
            await world.act(f"refund {error}")

        @step
        async def ship() -> None:
            await world.act("ship")

        @flow.saga
        async def buy() -> int:
            await charge()
            if decline:
                raise Broken("the body's own")
            if changed == "goes on":
                await ship()
            return 1

        return buy

    world.hang = {"refund the body's own"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow, decline=True), id="b")
        await world.wait_for("refund the body's own")
    world.hang = set()
    flow = Flowlet(new_store())
    buy = program(flow, decline=False)
    async with flow:
        with pytest.raises(Broken, match="the body's own"):
            await flow.handle("b", buy).result()
    assert world.log == ["charge", "refund the body's own"]


async def test_parallel_steps_are_taken_up_one_by_one(new_store: Callable[[], Store], world: World) -> None:
    def program(flow: Flowlet) -> Any:
        @step
        async def part(name: str) -> str:
            await world.act(name)
            return name

        @flow.saga
        async def body() -> list[str]:
            return list(await gather(part("a"), part("b"), part("c")))

        return body

    world.hang = {"b"}
    store = new_store()
    flow = Flowlet(store, grace=0)
    async with flow:
        await flow.start(program(flow), id="g")
        await world.wait_for("b")
        with anyio.fail_after(20):
            while len((await flow.handle("g").report()).steps) < 2:
                await anyio.sleep(0.002)
    world.hang = set()
    flow = Flowlet(new_store())
    body = program(flow)
    async with flow:
        assert await flow.handle("g", body).result() == ["a", "b", "c"]
    assert sorted(world.log) == ["a", "b", "c"]


async def test_a_pipeline_is_taken_up_where_it_was(new_store: Callable[[], Store], world: World) -> None:
    def program(flow: Flowlet) -> Any:
        async def a(n: int) -> int:
            await world.act("a")
            return n

        async def skipped(a: int) -> int:
            return 0

        async def after(skipped: int) -> int:
            return 0

        async def bad(a: int) -> int:
            await world.act("bad")
            raise Broken("bad")

        async def mend(error: Exception) -> int:
            await world.act(f"mend {type(error).__name__} {error}")
            return 5

        async def last(bad: int, a: int) -> int:
            await world.act("last")
            return bad + a

        return flow.pipeline("p", a, skipped, after, bad, last, when={skipped: lambda a: a > 100}, on_error={bad: mend})

    for hang in ("mend Broken bad", "last"):
        world.hang = {hang}
        flow = Flowlet(new_store(), grace=0)
        body = program(flow)
        async with flow:
            await flow.start(body, 1, id="p")
            await world.wait_for(hang)
    world.hang = set()
    flow = Flowlet(new_store())
    body = program(flow)
    async with flow:
        assert await flow.handle("p", body).result() == 6
        statuses = {s.name: s.status for s in (await flow.handle("p").report()).steps.values()}
    assert world.log == ["a", "bad", "mend Broken bad", "last"]
    assert statuses == {
        "a": "completed",
        "skipped": "skipped",
        "after": "skipped",
        "bad": "failed",
        "bad:mend": "completed",
        "last": "completed",
    }


async def test_attempts_are_counted_over_restarts(new_store: Callable[[], Store], world: World) -> None:
    attempts: list[int] = []

    def program(flow: Flowlet) -> Any:
        @step(retry=Retry(attempts=3, wait=0))
        async def flaky(run: Run = provided) -> None:
            attempts.append(run.attempt)
            if run.attempt == 2:
                await world.act("second")
            raise Broken(f"attempt {run.attempt}")

        @flow.saga
        async def body() -> None:
            await flaky()

        return body

    world.hang = {"second"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow), id="r")
        await world.wait_for("second")
    world.hang = set()
    flow = Flowlet(new_store())
    body = program(flow)
    async with flow:
        with pytest.raises(Broken, match="attempt 3"):
            await flow.handle("r", body).result()
        report = await flow.handle("r").report()
    assert attempts == [1, 2, 2, 3]  # the second was cut off without a record
    assert report.steps["flaky"].attempts == 3


async def test_a_class_saga_is_built_again_through_its_providers(new_store: Callable[[], Store], world: World) -> None:
    def program(flow: Flowlet) -> Any:
        flow.provide(World, world)

        @flow.saga
        class Buy:
            def __init__(self, world: World = provided) -> None:
                self.world = world

            @step
            async def charge(self, n: int) -> int:
                await self.world.act(f"charge {n}")
                return n

            async def __call__(self, n: int) -> int:
                return await self.charge(n) + await self.charge(n + 1)

        return Buy

    world.hang = {"charge 2"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow), 1, id="b")
        await world.wait_for("charge 2")
    world.hang = set()
    flow = Flowlet(new_store())
    buy = program(flow)
    async with flow:
        assert await flow.handle("b", buy).result() == 3
    assert world.log == ["charge 1", "charge 2"]


async def test_an_exception_that_cannot_be_rebuilt_after_a_restart(
    new_store: Callable[[], Store], world: World
) -> None:
    def program(flow: Flowlet) -> Any:
        class Local(Exception): ...

        @step(retry=2)
        async def fail() -> None:
            raise Local("no such card")

        @step
        async def wait() -> None:
            await world.act("wait")

        @flow.saga
        async def body() -> str:
            try:
                await fail()
            except Exception as error:
                await wait()
                return f"{type(error).__name__} {error}"
            return ""

        return body

    world.hang = {"wait"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow), id="r")
        await world.wait_for("wait")
    world.hang = set()
    flow = Flowlet(new_store())
    body = program(flow)
    async with flow:
        assert (await flow.handle("r", body).result()).startswith("StepFailed step 'fail' failed with ")


async def test_the_error_of_an_ended_run_after_a_restart(new_store: Callable[[], Store], world: World) -> None:
    flow = Flowlet(new_store())
    body = trip(flow, world, fail="hotel")
    async with flow:
        with pytest.raises(Broken):
            await flow.execute(body, "ann", id="t")
    flow = Flowlet(new_store())
    body = trip(flow, world)
    async with flow:
        with pytest.raises(Broken, match="hotel"):
            await flow.handle("t", body).result()
        with pytest.raises(Broken, match="hotel"):
            await flow.handle("t").result()
        with pytest.raises(Broken, match="hotel"):
            await flow.execute(body, "ann", id="t")
    assert world.log == ["book flight", "book hotel", "cancel flight"]


async def test_runs_of_unknown_definitions_are_left_alone(new_store: Callable[[], Store], world: World) -> None:
    world.hang = {"book car"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(trip(flow, world), "ann", id="t")
        await world.wait_for("book car")
        double_ = flow.saga("twice", double)
        assert await flow.execute(double_, 2, id="done") == 4
    other = Flowlet(new_store())
    async with other:
        assert await other.handle("t").status() == "running"
        assert (await other.handle("t").report()).steps["reserve"].value == "flight booked"
        with pytest.raises(Exception, match="run 'done' completed, but definition 'twice' version 1 is not known here"):
            await other.handle("done").result()
        assert other._open_runs.live == {}


async def test_a_run_stays_with_the_version_it_began_with(new_store: Callable[[], Store], world: World) -> None:
    def program(flow: Flowlet, *versions: int) -> dict[int, Any]:
        made: dict[int, Any] = {}
        for version in versions:

            @step(name=f"act{version}")
            async def act(n: int) -> int:
                await world.act("act")
                return n

            made[version] = flow.saga("body", act, version=version)  # type: ignore[call-overload]
        return made

    world.hang = {"act"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow, 1)[1], 1, id="r")
        await world.wait_for("act")
    world.hang = set()
    flow = Flowlet(new_store())
    bodies = program(flow, 1, 2)
    async with flow:
        assert await flow.handle("r", bodies[1]).result() == 1
        assert list((await flow.handle("r").report()).steps) == ["act1"]
        assert await flow.execute(bodies[2], 1, id="new") == 1
        assert list((await flow.handle("new").report()).steps) == ["act2"]


# ------------------------------------------------------------------ child runs
async def test_a_saga_in_a_body_is_a_child_run(flow: Flowlet) -> None:
    @flow.saga
    async def child(n: int) -> int:
        return await double(n)

    @flow.saga
    async def parent(n: int) -> int:
        return await child(n) + await child(n + 1)

    async with flow:
        assert await flow.execute(parent, 1, id="p") == 6
        steps = (await flow.handle("p").report()).steps
        assert list(steps) == ["child", "child#2"]
        assert await flow.handle("p/child", child).result() == 2
        assert await flow.handle("p/child#2", child).result() == 4


async def test_a_saga_called_by_a_step_has_a_stable_id(flow: Flowlet) -> None:
    ids: list[str] = []

    @flow.saga
    async def child(n: int) -> int:
        ids.append(current_run().id)
        return n

    @step(retry=Retry(attempts=2, wait=0))
    async def through(run: Run = provided) -> int:
        found = await child(1) + await child(1)
        if run.attempt == 1:
            raise Broken
        return found

    @flow.saga
    async def parent() -> int:
        return await through()

    async with flow:
        assert await flow.execute(parent, id="p") == 2
    assert ids == ["p/through/child", "p/through/child#2"]  # once each, although the step was tried twice


async def test_a_failing_child_fails_its_step_and_the_parent_is_undone(flow: Flowlet) -> None:
    undone: list[str] = []

    @step
    async def charge() -> int:
        return 1

    @compensate(charge)
    async def refund() -> None:
        undone.append("refund")

    @flow.saga
    async def child() -> None:
        await charge()
        raise Broken("child")

    @flow.saga
    async def parent() -> None:
        await charge()
        await child()

    async with flow:
        with pytest.raises(Broken, match="child"):
            await flow.execute(parent, id="p")
        assert await flow.handle("p").status() == "compensated"
        assert await flow.handle("p/child").status() == "compensated"
    assert undone == ["refund", "refund"]


@pytest.mark.parametrize("how", ["body", "gather", "step"])
async def test_leaving_while_a_child_works_fails_neither(
    new_store: Callable[[], Store], world: World, how: str
) -> None:
    def program(flow: Flowlet) -> Any:
        @step
        async def charge(name: str) -> str:
            await world.act(f"charge {name}")
            return name

        @compensate(charge)
        async def refund(name: str) -> None:
            await world.act(f"refund {name}")

        @step
        async def closing() -> None:
            if "closing" in world.hang:
                world.reached.setdefault("closing", anyio.Event()).set()
                while not flow._open_runs.closing:  # ends in the grace time: the child's next step may not start
                    await anyio.sleep(0.001)

        @flow.saga
        async def child() -> str:
            await charge("child")
            await closing()
            return await charge("child again")

        @step
        async def through() -> str:
            return await child()

        @flow.saga
        async def parent() -> str:
            await charge("parent")
            if how == "gather":
                one, two = await gather(child(), charge("aside"))
                return one + two
            return await (child() if how == "body" else through())

        return parent

    world.hang = {"closing"}
    flow = Flowlet(new_store())
    async with flow:
        await flow.start(program(flow), id="p")
        await world.wait_for("closing")
    assert not any("refund" in entry or "again" in entry for entry in world.log)
    world.hang = set()
    flow = Flowlet(new_store())
    parent = program(flow)
    async with flow:
        assert (await flow.handle("p", parent).result()).startswith("child again")
    assert sorted(world.log) == sorted({*world.log})
    assert not any("refund" in entry for entry in world.log)


async def test_a_parked_child_holds_its_parent_up_until_it_is_mended(
    new_store: Callable[[], Store], world: World
) -> None:
    def program(flow: Flowlet, *, right: bool) -> Any:
        @step(name="charge" if right else "pay")
        async def charge() -> int:
            await world.act("charge")
            return 1

        @step
        async def wait() -> int:
            await world.act("wait")
            return 1

        @flow.saga
        async def child() -> int:
            return await charge() + await wait()

        @flow.saga
        async def parent() -> int:
            return await child()

        return parent

    world.hang = {"wait"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow, right=True), id="p")
        await world.wait_for("wait")
    world.hang = set()
    flow = Flowlet(new_store(), grace=0)
    program(flow, right=False)
    async with flow:
        with pytest.raises(RunParked):
            await flow.handle("p/child").result()
        assert await flow.handle("p").status() in ("running", "waiting")
    flow = Flowlet(new_store())
    parent = program(flow, right=True)
    async with flow:
        await flow.handle("p/child").resume()
        with anyio.fail_after(20):
            assert await flow.handle("p", parent).result() == 2
    assert world.log == ["charge", "wait"]


# ------------------------------------------------------------------ changed code
def changing(flow: Flowlet, world: World, *, name: str = "charge", amount: int = 1, extra: bool = True) -> Any:
    @step(name=name)
    async def charge(amount: int) -> int:
        await world.act(f"charge {amount}")
        return amount

    @step
    async def ship(charge: int) -> str:
        await world.act("ship")
        return "shipped"

    @flow.saga
    async def buy() -> str:
        paid = await charge(amount)
        return await ship(paid) if extra else "nothing to ship"

    return buy


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"name": "pay"}, "the code now asks for step 'pay', but the history has step 'charge'"),
        (
            {"amount": 2},
            "the code now asks for step 'charge' with this input, but the history has the same step with another input",
        ),
    ],
)
async def test_changed_code_parks_the_run_and_the_right_code_completes_it(
    new_store: Callable[[], Store], world: World, change: dict[str, Any], found: str
) -> None:
    world.hang = {"ship"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(changing(flow, world), id="b")
        await world.wait_for("ship")
    world.hang = set()

    flow = Flowlet(new_store())
    buy = changing(flow, world, **change)
    async with flow:
        with pytest.raises(RunParked) as caught:
            await flow.handle("b", buy).result()
        assert "run 'b' of 'buy', start 1" in caught.value.reason
        assert found in caught.value.reason
        assert await flow.handle("b").status() == "parked"
        assert [r.kind async for r in flow.handle("b").history()] == ["started", "step_completed", "parked"]
    async with flow:  # it stays parked: nobody takes it up
        with pytest.raises(RunParked, match="now asks for"):
            await flow.handle("b", buy).result()
        assert flow._open_runs.live == {}
        await flow.handle("b").resume()  # too early: parked again, not in a loop
        with pytest.raises(RunParked):
            await flow.handle("b", buy).result()

    flow = Flowlet(new_store())
    buy = changing(flow, world)
    async with flow:
        await flow.handle("b").resume()
        assert await flow.handle("b", buy).result() == "shipped"
        with pytest.raises(RunFinished, match="run 'b' has ended as 'completed'"):
            await flow.handle("b").resume()
    assert world.log == ["charge 1", "ship"]


async def test_code_that_ends_before_its_history_parks(new_store: Callable[[], Store], world: World) -> None:
    def program(flow: Flowlet, *, short: bool) -> Any:
        @step
        async def one(n: int) -> int:
            await world.act(f"one {n}")
            return n

        @flow.saga
        async def body() -> int:
            await one(1)
            if short:
                return 0
            await one(2)
            return await one(3)

        return body

    world.hang = {"one 3"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow, short=False), id="b")
        await world.wait_for("one 3")
    flow = Flowlet(new_store())
    body = program(flow, short=True)
    async with flow:
        with pytest.raises(
            RunParked, match=r"the code now asks for the end of the run, but the history has step 'one#2'"
        ):
            await flow.handle("b", body).result()


async def test_a_changed_retry_of_a_gathered_step_parks(new_store: Callable[[], Store], world: World) -> None:
    def program(flow: Flowlet, amount: int) -> Any:
        @step(retry=Retry(attempts=5, wait=0))
        async def flaky(n: int, run: Run = provided) -> int:
            if run.attempt == 1:
                raise Broken
            await world.act("flaky")
            return n

        @flow.saga
        async def body() -> int:
            one, two = await gather(flaky(amount), double(1))
            return one + two

        return body

    world.hang = {"flaky"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow, 1), id="b")
        await world.wait_for("flaky")
    flow = Flowlet(new_store(), grace=0)
    body = program(flow, 2)
    async with flow:
        with anyio.fail_after(20), pytest.raises(RunParked, match="'flaky' with this input"):
            await flow.handle("b", body).result()


async def test_an_input_that_no_longer_decodes_parks(new_store: Callable[[], Store], world: World) -> None:
    world.hang = {"book flight"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(trip(flow, world), "ann", id="t")
        await world.wait_for("book flight")
    flow = Flowlet(new_store())

    @flow.saga(name="trip")
    async def changed(who: int) -> int:
        return who

    async with flow:
        with pytest.raises(RunParked, match="cannot begin here: the input of run 't' does not decode"):
            await flow.handle("t", changed).result()


async def test_a_body_that_lacks_a_provider_is_parked_and_begins_when_it_is_there(flow: Flowlet) -> None:
    async with flow:

        @flow.saga
        async def body(world: World = provided) -> int:
            return len(world.log)

        with pytest.raises(RunParked, match=r"nothing provides World: call flow.provide"):
            await flow.execute(body, id="b")
        flow.provide(World, World(log=["x"]))
        await flow.handle("b").resume()
        assert await flow.handle("b", body).result() == 1


# ------------------------------------------------------------------ corrupt records
@pytest.mark.parametrize("seq", [1, 2])
async def test_a_corrupt_record_parks_its_run_and_no_other(tmp_path: Path, world: World, seq: int) -> None:
    url = f"sqlite:///{tmp_path}/flow.db?durability=process"
    world.hang = {"book hotel"}
    flow = Flowlet(url, grace=0)
    body = trip(flow, world)
    async with flow:
        for id in ("bad", "good"):
            await flow.start(body, id, id=id)
        with anyio.fail_after(20):
            while not all([len((await flow.handle(id).report()).steps) == 1 for id in ("bad", "good")]):
                await anyio.sleep(0.002)
    with sqlite3.connect(tmp_path / "flow.db") as database:
        (n,) = database.execute("SELECT n FROM heads WHERE id = 'bad'").fetchone()
        database.execute("UPDATE records SET data = x'c1ff00' WHERE n = ? AND seq = ?", (n, seq))
    database.close()
    world.hang = set()

    flow = Flowlet(url)
    body = trip(flow, world)
    async with flow:
        assert await flow.handle("good", body).result() == "good may go"
        with pytest.raises(RunParked, match=f"the history of run 'bad' cannot be read: record {seq} of run 'bad'"):
            await flow.handle("bad", body).result()
        assert await flow.handle("bad").status() == "parked"
        with pytest.raises(DecodeError, match=f"record {seq} of run 'bad' does not decode"):
            await flow.handle("bad").report()
        if seq == 1:
            with pytest.raises(DecodeError, match="record 1 of run 'bad'"):
                await flow.start(body, "bad", id="bad")
    assert world.log.count("book hotel") == 1


async def test_a_corrupt_end_is_a_typed_error(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/flow.db?durability=process"
    flow = Flowlet(url)
    twice = flow.saga("twice", double)
    async with flow:
        await flow.execute(twice, 1, id="r")
    with sqlite3.connect(tmp_path / "flow.db") as database:
        database.execute("UPDATE records SET data = x'00' WHERE seq = (SELECT max(seq) FROM records)")
    database.close()
    async with flow:
        with pytest.raises(DecodeError):
            await flow.handle("r", twice).result()


# ------------------------------------------------------------------ stores that fail
@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("fault", ["lost", "reply"])
async def test_a_store_that_fails_a_few_times(faulty_store: Any, world: World, fault: str) -> None:
    """Each single append fails twice; with a lost reply the write had been stored the first time."""
    flow = Flowlet(faulty_store)
    body = trip(flow, world, fail="car")
    async with flow:
        for _ in range(20):
            faulty_store.faults.extend([fault, "lost", None])
        with pytest.raises(Broken, match="car"):
            await flow.execute(body, "ann", id="t")
        kinds = [r.kind async for r in flow.handle("t").history()]
    assert world.log == ["book flight", "book hotel", "book car", "cancel hotel", "cancel flight"]
    assert kinds == [
        "started",
        "step_completed",
        "step_completed",
        "step_failed",
        "compensating",
        "step_completed",
        "step_completed",
        "compensated",
    ]


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("at", range(6))
async def test_a_lost_reply_anywhere_makes_no_second_record(faulty_store: Any, world: World, at: int) -> None:
    flow = Flowlet(faulty_store)
    body = trip(flow, world)
    async with flow:
        faulty_store.faults.extend([None] * at + ["reply"])
        handle = await flow.start(body, "ann", id="t")
        assert await handle.result() == "ann may go"
        kinds = [r.kind async for r in handle.history()]
    assert kinds == ["started", *["step_completed"] * 3, "completed"]
    assert world.log == ["book flight", "book hotel", "book car"]


@pytest.mark.usefixtures("no_pauses")
async def test_a_store_that_is_down_for_longer(faulty_store: Any, world: World) -> None:
    flow = Flowlet(faulty_store, lease=1)
    breaks: list[int] = []

    @step
    async def break_the_store() -> None:
        faulty_store.down = not breaks
        breaks.append(1)

    @step
    async def after(n: int) -> None:
        await world.act(f"after {n}")

    @flow.saga
    async def body() -> str:
        await after(1)
        await break_the_store()
        await after(2)
        return "done"

    async with flow:
        with pytest.raises(StoreUnavailable, match="the store is down"):
            await flow.execute(body, id="b")
        assert world.log == ["after 1"]
        faulty_store.down = False
        with anyio.fail_after(20):
            assert await flow.handle("b", body).result() == "done"
    # The break could not be recorded: its effect, and nothing before it, happened again.
    assert len(breaks) == 2
    assert world.log == ["after 1", "after 2"]


@pytest.mark.usefixtures("no_pauses")
async def test_starting_while_the_store_is_down(faulty_store: Any) -> None:
    flow = Flowlet(faulty_store)
    twice = flow.saga("twice", double)
    async with flow:
        faulty_store.down = True
        for start in (flow.start, flow.execute):
            with pytest.raises(StoreUnavailable):
                await start(twice, 1, id="r")
        faulty_store.down = False
        assert await flow.execute(twice, 1, id="r") == 2


async def test_a_start_whose_every_reply_was_lost_is_a_run_all_the_same(
    faulty_store: Any, no_pauses: int, until: Until
) -> None:
    flow = Flowlet(faulty_store, lease=1)
    twice = flow.saga("twice", double)
    async with flow:
        faulty_store.faults.extend(["reply", *["lost"] * no_pauses])
        with pytest.raises(StoreUnavailable):
            await flow.start(twice, 1, id="r")
        handle = await flow.start(twice, 1, id="r")
        with anyio.fail_after(20):
            assert await handle.result() == 2


async def test_a_start_that_was_cancelled_is_a_run_if_it_was_stored(new_store: Callable[[], Store]) -> None:
    flow = Flowlet(new_store(), lease=1)
    twice = flow.saga("twice", double)
    async with flow:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await flow.start(twice, 1, id="r")
        with anyio.fail_after(20):
            assert await flow.execute(twice, 1, id="r") == 2


async def test_a_lease_that_ran_out_unnoticed_delays_the_run_and_fails_nothing(
    new_store: Callable[[], Store], world: World
) -> None:
    flow = Flowlet(new_store(), lease=1)

    @step
    async def sleep_too_long() -> None:
        if not world.log:
            flow._open_runs.deadline = 0.0  # as if the process had been stopped for longer than its lease
        await world.act("slept")

    @flow.saga
    async def body() -> str:
        await sleep_too_long()
        await double(1)
        return "done"

    async with flow:
        with anyio.fail_after(20):
            assert await flow.execute(body, id="b") == "done"
    assert world.log == ["slept"]


async def test_results_are_not_waited_for_when_the_flowlet_is_left(
    new_store: Callable[[], Store], world: World
) -> None:
    world.hang = {"book flight"}
    flow = Flowlet(new_store(), grace=0)
    body = trip(flow, world)
    seen: list[str] = []

    async def wait(ask: Callable[[], Awaitable[Any]]) -> None:
        try:
            await ask()
        except RunError as error:
            seen.append(str(error))

    async with anyio.create_task_group() as group, flow:
        handle = await flow.start(body, "ann", id="t")
        await world.wait_for("book flight")
        group.start_soon(wait, handle.result)
        group.start_soon(wait, lambda: flow.execute(body, "ann", id="t"))
        await anyio.wait_all_tasks_blocked()
    assert seen == ["run 't' goes on when its Flowlet is entered again"] * 2
