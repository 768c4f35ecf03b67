"""Runs that wait for signals: they are set aside, and whoever is there goes on with them when one comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from flowlet import Flowlet, step
from flowlet.core.codec import Codec, encode
from flowlet.core.definitions import Context, RunDefinition, Undone
from flowlet.core.engine import StepCall
from flowlet.core.flights import Flights
from flowlet.core.program import exchange_call
from flowlet.core.registry import definition_of
from flowlet.errors import (
    DecodeError,
    EncodeError,
    PayloadTooLarge,
    RunCancelled,
    RunError,
    RunFinished,
    RunNotFound,
    RunTimeout,
)
from flowlet.store import Signal, Store, Write
from flowlet.stores import open_store

pytestmark = pytest.mark.anyio

NewStore = Callable[[], Store]
Until = Callable[[Callable[[], Any]], Any]


class Asking:
    """Do ``before``, wait for a signal of each topic beside a step, do ``after``; the result is what came, in order."""

    def __init__(self, world: World, context: Context, inputs: tuple[Any, ...]) -> None:
        self.world = world
        self.engine = context.engine
        (self.topics, self.enough) = inputs

    @property
    def undoes(self) -> bool:
        return False

    def call(self, name: str) -> StepCall:
        definition = self.world.steps.steps["act"]
        return StepCall(self.engine, definition, name, (name,), exchange_call(definition, (name,))[0])

    async def forward(self) -> bytes:
        flights = Flights(self.engine)
        await self.engine.perform(self.call("before"))
        for n, topic in enumerate(self.topics):
            flights.watch(self.engine.signal(f"{topic}@{n}", topic), topic)
        if self.world.beside:
            flights.add(self.call("beside"), "")
        got: list[str] = []
        while flights and len(got) < self.enough:
            for landed in await flights.land():
                value: Any = landed.result if landed.call else Codec(int).decode(landed.value, "a payload")
                got.append(f"{landed.purpose}{value}")
        await flights.stop()
        await self.engine.perform(self.call("after"))
        return encode(got, "the result")

    async def backward(self, error: Exception) -> Undone:
        return Undone()


class World:
    """What the steps have done, over several lives of a process."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.beside = False
        self.hang = ""
        self.typed = True

    def build(self, flow: Flowlet) -> Any:
        """Assemble the run, as each process would."""

        @step
        async def act(name: str) -> str:
            self.log.append(name)
            while name == self.hang:
                await anyio.sleep(0.002)
            return name

        @flow.saga(name="unused")
        async def base(topics: list[str], enough: int) -> list[str]:
            await act("never")
            return []

        self.steps: RunDefinition = definition_of(base)
        signals = {name: Codec(int) for name in ("ok", "no")} if self.typed else None
        definition = msgspec.structs.replace(
            self.steps,
            name="asking",
            homes=[],
            signals=signals,
            interpret=lambda context, inputs: Asking(self, context, inputs),  # type: ignore[arg-type,return-value]
        )
        flow.registry.add(definition)
        return flow.registry._bind_run(definition)


@pytest.fixture
def world() -> World:
    return World()


async def waits(flow: Flowlet, id: str = "r") -> None:
    """Wait until a run waits for a signal."""
    with anyio.fail_after(20):
        while id not in [run.id async for run in flow.runs(status="waiting")]:
            await anyio.sleep(0.002)


async def test_a_run_that_waits_is_nobodys_until_a_signal_comes(flow: Flowlet, world: World) -> None:
    asking = world.build(flow)
    async with flow:
        handle = await flow.start(asking, ["ok"], 1, id="r")
        await waits(flow)
        head = await flow._open_runs.head("r")
        assert (head.owner, head.wake) == (None, None)
        assert not flow._open_runs.live
        await handle.send("ok", 7)
        with anyio.fail_after(20):
            assert await handle.result() == ["ok7"]
        assert world.log == ["before", "after"]
        kinds = [record.kind async for record in handle.history()]
        assert kinds == ["started", "step_completed", "signal", "step_completed", "completed"]
        assert await handle.status() == "completed"


async def test_who_calls_it_waits_with_it(flow: Flowlet, world: World) -> None:
    asking = world.build(flow)
    results: list[Any] = []
    async with flow, anyio.create_task_group() as group:

        async def call(id: str | None) -> None:
            results.append(await flow.execute(asking, ["ok"], 1, id=id))

        group.start_soon(call, "r")
        group.start_soon(call, None)
        await waits(flow)
        with anyio.fail_after(20):
            while len(ids := [run.id async for run in flow.runs(status="waiting")]) < 2:
                await anyio.sleep(0.002)
        for id in ids:
            await flow.handle(id).send("ok", 1)
    assert results == [["ok1"], ["ok1"]]


