"""User code in the transaction of an append: on a connection of its own, committed with the append or not at all."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import anyio
import asyncpg
import pytest
from postgres_server import database_url

from flowlet import Flowlet, Retry, current_run, gather, provided, step
from flowlet.errors import Conflict, FlowletError, RunFinished, StoreError
from flowlet.store import New, Signal, Write
from flowlet.stores.coded import CodedStore
from flowlet.stores.postgres import PostgresStore

pytestmark = pytest.mark.anyio

RUN = New("run", "test")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def side() -> AsyncIterator[asyncpg.Connection]:
    """A connection to a schema with a table of the user's."""
    schema = f"work_{secrets.token_hex(4)}"
    made = await asyncpg.connect(database_url())
    await made.execute(
        f"CREATE SCHEMA {schema}; SET search_path = {schema}; CREATE TABLE orders (name text PRIMARY KEY)"
    )
    yield made
    await made.execute(f"DROP SCHEMA {schema} CASCADE; DROP SCHEMA IF EXISTS {schema}_flow CASCADE")
    await made.close()


@pytest.fixture
async def table(side: asyncpg.Connection) -> str:
    name: str = await side.fetchval("SELECT current_schema()")
    return f"{name}.orders"


@pytest.fixture
async def store(table: str) -> AsyncIterator[PostgresStore]:
    made = PostgresStore(database_url(), schema=f"{table.partition('.')[0]}_flow", pool_size=2)
    await made.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])
    yield made
    await made.close()


def insert(table: str, name: str, *writes: Write) -> Callable[[asyncpg.Connection], Awaitable[Sequence[Write]]]:
    async def work(connection: asyncpg.Connection) -> Sequence[Write]:
        assert isinstance(connection, asyncpg.Connection)
        await connection.execute(f"INSERT INTO {table} VALUES ($1)", name)
        return writes

    return work


async def orders(side: asyncpg.Connection) -> list[str]:
    return [row[0] for row in await side.fetch("SELECT name FROM orders ORDER BY name")]


async def version(store: PostgresStore, id: str = "a") -> int | None:
    stored = await store.load(id)
    return None if stored is None else stored.head.version


async def test_rows_and_records_are_stored_together(store: PostgresStore, side: asyncpg.Connection, table: str) -> None:
    seen: list[object] = []

    async def work(connection: asyncpg.Connection) -> list[Write]:
        await connection.execute(f"INSERT INTO {table} VALUES ('one')")
        seen.extend((await orders(side), await version(store)))
        return [Write(id="b", expect=0, create=New("run", "unheard of"), records=[b"1"])]

    await store.append([Write(id="a", expect=1, records=[b"2"])], work=work)
    assert seen == [[], 1], "nobody sees any of it before all of it is there"
    assert (await orders(side), await version(store), await version(store, "b")) == (["one"], 2, 1)


async def test_rows_are_undone_when_the_append_is_refused(
    store: PostgresStore, side: asyncpg.Connection, table: str
) -> None:
    with pytest.raises(Conflict):
        await store.append([], work=insert(table, "one", Write(id="a", expect=7, records=[b""])))
    with pytest.raises(Conflict):
        await store.append([Write(id="a", expect=7, records=[b""])], work=insert(table, "one"))
    assert (await orders(side), await version(store)) == ([], 1)


async def test_an_append_that_is_overtaken_while_the_work_is_done(
    store: PostgresStore, side: asyncpg.Connection, table: str
) -> None:
    """It holds no lock on what it is to follow: others go on, and it is refused."""

    async def work(connection: asyncpg.Connection) -> list[Write]:
        await connection.execute(f"INSERT INTO {table} VALUES ('late')")
        with anyio.fail_after(5):
            await store.append([Write(id="a", expect=1, records=[b"2"])])
        return []

    with pytest.raises(Conflict):
        await store.append([Write(id="a", expect=1, records=[b"mine"])], work=work)
    assert (await orders(side), await version(store)) == ([], 2)


@pytest.mark.parametrize(
    "error",
    [RunFinished("mine"), KeyboardInterrupt("mine"), asyncio.CancelledError("mine"), asyncpg.PostgresError("x")],
)
async def test_whatever_it_raises_is_the_callers(
    store: PostgresStore, side: asyncpg.Connection, table: str, error: BaseException
) -> None:
    async def work(connection: asyncpg.Connection) -> list[Write]:
        await connection.execute(f"INSERT INTO {table} VALUES ('x')")
        raise error

    with pytest.raises(type(error)) as caught:
        await store.append([], work=work)
    assert caught.value is error
    assert await orders(side) == []
    await store.append([], work=insert(table, "next"))


