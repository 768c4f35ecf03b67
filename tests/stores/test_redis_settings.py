"""What a Redis server must be before history is entrusted to it, and what its settings promise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from redis_server import DURABLE, Server

from flowlet.errors import StoreError, StoreUnavailable
from flowlet.store import New, Write
from flowlet.stores.redis import RedisStore

pytestmark = pytest.mark.anyio

RUN = New("run", "test")
Start: TypeAlias = Callable[..., Server]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server with these options."""
    servers: list[Server] = []

    def start_one(*options: str) -> Server:
        servers.append(Server(tmp_path, *options))
        return servers[-1]

    yield start_one
    for server in servers:
        server.kill()


async def refusal(url: str) -> StoreError | None:
    """Return why a store on this URL cannot be opened, None when it can."""
    store = RedisStore(url)
    try:
        await store.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])
    except StoreError as error:
        return error
    finally:
        await store.close()
    return None


@pytest.mark.parametrize(
    ("options", "gives"),
    [
        ((), "none"),
        (("--appendonly", "yes", "--appendfsync", "no"), "none"),
        (("--appendonly", "yes"), "second"),
        ((*DURABLE, "--no-appendfsync-on-rewrite", "yes"), "second"),
        (DURABLE, "power"),
    ],
)
async def test_what_it_gives(start: Start, options: tuple[str, ...], gives: str) -> None:
    server = start(*options)
    levels = ["power", "second", "none"]
    for asked in levels:
        error = await refusal(f"{server.url}?durability={asked}&prefix={asked}")
        if levels.index(gives) <= levels.index(asked):
            assert error is None
        else:
            assert type(error) is StoreError
            assert f"durability='{asked}'" in str(error)
            assert "appendonly yes" in str(error)
    store = RedisStore(server.url)
    assert not store.capabilities.durable
    assert await store.load("a") is None
    assert store.capabilities.durable == (gives == "power")
    await store.close()


async def test_what_it_does_not_tell_is_taken_from_the_url(start: Start) -> None:
    server = start(*DURABLE)
    with server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all", "-config", "-@admin", "+info"
        )
    ann = server.url.replace("//", "//ann:secret@")
    for url, durable in ((ann, False), (f"{ann}?durability=power", True), (f"{ann}?durability=none", False)):
        store = RedisStore(url)
        assert await store.load("a") is None
        assert store.capabilities.durable == durable
        await store.close()
    with server.client() as client:
        client.config_set("appendonly", "no")  # which INFO tells
    error = await refusal(f"{ann}?durability=power")
    assert "appendonly yes" in str(error)
    assert "secret" not in str(error)


async def test_a_server_that_throws_history_away_is_refused(start: Start) -> None:
    server = start("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    error = await refusal(server.url)
    assert type(error) is StoreError
    assert "allkeys-lru" in str(error)
    assert "`maxmemory-policy noeviction`" in str(error)
    with server.client() as client:
        assert client.keys("*") == []
        client.config_set("maxmemory-policy", "noeviction")
        assert await refusal(server.url) is None
        client.config_set("maxmemory-policy", "volatile-ttl")
        client.config_set("maxmemory", "0")
        assert await refusal(f"{server.url}?prefix=b") is None


async def test_a_replica_is_refused(start: Start) -> None:
    server = start()
    with server.client() as client:
        client.replicaof("127.0.0.1", "1")
    error = await refusal(server.url)
    assert type(error) is StoreError
    assert "primary" in str(error)


async def test_a_cluster_is_refused(start: Start) -> None:
    error = await refusal(start("--cluster-enabled", "yes").url)
    assert type(error) is StoreError
    assert "cluster" in str(error)


async def test_passwords(start: Start) -> None:
    server = start("--requirepass", "right-secret")
    for login, words in (
        ("", "asks for a password"),
        (":wrong-secret@", "correct the URL"),
        ("ann:x@", "correct the URL"),
    ):
        error = await refusal(server.url.replace("//", f"//{login}"))
        assert type(error) is StoreError
        assert words in str(error)
        shown = ""
        seen: BaseException | None = error
        while seen is not None:
            shown += repr(seen) + str(seen)
            seen = seen.__cause__ or seen.__context__
        assert "secret" not in shown
        assert server.address in shown
    assert await refusal(server.url.replace("//", "//:right-secret@")) is None


async def test_a_password_that_nobody_asked_for(start: Start) -> None:
    error = await refusal(start().url.replace("//", "//:some-secret@"))
    assert type(error) is StoreError
    assert "some-secret" not in str(error)


async def test_who_may_not_do_everything_is_told_before_anything_is_written(start: Start) -> None:
    server = start()
    for rules in (["~flowlet:*", "+@all", "-zadd"], ["~flowlet:h*", "+@all"], ["~flowlet:*", "+@read", "+@connection"]):
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "ann", "reset", "on", ">pw", *rules)
        error = await refusal(server.url.replace("//", "//ann:pw@"))
        assert type(error) is StoreError
        assert "may not" in str(error)
        with server.client() as client:
            assert client.keys("*:head:*") == []


async def test_no_such_database(start: Start) -> None:
    error = await refusal(start("--databases", "2").url.replace("/0", "/2"))
    assert type(error) is StoreError
    assert "no database of this number" in str(error)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "redis://no-such-host.invalid", "unix:///no/such.sock"])
async def test_nobody_there(url: str) -> None:
    error = await refusal(url)
    assert type(error) is StoreUnavailable
    assert url in str(error)
    assert "nothing was stored" in str(error)


async def test_keys_of_somebody_else(start: Start) -> None:
    server = start()
    with server.client() as client:
        client.set("flowlet:head:a", "something else")
    store = RedisStore(server.url)
    with pytest.raises(StoreError, match="prefix"):
        await store.load("a")
    writes = [Write(id=id, expect=0, create=RUN, records=[b"1"]) for id in "bac"]
    outcomes = await asyncio.gather(*(store.append([write]) for write in writes), return_exceptions=True)
    assert list(map(type, outcomes)) == [type(None), StoreError, type(None)], "it concerns nobody else of this turn"
    assert "prefix" in str(outcomes[1])
    assert store.batches == 1
    assert [head.id for head in await store.scan()] == ["b", "c"]
    await store.close()


async def test_prefixes_are_apart(start: Start) -> None:
    server = start()
    one, other = RedisStore(f"{server.url}?prefix=one"), RedisStore(f"{server.url}?prefix=other")
    await one.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])
    assert await other.load("a") is None
    assert list(await other.scan()) == []
    await one.close()
    await other.close()
    with server.client() as client:
        assert {key.partition(b":")[0] for key in client.keys("*")} == {b"one", b"other"}


async def test_a_socket_of_this_host(start: Start, tmp_path: Path) -> None:
    start("--unixsocket", str(tmp_path / "redis.sock"))
    store = RedisStore(f"unix://{tmp_path}/redis.sock?db=1")
    await store.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])
    stored = await store.load("a")
    assert stored is not None
    await store.close()
