"""The same work in flowlet and in other libraries. Run it: ``python tests/benchmarks/bench_peers.py``.

What is compared with is not a dependency: ``pip install transitions python-statemachine dbos``; what is not installed
is left out. Each line is the best of several rounds, in which all take turns, so that a noisy machine disturbs all.

The machine: one async guard, a counter, an async enter hook, between two states, nothing stored. The durable run: three
async steps that return their argument plus one, input, steps and result recorded in a SQLite file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flowlet import Flowlet, guard, state, step, transition

EVENTS, RUNS, ROUNDS = 2_000, 50, 7
Work = Callable[[int], Awaitable[None]]


# ---------------------------------------------------------------- machines
def flowlet_machine() -> Work:
    flow = Flowlet()

    @flow.machine
    class Lamp:
        power: int = 1
        switched: int = 0

        @state(initial=True)
        class Off: ...

        @state
        class On: ...

        @guard
        async def can_switch(self) -> bool:
            return self.power > 0

        @transition(Off, On)
        @transition(On, Off)
        async def switch(self) -> None:
            self.switched += 1

        async def on_enter_on(self) -> None: ...
        async def on_enter_off(self) -> None: ...

    lamp = Lamp()

    async def work(count: int) -> None:
        before = lamp.switched
        for _ in range(count):
            await lamp.switch()
        if lamp.switched != before + count:
            raise AssertionError

    return work


def transitions_machine() -> Work:
    from transitions.extensions.asyncio import AsyncMachine

    class Lamp:
        switch: Any
        power = 1
        switched = 0

        async def can_switch(self) -> bool:
            return self.power > 0

        async def count(self) -> None:
            self.switched += 1

        async def on_enter_on(self) -> None: ...
        async def on_enter_off(self) -> None: ...

    lamp = Lamp()
    machine = AsyncMachine(lamp, states=["off", "on"], initial="off")
    for source, target in (("off", "on"), ("on", "off")):
        machine.add_transition("switch", source, target, conditions="can_switch", before="count")

    async def work(count: int) -> None:
        before = lamp.switched
        for _ in range(count):
            await lamp.switch()
        if lamp.switched != before + count:
            raise AssertionError

    return work


def python_statemachine() -> Work:
    from statemachine import State, StateMachine

    class Lamp(StateMachine):
        off = State(initial=True)
        on = State()
        switch: Any = off.to(on, cond="can_switch", on="count") | on.to(off, cond="can_switch", on="count")
        power = 1
        switched = 0

        async def can_switch(self) -> bool:
            return self.power > 0

        async def count(self) -> None:
            self.switched += 1

        async def on_enter_on(self) -> None: ...
        async def on_enter_off(self) -> None: ...

    made: list[Any] = []

    async def work(count: int) -> None:
        if not made:
            made.append(Lamp())
            await made[0].activate_initial_state()
        lamp = made[0]
        before = lamp.switched
        for _ in range(count):
            await lamp.switch()
        if lamp.switched != before + count:
            raise AssertionError

    return work


# ---------------------------------------------------------------- durable runs
@step
async def first(n: int) -> int:
    return n + 1


@step
async def second(first: int) -> int:
    return first + 1


@step
async def third(second: int) -> int:
    return second + 1


def flowlet_runs(flow: Flowlet) -> Work:
    @flow.saga(name="bench")
    async def bench(n: int) -> int:
        return await third(await second(await first(n)))

    async def work(count: int) -> None:
        for n in range(count):
            if await bench(n) != n + 3:
                raise AssertionError

    return work


def dbos_runs(url: str) -> Work:
    from dbos import DBOS

    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR"})

    @DBOS.step()
    async def one(n: int) -> int:
        return n + 1

    @DBOS.workflow()
    async def bench(n: int) -> int:
        return await one(await one(await one(n)))

    DBOS.launch()

    async def work(count: int) -> None:
        for n in range(count):
            if await bench(n) != n + 3:
                raise AssertionError

    return work


# ---------------------------------------------------------------- measuring
def installed(ways: dict[str, tuple[str, Callable[[], Work]]]) -> dict[str, Work]:
    found = dict[str, Work]()
    for name, (needed, make) in ways.items():
        try:
            found[f"{name} {version(needed)}" if needed else name] = make()
        except ModuleNotFoundError:
            print(f"{name}: not installed")
    return found


async def compare(title: str, ways: dict[str, Work], count: int) -> None:
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(ROUNDS + 1):  # the first one warms up
        for name, work in ways.items():
            began = time.perf_counter()
            await work(count)
            if turn:
                best[name] = min(best[name], (time.perf_counter() - began) / count)
    print(title)
    ours = next(iter(best.values()))
    for name, seconds in best.items():
        print(f"    {name:44} {seconds * 1e6:10.1f} µs {seconds / ours:8.2f}x")


async def main() -> None:
    logging.disable(logging.WARNING)
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, asyncio")
    machines = {
        "flowlet": ("", flowlet_machine),
        "transitions": ("transitions", transitions_machine),
        "python-statemachine": ("python-statemachine", python_statemachine),
    }
    found = installed(machines)
    await compare("one event of a machine in memory", found, EVENTS)
    with tempfile.TemporaryDirectory() as place:
        full = Flowlet(f"sqlite:///{Path(place, 'full.db')}")
        process = Flowlet(f"sqlite:///{Path(place, 'process.db')}?durability=process")
        async with full, process:
            runs = {"flowlet": flowlet_runs(full), "flowlet ?durability=process": flowlet_runs(process)}
            others = {"DBOS": ("dbos", lambda: dbos_runs(f"sqlite:///{Path(place, 'dbos.db')}"))}
            runs |= installed(others)
            await compare("a run of three steps on SQLite", runs, RUNS)
        if len(runs) > 2:
            from dbos import DBOS

            DBOS.destroy()


if __name__ == "__main__":
    asyncio.run(main())
