"""`handle.fork`: a new run that has done what another one had done before a step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, Retry, Run, compensate, current_run, gather, provided, step
from flowlet.errors import IdConflict, RunError, RunNotFound, RunParked, RunTimeout
from flowlet.store import Store

pytestmark = pytest.mark.anyio

NewStore = Callable[[], Store]


class Broken(Exception):
    pass


class World:
    """The steps, and what they did."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.draws: list[tuple[Any, ...]] = []
        self.fail: set[str] = set()
        self.hang: set[str] = set()
        self.reached = anyio.Event()

        @step(key=lambda name: name)
        async def act(name: str) -> str:
            if name in self.hang:
                self.reached.set()
                await anyio.sleep_forever()
            assert current_run().idempotency_key == f"{current_run().id}/act:{name}"
            self.note(name)
            if name in self.fail:
                raise Broken(name)
            return name

        @compensate(act)
        async def undo(name: str) -> None:
            self.log.append(f"{current_run().id} undo {name}")

        self.act = act

    def note(self, name: str) -> str:
        self.log.append(f"{current_run().id} {name}")
        return name

    def of(self, id: str) -> list[str]:
        return [line.removeprefix(f"{id} ") for line in self.log if line.startswith(f"{id} ")]

    def draw(self, run: Run) -> None:
        self.draws.append((run.uuid(), run.random(), run.now()))


@pytest.fixture
def world() -> World:
    return World()


def line(flow: Flowlet, world: World, *, last: str = "d", deadline: float | None = None) -> Any:
    act = world.act

    @flow.saga(name="line", deadline=deadline)
    async def body(n: int, run: Run = provided) -> str:
        world.draw(run)
        await act("a")
        world.draw(run)
        await act("b")
        world.draw(run)
        await act("c")
        world.draw(run)
        return await act(last)

    return body


async def result_of(awaitable: Any) -> Any:
    with anyio.fail_after(20):
        try:
            return await awaitable
        except Exception as error:
            return error


# ---------------------------------------------------------------- of what
async def test_of_a_completed_run(flow: Flowlet, world: World) -> None:
    saga = line(flow, world)
    async with flow:
        await flow.execute(saga, 1, id="r")
        for first, done in [("a", "abcd"), ("b", "bcd"), ("d", "d")]:
            forked = await flow.handle("r", saga).fork(from_step=f"act:{first}", id=f"f{first}")
            assert forked.id == f"f{first}"
            assert await result_of(forked.result()) == "d"
            assert "".join(world.of(f"f{first}")) == done
            report = await forked.report()
            assert [s.value for s in report.steps.values()] == ["a", "b", "c", "d"]
            assert (await forked.status(), await flow.handle("r").status()) == ("completed", "completed")
        made = await flow.handle("r").fork(from_step="act:c")
        assert made.id not in ("r", "fa")
        assert await result_of(made.result()) == "d"
    assert world.of("r") == ["a", "b", "c", "d"]


async def test_of_a_failed_a_compensated_and_a_running_run(flow: Flowlet, world: World) -> None:
    world.fail.add("c")
    saga = line(flow, world)
    async with flow:
        assert isinstance(await result_of(flow.execute(saga, 1, id="r")), Broken)
        assert await flow.handle("r").status() == "compensated"
        world.fail.clear()
        forked = await flow.handle("r", saga).fork(from_step="act:c", id="f")
        assert await result_of(forked.result()) == "d"
        assert world.of("f") == ["c", "d"]
        forked = await flow.handle("r", saga).fork(from_step="act:b", id="g")
        assert await result_of(forked.result()) == "d"
        world.hang.add("d")
        running = await flow.start(saga, 2, id="s")
        with anyio.fail_after(20):
            await world.reached.wait()
            while len((await running.report()).steps) < 3:  # on the memory store they are saved in a moment
                await anyio.sleep(0.001)
        world.hang.clear()
        forked = await running.fork(from_step="act:b", id="h")
        assert await result_of(forked.result()) == "d"
        assert await running.status() == "running"
        with pytest.raises(RunError, match="'act:a', 'act:b', 'act:c'"):
            await running.fork(from_step="act:d", id="i")
        flow._grace = 0
    assert world.of("h") == ["b", "c", "d"]


