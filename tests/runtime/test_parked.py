"""Runs that are set aside for an operator: why, and the ways out."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, compensate, provided, step
from flowlet.errors import RunCancelled, RunError, RunParked
from flowlet.runtime import runs
from flowlet.store import Signal, Store, Write
from flowlet.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

NewStore = Callable[[], Store]


class Broken(Exception):
    pass


class Service: ...


class World:
    """The steps, what they did, and where they stop a process."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.hang: set[str] = set()
        self.fail: set[str] = set()
        self.reached = anyio.Event()

    async def act(self, name: str) -> str:
        if name in self.hang:
            self.reached.set()
            await anyio.sleep_forever()
        self.log.append(name)
        if name in self.fail:
            raise Broken(name)
        return name

    def build(self, flow: Flowlet, *names: str, pivot: str = "", known: str = "abcdxyz") -> Any:
        """A saga of these steps, all of which it knows and can undo."""
        steps = {name: self._step(name, name == pivot) for name in known}
        first, rest = steps[names[0]], names[1:]

        # The body names them all, so that assembly sees every one of them.
        namespace: dict[str, Any] = {f"step_{name}": each for name, each in steps.items()}
        calls = "\n    ".join(f"last = await step_{name}()" for name in (names[0], *rest))
        unused = ", ".join(f"step_{name}" for name in known)
        source = f"async def line() -> str:\n    all = ({unused},)\n    {calls}\n    return last\n"
        exec(source, namespace)
        assert first is steps[names[0]]
        return flow.saga(name="line")(namespace["line"])

    def _step(self, name: str, pivot: bool) -> Any:
        async def do() -> str:
            return await self.act(name)

        do.__name__ = do.__qualname__ = name
        marked = step(pivot=pivot)(do)

        async def undo() -> None:
            await self.act(f"undo {name}")

        undo.__name__ = undo.__qualname__ = f"undo_{name}"
        compensate(marked)(undo)
        return marked


@pytest.fixture
def world() -> World:
    return World()


@asynccontextmanager
async def entered(store: Store, build: Callable[[Flowlet], Any], **options: Any) -> AsyncIterator[tuple[Flowlet, Any]]:
    """Be a process that has this code, and enters a Flowlet with it."""
    flow = Flowlet(store, **options)
    definition = build(flow)
    async with flow:
        yield flow, flow.handle("r", definition)


async def result_of(awaitable: Any) -> Any:
    with anyio.fail_after(20):
        try:
            return await awaitable
        except Exception as error:
            return error


async def kinds_of(flow: Flowlet, id: str = "r") -> list[str]:
    return [r.kind async for r in flow.handle(id).history()]


async def run_to(store: Store, world: World, place: str, *names: str, **options: Any) -> None:
    """Execute in a process that ends when a step is reached."""
    world.hang, world.reached = {place}, anyio.Event()
    async with Flowlet(store, grace=0) as flow:
        await flow.start(world.build(flow, *names, **options), id="r")
        with anyio.fail_after(20):
            await world.reached.wait()
    world.hang = set()


# ---------------------------------------------------------------- mismatches
@pytest.mark.parametrize(
    ("now", "found", "expected"),
    [("axc", "'x'", "'b'"), ("ab", "the end of the run", "'c'"), ("xbc", "'x'", "'a'"), ("acb", "'c'", "'b'")],
)
async def test_a_mismatch_names_step_expected_and_found(
    new_store: NewStore, world: World, now: str, found: str, expected: str
) -> None:
    await run_to(new_store(), world, "d", *"abcd")
    async with entered(new_store(), lambda f: world.build(f, *now)) as (flow, handle):
        error = await result_of(handle.result())
        assert isinstance(error, RunParked)
        asks, _, has = error.reason.partition(", but the history has ")
        assert found in asks
        assert expected in has
        assert "start " in asks
        assert await handle.status() == "parked"
        before = await kinds_of(flow)
        assert before[-1] == "parked"
        await anyio.sleep(0.1)
        assert await kinds_of(flow) == before  # it is not tried again and again
    async with entered(new_store(), lambda f: world.build(f, *"abcd")) as (flow, handle):
        assert isinstance(await result_of(handle.result()), RunParked)  # nor by a restart
        await handle.resume()
        assert await result_of(handle.result()) == "d"
    assert world.log == ["a", "b", "c", "d"]


