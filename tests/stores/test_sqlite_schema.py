"""Files of older versions are brought up to date as a whole, by one process, or stay as they are."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from flowlet.errors import StoreError
from flowlet.store import New, Write
from flowlet.stores import sqlite_schema
from flowlet.stores.sqlite import SQLiteStore
from flowlet.stores.sqlite_schema import MIGRATIONS, SCHEMA_VERSION

RUN = New("run", "test")
NEWEST = SCHEMA_VERSION + 2

STEPS = (
    (
        "CREATE TABLE notes (n INTEGER PRIMARY KEY, text TEXT NOT NULL)",
        "INSERT INTO notes SELECT n, 'note of ' || id FROM heads",
    ),
    ("CREATE INDEX notes_text ON notes (text)", "INSERT INTO notes VALUES (999, 'the end')"),
)
"""Two versions to come."""


def fill(path: Path, count: int = 5) -> None:
    async def main() -> None:
        store = SQLiteStore(path)
        for n in range(count):
            await store.append([Write(id=f"r{n}", expect=0, create=RUN, records=[b"1", b"2"])])
        await store.close()

    anyio.run(main)


def ask(path: Path, text: str) -> Any:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(text).fetchall()
    finally:
        connection.close()


def state(path: Path) -> tuple[int, list[str], int]:
    """Return the version, the tables and indexes, and how many records there are."""
    names = [row[0] for row in ask(path, "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite%' ORDER BY name")]
    (version,), (records,) = *ask(path, "PRAGMA user_version"), *ask(path, "SELECT count(*) FROM records")
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    return version, names, records


def ids(path: Path) -> list[str]:
    async def main() -> list[str]:
        store = SQLiteStore(path)
        try:
            return [head.id for head in await store.scan()]
        finally:
            await store.close()

    return anyio.run(main)


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be of a flowlet that knows two more versions."""
    monkeypatch.setattr(sqlite_schema, "MIGRATIONS", (*MIGRATIONS, *STEPS))
    monkeypatch.setattr(sqlite_schema, "SCHEMA_VERSION", NEWEST)


def test_each_released_version_becomes_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = tmp_path / "new.db"
    fill(new)
    for version in range(1, SCHEMA_VERSION):
        path = tmp_path / f"{version}.db"
        with monkeypatch.context() as patch:
            patch.setattr(sqlite_schema, "MIGRATIONS", MIGRATIONS[:version])
            patch.setattr(sqlite_schema, "SCHEMA_VERSION", version)
            fill(path)
        assert state(path)[0] == version
        assert ids(path) == [f"r{n}" for n in range(5)]
        assert state(path) == state(new)


@pytest.mark.usefixtures("newer")
def test_an_older_file_gets_all_it_lacks_and_keeps_all_it_has(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite_schema, "MIGRATIONS", MIGRATIONS)
        patch.setattr(sqlite_schema, "SCHEMA_VERSION", SCHEMA_VERSION)
        fill(path)
    assert ids(path) == [f"r{n}" for n in range(5)]
    version, names, records = state(path)
    assert (version, records) == (NEWEST, 10)
    assert {"notes", "notes_text"} < set(names)
    assert ask(path, "SELECT count(*) FROM notes") == [(6,)]
    assert ids(path) == [f"r{n}" for n in range(5)]
    assert ask(path, "SELECT count(*) FROM notes") == [(6,)], "it is not done a second time"


def test_the_older_flowlet_refuses_it_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_schema, "MIGRATIONS", (*MIGRATIONS, *STEPS))
        patch.setattr(sqlite_schema, "SCHEMA_VERSION", NEWEST)
        fill(path)
    with pytest.raises(StoreError, match=f"schema version {NEWEST}; this flowlet knows version {SCHEMA_VERSION}"):
        ids(path)
    assert state(path)[0] == NEWEST