async def test_undone_steps_of_the_copied_part_belong_to_the_fork_as_well(flow: Flowlet, world: World) -> None:
    saga = line(flow, world)
    async with flow:
        await flow.execute(saga, 1, id="r")
        world.fail.add("d")
        forked = await flow.handle("r", saga).fork(from_step="act:d", id="f")
        assert isinstance(await result_of(forked.result()), Broken)
        assert await forked.status() == "compensated"
    assert world.of("f") == ["d", "undo c", "undo b", "undo a"]
    assert world.of("r") == ["a", "b", "c", "d"]


async def test_of_a_run_that_needs_attention(flow: Flowlet, world: World) -> None:
    act = world.act

    @step(pivot=True)
    async def charge() -> str:
        return "charged"

    @flow.saga
    async def body() -> list[str]:
        await charge()
        return [await act("x"), *(await gather(act("y"), act("z"))), await act("end")]

    world.fail.update("xyz")
    async with flow:
        handle = await flow.start(body, id="r")
        for _ in range(3):
            error = await result_of(handle.result())
            assert isinstance(error, RunParked)
            name = error.reason.split("'")[1].removeprefix("act:")  # of y and z, either may fail first
            await handle.skip(f"act:{name}", f"{name} skipped")
        assert await result_of(handle.result()) == ["x skipped", "y skipped", "z skipped", "end"]
        world.fail.clear()
        forked = await handle.fork(from_step="act:end", id="f")
        assert await result_of(forked.result()) == ["x skipped", "y skipped", "z skipped", "end"]
        assert world.of("f") == ["end"]
        forked = await handle.fork(from_step="act:x", id="g")
        assert await result_of(forked.result()) == ["x", "y", "z", "end"]
        assert sorted(world.of("g")) == ["end", "x", "y", "z"]
        world.fail.add("x")
        forked = await handle.fork(from_step="act:x", id="h")
        assert "'act:x'" in (await result_of(forked.result())).reason
        world.fail.clear()
        await forked.resume()
        assert await result_of(forked.result()) == ["x", "y", "z", "end"]


async def test_of_a_mismatch_with_mended_code(new_store: NewStore, world: World) -> None:
    world.hang.add("c")
    async with Flowlet(new_store(), grace=0) as flow:
        await flow.start(line(flow, world), 1, id="r")
        with anyio.fail_after(20):
            await world.reached.wait()
    world.hang.clear()
    async with Flowlet(new_store()) as flow:

        @flow.saga(name="line")
        async def other(n: int) -> str:
            await world.act("a")
            await world.act("other")
            return await world.act("d")

        handle = flow.handle("r", other)
        assert isinstance(await result_of(handle.result()), RunParked)
        forked = await handle.fork(from_step="act:b", id="f")
        assert await result_of(forked.result()) == "d"
        assert await handle.status() == "parked"
    assert world.of("f") == ["other", "d"]


async def test_with_a_new_version_of_the_code(new_store: NewStore, world: World) -> None:
    async with Flowlet(new_store()) as flow:
        await flow.execute(line(flow, world), 1, id="r")
    async with Flowlet(new_store()) as flow:

        @flow.saga(name="line", version=2)
        async def newer(n: int) -> str:
            await world.act("a")
            return await world.act("z")

        forked = await flow.handle("r", newer).fork(from_step="act:b", id="f")
        assert await result_of(forked.result()) == "z"
    assert world.of("f") == ["z"]


