"""Handles: status, report and history of runs that go on, have ended, or are not executed here."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import msgspec
import pytest

from flowlet import Flowlet, Retry, Run, provided, step
from flowlet.errors import RunFinished, RunNotFound
from flowlet.runtime.handle import Handle, Record
from flowlet.runtime.report import RunReport, StepReport
from flowlet.store import Store

pytestmark = pytest.mark.anyio


class Broken(Exception):
    pass


class Box(msgspec.Struct):
    weight: float


async def test_a_run_that_goes_on(flow: Flowlet) -> None:
    go_on, retrying = anyio.Event(), anyio.Event()

    @step
    async def pack(n: int) -> Box:
        return Box(n / 2)

    @step(retry=Retry(attempts=2, wait=0))
    async def send(box: Box, run: Run = provided) -> None:
        if run.attempt == 1:
            raise Broken("not yet")
        retrying.set()
        await go_on.wait()

    @flow.saga
    async def body(n: int) -> float:
        box = await pack(n)
        await send(box)
        return box.weight

    async with flow:
        handle = await flow.start(body, 3, id="b")
        await retrying.wait()
        assert await handle.status() == "running"
        report = await handle.report()
        assert report.status == "running"
        assert report.steps["pack"] == StepReport("pack", Box(1.5), "completed", 1, report.steps["pack"].seconds)
        send_report = report.steps["send"]
        assert (send_report.status, send_report.attempts, send_report.error) == ("retrying", 1, "Broken: not yet")
        go_on.set()
        assert await handle.result() == 1.5
        report = await handle.report()
        assert report.status == "completed"
        assert (report.steps["send"].status, report.steps["send"].attempts) == ("completed", 2)
        assert report.steps["send"].seconds >= send_report.seconds
        assert report.steps["send"].error is None


async def test_the_history_is_numbered_and_timed(flow: Flowlet) -> None:
    @step(retry=Retry(attempts=2, wait=0))
    async def fail(run: Run = provided) -> None:
        raise Broken(f"no {run.attempt}")

    @flow.saga
    async def body() -> None:
        await fail()

    async with flow:
        handle = await flow.start(body, id="b")
        with pytest.raises(Broken):
            await handle.result()
        records = [r async for r in handle.history()]
    assert [(r.seq, r.kind, r.step, r.attempt, r.error) for r in records] == [
        (1, "started", None, None, None),
        (2, "attempt_failed", "fail", 1, "Broken: no 1"),
        (3, "step_failed", "fail", 2, "Broken: no 2"),
        (4, "failed", None, None, "Broken: no 2"),
    ]
    assert all(isinstance(r, Record) for r in records)
    times = [r.at for r in records]
    assert times == sorted(times)
    assert records[1].seconds is not None


async def test_a_long_history_is_read_in_pages(flow: Flowlet) -> None:
    @step
    async def one(n: int) -> int:
        return n

    @flow.saga
    async def body() -> int:
        total = 0
        for n in range(600):
            total += await one(n)
        return total

    async with flow:
        assert await flow.execute(body, id="b") == 600 * 599 // 2
        seqs = [r.seq async for r in flow.handle("b").history()]
        assert seqs == list(range(1, 603))
        assert len((await flow.handle("b").report()).steps) == 600


async def test_a_handle_made_from_an_id_alone(new_store: Callable[[], Store]) -> None:
    flow = Flowlet(new_store())

    @step
    async def pack(n: int) -> Box:
        return Box(n)

    body = flow.saga("body", pack)
    async with flow:
        assert await flow.execute(body, 2, id="b") == Box(2.0)
        handle = flow.handle("b")
        assert isinstance(handle, Handle)
        assert repr(handle) == "<Handle of run 'b'>"
        assert await handle.result() == Box(2.0)
        report = await handle.report()
        assert isinstance(report, RunReport)
        assert report.steps["pack"].value == Box(2.0)
    stranger = Flowlet(new_store())
    async with stranger:
        assert (await stranger.handle("b").report()).steps["pack"].value == {"weight": 2.0}


async def test_resuming_what_is_not_parked(flow: Flowlet) -> None:
    go_on = anyio.Event()

    @flow.saga
    async def body() -> int:
        await go_on.wait()
        return 1

    async with flow:
        handle = await flow.start(body, id="b")
        await handle.resume()  # nothing to do
        assert await handle.status() == "running"
        go_on.set()
        assert await handle.result() == 1
        with pytest.raises(RunFinished, match="run 'b' has ended as 'completed'; start a new one under another id"):
            await handle.resume()
        with pytest.raises(RunNotFound):
            await flow.handle("c").resume()


async def test_a_pruned_run_is_not_found_and_its_id_starts_anew(flow: Flowlet) -> None:
    calls: list[int] = []

    @flow.saga
    async def body(n: int) -> int:
        calls.append(n)
        return n

    async with flow:
        assert await flow.execute(body, 1, id="b") == 1
        await flow.store.prune(closed_before=await flow.store.now() + 1)
        with pytest.raises(RunNotFound):
            await flow.handle("b").result()
        assert await flow.execute(body, 2, id="b") == 2
    assert calls == [1, 2]
