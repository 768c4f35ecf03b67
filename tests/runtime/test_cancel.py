"""`Handle.cancel`: wherever the run is, it ends, what it did is undone once, and nobody else is harmed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from flowlet import Flowlet, Retry, compensate, current_run, gather, step
from flowlet.errors import RunCancelled, RunError, RunFinished, RunNotFound, RunParked
from flowlet.store import Store, Write

pytestmark = pytest.mark.anyio

NewStore = Callable[[], Store]


class Broken(Exception):
    pass


@dataclass
class World:
    """What steps do, and where they and the body wait.

    Attributes:
        log: effects, in order.
        hang: the places where somebody waits until ``open`` is set.
        cut: the places where somebody was cancelled while waiting.
    """

    hang: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    here: dict[str, anyio.Event] = field(default_factory=dict)
    open: anyio.Event = field(default_factory=anyio.Event)

    async def act(self, name: str) -> None:
        await self.wait(name)
        self.log.append(name)

    async def wait(self, name: str) -> None:
        if name in self.hang:
            self.here.setdefault(name, anyio.Event()).set()
            try:
                await self.open.wait()
            except BaseException:
                self.cut.append(name)
                raise

    async def reached(self, name: str) -> None:
        with anyio.fail_after(20):
            await self.here.setdefault(name, anyio.Event()).wait()


@pytest.fixture
def world() -> World:
    return World()


def program(flow: Flowlet, world: World, *, fail: bool = False) -> Any:
    """Assemble the same program again, as another process would."""

    @step(retry=Retry(attempts=9, wait=0))
    async def take(n: int) -> int:
        await world.act(f"take {n}")
        return n

    @compensate(take)
    async def give(n: int, take: int, error: Exception) -> None:
        assert n == take
        assert isinstance(error, Broken if fail else RunCancelled)
        await world.act(f"give {n}")

    @flow.saga
    async def buy() -> str:
        await take(1)
        await world.wait("body")
        await gather(take(2), take(3))
        await take(4)
        if fail:
            raise Broken
        return "bought"

    return buy


async def assert_cancelled(flow: Flowlet, world: World, id: str = "b") -> None:
    """The run was cancelled, and each step that has a result was undone once, in reverse."""
    with anyio.fail_after(20), pytest.raises(RunCancelled, match=f"run '{id}' was cancelled"):
        await flow.handle(id).result()
    assert await flow.handle(id).status() == "cancelled"
    records = [r async for r in flow.handle(id).history()]
    done = [r.step for r in records if r.kind == "step_completed" and "~" not in str(r.step)]
    undone = [str(r.step).partition("~")[0] for r in records if "~" in str(r.step)]
    assert undone == done[::-1]
    assert [r.seq for r in records] == list(range(1, len(records) + 1))
    assert [r.kind for r in records].count("interrupted") == 1
    assert [r.kind for r in records].count("compensating") == bool(done)
    given = [e for e in world.log if e.startswith(("give", "un"))]
    assert len(given) == len(set(given)) == len(undone)
    await flow.handle(id).cancel()  # once more is no error, and changes nothing
    assert len([r async for r in flow.handle(id).history()]) == len(records)


PLACES = {"take 1": 0, "body": 1, "take 2": 1, "take 3": 1, "take 4": 3}
"""Where a run is cancelled, and at least how many steps have a result then."""


# ------------------------------------------------------------------ wherever it is
@pytest.mark.parametrize("place", PLACES)
async def test_a_run_of_flowlets_own(flow: Flowlet, world: World, place: str) -> None:
    world.hang = {place}
    async with flow:
        handle = await flow.start(program(flow, world), id="b")
        await world.reached(place)
        await handle.cancel()
        await assert_cancelled(flow, world)
    assert world.cut == [place]
    assert len([e for e in world.log if "give" in e]) >= PLACES[place]
    assert len([e for e in world.log if "give" in e]) == len([e for e in world.log if "take" in e])


@pytest.mark.parametrize("place", PLACES)
async def test_a_run_in_its_callers_task(flow: Flowlet, world: World, place: str) -> None:
    """The caller is told, and is not itself cancelled."""
    world.hang = {place}
    seen: list[BaseException] = []

    async def call() -> None:
        try:
            await flow.execute(program(flow, world), id="b")
        except BaseException as error:
            seen.append(error)
        for _ in range(5):
            await anyio.sleep(0)  # nothing comes later, either
        if asyncio_task() is not None:
            assert asyncio_task().cancelling() == 0  # type: ignore[union-attr]
        seen.append(Broken())

    async with flow:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(call)
                await world.reached(place)
                await flow.handle("b").cancel()
        assert [type(error) for error in seen] == [RunCancelled, Broken]
        await assert_cancelled(flow, world)


def asyncio_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # on trio
        return None


async def test_before_it_has_begun(flow: Flowlet, world: World) -> None:
    world.hang = {"body"}
    async with flow:
        handle = await flow.start(program(flow, world), id="b")
        await handle.cancel()
        await assert_cancelled(flow, world)
    assert [e for e in world.log if "take" in e] in ([], ["take 1"])


@pytest.mark.parametrize("parallel", [False, True])
async def test_between_two_attempts(flow: Flowlet, world: World, parallel: bool) -> None:
    tried: list[int] = []

    @step
    async def take(n: int) -> int:
        return n

    @compensate(take)
    async def give(n: int) -> None:
        world.log.append(f"give {n}")

    @step(retry=Retry(attempts=3, wait=60))
    async def flaky() -> int:
        tried.append(current_run().attempt)
        raise Broken

    @flow.saga
    async def buy() -> None:
        await take(1)
        await (gather(flaky(), take(2)) if parallel else flaky())

    async with flow:
        handle = await flow.start(buy, id="b")
        with anyio.fail_after(20):
            while "attempt_failed" not in [r.kind async for r in handle.history()]:
                await anyio.sleep(0.002)
        await handle.cancel()
        await assert_cancelled(flow, world)
        kinds = [(r.kind, r.step) async for r in handle.history()]
    assert tried == [1]
    assert ("step_cancelled", "flaky") in kinds
    assert world.log == (["give 2", "give 1"] if parallel else ["give 1"])


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("limit", [None, 60])
@pytest.mark.parametrize("how", ["start", "execute"])
async def test_a_plain_function_in_a_thread_is_awaited(
    flow: Flowlet, world: World, how: str, limit: float | None, parallel: bool
) -> None:
    """A thread cannot be stopped: what it did counts, and is undone when it has done it."""
    running, go = threading.Event(), threading.Event()

    @step(timeout=limit)
    def work(n: int) -> int:
        running.set()
        go.wait(20)
        world.log.append("work")
        return n

    @step
    async def side(n: int) -> int:
        return n

    async def call() -> None:
        with contextlib.suppress(RunCancelled):
            await flow.execute(buy, 7, id="b")

    if parallel:
        buy = flow.pipeline("buy", work, side)
    else:

        @compensate(work)
        def unwork(work: int) -> None:
            world.log.append(f"unwork {work}")

        buy = flow.saga("buy", work)
    async with flow, anyio.create_task_group() as group:
        if how == "start":
            await flow.start(buy, 7, id="b")
        else:
            group.start_soon(call)
        with anyio.fail_after(20):
            while not running.is_set():
                await anyio.sleep(0.002)
        await flow.handle("b").cancel()
        await anyio.sleep(0.05)
        assert await flow.handle("b").status() in ("running", "compensating")
        assert world.log == []
        go.set()
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await flow.handle("b").result()
        assert await flow.handle("b").status() == "cancelled"
        report = await flow.handle("b").report()
    assert world.log == (["work"] if parallel else ["work", "unwork 7"])  # nothing of a pipeline is undone
    assert report.steps["work"].status == "completed"


@pytest.mark.parametrize("how", ["start", "execute"])
async def test_while_it_is_being_undone_it_makes_no_difference(flow: Flowlet, world: World, how: str) -> None:
    world.hang = {"give 3"}
    buy = program(flow, world, fail=True)
    async with flow:
        if how == "start":
            await flow.start(buy, id="b")
            await world.reached("give 3")
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: flow.execute(buy, id="b"))
                await world.reached("give 3")
                group.cancel_scope.cancel()
        for _ in range(3):
            await flow.handle("b").cancel()
        await anyio.sleep(0.02)
        world.open.set()
        with anyio.fail_after(20), pytest.raises(Broken):
            await flow.handle("b").result()
        assert await flow.handle("b").status() == "compensated"
        with pytest.raises(RunFinished, match="has ended as 'compensated'"):
            await flow.handle("b").cancel()
    assert sorted(world.log) == sorted([f"{what} {n}" for what in ("take", "give") for n in range(1, 5)])
    assert world.cut == []


async def test_after_the_end(flow: Flowlet, world: World) -> None:
    @flow.saga
    async def fails() -> None:
        raise Broken

    buy = program(flow, world)
    async with flow:
        assert await flow.execute(buy, id="good") == "bought"
        with pytest.raises(Broken):
            await flow.execute(fails, id="bad")
        with pytest.raises(RunFinished, match="run 'good' has ended as 'completed'"):
            await flow.handle("good").cancel()
        with pytest.raises(RunFinished, match="run 'bad' has ended as 'failed'"):
            await flow.handle("bad").cancel()
        assert await flow.handle("good", buy).result() == "bought"


async def test_what_is_no_run(flow: Flowlet, world: World) -> None:
    program(flow, world)
    async with flow:
        with pytest.raises(RunNotFound, match="there is no run 'nobody'"):
            await flow.handle("nobody").cancel()
        with pytest.raises(RunNotFound, match="not a run"):
            await flow.handle("definition/saga/buy/1").cancel()


@pytest.mark.parametrize("place", ["body", "take 4"])
async def test_fifty_at_once(flow: Flowlet, world: World, place: str) -> None:
    world.hang = {place}
    async with flow:
        handle = await flow.start(program(flow, world), id="b")
        await world.reached(place)
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(handle.cancel)
        await assert_cancelled(flow, world)


async def test_a_pipeline(flow: Flowlet, world: World) -> None:
    async def one() -> int:
        await world.act("one")
        return 1

    async def two() -> int:
        await world.act("two")
        return 2

    async def three(one: int, two: int) -> int:
        await world.act("three")
        return 3

    pipeline = flow.pipeline("pipeline", one, two, three)
    world.hang = {"two"}
    async with flow:
        handle = await flow.start(pipeline, id="b")
        await world.reached("two")
        await handle.cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await handle.result()
        assert await handle.status() == "cancelled"
    assert world.log == ["one"]
    assert world.cut == ["two"]


# ------------------------------------------------------------------ from inside
@pytest.mark.parametrize("then", ["step", "foreign", "end", "gather"])
@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("how", ["start", "execute", "call", "gather"])
async def test_from_inside_its_own_step(flow: Flowlet, world: World, how: str, waits: bool, then: str) -> None:
    ids: list[str] = []

    @step
    async def take(n: int) -> int:
        world.log.append(f"take {n}")
        return n

    @compensate(take)
    async def give(n: int) -> None:
        world.log.append(f"give {n}")

    @step
    async def stop() -> int:
        ids.append(current_run().id)
        await flow.handle(current_run().id).cancel()
        if waits:
            await anyio.sleep_forever()
        world.log.append("stop")
        return 0

    @compensate(stop)
    async def unstop() -> None:
        world.log.append("unstop")

    @flow.saga
    async def buy() -> str:
        await take(1)
        await (gather(stop(), take(2)) if how == "gather" else stop())
        if then == "step":
            await take(3)
        elif then == "gather":
            await gather(take(3), take(4))
        elif then == "foreign":
            await anyio.sleep_forever()
        return "bought"

    async def call() -> str:
        if how in ("start", "gather"):
            return await (await flow.start(buy, id="b")).result()
        return await (flow.execute(buy, id="b") if how == "execute" else buy())

    async with flow:
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await call()
        for _ in range(5):
            await anyio.sleep(0)
        await assert_cancelled(flow, World(log=world.log), ids[0])
    assert "take 3" not in world.log
    assert world.log.count("give 1") == 1
    if how != "gather":
        assert world.log in (["take 1", "give 1"], ["take 1", "stop", "unstop", "give 1"])


async def test_a_step_whose_caller_nobody_has_seen_can_ask_for_its_status(flow: Flowlet) -> None:
    @step
    async def ask() -> str:
        return await flow.handle(current_run().id).status()

    @flow.saga
    async def buy() -> str:
        return await ask()

    async with flow:
        assert await buy() == "running"


# ------------------------------------------------------------------ bodies and steps with ideas of their own
@pytest.mark.parametrize("what", ["take 1", "body", "take 4"])
@pytest.mark.parametrize("how", ["start", "execute"])
async def test_a_body_that_swallows_the_cancellation(new_store: NewStore, world: World, how: str, what: str) -> None:
    """It gets no further step done, whatever it does, and ends as cancelled even if it returns; also on replay."""

    def make(flow: Flowlet) -> Any:
        @step
        async def take(n: int) -> int:
            await world.act(f"take {n}")
            return n

        @compensate(take)
        async def give(n: int) -> None:
            await world.act(f"give {n}")

        @flow.saga
        async def buy() -> str:
            for n in (1, 4):
                try:
                    await take(n)
                    await world.wait("body")
                except BaseException:
                    world.hang.discard(what)
                    with contextlib.suppress(BaseException):
                        await take(9)
                    with contextlib.suppress(BaseException):
                        await gather(take(10), take(11))
            return "bought"

        return buy

    world.hang = {what, "give 1"}
    flow = Flowlet(new_store(), grace=0)
    buy = make(flow)
    async with flow, anyio.create_task_group() as group:

        async def call() -> None:
            with contextlib.suppress(RunCancelled, RunError):
                await flow.execute(buy, id="b")

        if how == "start":
            await flow.start(buy, id="b")
        else:
            group.start_soon(call)
        await world.reached(what)
        await flow.handle("b").cancel()
        if what != "take 1":
            await world.reached("give 1")
        else:
            with anyio.fail_after(20), pytest.raises(RunCancelled):
                await flow.handle("b").result()
        group.cancel_scope.cancel()
    world.hang = set()
    flow = Flowlet(new_store())
    make(flow)
    async with flow:
        await assert_cancelled(flow, world)
        kinds = [r.kind async for r in flow.handle("b").history()]
    assert kinds.count("step_cancelled") <= 1  # the one that was under way, or was the first to be refused
    assert not {"take 9", "take 10", "take 11"} & set(world.log)


@pytest.mark.parametrize("place", ["take 2", "body"])
async def test_a_body_that_makes_another_error_of_it(new_store: NewStore, world: World, place: str) -> None:
    """It was cancelled all the same, live and for who finishes undoing."""

    def make(flow: Flowlet) -> Any:
        @step
        async def take(n: int) -> int:
            await world.act(f"take {n}")
            return n

        @compensate(take)
        async def give(n: int, error: Exception) -> None:
            assert isinstance(error, RunCancelled)
            await world.act(f"give {n}")

        @flow.saga
        async def buy() -> None:
            await take(1)
            try:
                await world.wait("body")
                await take(2)
            except BaseException:
                raise Broken from None

        return buy

    world.hang = {place, "give 1"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        handle = await flow.start(make(flow), id="b")
        await world.reached(place)
        await handle.cancel()
        await world.reached("give 1")
    world.hang = {place}
    flow = Flowlet(new_store())
    make(flow)
    async with flow:
        await assert_cancelled(flow, world)
    assert world.log == ["take 1", "give 1"]


async def test_a_body_with_a_finally_that_calls_a_step(flow: Flowlet, world: World) -> None:
    world.hang = {"take 4"}

    @step
    async def take(n: int) -> int:
        await world.act(f"take {n}")
        return n

    @compensate(take)
    async def give(n: int) -> None:
        await world.act(f"give {n}")

    @flow.saga
    async def buy() -> None:
        await take(1)
        try:
            await take(4)
        finally:
            await take(5)

    async with flow:
        handle = await flow.start(buy, id="b")
        await world.reached("take 4")
        await handle.cancel()
        await assert_cancelled(flow, world)
    assert world.log == ["take 1", "give 1"]


@pytest.mark.parametrize("how", ["start", "execute", "gather"])
@pytest.mark.parametrize("then", ["step", "foreign", "end"])
async def test_a_step_that_ends_all_the_same(flow: Flowlet, world: World, how: str, then: str) -> None:
    """What it returned counts, and is undone."""
    world.hang = {"take 2"}

    @step
    async def take(n: int) -> int:
        with contextlib.suppress(BaseException):
            await world.wait(f"take {n}")
        world.log.append(f"take {n}")
        return n

    @compensate(take)
    async def give(take: int) -> None:
        world.log.append(f"give {take}")

    @flow.saga
    async def buy() -> str:
        await take(1)
        await (gather(take(2), take(3)) if how == "gather" else take(2))
        if then == "step":
            await take(4)
        elif then == "foreign":
            await anyio.sleep_forever()
        return "bought"

    async def call() -> None:
        with pytest.raises(RunCancelled):
            await flow.execute(buy, id="b")

    async with flow, anyio.create_task_group() as group:
        if how == "execute":
            group.start_soon(call)
        else:
            await flow.start(buy, id="b")
        await world.reached("take 2")
        await flow.handle("b").cancel()
        await assert_cancelled(flow, world)
    done = ["take 1", "take 3", "take 2"] if how == "gather" else ["take 1", "take 2"]
    assert world.log == [*done, *(entry.replace("take", "give") for entry in reversed(done))]


@pytest.mark.parametrize("parallel", [False, True])
async def test_what_a_step_raises_when_it_is_cut_off_is_no_failure(flow: Flowlet, world: World, parallel: bool) -> None:
    world.hang = {"ask"}
    tried: list[int] = []

    @step
    async def take(n: int) -> int:
        world.log.append(f"take {n}")
        return n

    @compensate(take)
    async def give(n: int) -> None:
        world.log.append(f"give {n}")

    @step(retry=Retry(attempts=5, wait=0))
    async def ask() -> int:
        tried.append(current_run().attempt)
        try:
            await world.wait("ask")
        except BaseException:
            raise Broken("the connection was closed") from None
        return 1

    @flow.saga
    async def buy() -> None:
        await take(1)
        await (gather(ask(), take(2)) if parallel else ask())

    async with flow:
        handle = await flow.start(buy, id="b")
        await world.reached("ask")
        await handle.cancel()
        await assert_cancelled(flow, world)
        assert (await handle.report()).steps["ask"].status == "cancelled"
    assert tried == [1]


# ------------------------------------------------------------------ the caller has a will of its own
@pytest.mark.parametrize("first", ["run", "caller"])
@pytest.mark.parametrize("place", ["take 1", "body", "take 2", "take 4"])
async def test_both_are_cancelled_at_once_natively(
    flow: Flowlet, world: World, place: str, first: str, anyio_backend: str
) -> None:
    if anyio_backend == "trio":
        pytest.skip("trio has scopes only")
    world.hang = {place}
    buy = program(flow, world)
    async with flow:
        task = asyncio.get_running_loop().create_task(flow.execute(buy, id="b"))
        await world.reached(place)
        execution = flow._open_runs.live["b"]
        order = RunCancelled("run 'b' was cancelled, at once")
        if first == "run":
            execution.tell(order)
            task.cancel()
        else:
            task.cancel()
            execution.tell(order)
        with pytest.raises(asyncio.CancelledError):
            await task
        await assert_cancelled(flow, world)


@pytest.mark.parametrize("first", ["run", "caller"])
@pytest.mark.parametrize("place", ["take 1", "body", "take 2", "take 4"])
async def test_both_are_cancelled_at_once_by_a_scope(flow: Flowlet, world: World, place: str, first: str) -> None:
    world.hang = {place}
    buy = program(flow, world)
    after: list[str] = []

    async def call(scope: anyio.CancelScope) -> None:
        with scope:
            await flow.execute(buy, id="b")
        after.append("scope left")
        await anyio.sleep(0.01)
        after.append("alive")

    async with flow:
        scope = anyio.CancelScope()
        async with anyio.create_task_group() as group:
            group.start_soon(call, scope)
            await world.reached(place)
            execution = flow._open_runs.live["b"]
            order = RunCancelled("run 'b' was cancelled, at once")
            if first == "run":
                execution.tell(order)
                scope.cancel()
            else:
                scope.cancel()
                execution.tell(order)
        assert scope.cancelled_caught
        assert after == ["scope left", "alive"]
        await assert_cancelled(flow, world)


async def test_a_native_timeout_around_the_call(flow: Flowlet, world: World, anyio_backend: str) -> None:
    if anyio_backend == "trio":
        pytest.skip("asyncio's own")
    world.hang = {"take 4"}
    buy = program(flow, world)

    async with flow:
        with pytest.raises(TimeoutError):  # the caller's: it is gone, the run is not
            async with asyncio.timeout(0.05):
                await flow.execute(buy, id="b")
        task = asyncio.get_running_loop().create_task(_cancel_at(flow, world, "take 4", "b"))
        async with asyncio.timeout(20) as limit:
            with pytest.raises(RunCancelled):
                await flow.execute(buy, id="b")
        await task
        world.here.clear()
        task = asyncio.get_running_loop().create_task(_cancel_at(flow, world, "take 4", "c"))
        async with asyncio.timeout(20) as limit:
            with pytest.raises(RunCancelled):
                await flow.execute(buy, id="c")
        await task
        assert not limit.expired()
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def _cancel_at(flow: Flowlet, world: World, place: str, id: str) -> None:
    await world.reached(place)
    await flow.handle(id).cancel()


async def test_a_timeout_in_the_body_at_the_moment_of_the_cancellation(
    flow: Flowlet, world: World, anyio_backend: str
) -> None:
    """It is the run that ends, and not the body that is told of a timeout."""
    seen: list[str] = []

    @flow.saga
    async def buy() -> str:
        with anyio.move_on_after(60) as scope:
            world.here.setdefault("body", anyio.Event()).set()
            scopes.append(scope)
            await anyio.sleep_forever()
        seen.append("went on")
        await anyio.sleep_forever()
        return "bought"

    scopes: list[anyio.CancelScope] = []
    async with flow:
        handle = await flow.start(buy, id="b")
        await world.reached("body")
        flow._open_runs.live["b"].tell(RunCancelled("run 'b' was cancelled, at once"))
        scopes[0].cancel()
        await assert_cancelled(flow, world)
    assert seen == []
    assert handle.id == "b"


# ------------------------------------------------------------------ wherever it is executed
@pytest.mark.parametrize("place", ["body", "take 4"])
async def test_from_another_flowlet_on_the_store(new_store: NewStore, world: World, place: str) -> None:
    world.hang = {place}
    flow, other = Flowlet(new_store()), Flowlet(new_store())
    async with flow, other:
        await flow.start(program(flow, world), id="b")
        await world.reached(place)
        before = anyio.current_time()
        await other.handle("b").cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await other.handle("b").result()
        assert anyio.current_time() - before < 5  # half of a lease, on a busy machine; it takes 0.1
        await assert_cancelled(flow, world)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("place", ["take 1", "body", "take 2", "take 4"])
async def test_of_a_run_that_nobody_executes(new_store: NewStore, world: World, place: str, known: bool) -> None:
    """It is undone by whoever takes it up, before any further step begins."""
    world.hang = {place}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow, world), id="b")
        await world.reached(place)
        while place == "take 2" and "take 3" not in world.log:  # beside it
            await anyio.sleep(0.002)
    begun = [e for e in world.log if "take" in e]
    # Where nobody tells it, it would wait for ever.
    world.hang = {place} if known else {"body"} if place in ("take 1", "body") else set()
    flow = Flowlet(new_store())
    if not known:
        async with Flowlet(new_store()) as stranger:
            await stranger.handle("b").cancel()
            await stranger.handle("b").cancel()
        program(flow, world)
    async with flow:
        if known:
            program(flow, world)
            await flow.handle("b").cancel()
        await assert_cancelled(flow, world)
    assert [e for e in world.log if "take" in e] == begun


@pytest.mark.parametrize("place", ["take 1", "body", "take 2", "take 4"])
@pytest.mark.parametrize("then", ["give 3", "give 1"])
async def test_left_in_the_middle_of_its_compensations(
    new_store: NewStore, world: World, place: str, then: str
) -> None:
    """They go on where they were, although the body comes to the place where it waited for something else."""
    if PLACES[place] < 3 and then == "give 3":
        then = "give 1"
    world.hang = {place, then}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        handle = await flow.start(program(flow, world), id="b")
        await world.reached(place)
        await handle.cancel()
        if PLACES[place]:
            await world.reached(then)
    world.hang = {"body"} if place in ("take 1", "body") else set()
    flow = Flowlet(new_store())
    program(flow, world)
    async with flow:
        await assert_cancelled(flow, world)
    assert sorted(e for e in world.log if "give" in e) == sorted({e for e in world.log if "give" in e})


async def test_while_it_is_being_repeated(new_store: NewStore, world: World) -> None:
    """The body waits for something else in the middle of what is on record: all of that is undone."""
    world.hang = {"take 4"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow, world), id="b")
        await world.reached("take 4")
    world.hang = {"body"}
    flow = Flowlet(new_store())
    program(flow, world)
    async with flow:
        await world.reached("body")
        await flow.handle("b").cancel()
        await anyio.sleep(0.02)
        world.open.set()
        await assert_cancelled(flow, world)
    assert sorted(world.log) == ["give 1", "give 2", "give 3", "take 1", "take 2", "take 3"]


async def test_what_is_told_first_stands(new_store: NewStore, world: World) -> None:
    """A run that was cancelled, and whose deadline passes before anybody takes it up, was cancelled."""
    world.hang = {"take 4"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow, world), id="b", deadline=3600)
        await world.reached("take 4")
    async with Flowlet(new_store()) as stranger:
        await stranger.handle("b").cancel()
    store = new_store()
    now = store.now

    async def later() -> float:
        return await now() + 7200

    store.now = later  # type: ignore[method-assign]
    flow = Flowlet(store)
    program(flow, world)
    async with flow:
        await assert_cancelled(flow, world)


# ------------------------------------------------------------------ runs that wait for their operator
async def test_a_parked_run_is_undone_as_far_as_recorded(new_store: NewStore, world: World) -> None:
    world.hang = {"take 4"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow, world), id="b")
        await world.reached("take 4")
    world.hang = set()
    flow = Flowlet(new_store())

    @step
    async def take(n: int) -> int:
        raise AssertionError

    @compensate(take)
    async def give(n: int) -> None:
        world.log.append(f"give {n}")

    @flow.saga
    async def buy() -> str:
        await take(7)  # another input than on record
        return "bought"

    async with flow:
        with anyio.fail_after(20), pytest.raises(RunParked):
            await flow.handle("b").result()
        await flow.handle("b").cancel()
        await assert_cancelled(flow, world)
    assert sorted(world.log) == ["give 1", "give 2", "give 3", "take 1", "take 2", "take 3"]


async def test_one_whose_compensations_failed_is_refused(flow: Flowlet, world: World) -> None:
    @step
    async def take() -> int:
        return 1

    @compensate(take)
    async def give() -> None:
        raise LookupError("cannot")

    @flow.saga
    async def buy() -> None:
        await take()
        raise Broken

    async with flow:
        with pytest.raises(Broken):
            await flow.execute(buy, id="b")
        before = [r async for r in flow.handle("b").history()]
        with pytest.raises(RunError, match=r"being undone already.*resume\(\).*skip\(\)"):
            await flow.handle("b").cancel()
        assert await flow.handle("b").status() == "compensation_failed"
        assert [r async for r in flow.handle("b").history()] == before


# ------------------------------------------------------------------ in the middle of a write
def hold(store: Store, condition: Callable[[Sequence[Write]], bool]) -> tuple[anyio.Event, anyio.Event]:
    """Hold up the first append that is so, as a store does that has much to do: (it is here, it may go on)."""
    append = store.append
    here, go = anyio.Event(), anyio.Event()

    async def slow(writes: Sequence[Write], *, work: Any = None) -> None:
        if not here.is_set() and condition(writes):
            here.set()
            await go.wait()
        await append(writes, work=work)

    store.append = slow  # type: ignore[method-assign]
    return here, go


@pytest.mark.parametrize("how", ["returns", "fails", "fails and undoes"])
async def test_while_its_end_is_being_stored(flow: Flowlet, world: World, how: str) -> None:
    """It is too late; and the caller, in whose task that is, is not cancelled instead."""

    @step
    async def take() -> None: ...

    @compensate(take)
    async def give() -> None:
        world.log.append("give")

    @flow.saga
    async def buy() -> str:
        if "undoes" in how:
            await take()
        if "fails" in how:
            raise Broken
        return "bought"

    outcome: list[Any] = []

    async def call() -> None:
        try:
            outcome.append(await flow.execute(buy, id="b"))
        except BaseException as error:
            outcome.append(type(error))
        await anyio.sleep(0.01)
        outcome.append("alive")

    here, go = hold(flow.store, lambda writes: any(write.close for write in writes))
    async with flow, anyio.create_task_group() as group:
        group.start_soon(call)
        with anyio.fail_after(20):
            await here.wait()
        flow._open_runs.live["b"].tell(RunCancelled("run 'b' was cancelled, too late"))
        await anyio.sleep(0.01)
        go.set()
    assert outcome == [Broken if "fails" in how else "bought", "alive"]


@pytest.mark.parametrize("how", ["start", "execute"])
async def test_while_a_record_is_being_stored(faulty_store: Any, new_store: NewStore, world: World, how: str) -> None:
    """The step that was about to begin has its place in the order of starts, also for who finishes undoing."""

    def make(flow: Flowlet) -> Any:
        @step
        async def take(n: int) -> int:
            await world.act(f"take {n}")
            return n

        @compensate(take)
        async def give(n: int) -> None:
            await world.act(f"give {n}")

        @flow.saga
        async def buy() -> None:
            await take(1)
            await take(2)
            await take(3)

        return buy

    world.hang = {"give 1"}
    flow = Flowlet(faulty_store, grace=0)
    buy = make(flow)
    here, _ = hold(faulty_store, lambda writes: "take 2" in world.log and any(w.records for w in writes))

    async def call() -> None:
        with contextlib.suppress(RunCancelled, RunError):
            await flow.execute(buy, id="b")

    async with flow, anyio.create_task_group() as group:
        if how == "start":
            await flow.start(buy, id="b")
        else:
            group.start_soon(call)
        with anyio.fail_after(20):
            await here.wait()
        await flow.handle("b").cancel()
        await world.reached("give 1")
        group.cancel_scope.cancel()
    world.hang = set()
    flow = Flowlet(new_store())
    make(flow)
    async with flow:
        await assert_cancelled(flow, world)
    assert world.log == ["take 1", "take 2", "give 2", "give 1"]


# ------------------------------------------------------------------ races with the end
async def test_once_cancel_has_returned_the_run_never_completes(new_store: NewStore) -> None:
    """Completing runs against cancellations from two sides."""
    flow, other = Flowlet(new_store()), Flowlet(new_store())
    outcomes: dict[str, str] = {}
    undone: list[str] = []

    @step
    async def take(id: str) -> str:
        await anyio.sleep(0)
        return id

    @compensate(take)
    async def give(id: str) -> None:
        undone.append(id)

    @flow.saga
    async def buy(id: str) -> str:
        await take(id)
        return id

    async def one(number: int) -> None:
        id = f"r{number}"
        await flow.start(buy, id, id=id)
        for _ in range(number % 7):
            await anyio.lowlevel.checkpoint()
        try:
            await (other if number % 2 else flow).handle(id).cancel()
        except RunFinished:
            outcomes[id] = "finished"
        else:
            outcomes[id] = "cancelled"

    async with flow, other:
        async with anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon(one, number)
        with anyio.fail_after(20):
            for id, outcome in outcomes.items():
                if outcome == "cancelled":
                    with pytest.raises(RunCancelled):
                        await flow.handle(id).result()
                else:
                    assert await flow.handle(id, buy).result() == id
                    assert id not in undone
        listed = [head async for head in flow.runs()]
    assert {run.id: run.status for run in listed} == {
        id: "cancelled" if outcome == "cancelled" else "completed" for id, outcome in outcomes.items()
    }
    assert len(undone) == len(set(undone))
    assert set(outcomes.values()) >= {"cancelled"}


async def test_an_end_that_is_told_of_a_cancellation_by_the_store_alone(new_store: NewStore, world: World) -> None:
    """The signal has come in, but nobody here has seen it yet: the store refuses the end."""
    world.hang = {"take 4"}
    flow, other = Flowlet(new_store()), Flowlet(new_store())
    async with flow, other:
        runs = flow._open_runs
        runs._see = lambda *_: False  # type: ignore[method-assign]  # no look finds anything, for now
        await flow.start(program(flow, world), id="b")
        await world.reached("take 4")
        await other.handle("b").cancel()
        await anyio.sleep(0.2)
        assert await flow.handle("b").status() == "running"
        del runs._see
        world.open.set()
        await assert_cancelled(flow, world)
    assert world.log[3:5] == ["take 4", "give 4"]
    assert sorted(world.log[5:]) == ["give 1", "give 2", "give 3"]


async def test_listings_forget_the_order_of_a_run_that_has_ended(new_store: NewStore, world: World) -> None:
    """Cancelled again while it is being undone, by somebody else: no look for orders finds it for ever."""
    world.hang = {"take 4", "give 1"}
    flow, other = Flowlet(new_store()), Flowlet(new_store())
    async with flow, other:
        await flow.start(program(flow, world), id="b")
        await world.reached("take 4")
        await other.handle("b").cancel()
        await world.reached("give 1")
        await other.handle("b").cancel()
        while not flow._open_runs.live["b"].journal.marked:  # until it has heard of that
            await anyio.sleep(0.002)
        world.open.set()
        await assert_cancelled(flow, world)
        assert await flow.store.scan(kind="run", state="ordered") == []


# ------------------------------------------------------------------ runs in runs
def family(flow: Flowlet, world: World) -> Any:
    @step
    async def take(n: int) -> int:
        await world.act(f"take {n}")
        return n

    @compensate(take)
    async def give(n: int) -> None:
        await world.act(f"give {n}")

    @step
    async def fail() -> None:
        await world.act("fail")
        raise Broken

    @flow.saga
    async def child(n: int) -> int:
        await take(n)
        await take(n + 1)
        return n

    @flow.saga
    async def parent(how: str) -> int:
        await take(1)
        if how == "body":
            return await child(10)
        if how == "gather":
            return sum(await gather(child(10), take(2)))
        await gather(child(10), fail())
        return 0

    return parent


@pytest.mark.parametrize("place", ["take 10", "take 11"])
@pytest.mark.parametrize("how", ["body", "gather"])
@pytest.mark.parametrize("call", ["start", "execute"])
async def test_a_child_that_is_under_way_is_undone_before_its_parent(
    flow: Flowlet, world: World, call: str, how: str, place: str
) -> None:
    world.hang = {place}
    parent = family(flow, world)

    async def execute() -> None:
        with pytest.raises(RunCancelled, match="run 'p' was"):
            await flow.execute(parent, how, id="p")

    async with flow, anyio.create_task_group() as group:
        if call == "start":
            await flow.start(parent, how, id="p")
        else:
            group.start_soon(execute)
        await world.reached(place)
        await flow.handle("p").cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled, match="run 'p' was"):
            await flow.handle("p").result()
        with pytest.raises(RunCancelled, match="run 'p/child' was cancelled"):
            await flow.handle("p/child").result()
        assert await flow.handle("p").status() == await flow.handle("p/child").status() == "cancelled"
        assert (await flow.handle("p").report()).steps["child"].status == "cancelled"
    undone = [entry for entry in world.log if "give" in entry]
    assert undone[-1] == "give 1"
    assert undone == [e for e in ("give 10", "give 2", "give 1") if e.replace("give", "take") in world.log]


@pytest.mark.parametrize("place", ["take 10", "take 11"])
async def test_a_child_whose_sibling_fails_is_undone_before_its_parent(flow: Flowlet, world: World, place: str) -> None:
    world.hang = {place, "fail"}
    async with flow:
        handle = await flow.start(family(flow, world), "fail", id="p")
        await world.reached(place)
        world.hang = {place}
        world.open.set()
        world.open = anyio.Event()
        with anyio.fail_after(20), pytest.raises(Broken):
            await handle.result()
        assert await handle.status() == "compensated"
        assert await flow.handle("p/child").status() in ("cancelled", "completed")
    undone = [entry for entry in world.log if "give" in entry]
    assert undone[-1] == "give 1"


@pytest.mark.parametrize("how", ["body", "gather"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_child_that_was_under_way_when_its_process_ended(
    new_store: NewStore, world: World, how: str, when: str
) -> None:
    """Cancelled while nobody executes them, or left in the middle of undoing the child."""
    world.hang = {"take 11", "give 10"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        handle = await flow.start(family(flow, world), how, id="p")
        await world.reached("take 11")
        while how == "gather" and "take 2" not in world.log:
            await anyio.sleep(0.01)
        if when == "meanwhile":
            await handle.cancel()
            await world.reached("give 10")
    assert not any("give" in entry for entry in world.log)
    world.hang = {"take 11"}
    if when == "before":
        async with Flowlet(new_store()) as stranger:
            await stranger.handle("p").cancel()
    flow = Flowlet(new_store())
    family(flow, world)
    async with flow:
        with anyio.fail_after(20), pytest.raises(RunCancelled, match="run 'p' was"):
            await flow.handle("p").result()
        assert await flow.handle("p/child").status() == "cancelled"
    undone = [entry for entry in world.log if "give" in entry]
    assert undone == (["give 10", "give 1"] if how == "body" else ["give 10", "give 2", "give 1"])


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("parallel", [False, True])
async def test_the_step_of_a_child_that_is_cut_off_with_its_parent_is_not_begun_anew(
    flow: Flowlet, depth: int, parallel: bool
) -> None:
    said: list[str] = []
    begun = anyio.Event()

    @step
    async def charge() -> int:
        said.append("begins")
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            said.append("is cut off")
        return 1

    @flow.saga
    async def child() -> int:
        return await charge()

    @flow.saga
    async def between() -> int:
        return await child()

    @flow.saga
    async def parent() -> int:
        inner = child if depth == 1 else between
        return sum(await gather(inner())) if parallel else await inner()

    async with flow:
        handle = await flow.start(parent, id="p")
        await begun.wait()
        await handle.cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await handle.result()
    assert said == ["begins", "is cut off"]


async def test_a_cancelled_child_fails_its_parent(flow: Flowlet, world: World) -> None:
    world.hang = {"take 11"}
    async with flow:
        handle = await flow.start(family(flow, world), "body", id="p")
        await world.reached("take 11")
        await flow.handle("p/child").cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled, match="run 'p/child' was cancelled"):
            await handle.result()
        assert await handle.status() == "compensated"
    assert world.log == ["take 1", "take 10", "give 10", "give 1"]


async def test_a_caller_that_is_cancelled_leaves_parent_and_child_alone(flow: Flowlet, world: World) -> None:
    world.hang = {"take 11"}
    parent = family(flow, world)
    async with flow:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: flow.execute(parent, "body", id="p"))
            await world.reached("take 11")
            group.cancel_scope.cancel()
        world.open.set()
        with anyio.fail_after(20):
            assert await flow.handle("p", parent).result() == 10
        assert await flow.handle("p/child").status() == "completed"
    assert not any("give" in entry for entry in world.log)
