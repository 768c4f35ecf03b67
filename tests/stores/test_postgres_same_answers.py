"""The PostgreSQL store gives the answers that the store in memory gives, alone and when it stores in groups."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres_server import database_url, run_sql
from test_same_answers import APPENDS, STEPS, Clock, answer, everything, writes_of

from flowlet.errors import FlowletError
from flowlet.store import Store, Write
from flowlet.stores.memory import MemoryStore

SCHEMA = f"same_{os.getpid()}"
TABLES = ("heads", "records", "snapshots", "signals", "message_ids", "workers")
EXAMPLES = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)

Compare = Callable[[MemoryStore, Any, Clock, Callable[[float], Awaitable[None]]], Awaitable[None]]


@pytest.fixture(scope="module", autouse=True)
def schema() -> Any:
    """A schema whose time is set by hand: its function ``now`` is replaced by one that reads a table."""
    from flowlet.stores.postgres import PostgresStore

    async def make() -> None:
        store = PostgresStore(database_url(), schema=SCHEMA)
        await store.now()
        await store.close()

    asyncio.run(make())
    run_sql(
        database_url(),
        f"CREATE TABLE {SCHEMA}.clock (t double precision)",
        f"INSERT INTO {SCHEMA}.clock VALUES (0)",
        f"CREATE OR REPLACE FUNCTION {SCHEMA}.now() RETURNS double precision LANGUAGE sql "
        f"AS 'SELECT t FROM {SCHEMA}.clock'",
    )
    yield
    run_sql(database_url(), f"DROP SCHEMA {SCHEMA} CASCADE")


async def compare(with_both: Compare) -> None:
    import asyncpg

    from flowlet.stores.postgres import PostgresStore

    clock = Clock()
    memory, postgres = MemoryStore(clock=clock), PostgresStore(database_url(), schema=SCHEMA)
    side = await asyncpg.connect(database_url())

    async def set_time(time: float) -> None:
        clock.time = time
        await side.execute(f"UPDATE {SCHEMA}.clock SET t = $1", time)

    try:
        await side.execute("; ".join(f"DELETE FROM {SCHEMA}.{table}" for table in TABLES))
        await side.execute(f"UPDATE {SCHEMA}.counters SET last = 0")
        await set_time(1000.0)
        await with_both(memory, postgres, clock, set_time)
        assert await everything(memory) == await everything(postgres)
        assert await side.fetchval(f"SELECT last FROM {SCHEMA}.counters") == memory._last_order
    finally:
        await side.close()
        await postgres.close()


async def outcome(call: Awaitable[object]) -> object:
    try:
        return await call
    except FlowletError as error:
        return (type(error), str(error), getattr(error, "id", None), getattr(error, "__notes__", None))


@EXAMPLES
@given(st.lists(STEPS, min_size=8, max_size=30))
def test_it_answers_as_the_store_in_memory_does(steps: list[Any]) -> None:
    async def with_both(memory: Store, postgres: Store, clock: Clock, set_time: Any) -> None:
        for step in steps:
            if step[0] == "pass":
                await set_time(clock.time + step[1])
            else:
                expected = await outcome(answer(memory, step))
                assert await outcome(answer(postgres, step)) == expected, step

    anyio.run(compare, with_both)


@EXAMPLES
@given(st.lists(st.lists(APPENDS, min_size=1, max_size=8), min_size=3, max_size=10))
def test_what_is_stored_in_a_group_is_stored_as_if_one_after_the_other(groups: list[list[Any]]) -> None:
    async def with_both(memory: Store, postgres: Store, clock: Clock, set_time: Any) -> None:
        for group in groups:
            appends: list[Sequence[Write]] = [await writes_of(memory, parts) for parts in group]
            expected = [await outcome(memory.append(writes)) for writes in appends]
            assert await asyncio.gather(*(outcome(postgres.append(writes)) for writes in appends)) == expected

    anyio.run(compare, with_both)
