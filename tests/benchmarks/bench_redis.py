"""What the Redis store costs beside redis-py. Run it: ``python tests/benchmarks/bench_redis.py``.

Each line is a ratio of two things measured in turns in the same process, on a server of its own that brings
each write to its disk: flowlet's store, and what one would write by hand for the same keys, a script that
compares the version, appends and counts. By hand it goes one call a step for one task, and for 64 tasks in two ways:
one call each over a pool of connections, and all calls of a turn in one pipeline.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import redis.asyncio

sys.path.insert(0, str(Path(__file__).parents[1] / "stores"))

from bench_stores import NEW, RECORD, Rounds, in_parallel, show
from redis_server import DURABLE, Server

from flowlet import Flowlet, step
from flowlet.store import Write
from flowlet.stores.redis import RedisStore

COMPARE_AND_APPEND = """
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[1] then return 0 end
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[1], 'version', ARGV[1] + 1, 'updated', ARGV[3])
return 1
"""


class ByHand:
    """The same records with bare redis-py."""

    def __init__(self, url: str) -> None:
        self.client = redis.asyncio.Redis.from_url(url)
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._flushing: set[asyncio.Task[None]] = set()

    async def create(self, count: int) -> None:
        self._script = await self.client.script_load(COMPARE_AND_APPEND)
        for n in range(count):
            await self.client.hset(f"hand:{n}", "version", 0)

    async def alone(self, n: int, version: int) -> None:
        await self.client.evalsha(self._script, 2, f"hand:{n}", f"records:{n}", version, RECORD, time.time())

    async def together(self, n: int, version: int) -> None:
        """Go in one pipeline with everything else that is appended in this turn of the loop."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting.append((n, version, future))
        if len(self._waiting) == 1:
            loop.call_soon(lambda: self._flushing.add(loop.create_task(self._flush())))
        await future

    async def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        pipeline = self.client.pipeline(transaction=False)
        for n, version, _ in waiting:
            pipeline.evalsha(self._script, 2, f"hand:{n}", f"records:{n}", version, RECORD, time.time())
        await pipeline.execute()
        for _, _, future in waiting:
            future.set_result(None)


async def durable(server: Server, tasks: int, steps: int, rounds: int, by: str) -> Rounds:
    """Return the seconds of an append, ours and by hand."""
    store, hand = RedisStore(f"{server.url}?prefix=b{tasks}{by}&durability=power"), ByHand(server.url)
    await hand.create(tasks)
    for n in range(tasks):
        await store.append([Write(id=f"id-{n:06}", expect=0, create=NEW, records=[RECORD])])

    async def append(n: int, version: int) -> None:
        await store.append([Write(id=f"id-{n:06}", expect=version + 1, records=(RECORD,))])

    results = []
    for start in range(0, rounds * steps, steps):
        theirs = await in_parallel(tasks, getattr(hand, by), start, steps)
        results.append((await in_parallel(tasks, append, start, steps), theirs))
    await store.close()
    await hand.client.aclose()
    return results


@step
async def nothing(order: int) -> int:
    return order


async def five(order: int) -> int:
    for _ in range(5):
        order = await nothing(order)
    return order


async def sagas(server: Server, tasks: int, count: int, rounds: int) -> Rounds:
    """Return the seconds of a saga of five steps, and of the same number of appends by hand: one for each, one more."""
    flow, hand = Flowlet(f"{server.url}?prefix=s{tasks}&durability=power"), ByHand(server.url)
    saga = flow.saga(five)
    await hand.create(tasks)
    results = []
    call: Callable[[int, int], Awaitable[None]] = hand.alone if tasks == 1 else hand.together

    async def run(n: int, number: int) -> None:
        await saga(number)

    async with flow:
        for round in range(rounds):
            theirs = await in_parallel(tasks, call, round * count * 6, count * 6) * 6
            results.append((await in_parallel(tasks, run, 0, count), theirs))
    await hand.client.aclose()
    return results


async def claim_among(server: Server, finished: int) -> float:
    store = RedisStore(f"{server.url}?prefix=claim")
    for start in range(0, finished, 1000):
        ids = range(start, start + 1000)
        await store.append(
            [Write(id=f"r{n:07}", expect=0, create=NEW, records=[RECORD], status="ok", close=True) for n in ids]
        )
    seconds = []
    for turn in range(20):
        writes = [Write(id=f"d{turn}-{n}", expect=0, create=NEW, records=[RECORD], wake=0.0) for n in range(10)]
        await store.append(writes)
        await store.heartbeat("worker", 60)
        began = time.perf_counter()
        claims = await store.claim("worker", definitions=[("run", "bench", "1")])
        seconds.append(time.perf_counter() - began)
        assert len(claims.heads) == 10
    await store.close()
    return statistics.median(seconds)


async def load_histories(server: Server, count: int) -> Rounds:
    store, client = RedisStore(f"{server.url}?prefix=load"), redis.asyncio.Redis.from_url(server.url)
    for start in range(0, count, 1000):
        ids = range(start, start + 1000)
        await store.append([Write(id=f"r{n:06}", expect=0, create=NEW, records=[RECORD] * 10) for n in ids])
    began = time.perf_counter()
    for n in range(count):
        await store.load(f"r{n:06}")
    middle = time.perf_counter()
    for n in range(count):
        pipeline = client.pipeline(transaction=True)
        pipeline.hgetall(f"load:head:r{n:06}")
        pipeline.lrange(f"load:records:r{n:06}", 0, -1)
        await pipeline.execute()
    results = [((middle - began) / count, (time.perf_counter() - middle) / count)]
    await client.aclose()
    await store.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--dir", default=None, help="where the server keeps its files (a real disk)")
    options = parser.parse_args()
    rounds = 5 if options.quick else 21
    with tempfile.TemporaryDirectory(dir=options.dir) as name, Server(Path(name), *DURABLE) as server:
        with server.client() as client:
            print(f"redis {client.info('server')['redis_version']}, redis-py {redis.__version__}, {' '.join(DURABLE)}")
        show("durable append, 1 task", asyncio.run(durable(server, 1, 200, rounds, "alone")))
        show("durable append, 64 tasks / a call each", asyncio.run(durable(server, 64, 30, rounds, "alone")))
        show("durable append, 64 tasks / a pipeline", asyncio.run(durable(server, 64, 30, rounds, "together")))
        show("durable saga of 5 steps, 1 task", asyncio.run(sagas(server, 1, 40, rounds)))
        show("durable saga of 5 steps, 64 tasks", asyncio.run(sagas(server, 64, 6, rounds)))
        show("load one of 10,000 histories of 10", asyncio.run(load_histories(server, 10_000)))
        finished = 10_000 if options.quick else 100_000
        seconds = asyncio.run(claim_among(server, finished))
        print(f"{f'claim of 10 among {finished:,} finished runs':44} {seconds * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