async def test_a_signal_that_comes_early_is_kept(flow: Flowlet, world: World, until: Until) -> None:
    asking = world.build(flow)
    world.hang = "before"
    async with flow:
        handle = await flow.start(asking, ["ok"], 1, id="r")
        await until(lambda: world.log)
        await handle.send("ok", 1)
        await handle.send("ok", 2)
        world.hang = ""
        with anyio.fail_after(20):
            assert await handle.result() == ["ok1"]


async def test_signals_are_taken_in_the_order_in_which_they_were_sent(flow: Flowlet, world: World) -> None:
    asking = world.build(flow)
    async with flow:
        handle = await flow.start(asking, ["ok", "no", "ok", "ok"], 4, id="r")
        await waits(flow)
        for message, (topic, n) in enumerate([("ok", 1), ("ok", 1), ("no", 5), ("ok", 2), ("no", 6), ("ok", 3)]):
            await handle.send(topic, n, message_id=None if message > 1 else "once")
        with anyio.fail_after(20):
            assert await handle.result() == ["ok1", "no5", "ok2", "ok3"]


@pytest.mark.parametrize("has_definition", [True, False])
async def test_another_process_sends_and_the_one_that_knows_goes_on(
    new_store: NewStore, world: World, has_definition: bool
) -> None:
    """Also when it has nothing else to do, and when the run is executed there at that moment."""
    flow, other = Flowlet(new_store(), lease=2), Flowlet(new_store(), lease=2)
    asking = world.build(flow)
    if has_definition:
        World.build(world, other)
    async with flow, other:
        handle = await flow.start(asking, ["ok", "no"], 2, id="r")
        await waits(flow)
        await other.handle("r").send("no", 1)
        await other.handle("r").send("ok", 2)
        with anyio.fail_after(20):
            assert await handle.result() == ["no1", "ok2"]
    assert world.log == ["before", "after"]


async def test_another_process_sends_beside_a_step_that_runs(new_store: NewStore, world: World, until: Until) -> None:
    flow, other = Flowlet(new_store(), lease=2), Flowlet(new_store(), lease=2)
    asking = world.build(flow)
    world.beside, world.hang = True, "beside"
    async with flow, other:
        handle = await flow.start(asking, ["ok"], 2, id="r")
        await until(lambda: "beside" in world.log)
        assert await handle.status() == "running"
        await other.handle("r").send("ok", 1)
        with anyio.fail_after(20):
            while "signal" not in [record.kind async for record in handle.history()]:
                await anyio.sleep(0.002)
        assert world.hang == "beside"
        world.hang = ""
        with anyio.fail_after(20):
            assert await handle.result() == ["ok1", "beside"]


@pytest.mark.parametrize("sent", ["before", "after"])
async def test_the_next_process_does_only_what_comes_after(new_store: NewStore, world: World, sent: str) -> None:
    flow = Flowlet(new_store())
    async with flow:
        await flow.start(world.build(flow), ["ok"], 1, id="r")
        await waits(flow)
    assert world.log == ["before"]
    if sent == "before":  # by one that does not know what it is
        async with Flowlet(new_store()) as stranger:
            await stranger.handle("r").send("ok", 3)
    flow = Flowlet(new_store())
    world.build(flow)
    async with flow:
        if sent == "after":
            await flow.handle("r").send("ok", 3)
        with anyio.fail_after(20):
            assert await flow.handle("r").result() == ["ok3"]
    assert world.log == ["before", "after"]


async def test_what_is_not_needed_any_more_is_stopped_on_record(new_store: NewStore, world: World) -> None:
    """A wait that was stopped takes nothing, neither now nor when a process that died is followed."""
    world.hang = "after"
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        handle = await flow.start(world.build(flow), ["ok", "no"], 1, id="r")
        await waits(flow)
        await handle.send("no", 2)
        with anyio.fail_after(20):
            while "after" not in world.log:
                await anyio.sleep(0.002)
        await handle.send("ok", 1)
    world.hang = ""
    flow = Flowlet(new_store())
    world.build(flow)
    async with flow:
        with anyio.fail_after(20):
            assert await flow.handle("r").result() == ["no2"]
        kinds = [record.kind async for record in flow.handle("r").history()]
    assert kinds.count("step_cancelled") == 1
    assert world.log == ["before", "after", "after"]


