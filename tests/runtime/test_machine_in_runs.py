"""Machines inside of runs: what their callbacks call is theirs, and what is made is the same on every replay."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, can, current_run, guard, in_state, state, step, transition
from flowlet.core.current import run_context
from flowlet.store import Store

pytestmark = pytest.mark.anyio


calls: list[str] = []


@step
async def note(what: str) -> str:
    run = current_run()
    calls.append(f"{what} {run.idempotency_key.partition('/')[2]}")
    return what


@pytest.fixture
def flow(new_store: Callable[[], Store]) -> Flowlet:
    calls.clear()
    return Flowlet(new_store())


def assemble(flow: Flowlet) -> tuple[Any, Any]:
    class Door:
        opened: int = 0

        @state(initial=True)
        class Shut: ...

        @state
        class Open: ...

        @guard
        async def can_open(self) -> bool:
            return await note("guard") == "guard"

        @transition(Shut, Open)
        async def open(self) -> str:
            self.opened += 1
            return await note("action")

        async def on_enter_open(self) -> None:
            await note("enter")

        @transition(Open, Shut)
        async def shut(self) -> None: ...

    door_class: Any = flow.machine(Door)

    @flow.saga(name="pass")
    async def walk(wait: bool) -> str:
        made = await flow.create(door_class())
        assert run_context.get().inside is None  # type: ignore[union-attr]
        if not in_state(made, "Open"):
            assert await can(made.open)
        said = await made.open()
        assert run_context.get().inside is None  # type: ignore[union-attr]
        return said + " " + await note("body")

    return door_class, walk


async def test_what_callbacks_call_is_not_journaled_beside_the_event(flow: Flowlet) -> None:
    door_class, walk = assemble(flow)
    async with flow:
        assert await flow.execute(walk, True, id="r") == "action body"
        assert [c.split()[0] for c in calls] == ["guard", "guard", "action", "enter", "body"]
        assert calls[2] == "action open"
        (id,) = [id async for id in flow.machines(door_class)]
        assert id == "r/Door()"
        stored = await flow.store.load("r")
        assert stored is not None
        steps = [r for r in stored.records if b"note" in r]
        assert all(b"note#" not in r for r in steps)
        assert steps


async def test_a_replay_finds_what_it_left(new_store: Callable[[], Store]) -> None:
    """The body dies before its own step; the next process answers the event from its key, and goes on."""
    store = new_store()
    calls.clear()
    dying = [True]
    flow = Flowlet(store, grace=0.0)
    door_class, _ = assemble(flow)

    @step
    async def wait() -> None:
        if dying:
            await anyio.sleep(60)

    @flow.saga(name="night")
    async def night() -> int:
        door = await flow.create(door_class())
        await door.open()
        await wait()
        return int(door.opened)

    async with flow:
        await flow.start(night, id="n")
        with anyio.fail_after(10):
            while len(calls) < 3:
                await anyio.sleep(0.002)
            await anyio.sleep(0.02)
    dying.clear()
    async with flow:
        with anyio.fail_after(10):
            assert await flow.handle("n", night).result() == 1
        assert [id async for id in flow.machines(door_class)] == ["n/Door()"]
    assert [c.split()[0] for c in calls] == ["guard", "action", "enter"]


async def test_two_machines_made_in_one_run_have_two_ids(flow: Flowlet) -> None:
    door_class, _ = assemble(flow)

    @step
    async def inside() -> None:
        await flow.create(door_class())

    @flow.saga(name="two")
    async def two() -> None:
        await flow.create(door_class())
        await flow.create(door_class())
        await inside()

    async with flow:
        await flow.execute(two, id="r")
        ids = [id async for id in flow.machines(door_class)]
    assert ids == ["r/Door()", "r/Door()#2", "r/inside/Door()"]


async def test_on_load_is_no_part_of_the_run_that_loads(flow: Flowlet) -> None:
    @flow.machine
    class Lamp:
        @state(initial=True)
        class Off: ...

        @state
        class On: ...

        @transition(Off, On)
        async def switch(self) -> None: ...

        @transition(On, Off)
        async def back(self) -> None: ...

        async def on_load(self) -> None:
            seen.append(run_context.get())
            assert await plain(1) == 1

    seen: list[Any] = []

    @step
    async def plain(n: int) -> int:
        return n

    @flow.saga(name="light")
    async def light() -> None:
        await (await flow.load(Lamp, "l")).switch()

    async with flow:
        await flow.create(Lamp(), id="l")
        gc.collect()
        await flow.execute(light, id="r")
        stored = await flow.store.load("r")
    assert seen == [None]
    assert stored is not None
    assert not any(b"plain" in r for r in stored.records)
