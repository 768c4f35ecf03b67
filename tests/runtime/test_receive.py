"""Receiving signals in the body of a run, and publishing what others can read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import msgspec
import pytest

from flowlet import Flowlet, Retry, Run, compensate, current_run, gather, provided, step
from flowlet.errors import (
    DecodeError,
    EncodeError,
    PayloadTooLarge,
    RunError,
    RunFinished,
    RunNotFound,
    SignalTimeout,
)
from flowlet.runtime.orders import CANCEL
from flowlet.store import Store
from flowlet.stores.memory import MemoryStore
from flowlet.testing import Clock

pytestmark = pytest.mark.anyio


class Payment(msgspec.Struct, frozen=True):
    amount: int
    by: str = "card"


async def reaches(flow: Flowlet, id: str, status: str) -> None:
    """Wait until a run stands at a status."""
    with anyio.fail_after(20):
        while await flow.handle(id).status() != status:
            await anyio.sleep(0.001)


async def test_typed_payloads_in_order(flow: Flowlet) -> None:
    @flow.saga
    async def collect(run: Run = provided) -> list[Payment]:
        return [await run.receive("payment", type=Payment) for _ in range(3)]

    async with flow:
        handle = await flow.start(collect, id="r")
        await handle.send("payment", Payment(1))
        await reaches(flow, "r", "waiting")
        await handle.send("payment", {"amount": 2, "by": "cash"})
        await handle.send("other", "for nobody")
        await handle.send("payment", Payment(3))
        with anyio.fail_after(20):
            assert await handle.result() == [Payment(1), Payment(2, "cash"), Payment(3)]


async def test_a_message_id_is_received_once(flow: Flowlet) -> None:
    @flow.saga
    async def collect(run: Run = provided) -> list[int]:
        return [await run.receive("n", type=int) for _ in range(2)]

    async with flow:
        handle = await flow.start(collect)
        for _ in range(3):
            await handle.send("n", 1, message_id="first")
        await reaches(flow, handle.id, "waiting")
        await handle.send("n", 1, message_id="first")  # was consumed, and is known even so
        await handle.send("n", 2, message_id="second")
        with anyio.fail_after(20):
            assert await handle.result() == [1, 2]


async def test_a_signal_that_comes_while_a_step_runs_is_there_afterwards(flow: Flowlet) -> None:
    begun, go = anyio.Event(), anyio.Event()

    @step
    async def work() -> None:
        begun.set()
        await go.wait()

    @flow.saga
    async def body(run: Run = provided) -> int:
        await work()
        return await run.receive("n", type=int)

    async with flow:
        handle = await flow.start(body)
        await begun.wait()
        await handle.send("n", 5)
        go.set()
        with anyio.fail_after(20):
            assert await handle.result() == 5


async def test_from_another_flowlet_on_the_store(new_store: Callable[[], Store]) -> None:
    flow, other = Flowlet(new_store()), Flowlet(new_store())

    @flow.saga
    async def body(run: Run = provided) -> int:
        return await run.receive("n", type=int)

    async with flow, other:
        handle = await flow.start(body, id="r")
        await reaches(flow, "r", "waiting")
        await other.handle("r").send("n", 5)
        with anyio.fail_after(20):
            assert await handle.result() == 5


async def test_after_the_timeout_a_signal_waits_for_the_next_receive() -> None:
    clock = Clock()
    flow = Flowlet(MemoryStore(clock=clock))

    @flow.saga
    async def body(run: Run = provided) -> list[int]:
        got = []
        with pytest.raises(SignalTimeout, match="no signal 'n'") as late:
            await run.receive("n", type=int, timeout=timedelta(hours=1))
        assert isinstance(late.value, TimeoutError)
        got.append(-1)
        got.append(await run.receive("n", type=int, timeout=3600))
        return got

    async with flow:
        handle = await flow.start(body, id="r")
        await reaches(flow, "r", "waiting")
        await clock.advance(timedelta(hours=1))
        with anyio.fail_after(20):
            while "time_over" not in [record.kind async for record in handle.history()]:
                await anyio.sleep(0.001)
        await handle.send("n", 5)
        assert await handle.result() == [-1, 5]
        kinds = [record.kind async for record in handle.history()]
        assert kinds == ["started", "waiting", "time_over", "waiting", "signal", "completed"]


async def test_a_signal_that_was_sent_goes_before_a_time_that_is_over(new_store: Callable[[], Store]) -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    flow = Flowlet(store)

    def build(flow: Flowlet) -> Any:
        @flow.saga
        async def body(run: Run = provided) -> int:
            return await run.receive("n", type=int, timeout=100)

        return body

    async with flow:
        await flow.start(build(flow), id="r")
        await reaches(flow, "r", "waiting")
    sender = Flowlet(store)
    async with sender:
        await sender.handle("r").send("n", 5)
    await clock.advance(1000)
    flow = Flowlet(store)
    build(flow)
    async with flow:
        with anyio.fail_after(20):
            assert await flow.handle("r").result() == 5


async def test_two_topics_at_once_and_a_time(flow: Flowlet) -> None:
    @flow.saga
    async def body(run: Run = provided) -> list[Any]:
        return list(await gather(run.receive("a", type=int), run.receive("b", type=str), run.sleep(0.01)))

    async with flow:
        handle = await flow.start(body)
        await handle.send("b", "x")
        await reaches(flow, handle.id, "waiting")
        await handle.send("a", 1)
        with anyio.fail_after(20):
            assert await handle.result() == [1, "x", None]


async def test_a_gather_whose_wait_is_over_undoes_what_was_done(flow: Flowlet) -> None:
    log: list[str] = []

    @step
    async def reserve() -> str:
        return "seat"

    @compensate(reserve)
    async def release(reserve: str) -> None:
        log.append(f"released {reserve}")

    @flow.saga
    async def body(run: Run = provided) -> None:
        await gather(reserve(), run.receive("paid", type=bool, timeout=0.02), run.receive("word", type=str))

    async with flow:
        with anyio.fail_after(20), pytest.raises(SignalTimeout):
            await flow.execute(body)
    assert log == ["released seat"]


async def test_behind_a_pivot_a_wait_that_is_over_is_the_bodys(flow: Flowlet) -> None:
    @step(pivot=True)
    async def ship() -> None: ...

    @step
    async def note(what: str) -> str:
        return what

    @flow.saga
    async def body(run: Run = provided) -> str:
        await ship()
        try:
            await gather(note("a"), run.receive("word", type=str, timeout=0.02))
        except SignalTimeout:
            return await note("silence")
        return "a word"

    async with flow:
        with anyio.fail_after(20):
            assert await flow.execute(body) == "silence"


async def test_a_payload_of_another_type_can_be_passed_over(flow: Flowlet) -> None:
    @flow.saga
    async def body(run: Run = provided) -> int:
        while True:
            try:
                return await run.receive("n", type=int)
            except DecodeError:
                pass

    async with flow:
        handle = await flow.start(body)
        await handle.send("n", "five")
        await handle.send("n", 5)
        with anyio.fail_after(20):
            assert await handle.result() == 5


@pytest.mark.parametrize("topic", ["", None, 5, CANCEL])
async def test_what_is_no_topic(flow: Flowlet, topic: Any) -> None:
    @flow.saga
    async def body(run: Run = provided) -> None:
        await run.receive(topic, type=int)

    async with flow:
        with pytest.raises(RunError, match=r"receive\(\) takes a topic"):
            await flow.execute(body)
        handle = await flow.start(body, id="r2")
        with pytest.raises(RunError):
            await handle.send(topic, 1)


async def test_a_timeout_that_is_none(flow: Flowlet) -> None:
    @flow.saga
    async def body(run: Run = provided) -> None:
        await run.receive("n", type=int, timeout=-1)

    async with flow:
        with pytest.raises(RunError, match=r"receive\(\): timeout: must be finite and not negative"):
            await flow.execute(body)


async def test_whom_nothing_can_be_sent(flow: Flowlet) -> None:
    @flow.saga
    async def body() -> int:
        return 1

    async with flow:
        await flow.execute(body, id="r")
        with pytest.raises(RunFinished, match="has ended as 'completed'"):
            await flow.handle("r").send("n", 1)
        with pytest.raises(RunNotFound):
            await flow.handle("nobody").send("n", 1)


# -------------------------------------------------------------- publish and read
async def test_what_is_published_last_is_read(flow: Flowlet, new_store: Callable[[], Store]) -> None:
    @flow.saga
    async def load(run: Run = provided) -> None:
        for n in range(60):
            await run.publish("progress", n)
        await run.publish("payment", Payment(5))
        await run.receive("go", type=bool)
        await run.publish("progress", 100)

    other = Flowlet(new_store())
    async with flow, other:
        handle = await flow.start(load, id="r")
        await reaches(flow, "r", "waiting")
        reader = other.handle("r")
        assert await reader.read("progress") == 59
        assert await reader.read("payment", type=Payment) == Payment(5)
        assert await reader.read("payment") == {"amount": 5, "by": "card"}
        assert await reader.read("nothing") is None
        assert await reader.read("nothing", default=3) == 3
        with pytest.raises(DecodeError, match="published as 'payment'"):
            await reader.read("payment", type=int)
        await handle.send("go", True)
        with anyio.fail_after(20):
            await handle.result()
        assert await reader.read("progress", type=int) == 100
        with pytest.raises(RunNotFound):
            await other.handle("nobody").read("progress")


async def test_a_step_is_seen_while_it_is_under_way(flow: Flowlet, new_store: Callable[[], Store]) -> None:
    go = anyio.Event()

    @step
    async def work(n: int) -> int:
        await current_run().publish(f"progress-{n}", 0.5)
        await go.wait()
        return n

    @flow.saga
    async def load() -> list[int]:
        return [await work(0), *await gather(work(1), work(2))]

    other = Flowlet(new_store())
    async with flow, other:
        handle = await flow.start(load, id="r")
        reader = other.handle("r")
        with anyio.fail_after(20):
            while await reader.read("progress-0") != 0.5:
                await anyio.sleep(0.002)
        assert await handle.status() == "running"
        await anyio.sleep(0.05)
        assert [r.kind async for r in handle.history()] == ["started", "published"]
        go.set()
        with anyio.fail_after(20):
            assert await handle.result() == [0, 1, 2]
        assert [await reader.read(f"progress-{n}") for n in range(3)] == [0.5, 0.5, 0.5]


async def test_steps_side_by_side_are_seen_while_they_are_under_way(flow: Flowlet) -> None:
    go = anyio.Event()

    @step
    async def work(n: int) -> int:
        await anyio.sleep(0.01 * n)
        await current_run().publish(f"progress-{n}", n)
        await go.wait()
        return n

    @flow.saga
    async def load() -> tuple[int, int]:
        return await gather(work(1), work(2))

    async with flow:
        handle = await flow.start(load)
        with anyio.fail_after(20):
            while [await handle.read(f"progress-{n}") for n in (1, 2)] != [1, 2]:
                await anyio.sleep(0.002)
            go.set()
            assert await handle.result() == (1, 2)


async def test_a_replay_publishes_nothing_again(new_store: Callable[[], Store]) -> None:
    def build(flow: Flowlet) -> Any:
        @flow.saga
        async def body(run: Run = provided) -> int:
            await run.publish("state", "begun")
            got = await run.receive("n", type=int)
            await run.publish("state", "done")
            return got

        return body

    flow = Flowlet(new_store())
    async with flow:
        await flow.start(build(flow), id="r")
        await reaches(flow, "r", "waiting")
    flow = Flowlet(new_store())
    build(flow)
    async with flow:
        handle = flow.handle("r")
        await handle.send("n", 5)
        with anyio.fail_after(20):
            assert await handle.result() == 5
        kinds = [record.kind async for record in handle.history()]
        assert kinds == ["started", "published", "signal", "published", "completed"]
        assert await handle.read("state") == "done"


async def test_what_cannot_be_published() -> None:
    flow = Flowlet(max_payload=8192)

    @flow.saga
    async def body(key: str, what: int, run: Run = provided) -> None:
        await run.publish(key, [object(), b"x" * 10_000, 1][what])

    async with flow:
        with pytest.raises(EncodeError, match="publishes as 'k'"):
            await flow.execute(body, "k", 0)
        with pytest.raises(PayloadTooLarge):
            await flow.execute(body, "k", 1)
        with pytest.raises(RunError, match="takes a key"):
            await flow.execute(body, "", 2)


async def test_what_a_run_sends_is_sent_once(flow: Flowlet) -> None:
    @flow.saga
    async def collects(run: Run = provided) -> list[int]:
        return [await run.receive("n", type=int) for _ in range(4)]

    @step(retry=Retry(attempts=3, wait=0.0))
    async def tells(run: Run = provided) -> None:
        await flow.handle("to").send("n", 3)
        if run.attempt < 3:
            raise OSError("again")

    @flow.saga
    async def sends(run: Run = provided) -> None:
        to = flow.handle("to")
        await to.send("n", 1)
        await run.receive("go", type=bool)  # each time it wakes, the body begins anew
        await to.send("n", 2)
        await run.receive("go", type=bool)
        await tells()
        await to.send("n", 4)

    async with flow:
        collecting = await flow.start(collects, id="to")
        sending = await flow.start(sends, id="from")
        for _ in range(2):
            await reaches(flow, "from", "waiting")
            await sending.send("go", True)
            await anyio.sleep(0.1)
        with anyio.fail_after(20):
            await sending.result()
            assert await collecting.result() == [1, 2, 3, 4]


async def test_what_was_sent_is_not_sent_again_to_a_run_that_has_ended(flow: Flowlet) -> None:
    @flow.saga
    async def child(run: Run = provided) -> int:
        return await run.receive("n", type=int)

    @flow.saga
    async def sends(run: Run = provided) -> int:
        made = await run.start(child)
        await flow.handle(made.id).send("n", 5)
        await run.receive("go", type=bool)
        try:
            await flow.handle(made.id).send("n", 6)
        except RunFinished:
            await run.receive("go", type=bool)
        return await made.result()

    async with flow:
        handle = await flow.start(sends, id="p")
        for _ in range(2):
            await reaches(flow, "p", "waiting")
            await reaches(flow, "p/child:start", "completed")
            await handle.send("go", True)
            await anyio.sleep(0.1)
        with anyio.fail_after(20):
            assert await handle.result() == 5


async def test_topics_that_look_like_ordinals(flow: Flowlet) -> None:
    @flow.saga
    async def collects(run: Run = provided) -> list[int]:
        return [await run.receive(topic, type=int) for topic in ("w", "w", "w#2", "~w")]

    @step
    async def tells() -> None:
        to = flow.handle("to")
        for topic, n in (("w", 1), ("w", 2), ("w#2", 3)):
            await to.send(topic, n)

    @flow.saga
    async def sends() -> None:
        await tells()
        await flow.handle("to").send("~w", 4)

    async with flow:
        collecting = await flow.start(collects, id="to")
        await flow.execute(sends)
        with anyio.fail_after(20):
            assert await collecting.result() == [1, 2, 3, 4]