@pytest.mark.parametrize("away", [True, False])
async def test_cancelled_while_it_waits(new_store: NewStore, world: World, away: bool) -> None:
    flow = Flowlet(new_store())
    async with flow:
        handle = await flow.start(world.build(flow), ["ok"], 1, id="r")
        await waits(flow)
        if not away:
            await handle.cancel()
            with anyio.fail_after(20), pytest.raises(RunCancelled):
                await handle.result()
    if away:
        async with Flowlet(new_store()) as stranger:
            await stranger.handle("r").cancel()
        flow = Flowlet(new_store())
        world.build(flow)
        async with flow:
            with anyio.fail_after(20), pytest.raises(RunCancelled):
                await flow.handle("r").result()
    async with flow:
        assert await flow.handle("r").status() == "cancelled"
        with pytest.raises(RunFinished, match="has ended as 'cancelled'"):
            await flow.handle("r").send("ok", 1)
    assert world.log == ["before"]


@pytest.mark.parametrize("away", [True, False])
async def test_its_deadline_passes_while_it_waits(new_store: NewStore, world: World, away: bool) -> None:
    flow = Flowlet(new_store(), lease=2)
    async with flow:
        await flow.start(world.build(flow), ["ok"], 1, id="r", deadline=0.3)
        await waits(flow)
        if not away:
            with anyio.fail_after(20), pytest.raises(RunTimeout):
                await flow.handle("r").result()
    if away:
        await anyio.sleep(0.3)
        flow = Flowlet(new_store())
        world.build(flow)
    async with flow:
        with anyio.fail_after(20), pytest.raises(RunTimeout):
            await flow.handle("r").result()
    assert world.log == ["before"]


async def test_the_caller_is_cancelled_while_it_waits(flow: Flowlet, world: World) -> None:
    asking = world.build(flow)
    async with flow:
        async with anyio.create_task_group() as group:

            async def call() -> None:
                await flow.execute(asking, ["ok"], 1, id="r")

            group.start_soon(call)
            await waits(flow)
            group.cancel_scope.cancel()
        assert await flow.handle("r").status() == "waiting"
        await flow.handle("r").send("ok", 1)
        with anyio.fail_after(20):
            assert await flow.handle("r").result() == ["ok1"]


async def test_signals_for_nothing_do_no_harm(flow: Flowlet, world: World) -> None:
    """However often a waiting run is looked at in vain, it is not taken for one that ends its process."""
    world.typed = False
    asking = world.build(flow)
    async with flow:
        handle = await flow.start(asking, ["ok"], 1, id="r")
        await waits(flow)
        for n in range(25):
            await handle.send(f"other {n}", n)
            await waits(flow)
        await handle.send("ok", 1)
        with anyio.fail_after(20):
            assert await handle.result() == ["ok1"]


async def test_a_wrong_signal_is_refused_where_it_is_sent(flow: Flowlet, world: World) -> None:
    asking = world.build(flow)
    async with flow:
        handle = await flow.start(asking, ["ok"], 1, id="r")
        await waits(flow)
        with pytest.raises(DecodeError, match="the payload of signal 'ok'"):
            await handle.send("ok", "seven")
        with pytest.raises(EncodeError, match="the payload of signal 'ok'"):
            await handle.send("ok", object())
        with pytest.raises(RunError, match=r"takes no signal 'oke'; did you mean 'ok'\?"):
            await handle.send("oke", 1)
        for topic in ("", "flowlet/cancel", 3):
            with pytest.raises(RunError, match=r"send\(\) takes a topic"):
                await handle.send(topic, 1)  # type: ignore[arg-type]
        with pytest.raises(RunError, match="message_id: takes a text"):
            await handle.send("ok", 1, message_id="flowlet/cancel")
        with pytest.raises(RunNotFound):
            await flow.handle("nobody").send("ok", 1)
        assert await handle.status() == "waiting"
        await handle.send("ok", 1)
        with anyio.fail_after(20):
            assert await handle.result() == ["ok1"]
        with pytest.raises(RunFinished):
            await handle.send("ok", 1)


