"""How a Redis store hears of changes: it is told, and where it is not, it looks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest
from redis_calls import create
from redis_server import DURABLE, Server

from flowlet.stores import redis_news
from flowlet.stores.redis import RedisStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, *DURABLE) as server:
        yield server


@pytest.fixture
async def store(anyio_backend: str, server: Server) -> AsyncIterator[RedisStore]:
    store = RedisStore(f"{server.url}?durability=power&socket_timeout=5")
    yield store
    await store.close()


async def test_a_watch_is_told(store: RedisStore, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_news, "_ASK_AT_LEAST_EVERY", 30.0)
    other = RedisStore(server.url)
    seen = await store.watch(-1, 1)
    assert await store.watch(seen, 0.5) == seen
    assert store._news is not None
    assert store._news.is_told
    began = time.monotonic()
    async with anyio.create_task_group() as group:
        group.start_soon(store.watch, seen, 30)
        await anyio.sleep(0.05)
        await create(other, "a", wake=0.0)
    assert time.monotonic() - began < 5
    await other.close()


async def test_a_watch_that_is_not_told_looks(server: Server) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "ann", "reset", "on", ">pw", "~flowlet:*", "+@all", "-@admin", "+info")
    url = server.url.replace("//", "//ann:pw@")
    store, other = RedisStore(url), RedisStore(url)
    seen = await store.watch(-1, 1)
    for n in range(3):
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(store.watch, seen, 30)
                await anyio.sleep(0.05)
                await create(other, f"a{n}", wake=0.0)
        seen = await store.watch(-1, 1)
        assert store._news is not None
        assert not store._news.is_told
    await create(other, "b", wake=0.0)
    assert await store.watch(seen, 0) != seen, "also when it has no time to wait"
    await store.close()
    await other.close()


async def test_a_watch_that_is_told_no_more_looks(
    store: RedisStore, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_news, "_AGAIN_AFTER", 0.3)
    other = RedisStore(server.url)
    with server.client() as client:
        for _ in range(2):
            await store.watch(-1, 1)
            assert store._news is not None
            with anyio.fail_after(5):
                while not store._news.is_told:
                    await anyio.sleep(0.01)
            client.client_kill_filter(_type="pubsub")
            seen = await store.watch(-1, 1)
            await create(other, f"id-{time.monotonic()}", wake=0.0)
            with anyio.fail_after(5):
                while await store.watch(seen, 30) == seen:
                    pass
    await other.close()


async def test_a_watch_goes_on_when_the_server_has_lost_everything(store: RedisStore, server: Server) -> None:
    for n in range(5):
        await create(store, f"id-{n}", wake=0.0)
    seen = await store.watch(-1, 1)
    with server.client() as client:
        client.flushall()
    with anyio.fail_after(5):
        seen = await store.watch(seen, 1.5)
        await create(store, "new", wake=0.0)
        while await store.watch(seen, 30) == seen:
            pass