async def test_an_error_of_its_own_sql_reaches_the_caller_unchanged(
    store: PostgresStore, side: asyncpg.Connection, table: str
) -> None:
    await store.append([], work=insert(table, "one"))
    with pytest.raises(asyncpg.UniqueViolationError):
        await store.append([Write(id="a", expect=1, records=[b"2"])], work=insert(table, "one"))
    await side.execute("CREATE TABLE late (name text REFERENCES orders DEFERRABLE INITIALLY DEFERRED)")

    async def break_later(connection: asyncpg.Connection) -> list[Write]:
        await connection.execute(f"INSERT INTO {table.partition('.')[0]}.late VALUES ('nobody')")
        return []

    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await store.append([Write(id="a", expect=1, records=[b"2"])], work=break_later)
    assert (await orders(side), await version(store)) == (["one"], 1)


async def test_an_error_that_it_swallows_is_told(store: PostgresStore, side: asyncpg.Connection) -> None:
    async def work(connection: asyncpg.Connection) -> list[Write]:
        with pytest.raises(asyncpg.PostgresError):
            await connection.execute("SELECT nonsense")
        return []

    with pytest.raises(StoreError, match="let its error pass"):
        await store.append([Write(id="a", expect=1, records=[b"2"])], work=work)
    assert await version(store) == 1


