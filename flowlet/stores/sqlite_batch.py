"""The appends that one SQLite transaction commits together.

Law: a write is judged against what is stored *and* what this batch has accepted before it; a refused
append leaves no trace in the batch and does not disturb the others. Nothing here begins or ends the
transaction.

How it works: the heads that are written to are read first (the write lock is held, so they stay as
they are read) and changed in memory; `Batch.flush` then writes each table in one go. Heads that an
earlier batch has left behind need not be read again as long as nobody else has committed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from flowlet.errors import StoreError
from flowlet.store import UNCHANGED, New, Signal, Work, Write
from flowlet.stores.refusal import malformed, refusal, written

__all__ = ["Batch", "Rows", "TransactionLost", "WorkFailed"]

_STATUS, _STATE, _LEASE = 1, 2, 4

# A statement for each set of changed columns: SQLite maintains an index whenever one of its columns is
# named, changed or not, so the usual append must not name the columns of leases.
_UPDATES = tuple(
    "".join(
        (
            "UPDATE heads SET version = ?, claims = ?, inbox = ?, updated = ?",
            ", status = ?" if changed & _STATUS else "",
            ", state = ?" if changed & _STATE else "",
            ", wake = ?, owner = ?, fence = ?, closed = ?" if changed & _LEASE else "",
            " WHERE n = ?",
        )
    )
    for changed in range(8)
)
_FIND = "SELECT n, version, wake, owner, fence, claims, inbox, closed FROM heads WHERE id = ?"
_INSERT_HEAD = "INSERT INTO heads VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_RECORD = "INSERT INTO records VALUES (?, ?, ?)"
_INSERT_SIGNAL = "INSERT INTO signals VALUES (?, ?, ?, ?, ?)"
_INSERT_MESSAGE_ID = "INSERT INTO message_ids VALUES (?, ?)"
_CONSUME = "DELETE FROM signals WHERE n = ? AND number <= ?"
_SET_SNAPSHOT = "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?)"


class TransactionLost(Exception):
    """SQLite, or a trigger, rolled back the whole transaction; what the batch had accepted is gone."""


class WorkFailed(Exception):
    """User code raised inside the transaction.

    Attributes:
        error: what it raised; for the caller of the append, unchanged.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class _Row:
    """A head as it will be when the batch is flushed."""

    __slots__ = (
        "catalog",
        "changed",
        "claims",
        "closed",
        "fence",
        "id",
        "inbox",
        "is_new",
        "n",
        "owner",
        "state",
        "status",
        "version",
        "wake",
    )

    def __init__(self, id: str, n: int, version: int = 0) -> None:
        self.id, self.n, self.version = id, n, version
        self.wake: float | None = None
        self.owner: str | None = None
        self.closed: float | None = None
        self.fence = self.claims = self.inbox = self.changed = self.catalog = 0
        self.is_new = False
        self.status = self.state = ""

    def insertion(self, now: float) -> tuple[object, ...]:
        lease = (self.wake, self.owner, self.fence, self.claims, self.inbox, now, now, self.closed)
        return (self.n, self.id, self.catalog, self.version, self.status, self.state, *lease)

    def update(self, now: float) -> tuple[object, ...]:
        values: list[object] = [self.version, self.claims, self.inbox, now]
        if self.changed & _STATUS:
            values.append(self.status)
        if self.changed & _STATE:
            values.append(self.state)
        if self.changed & _LEASE:
            values += (self.wake, self.owner, self.fence, self.closed)
        values.append(self.n)
        return tuple(values)


Rows: TypeAlias = "dict[str, _Row | None]"
"""Heads by id, None for an id that is not there."""