@pytest.mark.parametrize("now", ["axc", "xbc", "ab", "abx", "d"])
async def test_compensate_undoes_what_the_records_say(new_store: NewStore, world: World, now: str) -> None:
    """Also in code that leads elsewhere, at once or after a part of the way."""
    await run_to(new_store(), world, "d", *"abcd")
    async with entered(new_store(), lambda f: world.build(f, *now)) as (_flow, handle):
        assert isinstance(await result_of(handle.result()), RunParked)
        with pytest.raises(RunError, match="held up by none"):
            await handle.skip("b", "x")
        await handle.compensate()
        assert isinstance(await result_of(handle.result()), RunCancelled)
        assert await handle.status() == "cancelled"
    assert world.log == ["a", "b", "c", "undo c", "undo b", "undo a"]


@pytest.mark.parametrize("crash", ["undo c", "undo b", "undo a"])
async def test_compensating_a_mismatch_goes_on_after_a_crash(new_store: NewStore, world: World, crash: str) -> None:
    await run_to(new_store(), world, "d", *"abcd")
    world.hang, world.reached = {crash}, anyio.Event()
    async with entered(new_store(), lambda f: world.build(f, *"axc"), grace=0) as (flow, handle):
        await result_of(handle.result())
        await handle.compensate()
        with anyio.fail_after(20):
            await world.reached.wait()
    world.hang = set()
    async with Flowlet(new_store()) as flow:
        handle = flow.handle("r", world.build(flow, *"xa"))  # code that leads elsewhere again
        assert isinstance(await result_of(handle.result()), RunCancelled)
        kinds = await kinds_of(flow)
    assert world.log == ["a", "b", "c", "undo c", "undo b", "undo a"]
    assert (kinds.count("interrupted"), kinds.count("compensating")) == (1, 2)  # the order, and the decision


async def test_what_this_code_cannot_undo_parks_again(new_store: NewStore, world: World) -> None:
    await run_to(new_store(), world, "d", *"abcd")
    async with entered(new_store(), lambda f: world.build(f, *"axc", known="axc")) as (flow, handle):
        await result_of(handle.result())
        await handle.compensate()
        error = await result_of(handle.result())
        assert isinstance(error, RunParked)
        assert "does not know its compensation" in error.reason
        before = await kinds_of(flow)
        await anyio.sleep(0.1)
        assert await kinds_of(flow) == before
        assert world.log == ["a", "b", "c"]
    async with entered(new_store(), lambda f: world.build(f, *"axc")) as (flow, handle):
        await handle.resume()  # what was said before still stands
        assert isinstance(await result_of(handle.result()), RunCancelled)
    assert world.log == ["a", "b", "c", "undo c", "undo b", "undo a"]


async def test_cancelling_a_mismatch_undoes_it(new_store: NewStore, world: World) -> None:
    await run_to(new_store(), world, "d", *"abcd")
    async with entered(new_store(), lambda f: world.build(f, *"axc")) as (_flow, handle):
        await result_of(handle.result())
        await handle.cancel()
        assert isinstance(await result_of(handle.result()), RunCancelled)
    assert world.log == ["a", "b", "c", "undo c", "undo b", "undo a"]


@pytest.mark.parametrize("now", ["axc", "abx"])
async def test_cancelling_a_mismatch_behind_its_pivot_does_nothing(new_store: NewStore, world: World, now: str) -> None:
    """The pivot is on record, whether or not the code leads there."""
    await run_to(new_store(), world, "d", *"abcd", pivot="b")
    async with entered(new_store(), lambda f: world.build(f, *now, pivot="b")) as (flow, handle):
        assert isinstance(await result_of(handle.result()), RunParked)
        await handle.cancel()
        assert isinstance(await result_of(handle.result()), RunParked)
        assert await handle.status() == "parked"
        before = await kinds_of(flow)
        await anyio.sleep(0.1)
        assert await kinds_of(flow) == before
    assert world.log == ["a", "b", "c"]
    async with entered(new_store(), lambda f: world.build(f, *"abcd", pivot="b")) as (flow, handle):
        await handle.resume()
        assert await result_of(handle.result()) == "d"


async def test_compensating_a_mismatch_behind_its_pivot_undoes_it_all(new_store: NewStore, world: World) -> None:
    await run_to(new_store(), world, "d", *"abcd", pivot="b")
    async with entered(new_store(), lambda f: world.build(f, *"axc", pivot="b")) as (_flow, handle):
        await result_of(handle.result())
        await handle.compensate()
        assert isinstance(await result_of(handle.result()), RunCancelled)
    assert world.log == ["a", "b", "c", "undo c", "undo b", "undo a"]


