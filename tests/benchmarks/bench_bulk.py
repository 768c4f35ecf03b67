"""What a bulk operation adds to each item. Run it: ``python tests/benchmarks/bench_bulk.py``.

Each line is measured in turns with workers over one iterator, written by hand without counting, timing, errors or
outcomes; so that a noisy machine disturbs both. aiometer is compared with if it is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from flowlet import Flowlet

CONCURRENCY = 64

Fn = Callable[[int], Awaitable[Any]]
Way = Callable[[Fn, Iterable[int]], Awaitable[Any]]


async def no_op(n: int) -> int:
    return n


async def short_sleep(n: int) -> int:
    await anyio.sleep(0.001)
    return n


# ---------------------------------------------------------------- by hand
async def bare_workers(fn: Fn, items: Iterable[int]) -> None:
    shared = iter(items)

    async def work() -> None:
        for item in shared:
            await fn(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(work())


async def with_outcomes(fn: Fn, items: Iterable[int]) -> list[tuple[int, Any, Exception | None, float]]:
    """Workers that keep what became of each item, and how long it took."""
    shared, found = enumerate(items), list[tuple[int, Any, Exception | None, float]]()

    async def work() -> None:
        for index, item in shared:
            began, value, problem = time.perf_counter(), None, None
            try:
                value = await fn(item)
            except Exception as error:
                problem = error
            found.append((index, value, problem, time.perf_counter() - began))

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(work())
    return found


async def task_for_each(fn: Fn, items: Iterable[int]) -> None:
    """What one writes first: a task for each item, and a limiter."""
    limiter = anyio.CapacityLimiter(CONCURRENCY)

    async def one(item: int) -> None:
        async with limiter:
            await fn(item)

    async with anyio.create_task_group() as group:
        for item in items:
            group.start_soon(one, item)


async def with_aiometer(fn: Fn, items: Iterable[int]) -> None:
    import aiometer  # type: ignore[import-not-found,unused-ignore]

    async with aiometer.amap(fn, list(items), max_at_once=CONCURRENCY) as results:
        async for _ in results:
            pass


# ---------------------------------------------------------------- flowlet
flow = Flowlet()


async def awaited(fn: Fn, items: Iterable[int]) -> None:
    report = await flow.bulk(fn, items, concurrency=CONCURRENCY)
    assert report.failed == 0


async def awaited_with_options(fn: Fn, items: Iterable[int]) -> None:
    await flow.bulk(fn, items, concurrency=CONCURRENCY, retry=3, progress=lambda progress: None)


async def iterated(fn: Fn, items: Iterable[int]) -> None:
    async for _ in flow.bulk(fn, items, concurrency=CONCURRENCY):
        pass


async def pulled_async(fn: Fn, items: Iterable[int]) -> None:
    async def stream() -> AsyncIterator[int]:
        for item in items:
            yield item

    await flow.bulk(fn, stream(), concurrency=CONCURRENCY)


async def in_lists(fn: Fn, items: Iterable[int]) -> None:
    async def do_list(numbers: list[int]) -> None:
        for number in numbers:
            await fn(number)

    await flow.bulk(do_list, items, batch=True, concurrency=CONCURRENCY)


# ---------------------------------------------------------------- measuring
async def seconds_each(way: Way, fn: Fn, count: int) -> float:
    began = time.perf_counter()
    await way(fn, range(count))
    return (time.perf_counter() - began) / count


async def compare(name: str, ours: Way, theirs: Way, fn: Fn, count: int, rounds: int = 5) -> None:
    both = [(await seconds_each(ours, fn, count), await seconds_each(theirs, fn, count)) for _ in range(rounds)]
    ratio = statistics.median(a / b for a, b in both)
    mine, hand = (statistics.median(column) * 1e6 for column in zip(*both, strict=True))
    print(f"{name:52} {mine:9.3f} µs {hand:9.3f} µs by hand {ratio:8.2f}x")


async def measure(count: int) -> None:
    print(f"no-op items, {CONCURRENCY} at once, per item")
    await compare("  await flow.bulk(...)", awaited, bare_workers, no_op, count)
    await compare("  the same, beside workers that keep outcomes", awaited, with_outcomes, no_op, count)
    await compare("  with retry= and progress=", awaited_with_options, bare_workers, no_op, count // 4)
    await compare("  lists of 100 (batch=True)", in_lists, bare_workers, no_op, count // 4)
    await compare("  async for outcome in flow.bulk(...)", iterated, bare_workers, no_op, count // 10)
    await compare("  items from an async generator", pulled_async, bare_workers, no_op, count // 10)
    await compare("  (anyio: a task for each item, a limiter)", task_for_each, bare_workers, no_op, count // 10)
    print(f"items that sleep for 1 ms, {CONCURRENCY} at once, per item (ideal: {1000 / CONCURRENCY:.1f} µs)")
    await compare("  await flow.bulk(...)", awaited, bare_workers, short_sleep, 20_000, 3)
    await compare("  async for outcome in flow.bulk(...)", iterated, bare_workers, short_sleep, 20_000, 3)
    await compare("  (anyio: a task for each item, a limiter)", task_for_each, bare_workers, short_sleep, 20_000, 3)
    try:
        import aiometer  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        print("  (aiometer is not installed)")
    else:
        await compare("  (aiometer.amap), no-op", with_aiometer, bare_workers, no_op, 10_000, 3)
        await compare("  (aiometer.amap), 1 ms", with_aiometer, bare_workers, short_sleep, 10_000, 3)


async def measure_memory(count: int) -> None:
    def endless() -> Iterator[int]:
        yield from range(count)

    tracemalloc.start()
    await flow.bulk(no_op, endless(), concurrency=CONCURRENCY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"memory at its peak, {count:,} items: {peak / 1024:.0f} KiB")


class ByHand:
    """Rows of outcomes with bare sqlite3, a hundred in a commit."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute("CREATE TABLE outcomes (n INTEGER PRIMARY KEY, data BLOB)")
        self._waiting: list[bytes] = []

    async def bulk(self, fn: Fn, items: Iterable[int]) -> None:
        shared = iter(items)

        async def work() -> None:
            for item in shared:
                self._waiting.append(str(await fn(item)).encode())
                if len(self._waiting) >= 100:
                    self.commit()

        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(work())
        self.commit()

    def commit(self) -> None:
        rows, self._waiting = self._waiting, []
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany("INSERT INTO outcomes (data) VALUES (?)", [(row,) for row in rows])
        self.connection.execute("COMMIT")


