"""What a run adds to the work that must be done anyway. Run it: ``python tests/benchmarks/bench_runs.py``.

Each line is a ratio of two things measured in turns in the same process, so that a noisy machine
disturbs both: a saga or pipeline of flowlet, and what one would write by hand for the same work.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

from flowlet import Flowlet, Registry, compensate, step

registry = Registry()
RECORD = b"x" * 60
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


@step
async def first(n: int) -> int:
    return n


@step
async def second(n: int) -> int:
    return n


@step
async def third(n: int) -> int:
    return n


@step
async def fourth(n: int) -> int:
    return n


@step
async def fifth(n: int) -> int:
    if n < 0:
        raise ValueError(n)
    return n


@compensate(first)
async def undo_first(n: int) -> None: ...


@compensate(second)
async def undo_second(n: int) -> None: ...


@compensate(third)
async def undo_third(n: int) -> None: ...


@compensate(fourth)
async def undo_fourth(n: int) -> None: ...


@registry.saga
async def saga(n: int) -> int:
    await first(n)
    await second(n)
    await third(n)
    await fourth(n)
    return await fifth(n)


async def by_hand(n: int) -> int:
    """The same steps and compensations, without a journal: outside of a run, a step is its function."""
    undo: list[Callable[[int], Awaitable[None]]] = []
    try:
        await plain(n)
        undo.append(nothing)
        await plain(n)
        undo.append(nothing)
        await plain(n)
        undo.append(nothing)
        await plain(n)
        undo.append(nothing)
        return await plain_last(n)
    except ValueError:
        for compensation in reversed(undo):
            await compensation(n)
        raise


async def plain(n: int) -> int:
    return n


async def plain_last(n: int) -> int:
    if n < 0:
        raise ValueError(n)
    return n


async def nothing(n: int) -> None: ...


@step
async def alpha(n: int) -> int:
    return n


@step
async def beta(alpha: int) -> int:
    return alpha


@step
async def gamma(beta: int) -> int:
    return beta


@step
async def delta(gamma: int) -> int:
    return gamma


@step
async def omega(delta: int) -> int:
    return delta


chain = registry.pipeline("chain", alpha, beta, gamma, delta, omega)


async def chain_by_hand(n: int) -> int:
    return await plain(await plain(await plain(await plain(await plain(n)))))


async def seconds_each(call: Callable[[int], Awaitable[Any]], n: int, times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        try:  # noqa: SIM105 - a context manager would be measured, too
            await call(n)
        except ValueError:
            pass
    return (time.perf_counter() - began) / times


async def compare(
    name: str, ours: Callable[[int], Awaitable[Any]], theirs: Callable[[int], Awaitable[Any]], n: int, times: int
) -> None:
    rounds = []
    for _ in range(9):
        rounds.append((await seconds_each(ours, n, times), await seconds_each(theirs, n, times * 5)))
    tell(name, rounds)


def tell(name: str, rounds: list[tuple[float, float]]) -> None:
    ratio = statistics.median(ours / theirs for ours, theirs in rounds)
    ours, theirs = (statistics.median(column) * 1e6 for column in zip(*rounds, strict=True))
    print(f"{name:44} {ours:10.2f} µs {theirs:10.2f} µs by hand {ratio:8.2f}x")


class ByHand:
    """Rows of five steps with bare sqlite3: a commit for each, or one for all that a loop turn brings."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute("CREATE TABLE records (n INTEGER PRIMARY KEY, data BLOB)")
        self._waiting: list[asyncio.Future[None]] = []

    async def alone(self, n: int) -> None:
        for _ in range(5):
            self.commit(1)

    async def together(self, n: int) -> None:
        for _ in range(5):
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            if len(self._waiting) == 1:
                asyncio.get_running_loop().call_soon(self._commit_turn)
            await future

    def _commit_turn(self) -> None:
        waiting, self._waiting = self._waiting, []
        self.commit(len(waiting))
        for future in waiting:
            future.set_result(None)

    def commit(self, rows: int) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany("INSERT INTO records (data) VALUES (?)", [(RECORD,)] * rows)
        self.connection.execute("COMMIT")


async def in_parallel(call: Callable[[int], Awaitable[Any]], tasks: int, times: int) -> float:
    async def one() -> None:
        for _ in range(times):
            await call(1)

    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(one)
    return (time.perf_counter() - began) / tasks / times


async def measure(folder: Path, times: int) -> None:
    flow = Flowlet(registry=registry)
    async with flow:
        await compare("saga of 5 steps, memory", saga, by_hand, 1, times)
        await compare("saga failing at the last, memory", saga, by_hand, -1, times)
        await compare("pipeline of 5 steps, memory", chain, chain_by_hand, 1, times)
    del flow  # a direct call wants one Flowlet
    flow = Flowlet(f"sqlite:///{folder}/ours.db", registry=registry)
    hand = ByHand(folder / "theirs.db")
    async with flow:
        await compare("saga of 5 steps, SQLite FULL, 1 task", saga, hand.alone, 1, max(10, times // 20))
        rounds = []
        for _ in range(5):
            rounds.append((await in_parallel(saga, 64, 20), await in_parallel(hand.together, 64, 20)))
        tell("the same, 64 tasks", rounds)
    hand.connection.close()


def measure_import() -> None:
    def seconds(code: str) -> float:
        timed = f"import time; a = time.perf_counter(); {code}; print(time.perf_counter() - a)"
        # With compiled files, as in any installation, whatever this process was told about them.
        found = subprocess.run(
            [sys.executable, "-c", timed], capture_output=True, text=True, check=True, env=ENVIRONMENT
        )
        return float(found.stdout)

    seconds("import flowlet")  # compiles
    rounds = [(seconds("import flowlet"), seconds("import anyio, asyncio, msgspec, sqlite3")) for _ in range(9)]
    tell("import (by hand: anyio, asyncio, msgspec, sqlite3)", rounds)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--times", type=int, default=1000, help="calls in each round (default: %(default)s)")
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(measure, Path(folder), arguments.parse_args().times)
    measure_import()


if __name__ == "__main__":
    main()