async def test_claimed_again_before_who_set_it_aside_has_left(new_store: NewStore, world: World) -> None:
    """A signal comes, and the worker of this very process takes the run, while its execution is on its way out."""
    store = new_store()
    flow = Flowlet(store)
    asking = world.build(flow)
    append, sent = store.append, False

    async def append_and_claim(writes: Sequence[Any], **options: Any) -> None:
        nonlocal sent
        await append(writes, **options)
        if not sent and any(write.status == "waiting" for write in writes):
            sent = True
            await append((Write(id="r", signals=(Signal("ok", encode(1, "a payload")),)),))
            claims = await store.claim(flow._open_runs.worker.id, ids=("r",))
            await flow._open_runs._adopt(claims.heads)

    store.append = append_and_claim  # type: ignore[method-assign]
    async with flow:
        handle = await flow.start(asking, ["ok"], 1, id="r")
        with anyio.fail_after(5):
            assert await handle.result() == ["ok1"]
    assert sent
    assert world.log == ["before", "after"]


async def test_what_waits_for_nothing_takes_no_signal(flow: Flowlet, until: Until) -> None:
    opener = anyio.Event()

    async def wait() -> int:
        await opener.wait()
        return 1

    lines = flow.pipeline("lines", wait)
    async with flow:
        handle = await flow.start(lines)
        with pytest.raises(RunError, match="of 'lines' takes no signal 'ok'"):
            await handle.send("ok", 1)
        opener.set()
        assert await handle.result() == 1


async def test_a_signal_that_is_too_large_is_refused(world: World) -> None:
    world.typed = False
    flow = Flowlet(max_payload=4096)
    async with flow:
        handle = await flow.start(world.build(flow), ["ok"], 1, id="r")
        with pytest.raises(PayloadTooLarge, match="the payload of signal 'ok'"):
            await handle.send("ok", "x" * 4096)


async def test_a_fork_behind_a_signal_has_taken_it(flow: Flowlet, world: World) -> None:
    """Its own inbox is another one: a signal of the same number there is not the one that was taken."""
    asking = world.build(flow)
    async with flow:
        handle = await flow.start(asking, ["ok", "no"], 2, id="r")
        await waits(flow)
        await handle.send("ok", 1)
        await handle.send("no", 2)
        with anyio.fail_after(20):
            assert await handle.result() == ["ok1", "no2"]
        fork = await handle.fork(from_step="after", id="f")
        with anyio.fail_after(20):
            assert await fork.result() == ["ok1", "no2"]
    assert world.log == ["before", "after", "after"]


async def test_a_waiting_run_moves_to_another_store(world: World, tmp_path: Path) -> None:
    flow = Flowlet(f"sqlite:///{tmp_path}/old.db")
    async with flow:
        handle = await flow.start(world.build(flow), ["ok", "no"], 2, id="r")
        await waits(flow)
        await handle.send("no", 2)
        await waits(flow)
    async with Flowlet(f"sqlite:///{tmp_path}/old.db") as stranger:
        await stranger.handle("r").send("ok", 1)  # which nobody has taken when the store is left
    await Flowlet(f"sqlite:///{tmp_path}/old.db").copy_to(f"sqlite:///{tmp_path}/new.db")
    flow = Flowlet(open_store(f"sqlite:///{tmp_path}/new.db"))
    world.build(flow)
    async with flow:
        with anyio.fail_after(20):
            assert await flow.handle("r").result() == ["no2", "ok1"]
    assert world.log == ["before", "after"]


async def test_events_come_as_they_happen(new_store: NewStore, world: World) -> None:
    flow, other = Flowlet(new_store()), Flowlet(new_store())
    seen: list[str] = []
    async with flow, other:
        await flow.start(world.build(flow), ["ok"], 1, id="r")
        with anyio.fail_after(20):
            async for event in other.handle("r").events():
                seen.append(event.kind)
                if seen == ["started", "step_completed"]:
                    await other.handle("r").send("ok", 1)
        assert seen == ["started", "step_completed", "signal", "step_completed", "completed"]
        with pytest.raises(RunNotFound):
            await anext(flow.handle("nobody").events())


async def test_what_was_taken_leaves_the_inbox(flow: Flowlet, world: World) -> None:
    """With the next record, so that an inbox does not grow with the age of a run."""
    world.typed = False
    asking = world.build(flow)
    async with flow:
        topics: Sequence[str] = ["ok"] * 60
        handle = await flow.start(asking, topics, 60, id="r")
        for n in range(59):
            await handle.send("ok", n)
        with anyio.fail_after(20):
            while [record.kind async for record in handle.history()].count("signal") < 59:
                await anyio.sleep(0.01)
        await waits(flow)
        stored = await flow._open_runs.load("r", limit=0)
        assert not stored.signals
        await handle.send("ok", 59)
        with anyio.fail_after(20):
            assert await handle.result() == [f"ok{n}" for n in range(60)]
