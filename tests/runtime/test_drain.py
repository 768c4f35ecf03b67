"""Leaving and draining: no step begins, what is between two steps is given back at once, and nothing fails of it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, Retry, Run, compensate, gather, provided, step
from flowlet.errors import ConfigError, RunError
from flowlet.runtime.worker import Worker
from flowlet.store import Claims, Head, Store, Work, Write
from flowlet.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

Until = Callable[[Callable[[], Any]], Awaitable[None]]

LONG = 60.0
"""Seconds of what no test waits for: delays, and grace times."""

SOON = 15.0
"""Seconds within which something happens on a machine that is busy with other things, too."""


class Busy(Exception):
    pass


class World:
    """What the steps of a test have done, and what they wait for."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.gate = anyio.Event()
        self.held = anyio.Event()


def program(flow: Flowlet, world: World) -> dict[str, Any]:
    """Assemble definitions, as each process would for itself."""

    @step
    async def first(name: str) -> str:
        world.log.append(f"first {name}")
        await world.gate.wait()
        return name

    @step
    async def second(name: str) -> str:
        world.log.append(f"second {name}")
        return name

    @step
    async def hold(name: str) -> str:
        world.log.append(f"hold {name}")
        await world.held.wait()
        return name

    @step(retry=Retry(attempts=5, wait=LONG, max_wait=LONG))
    async def ask(name: str, run: Run = provided) -> str:
        world.log.append(f"ask {name} {run.attempt}")
        raise Busy

    @compensate(second)
    async def undo() -> None:
        world.log.append("undo")

    @flow.saga
    async def between(name: str) -> str:
        await first(name)
        return await second(name)

    @flow.saga
    async def holding(name: str) -> str:
        await second(name)
        return await hold(name)

    @flow.saga
    async def asking(name: str) -> str:
        await second(name)
        return await ask(name)

    @flow.saga
    async def gathering(name: str) -> list[str]:
        return list(await gather(ask(name), hold(name), first(name)))

    return {"between": between, "holding": holding, "asking": asking, "gathering": gathering}


def runs(flow: Flowlet) -> Any:
    assert flow._runs is not None
    return flow._runs


async def owners(store: Store, ids: list[str]) -> set[str | None]:
    found = [await store.load(id, limit=0) for id in ids]
    return {stored.head.owner if stored is not None else "missing" for stored in found}


async def kinds(flow: Flowlet, id: str) -> list[str]:
    return [record.kind async for record in flow.handle(id).history()]


# ------------------------------------------------------------------ retry delays
async def test_leaving_does_not_wait_out_a_retry_delay(new_store: Callable[[], Store], until: Until) -> None:
    world = World()
    for entry in range(2):  # the second time, what is waited for is the rest of the recorded delay
        flow = Flowlet(new_store(), grace=LONG)
        body = program(flow, world)["asking"]
        began = time.monotonic()
        async with flow:
            await flow.start(body, "a", id="a")
            await until(lambda: "ask a 1" in world.log)
            while await kinds(flow, "a") != ["started", "step_completed", "attempt_failed"]:
                await anyio.sleep(0.01)
            await anyio.sleep(0.05)
        assert time.monotonic() - began < SOON, f"entry {entry} waited"
        store = new_store()
        assert await owners(store, ["a"]) == {None}
        await store.close()
    assert world.log == ["second a", "ask a 1"]


async def test_the_rest_of_a_delay_is_honoured_by_who_goes_on(new_store: Callable[[], Store]) -> None:
    times: list[float] = []

    @step(retry=Retry(attempts=2, wait=1.0))
    async def ask() -> int:
        times.append(time.monotonic())
        if len(times) == 1:
            raise Busy
        return 1

    for entry in range(3):
        flow = Flowlet(new_store())
        body = flow.saga("body", ask)
        async with flow:
            handle = await flow.start(body, id="a")
            await anyio.sleep(0.2)
            if entry == 2:
                assert await handle.result() == 1
    assert len(times) == 2
    assert times[1] - times[0] >= 0.95


async def test_steps_beside_one_that_waits_for_its_next_attempt_use_the_grace_time(
    new_store: Callable[[], Store], until: Until
) -> None:
    world = World()
    flow = Flowlet(new_store(), grace=LONG)
    body = program(flow, world)["gathering"]

    async def let_go() -> None:
        await until(lambda: runs(flow).closing)
        await anyio.sleep(0.2)
        world.held.set()
        await anyio.sleep(0.2)
        world.gate.set()

    began = time.monotonic()
    async with anyio.create_task_group() as group, flow:
        await flow.start(body, "a", id="a")
        await until(lambda: len(world.log) == 3)
        while "attempt_failed" not in await kinds(flow, "a"):
            await anyio.sleep(0.01)
        group.start_soon(let_go)
    assert time.monotonic() - began < SOON
    store = new_store()
    stored = await store.load("a")
    await store.close()
    assert stored is not None
    assert (stored.head.owner, stored.head.version) == (None, 4)  # started, an attempt, and two results
    flow = Flowlet(new_store(), grace=0)
    program(flow, world)
    async with flow:
        assert await kinds(flow, "a") == ["started", "attempt_failed", "step_completed", "step_completed"]
        await anyio.sleep(0.2)
    assert sorted(world.log) == ["ask a 1", "first a", "hold a"]


