"""Wake-ups between processes: by notifications at once, and without them after half a second."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest
from postgres_server import database_url, run_sql

from flowlet.errors import LeaseLost
from flowlet.store import New, Write

pytest.importorskip("asyncpg")

from flowlet.stores import postgres_news
from flowlet.stores.postgres import PostgresStore

pytestmark = pytest.mark.anyio

RUN = New("run", "test")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def stores() -> AsyncIterator[Callable[[], PostgresStore]]:
    """Make stores on one schema, as several processes would have them."""
    schema = f"news_{secrets.token_hex(4)}"
    made: list[PostgresStore] = []

    def make() -> PostgresStore:
        made.append(PostgresStore(database_url(), schema=schema))
        return made[-1]

    yield make
    for store in made:
        await store.close()
    run_sql(database_url(), f"DROP SCHEMA IF EXISTS {schema} CASCADE")


async def proven(store: PostgresStore) -> None:
    """Wait until the store knows that notifications arrive."""
    await store.watch(-1, 1)
    with anyio.fail_after(10):
        while not store._session_here().listener.is_proven:
            await anyio.sleep(0.01)


async def seconds_until_heard(watcher: PostgresStore, act: Callable[[], Awaitable[object]]) -> float:
    """Return how long a watcher takes to hear of something, once it is done."""
    seen = await watcher.watch(-1, 0)
    heard = asyncio.ensure_future(watcher.watch(seen, 30))
    await anyio.sleep(0.05)
    assert not heard.done(), "it heard of something else"
    await act()
    began = time.monotonic()
    await heard
    return time.monotonic() - began


async def test_a_notification_arrives_at_once(
    stores: Callable[[], PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_news, "_PROVEN", 1000.0)
    watcher, writer = stores(), stores()
    await proven(watcher)
    for n in range(5):
        creation = Write(id=f"id-{n}", expect=0, create=RUN, records=[b"1"], wake=0.0)
        assert await seconds_until_heard(watcher, lambda creation=creation: writer.append([creation])) < 5
    assert await seconds_until_heard(watcher, lambda: writer.release("w")) < 5
    work = lambda connection: [Write(id="id-0", close=True)]  # noqa: E731
    assert await seconds_until_heard(watcher, lambda: writer.append([], work=work)) < 5


async def test_what_nobody_need_hear_of_is_not_told(
    stores: Callable[[], PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_news, "_PROVEN", 1000.0)
    watcher, writer = stores(), stores()
    await writer.append([Write(id="a", expect=0, create=RUN, records=[b"1"], owner="w")])
    await proven(watcher)
    await anyio.sleep(0.2)
    seen = await watcher.watch(-1, 0)
    for version in range(1, 10):
        await writer.append([Write(id="a", expect=version, records=[b"2"], status=str(version))])
    assert await watcher.watch(seen, 0.5) == seen


async def test_without_notifications_a_watcher_looks_now_and_then(
    stores: Callable[[], PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a pooler: listening seems to work, and nothing arrives."""
    monkeypatch.setattr(postgres_news, "_ARRIVAL", 0.05)
    monkeypatch.setattr(postgres_news.Listener, "_heard", lambda *_: None)
    watcher, writer = stores(), stores()
    await watcher.watch(-1, 1)
    creation = Write(id="a", expect=0, create=RUN, records=[b"1"], wake=0.0)
    with anyio.fail_after(20):
        seen = await watcher.watch(-1, 0)
        async with anyio.create_task_group() as group:
            group.start_soon(watcher.watch, seen, 60)
            await writer.append([creation])
        began = time.monotonic()
        await watcher.watch(await watcher.watch(-1, 0), 60)
        await watcher.watch(await watcher.watch(-1, 0), 60)
    assert not watcher._session_here().listener.is_proven
    assert time.monotonic() - began < 10


async def test_where_nobody_can_listen_a_watcher_looks_now_and_then(
    stores: Callable[[], PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncpg

    async def refuse(self: object, channel: str, callback: object) -> None:
        raise asyncpg.FeatureNotSupportedError("LISTEN is not supported here")

    monkeypatch.setattr(asyncpg.Connection, "add_listener", refuse)
    store = stores()
    with anyio.fail_after(20):
        seen = await store.watch(-1, 60)
        assert await store.watch(seen, 60) != seen
    await store.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])


async def test_a_listener_that_is_cut_off_listens_again(
    stores: Callable[[], PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_news, "_PROVEN", 1000.0)
    watcher, writer = stores(), stores()
    await proven(watcher)
    connection = watcher._session_here().listener._connection
    assert connection is not None
    process = await connection.fetchval("SELECT pg_backend_pid()")
    seen = await watcher.watch(-1, 0)
    run_sql(database_url(), f"SELECT pg_terminate_backend({process})")
    with anyio.fail_after(10):
        assert await watcher.watch(seen, 60) != seen, "something may have happened meanwhile"
        while watcher._session_here().listener._connection in (None, connection):
            await anyio.sleep(0.05)
    await proven(watcher)
    await anyio.sleep(0.1)
    creation = Write(id="a", expect=0, create=RUN, records=[b"1"], wake=0.0)
    assert await seconds_until_heard(watcher, lambda: writer.append([creation])) < 5


async def test_leases_are_judged_by_the_servers_time_alone(
    stores: Callable[[], PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, one of them an hour fast, as its clock says: neither takes what is the other's."""
    fast, slow = stores(), stores()
    real = time.time

    def shifted() -> float:
        return real() + 3600

    await slow.append([Write(id="a", expect=0, create=RUN, records=[b"1"], wake=0.0)])
    await slow.heartbeat("slow", 30)
    assert len((await slow.claim("slow", ids=["a"])).heads) == 1
    monkeypatch.setattr(time, "time", shifted)
    await fast.heartbeat("fast", 30)
    assert abs(await fast.now() - real()) < 60
    assert (await fast.claim("fast", definitions=[("run", "test", "1")])).heads == []
    assert (await fast.claim("fast", ids=["a"])).heads == []
    await fast.append([Write(id="b", expect=0, create=RUN, records=[b"1"], wake=real() + 60)])
    claims = await fast.claim("fast", definitions=[("run", "test", "1")])
    assert claims.heads == [], "what is due in a minute is not due for whose clock is fast"
    monkeypatch.setattr(time, "time", real)
    with pytest.raises(LeaseLost):
        await slow.claim("nobody", ids=["b"])


async def test_those_who_claim_at_once_share_what_there_is(stores: Callable[[], PostgresStore]) -> None:
    """What one has locked is skipped by the others, who find something else."""
    several = [stores() for _ in range(4)]
    writes = [Write(id=f"id-{n:03}", expect=0, create=RUN, records=[b"1"], wake=float(n)) for n in range(400)]
    await several[0].append(writes)
    for n, store in enumerate(several):
        await store.heartbeat(f"w{n}", 60)
    claims = await asyncio.gather(
        *(store.claim(f"w{n}", definitions=[("run", "test", "1")], limit=50) for n, store in enumerate(several))
    )
    taken = [head.id for claim in claims for head in claim.heads]
    assert len(taken) == len(set(taken))
    assert all(len(claim.heads) == 50 for claim in claims), "each got as many as it asked for"
