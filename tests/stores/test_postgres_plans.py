"""No question reads more than it must: each has its index, and finished runs are in no one's way."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from postgres_server import database_url

from flowlet.store import New, Write
from flowlet.stores import postgres_leases, postgres_prune, postgres_reads
from flowlet.stores.postgres import PostgresStore
from flowlet.stores.postgres_reads import Page
from flowlet.stores.postgres_schema import in_schema

pytestmark = pytest.mark.anyio

RUN = New("run", "checkout")
MACHINE = New("machine", "Order")
FINISHED = 20_000
OUR = [("run", "checkout", "1")]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def schema(anyio_backend: str) -> AsyncIterator[str]:
    """A schema with 20,000 finished runs and a few that are alive."""
    name = f"plans_{secrets.token_hex(4)}"
    store = PostgresStore(database_url(), schema=name)
    for start in range(0, FINISHED, 2000):
        ids = [f"r{n:05}" for n in range(start, start + 2000)]
        await store.append([Write(id=id, expect=0, create=RUN, records=[b"1"], status="ok", close=True) for id in ids])
    for n in range(3):
        await store.append([Write(id=f"due{n}", expect=0, create=RUN, records=[b"1"], wake=0.0, status="new")])
        await store.append([Write(id=f"m{n}", expect=0, create=MACHINE, records=[b"1"], state="Draft")])
    await store.append([Write(id="lost", expect=0, create=RUN, records=[b"1"], wake=0.0, owner="dead")])
    await store.heartbeat("w", 600.0)
    yield name
    await store.close()
    connection = await asyncpg.connect(database_url())
    await connection.execute(f"DROP SCHEMA {name} CASCADE")
    await connection.close()


@pytest.fixture(params=["heard of", "not heard of"])
async def connection(request: pytest.FixtureRequest, schema: str) -> AsyncIterator[asyncpg.Connection]:
    """In a transaction that is undone; the planner has, or has not yet, heard how large the tables are."""
    made = await asyncpg.connect(database_url())
    if request.param == "heard of":
        await made.execute(f"ANALYZE {schema}.heads, {schema}.records")
    transaction = made.transaction()
    await transaction.start()
    yield made
    await transaction.rollback()
    await made.close()


async def pages_of(connection: asyncpg.Connection, schema: str, text: str, *values: Any) -> int:
    """Return how many pages a statement reads, with a plan that is made without looking at its values."""
    await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    rows = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {in_schema(text, schema)}", *values)
    plan = json.loads(rows[0][0])[0]["Plan"]
    assert not _scans(plan), f"{_scans(plan)} is read from end to end"
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def _scans(plan: dict[str, Any]) -> list[str]:
    own = [plan["Relation Name"]] if plan["Node Type"] == "Seq Scan" else []
    found = [*own, *(name for part in plan.get("Plans", ()) for name in _scans(part))]
    return [name for name in found if name in ("heads", "records")]  # the others are all but empty


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"kind": "run"},
        {"kind": "machine"},
        {"definition": "Order"},
        {"status": ["new"]},
        {"status": ["new", "ok", "none"]},
        {"kind": "run", "definition": "checkout", "status": ["new"]},
        {"state": "Draft"},
        {"definition": "Order", "state": "Draft", "status": [""]},
        {"wake_before": 5.0},
        {"wake_before": 5.0, "kind": "run", "definition": "checkout"},
        {"wake_before": 5.0, "status": ["new"], "state": ""},
        {"kind": "run", "after": FINISHED - 10},
    ],
)
async def test_a_page_costs_a_page(connection: asyncpg.Connection, schema: str, question: dict[str, Any]) -> None:
    page = Page(**{"limit": 10, **question})
    assert await postgres_reads.scan(connection, schema, page)
    text, values = postgres_reads.page_text(page)
    assert await pages_of(connection, schema, text, *values) < 250


async def test_an_entity_costs_an_entity(connection: asyncpg.Connection, schema: str) -> None:
    assert await pages_of(connection, schema, postgres_reads.LOAD, "r10000", 0, None) < 30


async def test_a_claim_does_not_meet_what_has_ended(connection: asyncpg.Connection, schema: str) -> None:
    columns = [[facts[n] for facts in OUR] for n in range(3)]
    assert await pages_of(connection, schema, postgres_leases.LOOK, "w", *columns, 101) < 150
    claims = await postgres_leases.claim(connection, schema, "w", OUR, (), 100)
    assert sorted(head.id for head in claims.heads) == ["due0", "due1", "due2", "lost"]
    assert await pages_of(connection, schema, postgres_leases.LOOK, "w", *columns, 101) < 150


async def test_a_claim_does_not_meet_what_others_own(connection: asyncpg.Connection, schema: str) -> None:
    await connection.execute(in_schema("UPDATE @.heads SET owner = 'busy', wake = 0, closed = NULL", schema))
    await connection.execute(in_schema("ANALYZE @.heads", schema))
    await postgres_leases.heartbeat(connection, schema, "busy", 600.0)
    columns = [[facts[n] for facts in OUR] for n in range(3)]
    # The second number is that of dead versions of rows, which only a vacuum takes out of the indexes.
    assert (await postgres_leases.claim(connection, schema, "w", OUR, (), 100)).heads == []
    assert await pages_of(connection, schema, postgres_leases.LOOK, "w", *columns, 101) < 300


async def test_a_claim_of_ids_reads_those(connection: asyncpg.Connection, schema: str) -> None:
    ids = ["due0", "r00001", "lost"]
    assert await pages_of(connection, schema, postgres_leases.LOOK_FOR_IDS, "w", ids, 101) < 60


async def test_a_prune_costs_what_it_deletes(connection: asyncpg.Connection, schema: str) -> None:
    text, before = postgres_prune.PRUNE, 1e12
    assert await pages_of(connection, schema, text, 1.0, 100, 1000) < 60
    assert await pages_of(connection, schema, text, before, 10, 1000) < 600
    assert await postgres_prune.prune(connection, schema, before, 7) == 7
    assert await postgres_prune.prune(connection, schema, before, 1_000_000) == postgres_prune.STRIDE


async def test_an_append_costs_what_it_writes(connection: asyncpg.Connection, schema: str) -> None:
    """Its function plans once for all: were it to read the table, it would do so ever after."""
    from flowlet.stores.postgres_batch import APPEND, arguments

    for version in range(1, 8):
        appends = [[Write(id=f"m{n}", expect=version, records=[b"2"])] for n in range(3)]
        pages = await pages_of(connection, schema, APPEND, *arguments(appends, {}))
    assert pages < 200