# ------------------------------------------------------------------ leases
@pytest.mark.parametrize("how", ["leave", "drain"])
async def test_what_is_between_steps_goes_on_elsewhere_while_a_long_step_ends_here(
    new_store: Callable[[], Store], until: Until, how: str
) -> None:
    ids = [f"r{n}" for n in range(25)]
    mine, others = World(), World()
    leaving, staying = Flowlet(new_store(), grace=LONG), Flowlet(new_store())
    here, there = program(leaving, mine), program(staying, others)
    others.gate.set()
    done = anyio.Event()
    leave = anyio.Event()

    async def be_left() -> None:
        async with leaving:
            for id in ids:
                await leaving.start(here["between"], id, id=id)
                await leaving.start(here["asking"], id, id=f"asking {id}")
            await leaving.start(here["holding"], "long", id="long")
            await until(lambda: len(mine.log) == 25 + 50 + 2)
            await anyio.sleep(0.1)
            await leave.wait()
            if how == "drain":
                await leaving.drain()
        done.set()

    async with staying, anyio.create_task_group() as group:
        group.start_soon(be_left)
        await until(lambda: len(mine.log) == 25 + 50 + 2)
        leave.set()
        await until(lambda: runs(leaving).closing)
        with anyio.fail_after(SOON):
            while await owners(staying.store, [f"asking {id}" for id in ids]) != {None}:  # for a long pause: nobody's
                await anyio.sleep(0.01)
        mine.gate.set()  # their steps end only now
        with anyio.fail_after(SOON):
            for id in ids:
                assert await staying.handle(id, there["between"]).result() == id
        assert not done.is_set()
        assert await owners(staying.store, ["long"]) == {runs(leaving).worker.id}
        mine.held.set()
        assert await staying.handle("long", there["holding"]).result() == "long"
        await done.wait()
    assert sorted(others.log) == sorted(f"second {id}" for id in ids)
    assert mine.log.count("hold long") == 1


async def test_they_go_on_elsewhere_within_a_fraction_of_a_second(new_store: Callable[[], Store], until: Until) -> None:
    mine, others = World(), World()
    leaving, staying = Flowlet(new_store(), grace=LONG), Flowlet(new_store())
    here, there = program(leaving, mine), program(staying, others)
    others.gate.set()
    async with staying, anyio.create_task_group() as group:
        await leaving.__aenter__()
        await leaving.start(here["holding"], "long", id="long")
        await leaving.start(here["between"], "r", id="r")
        await until(lambda: len(mine.log) == 3)
        group.start_soon(leaving.drain)
        await until(lambda: runs(leaving).closing)
        began = time.monotonic()
        mine.gate.set()
        assert await staying.handle("r", there["between"]).result() == "r"
        took = time.monotonic() - began
        mine.held.set()
        await leaving.__aexit__(None, None, None)
    assert took < 2.0  # 0.1 on a machine that has nothing else to do


