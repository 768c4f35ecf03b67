"""What a PostgreSQL store reads: one entity, or a page of heads.

Law: each read is one statement, and so of one moment. SQL text is built only from the constants of this module.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from flowlet.store import Head, Signal, Stored
from flowlet.stores.postgres_driver import Connection, Row
from flowlet.stores.postgres_schema import in_schema

__all__ = ["COLUMNS", "Page", "head_of", "load", "page_text", "scan"]

COLUMNS = """h.id, k.kind, k.definition, k.definition_version, h.n, h.version, h.status, h.state, h.wake, h.owner,
    h.fence, h.claims, h.inbox, h.created, h.updated, h.closed"""
"""Of ``heads h`` and ``catalog k``: the fields of `flowlet.store.Head`, in its order."""

_RECORD, _SNAPSHOT, _SIGNAL = 1, 2, 3

_HEAD = f"SELECT {COLUMNS} FROM @.heads h JOIN @.catalog k USING (c) WHERE h.id = $1"  # noqa: S608 - of constants

# The parts as rows: an array of all records could be larger than a value may be. The head is in the first row only.
LOAD = f"""
    WITH head AS MATERIALIZED ({_HEAD})
    SELECT 0 AS part, 0::bigint AS number, NULL::bytea AS data, NULL::text AS topic, NULL::text AS message_id, h.*
    FROM head h
    UNION ALL
    SELECT p.*, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
    FROM head h CROSS JOIN LATERAL (
        (SELECT {_RECORD}, r.seq, r.data, NULL::text, NULL::text FROM @.records r
            WHERE r.n = h.n AND r.seq > $2 ORDER BY r.seq LIMIT $3)
        UNION ALL
        SELECT {_SNAPSHOT}, s.version, s.data, NULL, NULL FROM @.snapshots s WHERE s.n = h.n
        UNION ALL
        SELECT {_SIGNAL}, g.number, g.payload, g.topic, g.message_id FROM @.signals g WHERE g.n = h.n AND h.inbox > 0
    ) AS p
"""  # noqa: S608 - of constants

_LAST = "9223372036854775807"
"""No number is beyond this one."""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """The question of a scan; see `flowlet.store.Store.scan`."""

    kind: str | None = None
    definition: str | None = None
    status: Sequence[str] | None = None
    state: str | None = None
    wake_before: float | None = None
    after: int = 0
    limit: int = 100


def head_of(row: Sequence[object]) -> Head:
    """Return the head that a row of `COLUMNS` describes."""
    return Head(**dict(zip(Head.__struct_fields__, row, strict=True)))  # type: ignore[arg-type]


async def load(connection: Connection, schema: str, id: str, after: int, limit: int | None) -> Stored | None:
    """Read an entity; see `flowlet.store.Store.load`."""
    rows = await connection.fetch(in_schema(LOAD, schema), id, after, limit)
    if not rows:
        return None
    records: list[Row] = []
    signals: list[Row] = []
    snapshot: tuple[int, bytes | None] = (0, None)
    head: Head | None = None
    for row in rows:
        part = row[0]
        if part == _RECORD:
            records.append(row)
        elif part == _SIGNAL:
            signals.append(row)
        elif part == _SNAPSHOT:
            snapshot = (row[1], row[2])
        else:
            head = head_of(row[5:])
    assert head is not None
    for parts in (records, signals):
        parts.sort(key=_number)  # they usually are: nothing promises it
    return Stored(
        head=head,
        records=tuple(row[2] for row in records),
        snapshot=snapshot[1],
        snapshot_version=snapshot[0],
        signals=tuple(Signal(row[3], row[2], row[4], row[1]) for row in signals),
    )


def _number(row: Row) -> int:
    number: int = row[1]
    return number


async def scan(connection: Connection, schema: str, page: Page) -> Sequence[Head]:
    """List heads in the order of creation; see `flowlet.store.Store.scan`."""
    text, values = page_text(page)
    return [head_of(row) for row in await connection.fetch(in_schema(text, schema), *values)]


def page_text(page: Page) -> tuple[str, list[object]]:
    """Return the statement of a page and its values.

    Each definition and status is an index read in the order of creation, at most a page of it: so a page costs the
    same among a hundred entities and a hundred million. Those that wait for a time are read whole and sorted:
    what has ended is not among them.
    """
    values: list[object] = [page.after, page.limit]
    if page.wake_before is not None:
        return _due_text(page, values), values
    if (page.kind, page.definition, page.status, page.state) == (None, None, None, None):
        page_of_all = "SELECT * FROM @.heads h WHERE h.n > $1 ORDER BY h.n LIMIT $2"
        return f"SELECT {COLUMNS} FROM ({page_of_all}) AS h JOIN @.catalog k USING (c) ORDER BY h.n", values  # noqa: S608
    tables = f"(SELECT * FROM @.catalog k {_where(_catalogued(page, values))}) AS k"  # noqa: S608 - of constants
    # The index to be read is spelled out, as a range of rows in its order: by equalities the planner would rather read
    # everything in the order of n.
    columns, keys = ["h.c"], ["k.c"]
    conditions: list[str] = []
    if page.state:
        columns.append("h.state")
        keys.append(_word(_value(values, page.state)))
        conditions.append("h.state <> ''")  # that of the partial index, which cannot serve the empty word
    elif page.state is not None:
        conditions.append("h.state = ''")
    if page.status is not None:
        tables += f" CROSS JOIN unnest({_value(values, list(dict.fromkeys(page.status)))}::text[]) AS w (status)"
        if page.state:
            conditions.append("h.status = w.status")
        else:
            columns.append("h.status")
            keys.append(_word("w.status"))
    order, first, last = (", ".join((*row, n)) for row, n in ((columns, "h.n"), (keys, "$1"), (keys, _LAST)))
    range_of_rows = [f"({order}) > ({first})", f"({order}) <= ({last})"]
    branch = f"SELECT * FROM @.heads h {_where([*range_of_rows, *conditions])} ORDER BY {order} LIMIT $2"  # noqa: S608
    text = f"SELECT {COLUMNS} FROM {tables} CROSS JOIN LATERAL ({branch}) AS h ORDER BY h.n LIMIT $2"  # noqa: S608
    return text, values


def _due_text(page: Page, values: list[object]) -> str:
    # The sum keeps the order out of the choice of index: what waits for a time is few, what has ended is not.
    conditions = [f"h.wake < {_value(values, page.wake_before)}", "h.n + 0 > $1", *_catalogued(page, values)]
    if page.status is not None:
        conditions.append(f"h.status = ANY ({_value(values, list(page.status))}::text[])")
    if page.state is not None:
        conditions.append(f"h.state = {_value(values, page.state)}")
    tables = "@.heads h JOIN @.catalog k USING (c)"
    return f"SELECT {COLUMNS} FROM {tables} {_where(conditions)} ORDER BY h.n + 0 LIMIT $2"  # noqa: S608 - of constants


def _catalogued(page: Page, values: list[object]) -> list[str]:
    asked = (("kind", page.kind), ("definition", page.definition))
    return [f"k.{column} = {_value(values, value)}" for column, value in asked if value is not None]


def _value(values: list[object], value: object) -> str:
    values.append(value)
    return f"${len(values)}"


def _word(value: str) -> str:
    return f'{value}::text COLLATE "C"'


def _where(conditions: Sequence[str]) -> str:
    return f"WHERE {' AND '.join(conditions)}" if conditions else ""
