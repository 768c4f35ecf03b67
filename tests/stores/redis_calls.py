"""What many tests of the Redis store do to one: create, look, and see what comes of a call."""

from __future__ import annotations

from typing import Any

from flowlet.errors import FlowletError
from flowlet.store import New, Write
from flowlet.stores.redis import RedisStore

RUN = New("run", "test")
TESTS = (("run", "test", "1"),)


async def create(store: RedisStore, *ids: str, **facts: Any) -> None:
    await store.append([Write(id=id, expect=0, create=RUN, records=[b"1"], **facts) for id in ids])


async def version(store: RedisStore, id: str) -> int | None:
    stored = await store.load(id)
    assert stored is None or stored.head.version == len(stored.records)
    return None if stored is None else stored.head.version


async def outcome(call: Any) -> FlowletError | None:
    try:
        await call
    except FlowletError as error:
        return error
    return None
