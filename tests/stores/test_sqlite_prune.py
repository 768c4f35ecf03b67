"""One transaction of a prune is bounded, whatever it is asked to delete, and nothing is left behind."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from flowlet.store import New, Signal, Write
from flowlet.stores import sqlite_prune
from flowlet.stores.sqlite import SQLiteStore
from flowlet.stores.sqlite_prune import prune

pytestmark = pytest.mark.anyio

RUN = New("run", "checkout")
TABLES = ("heads", "records", "snapshots", "signals", "message_ids")


def rows(path: Path) -> dict[str, int]:
    connection = sqlite3.connect(path)
    names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    counts = {n: connection.execute(f"SELECT count(*) FROM {n}").fetchone()[0] for n in names}
    connection.close()
    return {name: counts.get(name, 0) for name in (*TABLES, "graves")}


async def store_of(path: Path, *sizes: Sequence[int], signals: int = 0) -> SQLiteStore:
    """Make a store with a closed entity for each list of sizes of records."""
    store = SQLiteStore(path, synchronous="NORMAL", clock=lambda: 1000.0)
    for i, records in enumerate(sizes):
        messages = [Signal("t", b"p" * 10, f"m{n}") for n in range(signals)]
        data = [bytes(size) for size in records]
        write = Write(id=f"r{i}", expect=0, create=RUN, records=data, snapshot=b"snap", signals=messages)
        await store.append([write])
        await store.append([Write(id=f"r{i}", close=True)])
    return store


def prune_all(path: Path, limit: int = 100) -> list[int]:
    """Prune transaction by transaction; return how many rows each deleted, heads and graves apart."""
    connection = sqlite3.connect(path, isolation_level=None)
    deleted: list[int] = []
    for _ in range(1000):
        before = rows(path)
        connection.execute("BEGIN IMMEDIATE")
        pruned = prune(connection, 2000.0, limit)
        connection.execute("COMMIT")
        after = rows(path)
        deleted.append(sum(before[table] - after[table] for table in TABLES[1:]))
        if pruned.is_over:
            break
    connection.close()
    return deleted


async def test_small_entities_go_many_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = await store_of(path, *([[10] * 5] * 300))
    await store.close()
    deleted = prune_all(path, 1000)
    assert 2 < len(deleted) < 6
    assert max(deleted) <= sqlite_prune._ROWS
    assert rows(path) == dict.fromkeys((*TABLES, "graves"), 0)


async def test_an_entity_of_many_records_goes_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = await store_of(path, [10] * 3500, signals=3200)
    await store.close()
    deleted = prune_all(path)
    assert len(deleted) >= 10
    assert max(deleted) <= sqlite_prune._ROWS
    assert sum(deleted) == 3500 + 1 + 3200 + 3200
    assert rows(path) == dict.fromkeys((*TABLES, "graves"), 0)


async def test_an_entity_of_large_records_goes_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = await store_of(path, [700_000] * 10, [10], [5_000_000, 10])
    await store.close()
    deleted = prune_all(path)
    assert max(deleted) <= 6
    assert len(deleted) >= 6
    assert rows(path) == dict.fromkeys((*TABLES, "graves"), 0)


async def test_it_is_gone_at_once_and_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = await store_of(path, [10] * 3500, [10])
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    assert prune(connection, 2000.0, 1).count == 1
    connection.execute("COMMIT")
    connection.close()
    assert await store.load("r0") is None
    assert [head.id for head in await store.scan()] == ["r1"]
    # The id begins anew while rows of the old one are still being deleted, which do not show.
    await store.append([Write(id="r0", expect=0, create=RUN, records=[b"new"])])
    assert rows(path)["graves"] == 1
    assert await store.prune(closed_before=2000.0) == 1  # r1; the rest of the old r0 was counted before
    stored = await store.load("r0")
    assert stored is not None
    assert (list(stored.records), list(stored.signals), stored.snapshot) == ([b"new"], [], None)
    assert rows(path) == {**dict.fromkeys((*TABLES, "graves"), 0), "heads": 1, "records": 1}
    await store.close()


async def test_what_a_killed_process_left_is_deleted_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = await store_of(path, [10] * 3500)
    await store.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    assert prune(connection, 2000.0, 5).count == 1
    connection.execute("COMMIT")
    connection.close()
    other = SQLiteStore(path)
    assert await other.prune(closed_before=2000.0) == 0
    assert rows(path) == dict.fromkeys((*TABLES, "graves"), 0)
    await other.close()


async def test_a_store_counts_each_once_and_stops_at_the_limit(tmp_path: Path) -> None:
    store = await store_of(tmp_path / "s.db", [10] * 1500, [10], [10] * 1500, [10])
    assert await store.prune(closed_before=2000.0, limit=1) == 1
    assert [head.id for head in await store.scan()] == ["r1", "r2", "r3"]
    assert await store.prune(closed_before=2000.0, limit=2) == 2
    assert [head.id for head in await store.scan()] == ["r3"]
    assert await store.prune(closed_before=2000.0) == 1
    assert await store.prune(closed_before=2000.0) == 0
    assert rows(tmp_path / "s.db") == dict.fromkeys((*TABLES, "graves"), 0)
    await store.close()
