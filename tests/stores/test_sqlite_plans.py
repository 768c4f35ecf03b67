"""No question reads more rows than it must: each has its index, and finished runs are in no one's way."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from flowlet.store import New, Write
from flowlet.stores import sqlite_leases, sqlite_prune, sqlite_reads
from flowlet.stores.sqlite import SQLiteStore
from flowlet.stores.sqlite_reads import Page

RUN = New("run", "checkout")
MACHINE = New("machine", "Order")
ANY = Page(kind=None, definition=None, status=None, state=None, wake_before=None, after=0, limit=10)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with 20,000 finished runs and a few that are alive."""
    made = tmp_path_factory.mktemp("plans") / "s.db"

    async def fill() -> None:
        store = SQLiteStore(made, synchronous="NORMAL", clock=lambda: 1000.0)
        for start in range(0, 20_000, 1000):
            ids = [f"r{n:05}" for n in range(start, start + 1000)]
            await store.append(
                [Write(id=id, expect=0, create=RUN, records=[b"1"], status="ok", close=True) for id in ids]
            )
        for n in range(3):
            await store.append([Write(id=f"due{n}", expect=0, create=RUN, records=[b"1"], wake=0.0, status="new")])
            await store.append([Write(id=f"m{n}", expect=0, create=MACHINE, records=[b"1"], state="Draft")])
        await store.append([Write(id="lost", expect=0, create=RUN, records=[b"1"], wake=0.0, owner="dead")])
        await store.close()

    anyio.run(fill)
    return made


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    made = sqlite3.connect(path, isolation_level=None)
    yield made
    if made.in_transaction:
        made.execute("ROLLBACK")
    made.close()


def steps_of(connection: sqlite3.Connection, call: Any) -> int:
    """Return how many instructions of SQLite's machine a call takes, in tens."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return 0

    connection.set_progress_handler(tick, 10)
    call()
    connection.set_progress_handler(None, 0)
    return count


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
        {"kind": "run", "after": 19_990},
    ],
)
def test_a_page_costs_a_page(connection: sqlite3.Connection, question: dict[str, Any]) -> None:
    page = Page(**{**{name: getattr(ANY, name) for name in ANY.__struct_fields__}, **question})
    assert sqlite_reads.scan(connection, page)
    assert steps_of(connection, lambda: sqlite_reads.scan(connection, page)) < 200


def test_a_claim_does_not_meet_what_has_ended(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    sqlite_leases.heartbeat(connection, 1000.0, "w", 60.0)
    claimed = []

    def claim() -> None:
        definitions = [("run", "checkout", "1")]
        claimed.append(sqlite_leases.claim(connection, 1000.0, "w", definitions, (), 100))

    assert steps_of(connection, claim) < 400
    assert sorted(head.id for head in claimed[0].heads) == ["due0", "due1", "due2", "lost"]
    assert steps_of(connection, claim) < 200


def test_a_claim_does_not_meet_what_others_own(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE heads SET owner = 'busy', wake = 0.0, closed = NULL")
    for worker in ("w", "busy"):
        sqlite_leases.heartbeat(connection, 1000.0, worker, 60.0)

    def claim() -> None:
        definitions = [("run", "checkout", "1")]
        assert sqlite_leases.claim(connection, 1000.0, "w", definitions, (), 100).heads == []

    assert steps_of(connection, claim) < 200


def test_a_release_meets_only_what_is_owned(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    assert steps_of(connection, lambda: sqlite_leases.release(connection, 1000.0, "dead", None)) < 100
    assert steps_of(connection, lambda: sqlite_leases.release(connection, 1000.0, "w", ["due0"])) < 100


def test_a_prune_costs_what_it_deletes(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    assert steps_of(connection, lambda: sqlite_prune.prune(connection, 1001.0, 10)) < 300
    assert steps_of(connection, lambda: sqlite_prune.prune(connection, 1.0, 1000)) < 50


@pytest.mark.parametrize("word", [None, "moved"])
def test_an_append_does_not_touch_the_indexes_of_leases(path: Path, word: str | None) -> None:
    """SQLite maintains an index when a statement names its column; the usual append names none of leases."""
    statements: list[str] = []

    async def append() -> None:
        store = SQLiteStore(path, synchronous="NORMAL")
        stored = await store.load("due0")
        assert stored is not None
        await store.append([], work=trace)
        write = Write(id="due0", expect=stored.head.version, records=[b"x"])
        await store.append([write if word is None else msgspec.structs.replace(write, status=word, state=word)])
        await store.close()

    def trace(connection: sqlite3.Connection) -> list[Write]:
        connection.set_trace_callback(statements.append)
        return []

    anyio.run(append)
    updates = [text for text in statements if text.startswith("UPDATE heads")]
    assert len(updates) == 1
    assert "wake" not in updates[0]
    assert ("status" in updates[0]) == (word is not None)