async def durable(flow: Flowlet, fn: Fn, items: Iterable[int]) -> None:
    report = await flow.bulk(fn, items, concurrency=CONCURRENCY, id=f"bulk-{time.perf_counter_ns()}")
    assert report.failed == 0


async def measure_durable(folder: Path, count: int) -> None:
    hand = ByHand(folder / "theirs.db")
    print("with an id, per item, beside rows of bare sqlite3 (a hundred in a commit)")
    async with Flowlet() as memory:
        await compare("  memory, no-op", partial(durable, memory), hand.bulk, no_op, count)
    async with Flowlet(f"sqlite:///{folder}/ours.db") as sqlite:
        await compare("  SQLite FULL, no-op", partial(durable, sqlite), hand.bulk, no_op, count)
        await compare("  SQLite FULL, 1 ms", partial(durable, sqlite), hand.bulk, short_sleep, count // 2, 3)

        async def again(fn: Fn, items: Iterable[int]) -> None:
            await sqlite.bulk(fn, items, id="once")

        await again(no_op, range(count))
        await compare("  SQLite FULL, called again when it is completed", again, hand.bulk, no_op, count, 3)
    hand.connection.close()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--count", type=int, default=300_000, help="no-op items in a round (default: %(default)s)")
    arguments.add_argument("--many", type=int, default=1_000_000, help="items for memory (default: %(default)s)")
    count = arguments.parse_args().count
    anyio.run(measure, count)
    anyio.run(measure_memory, arguments.parse_args().many)
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(measure_durable, Path(folder), max(1000, count // 30))


if __name__ == "__main__":
    main()
