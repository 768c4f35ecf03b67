"""Leases in a PostgreSQL store: claim, heartbeat, release.

Law: the only time is the server's. No statement reads more rows than it returns or changes, but for one per
worker and definition: a claim among a hundred thousand finished runs costs what one in an empty store costs.

A claim looks first, without locks, then takes what it saw, skipping what others hold locked. What it saw is still
so when it takes it: a change of owner raises the fence, and whether the former owner lives is asked again.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowlet.store import Claims, Head
from flowlet.stores.postgres_driver import Connection, Row
from flowlet.stores.postgres_reads import COLUMNS, head_of
from flowlet.stores.postgres_schema import in_schema
from flowlet.stores.refusal import worker_unknown

__all__ = ["LOOK", "LOOK_FOR_IDS", "claim", "heartbeat", "release"]

_TRIES = 20
"""Looks of one claim, as long as others take what it saw."""

# All owners, by one descent into the index for each: a plain DISTINCT would read an entry per lease.
_MOMENT = """
    WITH RECURSIVE moment AS MATERIALIZED (SELECT @.now() AS t),
    alive AS MATERIALIZED (SELECT w.worker FROM @.workers w WHERE w.expires > (SELECT t FROM moment)),
    owners AS (
        SELECT (SELECT min(h.owner) FROM @.heads h WHERE h.owner IS NOT NULL) AS owner
        UNION ALL
        SELECT (SELECT min(h.owner) FROM @.heads h WHERE h.owner > o.owner) FROM owners o WHERE o.owner IS NOT NULL
    ),
    dead AS MATERIALIZED (
        SELECT o.owner FROM owners o WHERE o.owner IS NOT NULL AND o.owner NOT IN (SELECT worker FROM alive)
    )
"""

LOOK = (
    _MOMENT  # noqa: S608 - of constants
    + """,
    wanted AS MATERIALIZED (
        SELECT DISTINCT k.c FROM unnest($2::text[], $3::text[], $4::text[]) AS w (kind, definition, version)
        JOIN @.catalog k ON k.kind = w.kind AND k.definition = w.definition AND k.definition_version = w.version
    ),
    due AS (
        SELECT f.* FROM wanted, LATERAL (
            SELECT h.n, h.fence, h.wake FROM @.heads h
            WHERE h.c = wanted.c AND h.owner IS NULL AND h.wake <= (SELECT t FROM moment)
            ORDER BY h.wake, h.n LIMIT $5
        ) AS f
        UNION ALL
        SELECT f.* FROM wanted, dead, LATERAL (
            SELECT h.n, h.fence, h.wake FROM @.heads h
            WHERE h.c = wanted.c AND h.owner = dead.owner AND h.wake <= (SELECT t FROM moment)
            ORDER BY h.wake, h.n LIMIT $5
        ) AS f
    ),
    later AS (
        SELECT (SELECT min(h.wake) FROM @.heads h
            WHERE h.c = wanted.c AND h.owner IS NULL AND h.wake > (SELECT t FROM moment)) AS wake FROM wanted
        UNION ALL
        SELECT (SELECT min(h.wake) FROM @.heads h
            WHERE h.c = wanted.c AND h.owner = dead.owner AND h.wake > (SELECT t FROM moment)) FROM wanted, dead
    )
    SELECT f.n, f.fence, f.wake, NULL::boolean AS lives FROM (SELECT * FROM due ORDER BY wake, n LIMIT $5) AS f
    UNION ALL
    SELECT NULL, NULL, (SELECT min(wake) FROM later), EXISTS (SELECT FROM alive WHERE worker = $1)
"""
)

LOOK_FOR_IDS = """
    WITH moment AS MATERIALIZED (SELECT @.now() AS t),
    alive AS MATERIALIZED (SELECT w.worker FROM @.workers w WHERE w.expires > (SELECT t FROM moment))
    SELECT f.n, f.fence, f.wake, NULL::boolean AS lives FROM (
        SELECT h.n, h.fence, h.wake FROM @.heads h
        WHERE h.id = ANY ($2::text[]) AND h.closed IS NULL
            AND (h.owner IS NULL OR h.owner NOT IN (SELECT worker FROM alive))
        ORDER BY h.wake NULLS LAST, h.n LIMIT $3
    ) AS f
    UNION ALL
    SELECT NULL, NULL, NULL, EXISTS (SELECT FROM alive WHERE worker = $1)
