"""Thousands of runs that sleep: they cost this process nothing, and end in the order of their times."""

from __future__ import annotations

import bisect
import gc
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from flowlet import Flowlet, Run, provided
from flowlet.runtime.runs import _MOST_LIVE
from flowlet.store import Claims, Store
from flowlet.stores.memory import MemoryStore
from flowlet.stores.sqlite import SQLiteStore
from flowlet.testing import Clock

pytestmark = pytest.mark.anyio

RUNS = 1000
DAY = 86400.0
STEPS = 5
"""The clock goes to the end in so many steps."""

MOST_BYTES = 200
"""That a run which sleeps may take of this process, where the store is elsewhere."""


@pytest.fixture(params=["memory", "sqlite"])
def clocked(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Clock], Store]:
    """Make stores that go by a clock."""
    if request.param == "memory":
        return lambda clock: MemoryStore(clock=clock)
    return lambda clock: SQLiteStore(tmp_path / "flow.db", clock=clock)


class Claiming:
    """Delegates to a store, and notes what was claimed, in that order."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.claimed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def claim(self, worker: str, /, **options: Any) -> Claims:
        claims = await self._inner.claim(worker, **options)
        self.claimed += [head.id for head in claims.heads]
        return claims


class Sleepers:
    """Runs that sleep, each until a time of its own; several have the same.

    Attributes:
        ended: their numbers, in the order in which they woke up.
        most_live: how many were executed here at once.
    """

    def __init__(self, store: Store, clock: Clock, count: int) -> None:
        self.store = Claiming(store)
        flow = self.flow = Flowlet(cast(Store, self.store), lease=1e9)
        self.clock, self.begin = clock, clock.time
        dice = random.Random(2)
        self.delays = [float(dice.randrange(10, int(30 * DAY), 600)) for _ in range(count)]
        self.ended: list[int] = []
        self.most_live = 0

        @flow.saga
        async def sleeper(number: int, run: Run = provided) -> int:
            await run.sleep(self.delays[number])
            self.ended.append(number)
            self.most_live = max(self.most_live, len(flow._open_runs.live))
            return number

        self.sleeper = sleeper

    async def start(self) -> None:
        """Start all of them, and wait until they have left."""
        for number in range(len(self.delays)):
            await self.flow.start(self.sleeper, number, id=f"s-{number}")
            if number % 100 == 0:
                await anyio.sleep(0)
        await self.settle()

    async def settle(self) -> None:
        while self.flow._open_runs.live:
            await anyio.sleep(0.002)

    def due(self, time: float) -> list[int]:
        """Return who has to have ended at a time, in the order of the times."""
        numbers = [n for n, delay in enumerate(self.delays) if self.begin + delay <= time]
        return sorted(numbers, key=self.delays.__getitem__)

    async def pass_to(self, time: float) -> None:
        """Move the clock, and wait until as many have ended as have to."""
        self.clock.time = time
        with anyio.fail_after(60):
            while len(self.ended) < len(self.due(time)):
                await anyio.sleep(0.002)
            await self.settle()

    def check_order(self) -> None:
        """They were taken up in the order of their times, and ended so: but for those under way at the same time."""
        taken = [self.delays[int(id.partition("-")[2])] for id in self.store.claimed]
        assert taken == sorted(taken)
        times = sorted(self.delays)
        for place, number in enumerate(self.ended):
            delay = self.delays[number]
            first, last = bisect.bisect_left(times, delay), bisect.bisect_right(times, delay) - 1
            assert first - self.most_live <= place <= last + self.most_live, f"{number} has ended out of order"


async def test_they_end_in_the_order_of_their_times(clocked: Callable[[Clock], Store]) -> None:
    clock = Clock()
    sleepers = Sleepers(clocked(clock), clock, RUNS)
    flow = sleepers.flow
    async with flow:
        await sleepers.start()
        assert len([r.id async for r in flow.runs(status="waiting")]) == RUNS
        for step in range(1, STEPS + 1):
            await sleepers.pass_to(sleepers.begin + step * 30 * DAY / STEPS)
            assert sorted(sleepers.ended) == sorted(sleepers.due(clock.time)), "others have ended than were due"
        assert len(sleepers.ended) == RUNS
        sleepers.check_order()
        assert sleepers.most_live <= _MOST_LIVE
        assert len([r.id async for r in flow.runs(status="completed")]) == RUNS


async def test_what_was_due_while_nobody_was_there_comes_bit_by_bit(clocked: Callable[[Clock], Store]) -> None:
    """All at once, to a process that has just begun: in the order of the times, and never more than some at once."""
    clock = Clock()
    sleepers = Sleepers(clocked(clock), clock, RUNS)
    flow = sleepers.flow
    async with flow:
        await sleepers.start()
    clock.time += 40 * DAY
    async with flow:
        await sleepers.pass_to(clock.time)
    assert sorted(sleepers.ended) == list(range(RUNS))
    sleepers.check_order()
    assert sleepers.most_live <= _MOST_LIVE


async def test_who_sleeps_costs_the_process_nothing(tmp_path: Path) -> None:
    """Neither memory, nor a task, nor an alarm: only the store knows of it."""
    clock = Clock()
    sleepers = Sleepers(SQLiteStore(tmp_path / "flow.db", clock=clock, synchronous="NORMAL"), clock, RUNS)
    flow = sleepers.flow
    async with flow:
        runs = flow._open_runs
        for number in range(200):  # what is kept once, whatever comes
            await flow.start(sleepers.sleeper, number, id=f"warm-{number}")
        await sleepers.settle()
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            await sleepers.start()
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (after - before) / RUNS < MOST_BYTES
        assert not runs.live
        with anyio.fail_after(10):  # what set the last ones aside is about to end
            while runs.tasks:
                await anyio.sleep(0.002)
        assert not runs._dozes._times
        assert not runs._alarms._times


async def test_an_earlier_time_is_not_behind_a_later_one(clocked: Callable[[Clock], Store]) -> None:
    """The worker looks again when a run leaves whose time comes before the one that it was waiting for."""
    clock = Clock()
    sleepers = Sleepers(clocked(clock), clock, 3)
    flow = sleepers.flow
    sleepers.delays = [30 * DAY, 20 * DAY, 10 * DAY]
    async with flow:
        await sleepers.start()
        for _ in range(3):
            await sleepers.pass_to(clock.time + 10 * DAY)
    assert sleepers.ended == [2, 1, 0]


async def test_in_real_time(new_store: Callable[[], Store]) -> None:
    """Whoever is to be there at a time needs neither a heartbeat nor a change in the store to be so."""
    flow = Flowlet(new_store(), lease=3600)
    woke: list[int] = []

    @flow.saga
    async def sleeper(number: int, run: Run = provided) -> float:
        began = run.now()
        await run.sleep(1.2 + 0.1 * number)
        woke.append(number)
        return (run.now() - began).total_seconds()

    async with flow:
        handles = [await flow.start(sleeper, number) for number in (2, 0, 1)]
        with anyio.fail_after(10):
            slept = [await handle.result() for handle in handles]
    assert woke == [0, 1, 2]
    assert all(0 <= seconds - 1.2 - 0.1 * number < 1 for number, seconds in zip((2, 0, 1), slept, strict=True)), slept
