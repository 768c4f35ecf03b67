"""The one that writes to a SQLite file: a connection, and a thread that commits in groups.

Law: an outcome is on its request before anybody is told. Whatever is queued while a commit is under way
is the next commit; there is no timer. The connection belongs to whoever holds `Writer.lock`, the
thread or an event loop; it never waits for SQLite's own lock inside a call, so that the one can always
tell the other.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from operator import attrgetter
from queue import SimpleQueue

from flowlet.errors import FlowletError
from flowlet.stores.sqlite_batch import Batch, Rows, TransactionLost, WorkFailed
from flowlet.stores.sqlite_errors import DRIVER_ERRORS, is_busy, is_fatal, locked, translated
from flowlet.stores.sqlite_pace import Pace
from flowlet.stores.sqlite_schema import connect_writer
from flowlet.stores.sqlite_work import Request, Stop

__all__ = ["Writer", "patience"]


_MOST_ROWS = 10_000
"""Heads that are remembered from batch to batch; a few megabytes."""

_LONG_LOG = 1000
"""Pages; SQLite's own measure, too."""


class _Busy(Exception):
    """Another process holds the lock; nothing was done."""


class Writer:
    """Commits requests, in its own thread or in the caller's.

    Args:
        path: of the file.
        synchronous: ``"FULL"`` or ``"NORMAL"``.
        busy_timeout: seconds to wait for another process's lock.
        clock: the store's time.
        largest: the largest value that is accepted, in bytes.

    Attributes:
        pace: how long commits take.
        commits: transactions that were committed.
        served: batches that the thread is through with.
        is_open: whether the file has been opened, and made if need be.
        watchers: how many want to know of other processes' commits.
    """

    def __init__(
        self, path: str, *, synchronous: str, busy_timeout: float, clock: Callable[[], float], largest: int
    ) -> None:
        self.pace: Pace = Pace()
        self.commits: int = 0
        self.served: int = 0
        self.is_open: bool = False
        self.watchers = 0
        self._path, self._synchronous, self._busy_timeout = path, synchronous, busy_timeout
        self._clock, self._largest = clock, largest
        self._lock = threading.Lock()
        self._queue: SimpleQueue[Sequence[Request]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._data_version = -1
        self._has_news = False  # something was committed that those who watch have not been told of
        self._log_pages = 0  # written to the write-ahead log since it was shortened, about
        self._rows: Rows = {}

    # Called on an event loop --------------------------------------------------------------------
    def hand(self, requests: Sequence[Request]) -> None:
        """Have the thread do these; it tells their `Turn` when they are done."""
        self._queue.put(requests)
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=f"flowlet {self._path}", daemon=True)
            self._thread.start()

    def commit_here(self, requests: Sequence[Request]) -> bool | None:
        """Do these now, in this thread, if nobody is in the way.

        Returns:
            None when somebody is, and they are to be handed over; else whether there are news for
            those who watch.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if self._connection is None or self._log_pages > _LONG_LOG:
                return None
            self._do(requests, self._note_here)
            return self._take_news()
        except _Busy:
            return None
        finally:
            self._lock.release()

    def has_news(self) -> bool:
        """Return whether somebody has committed what those who watch were not told, if that can be seen now."""
        if not self._lock.acquire(blocking=False):
            return False  # a commit is under way; whoever makes it will look when it is through
        try:
            self._listen()
            return self._take_news()
        except sqlite3.Error:
            return False
        finally:
            self._lock.release()

    # The thread ---------------------------------------------------------------------------------
    def _serve(self) -> None:
        while self._serve_batch():
            pass

    def _serve_batch(self) -> bool:
        """Do what is queued, at least one; return whether to go on."""
        requests = list(self._queue.get())
        while not self._queue.empty():
            requests += self._queue.get()
        self._do_patiently(requests)
        self.served += 1
        is_over = any(isinstance(request, Stop) for request in requests)
        if is_over:
            self._close()
        news = self._take_news()
        for turn, group in itertools.groupby(requests, key=attrgetter("turn")):
            turn.finished(list(group), news)
        self._shorten_log()
        return not is_over

    def _do_patiently(self, requests: Sequence[Request]) -> None:
        for pause in patience(self._busy_timeout):
            try:
                with self._lock:
                    self._do(requests, self._note_there)
                return
            except _Busy:
                time.sleep(pause)
        for request in requests:
            if not request.done:
                request.error, request.done = locked(self._path, self._busy_timeout), True

    def _shorten_log(self) -> None:
        """Copy a long write-ahead log into the database, so that it can begin again from the front.

        Here and not in SQLite's own time, which would be in some commit and perhaps in an event loop's
        thread; and after the outcomes are told, which do not depend on it.
        """
        with self._lock:
            if self._connection is not None and self._log_pages > _LONG_LOG:
                self._log_pages = 0
                with suppress(sqlite3.Error):  # somebody still reads from it: it is tried again
                    self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is None:
                return
            # If somebody reads or the disk is full, the log stays, and is read at the next opening.
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()

    # With the lock ------------------------------------------------------------------------------
    def _do(self, requests: Sequence[Request], note: Callable[[float, int], None]) -> None:
        """Do all requests that are not done, each with its own outcome, or raise `_Busy`."""
        requests = [request for request in requests if not request.done]
        try:
            if any(request.needs_file for request in requests):
                self._open()
            if any(request.writes_data for request in requests):
                self._transact(requests, note)
        except BaseException as error:
            self._roll_back(error)
            if is_busy(error):
                raise _Busy from error
            if not isinstance(error, Exception):
                raise
            if len(requests) > 1:
                # Somebody's write broke the transaction of all: each gets one of its own.
                for request in requests:
                    self._do([request], note)
                return
            requests[0].error = self._outcome(error)
        for request in requests:
            request.done = True
        if self.watchers:
            with suppress(sqlite3.Error):
                self._listen()

    def _outcome(self, error: Exception) -> BaseException:
        cause = error.__cause__ if isinstance(error, TransactionLost) else error
        if isinstance(cause, WorkFailed):
            return cause.error
        if isinstance(cause, FlowletError):
            return cause
        if not isinstance(cause, DRIVER_ERRORS):
            return cause or error  # a defect of this code: hiding it would help nobody
        outcome = translated(cause, self._path)
        outcome.__cause__ = cause
        return outcome

    def _open(self) -> None:
        if self._connection is None:
            self._connection = connect_writer(self._path, self._synchronous)
            self.is_open = True

    def _transact(self, requests: Sequence[Request], note: Callable[[float, int], None]) -> None:
        connection = self._connection
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        batch = Batch(connection, self._clock(), self._largest, self._known_rows())
        for request in requests:
            request.attempt(batch)
        batch.flush()
        began = time.monotonic()
        connection.execute("COMMIT")
        note(time.monotonic() - began, len(requests))
        self.commits += 1
        self._log_pages += 2 + 2 * len(requests) + sum(request.size for request in requests) // 2048
        self._has_news |= batch.notable

    def _note_here(self, seconds: float, requests: int) -> None:
        # The commit of many may take longer than that of one: it saves as many hops.
        self.pace.note_here(seconds / (1 + requests / 32), time.monotonic())

    def _note_there(self, seconds: float, requests: int) -> None:
        self.pace.note_elsewhere(seconds / (1 + requests / 32))

    def _known_rows(self) -> Rows:
        # The lock is held: what nobody has changed until now, nobody will change before the commit.
        self._listen()
        if len(self._rows) > _MOST_ROWS:
            self._rows.clear()
        return self._rows

    def _roll_back(self, error: BaseException) -> None:
        self._rows.clear()
        connection = self._connection
        if connection is None:
            return
        with suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        if is_fatal(error) or connection.in_transaction:
            self._connection = None
            connection.close()

    def _listen(self) -> None:
        """Learn whether others have committed; what is known of the heads is then of no use."""
        # Asked on the connection that writes, this tells other connections' commits and not its own.
        if self._connection is None:
            return
        version = self._connection.execute("PRAGMA data_version").fetchone()[0]
        if version != self._data_version:
            self._data_version = version
            self._rows.clear()
            self._has_news = True

    def _take_news(self) -> bool:
        has_news, self._has_news = self._has_news, False
        return has_news


def patience(seconds: float) -> Iterator[float]:
    """Yield pauses between attempts until so many seconds have passed.

    They stay short, and differ: a process that commits one transaction after the other leaves the lock
    free for moments only, and who sleeps long between two looks never meets one.
    """
    deadline = time.monotonic() + seconds
    for pause in itertools.cycle((0.0005, 0.001, 0.002, 0.005)):
        yield pause
        if time.monotonic() >= deadline:
            return
