"""What a store adds to the work that must be done anyway. Run it: ``python tests/benchmarks/bench_stores.py``.

Each line is a ratio of two things measured in turns in the same process, so that a noisy machine
disturbs both: flowlet's store, and what one would write by hand for the same rows.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from flowlet.runtime.copying import copy
from flowlet.store import New, Signal, Write
from flowlet.stores.memory import MemoryStore
from flowlet.stores.sqlite import SQLiteStore

RECORD = b"x" * 120
NEW = New("run", "bench")
Rounds = list[tuple[float, float]]


class ByHand:
    """The same rows with bare sqlite3: one transaction for each call of `commit`."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        for text in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE heads (n INTEGER PRIMARY KEY, id TEXT UNIQUE, version INT, status TEXT, updated REAL)",
            "CREATE TABLE records (n INT, seq INT, data BLOB, PRIMARY KEY (n, seq)) WITHOUT ROWID",
        ):
            self.connection.execute(text)
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    def create(self, count: int) -> None:
        rows = [(n, f"id-{n:06}", 0, "", 0.0) for n in range(count)]
        self.connection.execute("BEGIN")
        self.connection.executemany("INSERT INTO heads VALUES (?, ?, ?, ?, ?)", rows)
        self.connection.execute("COMMIT")

    def commit(self, steps: list[tuple[int, int]]) -> None:
        now = time.time()
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(
            "UPDATE heads SET version = ?, updated = ? WHERE id = ? AND version = ?",
            [(version + 1, now, f"id-{n:06}", version) for n, version in steps],
        )
        self.connection.executemany(
            "INSERT INTO records VALUES (?, ?, ?)", [(n, version + 1, RECORD) for n, version in steps]
        )
        self.connection.execute("COMMIT")

    async def append(self, n: int, version: int) -> None:
        """Commit with everything else that is appended in this turn of the loop."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((n, version, future))
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._commit_turn)
        await future

    def _commit_turn(self) -> None:
        waiting, self._waiting = self._waiting, []
        self.commit([(n, version) for n, version, _ in waiting])
        for _, _, future in waiting:
            future.set_result(None)


async def in_parallel(tasks: int, append: Callable[[int, int], Awaitable[None]], start: int, steps: int) -> float:
    """Return the seconds for each append when so many tasks make so many one after the other."""

    async def one(n: int) -> None:
        for version in range(start, start + steps):
            await append(n, version)

    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for n in range(tasks):
            group.start_soon(one, n)
    return (time.perf_counter() - began) / (tasks * steps)


async def durable(folder: Path, tasks: int, steps: int, rounds: int) -> Rounds:
    store, by_hand = SQLiteStore(folder / f"store-{tasks}.db"), ByHand(folder / f"hand-{tasks}.db")
    by_hand.create(tasks)
    for n in range(tasks):
        await store.append([Write(id=f"id-{n:06}", expect=0, create=NEW, records=[RECORD])])

    async def append(n: int, version: int) -> None:
        await store.append([Write(id=f"id-{n:06}", expect=version + 1, records=(RECORD,))])

    async def raw(n: int, version: int) -> None:
        by_hand.commit([(n, version)])

    results = []
    for start in range(0, rounds * steps, steps):
        hand = await in_parallel(tasks, raw if tasks == 1 else by_hand.append, start, steps)
        results.append((await in_parallel(tasks, append, start, steps), hand))
    print(f"    ({store.commits} commits, {store.inline_commits} of them in the loop's thread)")
    await store.close()
    by_hand.connection.close()
    return results


async def in_memory(rounds: int) -> Rounds:
    store, journal, versions = MemoryStore(), list[bytes](), {"id": 1}
    await store.append([Write(id="id", expect=0, create=NEW, records=[RECORD])])
    results, version = [], 0
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(20_000):
            version += 1
            await store.append((Write(id="id", expect=version, records=(RECORD,), status="s", state="t"),))
        middle = time.perf_counter()
        for _ in range(20_000):
            (Write(id="id", expect=version, records=(RECORD,), status="s", state="t"),)
            if versions["id"] == len(journal) + 1:
                journal.append(RECORD)
                versions["id"] += 1
                time.time()
        results.append(((middle - began) / 20_000, (time.perf_counter() - middle) / 20_000))
    return results


async def beside_a_busy_loop(folder: Path, turn: float) -> tuple[float, float]:
    """Return the median and the longest seconds of one append while the loop computes all the time."""
    store, waits = SQLiteStore(folder / f"busy-{turn}.db"), []
    await store.append([Write(id="id", expect=0, create=NEW, records=[RECORD])])
    stop = False

    async def spin() -> None:
        while not stop:
            until = time.perf_counter() + turn
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)

    task = asyncio.create_task(spin())
    for version in range(1, 101):
        began = time.perf_counter()
        # Work runs in the writer's thread in any case, which is the hard one.
        await store.append([Write(id="id", expect=version, records=(RECORD,))], work=lambda connection: [])
        waits.append(time.perf_counter() - began)
    stop = True
    await task
    await store.close()
    return statistics.median(waits), max(waits)


async def claims_among(folder: Path, finished: int, rounds: int) -> Rounds:
    """Return the seconds of a claim of ten due runs among so many finished ones, and of one among none."""
    stores = [SQLiteStore(folder / f"claim-{name}.db") for name in ("many", "none")]
    for start in range(0, finished, 1000):
        ids = range(start, min(start + 1000, finished))
        await stores[0].append(
            [Write(id=f"r{n:07}", expect=0, create=NEW, records=[RECORD], status="ok", close=True) for n in ids]
        )
    for store in stores:
        await store.append([Write(id=f"due{n}", expect=0, create=NEW, records=[RECORD], wake=0.0) for n in range(10)])
        await store.heartbeat("worker", 600)
    results = []
    for _ in range(rounds):
        took = []
        for store in stores:
            began = time.perf_counter()
            claims = await store.claim("worker", definitions=[("run", "bench", "1")])
            took.append(time.perf_counter() - began)
            assert len(claims.heads) == 10
            await store.release("worker", [head.id for head in claims.heads])
        results.append((took[0], took[1]))
    for store in stores:
        await store.close()
    return results


async def copied(folder: Path, count: int) -> Rounds:
    """Return the seconds for each run of ten records that is copied to another file and compared, and of its bytes."""
    first, second = SQLiteStore(folder / "from.db"), SQLiteStore(folder / "to.db")
    for start in range(0, count, 1000):
        ids = range(start, min(start + 1000, count))
        await first.append(
            [Write(id=f"r{n:07}", expect=0, create=NEW, records=[RECORD] * 10, status="ok", close=True) for n in ids]
        )
    began = time.perf_counter()
    report = await copy(first, second)
    middle = time.perf_counter()
    assert report.runs == report.copied == count
    source, target = sqlite3.connect(first.path), sqlite3.connect(folder / "backup.db")
    source.backup(target)
    end = time.perf_counter()
    for connection in (source, target):
        connection.close()
    for store in (first, second):
        await store.close()
    return [((middle - began) / count, (end - middle) / count)]


async def load_histories(folder: Path, count: int) -> Rounds:
    path = folder / "load.db"
    store = SQLiteStore(path)
    for start in range(0, count, 1000):
        ids = range(start, min(start + 1000, count))
        await store.append([Write(id=f"r{n:06}", expect=0, create=NEW, records=[RECORD] * 10) for n in ids])
    await store.append([Write(id="r000000", signals=[Signal("topic", b"payload")])])
    connection = sqlite3.connect(path, isolation_level=None)
    began = time.perf_counter()
    for n in range(count):
        await store.load(f"r{n:06}")
    middle = time.perf_counter()
    for n in range(count):
        row = connection.execute("SELECT * FROM heads WHERE id = ?", (f"r{n:06}",)).fetchone()
        connection.execute("SELECT data FROM records WHERE n = ? ORDER BY seq", (row[0],)).fetchall()
    results = [((middle - began) / count, (time.perf_counter() - middle) / count)]
    connection.close()
    await store.close()
    return results


def show(what: str, rounds: Rounds, limit: float | None = None) -> None:
    ours, theirs = (statistics.median(column) * 1e6 for column in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    target = f" (target {limit})" if limit else ""
    print(f"{what:44} {ours:9.2f} µs  by hand {theirs:9.2f} µs  ratio {ratio:5.2f}{target}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and fewer rows unless they are given")
    parser.add_argument("--dir", default=None, help="where to put the databases (a real disk)")
    parser.add_argument("--histories", type=int, default=10_000, help="how many are loaded")
    parser.add_argument(
        "--finished", type=int, default=None, help="runs among which is claimed (100,000; quick 10,000)"
    )
    parser.add_argument("--copied", type=int, default=None, help="runs that are copied (10,000; quick 1,000)")
    parser.add_argument("--only", choices=("appends", "many"), help="one half of it")
    options = parser.parse_args()
    rounds = 5 if options.quick else 21
    finished = options.finished or (10_000 if options.quick else 100_000)
    moved = options.copied or (1_000 if options.quick else 10_000)
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        print(f"sqlite {sqlite3.sqlite_version}, {os.cpu_count()} cpus")
        if options.only != "many":
            show_appends(folder, rounds)
        if options.only != "appends":
            histories = asyncio.run(load_histories(folder, options.histories))
            show(f"load one of {options.histories:,} histories of 10", histories)
            show(
                f"claim of 10 among {finished:,} finished runs", asyncio.run(claims_among(folder, finished, 4 * rounds))
            )
            print("    (by hand: among none)")
            show(f"copy and compare one of {moved:,} runs", asyncio.run(copied(folder, moved)))
            print("    (by hand: sqlite3's backup, which copies pages and compares nothing)")


def show_appends(folder: Path, rounds: int) -> None:
    show("append, memory", asyncio.run(in_memory(rounds)))
    show("durable append, 1 task", asyncio.run(durable(folder, 1, 200, rounds)), 1.5)
    show("durable append, 64 tasks", asyncio.run(durable(folder, 64, 30, rounds)), 1.2)
    for turn in (0.00005, 0.001):
        median, longest = asyncio.run(beside_a_busy_loop(folder, turn))
        text = f"writer's thread beside a loop busy {turn * 1e3:g} ms a turn"
        print(f"{text:44} p50 {median * 1e3:.2f} ms, longest {longest * 1e3:.2f} ms (target p50 15)", flush=True)


if __name__ == "__main__":
    main()
