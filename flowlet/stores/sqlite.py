"""The store in a SQLite file: durable, shared by the processes of one host, needs no server.

Law: this module joins the parts and holds no SQL. Writes go through `sqlite_turn.Turn` to one
`sqlite_writer.Writer`; reads through `sqlite_readers.Readers`. With ``synchronous=FULL`` an acknowledged
append is on the disk; with ``NORMAL`` it survives the end of the process but perhaps not of the power.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio import to_thread

from flowlet.errors import ConfigError, StoreError
from flowlet.store import Capabilities, Claims, Head, Stored, Work, Write
from flowlet.stores import sqlite_leases, sqlite_reads
from flowlet.stores.bell import Bell, CommitTeller
from flowlet.stores.port import port_here
from flowlet.stores.refusal import malformed
from flowlet.stores.sqlite_prune import Pruned
from flowlet.stores.sqlite_readers import Readers
from flowlet.stores.sqlite_turn import Turn
from flowlet.stores.sqlite_work import Append, Job, Open, Prune, Request, Stop
from flowlet.stores.sqlite_writer import Writer

if TYPE_CHECKING:
    from flowlet.stores.sqlite_onlooker import SQLiteOnlooker

__all__ = ["SQLiteStore"]

T = TypeVar("T")

_LARGEST = 512 * 1024 * 1024
"""SQLite's own limit is 10^9 bytes for a row; this leaves no doubt about what else is in it."""

_LISTEN_EVERY = 0.05
_PRUNE_STRIDE = 100
_MOST_READ_HERE = 1 << 20


