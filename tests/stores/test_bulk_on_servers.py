"""Bulk operations on PostgreSQL and Redis: cut off, gone on with, and shared by two processes' worth of Flowlets."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import anyio
import postgres_server
import pytest
import redis_server
from bulk_evidence import recorded, shard_heads

from flowlet import Flowlet
from flowlet.config import BulkConfig, Config

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]  # what the drivers run on


ONCE = Config(bulk=BulkConfig(retry_attempts=1))
"""What fails here fails at once, unless a test says otherwise."""


@pytest.fixture(params=["postgres", "redis"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of a server, with a place for this test."""
    if request.param == "postgres":
        with postgres_server.new_database(postgres_server.database_url()) as database:
            yield database
    else:
        server, prefix = redis_server.best(), f"flowlet-bulk-{os.getpid()}"
        yield f"{server}&prefix={prefix}"
        redis_server.remove(server, prefix)


class Sender:
    """A function of a bulk operation that remembers its calls."""

    __name__ = "send"

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()
        self.stop_at = 10**9

    async def __call__(self, item: int) -> int:
        if self.calls.total() >= self.stop_at:
            await anyio.sleep_forever()
        self.calls[item] += 1
        await anyio.sleep(0.001)
        if item % 50 == 7:
            raise ValueError(item)
        return item * 2


async def test_cut_off_and_shared(url: str) -> None:
    send, id = Sender(), "june"
    send.stop_at = 100
    async with Flowlet(url, config=ONCE) as flow:
        with anyio.move_on_after(1.0):
            await flow.bulk(send, range(400), id=id, concurrency=8)
        assert send.calls.total() == 100
        done = await recorded(flow.store, id)
        assert done.total() == 100
    send.stop_at = 10**9

    async def work() -> None:
        async with Flowlet(url, config=ONCE) as flow:
            report = await flow.bulk(send, range(400), id=id, concurrency=8)
            assert (report.status, report.total, report.failed) == ("completed", 400, 8)
            assert [error.index for error in report.errors] == list(range(7, 400, 50))

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        group.start_soon(work)
    assert send.calls == Counter(range(400))
    async with Flowlet(url, config=ONCE) as flow:
        assert await recorded(flow.store, id) == Counter(range(400))
        assert all(head.closed is not None and head.owner is None for head in await shard_heads(flow.store, id))
        await flow.bulk(send, range(400), id=id)
        await flow.prune(0)
        assert await shard_heads(flow.store, id) == []
    assert send.calls == Counter(range(400))
