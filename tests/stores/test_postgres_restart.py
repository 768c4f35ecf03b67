"""A server that stops and comes back under load: nothing acknowledged is lost, and nothing is marked failed."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator

import anyio
import anyio.to_thread
import pytest
from postgres_server import Server, throwaway

from flowlet import Flowlet, step
from flowlet.errors import Conflict, StoreError, StoreUnavailable
from flowlet.store import New, Write

pytest.importorskip("asyncpg")

from flowlet.stores import postgres_link
from flowlet.stores.postgres import PostgresStore

pytestmark = pytest.mark.anyio

RUN = New("run", "test")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = throwaway()
    yield made
    made.remove()


@pytest.fixture
def url(server: Server) -> str:
    return f"{server.url}?schema=s{secrets.token_hex(4)}"


async def restart(server: Server, mode: str, pause: float = 0.3) -> None:
    await anyio.to_thread.run_sync(server.stop, mode)
    await anyio.sleep(pause)
    await anyio.to_thread.run_sync(server.start)


@pytest.mark.parametrize("mode", ["immediate", "fast"])
async def test_appends_under_way_are_stored_or_said_to_be_unknown(server: Server, url: str, mode: str) -> None:
    store = PostgresStore(url)
    acknowledged: dict[str, int] = {}
    unknown = 0
    strange: list[Conflict] = []
    stop = False
    for n in range(16):
        await store.append([Write(id=f"id-{n}", expect=0, create=RUN, records=[b"1"])])
        acknowledged[f"id-{n}"] = 1

    async def write(id: str) -> None:
        nonlocal unknown
        while not stop:
            version = acknowledged[id]
            try:
                await store.append([Write(id=id, expect=version, records=[b"%d" % version])])
            except StoreUnavailable:
                unknown += 1
                continue
            except Conflict as conflict:  # it had been stored: only the answer was lost
                strange.extend([conflict] if conflict.actual != version + 1 else [])
            acknowledged[id] = version + 1

    async with anyio.create_task_group() as group:
        for n in range(16):
            group.start_soon(write, f"id-{n}")
        for _ in range(2):
            await anyio.sleep(0.3)
            before = dict(acknowledged)
            await restart(server, mode)
            with anyio.fail_after(20):
                while any(acknowledged[id] < before[id] + 5 for id in before):
                    await anyio.sleep(0.01)
        stop = True
    assert unknown > 0, "nothing was under way"
    assert not strange
    for id, version in acknowledged.items():
        stored = await store.load(id)
        assert stored is not None
        assert stored.head.version == version
        assert list(stored.records) == [b"1", *(b"%d" % n for n in range(1, version))]
    await store.close()


async def test_everything_else_works_again_by_itself(server: Server, url: str) -> None:
    store = PostgresStore(url)
    await store.append([Write(id="a", expect=0, create=RUN, records=[b"1"], wake=0.0)])
    seen = await store.watch(-1, 1)
    await store.append([], work=lambda connection: [Write(id="a", status="worked")])
    for _ in range(2):
        await restart(server, "fast")
        assert await store.load("a") is not None
        assert len(await store.scan()) == 1
        await store.heartbeat("w", 60)
        await store.release("w", ["a"])
        assert len((await store.claim("w", ids=["a"])).heads) == 1
        await store.append([], work=lambda connection: [Write(id="a", status="worked again")])
        assert abs(await store.now() - time.time()) < 60
        with anyio.fail_after(10):
            seen = await store.watch(seen, 60)
        await store.release("w", ["a"])
    await store.close()


async def test_calls_wait_for_a_server_that_comes_back(server: Server, url: str) -> None:
    store = PostgresStore(url)
    await store.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])
    await anyio.to_thread.run_sync(server.stop, "fast")
    await anyio.sleep(0.2)
    calls = [
        asyncio.ensure_future(call)
        for call in (store.append([Write(id="a", expect=1, records=[b"2"])]), store.load("a"), store.heartbeat("w", 9))
    ]
    await anyio.sleep(0.5)
    assert not any(call.done() for call in calls)
    await anyio.to_thread.run_sync(server.start)
    with anyio.fail_after(15):
        await asyncio.gather(*calls)
    await store.close()


async def test_a_server_that_stays_away_is_said(server: Server, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_link, "PATIENCE", 0.3)
    store = PostgresStore(url)
    await store.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])
    await anyio.to_thread.run_sync(server.stop, "fast")
    try:
        for call in (
            store.append([Write(id="a", expect=1, records=[b"2"])]),
            store.append([], work=lambda connection: []),
            store.load("a"),
            store.now(),
            store.claim("w", ids=["a"]),
        ):
            with anyio.fail_after(5), pytest.raises(StoreUnavailable, match="try again"):
                await call
        with anyio.fail_after(10):
            await store.close()
    finally:
        await anyio.to_thread.run_sync(server.start)
    await store.append([Write(id="a", expect=1, records=[b"2"])])
    await store.close()


@step
async def first(n: int) -> int:
    await anyio.sleep(0.01)
    return n + 1


@step
async def second(n: int) -> int:
    await anyio.sleep(0.01)
    return n + 1


async def saga(n: int) -> int:
    for _ in range(3):
        n = await first(n)
        n = await second(n)
    return n


@pytest.mark.parametrize("mode", ["immediate", "fast"])
async def test_runs_go_on_over_a_restart(server: Server, url: str, mode: str) -> None:
    flow = Flowlet(PostgresStore(url))
    durable = flow.saga(saga)
    results: dict[int, int] = {}
    started = 0
    stop = False

    async def work() -> None:
        nonlocal started
        while not stop:
            started += 1
            number = started
            while number not in results:
                try:
                    handle = await flow.start(durable, number, id=f"run-{number}")
                    results[number] = await handle.result()
                except StoreError:  # asked again, as a caller would: the same id is the same run
                    await anyio.sleep(0.05)

    with anyio.fail_after(60):
        async with flow, anyio.create_task_group() as group:
            for _ in range(16):
                group.start_soon(work)
            for _ in range(2):
                await anyio.sleep(0.5)
                await restart(server, mode)
            await anyio.sleep(1)
            stop = True
    assert started >= 30
    assert results == {number: number + 6 for number in range(1, started + 1)}
    store = PostgresStore(url)
    heads = await store.scan(kind="run", limit=100_000)
    await store.close()
    assert len(heads) == started
    assert {head.status for head in heads} == {"completed"}
