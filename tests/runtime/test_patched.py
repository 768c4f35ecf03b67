"""`run.patched`: code that changes under runs that have not ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, Retry, Run, compensate, current_run, gather, provided, step
from flowlet.errors import RunError, RunParked
from flowlet.store import Store

pytestmark = pytest.mark.anyio

NewStore = Callable[[], Store]
Body = Callable[..., Any]


class Broken(Exception):
    pass


class World:
    """The steps, one definition of each, and where they stop a process."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.answers: list[Any] = []
        self.hang: set[str] = set()
        self.fail: set[str] = set()
        self.reached = anyio.Event()

        @step(key=lambda name: name)
        async def act(name: str) -> str:
            if name in self.hang:
                self.reached.set()
                await anyio.sleep_forever()
            self.log.append(name)
            if name in self.fail:
                raise Broken(name)
            return name

        @compensate(act)
        async def undo(name: str) -> None:
            if f"undo {name}" in self.hang:
                self.reached.set()
                await anyio.sleep_forever()
            self.log.append(f"undo {name}")

        self.act = act

    def ask(self, run: Run, name: str = "p") -> bool:
        answer = run.patched(name)
        self.answers.append(answer)
        return answer


@pytest.fixture
def world() -> World:
    return World()


async def result_of(awaitable: Any) -> Any:
    with anyio.fail_after(20):
        try:
            return await awaitable
        except Exception as error:
            return error


async def begin(store: Store, world: World, body: Body, place: str) -> None:
    """Execute in a process that ends when a step is reached."""
    world.hang, world.reached = {place}, anyio.Event()
    async with Flowlet(store, grace=0) as flow:
        await flow.start(flow.saga(name="s")(body), id="r")
        with anyio.fail_after(20):
            await world.reached.wait()
    world.hang = set()


async def go_on(store: Store, world: World, body: Body, until: str = "") -> Any:
    """Execute in another process, to its end or until a step is reached."""
    world.hang, world.reached = {until}, anyio.Event()
    world.answers.clear()
    flow = Flowlet(store, grace=0)
    saga = flow.saga(name="s")(body)
    async with flow:
        if not until:
            return await result_of(flow.handle("r", saga).result())
        with anyio.fail_after(20):
            await world.reached.wait()
    world.hang = set()
    return None


async def notes(store: Store) -> list[str]:
    async with Flowlet(store) as flow:
        return [r.kind async for r in flow.handle("r").history() if r.kind.startswith("patched/")]


def versions(world: World) -> tuple[Body, Body, Body]:
    """The code before, while and after both paths are kept."""
    act = world.act

    async def old() -> str:
        await act("a")
        await act("b")
        return await act("c")

    async def both(run: Run = provided) -> str:
        await act("a")
        if world.ask(run):
            await act("new")
        else:
            await act("b")
        return await act("c")

    async def new() -> str:
        await act("a")
        await act("new")
        return await act("c")

    return old, both, new


# ---------------------------------------------------------------- new runs and old ones
async def test_a_new_run_takes_the_new_path_and_says_so(new_store: NewStore, world: World) -> None:
    _, both, _ = versions(world)
    async with Flowlet(new_store()) as flow:
        handle = await flow.start(flow.saga(name="s")(both), id="r")
        assert await result_of(handle.result()) == "c"
        kinds = [r.kind async for r in handle.history()]
    assert kinds == ["started", "step_completed", "patched/p", "step_completed", "step_completed", "completed"]
    assert world.log == ["a", "new", "c"]


@pytest.mark.parametrize("place", ["new", "c"])
async def test_the_answer_stays(new_store: NewStore, world: World, place: str) -> None:
    _, both, _ = versions(world)
    await begin(new_store(), world, both, place)
    await go_on(new_store(), world, both, "c")
    assert world.answers == [True]
    assert await go_on(new_store(), world, both) == "c"
    assert world.answers == [True]
    assert sorted(world.log) == ["a", "c", "new"]
    assert await notes(new_store()) == ["patched/p"]


async def test_a_run_that_is_past_the_place_stays_on_the_old_path(new_store: NewStore, world: World) -> None:
    old, both, _ = versions(world)
    await begin(new_store(), world, old, "c")
    await go_on(new_store(), world, both, "c")
    assert world.answers == [False]
    assert await go_on(new_store(), world, both) == "c"
    assert world.answers == [False]
    assert world.log == ["a", "b", "c"]
    assert await notes(new_store()) == []


async def test_a_run_that_is_not_there_yet_takes_the_new_path(new_store: NewStore, world: World) -> None:
    old, both, _ = versions(world)
    await begin(new_store(), world, old, "a")
    assert await go_on(new_store(), world, both) == "c"
    assert world.log == ["a", "new", "c"]


