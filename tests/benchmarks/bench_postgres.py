"""What the PostgreSQL store costs beside raw asyncpg. Run it: ``python tests/benchmarks/bench_postgres.py [URL]``.

Each line is a ratio of two things measured in turns in the same process: flowlet's store, and what one would write
by hand for the same rows, each step a transaction of its own: one connection for one task, a pool of 16 for 64.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TypeAlias

import asyncpg

from flowlet import Flowlet, step
from flowlet.store import New, Write
from flowlet.stores.postgres import PostgresStore

RECORD = b"x" * 120
NEW = New("run", "bench")
Rounds = list[tuple[float, float]]

TABLES = """
    CREATE SCHEMA IF NOT EXISTS byhand;
    DROP TABLE IF EXISTS byhand.heads, byhand.records;
    CREATE TABLE byhand.heads (id text PRIMARY KEY, version bigint NOT NULL, status text, updated float8);
    CREATE TABLE byhand.records (id text, seq bigint, data bytea NOT NULL, PRIMARY KEY (id, seq));
"""


class Alone:
    """One connection that is there for whoever asks, without a pool's resetting it after each use."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    def acquire(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        return nullcontext(self.connection)


Pool: TypeAlias = "Alone | asyncpg.Pool"


class ByHand:
    """The same rows with asyncpg: one transaction for each step."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def create(self, id: str) -> None:
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute("INSERT INTO byhand.heads VALUES ($1, 1, '', $2)", id, time.time())
            await connection.execute("INSERT INTO byhand.records VALUES ($1, 1, $2)", id, RECORD)

    async def append(self, id: str, version: int) -> None:
        async with self.pool.acquire() as connection, connection.transaction():
            done = await connection.execute(
                "UPDATE byhand.heads SET version = version + 1, updated = $3 WHERE id = $1 AND version = $2",
                id,
                version,
                time.time(),
            )
            assert done == "UPDATE 1"
            await connection.execute("INSERT INTO byhand.records VALUES ($1, $2, $3)", id, version + 1, RECORD)

    async def saga(self, id: str) -> None:
        """Five steps, each durable before the next."""
        await self.create(id)
        for version in range(1, 5):
            await self.append(id, version)


@step
async def one(n: int) -> int:
    return n + 1


async def saga(n: int) -> int:
    n = await one(n)
    n = await one(n)
    n = await one(n)
    n = await one(n)
    return await one(n)


async def in_parallel(tasks: int, times: int, call: Callable[[int, int], Awaitable[object]]) -> float:
    """Return the seconds for each call when so many tasks make so many one after the other."""

    async def work(task: int) -> None:
        for n in range(times):
            await call(task, n)

    began = time.perf_counter()
    await asyncio.gather(*(work(task) for task in range(tasks)))
    return (time.perf_counter() - began) / (tasks * times)


async def appends(url: str, pool: Pool, tasks: int, times: int, rounds: int) -> Rounds:
    store, by_hand, prefix = PostgresStore(url), ByHand(pool), secrets.token_hex(4)
    ids = [f"{prefix}-{task}" for task in range(tasks)]
    for id in ids:
        await by_hand.create(id)
        await store.append([Write(id=id, expect=0, create=NEW, records=[RECORD])])
    results: Rounds = []
    for start in range(1, rounds * times, times):

        async def raw(task: int, n: int, start: int = start) -> None:
            await by_hand.append(ids[task], start + n)

        async def ours(task: int, n: int, start: int = start) -> None:
            await store.append([Write(id=ids[task], expect=start + n, records=(RECORD,))])

        hand = await in_parallel(tasks, times, raw)
        results.append((await in_parallel(tasks, times, ours), hand))
    print(f"    ({store.statements} statements for {rounds * times * tasks + tasks} appends)")
    await store.close()
    return results


async def sagas(url: str, pool: Pool, tasks: int, times: int, rounds: int) -> Rounds:
    by_hand, numbers, prefix = ByHand(pool), itertools.count(), secrets.token_hex(4)
    flow = Flowlet(PostgresStore(url))
    durable = flow.saga(saga)
    results: Rounds = []
    async with flow:

        async def raw(task: int, n: int) -> None:
            await by_hand.saga(f"{prefix}-{next(numbers)}")

        async def ours(task: int, n: int) -> None:
            assert await durable(n) == n + 5

        for _ in range(rounds):
            hand = await in_parallel(tasks, times, raw)
            results.append((await in_parallel(tasks, times, ours), hand))
    return results


async def claim_among(url: str, finished: int) -> float:
    store = PostgresStore(url)
    for start in range(0, finished, 1000):
        ids = range(start, start + 1000)
        await store.append(
            [Write(id=f"r{n:07}", expect=0, create=NEW, records=[RECORD], status="ok", close=True) for n in ids]
        )
    await store.append([Write(id=f"due{n}", expect=0, create=NEW, records=[RECORD], wake=0.0) for n in range(10)])
    await store.heartbeat("worker", 60)
    began = time.perf_counter()
    claims = await store.claim("worker", definitions=[("run", "bench", "1")])
    seconds = time.perf_counter() - began
    assert len(claims.heads) == 10
    await store.close()
    return seconds


def show(what: str, rounds: Rounds, limit: float) -> None:
    ours, theirs = (statistics.median(column) * 1e6 for column in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    print(f"{what:32} {ours:9.1f} µs  by hand {theirs:9.1f} µs  ratio {ratio:5.2f} (target {limit})", flush=True)


async def main(url: str, rounds: int, finished: int) -> None:
    schema = f"bench_{secrets.token_hex(4)}"
    connection, sixteen = await asyncpg.connect(url), await asyncpg.create_pool(url, min_size=16, max_size=16)
    one_by_one = Alone(connection)
    await connection.execute(TABLES)
    there = f"{url}?schema={schema}"
    try:
        show("append, 1 task", await appends(there, one_by_one, 1, 200, rounds), 1.4)
        show("append, 64 tasks", await appends(there, sixteen, 64, 20, rounds), 0.2)
        show("saga of 5 steps, 1 task", await sagas(there, one_by_one, 1, 50, rounds), 1.4)
        show("saga of 5 steps, 64 tasks", await sagas(there, sixteen, 64, 10, rounds), 0.2)
        seconds = await claim_among(there, finished)
        print(f"{f'claim of 10 among {finished:,} ended':32} {seconds * 1e3:9.2f} ms")
    finally:
        await connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE; DROP SCHEMA byhand CASCADE")
        await connection.close()
        await sixteen.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("FLOWLET_TEST_POSTGRES", "postgresql://postgres@127.0.0.1/postgres")
    parser.add_argument("url", nargs="?", default=default, help="of a database to make two schemas in, without options")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    asyncio.run(main(options.url, 5 if options.quick else 15, 10_000 if options.quick else 100_000))
