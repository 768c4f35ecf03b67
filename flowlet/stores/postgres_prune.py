"""Deleting what has ended from a PostgreSQL store.

Law: one statement deletes a bounded number of entities and, but for one that is larger by itself, of rows, so that
no transaction is long. Whoever reads sees an entity as a whole or not at all.
"""

from __future__ import annotations

from flowlet.stores.postgres_driver import Connection
from flowlet.stores.postgres_schema import in_schema

__all__ = ["PRUNE", "STRIDE", "prune"]

STRIDE = 100
"""Entities that one statement deletes at most."""

_ROWS = 10_000
"""Records and signals that one statement deletes at most, unless they are all of one entity."""

_LONGEST = 600.0

PRUNE = """
    WITH doomed AS MATERIALIZED (
        SELECT h.n, h.closed, h.version + h.inbox AS weight FROM @.heads h
        WHERE h.closed < $1 ORDER BY h.closed, h.n LIMIT $2 FOR UPDATE SKIP LOCKED
    ), chosen AS MATERIALIZED (
        SELECT d.n FROM (
            SELECT n, sum(weight) OVER (ORDER BY closed, n) - weight AS before FROM doomed
        ) AS d WHERE d.before < $3
    ),
    records AS (DELETE FROM @.records r USING chosen c WHERE r.n = c.n),
    snapshots AS (DELETE FROM @.snapshots s USING chosen c WHERE s.n = c.n),
    signals AS (DELETE FROM @.signals s USING chosen c WHERE s.n = c.n),
    message_ids AS (DELETE FROM @.message_ids m USING chosen c WHERE m.n = c.n),
    heads AS (DELETE FROM @.heads h USING chosen c WHERE h.n = c.n RETURNING h.n)
    SELECT count(*) FROM heads
"""


async def prune(connection: Connection, schema: str, closed_before: float, limit: int) -> int:
    """Delete entities closed before this time, oldest first, in one statement; return how many: 0 when none is left."""
    text = in_schema(PRUNE, schema)
    count: int = await connection.fetchval(text, closed_before, min(limit, STRIDE), _ROWS, timeout=_LONGEST)
    return count