# ---------------------------------------------------------------- what is copied
async def test_draws_repeat_in_the_copied_part_and_differ_after_it(new_store: NewStore, world: World) -> None:
    async with Flowlet(new_store()) as flow:
        saga = line(flow, world)
        await flow.execute(saga, 1, id="r")
        original, world.draws = world.draws, []
        forked = await flow.handle("r", saga).fork(from_step="act:c", id="f")
        await result_of(forked.result())
        drawn, world.draws = world.draws, []
        # drawn before each step; the third came after all that is copied
        assert drawn[:2] == original[:2]
        assert drawn[2][2] == original[2][2]  # the time of the last record
        assert all(a != b for a, b in zip(drawn[2][:2], original[2][:2], strict=True))
        assert all(a != b for a, b in zip(drawn[3], original[3], strict=True))
        again = await forked.fork(from_step="act:d", id="g")
        await result_of(again.result())
        second, world.draws = world.draws, []
        assert second[:3] == drawn[:3]
        assert second[3][2] == drawn[3][2]
        assert second[3][0] != drawn[3][0]
        early = await again.fork(from_step="act:b", id="h")
        await result_of(early.result())
        assert world.draws[:1] == original[:1]
        assert world.draws[1][0] not in {d[1][0] for d in (original, drawn, second)}


async def test_it_survives_a_restart(new_store: NewStore, world: World) -> None:
    async with Flowlet(new_store(), grace=0) as flow:
        saga = line(flow, world)
        await flow.execute(saga, 1, id="r")
        world.draws.clear()
        world.hang.add("d")
        await flow.handle("r", saga).fork(from_step="act:c", id="f")
        with anyio.fail_after(20):
            await world.reached.wait()
        first = world.draws.copy()
    world.hang.clear()
    world.draws.clear()
    async with Flowlet(new_store()) as flow:
        assert await result_of(flow.handle("f", line(flow, world)).result()) == "d"
    assert world.draws == first
    assert world.of("f") == ["c", "d"]


async def test_gathers_are_copied_in_the_order_of_their_records(flow: Flowlet, world: World) -> None:
    act = world.act
    turns = {"x": 0.05, "y": 0.1, "z": 0.0}

    @step(key=lambda name: name)
    async def turn(name: str) -> str:
        await anyio.sleep(turns[name])
        return world.note(name)

    @flow.saga
    async def body() -> list[str]:
        await act("a")
        names = await gather(turn("x"), turn("y"), turn("z"))
        return [*names, await act("end")]

    async with flow:
        expected = await flow.execute(body, id="r")
        for number, (first, done) in enumerate([("z", "xyz"), ("x", "xy"), ("y", "y")]):
            forked = await flow.handle("r", body).fork(from_step=f"turn:{first}", id=f"f{number}")
            assert await result_of(forked.result()) == expected
            steps = (await forked.report()).steps
            assert {k for k in steps if k.startswith("turn")} == {"turn:x", "turn:y", "turn:z"}
            executed = [line.rpartition(" ")[2] for line in world.log if line.startswith(f"f{number} ")]
            assert sorted(executed) == sorted([*done, "end"])


async def test_attempts_begin_anew_and_failed_steps_are_copied(flow: Flowlet, world: World) -> None:
    tries: list[str] = []

    @step(retry=Retry(attempts=3, wait=0))
    async def flaky(run: Run = provided) -> int:
        tries.append(f"{run.id} {run.attempt}")
        if run.id == "r" and run.attempt < 3:
            raise Broken
        return run.attempt

    @step
    async def caught() -> None:
        tries.append("caught")
        raise Broken("caught")

    @flow.saga
    async def body() -> int:
        with contextlib.suppress(Broken):
            await caught()
        first = await flaky()
        await world.act("end")
        return first

    async with flow:
        assert await flow.execute(body, id="r") == 3
        assert await result_of((await flow.handle("r").fork(from_step="act:end", id="f")).result()) == 3
        assert await result_of((await flow.handle("r").fork(from_step="flaky", id="g")).result()) == 1
    assert tries == ["caught", "r 1", "r 2", "r 3", "g 1"]