def test_one_that_was_open_meanwhile_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"

    async def main() -> None:
        old = SQLiteStore(path)
        await old.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])
        monkeypatch.setattr(sqlite_schema, "MIGRATIONS", (*MIGRATIONS, *STEPS))
        monkeypatch.setattr(sqlite_schema, "SCHEMA_VERSION", NEWEST)
        new = SQLiteStore(path)
        await new.append([Write(id="a", expect=1, records=[b"2"])])
        await old.append([Write(id="a", expect=2, records=[b"3"])])
        for store in (old, new):
            stored = await store.load("a")
            assert stored is not None
            assert list(stored.records) == [b"1", b"2", b"3"]
            await store.close()

    anyio.run(main)
    assert state(path)[0] == NEWEST


@pytest.mark.parametrize("broken", range(4))
def test_a_step_that_fails_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    path = tmp_path / "s.db"
    fill(path)
    before = state(path)
    statements = [list(step) for step in STEPS]
    statements[broken // 2][broken % 2] = "INSERT INTO nowhere VALUES (1)"
    monkeypatch.setattr(sqlite_schema, "MIGRATIONS", (*MIGRATIONS, *map(tuple, statements)))
    monkeypatch.setattr(sqlite_schema, "SCHEMA_VERSION", NEWEST)
    with pytest.raises(StoreError, match="no such table: nowhere"):
        ids(path)
    assert state(path) == before
    monkeypatch.setattr(sqlite_schema, "MIGRATIONS", (*MIGRATIONS, *STEPS))
    assert ids(path) == [f"r{n}" for n in range(5)]
    assert state(path)[0] == NEWEST


KILLED = """
import os, signal, sqlite3, sys
sys.path.insert(0, sys.argv[4])
from flowlet.stores import sqlite_schema

class Mortal(sqlite3.Connection):
    left = int(sys.argv[2])
    def execute(self, text, *values):
        if text.startswith(("CREATE", "INSERT", "PRAGMA application_id =", "PRAGMA user_version =", "COMMIT")):
            if not Mortal.left:
                os.kill(os.getpid(), signal.SIGKILL)
            Mortal.left -= 1
        return super().execute(text, *values)

steps = tuple(tuple(step) for step in eval(sys.argv[3]))
sqlite_schema.MIGRATIONS += steps
sqlite_schema.SCHEMA_VERSION += len(steps)
connect = sqlite3.connect
sqlite3.connect = lambda *args, **options: connect(*args, factory=Mortal, **options)
sqlite_schema.connect_writer(sys.argv[1], "NORMAL").close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL here")
@pytest.mark.usefixtures("newer")
@pytest.mark.parametrize("first", ["older", "empty"])
def test_a_process_that_is_killed_in_the_middle_has_done_nothing(tmp_path: Path, first: str) -> None:
    path, left, root = tmp_path / "s.db", 0, str(Path(sqlite_schema.__file__).parents[2])
    if first == "older":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlite_schema, "MIGRATIONS", MIGRATIONS)
            patch.setattr(sqlite_schema, "SCHEMA_VERSION", SCHEMA_VERSION)
            fill(path)
    before = state(path) if first == "older" else None
    while True:
        command = [sys.executable, "-c", KILLED, str(path), str(left), repr(STEPS), root]
        code = subprocess.run(command, timeout=60).returncode
        if not code:
            break
        assert code == -9
        if before is not None:
            assert state(path) == before
        else:
            assert ask(path, "SELECT count(*) FROM sqlite_master") == [(0,)]
        left += 1 if first == "older" else 3
    assert left >= 6
    assert state(path)[0] == NEWEST
    fill(path, 0)


@pytest.mark.usefixtures("newer")
def test_of_many_that_open_at_once_one_does_it(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite_schema, "MIGRATIONS", MIGRATIONS)
        patch.setattr(sqlite_schema, "SCHEMA_VERSION", SCHEMA_VERSION)
        fill(path)
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(ids(path))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[f"r{n}" for n in range(5)]] * 6
    assert ask(path, "SELECT count(*) FROM notes") == [(6,)]
