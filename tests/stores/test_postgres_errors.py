"""What goes wrong on the way to PostgreSQL is a typed error that says what to do, and never has the password."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator

import pytest
from postgres_server import Server, in_database, new_database, run_sql, throwaway

from flowlet.errors import ConfigError, EncodeError, FlowletError, StoreError, StoreUnavailable
from flowlet.store import New, Write

pytest.importorskip("asyncpg")

from flowlet.stores.postgres import PostgresStore

pytestmark = pytest.mark.anyio

RUN = New("run", "test")
SECRET = "hunter2/%x"
ESCAPED = "hunter2%2F%25x"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that wants a password of all but its superuser."""
    made = throwaway()
    run_sql(
        made.url,
        f"CREATE ROLE ann LOGIN PASSWORD '{SECRET}'",
        f"CREATE ROLE bob LOGIN PASSWORD '{SECRET}'",
        "CREATE DATABASE shop OWNER ann",
    )
    for line in ("host all ann 127.0.0.1/32 scram-sha-256", "host all bob 127.0.0.1/32 scram-sha-256"):
        made.configure(line, "pg_hba.conf", first=True)
    made.configure("host all nobody 127.0.0.1/32 reject", "pg_hba.conf", first=True)
    run_sql(made.url, "SELECT pg_reload_conf()")
    yield made
    made.remove()


def url_of(server: Server, user: str = "ann", secret: str = ESCAPED, database: str = "shop") -> str:
    return f"postgresql://{user}:{secret}@127.0.0.1:{server.port}/{database}"


async def error_of(store: PostgresStore, id: str = "a") -> FlowletError:
    """Return the error of an append, which must be that of a reading, too."""
    try:
        with pytest.raises(FlowletError) as appended:
            await store.append([Write(id=id, expect=0, create=RUN, records=[b"1"])])
        with pytest.raises(type(appended.value)):
            await store.load(id)
        return appended.value
    finally:
        await store.close()


async def test_with_the_right_password(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", SECRET)
    for url in (url_of(server), url_of(server).replace(f":{ESCAPED}", "")):
        store = PostgresStore(url)
        await store.append([Write(id=secrets.token_hex(4), expect=0, create=RUN, records=[b"1"])])
        await store.close()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"secret": "wrong"}, StoreError, ["password", "PGPASSWORD"]),
        ({"user": "nobody"}, StoreError, ["pg_hba.conf"]),
        ({"database": "missing"}, StoreError, ["no such database"]),
    ],
)
async def test_what_the_server_refuses(
    server: Server, change: dict[str, str], kind: type[FlowletError], words: list[str]
) -> None:
    error = await error_of(PostgresStore(url_of(server, **change)))
    assert type(error) is kind
    for word in [*words, f"127.0.0.1:{server.port}"]:
        assert word in str(error)
    assert error.__cause__ is not None


async def test_nobody_at_that_port() -> None:
    error = await error_of(PostgresStore("postgresql://ann:hunter2@127.0.0.1:1/shop"))
    assert type(error) is StoreUnavailable
    assert "127.0.0.1:1" in str(error)


async def test_no_such_host() -> None:
    error = await error_of(PostgresStore("postgresql://ann:hunter2@no.such.host.invalid/shop"))
    assert type(error) is StoreUnavailable


async def test_a_setting_that_the_driver_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    store = PostgresStore("postgresql://ann:hunter2@127.0.0.1:1/shop?sslmode=perhaps")
    assert type(await error_of(store)) is ConfigError
    monkeypatch.setenv("PGPORT", "hunter2")
    store = PostgresStore("postgresql://ann:hunter2@127.0.0.1/shop")
    error = await error_of(store)
    assert type(error) is ConfigError
    assert "hunter2" not in str(error)


async def test_a_user_who_may_make_no_schema(server: Server) -> None:
    error = await error_of(PostgresStore(url_of(server, "bob"), schema="bobs"))
    assert type(error) is StoreError
    assert "lacks a right" in str(error)


async def test_a_schema_of_somebody_else(server: Server) -> None:
    admin = in_database(server.url, "shop")
    run_sql(admin, "CREATE SCHEMA theirs", "CREATE SCHEMA theirs_open", "GRANT USAGE ON SCHEMA theirs_open TO ann")
    for schema, words in (("theirs", "may not use it"), ("theirs_open", "may make no tables")):
        error = await error_of(PostgresStore(url_of(server), schema=schema))
        assert type(error) is StoreError
        assert words in str(error)
        assert "'postgres'" in str(error), "it says whose it is"
    store = PostgresStore(admin, schema="theirs")
    await store.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])
    await store.close()
    run_sql(admin, "GRANT USAGE ON SCHEMA theirs TO ann")
    error = await error_of(PostgresStore(url_of(server), schema="theirs"))
    assert type(error) is StoreError
    assert "may not use it" in str(error)


