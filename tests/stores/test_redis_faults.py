"""What goes wrong on a Redis server, or on the way to it: nothing is reported stored that is not, and it goes on."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis.exceptions
from redis_calls import RUN, TESTS, create, outcome, version
from redis_server import DURABLE, Server
from stillness import watched

import flowlet
from flowlet.errors import Conflict, EncodeError, FlowletError, LeaseLost, PayloadTooLarge, StoreError, StoreUnavailable
from flowlet.store import Signal, Write
from flowlet.stores import redis_forms, redis_line
from flowlet.stores.redis import RedisStore
from flowlet.stores.redis_errors import broken, refused, unreachable

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


# ---------------------------------------------------------------- the server ends, and comes back
async def test_killed_and_started_again_it_has_what_was_acknowledged(store: RedisStore, server: Server) -> None:
    acknowledged: dict[str, int] = {}
    unavailable = 0
    lost: list[int] = []
    stop = False

    async def write(id: str) -> None:
        nonlocal unavailable
        await create(store, id)
        acknowledged[id] = 1
        while not stop:
            at = acknowledged[id]
            try:
                await store.append([Write(id=id, expect=at, records=[b"%d" % (at + 1)], status=str(at + 1))])
                acknowledged[id] += 1
            except StoreUnavailable:
                unavailable += 1
                await anyio.sleep(0.01)
            except Conflict as conflict:  # the reply was lost
                acknowledged[id] = conflict.actual
                lost.append(conflict.actual - conflict.expected)

    async with anyio.create_task_group() as group:
        for n in range(16):
            group.start_soon(write, f"id-{n}")
        for _ in range(3):
            await anyio.sleep(0.4)
            before = dict(acknowledged)
            server.kill()
            await anyio.sleep(0.1)
            await anyio.to_thread.run_sync(server.start)
            for id, at_least in before.items():
                with anyio.fail_after(10):
                    while await outcome(store.load(id)) is not None:
                        await anyio.sleep(0.01)
                stored = await store.load(id)
                assert stored is not None
                assert stored.head.version >= at_least
        before = dict(acknowledged)
        await anyio.sleep(0.4)
        assert all(acknowledged[id] > at for id, at in before.items()), "it goes on by itself"
        stop = True
    assert unavailable
    assert set(lost) <= {1}
    for id, at in acknowledged.items():
        stored = await store.load(id)
        assert stored is not None
        assert stored.head.version == at
        assert list(stored.records) == [b"%d" % n for n in range(1, at + 1)]
        assert stored.head.status == str(at)


async def test_between_two_calls_it_may_be_started_again_unnoticed(store: RedisStore, server: Server) -> None:
    await create(store, "a")
    server.kill()
    server.start()
    await anyio.sleep(0.05)
    await store.append([Write(id="a", expect=1, records=[b"2"])])
    assert await version(store, "a") == 2


async def test_a_server_that_is_down(store: RedisStore, server: Server) -> None:
    await create(store, "a")
    server.kill()
    await anyio.sleep(0.05)
    for call in (create(store, "b"), store.load("a"), store.heartbeat("w", 1), store.watch(-1, 1), store.now()):
        error = await outcome(call)
        assert type(error) is StoreUnavailable
        assert server.address in str(error)
    await store.close()
    server.start()
    assert await version(store, "a") == 1
    assert await version(store, "b") is None


async def test_a_server_that_does_not_answer(server: Server) -> None:
    store = RedisStore(f"{server.url}?socket_timeout=0.5")
    await create(store, "a")
    server.freeze()
    try:
        async with watched() as spans:
            error = await outcome(store.append([Write(id="a", expect=1, records=[b"2"])]))
    finally:
        server.thaw()
    assert type(error) is StoreUnavailable
    assert "not known" in str(error)
    assert spans.longest() < 0.3
    error = await outcome(store.append([Write(id="a", expect=1, records=[b"2"])]))
    assert error is None or isinstance(error, Conflict)
    assert await version(store, "a") == 2
    await store.close()


async def test_a_cancelled_append_is_stored_and_the_store_goes_on(store: RedisStore, server: Server) -> None:
    await create(store, "a")
    server.freeze()
    with anyio.move_on_after(0.2) as scope:
        asyncio.get_running_loop().call_later(0.5, server.thaw)
        await store.append([Write(id="a", expect=1, records=[b"2"])])
    assert scope.cancelled_caught
    assert await version(store, "a") == 2, "its caller has outlasted the reply"
    task = asyncio.create_task(store.append([Write(id="a", expect=2, records=[b"3"])]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await version(store, "a") == 3
    refused = asyncio.create_task(store.append([Write(id="a", expect=2, records=[b"3"])]))
    await asyncio.sleep(0)
    refused.cancel()
    with pytest.raises(asyncio.CancelledError):
        await refused
    await store.append([Write(id="a", expect=3, records=[b"4"])])


# ---------------------------------------------------------------- the server refuses
async def test_scripts_that_the_server_has_forgotten(store: RedisStore, server: Server) -> None:
    await create(store, "a", "b", wake=0.0)
    with server.client() as client:
        client.script_flush()
        outcomes = await asyncio.gather(
            *(outcome(store.append([Write(id="a", expect=1, records=[b"2"])])) for _ in "xx")
        )
        assert sorted(map(type, outcomes), key=str) == sorted([type(None), Conflict], key=str)
        client.script_flush()
        assert await store.heartbeat("w", 9) == []
        client.script_flush()
        assert len(await store.scan()) == 2
    assert [await version(store, id) for id in "ab"] == [2, 1]


async def test_a_server_without_memory(store: RedisStore, server: Server) -> None:
    await create(store, "a", "old", close=True)
    await create(store, "b", owner="w")
    with server.client() as client:
        client.config_set("maxmemory", "1")
        writes = [
            Write(id="b", expect=1, records=[b"2"], status="s"),
            Write(id="c", expect=0, create=RUN, records=[b"1"]),
        ]
        for call in (store.append(writes), store.append(writes[:1]), store.heartbeat("w", 1)):
            error = await outcome(call)
            assert type(error) is StoreUnavailable
            assert "`maxmemory`" in str(error)
        head = (await store.scan(after=2))[0]
        assert (head.version, head.status) == (1, "")
        again = RedisStore(server.url)
        assert await version(again, "a") == 1, "who only reads may, also when it has to connect"
        assert await again.prune(closed_before=await store.now() + 1) == 2, "and who makes room"
        await again.close()
        client.config_set("maxmemory", "0")
    await store.append(writes)
    assert [head.id for head in await store.scan()] == ["b", "c"]


async def test_a_server_that_cannot_write_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    options = ("--stop-writes-on-bgsave-error", "yes", "--enable-protected-configs", "yes")
    with Server(tmp_path, *options) as server, server.client() as client:
        store = RedisStore(server.url)
        await create(store, "a", wake=0.0)
        client.config_set("save", "3600 1")
        client.config_set("dir", str(folder))
        shutil.rmtree(folder)
        client.bgsave()
        with anyio.fail_after(10):
            while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
                await anyio.sleep(0.02)
        for call in (store.append([Write(id="a", expect=1, records=[b"2"])]), create(store, "b"), store.release("w")):
            error = await outcome(call)
            assert type(error) is StoreUnavailable
            assert "disk" in str(error)
        assert await version(store, "a") == 1
        again = RedisStore(server.url)
        assert len(await again.scan()) == 1
        await again.close()
        client.config_set("dir", str(tmp_path))
        client.bgsave()
        with anyio.fail_after(10):
            while client.info("persistence")["rdb_last_bgsave_status"] != "ok":
                await anyio.sleep(0.02)
        await store.append([Write(id="a", expect=1, records=[b"2"])])
        await store.close()


async def test_a_server_that_becomes_a_replica(store: RedisStore, server: Server) -> None:
    await create(store, "a")
    assert await version(store, "a") == 1
    with server.client() as client:
        client.replicaof("127.0.0.1", "1")
        error = await outcome(store.append([Write(id="a", expect=1, records=[b"2"])]))
        assert type(error) is StoreUnavailable
        assert "replica" in str(error)
        assert await version(store, "a") == 1
        client.replicaof("NO", "ONE")
    await store.append([Write(id="a", expect=1, records=[b"2"])])


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (redis.exceptions.BusyLoadingError("Redis is loading the dataset in memory"), StoreUnavailable, "start"),
        (redis.exceptions.BusyLoadingError(""), StoreUnavailable, "start"),
        (redis.exceptions.ReadOnlyError("You can't write against a read only replica."), StoreUnavailable, "primary"),
        (redis.exceptions.OutOfMemoryError("command not allowed"), StoreUnavailable, "maxmemory"),
        (redis.exceptions.NoPermissionError("this user has no"), StoreError, "may not"),
        (redis.exceptions.AuthenticationError("whatever"), StoreError, "password"),
        (redis.exceptions.ResponseError("MISCONF Errors writing to the AOF file: No space"), StoreUnavailable, "disk"),
        (redis.exceptions.ResponseError("ERR something new"), StoreError, "something new"),
    ],
)
async def test_what_its_words_mean(error: Exception, kind: type[StoreError], words: str) -> None:
    found = refused(error, "redis://h:1/0")
    assert type(found) is kind
    assert words in str(found)
    assert "redis://h:1/0" in str(found)
    if isinstance(error, redis.exceptions.ConnectionError):
        assert str(unreachable(error, "redis://h:1/0")) == str(found)
    if isinstance(error, redis.exceptions.BusyLoadingError):
        assert str(broken(error, "redis://h:1/0")) == str(found)


# ---------------------------------------------------------------- many callers
async def test_the_appends_of_a_turn_go_together(store: RedisStore) -> None:
    ids = [f"id-{n}" for n in range(64)]
    await create(store, *ids)
    before = store.batches
    calls = (store.append([Write(id=id, expect=1 + (n % 8 == 0), records=[b"2"])]) for n, id in enumerate(ids))
    outcomes = await asyncio.gather(*map(outcome, calls))
    assert store.batches == before + 1
    assert [type(error) for error in outcomes] == [Conflict if n % 8 == 0 else type(None) for n in range(64)]
    assert [error.id for error in outcomes if isinstance(error, Conflict)] == ids[::8]


async def test_a_large_turn_goes_in_pieces(store: RedisStore) -> None:
    large = bytes(redis_line._LARGEST_AT_ONCE // 2)
    before = store.batches
    calls = (store.append([Write(id=f"id-{n}", expect=0, create=RUN, records=[large])]) for n in range(8))
    await asyncio.gather(*calls)
    assert store.batches - before > 4
    assert len(await store.scan()) == 8


async def test_too_many_wait_before_they_are_accepted(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_line, "_BOUND", 10)
    accept, accepted = redis_line.Line._accept, []

    def count(line: redis_line.Line, ticket: Any) -> None:
        accept(line, ticket)
        accepted.append(line._accepted)

    monkeypatch.setattr(redis_line.Line, "_accept", count)
    await asyncio.gather(*(create(store, f"id-{n}") for n in range(300)))
    assert len(await store.scan(limit=1000)) == 300
    assert max(accepted) == 10


async def test_what_cannot_be_sent_concerns_nobody_else(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await create(store, "a")
    monkeypatch.setattr(redis_forms, "_MOST_BYTES", 100)
    strange = "\ud800"
    calls: list[tuple[Any, type[FlowletError] | None]] = [
        (store.append([Write(id=strange, expect=0, create=RUN, records=[b"1"])]), EncodeError),
        (store.append([Write(id="a", state=strange)]), EncodeError),
        (store.append([Write(id="a", wake=float("nan"))]), EncodeError),
        (store.append([Write(id="a", consumed=1 << 70)]), EncodeError),
        (store.append([Write(id="a", signals=[Signal("t", b"", strange)])]), EncodeError),
        (store.append([Write(id="a", expect=1, records=[bytes(60), bytes(60)])]), PayloadTooLarge),
        (store.load(strange), EncodeError),
        (store.scan(kind=strange), EncodeError),
        (store.heartbeat(strange, 1), EncodeError),
        (store.claim("w", ids=[strange]), EncodeError),
        (store.release("w", [strange]), EncodeError),
        (create(store, "b"), None),
        (store.load("a"), None),
    ]
    outcomes = await asyncio.gather(*(outcome(call) for call, _ in calls))
    assert [type(error) for error in outcomes] == [kind or type(None) for _, kind in calls]
    assert [head.id for head in await store.scan()] == ["a", "b"]


async def test_a_store_that_was_not_closed_on_a_loop_that_ended(server: Server) -> None:
    store = RedisStore(server.url)

    def use(n: int) -> None:
        async def body() -> None:
            await create(store, f"id-{n}")

        asyncio.run(body())

    for n in range(3):
        await anyio.to_thread.run_sync(use, n)
    assert len(await store.scan()) == 3
    await store.close()


FORK = """
import os, sys, warnings
import anyio
from flowlet.errors import StoreError
from flowlet.store import New, Write
from flowlet.stores.redis import RedisStore

