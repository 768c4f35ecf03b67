"""What the URL of a Redis store may say, and that naming one does no I/O and shows no password."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
import redis_server

import flowlet
from flowlet.errors import ConfigError, StoreError
from flowlet.stores import open_store
from flowlet.stores.redis import RedisStore
from flowlet.stores.redis_url import Place

LOCAL = {"host": "localhost", "port": 6379, "db": 0, "socket_connect_timeout": 5.0, "socket_keepalive": True}


@pytest.mark.parametrize(
    ("url", "name", "options"),
    [
        ("redis://", "redis://localhost:6379/0", LOCAL),
        ("redis://h:7/3", "redis://h:7/3", {**LOCAL, "host": "h", "port": 7, "db": 3}),
        ("redis://h?db=2", "redis://h:6379/2", {**LOCAL, "host": "h", "db": 2}),
        ("redis://[::1]:7", "redis://[::1]:7/0", {**LOCAL, "host": "::1", "port": 7}),
        (
            "redis://ann:s%40cret@h/?socket_connect_timeout=2.5",
            "redis://h:6379/0",
            {**LOCAL, "host": "h", "username": "ann", "password": "s@cret", "socket_connect_timeout": 2.5},
        ),
        ("redis://:secret@h", "redis://h:6379/0", {**LOCAL, "host": "h", "password": "secret"}),
        (
            "rediss://h?ssl_ca_certs=%2Fca.pem&ssl_check_hostname=no",
            "rediss://h:6379/0",
            {**LOCAL, "host": "h", "ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False},
        ),
        (
            "unix:///run/re%20dis.sock?db=1&password=secret",
            "unix:///run/re dis.sock?db=1",
            {"path": "/run/re dis.sock", "db": 1, "password": "secret", "socket_connect_timeout": 5.0},
        ),
    ],
)
def test_where_it_is(url: str, name: str, options: dict[str, object]) -> None:
    place = Place(url)
    assert (place.name, place.options) == (name, options)
    assert (place.prefix, place.durability, place.timeout) == ("flowlet", None, 10.0)
    assert "secret" not in repr(place) + repr(open_store(url)) + str(vars(open_store(url)))


def test_what_is_asked_of_it() -> None:
    place = Place("redis://h?prefix=my-app.1_x&durability=second&socket_timeout=3")
    assert (place.prefix, place.durability, place.timeout) == ("my-app.1_x", "second", 3.0)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://h/flowlet", ["'flowlet'", "number"]),
        ("redis://h:port", ["cannot be read", "redis://host:port/0"]),
        ("redis://:pa/ss@h", ["%2F"]),
        ("redis://:12/ss@h", ["%2F"]),
        ("redis://:12?ss@h", ["%3F"]),
        ("redis://:pa#ss@h", ["%23"]),
        ("redis://h?prefix=a:b", ["'a:b'", "letters"]),
        ("redis://h?prefix=", ["''", "letters"]),
        ("redis://h?prefix=" + "x" * 65, ["64"]),
        ("redis://h?prefix=a%0A", ["letters"]),
        ("redis://h?prefix=a'%3B--", ["letters"]),
        ("redis://h?durability=always", ["'always'", "'power'", "'second'", "'none'"]),
        ("redis://h?db=-1", ["db='-1'"]),
        ("redis://h?socket_timeout=0", ["socket_timeout='0'"]),
        ("redis://h?socket_timeout=nan", ["socket_timeout='nan'"]),
        ("redis://h?decode_responses=True", ["'decode_responses'", "prefix", "ssl_ca_certs"]),
        ("redis://h?ssl_ca_certs=x", ["ssl_ca_certs", "rediss://"]),
        ("unix://", ["socket"]),
    ],
)
def test_what_it_may_not_say(url: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert not any(part in text for part in ("pa/ss", "ss@h", "'pa'", "12"))
    assert caught.value.__cause__ is None


def test_flags() -> None:
    flags = open_store("redis://h").capabilities
    assert (flags.durable, flags.multi_process, flags.transactional) == (False, True, False)
    assert (flags.leases, flags.signals) == (True, True)
    assert flags.max_payload is not None
    assert open_store("redis://h?durability=power").capabilities.durable
    assert not open_store("redis://h?durability=second").capabilities.durable


def test_the_library_is_imported_for_this_store_only() -> None:
    code = "import sys, flowlet, flowlet.stores as s; s.open_store('memory://'); print('redis' in sys.modules)"
    assert _run(code) == "False"


def test_without_the_library() -> None:
    code = """
import sys
sys.modules["redis"] = sys.modules["redis.asyncio"] = None
from flowlet.errors import MissingExtra
from flowlet.stores import open_store
try:
    open_store("redis://:secret@h")
except MissingExtra as error:
    print(error)
"""
    assert "pip install 'flowlet[redis]'" in _run(code)


def _run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return ran.stdout.strip()


def test_on_trio() -> None:
    async def use() -> None:
        store = RedisStore("redis://h")
        for call in (store.load("a"), store.now(), store.heartbeat("w", 1)):
            with pytest.raises(StoreError, match="asyncio only"):
                await call
        await store.close()

    anyio.run(use, backend="trio")


def test_open_store_opens_it() -> None:
    url, prefix = redis_server.shared(), f"flowlet-test-{os.getpid()}-open"

    async def use() -> None:
        store = open_store(f"{url}?prefix={prefix}")
        assert await store.load("a") is None
        await store.close()

    try:
        anyio.run(use)
    finally:
        redis_server.remove(url, prefix)
