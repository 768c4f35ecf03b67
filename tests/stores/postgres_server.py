"""A PostgreSQL server for the tests: the one that is there, or a throwaway one of this session's.

Law: tests write to databases of their own, which are dropped, and never to one that was there. Nothing here is
imported by the package. A server that cannot be had is a skip whose reason says how to get one; with
``FLOWLET_TEST_REQUIRE=postgres`` it is a failure.

Where it comes from: ``FLOWLET_TEST_POSTGRES`` (a URL of a user who may create databases), else what answers at
127.0.0.1:5432, else Debian's binaries on a free port.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

with suppress(ImportError):
    import asyncpg  # noqa: F401 - before anything is forked: it takes its time

VARIABLE = "FLOWLET_TEST_POSTGRES_DATABASE"
"""The URL of the database of these tests: other processes inherit it."""

_HOW = "start PostgreSQL on 127.0.0.1:5432, name one in FLOWLET_TEST_POSTGRES, or `apt-get install postgresql`"


def database_url() -> str:
    """Return the URL of an empty database for these tests, which is dropped when this process ends.

    Child processes get their parent's. Skips, or fails, when there is no server.
    """
    url = os.environ.get(VARIABLE)
    if url is None:
        url = os.environ[VARIABLE] = _made(_server_url(), os.getpid())
    return url


def refuse(reason: str) -> None:
    """Skip what needs a server, or fail where one is required."""
    text = f"{reason}: {_HOW}"
    if "postgres" in os.environ.get("FLOWLET_TEST_REQUIRE", "").split(","):
        pytest.fail(text)
    pytest.skip(text, allow_module_level=True)


def run_sql(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements on a connection of their own, from a place without an event loop; return the last one's rows."""
    asyncpg = pytest.importorskip("asyncpg")

    async def run() -> list[tuple[object, ...]]:
        connection = await asyncpg.connect(url)
        rows: list[tuple[object, ...]] = []
        try:
            for statement in statements:
                rows = [tuple(row) for row in await connection.fetch(statement)]
        finally:
            await connection.close()
        return rows

    return _apart(run)


def _apart(main):  # type: ignore[no-untyped-def]
    """Run a coroutine function in a thread, so that a running event loop is not in the way."""
    import threading

    outcome: list[object] = []

    def call() -> None:
        try:
            outcome.append(asyncio.run(main()))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    (value,) = outcome
    if isinstance(value, BaseException):
        raise value
    return value


def in_database(url: str, name: str) -> str:
    """Return the URL of another database on the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@contextmanager
def new_database(url: str, encoding: str = "UTF8") -> Iterator[str]:
    """Make a database on the server of this one, and drop it in the end."""
    name = f"flowlet_{secrets.token_hex(6)}"
    run_sql(url, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'")
    try:
        yield in_database(url, name)
    finally:
        run_sql(url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _made(server: str, process: int) -> str:
    context = new_database(server)
    made = context.__enter__()

    def drop() -> None:
        if os.getpid() == process:  # and not in a forked child
            context.__exit__(None, None, None)

    atexit.register(drop)
    return made


def _server_url() -> str:
    given = os.environ.get("FLOWLET_TEST_POSTGRES")
    if given:
        return given
    for url in ("postgresql://postgres@127.0.0.1:5432/postgres", "postgresql://127.0.0.1:5432/postgres"):
        try:
            run_sql(url, "SELECT 1")
        except Exception:
            continue
        return url
    server = throwaway()
    atexit.register(server.remove)
    return server.url


class Server:
    """A server of our own, in a directory of its own, on a free port of this host.

    Attributes:
        url: its database ``postgres``.
    """

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._owner = os.getpid()
        self._user = "postgres" if os.getuid() == 0 else None  # the server refuses to run as root
        self.folder = Path(tempfile.mkdtemp(prefix="flowlet-pg-"))
        if self._user is not None:
            os.chown(self.folder, pwd.getpwnam(self._user).pw_uid, -1)
        self.port = _free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._call(
            "initdb",
            "--auth=trust",
            "--username=postgres",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
            "-D",
            self._data,
        )
        for line in (f"port={self.port}", "listen_addresses='127.0.0.1'", "unix_socket_directories=''", "fsync=off"):
            self.configure(line)

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _call(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        done = subprocess.run(
            command,
            user=self._user,
            capture_output=True,
            text=True,
            cwd=self.folder,
            timeout=60,
            extra_groups=[] if self._user else None,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout}{done.stderr}")

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._call("pg_ctl", "start", "-w", "-D", self._data, "-l", str(self.folder / "log"))

    def stop(self, mode: str = "immediate") -> None:
        """Stop it: ``immediate`` as a crash would, ``fast`` in good order."""
        self._call("pg_ctl", "stop", "-w", "-m", mode, "-D", self._data)

    def configure(self, line: str, file: str = "postgresql.conf", *, first: bool = False) -> None:
        """Add a line to a file of the server's configuration; takes effect when it is started."""
        path = self.folder / "data" / file
        old = path.read_text()
        path.write_text(f"{line}\n{old}" if first else f"{old}{line}\n")

    def remove(self) -> None:
        """Stop it, and take away all it has."""
        if os.getpid() == self._owner:
            with suppress(RuntimeError, subprocess.TimeoutExpired):
                self.stop()
            shutil.rmtree(self.folder, ignore_errors=True)


def throwaway() -> Server:
    """Start a server of our own; skip, or fail, where there are no binaries for it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        refuse("there is no PostgreSQL server for this test")
    server = Server(found[-1].parent)
    try:
        server.start()
    except BaseException:
        server.remove()
        raise
    return server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition, seconds: float = 10.0) -> None:  # type: ignore[no-untyped-def]
    """Wait until something is so, in a thread that may be held up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.01)