@pytest.mark.parametrize("how", ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN", "close"])
async def test_it_cannot_end_the_transaction(
    store: PostgresStore, side: asyncpg.Connection, table: str, how: str
) -> None:
    async def work(connection: asyncpg.Connection) -> list[Write]:
        if how == "close":
            await connection.close()
        else:
            await connection.execute(how)
        return []

    with pytest.raises(FlowletError):
        await store.append([Write(id="a", expect=1, records=[b"2"])], work=work)
    assert await version(store) == 1
    await store.append([Write(id="a", expect=1, records=[b"2"])], work=insert(table, "one"))
    assert (await orders(side), await version(store)) == (["one"], 2)


async def test_its_transactions_are_savepoints(store: PostgresStore, side: asyncpg.Connection, table: str) -> None:
    async def work(connection: asyncpg.Connection) -> list[Write]:
        with pytest.raises(asyncpg.UniqueViolationError):
            async with connection.transaction():
                await connection.execute(f"INSERT INTO {table} VALUES ('x'), ('x')")
        async with connection.transaction():
            await connection.execute(f"INSERT INTO {table} VALUES ('y')")
        return []

    await store.append([Write(id="a", expect=1, records=[b"2"])], work=work)
    assert (await orders(side), await version(store)) == (["y"], 2)


async def test_what_it_sets_is_gone_for_the_next(store: PostgresStore, side: asyncpg.Connection) -> None:
    async def set_it(connection: asyncpg.Connection) -> list[Write]:
        await connection.execute("SET search_path = nowhere; SET statement_timeout = 7")
        await connection.add_listener("somebody", lambda *_: None)
        return []

    seen: list[str] = []

    async def look(connection: asyncpg.Connection) -> list[Write]:
        seen.append(await connection.fetchval("SELECT current_setting('statement_timeout')"))
        seen.append(await connection.fetchval("SELECT count(*)::text FROM pg_listening_channels()"))
        return []

    for _ in range(4):
        await store.append([], work=set_it)
    for _ in range(4):
        await store.append([], work=look)
    assert seen == ["0", "0"] * 4


async def test_work_may_be_a_plain_function(store: PostgresStore) -> None:
    await store.append([], work=lambda connection: [Write(id="a", expect=1, records=[b"2"])])
    assert await version(store) == 2
    with pytest.raises(TypeError):
        await store.append([], work=lambda connection: None)  # type: ignore[arg-type, return-value]


async def test_work_through_a_codec(store: PostgresStore, side: asyncpg.Connection, table: str) -> None:
    class Reversed:
        def encode(self, data: bytes) -> bytes:
            return data[::-1]

        def decode(self, data: bytes) -> bytes:
            return data[::-1]

    coded = CodedStore(store, Reversed())
    await coded.append([], work=insert(table, "one", Write(id="a", expect=1, records=[b"abc"])))
    plain, decoded = await store.load("a", after=1), await coded.load("a", after=1)
    assert plain is not None
    assert decoded is not None
    assert (plain.records, decoded.records) == ((b"cba",), (b"abc",))
    assert await orders(side) == ["one"]


async def test_a_cancellation_before_the_work_has_ended_undoes_it(
    store: PostgresStore, side: asyncpg.Connection, table: str
) -> None:
    async def work(connection: asyncpg.Connection) -> list[Write]:
        await connection.execute(f"INSERT INTO {table} VALUES ('x')")
        await connection.execute("SELECT pg_sleep(60)")
        return []

    with anyio.fail_after(10):
        with anyio.move_on_after(0.3) as scope:
            await store.append([Write(id="a", expect=1, records=[b"2"])], work=work)
        assert scope.cancelled_caught
        assert (await orders(side), await version(store)) == ([], 1)
        await store.append([Write(id="a", expect=1, records=[b"2"])], work=insert(table, "y"))


async def test_a_cancellation_after_the_work_waits_for_the_outcome(
    store: PostgresStore, side: asyncpg.Connection, table: str
) -> None:
    """What was stored is known to the next call, whatever came in between."""
    for n in range(1, 30):
        task = asyncio.current_task()
        assert task is not None

        async def work(connection: asyncpg.Connection, n: int = n) -> list[Write]:
            await connection.execute(f"INSERT INTO {table} VALUES ($1)", str(n))
            asyncio.get_running_loop().call_later(0.0001 * n, scope.cancel)
            return []

        before = await version(store)
        with anyio.CancelScope() as scope:
            await store.append([Write(id="a", expect=before, records=[b"x"])], work=work)
        after = await version(store)
        assert after is not None
        assert len(await orders(side)) == after - 1


async def test_deadlocks_and_failed_serializations_of_the_append_are_repeated_with_the_work(
    store: PostgresStore, side: asyncpg.Connection, table: str
) -> None:
    """The work is done again: all that it had done in the database was undone."""
    done: list[int] = []

    async def work(connection: asyncpg.Connection) -> list[Write]:
        done.append(1)
        await connection.execute(f"INSERT INTO {table} VALUES ('x')")
        if len(done) < 3:
            # The append that follows fails as in a deadlock.
            await connection.execute(
                f"CREATE OR REPLACE FUNCTION {schema}.now() RETURNS double precision LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '40P01'; END $$"
            )
        return []

    schema = f"{table.partition('.')[0]}_flow"
    await store.append([Write(id="a", expect=1, records=[b"2"])], work=work)
    assert len(done) == 3
    assert (await orders(side), await version(store)) == (["x"], 2)


async def test_those_who_watch_hear_of_it(store: PostgresStore, table: str) -> None:
    seen = await store.watch(-1, 60)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(store.watch, seen, 60)
            await store.append([], work=insert(table, "x", Write(id="a", signals=[Signal("t", b"")])))


async def test_many_at_once_use_few_connections(store: PostgresStore, side: asyncpg.Connection, table: str) -> None:
    async def one(n: int) -> None:
        write = Write(id=f"id-{n}", expect=0, create=RUN, records=[b"1"])
        await store.append([write], work=insert(table, f"{n:02}"))

    async with anyio.create_task_group() as group:
        for n in range(40):
            group.start_soon(one, n)
    assert len(await orders(side)) == 40
    assert len(await store.scan()) == 41


# ---------------------------------------------------------------- steps
class Sorry(Exception):
    pass


@step(transactional=True, retry=Retry(attempts=3, wait=0))
async def book(name: str, table: str, connection: asyncpg.Connection = provided) -> int:
    run = current_run()
    await connection.execute(f"INSERT INTO {table} VALUES ($1)", f"{name} {run.attempt}")
    await asyncio.sleep(0)
    assert current_run().attempt == run.attempt
    if run.attempt < 3:
        raise Sorry(name)
    return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))


@step(transactional=True)
async def refuse(table: str, connection: asyncpg.Connection = provided) -> int:
    await connection.execute(f"INSERT INTO {table} VALUES ('never')")
    raise Sorry("no")


async def test_a_transactional_step_awaits_its_connection(
    store: PostgresStore, side: asyncpg.Connection, table: str
) -> None:
    flow = Flowlet(store)

    @flow.saga
    async def journey(table: str) -> int:
        first = await book("first", table)
        several = await gather(book("second", table), book("third", table))
        return first + sum(several)

    @flow.saga
    async def failing(table: str) -> int:
        return await refuse(table)

    async with flow:
        assert await flow.execute(journey, table, id="j") == 1 + 2 + 3
        assert await orders(side) == ["first 3", "second 3", "third 3"], "of each only the attempt that was recorded"
        with pytest.raises(Sorry):
            await flow.execute(failing, table, id="f")
        assert len(await orders(side)) == 3
        assert await flow.execute(journey, table, id="j") == 6, "it is not executed again"
    assert len(await orders(side)) == 3
