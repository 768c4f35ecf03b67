"""What a SQLite store reads: one entity, or a page of heads.

Law: synchronous functions of a connection; each looks at one snapshot of the database. SQL text is
built only from the constants of this module.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from operator import attrgetter
from typing import Any

import msgspec

from flowlet.store import Head, Signal, Stored

__all__ = ["HEAD", "Page", "TooLong", "head_of", "load", "scan"]

HEAD = """
    SELECT h.id, kind, definition, definition_version, n, version, status, state, wake, owner, fence, claims, inbox,
        created, updated, closed
    FROM heads h CROSS JOIN catalog USING (c)
"""
"""The columns of `flowlet.store.Head`, in its order. CROSS: heads first, whatever the planner believes."""

_MANY_RECORDS = 500
_WEIGH = """
    SELECT (SELECT total(length(data)) FROM records WHERE n = :n AND seq > :after)
        + (SELECT total(length(data)) FROM snapshots WHERE n = :n)
        + (SELECT total(length(payload)) FROM signals WHERE n = :n)
"""


class TooLong(Exception):
    """There is more to read than was allowed."""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """The question of a scan; see `flowlet.store.Store.scan`."""

    kind: str | None
    definition: str | None
    status: Sequence[str] | None
    state: str | None
    wake_before: float | None
    after: int
    limit: int


def head_of(row: Sequence[Any]) -> Head:
    """Return the head that a row of `HEAD` describes."""
    return Head(
        id=row[0],
        kind=row[1],
        definition=row[2],
        definition_version=row[3],
        order=row[4],
        version=row[5],
        status=row[6],
        state=row[7],
        wake=row[8],
        owner=row[9],
        fence=row[10],
        claims=row[11],
        inbox=row[12],
        created=row[13],
        updated=row[14],
        closed=row[15],
    )


def load(
    connection: sqlite3.Connection, id: str, after: int, limit: int | None, most: int | None = None
) -> Stored | None:
    """Read an entity; see `flowlet.store.Store.load`.

    Args:
        most: give up with `TooLong` when there are more bytes than this, or many records.
    """
    with _snapshot(connection):
        found = connection.execute(HEAD + " WHERE h.id = ?", (id,)).fetchone()
        if found is None:
            return None
        head = head_of(found)
        n = (head.order,)
        if most is not None:
            _weigh(connection, head, after, most)
        records = _records(connection, head, after, limit)
        snapshot = connection.execute("SELECT version, data FROM snapshots WHERE n = ?", n).fetchone() or (0, None)
        text = "SELECT topic, payload, message_id, number FROM signals WHERE n = ? ORDER BY number"
        signals = tuple(Signal(*row) for row in connection.execute(text, n)) if head.inbox else ()
    return Stored(head=head, records=records, snapshot=snapshot[1], snapshot_version=snapshot[0], signals=signals)


def _weigh(connection: sqlite3.Connection, head: Head, after: int, most: int) -> None:
    if head.version - after > _MANY_RECORDS:
        raise TooLong
    # SQLite knows a length from the row's header: the pages of a large value are not read for it.
    values = {"n": head.order, "after": after}
    if connection.execute(_WEIGH, values).fetchone()[0] > most:
        raise TooLong


def _records(connection: sqlite3.Connection, head: Head, after: int, limit: int | None) -> tuple[bytes, ...]:
    if after >= head.version:
        return ()
    text = "SELECT data FROM records WHERE n = ? AND seq > ? ORDER BY seq LIMIT ?"
    rows = connection.execute(text, (head.order, after, -1 if limit is None else limit))
    return tuple(row[0] for row in rows)


def scan(connection: sqlite3.Connection, page: Page) -> Sequence[Head]:
    """List heads in the order of creation; see `flowlet.store.Store.scan`."""
    with _snapshot(connection):
        if page.wake_before is not None:
            return _due(connection, page)
        if (page.kind, page.definition, page.status, page.state) == (None, None, None, None):
            return _heads(connection, " WHERE n > ? ORDER BY n LIMIT ?", (page.after, page.limit))
        # Each branch is an index read in the order of n, at most a page of it: merging them costs the
        # same among a hundred entities and a hundred million.
        merged = heapq.merge(*_branches(connection, page), key=attrgetter("order"))
        return list(islice(merged, page.limit))


def _branches(connection: sqlite3.Connection, page: Page) -> Iterator[Sequence[Head]]:
    statuses = (None,) if page.status is None else tuple(dict.fromkeys(page.status))
    for c in _catalogued(connection, page):
        for status in statuses:
            yield _branch(connection, page, c, status)


def _branch(connection: sqlite3.Connection, page: Page, c: int, status: str | None) -> Sequence[Head]:
    text = " WHERE h.c = ?"
    values: list[object] = [c]
    if page.state is not None:
        # The second condition is the one of the partial index, which cannot serve the empty word.
        text += " AND state = ? AND state <> ''" if page.state else " AND +state = ?"
        values.append(page.state)
    if status is not None:
        # The unary plus keeps a column out of the choice of index: a state is the rarer word.
        text += " AND +status = ?" if page.state else " AND status = ?"
        values.append(status)
    return _heads(connection, text + " AND n > ? ORDER BY n LIMIT ?", (*values, page.after, page.limit))


def _catalogued(connection: sqlite3.Connection, page: Page) -> list[int]:
    text = "SELECT c FROM catalog WHERE kind = coalesce(?, kind) AND definition = coalesce(?, definition)"
    return [row[0] for row in connection.execute(text, (page.kind, page.definition))]


def _due(connection: sqlite3.Connection, page: Page) -> Sequence[Head]:
    # Only open entities are in this index, so it is small where the table is large.
    text = HEAD.replace("FROM heads h", "FROM heads h INDEXED BY heads_due") + " WHERE wake < ? AND n > ?"
    values: list[object] = [page.wake_before, page.after]
    for column, value in (("kind", page.kind), ("definition", page.definition), ("state", page.state)):
        if value is not None:
            text += f" AND {column} = ?"
            values.append(value)
    rows = connection.execute(text + " ORDER BY n", values)
    statuses = None if page.status is None else set(page.status)
    heads = (head_of(row) for row in rows)
    return list(islice((head for head in heads if statuses is None or head.status in statuses), page.limit))


def _heads(connection: sqlite3.Connection, where: str, values: Iterable[object]) -> list[Head]:
    return [head_of(row) for row in connection.execute(HEAD + where, tuple(values))]


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Generator[None]:
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
