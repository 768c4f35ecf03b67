"""Schedules on PostgreSQL and Redis: two processes' worth of Flowlets share the ticks, and one of them leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise

import anyio
import postgres_server
import pytest
import redis_server

from flowlet import Flowlet, Registry

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]  # what the drivers run on


@pytest.fixture(params=["postgres", "redis"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of a server, with a place for this test."""
    if request.param == "postgres":
        with postgres_server.new_database(postgres_server.database_url()) as database:
            yield database
    else:
        server, prefix = redis_server.best(), f"flowlet-schedules-{os.getpid()}"
        yield f"{server}&prefix={prefix}"
        redis_server.remove(server, prefix)


async def test_shared_paused_and_gone_on_with(url: str) -> None:
    ticks: list[datetime] = []
    registry = Registry()

    @registry.every(0.1, missed="all")
    @registry.saga
    async def often(tick: datetime) -> None:
        ticks.append(tick)

    async def until(count: int) -> None:
        with anyio.fail_after(30):
            while len(ticks) < count:
                await anyio.sleep(0.01)

    async with Flowlet(url, registry=registry) as flow:
        async with Flowlet(url, registry=registry):
            await until(15)
        await until(20)
        schedule = flow.schedule("often")
        await schedule.pause()
        assert (await schedule.info()).paused
        await anyio.sleep(0.3)
        count = len(ticks)
        await schedule.resume()
        await until(count + 5)
        handle = await schedule.trigger(id="by-hand")
        await handle.result()
        assert [info.last_run is not None async for info in flow.schedules()] == [True]
        await schedule.pause()
        runs = [run.id async for run in flow.runs()]
    assert len(runs) == len(set(runs)) == len(ticks)
    fired = sorted(ticks)[:20]
    assert {b - a for a, b in pairwise(fired)} == {timedelta(seconds=0.1)}
    async with Flowlet(url, registry=registry) as flow:
        assert (await flow.schedule("often").info()).paused
