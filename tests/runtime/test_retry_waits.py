"""A long pause before another attempt is waited for by nobody: the run is set aside until the attempt is due."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import anyio
import pytest

from flowlet import Flowlet, Retry, compensate, gather, step
from flowlet.errors import RunCancelled
from flowlet.store import Store
from flowlet.testing import Clock

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)
HOURLY = Retry(attempts=4, wait=HOUR, backoff=1.0, max_wait=HOUR)


@pytest.fixture
def new_store(timed_store: Callable[[], Store]) -> Callable[[], Store]:
    """Let the `flow` of these tests go by a clock which is moved by hand."""
    return timed_store


class Work:
    """Steps that fail until they have been tried so often."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.needed = 3

    def build(self, flow: Flowlet) -> None:
        """Assemble what is done, as each process would."""

        @step(retry=HOURLY)
        async def flaky(name: str) -> str:
            self.log.append(name)
            if self.log.count(name) < self.needed:
                raise OSError("not now")
            return name

        @step
        async def fails() -> None:
            raise ValueError("no")

        @compensate(flaky, retry=HOURLY)
        async def undo(name: str) -> None:
            self.log.append(f"no {name}")
            if self.log.count(f"no {name}") < self.needed:
                raise OSError("not now")

        @flow.saga
        async def one() -> str:
            return await flaky("a")

        @flow.saga
        async def two() -> tuple[str, str]:
            return await gather(flaky("a"), flaky("b"))

        @flow.saga
        async def undone() -> None:
            await flaky("a")
            await fails()

        self.one, self.two, self.undone = one, two, undone


@pytest.fixture
def work() -> Work:
    return Work()


async def rests(flow: Flowlet, id: str, work: Work, count: int) -> None:
    """Wait until so many attempts have been made, and nobody holds the run."""
    with anyio.fail_after(20):
        while len(work.log) < count or await flow.handle(id).status() != "waiting" or flow._open_runs.live:
            await anyio.sleep(0.001)
    head = await flow._open_runs.head(id)
    assert head.owner is None
    assert len(work.log) == count


async def test_one_step(flow: Flowlet, clock: Clock, work: Work) -> None:
    work.build(flow)
    async with flow:
        handle = await flow.start(work.one, id="r")
        for count in (1, 2):
            await rests(flow, "r", work, count)
            await clock.advance(HOUR - timedelta(seconds=1))
            await anyio.sleep(0.02)
            assert len(work.log) == count
            await clock.advance(1)
        with anyio.fail_after(20):
            assert await handle.result() == "a"
        report = await handle.report()
        assert report.steps["flaky"].attempts == 3


async def test_over_restarts(new_store: Callable[[], Store], clock: Clock, work: Work) -> None:
    for count in (1, 2):
        flow = Flowlet(new_store())
        work.build(flow)
        async with flow:
            if count == 1:
                await flow.start(work.one, id="r")
            await rests(flow, "r", work, count)
        await clock.advance(HOUR)
    flow = Flowlet(new_store())
    work.build(flow)
    async with flow:
        with anyio.fail_after(20):
            assert await flow.handle("r").result() == "a"
    assert work.log == ["a"] * 3


async def test_two_side_by_side_beside_each_other(flow: Flowlet, clock: Clock, work: Work) -> None:
    work.build(flow)
    async with flow:
        handle = await flow.start(work.two, id="r")
        for count in (2, 4):
            await rests(flow, "r", work, count)
            await clock.advance(HOUR)
        with anyio.fail_after(20):
            assert await handle.result() == ("a", "b")
    assert sorted(work.log) == ["a"] * 3 + ["b"] * 3


async def test_an_attempt_falls_due_while_a_step_beside_it_runs(flow: Flowlet, clock: Clock, work: Work) -> None:
    work.build(flow)
    go = anyio.Event()

    @step(retry=HOURLY)
    async def flaky() -> str:
        work.log.append("try")
        if len(work.log) < 3:
            raise OSError("not now")
        return "done"

    @step
    async def slow() -> str:
        await go.wait()
        return "slow"

    @flow.saga
    async def mixed() -> tuple[str, str]:
        return await gather(flaky(), slow())

    async with flow:
        handle = await flow.start(mixed, id="r")
        for count in (1, 2, 3):
            with anyio.fail_after(20):
                while len(work.log) < count:
                    await anyio.sleep(0.001)
            await anyio.sleep(0.02)
            assert len(work.log) == count
            assert await handle.status() == "running"
            await clock.advance(HOUR)
        go.set()
        with anyio.fail_after(20):
            assert await handle.result() == ("done", "slow")


async def test_the_last_attempt_is_the_last(flow: Flowlet, clock: Clock, work: Work) -> None:
    work.needed = 9
    work.build(flow)
    async with flow:
        handle = await flow.start(work.one, id="r")
        for count in (1, 2, 3):
            await rests(flow, "r", work, count)
            await clock.advance(HOUR)
        with anyio.fail_after(20), pytest.raises(OSError, match="not now"):
            await handle.result()
    assert work.log == ["a"] * 4


async def test_a_compensation(flow: Flowlet, clock: Clock, work: Work) -> None:
    work.build(flow)
    async with flow:
        handle = await flow.start(work.undone, id="r")
        for count in (1, 2, 4, 5):
            await rests(flow, "r", work, count)
            await clock.advance(HOUR)
        with anyio.fail_after(20), pytest.raises(ValueError, match="no"):
            await handle.result()
        assert await handle.status() == "compensated"
    assert work.log == ["a"] * 3 + ["no a"] * 3


async def test_cancelled_meanwhile(flow: Flowlet, clock: Clock, work: Work) -> None:
    work.build(flow)
    async with flow:
        handle = await flow.start(work.one, id="r")
        await rests(flow, "r", work, 1)
        await handle.cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await handle.result()
        await clock.advance(HOUR)
        await anyio.sleep(0.02)
    assert work.log == ["a"]