"""

_TAKE = f"""
    WITH moment AS MATERIALIZED (SELECT @.now() AS t),
    picked AS MATERIALIZED (
        SELECT h.n FROM @.heads h JOIN unnest($2::bigint[], $3::bigint[]) AS w (n, fence)
            ON h.n = w.n AND h.fence = w.fence
        WHERE h.closed IS NULL AND ($4 OR h.wake <= (SELECT t FROM moment))
            AND EXISTS (SELECT FROM @.workers v WHERE v.worker = $1 AND v.expires > (SELECT t FROM moment))
            AND (h.owner IS NULL OR NOT EXISTS (
                SELECT FROM @.workers v WHERE v.worker = h.owner AND v.expires > (SELECT t FROM moment)))
        ORDER BY h.id FOR UPDATE OF h SKIP LOCKED
    )
    UPDATE @.heads h SET owner = $1, fence = h.fence + 1, claims = h.claims + 1 FROM picked p, @.catalog k
    WHERE h.n = p.n AND k.c = h.c RETURNING {COLUMNS}
"""  # noqa: S608 - of constants

_HEARTBEAT = """
    WITH mine AS (
        INSERT INTO @.workers VALUES ($1, @.now() + $2)
        ON CONFLICT (worker) DO UPDATE SET expires = excluded.expires
    )
    SELECT worker FROM @.workers WHERE worker <> $1 ORDER BY worker
"""

_RELEASE_ALL = """
    WITH mine AS MATERIALIZED (SELECT h.n FROM @.heads h WHERE h.owner = $1 ORDER BY h.id FOR UPDATE),
    gone AS (DELETE FROM @.workers WHERE worker = $1)
    UPDATE @.heads h SET owner = NULL, fence = h.fence + 1 FROM mine WHERE h.n = mine.n
"""

_RELEASE = """
    WITH mine AS MATERIALIZED (
        SELECT h.n FROM @.heads h WHERE h.id = ANY ($2::text[]) AND h.owner = $1 ORDER BY h.id FOR UPDATE
    )
    UPDATE @.heads h SET owner = NULL, fence = h.fence + 1 FROM mine WHERE h.n = mine.n
"""


async def claim(
    connection: Connection,
    schema: str,
    worker: str,
    definitions: Sequence[tuple[str, str, str]],
    ids: Sequence[str],
    limit: int,
) -> Claims:
    """Take entities that nobody alive owns; see `flowlet.store.Store.claim`."""
    heads: list[Head] = []
    rows: list[Row] = []
    for _ in range(_TRIES):
        rows, wake = await _look(connection, schema, worker, definitions, ids, limit + 1 - len(heads))
        wanted = rows[: limit - len(heads)]
        took = await _take(connection, schema, worker, wanted, by_id=bool(ids)) if wanted else []
        heads += took
        if len(took) == len(wanted):
            break
    taken = {head.order for head in heads}
    left = [row["wake"] for row in rows if row["n"] not in taken]
    heads.sort(key=_urgency)
    return Claims(heads=heads, wake=None if ids else left[0] if left else wake)  # pyright: ignore[reportPossiblyUnboundVariable]


async def _look(
    connection: Connection,
    schema: str,
    worker: str,
    definitions: Sequence[tuple[str, str, str]],
    ids: Sequence[str],
    most: int,
) -> tuple[list[Row], float | None]:
    """Return what could be claimed, most urgent first, and when the next falls due."""
    if ids:
        rows = await connection.fetch(in_schema(LOOK_FOR_IDS, schema), worker, list(ids), most)
    else:
        columns = [[facts[n] for facts in definitions] for n in range(3)]
        rows = await connection.fetch(in_schema(LOOK, schema), worker, *columns, most)
    last = next(row for row in rows if row["lives"] is not None)
    if not last["lives"]:
        raise worker_unknown(worker)
    return sorted((row for row in rows if row["lives"] is None), key=_pressure), last["wake"]


async def _take(connection: Connection, schema: str, worker: str, rows: Sequence[Row], *, by_id: bool) -> list[Head]:
    # Who is looked for by id is waited for: a signal that comes in just now is no reason not to find it.
    text = in_schema(_TAKE.replace(" SKIP LOCKED", "") if by_id else _TAKE, schema)
    ns, fences = [row["n"] for row in rows], [row["fence"] for row in rows]
    return [head_of(row) for row in await connection.fetch(text, worker, ns, fences, by_id)]


async def heartbeat(connection: Connection, schema: str, worker: str, lease: float) -> Sequence[str]:
    """Say that the worker lives for ``lease`` more seconds; return the others on record."""
    return [row[0] for row in await connection.fetch(in_schema(_HEARTBEAT, schema), worker, lease)]


async def release(connection: Connection, schema: str, worker: str, ids: Sequence[str] | None) -> None:
    """Give back the worker's leases on these ids, or all of them and its place on record."""
    if ids is None:
        await connection.execute(in_schema(_RELEASE_ALL, schema), worker)
    else:
        await connection.execute(in_schema(_RELEASE, schema), worker, list(ids))


def _urgency(head: Head) -> tuple[float, int]:
    return (float("inf") if head.wake is None else head.wake, head.order)


def _pressure(row: Row) -> tuple[float, int]:
    return (float("inf") if row["wake"] is None else row["wake"], row["n"])
