"""The tables of a SQLite store, and connections to them.

Law: a file that is not ours, or that a newer flowlet made, is refused before anything is written to
it. The tables are made, or brought up to date, in one transaction by whichever process comes first: cut off in
the middle, the file is what it was.

A file that an older flowlet made is brought up to date step by step, when it is opened. A process of that older
flowlet which has it open goes on with the statements it knows, so a step adds tables and indexes; one that does more
must say in the changelog that all processes have to be stopped for it. A step that was released is never changed.

Layout: records of different entities that are written together should lie on neighbouring pages, so
everything is keyed by ``n``, a private number that rises with creation (`flowlet.store.Head.order`),
and never by the caller's ids, which may be random. What many entities share (kind, definition and its
version) is in ``catalog``, so that an index entry is two small numbers and a word.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from flowlet.errors import StoreError

__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "connect_reader", "connect_writer", "read_version"]

APPLICATION_ID = 0x666C6F77
"""``flow`` in ASCII, in the file's header: how ``file(1)`` and a later flowlet know whose file it is."""

_TABLES = (
    """
    CREATE TABLE catalog (
        c INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        definition TEXT NOT NULL,
        definition_version TEXT NOT NULL,
        UNIQUE (kind, definition, definition_version)
    )
    """,
    # AUTOINCREMENT: the number of a pruned entity is never given again, so a cursor of `scan` stays valid.
    """
    CREATE TABLE heads (
        n INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        c INTEGER NOT NULL,
        version INTEGER NOT NULL,
        status TEXT NOT NULL,
        state TEXT NOT NULL,
        wake REAL,
        owner TEXT,
        fence INTEGER NOT NULL,
        claims INTEGER NOT NULL,
        inbox INTEGER NOT NULL,
        created REAL NOT NULL,
        updated REAL NOT NULL,
        closed REAL
    )
    """,
    "CREATE TABLE records (n INTEGER, seq INTEGER, data BLOB NOT NULL, PRIMARY KEY (n, seq)) WITHOUT ROWID",
    "CREATE TABLE snapshots (n INTEGER PRIMARY KEY, version INTEGER NOT NULL, data BLOB NOT NULL)",
    """
    CREATE TABLE signals (
        n INTEGER, number INTEGER, topic TEXT NOT NULL, payload BLOB NOT NULL, message_id TEXT,
        PRIMARY KEY (n, number)
    ) WITHOUT ROWID
    """,
    # Outlives the signal: a message that was consumed and is sent again must still be known.
    "CREATE TABLE message_ids (n INTEGER, message_id TEXT, PRIMARY KEY (n, message_id)) WITHOUT ROWID",
    "CREATE TABLE workers (worker TEXT PRIMARY KEY, expires REAL NOT NULL) WITHOUT ROWID",
)

# Every index ends in n, its row's key, so that a listing reads it in the order of creation.
_INDEXES = (
    "CREATE INDEX heads_catalog ON heads (c)",
    "CREATE INDEX heads_status ON heads (c, status)",
    "CREATE INDEX heads_state ON heads (c, state) WHERE state <> ''",
    # Closed entities have no wake and usually no owner: a claim or a release never meets them.
    "CREATE INDEX heads_due ON heads (c, owner, wake) WHERE wake IS NOT NULL",
    "CREATE INDEX heads_owner ON heads (owner) WHERE owner IS NOT NULL",
    "CREATE INDEX heads_closed ON heads (closed) WHERE closed IS NOT NULL",
)


MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (*_TABLES, *_INDEXES),
    # Numbers of entities that are gone, but not all of whose rows are yet; see `flowlet.stores.sqlite_prune`.
    ("CREATE TABLE IF NOT EXISTS graves (n INTEGER PRIMARY KEY)",),
)
"""The statements that make version n + 1 of the tables out of version n; the first makes them out of nothing."""

SCHEMA_VERSION = len(MIGRATIONS)
"""In the file's header as ``user_version``."""


def connect_writer(path: str, synchronous: str) -> sqlite3.Connection:
    """Open the file for writing; make it and its tables if they are not there, and bring them up to date.

    The connection never waits for a lock: who uses it decides how to wait.

    Args:
        path: of the file.
        synchronous: ``"FULL"`` or ``"NORMAL"``.

    Raises:
        StoreError: the file is somebody else's, or newer than this code.
        sqlite3.Error: anything else, a lock among them.
    """
    connection = _connect(path, uri=False)
    try:
        version = read_version(connection, path)
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            _enter_wal(connection, path)
        # The text is one of two constants: a PRAGMA takes no parameters.
        connection.execute("PRAGMA synchronous = FULL" if synchronous == "FULL" else "PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA fullfsync = ON")  # on macOS, fsync alone leaves the data in the drive's cache
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # the writer says when, and in which thread
        connection.execute("PRAGMA journal_size_limit = 67108864")
        if version < SCHEMA_VERSION:
            _migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: str) -> sqlite3.Connection:
    """Open a file that `connect_writer` has opened before, for reading only."""
    # A URI with mode=rw: a file that was taken away is an error and not a new, empty database.
    connection = _connect(Path(path).as_uri() + "?mode=rw", uri=True)
    connection.execute("PRAGMA query_only = 1")
    return connection


def _connect(path: str, *, uri: bool) -> sqlite3.Connection:
    # Several threads may use a connection, one at a time: whoever owns it sees to that.
    return sqlite3.connect(
        path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256, uri=uri
    )


def read_version(connection: sqlite3.Connection, path: str) -> int:
    """Return the version of the tables, 0 for none yet; refuse what is not ours. Writes nothing."""
    connection.execute("BEGIN")  # one view: another process may be making the tables just now
    try:
        return _version(connection, path)
    finally:
        connection.execute("ROLLBACK")


def _version(connection: sqlite3.Connection, path: str) -> int:
    """Return what `read_version` does, inside of a transaction."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application == APPLICATION_ID and 0 < version <= SCHEMA_VERSION:
        return version
    if application == APPLICATION_ID:
        text = f"{path!r} has schema version {version}; this flowlet knows version {SCHEMA_VERSION}"
        raise StoreError(f"{text}. Update flowlet, or give another file; nothing was written")
    if application or version or tables:
        text = f"{path!r} is a database of another application (application_id {application}, {tables} tables)"
        raise StoreError(f"{text}. Give flowlet a file of its own; nothing was written")
    return 0


def _enter_wal(connection: sqlite3.Connection, path: str) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        text = f"{path!r}: the file system allows no write-ahead log (journal mode is {mode!r})"
        raise StoreError(f"{text}; put the file on a local disk")


def _migrate(connection: sqlite3.Connection, path: str) -> None:
    """Make the tables what this code knows, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Asked again under the lock: another process may have done it, and may have been a newer one.
        for statements in MIGRATIONS[_version(connection, path) :]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID:d}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION:d}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
