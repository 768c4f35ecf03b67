"""What the scripts of the Redis store answer where many keys, equal times and full pages meet."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis_calls import RUN, TESTS, create, version
from redis_server import DURABLE, Server

from flowlet.store import New, Signal, Write
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


async def test_the_earliest_comes_first_and_of_equals_the_oldest(store: RedisStore) -> None:
    now = await store.now()
    for id, wake in (("z", now - 5), ("y", now - 5), ("x", now - 5), ("w", now - 9), ("v", now + 900), ("u", None)):
        await create(store, id, wake=wake)
    await store.heartbeat("me", 60)
    claims = await store.claim("me", definitions=TESTS, limit=3)
    assert ([head.id for head in claims.heads], claims.wake) == (["w", "z", "y"], now - 5)
    claims = await store.claim("me", definitions=TESTS, limit=3)
    assert ([head.id for head in claims.heads], claims.wake) == (["x"], now + 900)
    await store.release("me", list("zyxwvu"))
    claims = await store.claim("me", ids=list("uvxyz"), limit=3)
    assert ([head.id for head in claims.heads], claims.wake) == (["z", "y", "x"], None)


async def test_a_worker_leaves_with_all_that_it_owns(store: RedisStore) -> None:
    await create(store, *(f"id-{n}" for n in range(1100)), wake=0.0)
    await store.heartbeat("me", 60)
    assert len((await store.claim("me", definitions=TESTS, limit=2000)).heads) == 1100
    await store.release("me")
    assert {head.owner for head in await store.scan(limit=2000)} == {None}
    assert await store.heartbeat("you", 60) == []
    assert len((await store.claim("you", definitions=TESTS, limit=2000)).heads) == 1100


async def test_pages_over_many_words(store: RedisStore) -> None:
    dice = random.Random(7)
    words = [(dice.choice("rst"), dice.choice("123456789"), dice.choice("abcd")) for _ in range(900)]
    ids = [f"id-{n:03}" for n in range(900)]
    for start in range(0, 900, 100):
        await store.append(
            [
                Write(id=id, expect=0, create=New("run", word[0]), records=[b"1"], status=word[1], state=word[2])
                for id, word in zip(ids[start : start + 100], words[start : start + 100], strict=True)
            ]
        )

    async def pages(limit: int, **question: object) -> list[str]:
        seen: list[str] = []
        after = 0
        while page := await store.scan(after=after, limit=limit, **question):  # type: ignore[arg-type]
            seen += [head.id for head in page]
            after = page[-1].order
        return seen

    for limit in (1, 7, 100, 1000):
        if limit > 1:
            assert await pages(limit) == ids
        expected = [id for id, word in zip(ids, words, strict=True) if word[1] in "17" and word[2] == "c"]
        assert await pages(limit, status=["1", "7"], state="c") == expected
        assert await pages(limit, definition="s", state="c") == [
            id for id, word in zip(ids, words, strict=True) if word[0] == "s" and word[2] == "c"
        ]


async def test_an_append_of_many_records_and_writes(store: RedisStore) -> None:
    """More than Lua takes as the arguments of one call."""
    records = [b"%d" % n for n in range(20_001)]
    await store.append([Write(id="a", expect=0, create=RUN, records=records, signals=[Signal("t", b"")] * 3000)])
    stored = await store.load("a", after=19_000)
    assert stored is not None
    assert list(stored.records) == records[19_000:]
    assert [signal.number for signal in stored.signals] == list(range(1, 3001))
    await create(store, *(f"id-{n}" for n in range(3000)))
    assert len(await store.scan(limit=10_000)) == 3001
    assert await version(store, "a") == 20_001


async def test_times_without_end(store: RedisStore) -> None:
    infinity = float("inf")
    await create(store, "a", wake=infinity)
    await create(store, "b", wake=-infinity)
    await create(store, "c", wake=infinity, owner="gone")
    await create(store, "d", owner="gone")
    await store.heartbeat("w", 9)
    claims = await store.claim("w", definitions=TESTS)
    assert ([head.id for head in claims.heads], claims.wake) == (["b"], infinity)
    assert [head.id for head in await store.scan(wake_before=infinity)] == ["b"]
    assert [head.wake for head in await store.scan()] == [infinity, -infinity, infinity, None]


async def test_the_keys_say_what_they_are(store: RedisStore, server: Server) -> None:
    """What is not needed any more leaves nothing behind."""
    await create(store, "a", wake=0.0, owner="w", snapshot=b"s", signals=[Signal("t", b"", "m")], status="s", state="t")
    await store.append([Write(id="a", status="u", state="v")])
    assert list(await store.scan(status=["s"])) == list(await store.scan(state="t")) == []
    await store.append([Write(id="a", close=True)])
    assert await store.prune(closed_before=await store.now() + 1) == 1
    await store.heartbeat("w", 9)
    await store.release("w")
    await store.scan()
    with server.client() as client:
        assert sorted(client.keys("*")) == [f"flowlet:{name}".encode() for name in ("news", "order", "schema", "types")]
