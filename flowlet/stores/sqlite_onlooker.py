"""Looking at a SQLite file without being a store: for tools that only read.

Law: it makes nothing (no file, no table), changes nothing, and takes no lease. It needs no event loop: its coroutines
wait for nothing but the disk, so that a command line can step through them. It need not be able to write.

A write-ahead log that is there is read with the shared memory beside it. Where there is none, SQLite would leave an
empty one behind a connection that may not write; so one that may is opened, told to write nothing, and takes its files
away when it closes. On a medium that cannot be written to, and without a log, the file is taken as it is.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from flowlet.errors import StoreError, StoreNotFound
from flowlet.store import Capabilities, Claims, Head, Stored, Work, Write
from flowlet.stores import sqlite_reads
from flowlet.stores.sqlite_errors import DRIVER_ERRORS, translated
from flowlet.stores.sqlite_schema import APPLICATION_ID, read_version

__all__ = ["SQLiteOnlooker"]

T = TypeVar("T")

_PATIENCE = 5.0
"""Seconds to wait for a lock that another process holds while it recovers the log."""

_LOOK_EVERY = 0.05


class SQLiteOnlooker:
    """Read what a `flowlet.stores.sqlite.SQLiteStore` keeps in a file.

    Args:
        path: of the file.
        has_loop: it is used on an event loop, which `watch` must not hold up. It reads in the loop's thread.

    Attributes:
        path: the same, absolute.

    Raises:
        StoreNotFound: by its methods: there is no file, or flowlet has never used it.
        StoreError: by its methods: it is somebody else's, damaged, or newer than this code.
    """

    capabilities: Capabilities = Capabilities(durable=True, multi_process=True, leases=False, signals=False)

    def __init__(self, path: str | os.PathLike[str], *, has_loop: bool = True) -> None:
        self.has_loop = has_loop
        self.path: str = os.path.abspath(os.fspath(path))
        self._connection: sqlite3.Connection | None = None
        self._seen = 0

    # Reading ------------------------------------------------------------------------------------
    async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Stored | None:
        """Read an entity; see `flowlet.store.Store.load`."""
        return self._ask(lambda connection: sqlite_reads.load(connection, id, after, limit))

    async def scan(
        self,
        *,
        kind: str | None = None,
        definition: str | None = None,
        status: Sequence[str] | None = None,
        state: str | None = None,
        wake_before: float | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[Head]:
        """List heads in the order of creation; see `flowlet.store.Store.scan`."""
        page = sqlite_reads.Page(
            kind=kind,
            definition=definition,
            status=status,
            state=state,
            wake_before=wake_before,
            after=after,
            limit=limit,
        )
        return self._ask(lambda connection: sqlite_reads.scan(connection, page))

    async def now(self) -> float:
        """Return the store's time: this host's clock."""
        return time.time()

    async def watch(self, seen: int, timeout: float, /) -> int:
        """Wait until another process has changed something, or ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            version = self._ask(lambda connection: connection.execute("PRAGMA data_version").fetchone()[0])
            self._seen = int(version)
            left = deadline - time.monotonic()
            if self._seen != seen or left <= 0:
                await self._pause(0.0)
                return self._seen
            await self._pause(min(left, _LOOK_EVERY))

    async def _pause(self, seconds: float) -> None:
        if not self.has_loop:
            time.sleep(seconds)  # noqa: ASYNC251 - nothing else runs in this thread
            return
        import anyio

        await anyio.sleep(seconds)

    async def workers(self) -> Sequence[tuple[str, float]]:
        """Return the workers on record, each with the time at which its lease ends."""
        return self._ask(lambda c: c.execute("SELECT worker, expires FROM workers ORDER BY expires").fetchall())

    async def schema_version(self) -> int:
        """Return the version of the tables."""
        return self._ask(lambda connection: read_version(connection, self.path))

    async def close(self) -> None:
        """Close the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return question(self._open())
        except DRIVER_ERRORS as error:
            raise translated(error, self.path) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        if not os.path.exists(self.path):
            raise StoreNotFound(f"there is no database at {self.path!r}; nothing was created")
        if os.path.isdir(self.path):
            raise StoreNotFound(f"{self.path!r} is a directory; name a file in it")
        # Autocommit: each read makes its own transaction.
        connection = sqlite3.connect(
            Path(self.path).as_uri() + _mode(self.path), timeout=_PATIENCE, isolation_level=None, uri=True
        )
        try:
            connection.execute("PRAGMA query_only = 1")
            if not read_version(connection, self.path):
                text = f"{self.path!r} is a database without tables: no Flowlet has been opened on it yet"
                raise StoreNotFound(f"{text}; nothing was created")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    # What an onlooker does not do -----------------------------------------------------------------
    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        """Refuse."""
        self._refuse()

    async def claim(
        self,
        worker: str,
        /,
        *,
        definitions: Sequence[tuple[str, str, str]] = (),
        ids: Sequence[str] = (),
        limit: int = 100,
    ) -> Claims:
        """Refuse."""
        self._refuse()

    async def heartbeat(self, worker: str, lease: float, /) -> Sequence[str]:
        """Refuse."""
        self._refuse()

    async def release(self, worker: str, /, ids: Sequence[str] | None = None) -> None:
        """Refuse."""
        self._refuse()

    async def prune(self, *, closed_before: float, limit: int = 1000) -> int:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise StoreError(f"{self.path!r} is only looked at here; use flowlet.stores.sqlite.SQLiteStore to write")


def _mode(path: str) -> str:
    """Return how to open a file so that nothing of the opening stays."""
    log = Path(f"{path}-wal")
    may_write = os.access(path, os.W_OK) and os.access(os.path.dirname(path), os.W_OK)
    if may_write and not log.exists() and _is_ours(path):
        return "?mode=rw"
    if not may_write and not os.access(f"{path}-shm", os.R_OK) and (not log.exists() or not log.stat().st_size):
        return "?mode=ro&immutable=1"
    return "?mode=ro"


def _is_ours(path: str) -> bool:
    """Tell by the file's header whether it is flowlet's: whatever else is there is not opened for writing."""
    try:
        with open(path, "rb") as file:
            header = file.read(100)
    except OSError:
        return False
    return header[68:72] == APPLICATION_ID.to_bytes(4)
