"""What SQLite's errors mean to a caller: each becomes one of `flowlet.errors`, with advice.

Law: no exception of the driver passes this store; it is the ``__cause__`` of what does.
"""

from __future__ import annotations

import sqlite3

from flowlet.errors import EncodeError, FlowletError, PayloadTooLarge, StoreError, StoreUnavailable

__all__ = ["DRIVER_ERRORS", "is_busy", "is_fatal", "locked", "translated"]

DRIVER_ERRORS = (sqlite3.Error, UnicodeError, OverflowError)
"""What the driver raises: the last two for a value that SQLite has no form for."""

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
# What was opened for reading only stays so, whatever becomes of the rights.
_FATAL = (
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
)

_MEANINGS: tuple[tuple[int, type[StoreError], str], ...] = (
    (sqlite3.SQLITE_FULL, StoreUnavailable, "the disk is full; make room and try again, nothing was lost"),
    (sqlite3.SQLITE_IOERR, StoreUnavailable, "the disk failed to read or write; see the system's log, then try again"),
    (sqlite3.SQLITE_NOMEM, StoreUnavailable, "there is not enough memory; try again when there is"),
    (
        sqlite3.SQLITE_CANTOPEN,
        StoreUnavailable,
        "the file cannot be opened or created; its directory must exist and be writable for the user of this process, "
        "and so must be the file and those beside it (-wal, -shm)",
    ),
    (
        sqlite3.SQLITE_READONLY,
        StoreError,
        "the file, its directory, or what is beside it (-wal, -shm) is read-only; make all of them writable for the "
        "user of this process",
    ),
    (sqlite3.SQLITE_PERM, StoreError, "access was denied; make the file and its directory readable and writable"),
    (
        sqlite3.SQLITE_CORRUPT,
        StoreError,
        "the database is damaged; check it with `PRAGMA integrity_check` and restore it from a backup",
    ),
    (sqlite3.SQLITE_NOTADB, StoreError, "the file is not a SQLite database; give another path"),
    (sqlite3.SQLITE_TOOBIG, PayloadTooLarge, "a value is too large; store it elsewhere and keep a reference"),
)


def is_busy(error: BaseException) -> bool:
    """Return whether somebody else holds a lock that this statement needs, so that trying again may help."""
    return _code(error) in _BUSY


def is_fatal(error: BaseException) -> bool:
    """Return whether a connection that raised this should not be used any more."""
    return _code(error) in _FATAL


def translated(error: BaseException, path: str) -> FlowletError:
    """Return the error that tells a caller what this one (of `DRIVER_ERRORS`) means."""
    if is_busy(error):
        return StoreUnavailable(f"{path!r}: another process holds the lock; try again")
    code = _code(error)
    for known, kind, meaning in _MEANINGS:
        if code == known:
            return kind(f"{path!r}: {meaning}")
    if code in (None, sqlite3.SQLITE_MISMATCH):
        return EncodeError(f"{path!r}: SQLite cannot store this ({error}); use plain text, bytes and 64-bit numbers")
    return StoreError(f"{path!r}: SQLite refused: {error}")


def locked(path: str, seconds: float) -> StoreUnavailable:
    """Return the error of a lock that another process did not give up in time."""
    text = f"another process has held the lock on {path!r} for {seconds:g} s"
    return StoreUnavailable(f"{text}; find it (`fuser {path}`) or try again, nothing of this call was stored")


def _code(error: BaseException) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
