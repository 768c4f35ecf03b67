"""What a batch accepts is judged against all that it has accepted before."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowlet.errors import Conflict
from flowlet.store import New, Signal, Write
from flowlet.stores.sqlite_batch import Batch
from flowlet.stores.sqlite_reads import load
from flowlet.stores.sqlite_schema import connect_writer

RUN = New("run", "test")


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    made = connect_writer(str(tmp_path / "s.db"), "NORMAL")
    yield made
    made.close()


def commit(connection: sqlite3.Connection, *appends: list[Write]) -> list[bool]:
    """Commit these in one batch; return which of them it accepted."""
    accepted = []
    connection.execute("BEGIN IMMEDIATE")
    batch = Batch(connection, 1000.0, 1 << 20, {})
    for writes in appends:
        try:
            batch.add(writes)
        except Conflict:
            accepted.append(False)
        else:
            accepted.append(True)
    batch.flush()
    connection.execute("COMMIT")
    return accepted


def test_versions_follow_each_other_within_a_batch(connection: sqlite3.Connection) -> None:
    create = [Write(id="a", expect=0, create=RUN, records=[b"1"])]
    follow = [Write(id="a", expect=1, records=[b"2"], status="s"), Write(id="b", expect=0, create=RUN, records=[b"1"])]
    assert commit(connection, create, create, follow, follow, [Write(id="a", expect=2, records=[b"3"])]) == [
        True,
        False,
        True,
        False,
        True,
    ]
    stored = load(connection, "a", 0, None)
    assert stored is not None
    assert (stored.records, stored.head.status) == ((b"1", b"2", b"3"), "s")
    assert [row[0] for row in connection.execute("SELECT n FROM heads ORDER BY n")] == [1, 2]


def test_a_refused_append_leaves_no_trace(connection: sqlite3.Connection) -> None:
    commit(connection, [Write(id="a", expect=0, create=RUN, records=[b"1"])])
    bad = [Write(id="a", expect=1, records=[b"2"], status="bad"), Write(id="a2", expect=0, create=RUN, records=[b"1"])]
    taken = [Write(id="a", expect=0, create=RUN, records=[b""])]
    assert commit(connection, [*bad, Write(id="a", expect=9, records=[b""])], taken, bad) == [False, False, True]
    stored = load(connection, "a", 0, None)
    assert stored is not None
    assert stored.records == (b"1", b"2")


def test_what_is_consumed_is_not_what_comes_later_in_the_batch(connection: sqlite3.Connection) -> None:
    commit(connection, [Write(id="a", expect=0, create=RUN, records=[b"1"], signals=[Signal("t", b"1")])])
    commit(connection, [Write(id="a", consumed=99)], [Write(id="a", signals=[Signal("t", b"2")])])
    stored = load(connection, "a", 0, None)
    assert stored is not None
    assert [(signal.number, signal.payload) for signal in stored.signals] == [(2, b"2")]


def test_a_message_id_is_known_within_the_batch_and_after_it(connection: sqlite3.Connection) -> None:
    send = [Write(id="a", signals=[Signal("t", b"1", "m")])]
    commit(connection, [Write(id="a", expect=0, create=RUN, records=[b"1"])], send, send)
    commit(connection, send)
    stored = load(connection, "a", 0, None)
    assert stored is not None
    assert stored.head.inbox == 1
