"""Steps that run at most once: what nobody knows is asked of an operator, and never done again unawares."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, Retry, Run, compensate, gather, provided, step
from flowlet.errors import DecodeError, DefinitionError, RunCancelled, RunError, RunParked, RunTimeout
from flowlet.store import Store

pytestmark = pytest.mark.anyio

Until = Callable[[Callable[[], Any]], Awaitable[None]]
NewStore = Callable[[], Store]


class Broken(Exception):
    pass


@dataclass
class World:
    """What outlives a process: effects, where a step hangs, and what is cut off."""

    log: list[str] = field(default_factory=list)
    hang: set[str] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    fail: set[str] = field(default_factory=set)

    async def act(self, name: str, attempt: int = 1) -> str:
        self.seen.append(name)
        try:
            while name in self.hang:
                await anyio.sleep(0.002)
        except BaseException:
            self.cut.append(name)
            raise
        self.log.append(name if attempt == 1 else f"{name}/{attempt}")
        if name in self.fail:
            raise Broken(name)
        return name


@pytest.fixture
def world() -> World:
    return World()


def pay(flow: Flowlet, world: World, *, timeout: float | None = None, unknown: bool = False) -> Any:
    @step
    async def reserve() -> str:
        return await world.act("reserve")

    @compensate(reserve)
    async def release() -> None:
        await world.act("release")

    @step(at_most_once=True, timeout=timeout, compensate_unknown=unknown)
    async def charge(run: Run = provided) -> str:
        return await world.act("charge", run.attempt)

    @compensate(charge)
    async def refund(charge: str | None) -> None:
        await world.act(f"refund {charge}")

    @step
    async def ship(label: str) -> str:
        return await world.act(f"ship {label}")

    @flow.saga(name="pay")
    async def body() -> str:
        await reserve()
        return await ship(await charge())

    return body


@asynccontextmanager
async def entered(store: Store, build: Callable[[Flowlet], Any], **options: Any) -> AsyncIterator[tuple[Flowlet, Any]]:
    """Be a process that has this code, and enters a Flowlet with it."""
    flow = Flowlet(store, **options)
    definition = build(flow)
    async with flow:
        yield flow, flow.handle("p", definition)


async def result_of(awaitable: Awaitable[Any]) -> Any:
    with anyio.fail_after(20):
        try:
            return await awaitable
        except Exception as error:
            return error


async def kinds_of(flow: Flowlet, id: str = "p") -> list[str]:
    return [r.kind async for r in flow.handle(id).history()]


async def interrupt(
    flow: Flowlet, world: World, build: Callable[[Flowlet], Any], until: Until, place: str, after: str = ""
) -> None:
    """End a process in the middle of a step: leave its Flowlet without giving the step time to end."""
    world.hang.add(place)
    flow._grace = 0.0
    async with flow:
        await flow.start(build(flow), id="p")
        await until(lambda: place in world.seen and (not after or after in world.log))
    world.hang.discard(place)


# ---------------------------------------------------------------- the usual way
async def test_the_intent_is_durable_before_the_effect(new_store: NewStore, world: World, until: Until) -> None:
    world.hang.add("charge")
    async with Flowlet(new_store()) as flow:
        handle = await flow.start(pay(flow, world), id="p")
        await until(lambda: "charge" in world.seen)
        stored = await new_store().load("p")
        assert stored is not None
        assert (await kinds_of(flow))[-1] == "attempt_began"
        world.hang.clear()
        assert await result_of(handle.result()) == "ship charge"
        assert (await kinds_of(flow))[2:] == ["attempt_began", "step_completed", "step_completed", "completed"]
        report = await handle.report()
    assert world.log == ["reserve", "charge", "ship charge"]
    assert (report.steps["charge"].attempts, report.steps["charge"].value) == (1, "charge")


async def test_one_that_fails_has_failed(flow: Flowlet, world: World) -> None:
    world.fail.add("charge")
    async with flow:
        handle = await flow.start(pay(flow, world), id="p")
        assert isinstance(await result_of(handle.result()), Broken)
        assert await handle.status() == "compensated"
    assert world.log == ["reserve", "charge", "release"]


# ---------------------------------------------------------------- cut off
async def test_cut_off_by_the_end_of_its_process_it_is_asked_about(
    new_store: NewStore, world: World, until: Until
) -> None:
    await interrupt(Flowlet(new_store()), world, lambda f: pay(f, world), until, "charge")
    async with entered(new_store(), lambda f: pay(f, world)) as (flow, handle):
        error = await result_of(handle.result())
        assert isinstance(error, RunParked)
        for words in ("'charge'", "at most once", "skip()", "resume()", "compensate()"):
            assert words in error.reason
        assert await handle.status() == "parked"
        assert (await kinds_of(flow))[-1] == "parked"
    async with Flowlet(new_store()) as flow:  # it stays so, without a word more
        handle = flow.handle("p", pay(flow, world))
        before = await kinds_of(flow)
        await anyio.sleep(0.05)
        assert isinstance(await result_of(handle.result()), RunParked)
        assert await kinds_of(flow) == before
    assert world.log == ["reserve"]


@pytest.mark.parametrize("answer", ["resume", "skip", "compensate", "cancel"])
@pytest.mark.parametrize("unknown", [False, True])
async def test_the_operator_answers(
    new_store: NewStore, world: World, until: Until, answer: str, unknown: bool
) -> None:
    await interrupt(Flowlet(new_store()), world, lambda f: pay(f, world, unknown=unknown), until, "charge")
    async with entered(new_store(), lambda f: pay(f, world, unknown=unknown)) as (_, handle):
        await result_of(handle.result())
    async with entered(new_store(), lambda f: pay(f, world, unknown=unknown)) as (_flow, handle):
        if answer == "skip":
            with pytest.raises(DecodeError, match="charge"):
                await handle.skip("charge", 7)
            with pytest.raises(RunError, match="not held up by step 'reserve'"):
                await handle.skip("reserve", "x")
            await handle.skip("charge", "by phone")
        else:
            await getattr(handle, answer)()
        outcome = await result_of(handle.result())
        status = await handle.status()
    undone = ["reserve", *(["refund None"] if unknown else []), "release"]
    if answer == "resume":
        assert (outcome, status, world.log) == ("ship charge", "completed", ["reserve", "charge/2", "ship charge"])
    elif answer == "skip":
        assert (outcome, status, world.log) == ("ship by phone", "completed", ["reserve", "ship by phone"])
    elif answer == "compensate":
        assert isinstance(outcome, RunError)
        assert (status, world.log) == ("compensated", undone)
    else:
        assert isinstance(outcome, RunCancelled)
        assert (status, world.log) == ("cancelled", undone)


async def test_what_was_skipped_with_a_result_was_done_and_is_undone(
    new_store: NewStore, world: World, until: Until
) -> None:
    await interrupt(Flowlet(new_store()), world, lambda f: pay(f, world), until, "charge")
    world.fail.add("ship by phone")
    async with entered(new_store(), lambda f: pay(f, world)) as (_flow, handle):
        await result_of(handle.result())
        await handle.skip("charge", "by phone")
        assert isinstance(await result_of(handle.result()), Broken)
    assert world.log == ["reserve", "ship by phone", "refund by phone", "release"]


async def test_cut_off_again_and_again_it_is_asked_about_each_time(
    new_store: NewStore, world: World, until: Until
) -> None:
    await interrupt(Flowlet(new_store()), world, lambda f: pay(f, world), until, "charge")
    for n in range(3):
        world.seen.clear()
        async with entered(new_store(), lambda f: pay(f, world), grace=0) as (_flow, handle):
            assert isinstance(await result_of(handle.result()), RunParked)
            if n == 2:
                await handle.resume()
                assert await result_of(handle.result()) == "ship charge"
                break
            world.hang.add("charge")
            await handle.resume()
            await until(lambda: "charge" in world.seen)
        world.hang.clear()
    assert world.log == ["reserve", "charge/4", "ship charge"]


@pytest.mark.parametrize("answer", ["resume", "skip", "compensate"])
async def test_its_timeout_parks_as_well(flow: Flowlet, world: World, answer: str) -> None:
    world.hang.add("charge")
    async with flow:
        handle = await flow.start(pay(flow, world, timeout=0.05), id="p")
        error = await result_of(handle.result())
        assert isinstance(error, RunParked)
        assert "'charge'" in error.reason
        assert "step_failed" not in await kinds_of(flow)
        world.hang.clear()
        if answer == "skip":
            await handle.skip("charge", "x")
        else:
            await getattr(handle, answer)()
        outcome = await result_of(handle.result())
    if answer == "compensate":
        assert world.log == ["reserve", "release"]
    else:
        assert outcome == ("ship charge" if answer == "resume" else "ship x")
    assert world.cut == ["charge"]


# ---------------------------------------------------------------- not cut off
@pytest.mark.parametrize("how", ["scope", "native"])
async def test_a_cancelled_caller_does_not_cut_it(
    flow: Flowlet, world: World, until: Until, how: str, anyio_backend: str
) -> None:
    if how == "native" and anyio_backend == "trio":
        pytest.skip("trio has scopes only")
    world.hang.add("charge")
    saga = pay(flow, world)
    async with flow:

        async def call() -> None:
            await flow.execute(saga, id="p")

        if how == "native":
            task = asyncio.get_running_loop().create_task(call())
            await until(lambda: "charge" in world.seen)
            task.cancel()
            await asyncio.wait([task])
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(call)
                await until(lambda: "charge" in world.seen)
                group.cancel_scope.cancel()
        await anyio.sleep(0.02)
        world.hang.clear()
        assert await result_of(flow.handle("p", saga).result()) == "ship charge"
    assert (world.log, world.cut) == (["reserve", "charge", "ship charge"], [])


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("order", ["cancel", "deadline"])
async def test_orders_wait_for_it(flow: Flowlet, world: World, until: Until, order: str, fails: bool) -> None:
    world.hang.add("charge")
    if fails:
        world.fail.add("charge")
    async with flow:
        saga = pay(flow, world)
        handle = await flow.start(saga, id="p", deadline=0.1 if order == "deadline" else None)
        await until(lambda: "charge" in world.seen)
        if order == "cancel":
            await handle.cancel()
        await anyio.sleep(0.2)
        assert world.log == ["reserve"]
        world.hang.clear()
        assert isinstance(await result_of(handle.result()), RunCancelled if order == "cancel" else RunTimeout)
        assert (await handle.report()).steps["charge"].status == ("failed" if fails else "completed")
    undone = ["release"] if fails else ["refund charge", "release"]
    assert (world.log, world.cut) == (["reserve", "charge", *undone], [])


def beside(flow: Flowlet, world: World, *, unknown: bool = False) -> Any:
    """Two steps that run at most once, beside one that fails when it is let to."""

    @step(at_most_once=True, key=lambda name: name, compensate_unknown=unknown)
    async def once(name: str, run: Run = provided) -> str:
        return await world.act(name, run.attempt)

    @compensate(once)
    async def undo(name: str, once: str | None) -> None:
        await world.act(f"undo {name} {once}")

    @step
    async def other() -> str:
        return await world.act("other")

    @flow.saga(name="beside")
    async def body() -> list[str]:
        return list(await gather(once("a"), other(), once("b")))

    return body


async def test_a_failing_sibling_waits_for_it(flow: Flowlet, world: World, until: Until) -> None:
    world.hang.update(("a", "b"))
    world.fail.add("other")
    async with flow:
        handle = await flow.start(beside(flow, world), id="p")
        await until(lambda: "other" in world.log)
        await anyio.sleep(0.05)
        assert await handle.status() == "running"
        world.hang.clear()
        assert isinstance(await result_of(handle.result()), Broken)
    assert world.cut == []
    assert sorted(world.log) == ["a", "b", "other", "undo a a", "undo b b"]


async def test_two_in_one_gather_are_both_asked_about(new_store: NewStore, world: World, until: Until) -> None:
    world.hang.add("b")
    await interrupt(Flowlet(new_store()), world, lambda f: beside(f, world), until, "a", after="other")
    world.hang.clear()
    assert world.log == ["other"]
    async with entered(new_store(), lambda f: beside(f, world)) as (_, handle):
        error = await result_of(handle.result())
        assert isinstance(error, RunParked)
        assert "'once:a'" in error.reason
        with pytest.raises(RunError, match="not held up by step 'once:b'"):
            await handle.skip("once:b", "x")
        await handle.skip("once:a", "a by hand")
        error = await result_of(handle.result())
        assert isinstance(error, RunParked)
        assert "'once:b'" in error.reason
    async with entered(new_store(), lambda f: beside(f, world)) as (_flow, handle):
        await handle.resume()
        assert await result_of(handle.result()) == ["a by hand", "other", "b"]
    assert Counter(world.log) == {"other": 1, "b/2": 1}


async def test_one_of_two_is_known(new_store: NewStore, world: World, until: Until) -> None:
    """What has ended is on record, what was cut off is asked about; nothing is done twice."""
    await interrupt(Flowlet(new_store()), world, lambda f: beside(f, world), until, "b")
    async with entered(new_store(), lambda f: beside(f, world)) as (_flow, handle):
        error = await result_of(handle.result())
        assert isinstance(error, RunParked)
        assert "'once:b'" in error.reason
        await handle.resume()
        assert await result_of(handle.result()) == ["a", "other", "b"]
    assert Counter(world.log) == {"a": 1, "other": 1, "b/2": 1}


@pytest.mark.parametrize("answer", ["skip", "resume", "compensate"])
async def test_a_sibling_that_fails_later_does_not_make_it_known(
    new_store: NewStore, world: World, until: Until, answer: str
) -> None:
    """It is asked about also when the run is going to be undone: skipped, it was done, and is undone."""
    world.hang.update(("other", "b"))
    await interrupt(Flowlet(new_store()), world, lambda f: beside(f, world), until, "a")
    world.hang.clear()
    world.fail.add("other")
    async with entered(new_store(), lambda f: beside(f, world)) as (_flow, handle):
        for name in ("a", "b"):
            error = await result_of(handle.result())
            if not isinstance(error, RunParked):
                break
            if answer == "skip":
                await handle.skip(f"once:{name}", f"{name} was done")
            else:
                await getattr(handle, answer)()
        error = await result_of(handle.result())
        assert isinstance(error, RunError if answer == "compensate" else Broken)
        assert not isinstance(error, RunParked)
    undone = ["undo b b was done", "undo a a was done"] if answer == "skip" else []
    assert world.log[0] == "other"
    assert sorted(world.log[1:]) == sorted(undone)


async def test_leaving_ends_it_when_its_time_is_over(flow: Flowlet, world: World, until: Until) -> None:
    """Also when its caller has been cancelled meanwhile: nothing of the run outlives the Flowlet."""
    world.hang.add("charge")
    flow._grace = 0.2
    saga = pay(flow, world)
    async with flow, anyio.create_task_group() as group:

        async def call() -> None:
            await flow.execute(saga, id="p")

        group.start_soon(call)
        await until(lambda: "charge" in world.seen)

        async def leave() -> None:
            await flow.drain()

        group.start_soon(leave)
        await anyio.sleep(0.05)
        group.cancel_scope.cancel()
    assert world.cut == ["charge"]


# ---------------------------------------------------------------- elsewhere
async def test_in_pipelines_too(new_store: NewStore, world: World, until: Until) -> None:
    def build(flow: Flowlet) -> Any:
        @step(at_most_once=True)
        async def fetch(run: Run = provided) -> str:
            return await world.act("fetch", run.attempt)

        @step(at_most_once=True)
        async def read(run: Run = provided) -> str:
            return await world.act("read", run.attempt)

        @step
        async def join(fetch: str, read: str) -> str:
            return f"{fetch} {read}"

        return flow.pipeline("both", fetch, read, join)

    world.hang.add("read")
    await interrupt(Flowlet(new_store()), world, build, until, "fetch")
    world.hang.clear()
    async with entered(new_store(), build) as (_flow, handle):
        assert "'fetch'" in (await result_of(handle.result())).reason
        await handle.skip("fetch", "fetched")
        assert "'read'" in (await result_of(handle.result())).reason
        await handle.resume()
        assert await result_of(handle.result()) == "fetched read"
    assert world.log == ["read/2"]


async def test_a_plain_def_and_a_method(new_store: NewStore, world: World) -> None:
    threads: list[bool] = []

    @step(at_most_once=True)
    def charge() -> str:
        threads.append(threading.current_thread() is threading.main_thread())
        return "charged"

    class Pay:
        @step(at_most_once=True)
        async def charge(self) -> str:
            return await world.act("charge")

        async def __call__(self) -> str:
            return await self.charge()

    async with Flowlet(new_store()) as flow:
        assert await flow.execute(flow.saga("plain", charge)) == "charged"
        assert await flow.execute(flow.saga(Pay)) == "charge"
    assert threads == [False]


def test_what_it_excludes() -> None:
    with pytest.raises(DefinitionError, match="excludes retry="):
        step(at_most_once=True, retry=Retry(attempts=2))(World.act)
    with pytest.raises(DefinitionError, match="excludes retry="):
        step(at_most_once=True, retry=1)(World.act)
    with pytest.raises(DefinitionError, match="exactly once already"):
        step(at_most_once=True, transactional=True)(World.act)


async def test_a_cancelled_run_that_asks_is_undone_through_a_crash(
    new_store: NewStore, world: World, until: Until
) -> None:
    """The cancellation stands in the journal where an answer would."""
    await interrupt(Flowlet(new_store()), world, lambda f: pay(f, world), until, "charge")
    async with Flowlet(new_store()) as flow:
        await result_of(flow.handle("p", pay(flow, world)).result())
    world.seen.clear()
    world.hang.add("release")
    async with Flowlet(new_store(), grace=0) as flow:
        await flow.handle("p", pay(flow, world)).cancel()
        await until(lambda: "release" in world.seen)
    world.hang.clear()
    async with entered(new_store(), lambda f: pay(f, world)) as (flow, handle):
        assert isinstance(await result_of(handle.result()), RunCancelled)
        assert await handle.status() == "cancelled"
        assert (await kinds_of(flow)).count("interrupted") == 1
    assert world.log == ["reserve", "release"]
