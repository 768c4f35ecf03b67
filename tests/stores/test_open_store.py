"""Naming a store does no I/O, and a URL that names none says what would."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import flowlet
from flowlet.errors import ConfigError
from flowlet.store import Write
from flowlet.stores import open_store
from flowlet.stores.memory import MemoryStore
from flowlet.stores.sqlite import SQLiteStore


def test_memory() -> None:
    store = open_store("memory://")
    assert isinstance(store, MemoryStore)
    flags = store.capabilities
    assert (flags.durable, flags.multi_process) == (False, False)
    assert (flags.transactional, flags.leases, flags.signals) == (True, True, True)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///orders.db", "orders.db"),
        ("sqlite:///some%20where/a%3Fb%25.db", "some where/a?b%.db"),
        ("sqlite:////var/lib/orders.db", "/var/lib/orders.db"),
        ("sqlite:///orders.db?durability=power", "orders.db"),
    ],
)
def test_sqlite_paths(url: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the example was run there is an orders.db
    store = open_store(url)
    assert isinstance(store, SQLiteStore)
    assert store.path == os.path.abspath(path)
    assert not os.path.exists(store.path)
    flags = store.capabilities
    assert flags.durable
    assert flags.multi_process
    assert flags.transactional
    assert flags.max_payload is not None


@pytest.mark.anyio
@pytest.mark.parametrize(("option", "level"), [("", 2), ("?durability=power", 2), ("?durability=process", 1)])
async def test_durability_is_the_level_of_synchronous(tmp_path: Path, option: str, level: int) -> None:
    store = open_store(f"sqlite:///{tmp_path}/s.db{option}")
    assert isinstance(store, SQLiteStore)
    levels: list[int] = []

    def work(connection: sqlite3.Connection) -> list[Write]:
        levels.extend(connection.execute("PRAGMA synchronous").fetchone())
        return []

    await store.append([], work=work)
    await store.close()
    assert levels == [level]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", ["''", "memory://", "sqlite:///"]),
        ("orders.db", ["orders.db", "sqlite:///"]),
        ("sqlite:orders.db", ["sqlite:orders.db", "sqlite:///"]),
        ("mysql://host/db", ["mysql://host/db", "memory://", "sqlite:///", "schemes there are"]),
        ("memory://here", ["here"]),
        ("memory://?durability=process", ["durability"]),
        ("sqlite://", ["names no file", "sqlite:///"]),
        ("sqlite:///", ["names no file"]),
        ("sqlite:///?durability=process", ["names no file"]),
        ("sqlite:///:memory:", ["memory://"]),
        ("sqlite:///a%00b", ["names no file"]),
        ("sqlite://orders.db", ["sqlite:///orders.db", "three slashes"]),
        ("sqlite:///orders.db?durability=none", ["'none'", "'power'", "'process'"]),
        ("sqlite:///orders.db?durability=", ["''", "'power'"]),
        ("sqlite:///orders.db?mode=ro", ["'mode'", "'durability'"]),
    ],
)
def test_what_names_no_store(url: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    for word in words:
        assert word in str(caught.value)


def test_no_password_in_the_message() -> None:
    with pytest.raises(ConfigError) as caught:
        open_store("mysql://ann:secret@host/db")
    assert "secret" not in str(caught.value)
    assert "ann" in str(caught.value)


def test_arguments_of_sqlite_are_checked() -> None:
    with pytest.raises(ConfigError, match="'OFF'"):
        SQLiteStore("x.db", synchronous="OFF")
    with pytest.raises(ConfigError, match="''"):
        SQLiteStore("")


def test_only_what_is_named_is_imported() -> None:
    code = "import sys, flowlet.stores as s; s.open_store('memory://'); print('sqlite3' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.strip() == "False"