warnings.simplefilter("ignore")
store = RedisStore(sys.argv[1])

async def body():
    await store.append([Write(id="a", expect=0, create=New("run", "test"), records=[b"1"])])
    if os.fork() == 0:
        try:
            await store.append([Write(id="a", expect=1, records=[b"child"])])
        except StoreError as error:
            print("child:", error, flush=True)
        await store.close()
        os._exit(0)
    os.wait()
    await store.append([Write(id="a", expect=1, records=[b"parent"])])
    await store.close()
    print("parent: done", flush=True)

anyio.run(body)
"""


async def test_a_fork_is_noticed(store: RedisStore, server: Server) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}
    command = [sys.executable, "-c", FORK, server.url]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=30)
    child, parent = ran.stdout.splitlines()
    assert "before forking" in child
    assert parent == "parent: done"
    assert await version(store, "a") == 2


# ---------------------------------------------------------------- time
async def test_clocks_apart_steal_no_lease(store: RedisStore, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    await create(store, "a", wake=0.0)
    await store.heartbeat("w1", 30)
    assert len((await store.claim("w1", definitions=TESTS)).heads) == 1
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    ahead = RedisStore(server.url)
    await ahead.heartbeat("w2", 30)
    assert (await ahead.claim("w2", definitions=TESTS)).heads == []
    assert (await ahead.claim("w2", ids=["a"])).heads == []
    assert abs(await ahead.now() - real()) < 600
    assert await ahead.heartbeat("w2", 0.01) == ["w1"]
    await anyio.sleep(0.05)
    error = await outcome(ahead.claim("w2", definitions=TESTS))
    assert type(error) is LeaseLost
    await ahead.close()