async def test_the_old_path_removed_and_the_question_with_it(new_store: NewStore, world: World) -> None:
    """Runs that took the new path go on without being asked; it makes no difference how often they are repeated."""
    _, both, new = versions(world)
    await begin(new_store(), world, both, "new")
    await go_on(new_store(), world, new, "c")
    await go_on(new_store(), world, new, "c")
    assert await go_on(new_store(), world, new) == "c"
    assert world.log == ["a", "new", "c"]


async def test_the_old_path_removed_too_early_parks(new_store: NewStore, world: World) -> None:
    old, both, new = versions(world)
    await begin(new_store(), world, old, "c")
    error = await go_on(new_store(), world, new)
    assert isinstance(error, RunParked)
    assert "act:new" in error.reason
    async with Flowlet(new_store()) as flow:
        handle = flow.handle("r", flow.saga(name="s")(both))
        await handle.resume()
        assert await result_of(handle.result()) == "c"
    assert world.log == ["a", "b", "c"]


@pytest.mark.parametrize("end", ["returns", "fails"])
async def test_removed_where_the_note_is_the_last_record(new_store: NewStore, world: World, end: str) -> None:
    act = world.act

    async def both(run: Run = provided) -> str:
        await act("a")
        if world.ask(run):
            await act("b")
        return "done"

    async def new() -> str:
        await act("a")
        if end == "fails":
            raise Broken
        return "done"

    await begin(new_store(), world, both, "b")
    assert await notes(new_store()) == ["patched/p"]
    outcome = await go_on(new_store(), world, new)
    assert outcome == "done" if end == "returns" else isinstance(outcome, Broken)
    assert world.log == (["a"] if end == "returns" else ["a", "undo a"])


# ---------------------------------------------------------------- where and how often it is asked
async def test_before_the_first_step(new_store: NewStore, world: World) -> None:
    act = world.act

    async def old() -> str:
        return await act("a")

    async def both(run: Run = provided) -> str:
        if world.ask(run):
            await act("first")
        return await act("a")

    await begin(new_store(), world, old, "a")  # nothing is on record yet: it may still take the new path
    assert await go_on(new_store(), world, both) == "a"
    assert world.log == ["first", "a"]
    assert await notes(new_store()) == ["patched/p"]


async def test_before_the_first_step_of_a_run_that_has_one(new_store: NewStore, world: World) -> None:
    act = world.act

    async def old() -> str:
        await act("a")
        return await act("b")

    async def both(run: Run = provided) -> str:
        if world.ask(run):
            await act("first")
        await act("a")
        return await act("b")

    await begin(new_store(), world, old, "b")
    assert await go_on(new_store(), world, both) == "b"
    assert world.log == ["a", "b"]


async def test_one_name_has_one_answer_in_a_loop(new_store: NewStore, world: World) -> None:
    act = world.act

    async def old() -> str:
        for n in range(4):
            await act(f"a{n}")
        return await act("end")

    async def both() -> str:
        for n in range(4):
            await act(f"{'new' if world.ask(current_run()) else 'a'}{n}")
        return await act("end")

    await begin(new_store(), world, old, "a2")
    await go_on(new_store(), world, both, "a3")
    assert await go_on(new_store(), world, both) == "end"
    assert world.answers == [False] * 4
    assert world.log == ["a0", "a1", "a2", "a3", "end"]
    assert await notes(new_store()) == []


async def test_a_new_run_in_a_loop_records_it_once(new_store: NewStore, world: World) -> None:
    act = world.act

    async def both(run: Run = provided) -> str:
        for n in range(4):
            await act(f"{'new' if world.ask(run) else 'a'}{n}")
        return "end"

    await begin(new_store(), world, both, "new2")
    assert await go_on(new_store(), world, both) == "end"
    assert world.answers == [True] * 4
    assert await notes(new_store()) == ["patched/p"]


