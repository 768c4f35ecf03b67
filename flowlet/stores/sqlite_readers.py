"""The connections that read from a SQLite file.

Law: a read sees everything that was acknowledged before it began, waits for no writer, and stays in
the event loop's own thread only when it is known to be short.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar

from flowlet.stores.sqlite_errors import DRIVER_ERRORS, is_busy, is_fatal, locked, translated
from flowlet.stores.sqlite_pace import Pace
from flowlet.stores.sqlite_schema import connect_reader
from flowlet.stores.sqlite_writer import patience

__all__ = ["Readers"]

T = TypeVar("T")

_IDLE = 4
"""Connections that are kept open for the next reader."""


class Readers:
    """A few connections, each used by one reader at a time.

    Args:
        path: of the file, which a writer has opened before.
        busy_timeout: seconds to wait while another process recovers or truncates the log.
    """

    def __init__(self, path: str, *, busy_timeout: float) -> None:
        self._path, self._busy_timeout = path, busy_timeout
        self._idle: list[sqlite3.Connection] = []
        self._is_closed = False
        self._pace = Pace()

    def may_read_here(self) -> bool:
        """Return whether `read_here` is worth trying."""
        return bool(self._idle) and self._pace.is_short(time.monotonic())

    def read_here(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Read in the event loop's thread.

        Raises:
            BlockingIOError: somebody holds a lock; read in another thread, which can wait.
        """
        began = time.monotonic()
        try:
            return self._read(read)
        except DRIVER_ERRORS as error:
            if is_busy(error):
                raise BlockingIOError from error
            raise translated(error, self._path) from error
        finally:
            now = time.monotonic()
            self._pace.note_here(now - began, now)

    def read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Read in this thread, and wait if need be."""
        for pause in patience(self._busy_timeout):
            began = time.monotonic()
            try:
                value = self._read(read)
            except DRIVER_ERRORS as error:
                if not is_busy(error):
                    raise translated(error, self._path) from error
                time.sleep(pause)
            else:
                self._pace.note_elsewhere(time.monotonic() - began)
                return value
        raise locked(self._path, self._busy_timeout)

    def close(self) -> None:
        """Close the connections; one that is in use closes when its reader is through."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = connect_reader(self._path)
        try:
            value = read(connection)
        except Exception as error:
            if is_fatal(error):
                connection.close()
            else:
                self._give_back(connection)
            raise
        self._give_back(connection)
        return value

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if self._is_closed or len(self._idle) >= _IDLE:
            connection.close()
        else:
            self._idle.append(connection)