class SQLiteStore(CommitTeller):
    """Keep history in a SQLite file in WAL mode.

    The file and its tables are made at the first use; a call after `close` opens again, on any event
    loop. One event loop at a time. ``work`` runs in the writer's thread with its
    `sqlite3.Connection`; it must not begin or end transactions, and may run a second time when the
    transaction that it was part of had to be repeated (all it did in the database was undone).

    An append that is cancelled after it was accepted still waits for its outcome, a few milliseconds
    as a rule, and then raises the cancellation.

    Args:
        path: of the file; a relative one is resolved now.
        synchronous: ``"FULL"``, or ``"NORMAL"`` to trade the loss of power for speed.
        busy_timeout: seconds to wait while another process holds the lock.
        clock: returns the store's time, in seconds since the epoch; all processes on the file must
            have the same.

    Raises:
        ConfigError: an argument is not allowed.
    """

    capabilities: Capabilities = Capabilities(
        durable=True, multi_process=True, transactional=True, max_payload=_LARGEST
    )

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: str = "FULL",
        busy_timeout: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if synchronous not in ("FULL", "NORMAL"):
            raise ConfigError(f"synchronous={synchronous!r} is not known; allowed are 'FULL' and 'NORMAL'")
        name = os.fspath(path)
        if not name or "\0" in name:
            raise ConfigError(f"{name!r} names no file; give the path of a database")
        self.path: str = os.path.abspath(name)
        self._synchronous, self._busy_timeout, self._clock = synchronous, busy_timeout, clock
        self._bell = Bell()
        self._process = 0
        self._writer: Writer | None = None
        self._readers: Readers | None = None
        self._turn: Turn | None = None

    @property
    def clock(self) -> Callable[[], float] | None:
        """The clock it was given, if time does not pass by itself in it."""
        return None if self._clock is time.time else self._clock

    # Writing ------------------------------------------------------------------------------------
    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        """Store all writes or none of them; see `flowlet.store.Store.append`."""
        if error := malformed(writes, _LARGEST):
            raise error
        if not writes and work is None:
            return
        turn = self._turn_here()
        if turn.is_full():
            turn = await self._turn_with_room()
        await turn.result(Append(writes, work))

    async def _ask(self, request: Request) -> Any:
        turn = await self._turn_with_room()
        return await turn.result(request)

    async def _turn_with_room(self) -> Turn:
        turn = self._turn_here()
        while turn.is_full():
            await turn.room()
            turn = self._turn_here()
        return turn

    def _turn_here(self) -> Turn:
        turn = self._turn
        if turn is None or not turn.port.is_here():
            turn = self._turn = Turn(port_here(), self._open_writer(), self._bell)
        return turn

    def _open_writer(self) -> Writer:
        process = os.getpid()
        if self._writer is None:
            self._process = process
            self._writer = Writer(
                self.path,
                synchronous=self._synchronous,
                busy_timeout=self._busy_timeout,
                clock=self._clock,
                largest=_LARGEST,
            )
            self._readers = Readers(self.path, busy_timeout=self._busy_timeout)
        elif self._process != process:
            # SQLite's locks and the writer's thread did not come along: to go on would corrupt the file.
            text = f"the store on {self.path!r} was open when this process was forked from process {self._process}"
            raise StoreError(f"{text}; close it before forking, or start processes with 'spawn'")
        return self._writer

    # Reading ------------------------------------------------------------------------------------
    async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Stored | None:
        """Read an entity; see `flowlet.store.Store.load`."""
        readers = await self._open_readers()
        read = partial(sqlite_reads.load, id=id, after=after, limit=limit)
        if readers.may_read_here():
            try:
                return readers.read_here(partial(read, most=_MOST_READ_HERE))
            except (BlockingIOError, sqlite_reads.TooLong):
                pass  # a thread can wait, and take its time
        return await to_thread.run_sync(readers.read, read)

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
        readers = await self._open_readers()
        page = sqlite_reads.Page(
            kind=kind,
            definition=definition,
            status=status,
            state=state,
            wake_before=wake_before,
            after=after,
            limit=limit,
        )
        return await to_thread.run_sync(readers.read, partial(sqlite_reads.scan, page=page))

    async def _open_readers(self) -> Readers:
        turn = self._turn_here()
        while self._readers is None or self._writer is None or not self._writer.is_open:
            await turn.result(Open())
            turn = self._turn_here()
        return self._readers

    # Leases -------------------------------------------------------------------------------------
    async def claim(
        self,
        worker: str,
        /,
        *,
        definitions: Sequence[tuple[str, str, str]] = (),
        ids: Sequence[str] = (),
        limit: int = 100,
    ) -> Claims:
        """Take entities that nobody alive owns; see `flowlet.store.Store.claim`."""
        claim = partial(sqlite_leases.claim, worker=worker, definitions=definitions, ids=ids, limit=limit)
        claims: Claims = await self._ask(Job(claim, is_brief=limit <= 100))
        return claims

    async def heartbeat(self, worker: str, lease: float, /) -> Sequence[str]:
        """Say that the worker lives for ``lease`` more seconds; return the others on record."""
        others: Sequence[str] = await self._ask(Job(partial(sqlite_leases.heartbeat, worker=worker, lease=lease)))
        return others

    async def release(self, worker: str, /, ids: Sequence[str] | None = None) -> None:
        """Give back the worker's leases on these ids, or all of them and its place on record."""
        job = partial(sqlite_leases.release, worker=worker, ids=ids)
        await self._ask(Job(job, notable=True, is_brief=ids is not None and len(ids) <= 100))

    async def now(self) -> float:
        """Return the store's own time, in seconds since the epoch: this host's clock."""
        return self._clock()

    async def watch(self, seen: int, timeout: float, /) -> int:
        """Wait until the change counter differs from ``seen``, or ``timeout`` seconds; return it.

        Another process's commit is noticed within 50 ms.
        """
        await self._open_readers()
        bell, deadline = self._bell, time.monotonic() + timeout
        writer = self._open_writer()
        writer.watchers += 1
        try:
            while True:
                if writer.has_news():
                    bell.ring()
                left = deadline - time.monotonic()
                if bell.count != seen or left <= 0:
                    return bell.count
                await bell.wait(seen, min(left, _LISTEN_EVERY))
        finally:
            writer.watchers -= 1

    async def prune(self, *, closed_before: float, limit: int = 1000) -> int:
        """Delete at most ``limit`` entities closed before this time, oldest first; return how many.

        It goes in short transactions with pauses between them, so that the appends of others, also of
        other processes, come in between.
        """
        count = 0
        while count < limit:
            began = time.monotonic()
            pruned: Pruned = await self._ask(Prune(closed_before, min(_PRUNE_STRIDE, limit - count)))
            count += pruned.count
            if pruned.is_over or count >= limit:
                break
            await anyio.sleep(time.monotonic() - began)
        return count

    async def onlooker(self) -> SQLiteOnlooker:
        """Return what reads the same file and neither makes nor changes anything."""
        from flowlet.stores.sqlite_onlooker import SQLiteOnlooker

        return SQLiteOnlooker(self.path)

    async def close(self) -> None:
        """Finish what was accepted, empty the write-ahead log, free connections and the thread."""
        writer, readers = self._writer, self._readers
        if writer is None or readers is None:
            return
        turn = self._turn_here()
        self._writer = self._readers = self._turn = None
        readers.close()
        self._bell.ring()
        await turn.finish(Stop())

    # What it has done, for tests and benchmarks ---------------------------------------------------
    @property
    def commits(self) -> int:
        """Transactions committed since the store was opened."""
        return 0 if self._writer is None else self._writer.commits

    @property
    def inline_commits(self) -> int:
        """Those of them that the current event loop made itself, at the end of a turn."""
        return 0 if self._turn is None else self._turn.inline