@pytest.mark.parametrize("early", [0, 1])
@pytest.mark.parametrize("crash", ["undo b", "undo a"])
async def test_a_body_that_raises_where_it_was_interrupted(
    new_store: NewStore, world: World, crash: str, early: int
) -> None:
    """What it waited for, when it was told to unwind, is gone by the time of the replay; or even more is."""
    gone = [False]

    def build(flow: Flowlet) -> Any:
        a, b = world._step("a", False), world._step("b", False)

        @flow.saga(name="line")
        async def body() -> None:
            await a()
            if gone[0] and early:
                raise ConnectionError("gone")
            await b()
            if gone[0]:
                raise ConnectionError("gone")
            world.reached.set()
            await anyio.sleep_forever()

        return body

    async with Flowlet(new_store(), grace=0) as flow:
        handle = await flow.start(build(flow), id="r")
        with anyio.fail_after(20):
            await world.reached.wait()
        world.hang, world.reached = {crash}, anyio.Event()
        await handle.cancel()
        with anyio.fail_after(20):
            await world.reached.wait()
    world.hang, gone[0] = set(), True
    async with entered(new_store(), build) as (flow, handle):
        assert isinstance(await result_of(handle.result()), RunCancelled)
        assert await handle.status() == "cancelled"
    assert world.log == ["a", "b", "undo b", "undo a"]


# ---------------------------------------------------------------- claimed again and again
async def claim(store: Store, times: int) -> None:
    """Be processes that take the run and die."""
    for n in range(times):
        await store.heartbeat(f"w{n}", 30.0)
        claims = await store.claim(f"w{n}", ids=["r"])
        assert [h.id for h in claims.heads] == ["r"], n
        await store.release(f"w{n}")


async def test_a_run_that_never_comes_further_is_parked(new_store: NewStore, world: World) -> None:
    await run_to(new_store(), world, "b", *"ab")
    await claim(store := new_store(), runs._MOST_CLAIMS - 1)
    async with entered(new_store(), lambda f: world.build(f, *"ab")) as (flow, handle):
        error = await result_of(handle.result())
        assert isinstance(error, RunParked)
        assert "20 times" in error.reason
        assert world.log == ["a"]
    async with Flowlet(new_store(), grace=0) as flow:
        world.hang, world.reached = {"b"}, anyio.Event()
        handle = flow.handle("r", world.build(flow, *"ab"))
        await handle.resume()
        with anyio.fail_after(20):
            await world.reached.wait()
    world.hang = set()
    await claim(store, 17)  # it has twenty more
    async with entered(new_store(), lambda f: world.build(f, *"ab")) as (flow, handle):
        assert await result_of(handle.result()) == "b"
    assert world.log == ["a", "b"]
    await store.close()


async def test_progress_begins_the_count_anew(new_store: NewStore, world: World) -> None:
    await run_to(new_store(), world, "a", *"abc")
    await claim(store := new_store(), 18)
    world.hang, world.reached = {"b"}, anyio.Event()
    async with Flowlet(new_store(), grace=0) as flow:
        world.build(flow, *"abc")
        await flow._open_runs.take_up("r")
        with anyio.fail_after(20):
            await world.reached.wait()
            while len(await kinds_of(flow)) < 2:
                await anyio.sleep(0.001)
    world.hang = set()
    await claim(store, 18)
    async with Flowlet(new_store()) as flow:
        assert await result_of(flow.handle("r", world.build(flow, *"abc")).result()) == "c"
    await store.close()