async def test_several_names(new_store: NewStore, world: World) -> None:
    """Each was added to what was there: a run keeps what it had passed and takes what it had not."""
    act = world.act

    async def zero() -> str:
        for name in "abc":
            await act(name)
        return await act("d")

    async def one(run: Run = provided) -> str:
        await act("a")
        await act("b")
        if world.ask(run, "after b"):
            await act("one")
        await act("c")
        return await act("d")

    async def two(run: Run = provided) -> str:
        await act("a")
        if world.ask(run, "after a"):
            await act("two")
        await act("b")
        if world.ask(run, "after b"):
            await act("one")
        if world.ask(run, "after b too"):
            await act("three")
        await act("c")
        return await act("d")

    async def two_without_the_first(run: Run = provided) -> str:
        await act("a")
        await act("b")
        await act("one")
        if world.ask(run, "after b too"):
            await act("three")
        await act("c")
        return await act("d")

    await begin(new_store(), world, zero, "b")
    await go_on(new_store(), world, one, "c")
    await go_on(new_store(), world, two, "c")
    assert world.answers == [False, True, True]  # `three` is asked where the records end
    await go_on(new_store(), world, two, "d")
    assert world.answers == [False, True, True]
    await go_on(new_store(), world, two_without_the_first, "d")
    assert world.answers == [True]
    assert await go_on(new_store(), world, two) == "d"
    assert world.answers == [False, True, True]
    assert world.log == ["a", "b", "one", "three", "c", "d"]


async def test_two_that_were_asked_one_behind_the_other_and_one_is_removed(new_store: NewStore, world: World) -> None:
    act = world.act

    async def both(run: Run = provided) -> str:
        await act("a")
        x, y = world.ask(run, "x"), world.ask(run, "y")
        await act(f"{x} {y}")
        return await act("end")

    async def later(run: Run = provided) -> str:
        await act("a")
        z, y = world.ask(run, "z"), world.ask(run, "y")
        await act(f"True {y}")
        return await act(f"end {z}" if z else "end")

    await begin(new_store(), world, both, "end")
    assert await go_on(new_store(), world, later) == "end"
    assert world.answers == [False, True]
    assert world.log == ["a", "True True", "end"]


async def test_it_is_past_the_place_if_a_step_behind_it_has_been_tried(new_store: NewStore, world: World) -> None:
    """What was under way in parallel behind the place, and has failed once, was begun on the old path."""
    tries: list[str] = []
    wait = [30.0]

    @step
    async def slow() -> str:
        tries.append("slow")
        if len(tries) < 3:
            await anyio.sleep_forever()
        return "slow"

    def policy(state: Any) -> float:
        world.reached.set()
        return wait[0]

    @step(retry=Retry(attempts=3, wait=policy))
    async def flaky(run: Run = provided) -> str:
        tries.append("flaky")
        if run.attempt == 1:
            raise Broken
        return "flaky"

    async def old() -> str:
        await world.act("a")
        return " ".join(await gather(slow(), flaky()))

    async def both(run: Run = provided) -> str:
        await world.act("a")
        if world.ask(run):
            return await world.act("new")
        return " ".join(await gather(slow(), flaky()))

    wait[0] = 0.01
    await begin_and_wait_for_attempt(new_store(), world, old)
    assert await go_on(new_store(), world, both) == "slow flaky"
    assert world.answers == [False]


async def begin_and_wait_for_attempt(store: Store, world: World, body: Body) -> None:
    world.reached = anyio.Event()
    async with Flowlet(store, grace=0) as flow:
        handle = await flow.start(flow.saga(name="s")(body), id="r")
        with anyio.fail_after(20):
            await world.reached.wait()
            while "attempt_failed" not in [r.kind async for r in handle.history()]:
                await anyio.sleep(0.001)
        await flow.drain()


# ---------------------------------------------------------------- on the way back
@pytest.mark.parametrize("place", ["undo b", "undo a"])
async def test_a_run_that_is_being_undone(new_store: NewStore, world: World, place: str) -> None:
    act = world.act

    async def old() -> str:
        await act("a")
        await act("b")
        return await act("c")

    async def both(run: Run = provided) -> str:
        await act("a")
        if world.ask(run):
            await act("new")
        await act("b")
        return await act("c")

    world.fail.add("c")
    await begin(new_store(), world, old, place)
    outcome = await go_on(new_store(), world, both)
    assert isinstance(outcome, Broken)
    assert world.answers == [False]
    assert world.log == ["a", "b", "c", "undo b", "undo a"]


# ---------------------------------------------------------------- what is refused
async def test_in_a_step_it_is_an_error(flow: Flowlet) -> None:
    @step
    async def ask(run: Run = provided) -> bool:
        return run.patched("p")

    @step
    async def ask_too() -> bool:
        return current_run().patched("p")

    @flow.saga
    async def first() -> bool:
        return await ask()

    @flow.saga
    async def second() -> bool:
        return await ask_too()

    async with flow:
        for saga in (first, second):
            with pytest.raises(RunError, match="in the body of a run"):
                await saga()


@pytest.mark.parametrize("name", ["", None, 5])
async def test_a_name_is_a_text(flow: Flowlet, name: Any) -> None:
    @flow.saga
    async def body(run: Run = provided) -> bool:
        return run.patched(name)

    async with flow:
        with pytest.raises(RunError, match="name of a change"):
            await body()
