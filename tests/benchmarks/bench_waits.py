"""What runs that wait cost, in time and in memory. Run it: ``python tests/benchmarks/bench_waits.py``.

A hundred thousand runs begin to sleep for as many different times of a clock that is moved by hand, then the clock
goes on in steps until the last one has ended. Counted are the seconds for one run to begin and leave, and for one to be
taken up and end; the memory of the process before, while nothing but the store knows of them, and at its most; how many
were executed here at once; and whether those of one step ended in the order of their times.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from flowlet import Flowlet, Run, provided
from flowlet.store import Store
from flowlet.stores.memory import MemoryStore
from flowlet.stores.sqlite import SQLiteStore
from flowlet.testing import Clock

STEPS = 20
"""The clock goes to the end in so many steps."""

SPAN = 30 * 86400.0
"""Seconds in which all of them fall due."""

TOGETHER = 200
"""Tasks that start runs."""


def resident() -> float:
    """Return the MiB of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Sleepers:
    """Runs that sleep, by number, each until a time of its own."""

    def __init__(self, store: Store, clock: Clock, count: int) -> None:
        self.clock = clock
        self.flow = Flowlet(store)
        self.ended: list[int] = []
        self.most_live = 0
        self.most_memory = 0.0
        self.apart = 0
        dice = random.Random(7)
        self.delays = [dice.uniform(10.0, SPAN) for _ in range(count)]
        self.begin = clock.time

        @self.flow.saga
        async def sleeper(number: int, run: Run = provided) -> None:
            self._look()
            await run.sleep(self.delays[number])
            self._look()
            self.ended.append(number)

        self.sleeper = sleeper

    async def start(self) -> None:
        """Start all of them, and wait until nobody here knows of one."""
        left = iter(range(len(self.delays)))

        async def start_some() -> None:
            for number in left:
                await self.flow.start(self.sleeper, number)

        async with anyio.create_task_group() as group:
            for _ in range(TOGETHER):
                group.start_soon(start_some)
        await self._settle(0)

    async def fire(self) -> list[float]:
        """Let the time pass in steps; return the seconds that each took for a run."""
        took: list[float] = []
        ranks = sorted(range(len(self.delays)), key=self.delays.__getitem__)
        for step in range(1, STEPS + 1):
            before = len(self.ended)
            self.clock.time = self.begin + step * (SPAN + 1) / STEPS
            due = [n for n in ranks[before:] if self.begin + self.delays[n] <= self.clock.time - 1e-6]
            began = time.perf_counter()
            await self._settle(before + len(due))
            took.append((time.perf_counter() - began) / max(1, len(due)))
            assert sorted(self.ended[before:]) == sorted(due), "others ended than were due"
            self._check_order(self.ended[before:], due)
        return took

    def _check_order(self, ended: list[int], due: list[int]) -> None:
        """Hold the order of a step's ends against their times: as far as those go that were under way at once."""
        rank = {number: place for place, number in enumerate(due)}
        apart = max((abs(place - rank[number]) for place, number in enumerate(ended)), default=0)
        self.apart = max(self.apart, apart)

    async def _settle(self, count: int) -> None:
        """Wait until so many have ended, and nobody here knows of another one."""
        while len(self.ended) < count or self.flow._open_runs.live:
            self.most_memory = max(self.most_memory, resident())
            await anyio.sleep(0.005)

    def _look(self) -> None:
        self.most_live = max(self.most_live, len(self.flow._open_runs.live))


async def measure(store: Store, clock: Clock, count: int) -> None:
    gc.collect()
    empty = resident()
    sleepers = Sleepers(store, clock, count)
    async with sleepers.flow:
        began = time.perf_counter()
        await sleepers.start()
        parked = time.perf_counter() - began
        most_parking, sleepers.most_live = sleepers.most_live, 0
        gc.collect()
        asleep = resident()
        peak_parking, sleepers.most_memory = sleepers.most_memory, 0.0
        began = time.perf_counter()
        took = await sleepers.fire()
        fired = time.perf_counter() - began
        gc.collect()
        after = resident()
    assert sorted(sleepers.ended) == list(range(count))
    print(f"  to begin and leave   {parked:8.1f} s   {parked / count * 1e6:8.0f} us a run, {most_parking} at once")
    print(f"  to be taken up, end  {fired:8.1f} s   {fired / count * 1e6:8.0f} us a run, {sleepers.most_live} at once")
    print(f"    of one step        {min(took) * 1e6:8.0f} .. {max(took) * 1e6:.0f} us a run")
    print(f"  ended so many places from where its time was, at most: {sleepers.apart}")
    print(
        f"  MiB: {empty:.1f} empty, {peak_parking:.1f} while they begin, {asleep:.1f} asleep, "
        f"{sleepers.most_memory:.1f} while they end, {after:.1f} after"
    )
    print(f"  bytes a sleeping run {(asleep - empty) * 2**20 / count:8.0f}")


async def on_sqlite(count: int) -> None:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        await measure(SQLiteStore(Path(folder) / "waits.db", clock=clock, synchronous="NORMAL"), clock, count)


async def on_memory(count: int) -> None:
    clock = Clock()
    await measure(MemoryStore(clock=clock), clock, count)


STORES: dict[str, Callable[[int], Awaitable[None]]] = {"sqlite": on_sqlite, "memory": on_memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--store", choices=sorted(STORES), default="sqlite")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    options = parser.parse_args()
    print(f"{options.runs:,} runs that sleep, {options.store} store, {options.backend}")
    anyio.run(STORES[options.store], options.runs, backend=options.backend)
    print(f"  at its most the process had {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f} MiB")


if __name__ == "__main__":
    main()