# ---------------------------------------------------------------- woken up, but not answered
@pytest.mark.parametrize("status", ["parked", "needs_attention", "compensation_failed"])
async def test_what_wakes_it_up_is_no_answer(new_store: NewStore, world: World, status: str) -> None:
    """However often: it goes back as it was, and is neither changed nor parked for having been looked at."""
    if status == "parked":
        await run_to(new_store(), world, "c", *"abc")
    world.fail.update({"needs_attention": {"c"}, "compensation_failed": {"c", "undo a"}}.get(status, set()))
    names = "axc" if status == "parked" else "abc"
    pivot = "b" if status == "needs_attention" else ""
    async with Flowlet(new_store()) as flow:
        saga = world.build(flow, *names, pivot=pivot)
        handle = flow.handle("r", saga) if status == "parked" else await flow.start(saga, id="r")
        first = await result_of(handle.result())
        assert await handle.status() == status
        before = await kinds_of(flow)
        for n in range(23):
            await flow.store.append([Write(id="r", signals=[Signal("user", b"hello", f"m{n}")])])
            with anyio.fail_after(20):
                while (head := (await flow.store.scan(kind="run"))[0]).wake is not None or head.owner is not None:
                    await flow._open_runs.take_up("r")
                    await anyio.sleep(0.001)
        assert await handle.status() == status
        assert await kinds_of(flow) == before
        again = await result_of(handle.result())
        assert (type(again), str(again)) == (type(first), str(first))
        assert len((await flow.store.load("r")).signals) == 23  # type: ignore[union-attr]
        world.fail.clear()
        if status == "parked":
            await handle.compensate()
        else:
            await handle.resume()
        outcome = await result_of(handle.result())
        expected = {"parked": RunCancelled, "needs_attention": str, "compensation_failed": Broken}
        assert isinstance(outcome, expected[status])


# ---------------------------------------------------------------- unreadable
async def damage(store: Store, path: Path, number: int) -> None:
    if isinstance(store, MemoryStore):
        store._entities["r"].records[number - 1] = b"\xc1"
        return
    connection = sqlite3.connect(path)
    try:
        connection.execute("UPDATE records SET data = ? WHERE seq = ?", (b"\xc1", number))
        connection.commit()
    finally:
        connection.close()


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_an_unreadable_history_parks_without_a_record(
    new_store: NewStore, world: World, tmp_path: Path, number: int
) -> None:
    await run_to(new_store(), world, "c", *"abc")
    store = new_store()
    stored = await store.load("r")
    assert stored is not None
    good = stored.records[number - 1]
    await damage(store, tmp_path / "flow.db", number)
    async with entered(new_store(), lambda f: world.build(f, *"abc")) as (flow, handle):
        error = await result_of(handle.result())
        assert isinstance(error, RunParked)
        assert f"record {number} of run 'r'" in error.reason
        assert await handle.status() == "parked"
        head = (await flow.store.scan(kind="run"))[0]
        assert (head.version, head.owner, head.wake) == (3, None, None)
        with pytest.raises(RunError, match="cannot be read"):
            await handle.compensate()
        await handle.resume()  # in vain
        assert isinstance(await result_of(handle.result()), RunParked)
        assert (await flow.store.scan(kind="run"))[0].version == 3
    if isinstance(store, MemoryStore):
        store._entities["r"].records[number - 1] = good
    else:
        connection = sqlite3.connect(tmp_path / "flow.db")
        connection.execute("UPDATE records SET data = ? WHERE seq = ?", (good, number))
        connection.commit()
        connection.close()
    async with entered(new_store(), lambda f: world.build(f, *"abc")) as (flow, handle):
        await handle.resume()
        assert await result_of(handle.result()) == "c"
    assert world.log == ["a", "b", "c"]
    await store.close()


# ---------------------------------------------------------------- it cannot begin here
async def test_one_that_cannot_begin_and_was_cancelled_does_not_loop(new_store: NewStore, world: World) -> None:
    def build(flow: Flowlet) -> Any:
        a, b = world._step("a", False), world._step("b", False)

        class Line:
            def __init__(self, service: Service = provided) -> None: ...

            async def __call__(self) -> str:
                await a()
                return await b()  # type: ignore[no-any-return]

        return flow.saga(name="line")(Line)

    world.hang, world.reached = {"b"}, anyio.Event()
    async with Flowlet(new_store(), grace=0) as flow:
        flow.provide(Service, Service())
        await flow.start(build(flow), id="r")
        with anyio.fail_after(20):
            await world.reached.wait()
    world.hang = set()
    async with Flowlet(new_store(), grace=0) as flow:
        handle = flow.handle("r", build(flow))
        assert "Service" in (await result_of(handle.result())).reason
        await handle.cancel()
        await anyio.sleep(0.5)
        assert (await kinds_of(flow)).count("parked") <= 2
        assert await handle.status() == "parked"
    async with Flowlet(new_store()) as flow:
        flow.provide(Service, Service())
        handle = flow.handle("r", build(flow))
        await handle.resume()
        assert isinstance(await result_of(handle.result()), RunCancelled)
    assert world.log == ["a", "undo a"]