class Batch:
    """Appends to be committed together.

    Args:
        connection: in a transaction that holds the write lock.
        now: the store's time, in seconds.
        largest: the largest value that is accepted, in bytes.
        rows: the heads that are known; the batch adds to them. Of no use any more when the
            transaction is rolled back.

    Attributes:
        notable: whether something was accepted that those who watch must hear of.
    """

    connection: sqlite3.Connection
    now: float

    def __init__(self, connection: sqlite3.Connection, now: float, largest: int, rows: Rows) -> None:
        self.connection, self.now = connection, now
        self.notable: bool = False
        self._largest = largest
        self._rows = rows
        self._catalog: dict[New, int] = {}
        self._next_n = 0
        self._forget_pending()

    def _forget_pending(self) -> None:
        self._dirty: dict[int, _Row] = {}
        self._records: list[tuple[int, int, bytes]] = []
        self._signals: list[tuple[int, int, str, bytes, str | None]] = []
        self._message_ids: set[tuple[int, str]] = set()
        self._consumed: list[tuple[int, int]] = []
        self._snapshots: dict[int, tuple[int, int, bytes]] = {}

    def add(self, writes: Sequence[Write]) -> None:
        """Accept the writes of one append, or raise why not."""
        if len(writes) == 1:
            write = writes[0]
            row = self._find(write.id)
            if error := refusal(write, row):
                raise error
            self._accept(write, row)
            return
        rows = self._judge(writes)
        for write, row in zip(writes, rows, strict=True):
            self._accept(write, row)

    def add_work(self, writes: Sequence[Write], work: Work) -> None:
        """Run user code in the transaction and accept what it returns together with ``writes``."""
        self._judge(writes)
        with self.undoable():
            writes = [*writes, *_perform(work, self.connection)]
            if error := malformed(writes, self._largest):
                raise error
            self.add(writes)
            self.flush()

    @contextmanager
    def undoable(self) -> Generator[None]:
        """Flush, then undo what the body does in the database if it raises."""
        self.flush()
        connection = self.connection
        connection.execute("SAVEPOINT undoable")
        try:
            yield
        except BaseException as error:
            self.forget()
            if not connection.in_transaction:
                raise TransactionLost from error
            connection.execute("ROLLBACK TO undoable")
            connection.execute("RELEASE undoable")
            raise
        connection.execute("RELEASE undoable")

    def forget(self) -> None:
        """Drop what is known of the heads: something else has changed, or may have changed, them."""
        self._rows.clear()
        self._catalog.clear()
        self._next_n = 0
        self._forget_pending()

    def flush(self) -> None:
        """Write what was accepted."""
        execute_many = self.connection.executemany
        if self._dirty:
            self._flush_heads()
        if self._records:
            execute_many(_INSERT_RECORD, self._records)
        if self._message_ids:
            execute_many(_INSERT_MESSAGE_ID, sorted(self._message_ids))
        if self._signals:
            execute_many(_INSERT_SIGNAL, self._signals)
        if self._consumed:
            execute_many(_CONSUME, self._consumed)
        if self._snapshots:
            execute_many(_SET_SNAPSHOT, self._snapshots.values())
        self._forget_pending()

    def _flush_heads(self) -> None:
        new: list[tuple[object, ...]] = []
        updates: dict[int, list[tuple[object, ...]]] = {}
        for row in self._dirty.values():
            if row.is_new:
                new.append(row.insertion(self.now))
            else:
                updates.setdefault(row.changed, []).append(row.update(self.now))
            row.is_new, row.changed = False, 0
        if new:
            self.connection.executemany(_INSERT_HEAD, new)
        for changed, values in updates.items():
            self.connection.executemany(_UPDATES[changed], values)

    def _judge(self, writes: Sequence[Write]) -> list[_Row | None]:
        rows = [self._find(write.id) for write in writes]
        for write, row in zip(writes, rows, strict=True):
            if error := refusal(write, row):
                raise error
        return rows

    def _find(self, id: str) -> _Row | None:
        row = self._rows.get(id)
        if row is not None or id in self._rows:
            return row
        found = self.connection.execute(_FIND, (id,)).fetchone()
        if found is not None:
            row = _Row(id, found[0], found[1])
            _, _, row.wake, row.owner, row.fence, row.claims, row.inbox, row.closed = found
        self._rows[id] = row
        return row

    def _accept(self, write: Write, row: _Row | None) -> None:
        if row is None:
            row = self._create(write)
        n = row.n
        self._dirty[n] = row
        if write.records:
            self._records += [(n, row.version + i, data) for i, data in enumerate(write.records, 1)]
            row.version += len(write.records)
            row.claims = 0
        if write.status is not UNCHANGED:
            row.status = write.status
            row.changed |= _STATUS
        if write.state is not UNCHANGED:
            row.state = write.state
            row.changed |= _STATE
        if write.snapshot is not UNCHANGED:
            self._snapshots[n] = (n, row.version, write.snapshot)
        if write.consumed:
            # Not beyond what has come in: a signal that another append of this batch sends comes later.
            self._consumed.append((n, min(write.consumed, row.inbox)))
        if write.owner is not UNCHANGED and (write.owner is not None or row.owner is not None):
            row.owner = write.owner
            row.fence += 1
            row.changed |= _LEASE
        if write.wake is not UNCHANGED or write.signals or write.close or write.owner is None:
            self._schedule(write, row)

    def _create(self, write: Write) -> _Row:
        assert write.create is not None
        if not self._next_n:
            last = self.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'heads'").fetchone()
            self._next_n = 1 if last is None else last[0] + 1
        row = self._rows[write.id] = _Row(write.id, self._next_n)
        self._next_n += 1
        row.is_new = True
        row.catalog = self._catalogued(write.create)
        return row

    def _catalogued(self, new: New) -> int:
        number = self._catalog.get(new)
        if number is None:
            facts = (new.kind, new.definition, new.definition_version)
            text = "SELECT c FROM catalog WHERE kind = ? AND definition = ? AND definition_version = ?"
            found = self.connection.execute(text, facts).fetchone()
            if found is None:
                self.connection.execute("INSERT INTO catalog VALUES (NULL, ?, ?, ?)", facts)
                found = self.connection.execute(text, facts).fetchone()
            number = self._catalog[new] = found[0]
        return number

    def _schedule(self, write: Write, row: _Row) -> None:
        """Set when the entity is to be looked at, and note whether those who watch must hear of it."""
        row.changed |= _LEASE
        if write.wake is not UNCHANGED:
            row.wake = write.wake
        arrived = bool(write.signals) and self._receive(write.signals, row)
        if arrived:
            row.wake = 0.0
        ends = write.close and row.closed is None
        if ends:
            row.closed = self.now
        if row.closed is not None:
            row.wake = None
        if arrived or ends or (row.wake is not None and row.owner is None):
            self.notable = True

    def _receive(self, signals: Sequence[Signal], row: _Row) -> bool:
        before = row.inbox
        for signal in signals:
            if signal.message_id is not None and not self._is_first(row, signal.message_id):
                continue
            row.inbox += 1
            self._signals.append((row.n, row.inbox, signal.topic, signal.payload, signal.message_id))
        return row.inbox > before

    def _is_first(self, row: _Row, message_id: str) -> bool:
        key = (row.n, message_id)
        if key in self._message_ids:
            return False
        text = "SELECT 1 FROM message_ids WHERE n = ? AND message_id = ?"
        if not row.is_new and self.connection.execute(text, key).fetchone() is not None:
            return False
        self._message_ids.add(key)
        return True


def _perform(work: Work, connection: sqlite3.Connection) -> list[Write]:
    forms = connection.row_factory, connection.text_factory
    try:
        with _no_transaction_control(connection):
            return list(written(work(connection)))
    except BaseException as error:
        raise WorkFailed(error) from error
    finally:  # what user code likes its rows to be is not what this store reads
        connection.row_factory, connection.text_factory = forms


@contextmanager
def _no_transaction_control(connection: sqlite3.Connection) -> Generator[None]:
    """Deny BEGIN, COMMIT and ROLLBACK, which would end the transaction that others are part of."""

    def judge(action: int, *_: object) -> int:
        return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_TRANSACTION else sqlite3.SQLITE_OK

    connection.set_authorizer(judge)
    try:
        yield
    except sqlite3.DatabaseError as error:
        if "not authorized" not in str(error):
            raise
        raise StoreError(
            "flowlet begins and commits the transaction of a transactional step (or other `work`); do neither there, "
            "nor use the connection as a context manager"
        ) from error
    finally:
        connection.set_authorizer(None)
