"""Storing in groups: few statements for many appends, each with its own outcome, whatever becomes of its caller."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator

import anyio
import pytest
from postgres_server import database_url, run_sql

from flowlet.errors import Conflict, EncodeError, FlowletError, RunNotFound, StoreError, StoreUnavailable
from flowlet.store import New, Signal, Write

pytest.importorskip("asyncpg")

from flowlet.stores import postgres_committer
from flowlet.stores.postgres import PostgresStore

pytestmark = pytest.mark.anyio

RUN = New("run", "test")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def store() -> AsyncIterator[PostgresStore]:
    schema = f"groups_{secrets.token_hex(4)}"
    made = PostgresStore(database_url(), schema=schema)
    yield made
    await made.close()
    run_sql(database_url(), f"DROP SCHEMA {schema} CASCADE")


def creation(id: str, **facts: object) -> Write:
    return Write(id=id, expect=0, create=RUN, records=[b"1"], **facts)  # type: ignore[arg-type]


async def outcomes(store: PostgresStore, *appends: list[Write]) -> list[object]:
    async def one(writes: list[Write]) -> object:
        try:
            return await store.append(writes)
        except FlowletError as error:
            return type(error)

    return await asyncio.gather(*(one(writes) for writes in appends))


async def versions(store: PostgresStore, *ids: str) -> list[int | None]:
    found = [await store.load(id) for id in ids]
    return [None if stored is None else stored.head.version for stored in found]


async def test_what_one_turn_of_the_loop_brings_is_one_statement(store: PostgresStore) -> None:
    await store.append([creation("first")])
    before = store.statements
    assert await outcomes(store, *([creation(f"id-{n}")] for n in range(200))) == [None] * 200
    assert store.statements == before + 1
    heads = await store.scan(limit=1000)
    assert [head.id for head in heads] == ["first", *(f"id-{n}" for n in range(200))], "in the order of the callers"
    assert [head.order for head in heads] == list(range(1, 202))


async def test_those_who_were_woken_together_are_stored_together(store: PostgresStore) -> None:
    async def work(id: str) -> None:
        await store.append([creation(id)])
        for version in range(1, 20):
            await store.append([Write(id=id, expect=version, records=[b"x"])])

    await asyncio.gather(*(work(f"id-{n}") for n in range(50)))
    assert store.statements <= 40, f"{store.statements} statements for 1000 appends"


async def test_one_that_cannot_be_stored_disturbs_no_other(store: PostgresStore) -> None:
    """It is found only when PostgreSQL, or the driver, refuses the whole statement."""
    await store.append([creation("a")])
    bad = [
        [Write(id="a", status="\ud800")],
        [Write(id="a", expect=2**70, records=[b"2"])],
        [creation("\ud800")],
        [Write(id="b", expect=0, create=New("run", "\ud800"), records=[b"1"])],
        [Write(id="a\0", status="x")],
        [creation("c"), Write(id="a", wake="soon")],  # type: ignore[arg-type]
    ]
    good = [[creation(f"id-{n}")] for n in range(20)]
    mixed = [append for n in range(20) for append in ([good[n]] + ([bad[n // 3]] if n % 3 == 0 and n // 3 < 6 else []))]
    found = await outcomes(store, *mixed)
    assert [found[mixed.index(append)] for append in good] == [None] * 20
    assert [found[mixed.index(append)] for append in bad] == [EncodeError] * 6
    assert await versions(store, *(f"id-{n}" for n in range(20)), "a", "b", "c") == [1] * 21 + [None] * 2


async def test_a_refused_append_leaves_no_trace(store: PostgresStore) -> None:
    await store.append([creation("a"), creation("b")])
    before = await store.load("a")
    refused = [
        Write(
            id="a", expect=1, records=[b"2"], status="s", state="t", wake=1.0, owner="w", snapshot=b"x", close=True,
            signals=[Signal("t", b"1", "m")], consumed=9,
        ),
        creation("new", signals=[Signal("t", b"1", "m")], snapshot=b"y"),
        Write(id="b", expect=7, records=[b"2"]),
    ]  # fmt: skip
    found = await outcomes(store, refused, [creation("c")], [Write(id="nobody", status="x"), creation("d")])
    assert found == [Conflict, None, RunNotFound]
    assert await store.load("a") == before
    assert await versions(store, "b", "new", "c", "d") == [1, None, 1, None]
    await store.append([Write(id="a", signals=[Signal("t", b"1", "m")])])
    stored = await store.load("a")
    assert stored is not None
    assert stored.head.inbox == 1, "the message was not received before"
    assert [head.order for head in await store.scan()] == [1, 2, 3], "nor was a number used"


async def test_appends_to_one_id_keep_their_order(store: PostgresStore) -> None:
    others = [[creation(f"id-{n}")] for n in range(20)]
    mine = [[creation("a")], *([Write(id="a", expect=n, records=[b"%d" % n])] for n in range(1, 20))]
    pairs = [append for pair in zip(mine, others, strict=True) for append in pair]
    assert await outcomes(store, *pairs) == [None] * 40
    stored = await store.load("a")
    assert stored is not None
    assert list(stored.records) == [b"1", *(b"%d" % n for n in range(1, 20))]


async def test_an_append_that_spans_ids_keeps_its_place_in_the_order_of_each(store: PostgresStore) -> None:
    assert await outcomes(
        store,
        [creation("a")],
        [Write(id="a", expect=1, records=[b"2"]), creation("b")],
        [Write(id="b", expect=1, records=[b"2"])],
        [creation("c")],
        [Write(id="c", expect=1, records=[b"2"]), Write(id="b", expect=2, records=[b"3"])],
    ) == [None] * 5  # fmt: skip
    assert await versions(store, "a", "b", "c") == [2, 3, 2]


async def test_of_those_who_follow_one_version_in_several_processes_one_is_stored(store: PostgresStore) -> None:
    """Each is judged under the lock of what it is to follow, however the others' commits fall."""
    schema = repr(store).partition("schema=")[2][:-1]
    several = [store, *(PostgresStore(database_url(), schema=schema) for _ in range(3))]
    ids = [f"id-{n}" for n in range(20)]
    await store.append([creation(id) for id in ids])
    for version in range(1, 16):
        appends = [[Write(id=id, expect=version, records=[b"x"], wake=5.0)] for id in ids]
        found = await asyncio.gather(*(outcomes(one, *appends) for one in several))
        assert [sorted(map(str, outcome)) for outcome in zip(*found, strict=True)] == [
            sorted(map(str, [None, Conflict, Conflict, Conflict]))
        ] * 20
    assert await versions(store, *ids) == [16] * 20
    for other in several[1:]:
        await other.close()


