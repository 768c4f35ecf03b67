"""URLs of PostgreSQL stores: what they name, what is refused, and where a password never shows."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flowlet.errors import ConfigError

pytest.importorskip("asyncpg")

from flowlet.stores import open_store
from flowlet.stores.postgres import PostgresStore
from flowlet.stores.postgres_address import Address

SECRET = "se cr%et+/?#@:x"
ESCAPED = "se%20cr%25et%2B%2F%3F%23%40%3Ax"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_url_names_a_store(scheme: str) -> None:
    store = open_store(f"{scheme}://ann:{ESCAPED}@db.example:5433/shop?schema=orders&pool_size=7&sslmode=require")
    assert isinstance(store, PostgresStore)
    assert repr(store) == "<PostgresStore postgresql://ann@db.example:5433/shop?schema=orders>"


def test_what_the_driver_is_given() -> None:
    address = Address(f"postgres://ann:{ESCAPED}@a:1,b:2/shop?schema=s&pool_size=7&connect_timeout=3&sslmode=require")
    assert address.dsn == f"postgresql://ann:{ESCAPED}@a:1,b:2/shop?sslmode=require"
    assert (address.schema, address.pool_size, address.connect_timeout) == ("s", 7, 3.0)
    assert Address("postgresql://").dsn == "postgresql://", "all of it may come from the PG variables"
    assert Address("postgresql://h/d?schema=s", schema="t", pool_size=2).schema == "t"
    assert Address("postgresql:///d?host=/var/run/postgresql").dsn == "postgresql:///d?host=%2Fvar%2Frun%2Fpostgresql"
    assert Address("postgresql://[::1]:5432/d").shown == "postgresql://[::1]:5432/d?schema=flowlet"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        'a"; DROP TABLE heads; --',
        "a';--",
        "a.b",
        "1a",
        "pg_temp",
        "PG_x",
        "information_schema",
        "x" * 64,
        "ä",
        "a\0b",
        "a\n",
        "@",
    ],
)
def test_what_is_no_name_of_a_schema(name: str) -> None:
    with pytest.raises(ConfigError, match="schema"):
        PostgresStore("postgresql://h/d", schema=name)


def test_an_injection_through_the_url_is_refused() -> None:
    with pytest.raises(ConfigError, match="no name for a schema"):
        open_store("postgresql://h/d?schema=x%22%3B%20DROP%20SCHEMA%20public%20CASCADE%3B--")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://h/d?shema=x", ["'shema'", "schema", "pool_size"]),
        ("postgresql://h/d?options=-c%20x", ["'options'"]),
        ("postgresql://h/d?pool_size=0", ["pool_size='0'", "1 to 1000"]),
        ("postgresql://h/d?pool_size=many", ["pool_size='many'"]),
        ("postgresql://h/d?pool_size=1001", ["pool_size='1001'"]),
        ("postgresql://h/d?connect_timeout=-1", ["connect_timeout='-1'"]),
        ("postgresql://h/d?schema", ["form"]),
        ("postgresql://h:port/d", ["form"]),
        ("postgresql://[::1/d", ["form"]),
        ("postgresql+asyncpg://h/d", ["form"]),
    ],
)
def test_what_is_refused(url: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        PostgresStore(url)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "secret", ["hu/nter", "hu?nter", "hu#nter", "hu@nter", "hu:nter", "12?hunter", "hu[nter", "hu]nter"]
)
def test_a_password_that_is_not_escaped_is_never_in_the_message(secret: str) -> None:
    """It is refused, or understood as it was meant; either way none of it shows."""
    try:
        address = Address(f"postgresql://ann:{secret}@host/db?schema=s")
    except ConfigError as error:
        shown = repr(error) + repr(error.__cause__) + repr(error.__context__ if not error.__suppress_context__ else "")
    else:
        shown = repr(address) + address.shown
        assert address.shown == "postgresql://ann@host/db?schema=s"
    assert "nter" not in shown


def test_a_password_is_taken_out_of_other_peoples_texts() -> None:
    address = Address(f"postgresql://ann:{ESCAPED}@h/d?sslpassword=other%20one")
    assert address.clean(f"bad DSN postgresql://ann:{ESCAPED}@h and {SECRET} and other one") == (
        "bad DSN postgresql://ann:***@h and *** and ***"
    )


def test_neither_flowlet_nor_the_names_of_stores_import_the_driver() -> None:
    code = "import sys, flowlet, flowlet.stores, flowlet.store; print('asyncpg' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_without_the_driver_the_error_says_what_to_install() -> None:
    code = """
import sys
sys.modules["asyncpg"] = None
from flowlet.errors import MissingExtra
from flowlet.stores import open_store
try:
    open_store("postgresql://ann:hunter@h/d")
except MissingExtra as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'flowlet[postgres]'" in ran.stdout
    assert "hunter" not in ran.stdout + ran.stderr


def test_on_trio_it_says_that_it_needs_asyncio() -> None:
    import trio

    store = PostgresStore("postgresql://ann:hunter@h/d")
    for call in (lambda: store.load("a"), store.now, lambda: store.append([]), lambda: store.watch(-1, 0), store.close):
        with pytest.raises(ConfigError, match="asyncio only"):
            trio.run(call)