async def test_patches_and_skipped_steps_of_pipelines(flow: Flowlet, world: World) -> None:
    answers: list[bool] = []

    @flow.saga
    async def body(run: Run = provided) -> str:
        answers.append(run.patched("one"))
        await world.act("a")
        answers.append(run.patched("two"))
        return await world.act("b")

    @step
    async def first(n: int) -> int:
        return n

    @step
    async def maybe(first: int) -> int:
        return first

    @step
    async def last(first: int) -> str:
        return world.note(f"last {first}")

    line = flow.pipeline("pipe", first, maybe, last, when={"maybe": lambda first: first > 10})
    async with flow:
        await flow.execute(body, id="r")
        forked = await flow.handle("r").fork(from_step="act:b", id="f")
        assert await result_of(forked.result()) == "b"
        kinds = [r.kind async for r in forked.history()]
        assert [k for k in kinds if k.startswith("patched")] == ["patched/one", "patched/two"]
        assert await flow.execute(line, 1, id="p") == "last 1"
        forked = await flow.handle("p").fork(from_step="last", id="q")
        assert await result_of(forked.result()) == "last 1"
        assert (await forked.report()).steps["maybe"].status == "skipped"
    assert answers == [True] * 4


async def test_what_was_skipped_at_most_once_is_copied(new_store: NewStore, world: World) -> None:
    hang = [True]

    def build(flow: Flowlet) -> Any:
        @step(at_most_once=True)
        async def charge() -> str:
            world.log.append(f"{current_run().id} charge")
            world.reached.set()
            while hang[0]:
                await anyio.sleep(0.002)
            return "charged"

        @flow.saga(name="pay")
        async def body() -> str:
            return await charge() + " " + await world.act("end")

        return body

    async with Flowlet(new_store(), grace=0) as flow:
        await flow.start(build(flow), id="r")
        with anyio.fail_after(20):
            await world.reached.wait()
    hang[0] = False
    async with Flowlet(new_store()) as flow:
        handle = flow.handle("r", build(flow))
        assert isinstance(await result_of(handle.result()), RunParked)
        await handle.skip("charge", "by phone")
        assert await result_of(handle.result()) == "by phone end"
        forked = await handle.fork(from_step="act:end", id="f")
        assert await result_of(forked.result()) == "by phone end"
        forked = await handle.fork(from_step="charge", id="g")
        assert await result_of(forked.result()) == "charged end"
    assert world.of("g") == ["charge", "end"]
    assert world.of("f") == ["end"]


async def test_a_definitions_deadline_counts_from_the_fork(flow: Flowlet, world: World) -> None:
    saga = line(flow, world, deadline=0.3)
    async with flow:
        await flow.execute(saga, 1, id="r")
        world.hang.add("d")
        forked = await flow.handle("r", saga).fork(from_step="act:d", id="f")
        assert isinstance(await result_of(forked.result()), RunTimeout)
        world.hang.clear()
        await anyio.sleep(0.1)
        forked = await flow.handle("r", saga).fork(from_step="act:d", id="g")
        assert await result_of(forked.result()) == "d"


# ---------------------------------------------------------------- what is refused
async def test_what_is_refused(flow: Flowlet, world: World) -> None:
    world.fail.add("c")
    saga = line(flow, world)
    async with flow:
        await result_of(flow.execute(saga, 1, id="r"))
        handle = flow.handle("r", saga)
        for step_key in ("act:d", "act", "act:a~undo", "act:b~undo", ""):
            with pytest.raises(RunError, match=r"it has records of 'act:a', 'act:b', 'act:c'$"):
                await handle.fork(from_step=step_key, id="f")
        with pytest.raises(IdConflict, match="'r' is taken"):
            await handle.fork(from_step="act:b", id="r")
        with pytest.raises(RunNotFound):
            await flow.handle("nothing").fork(from_step="act:b")
        with pytest.raises(RunNotFound):
            await flow.handle("f").status()
        assert await handle.status() == "compensated"