async def test_who_follows_what_is_created_misses_nothing(store: PostgresStore) -> None:
    """Numbers become visible in their order, whoever gives them: a cursor never passes one by."""
    schema = repr(store).partition("schema=")[2][:-1]
    several = [PostgresStore(database_url(), schema=schema) for _ in range(3)]
    seen: list[str] = []

    async def create(n: int) -> None:
        for k in range(100):
            writes = [creation(f"{n}-{k}")]
            if k % 10 == 0:
                await several[n].append([], work=lambda connection, writes=writes: writes)
            else:
                await several[n].append(writes)

    async def follow() -> None:
        cursor = 0
        while len(seen) < 300:
            for head in await store.scan(after=cursor, limit=50):
                seen.append(head.id)
                cursor = head.order

    await store.now()
    with anyio.fail_after(30):
        await asyncio.gather(follow(), *(create(n) for n in range(3)))
    assert sorted(seen) == sorted(f"{n}-{k}" for n in range(3) for k in range(100))
    for other in several:
        await other.close()


async def test_an_append_whose_caller_is_cancelled_is_stored_all_the_same(store: PostgresStore) -> None:
    await store.append([creation("a")])
    tasks = [asyncio.create_task(store.append([Write(id="a", expect=n, records=[b"x"])])) for n in range(1, 11)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    for task in tasks:
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await versions(store, "a") == [11]
    await store.append([Write(id="a", expect=11, records=[b"x"])])


async def test_a_cancelled_caller_does_not_wait_for_a_server_that_does_not_answer(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_committer, "_OUTLASTED", 0.1)
    await store.append([creation("a")])
    schema = repr(store).partition("schema=")[2][:-1]
    import asyncpg

    blocker = await asyncpg.connect(database_url())
    async with blocker.transaction():
        await blocker.execute(f"LOCK TABLE {schema}.heads IN ACCESS EXCLUSIVE MODE")
        with anyio.fail_after(3), anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_later(0.05, scope.cancel)
            await store.append([Write(id="a", expect=1, records=[b"2"])])
        assert scope.cancelled_caught
    await blocker.close()
    await store.append([Write(id="a", status="after")])
    assert await versions(store, "a") == [2], "it was stored, before what came after it"


async def test_a_lock_that_nobody_gives_up_is_said(store: PostgresStore) -> None:
    """Somebody's LOCK TABLE, an ALTER TABLE: it is waited for, for a while, and then nothing was stored."""
    import asyncpg

    await store.append([creation("a")])
    schema = repr(store).partition("schema=")[2][:-1]
    committer = store._session_here().committer
    assert committer._connection is not None
    await committer._connection.execute("SET lock_timeout = '100ms'")
    blocker = await asyncpg.connect(database_url())
    async with blocker.transaction():
        await blocker.execute(f"LOCK TABLE {schema}.heads IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailable, match="lock"):
            await store.append([Write(id="a", expect=1, records=[b"2"])])
    await blocker.close()
    await store.append([Write(id="a", expect=1, records=[b"2"])])


async def test_many_more_than_are_accepted_at_once(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_committer, "_BOUND", 10)
    monkeypatch.setattr(postgres_committer, "_MOST_AT_ONCE", 4)
    assert await outcomes(store, *([creation(f"id-{n}")] for n in range(100))) == [None] * 100
    assert len(await store.scan(limit=1000)) == 100


async def test_large_values_are_stored_in_statements_of_a_bearable_size(store: PostgresStore) -> None:
    large = b"x" * (3 << 20)
    appends = [[Write(id=f"id-{n}", expect=0, create=RUN, records=[large])] for n in range(8)]
    assert await outcomes(store, *appends) == [None] * 8
    assert store.statements >= 4
    assert await versions(store, *(f"id-{n}" for n in range(8))) == [1] * 8


async def test_closing_finishes_what_was_accepted(store: PostgresStore) -> None:
    tasks = [asyncio.create_task(store.append([creation(f"id-{n}")])) for n in range(50)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*tasks)
    assert len(await store.scan()) == 50


def test_a_store_moves_from_loop_to_loop() -> None:
    schema = f"loops_{secrets.token_hex(4)}"
    store = PostgresStore(database_url(), schema=schema)
    try:
        asyncio.run(store.append([creation("a")]))
        _collect()
        asyncio.run(store.append([Write(id="a", expect=1, records=[b"2"])]))
        _collect()
        assert asyncio.run(versions(store, "a")) == [2]
        _collect()
        asyncio.run(store.close())
    finally:
        run_sql(database_url(), f"DROP SCHEMA {schema} CASCADE")


def _collect() -> None:
    """A loop that ends without `close` leaves sockets behind: what Python says of them is not the subject here."""
    import gc
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


async def test_a_fork_may_not_use_what_its_parent_has_open(store: PostgresStore) -> None:
    await store.append([creation("a")])
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(store.now())
            os.write(into, b"it may")
        except StoreError as error:
            os.write(into, str(error).encode())
        finally:
            os._exit(0)
    os.close(into)
    os.waitpid(child, 0)
    assert b"was forked from process" in os.read(out, 1000)
    os.close(out)
    assert await versions(store, "a") == [1]


async def test_durability_is_not_left_to_a_setting_of_the_user(store: PostgresStore) -> None:
    """A role with ``synchronous_commit = off`` would lose acknowledged appends with the server's power."""
    database = database_url().rpartition("/")[2].partition("?")[0]
    await store.append([creation("a")])
    await store.close()
    schema = repr(store).partition("schema=")[2][:-1]
    trigger = f"""
        CREATE TABLE {schema}.seen (level text);
        CREATE FUNCTION {schema}.see() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO {schema}.seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER see AFTER INSERT ON {schema}.records DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION {schema}.see();
        """
    import asyncpg

    side = await asyncpg.connect(database_url())
    await side.execute(trigger)
    await side.execute(f"ALTER DATABASE {database} SET synchronous_commit = off")
    try:
        await store.append([Write(id="a", expect=1, records=[b"2"])])
        await store.append([Write(id="a", expect=2, records=[b"3", b"4"])])
        await store.append([], work=lambda connection: [Write(id="a", expect=4, records=[b"5"])])
        await store.close()
        assert [row[0] for row in await side.fetch(f"SELECT level FROM {schema}.seen")] == ["on"] * 4
    finally:
        await side.execute(f"ALTER DATABASE {database} RESET synchronous_commit")
        await side.close()


async def test_on_a_server_that_defaults_to_serializable(store: PostgresStore) -> None:
    database = database_url().rpartition("/")[2].partition("?")[0]
    run_sql(database_url(), f"ALTER DATABASE {database} SET default_transaction_isolation = serializable")
    try:
        other = PostgresStore(database_url(), schema=repr(store).partition("schema=")[2][:-1])
        await store.append([creation("a")])
        for version in range(1, 20):
            found = [await outcomes(s, [Write(id="a", expect=version, records=[b"x"])]) for s in (store, other)]
            assert found == [[None], [Conflict]]
        await asyncio.gather(*(s.append([creation(f"{n}-{id(s)}")]) for s in (store, other) for n in range(20)))
        await other.close()
    finally:
        run_sql(database_url(), f"ALTER DATABASE {database} RESET default_transaction_isolation")


def test_the_error_of_a_mistake_is_an_error_of_the_append() -> None:
    """Whatever goes wrong inside, nobody is told that something was stored, and the next append is served."""

    async def main() -> None:
        schema = f"broken_{secrets.token_hex(4)}"
        store = PostgresStore(database_url(), schema=schema)
        await store.append([creation("a")])
        committer = store._session_here().committer
        send, committer._send = committer._send, None  # type: ignore[assignment, method-assign]
        with pytest.raises(StoreError, match="mistake"):
            await store.append([Write(id="a", expect=1, records=[b"2"])])
        committer._send = send  # type: ignore[method-assign]
        await store.append([Write(id="a", expect=1, records=[b"2"])])
        await store.close()
        run_sql(database_url(), f"DROP SCHEMA {schema} CASCADE")

    asyncio.run(main())


def test_an_append_that_its_loop_leaves_behind_is_not_reported_as_stored() -> None:
    told: list[object] = []

    async def main(store: PostgresStore) -> None:
        await store.append([creation("a")])

        async def late() -> None:
            try:
                await store.append([Write(id="a", expect=1, records=[b"2"])])
                told.append("stored")
            except BaseException as error:
                told.append(type(error))

        task = asyncio.create_task(late())
        await asyncio.sleep(0)
        committer = store._session_here().committer
        assert committer._task is not None
        committer._task.cancel()
        await asyncio.wait([task])

    schema = f"left_{secrets.token_hex(4)}"
    store = PostgresStore(database_url(), schema=schema)
    asyncio.run(main(store))
    asyncio.run(store.close())
    _collect()
    run_sql(database_url(), f"DROP SCHEMA {schema} CASCADE")
    assert told == [StoreUnavailable]
