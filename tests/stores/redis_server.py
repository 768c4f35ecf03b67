"""Redis servers for tests: one that is there already, or one that is started for the tests and thrown away.

`shared` gives the URL of a server that others may use, too (that of ``FLOWLET_TEST_REDIS``, if it is set): whoever
takes it uses keys with a prefix of its own and removes them. `Server` is one of the caller's own, on a free port
of this host, to be killed, filled and configured at will. Where there is none, tests are skipped, or fail if
``FLOWLET_TEST_REQUIRE`` names redis.
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

with suppress(ImportError):
    import redis.asyncio  # noqa: F401 - before anything is forked: it takes its time

__all__ = ["DURABLE", "Server", "best", "client_of", "durable", "remove", "shared"]

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
_USUAL = "redis://127.0.0.1:6379/0"
_STARTS_WITHIN = 20


def needs_driver() -> Any:
    """Return redis-py, or skip."""
    try:
        import redis
    except ImportError:
        _skip("redis-py is not installed: pip install 'flowlet[redis]'")
    return redis


def _skip(reason: str) -> None:
    if "redis" in os.environ.get("FLOWLET_TEST_REQUIRE", "").split(","):
        pytest.fail(f"FLOWLET_TEST_REQUIRE asks for redis, but {reason}")
    pytest.skip(reason)


def client_of(url: str) -> Any:
    """Return a client of redis-py that is not for asyncio."""
    return needs_driver().Redis.from_url(url.partition("?")[0], socket_timeout=20)


def remove(url: str, prefix: str) -> None:
    """Delete all keys of a prefix, and no others."""
    with client_of(url) as client:
        keys = list(client.scan_iter(match=f"{prefix}:*", count=1000))
        for start in range(0, len(keys), 1000):
            client.unlink(*keys[start : start + 1000])


def _free_port() -> int:
    """Return a port below those that systems give to who connects: one of these would be taken between two starts."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


class Server:
    """A server of one's own.

    Args:
        folder: where it keeps its files.
        options: as on its command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        needs_driver()
        if shutil.which("redis-server") is None:
            _skip("there is no redis-server: apt-get install redis-server")
        self.folder, self.options = folder, options
        self.port = _free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"redis://{self.address}/0"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, on what it has kept, and wait until it answers."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        with open(self.folder / "redis.log", "ab") as log:
            self._process = subprocess.Popen([*command, "--save", "", *self.options], stdout=log, stderr=log)
        end = time.monotonic() + _STARTS_WITHIN
        while not self._answers():
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError((self.folder / "redis.log").read_text())
            time.sleep(0.01)

    def _answers(self) -> bool:
        redis = needs_driver()
        try:
            with self.client() as client:
                return bool(client.ping())
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError):
            return True
        except redis.ConnectionError:
            return False

    def client(self) -> Any:
        """Return a client of redis-py that is not for asyncio."""
        return client_of(self.url)

    def kill(self) -> None:
        """End it as a power switch would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let it answer nobody, and hang up on nobody."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@cache
def durable() -> str:
    """Return the URL of a server that brings everything to the disk; it is this process's own until it ends."""
    folder = Path(tempfile.mkdtemp(prefix="flowlet-redis-"))
    server = Server(folder, *DURABLE)

    def end() -> None:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return server.url


@cache
def shared() -> str:
    """Return the URL of a server: that of ``FLOWLET_TEST_REDIS``, or the usual one, or one of this process's own."""
    redis = needs_driver()
    url = os.environ.get("FLOWLET_TEST_REDIS")
    if url is None:
        try:
            with client_of(_USUAL) as client:
                client.ping()
            url = _USUAL
        except redis.RedisError:
            url = durable()
    return url


def best() -> str:
    """Return the URL of a store on the server that can do the most here, to which options can be added with ``&``."""
    url = os.environ.get("FLOWLET_TEST_REDIS")
    if url is not None:
        return url if "?" in url else f"{url}?"
    return f"{durable()}?durability=power" if shutil.which("redis-server") else f"{shared()}?"