async def test_a_schema_with_tables_that_are_not_ours(server: Server) -> None:
    admin = in_database(server.url, "shop")
    run_sql(admin, "CREATE SCHEMA shop AUTHORIZATION ann", "CREATE TABLE shop.heads (n int)")
    error = await error_of(PostgresStore(url_of(server), schema="shop"))
    assert type(error) is StoreError
    assert "not flowlet's" in str(error)
    assert run_sql(admin, "SELECT relname FROM pg_class WHERE relnamespace = 'shop'::regnamespace") == [("heads",)]


async def test_a_schema_that_was_made_for_us_is_used(server: Server) -> None:
    admin = in_database(server.url, "shop")
    run_sql(admin, "CREATE SCHEMA ready", "GRANT ALL ON SCHEMA ready TO ann")
    store = PostgresStore(url_of(server), schema="ready")
    await store.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])
    await store.close()


async def test_a_newer_schema_is_refused_and_left_alone(server: Server) -> None:
    admin = in_database(server.url, "shop")
    run_sql(admin, "CREATE SCHEMA newer", "CREATE TABLE newer.flowlet_version AS SELECT 2 AS version")
    error = await error_of(PostgresStore(admin, schema="newer"))
    assert type(error) is StoreError
    assert "version 2" in str(error)
    assert "nothing was written" in str(error)
    found = run_sql(admin, "SELECT relname FROM pg_class WHERE relnamespace = 'newer'::regnamespace")
    assert found == [("flowlet_version",)]


async def test_a_schema_that_goes_away(server: Server) -> None:
    admin = in_database(server.url, "shop")
    store = PostgresStore(admin, schema="brief")
    await store.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])
    run_sql(admin, "DROP SCHEMA brief CASCADE")
    error = await error_of(store)
    assert type(error) is StoreError
    assert "schema" in str(error)


async def test_a_read_only_database(server: Server) -> None:
    with new_database(server.url) as url:
        store = PostgresStore(url)
        await store.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])
        await store.close()
        run_sql(server.url, f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_read_only = on")
        store = PostgresStore(url)
        for write in (
            Write(id="a", expect=1, records=[b"2"]),
            Write(id="b", expect=0, create=RUN, records=[b"1"]),
            Write(id="a", status="s"),
        ):
            with pytest.raises(StoreError, match="read-only"):
                await store.append([write])
        with pytest.raises(StoreError, match="read-only"):
            await store.heartbeat("w", 10)
        stored = await store.load("a")
        assert stored is not None, "it may be read all the same"
        assert list(stored.records) == [b"1"]
        run_sql(server.url, f"ALTER DATABASE {url.rpartition('/')[2]} RESET default_transaction_read_only")
        await store.append([Write(id="a", expect=1, records=[b"2"])])
        await store.close()
        run_sql(server.url, f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_read_only = on")
        store = PostgresStore(url, schema="other")
        with pytest.raises(StoreError, match="read-only"):
            await store.now()
        await store.close()


async def test_the_server_is_full(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowlet.stores.postgres_link.PATIENCE", 0.1)
    run_sql(server.url, "ALTER ROLE ann CONNECTION LIMIT 1")
    store = PostgresStore(url_of(server), schema="full")
    write = Write(id="a", expect=0, create=RUN, records=[b"1"])
    try:
        with pytest.raises(StoreUnavailable, match="too many connections"):
            await store.append([write])
    finally:
        run_sql(server.url, "ALTER ROLE ann CONNECTION LIMIT -1")
    await store.append([write])
    await store.close()


@pytest.mark.parametrize("word", ["\ud800", "a\0b"])
async def test_words_that_postgresql_cannot_store(server: Server, word: str) -> None:
    store = PostgresStore(url_of(server), schema="words")
    id = secrets.token_hex(4)
    await store.append([Write(id=id, expect=0, create=RUN, records=[b"1"])])
    for write in (
        Write(id=id, status=word),
        Write(id="b", expect=0, create=New("run", word), records=[b"1"]),
        Write(id=word, expect=0, create=RUN, records=[b"1"]),
        Write(id=id, owner=word),
    ):
        with pytest.raises(EncodeError):
            await store.append([write])
    await store.append([Write(id=id, expect=1, records=[b"2"])])
    await store.close()


async def test_a_password_is_in_no_message_and_no_log(
    server: Server, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    run_sql(in_database(server.url, "shop"), "CREATE SCHEMA IF NOT EXISTS not_anns")
    calls: list[Callable[[], PostgresStore]] = [
        lambda: PostgresStore(url_of(server, database="missing")),
        lambda: PostgresStore(url_of(server, user="nobody")),
        lambda: PostgresStore(url_of(server), schema="not_anns"),
        lambda: PostgresStore(f"postgresql://ann:{ESCAPED}@127.0.0.1:1/shop"),
        lambda: PostgresStore(f"postgresql://127.0.0.1:1/shop?password={ESCAPED}&sslmode={ESCAPED}"),
    ]
    for make in calls:
        store = make()
        error: BaseException | None = await error_of(store)
        assert "hunter2" not in repr(store)
        while error is not None:
            if error.__class__.__module__.startswith("flowlet"):
                assert "hunter2" not in str(error), error
                assert "hunter2" not in repr(error)
            error = error.__cause__
    assert "hunter2" not in caplog.text
    out, err = capfd.readouterr()
    assert "hunter2" not in out + err
