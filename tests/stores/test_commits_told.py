"""Stores that commit in groups say how large they were, once for each commit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import anyio
import postgres_server
import pytest
import redis_server

from flowlet.store import New, Write
from flowlet.stores import open_store

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]  # what the drivers run on


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the URL of a store with nothing in it."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/flow.db"
    elif request.param == "postgres":
        with postgres_server.new_database(postgres_server.database_url()) as database:
            yield database
    else:
        server, prefix = redis_server.best(), f"flowlet-commits-{os.getpid()}"
        yield f"{server}&prefix={prefix}"
        redis_server.remove(server, prefix)


async def test_commits_are_told(url: str) -> None:
    store = open_store(url)
    sizes: list[int] = []

    async def write(number: int) -> None:
        new = New("run", "s", "1")
        await store.append((Write(id=f"r{number}", expect=0, create=new, records=(b"x",)),))

    try:
        await write(0)  # nobody is told
        store.on_commit = sizes.append  # type: ignore[attr-defined]  # of stores that have it
        async with anyio.create_task_group() as tasks:
            for number in range(1, 31):
                tasks.start_soon(write, number)
        await store.heartbeat("w", 1.0)  # which is no append
        await anyio.lowlevel.checkpoint()
        assert sum(sizes) == 30
        assert max(sizes) > 1
        store.on_commit = None  # type: ignore[attr-defined]
        await write(31)
        assert sum(sizes) == 30
    finally:
        await store.close()
