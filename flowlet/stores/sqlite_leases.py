"""Leases in a SQLite store: claim, heartbeat, release.

Law: synchronous functions of a connection in a transaction that holds the write lock, and of the
store's time. No function reads more rows than it returns or changes, but for one per worker and
definition: a claim among a hundred thousand finished runs costs what one in an empty store costs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from flowlet.store import Claims, Head
from flowlet.stores.refusal import worker_unknown
from flowlet.stores.sqlite_reads import HEAD, head_of

__all__ = ["claim", "heartbeat", "release"]

_DUE = HEAD + " WHERE h.c = ? AND owner IS ? AND wake <= ? ORDER BY wake LIMIT ?"
_NEXT = "SELECT min(wake) FROM heads WHERE c = ? AND owner IS ? AND wake > ?"
# All owners, by one descent into the index for each: a plain DISTINCT would read an entry per lease.
_OWNERS = """
    WITH RECURSIVE owners (owner) AS (
        SELECT min(owner) FROM heads WHERE owner IS NOT NULL
        UNION ALL
        SELECT (SELECT min(owner) FROM heads WHERE owner > owners.owner) FROM owners WHERE owner IS NOT NULL
    )
    SELECT owner FROM owners WHERE owner IS NOT NULL
"""


def claim(
    connection: sqlite3.Connection,
    now: float,
    worker: str,
    definitions: Sequence[tuple[str, str, str]],
    ids: Sequence[str],
    limit: int,
) -> Claims:
    """Take entities that nobody alive owns; see `flowlet.store.Store.claim`."""
    alive = {row[0] for row in connection.execute("SELECT worker FROM workers WHERE expires > ?", (now,))}
    if worker not in alive:
        raise worker_unknown(worker)
    if ids:
        return Claims(heads=_take(connection, worker, _free(connection, ids, alive)[:limit]))
    catalogued = _catalogued(connection, definitions)
    owners = [None, *(row[0] for row in connection.execute(_OWNERS) if row[0] not in alive)]
    due: list[Head] = []
    for c in catalogued:
        for owner in owners:
            due += map(head_of, connection.execute(_DUE, (c, owner, now, limit + 1)))
    due.sort(key=_urgency)
    if len(due) > limit:
        return Claims(heads=_take(connection, worker, due[:limit]), wake=due[limit].wake)
    times = [connection.execute(_NEXT, (c, owner, now)).fetchone()[0] for c in catalogued for owner in owners]
    wake = min((time for time in times if time is not None), default=None)
    return Claims(heads=_take(connection, worker, due), wake=wake)


def heartbeat(connection: sqlite3.Connection, now: float, worker: str, lease: float) -> Sequence[str]:
    """Say that the worker lives for ``lease`` more seconds; return the others on record."""
    connection.execute("INSERT OR REPLACE INTO workers VALUES (?, ?)", (worker, now + lease))
    return [
        row[0] for row in connection.execute("SELECT worker FROM workers WHERE worker <> ? ORDER BY worker", (worker,))
    ]


def release(connection: sqlite3.Connection, now: float, worker: str, ids: Sequence[str] | None) -> None:
    """Give back the worker's leases on these ids, or all of them and its place on record."""
    text = "UPDATE heads SET owner = NULL, fence = fence + 1 WHERE owner = ?"
    if ids is None:
        connection.execute(text, (worker,))
        connection.execute("DELETE FROM workers WHERE worker = ?", (worker,))
    else:
        # The unary plus: find the row by its id and not among everything the worker owns.
        text = text.replace("owner = ?", "+owner = ? AND id = ?")
        connection.executemany(text, [(worker, id) for id in dict.fromkeys(ids)])


def _free(connection: sqlite3.Connection, ids: Sequence[str], alive: set[str]) -> list[Head]:
    rows = (connection.execute(HEAD + " WHERE h.id = ?", (id,)).fetchone() for id in dict.fromkeys(ids))
    heads = [head_of(row) for row in rows if row is not None]
    return sorted((head for head in heads if head.closed is None and head.owner not in alive), key=_urgency)


def _catalogued(connection: sqlite3.Connection, definitions: Sequence[tuple[str, str, str]]) -> list[int]:
    text = "SELECT c FROM catalog WHERE kind = ? AND definition = ? AND definition_version = ?"
    rows = (connection.execute(text, definition).fetchone() for definition in dict.fromkeys(definitions))
    return [row[0] for row in rows if row is not None]


def _take(connection: sqlite3.Connection, worker: str, heads: Sequence[Head]) -> list[Head]:
    text = "UPDATE heads SET owner = ?, fence = fence + 1, claims = claims + 1 WHERE n = ?"
    connection.executemany(text, [(worker, head.order) for head in heads])
    return [head_of(connection.execute(HEAD + " WHERE n = ?", (head.order,)).fetchone()) for head in heads]


def _urgency(head: Head) -> tuple[float, int]:
    return (float("inf") if head.wake is None else head.wake, head.order)