async def test_what_a_claim_takes_while_it_is_left_is_given_back_at_once(
    new_store: Callable[[], Store], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    flow = Flowlet(new_store(), grace=LONG)
    body = program(flow, world)
    store = flow.store
    claimed, go_on = anyio.Event(), anyio.Event()
    claim = store.claim

    async def slow_claim(worker: str, /, **options: Any) -> Claims:
        claims = await claim(worker, **options)
        if claims.heads and not claimed.is_set():
            claimed.set()
            await go_on.wait()
        return claims

    adopted: list[str] = []

    async def adopt(heads: Sequence[Head]) -> None:
        adopted.extend(head.id for head in heads)

    async def see() -> None:
        await until(lambda: runs(flow).closing)
        await anyio.sleep(0.1)
        runs(flow).worker._adopt = adopt
        go_on.set()
        with anyio.fail_after(SOON):
            while await owners(store, ["theirs"]) != {None}:
                await anyio.sleep(0.01)
        assert await owners(store, ["long"]) == {runs(flow).worker.id}
        world.held.set()

    async with anyio.create_task_group() as group, flow:
        await flow.start(body["holding"], "long", id="long")
        await until(lambda: "hold long" in world.log)
        monkeypatch.setattr(store, "claim", slow_claim)
        await flow.start(body["between"], "theirs", id="theirs")
        await until(lambda: "first theirs" in world.log)
        runs(flow).live["theirs"].journal.trouble = RunError("lost")
        world.gate.set()
        await until(lambda: "theirs" not in runs(flow).live)
        await store.release(runs(flow).worker.id, ["theirs"])
        await claimed.wait()
        group.start_soon(see)
    assert adopted == []


class SlowStore(MemoryStore):
    """Takes its time for an append once it is told to, and promises nothing about the end of the process."""

    slow = False

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        if self.slow:
            await anyio.sleep(0.3)
        await super().append(writes, work=work)


async def test_what_is_being_recorded_is_recorded_before_the_lease_is_given_back(until: Until) -> None:
    world = World()
    store = SlowStore()
    flow = Flowlet(store, grace=LONG)
    body = program(flow, world)

    @step
    async def first() -> int:
        store.slow = True
        world.log.append("first")
        return 1

    @step
    async def delegate() -> str:
        world.log.append("delegate")
        await world.gate.wait()  # meanwhile the record of the first step is on its way
        return str(await body["between"]("x"))

    @flow.saga
    async def outer() -> str:
        await first()
        return await delegate()

    async with flow:
        await flow.start(outer, id="outer")
        await until(lambda: "delegate" in world.log)
        async with anyio.create_task_group() as group:
            group.start_soon(flow.drain)
            await until(lambda: runs(flow).closing)
            world.gate.set()
        assert await kinds(flow, "outer") == ["started", "step_completed", "child_called"]
        assert await owners(store, ["outer"]) == {None}


# ------------------------------------------------------------------ drain
async def test_a_drained_flowlet_reads_but_begins_nothing_until_it_is_entered_again(
    new_store: Callable[[], Store], until: Until
) -> None:
    world = World()
    flow = Flowlet(new_store())
    body = program(flow, world)
    world.gate.set()
    async with flow:
        assert await flow.execute(body["between"], "done", id="done") == "done"
        waiting = await flow.start(body["asking"], "a", id="a")
        await until(lambda: "ask a 1" in world.log)
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(flow.drain)
        await flow.drain()
        assert await owners(flow.store, ["a"]) == {None}
        for begin in (flow.start, flow.execute):
            for id in (None, "new", "done"):
                with pytest.raises(RunError, match="drained"):
                    await begin(body["between"], "done", id=id)
        with pytest.raises(RunError, match="drained"):
            await body["between"]("direct")
        with pytest.raises(RunError, match="run 'a' goes on when its Flowlet is entered again"):
            await waiting.result()
        assert await waiting.status() in ("running", "waiting")
        assert await flow.handle("done", body["between"]).result() == "done"
        assert await flow.store.load("new", limit=0) is None
        began = time.monotonic()
    assert time.monotonic() - began < 2.0
    async with flow:
        assert await flow.execute(body["between"], "new") == "new"
    assert world.log.count("ask a 1") == 1
    assert "undo" not in world.log


async def test_a_cancelled_drain_goes_on(new_store: Callable[[], Store], until: Until) -> None:
    world = World()
    flow = Flowlet(new_store(), grace=LONG)
    body = program(flow, world)
    async with flow:
        await flow.start(body["holding"], "long", id="long")
        await until(lambda: "hold long" in world.log)
        with anyio.move_on_after(0.05):
            await flow.drain()
        world.held.set()
        await flow.drain()
        assert await owners(flow.store, ["long"]) == {None}
        assert await kinds(flow, "long") == ["started", "step_completed", "step_completed", "completed"]


async def test_a_caller_that_waits_for_a_run_learns_that_it_goes_on_later(
    new_store: Callable[[], Store], until: Until
) -> None:
    world = World()
    flow = Flowlet(new_store(), grace=LONG)
    body = program(flow, world)
    seen: list[str] = []

    async def call() -> None:
        with pytest.raises(RunError) as caught:
            await flow.execute(body["between"], "r", id="r")
        seen.append(str(caught.value))

    async with flow, anyio.create_task_group() as group:
        group.start_soon(call)
        await until(lambda: "first r" in world.log)
        group.start_soon(flow.drain)
        await until(lambda: runs(flow).closing)
        world.gate.set()
    assert seen == ["run 'r' goes on when its Flowlet is entered again"]
    store = new_store()
    assert await owners(store, ["r"]) == {None}
    await store.close()


@pytest.mark.parametrize("way", ["start and wait", "execute", "call", "start only"])
async def test_draining_does_not_fail_a_step_that_has_to_do_with_another_run(
    new_store: Callable[[], Store], until: Until, way: str
) -> None:
    world = World()

    def assemble(flow: Flowlet) -> Any:
        body = program(flow, world)

        @step
        async def begin() -> str:
            return "begun"

        @compensate(begin)
        async def end() -> None:
            world.log.append("end")

        @step
        async def delegate() -> str:
            world.log.append("delegate")
            if way.startswith("start"):
                if way == "start only":
                    await world.gate.wait()
                handle = await flow.start(body["between"], "inner", id="inner")
                return await handle.result() if way == "start and wait" else "inner"
            if way == "execute":
                return str(await flow.execute(body["between"], "inner", id="inner"))
            return str(await body["between"]("inner"))

        @flow.saga
        async def outer() -> str:
            return await begin() + " " + await delegate()

        return outer

    flow = Flowlet(new_store(), grace=LONG)
    outer = assemble(flow)
    async with flow:
        await flow.start(outer, id="outer")
        await until(lambda: ("delegate" if way == "start only" else "first inner") in world.log)
        async with anyio.create_task_group() as group:
            group.start_soon(flow.drain)
            await until(lambda: runs(flow).closing)
            world.gate.set()
        # Its step ends, where it does not wait for what goes on later, and it was the last.
        assert await flow.handle("outer").status() == ("completed" if way == "start only" else "running")
    flow = Flowlet(new_store())
    outer = assemble(flow)
    async with flow:
        with anyio.fail_after(SOON):
            assert await flow.handle("outer", outer).result() == "begun inner"
            if way == "start only":
                assert await flow.handle("inner").result() == "inner"
    assert world.log.count("first inner") == 1
    assert "end" not in world.log


async def test_a_step_that_cannot_be_stopped_holds_up_no_drain(new_store: Callable[[], Store]) -> None:
    began: list[float] = []

    def block() -> str:
        began.append(time.monotonic())
        time.sleep(2.0 if len(began) == 1 else 0)
        return "done"

    flow = Flowlet(new_store(), grace=0.1)
    body = flow.saga("body", block)
    async with flow:
        await flow.start(body, id="r")
        while not began:
            await anyio.sleep(0.01)
        await flow.drain()
        assert time.monotonic() - began[0] < 1.9
        assert await owners(flow.store, ["r"]) == {None}
    flow = Flowlet(new_store())
    body = flow.saga("body", block)
    async with flow:
        assert await flow.handle("r", body).result() == "done"
    assert len(began) == 2


async def test_a_store_that_is_down_holds_up_no_drain(faulty_store: Any, until: Until) -> None:
    world = World()
    flow = Flowlet(faulty_store, grace=LONG)
    body = program(flow, world)
    async with flow:
        await flow.start(body["asking"], "a", id="a")
        await until(lambda: "ask a 1" in world.log)
        await anyio.sleep(0.1)
        faulty_store.down = True
        with anyio.fail_after(SOON):
            await flow.drain()
        faulty_store.down = False


async def test_the_look_for_work_ends_once(new_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    adopt = Worker._look

    async def look(self: Worker) -> None:
        looks.append(self.id)
        await adopt(self)

    monkeypatch.setattr(Worker, "_look", look)
    flow = Flowlet(new_store())
    async with flow:
        await flow.drain()
        count = len(looks)
        await anyio.sleep(0.3)
        assert len(looks) == count


# ------------------------------------------------------------------ names
async def test_the_name_is_in_the_owner_column(new_store: Callable[[], Store], until: Until) -> None:
    world = World()
    flows = [Flowlet(new_store(), name="orders.v-2_b", grace=0) for _ in range(2)]
    bodies = [program(flow, world) for flow in flows]
    async with flows[0], flows[1]:
        for n, flow in enumerate(flows):
            await flow.start(bodies[n]["holding"], str(n), id=str(n))
        await until(lambda: len(world.log) == 4)
        names = [*await owners(flows[0].store, ["0"]), *await owners(flows[0].store, ["1"])]
        assert names[0] != names[1]
        assert all(name is not None and name.split("-", 1)[1].startswith("orders.v-2_b-") for name in names)


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a/b", "../a", "a\0", "ü", "a\n", 3, b"a", object(), True])
def test_a_name_that_is_none(name: Any) -> None:
    with pytest.raises(ConfigError, match="a worker's name is 1 to 64 of the letters"):
        Flowlet(name=name)


@pytest.mark.parametrize("name", ["x" * 64, ".", "..", "-", "a-1.b_C"])
async def test_names_that_are(name: str) -> None:
    async with Flowlet(name=name) as flow:
        assert f"-{name}-" in runs(flow).worker.id
