"""User code in the transaction of an append: it stands or falls with the append, and only with it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest

from flowlet.errors import Conflict, RunFinished, StoreError
from flowlet.store import New, Write
from flowlet.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio

RUN = New("run", "test")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    made = SQLiteStore(tmp_path / "s.db", synchronous="NORMAL")

    def tables(connection: sqlite3.Connection) -> list[Write]:
        connection.execute("CREATE TABLE orders (name TEXT PRIMARY KEY)")
        connection.execute("CREATE TRIGGER t BEFORE DELETE ON orders BEGIN SELECT RAISE(ROLLBACK, 'no'); END")
        return []

    await made.append([Write(id="a", expect=0, create=RUN, records=[b"1"])], work=tables)
    yield made
    await made.close()


def insert(name: str, *writes: Write) -> Callable[[sqlite3.Connection], list[Write]]:
    def work(connection: sqlite3.Connection) -> list[Write]:
        connection.execute("INSERT INTO orders VALUES (?)", (name,))
        return list(writes)

    return work


def orders(store: SQLiteStore) -> list[str]:
    connection = sqlite3.connect(store.path)
    rows = connection.execute("SELECT name FROM orders ORDER BY name").fetchall()
    connection.close()
    return [row[0] for row in rows]


async def version(store: SQLiteStore, id: str = "a") -> int | None:
    stored = await store.load(id)
    return None if stored is None else stored.head.version


async def test_rows_and_records_are_stored_together(store: SQLiteStore) -> None:
    await store.append([Write(id="a", expect=1, records=[b"2"])], work=insert("one"))
    assert (orders(store), await version(store)) == (["one"], 2)


async def test_rows_are_undone_when_the_append_is_refused(store: SQLiteStore) -> None:
    with pytest.raises(Conflict):
        await store.append([], work=insert("one", Write(id="a", expect=7, records=[b""])))
    assert (orders(store), await version(store)) == ([], 1)


async def test_an_error_of_the_users_own_sql_reaches_the_caller_unchanged(store: SQLiteStore) -> None:
    await store.append([], work=insert("one"))
    with pytest.raises(sqlite3.IntegrityError):
        await store.append([Write(id="a", expect=1, records=[b"2"])], work=insert("one"))
    assert (orders(store), await version(store)) == (["one"], 1)


@pytest.mark.parametrize("error", [RunFinished("mine"), KeyboardInterrupt("mine"), sqlite3.OperationalError("mine")])
async def test_whatever_it_raises_is_the_callers(store: SQLiteStore, error: BaseException) -> None:
    def work(connection: sqlite3.Connection) -> list[Write]:
        connection.execute("INSERT INTO orders VALUES ('x')")
        raise error

    with pytest.raises(type(error)) as caught:
        await store.append([], work=work)
    assert caught.value is error
    assert orders(store) == []


async def test_what_returns_no_writes_is_told_so(store: SQLiteStore) -> None:
    with pytest.raises(TypeError):
        await store.append([], work=lambda connection: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("how", ["COMMIT", "ROLLBACK", "END", "commit()", "rollback()", "with"])
async def test_it_cannot_end_the_transaction_of_others(store: SQLiteStore, how: str) -> None:
    def work(connection: sqlite3.Connection) -> list[Write]:
        connection.execute("INSERT INTO orders VALUES ('x')")
        if how == "with":
            with connection:
                connection.execute("INSERT INTO orders VALUES ('y')")
        elif how.endswith("()"):
            getattr(connection, how[:-2])()
        else:
            connection.execute(how)
        return []

    outcomes: dict[str, BaseException] = {}

    async def one(name: str, work: Callable[[sqlite3.Connection], list[Write]]) -> None:
        try:
            await store.append([Write(id=name, expect=0, create=RUN, records=[b"1"])], work=work)
        except Exception as error:
            outcomes[name] = error

    async with anyio.create_task_group() as group:
        group.start_soon(one, "before", insert("before"))
        group.start_soon(one, "bad", work)
        group.start_soon(one, "after", insert("after"))
    assert list(outcomes) == ["bad"]
    assert isinstance(outcomes["bad"], StoreError)
    assert isinstance(outcomes["bad"].__cause__, sqlite3.DatabaseError)
    assert "do neither" in str(outcomes["bad"])
    assert orders(store) == ["after", "before"]
    assert [await version(store, id) for id in ("before", "bad", "after")] == [1, None, 1]
    await store.append([Write(id="a", expect=1, records=[b"2"])])


async def test_one_that_loses_the_whole_transaction_harms_nobody_else(store: SQLiteStore) -> None:
    """A trigger with RAISE(ROLLBACK) undoes everything: the others are done again, without it."""
    await store.append([], work=insert("one"))

    def work(connection: sqlite3.Connection) -> list[Write]:
        connection.execute("DELETE FROM orders")
        return []

    outcomes: dict[str, BaseException | None] = {}

    async def one(name: str, work: Callable[[sqlite3.Connection], list[Write]] | None) -> None:
        outcomes[name] = None
        try:
            await store.append([Write(id=name, expect=0, create=RUN, records=[b"1"])], work=work)
        except Exception as error:
            outcomes[name] = error

    async with anyio.create_task_group() as group:
        group.start_soon(one, "before", None)
        group.start_soon(one, "with rows", insert("two"))
        group.start_soon(one, "bad", work)
        group.start_soon(one, "after", None)
    assert isinstance(outcomes.pop("bad"), sqlite3.IntegrityError)
    assert outcomes == {"before": None, "with rows": None, "after": None}
    assert orders(store) == ["one", "two"]
    assert [await version(store, id) for id in ("before", "with rows", "bad", "after")] == [1, 1, None, 1]


async def test_savepoints_are_its_own_business(store: SQLiteStore) -> None:
    def work(connection: sqlite3.Connection) -> list[Write]:
        connection.execute("SAVEPOINT mine")
        connection.execute("INSERT INTO orders VALUES ('x')")
        connection.execute("ROLLBACK TO mine")
        connection.execute("RELEASE mine")
        connection.execute("INSERT INTO orders VALUES ('y')")
        return []

    await store.append([], work=work)
    assert orders(store) == ["y"]
