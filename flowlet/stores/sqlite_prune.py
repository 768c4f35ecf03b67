"""Deleting what has ended from a SQLite store.

Law: one call is one transaction of others' that waits, so it deletes a bounded number of rows and bytes,
however many entities it is asked for and however large they are. An entity is gone at once and as a whole
for whoever reads; of one that is too large for a call, the head goes first, and its number stands in the
table ``graves`` until its rows have followed, in this process or in another one.
"""

from __future__ import annotations

import sqlite3

import msgspec

__all__ = ["Pruned", "prune"]

_ROWS = 1_000
"""What one transaction deletes at most; a few milliseconds from a cold file."""

_ROWS_OF_HEAD = 5
"""A head and its entries in the indexes."""

_BYTES = 2 << 20
"""Of values; with SQLite's ``secure_delete``, which many systems build in, as much is written to the log."""

_DOOMED = "SELECT n, version + inbox FROM heads WHERE closed < ? ORDER BY closed, n LIMIT ?"
_WEIGH = """
    SELECT (SELECT total(length(data)) FROM records WHERE n = :n)
        + (SELECT total(length(data)) FROM snapshots WHERE n = :n)
        + (SELECT total(length(payload)) FROM signals WHERE n = :n)
"""
_DELETES = (
    "DELETE FROM records WHERE n = ?",
    "DELETE FROM snapshots WHERE n = ?",
    "DELETE FROM signals WHERE n = ?",
    "DELETE FROM message_ids WHERE n = ?",
    "DELETE FROM heads WHERE n = ?",
)

# For each table the sizes of an entity's next rows, and how to delete those up to one of them.
_PIECES = (
    (
        "SELECT seq, length(data) FROM records WHERE n = ? ORDER BY seq LIMIT ?",
        "DELETE FROM records WHERE n = ? AND seq <= ?",
    ),
    (
        "SELECT version, length(data) FROM snapshots WHERE n = ? LIMIT ?",
        "DELETE FROM snapshots WHERE n = ? AND version <= ?",
    ),
    (
        "SELECT number, length(payload) FROM signals WHERE n = ? ORDER BY number LIMIT ?",
        "DELETE FROM signals WHERE n = ? AND number <= ?",
    ),
    (
        "SELECT message_id, length(message_id) FROM message_ids WHERE n = ? ORDER BY message_id LIMIT ?",
        "DELETE FROM message_ids WHERE n = ? AND message_id <= ?",
    ),
)


class Pruned(msgspec.Struct, frozen=True):
    """What one transaction has deleted.

    Attributes:
        count: entities that are gone.
        size: bytes of values.
        is_over: nothing is left that could be deleted.
    """

    count: int
    size: int
    is_over: bool


class _Budget:
    """What may still be deleted.

    Attributes:
        is_fresh: nothing was taken from it.
    """

    __slots__ = ("is_fresh", "rows", "size")

    def __init__(self) -> None:
        self.rows, self.size, self.is_fresh = _ROWS, _BYTES, True

    @property
    def spent(self) -> int:
        """Bytes that were taken from it."""
        return _BYTES - self.size

    def has(self, rows: int, size: int) -> bool:
        return rows <= self.rows and size <= self.size

    def take(self, rows: int, size: int) -> None:
        self.rows -= rows
        self.size -= size
        self.is_fresh = False


def prune(connection: sqlite3.Connection, closed_before: float, limit: int) -> Pruned:
    """Delete entities closed before this time, oldest first, at most ``limit`` and no more than fits."""
    budget = _Budget()
    if not _clear_graves(connection, budget):
        return Pruned(0, budget.spent, is_over=False)
    count = 0
    doomed = connection.execute(_DOOMED, (closed_before, limit)).fetchall()
    for n, rows in doomed:
        rows += _ROWS_OF_HEAD
        # Not weighed when it has many rows: that would read them all.
        size = 0 if rows > _ROWS else int(connection.execute(_WEIGH, {"n": n}).fetchone()[0])
        if budget.has(rows, size):
            for delete in _DELETES:
                connection.execute(delete, (n,))
            budget.take(rows, size)
            count += 1
        elif not budget.is_fresh:
            break  # a transaction of its own may be enough for it
        else:
            _bury(connection, n)
            _clear_graves(connection, budget)
            return Pruned(1, budget.spent, is_over=False)
    return Pruned(count, budget.spent, is_over=count == len(doomed) < limit)


def _bury(connection: sqlite3.Connection, n: int) -> None:
    """Make an entity vanish whose rows are too many to be deleted at once."""
    connection.execute("INSERT INTO graves VALUES (?)", (n,))
    connection.execute("DELETE FROM heads WHERE n = ?", (n,))


def _clear_graves(connection: sqlite3.Connection, budget: _Budget) -> bool:
    """Delete rows of entities that have vanished; return whether none are left."""
    for (n,) in connection.execute("SELECT n FROM graves ORDER BY n").fetchall():
        if not all(_clear(connection, n, find, delete, budget) for find, delete in _PIECES):
            return False
        connection.execute("DELETE FROM graves WHERE n = ?", (n,))
    return True


def _clear(connection: sqlite3.Connection, n: int, find: str, delete: str, budget: _Budget) -> bool:
    """Delete an entity's rows in one table, as many as fit; return whether they are all gone."""
    last: int | str | None = None
    is_all = True
    for key, size in connection.execute(find, (n, budget.rows + 1)):
        # A value that is larger than what fits goes alone, since it cannot go in parts.
        if not budget.has(1, size) and not budget.is_fresh:
            is_all = False
            break
        budget.take(1, size)
        last = key
    if last is not None:
        connection.execute(delete, (n, last))
    return is_all
