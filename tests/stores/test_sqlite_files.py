"""Files that are not ours, not there, damaged or full: a typed error, and nothing written or lost."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowlet import Flowlet
from flowlet.errors import EncodeError, PayloadTooLarge, StoreError, StoreUnavailable
from flowlet.runtime.presence import Presence, new_worker_id
from flowlet.store import New, Signal, Write
from flowlet.stores.sqlite import SQLiteStore
from flowlet.stores.sqlite_schema import APPLICATION_ID, SCHEMA_VERSION

pytestmark = pytest.mark.anyio

RUN = New("run", "test")


def creation(id: str, record: bytes = b"first") -> list[Write]:
    return [Write(id=id, expect=0, create=RUN, records=[record])]


async def refused(path: Path) -> StoreError:
    """Return the error with which both a write and a read of this file fail; the same file stays as it is."""
    store = SQLiteStore(path)
    with pytest.raises(StoreError) as caught:
        await store.append(creation("a"))
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, sqlite3.Error)
    with pytest.raises(type(caught.value)):
        await store.load("a")
    await store.close()
    return caught.value


async def test_the_file_says_whose_it_is(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s.db")
    await store.append(creation("a"))
    await store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["s.db"], "close leaves no write-ahead log"
    connection = sqlite3.connect(tmp_path / "s.db")
    header = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    assert header == [APPLICATION_ID, SCHEMA_VERSION]
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    connection.close()


async def test_nothing_is_made_before_it_is_needed(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s.db")
    await store.now()
    await store.append([])
    await store.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_newer_schema_is_refused_and_the_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = SQLiteStore(path)
    await store.append(creation("a"))
    await store.close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    error = await refused(path)
    assert f"schema version {SCHEMA_VERSION + 1}" in str(error)
    assert "Update flowlet" in str(error)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s.db"]


@pytest.mark.parametrize("mode", ["delete", "wal"])
async def test_the_database_of_another_application_is_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "s.db"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode = {mode}")
    connection.execute("CREATE TABLE customers (name TEXT)")
    connection.close()
    before = path.read_bytes()
    assert "another application" in str(await refused(path))
    assert path.read_bytes() == before


async def test_an_empty_database_with_another_applications_mark_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA application_id = 4711")
    connection.close()
    assert "4711" in str(await refused(path))


async def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.touch()
    store = SQLiteStore(path)
    await store.append(creation("a"))
    assert await store.load("a") is not None
    await store.close()


@pytest.mark.parametrize("content", [b"hello", b"These are my notes.\n" * 200, bytes(range(256)) * 64])
async def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    assert "not a SQLite database" in str(await refused(path))
    assert path.read_bytes() == content


# Rights ---------------------------------------------------------------------------------------------
NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder of an ordinary user, as which the test runs: nothing is forbidden to root."""
    path = Path(tempfile.mkdtemp(prefix="flowlet-test-"))  # all may enter the parent, unlike that of tmp_path
    is_root = os.geteuid() == 0
    Presence(new_worker_id())  # imports what an ordinary user may perhaps not read
    if is_root:
        os.chown(path, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield path
    finally:
        if is_root:
            os.seteuid(0)
        path.chmod(0o700)
        shutil.rmtree(path)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="there are no such rights here")
@pytest.mark.parametrize(
    ("what", "mode", "error", "advice"),
    [
        ("s.db", 0o444, StoreError, "is read-only; make all of them writable for the user"),
        ("s.db", 0o000, StoreUnavailable, "directory must exist and be writable for the user"),
        ("s.db-wal", 0o000, StoreUnavailable, r"those beside it \(-wal, -shm\)"),
        (".", 0o555, StoreError, "is read-only; make all of them writable for the user"),
        (".", 0o000, StoreUnavailable, "directory must exist and be writable for the user"),
    ],
)
async def test_what_may_not_be_written_says_what_to_do_and_works_when_it_is_done(
    folder: Path, what: str, mode: int, error: type[StoreError], advice: str
) -> None:
    path = folder / "s.db"
    first = SQLiteStore(path)
    await first.append(creation("a"))
    if what != "s.db-wal":
        await first.close()
    before = path.read_bytes()
    rights = (folder / what).stat().st_mode
    (folder / what).chmod(mode)
    store = SQLiteStore(path)
    with pytest.raises(error, match=advice) as caught:
        await store.append(creation("b"))
    assert str(path) in str(caught.value)
    assert isinstance(caught.value.__cause__, sqlite3.Error)
    with pytest.raises(error, match=advice):
        async with Flowlet(f"sqlite:///{path}"):
            pass
    (folder / what).chmod(rights)
    assert path.read_bytes() == before
    for file in folder.iterdir():  # SQLite gives those beside it the rights that the file has
        file.chmod(0o644)
    await store.append(creation("b"))
    assert [head.id for head in await store.scan()] == ["a", "b"]
    await store.close()
    await first.close()


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="there are no such rights here")
async def test_a_file_that_may_only_be_read_is_not_brought_up_to_date(folder: Path) -> None:
    path = folder / "s.db"
    store = SQLiteStore(path)
    await store.append(creation("a"))
    await store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1")
        connection.execute("DROP TABLE graves")
    connection.close()
    before = path.read_bytes()
    path.chmod(0o444)
    with pytest.raises(StoreError, match="make all of them writable"):
        await store.load("a")
    assert path.read_bytes() == before
    for file in folder.iterdir():
        file.chmod(0o644)
    assert await store.load("a") is not None
    await store.close()


async def test_a_directory_that_is_not_there_and_then_is(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "s.db"
    error = await refused(path)
    assert isinstance(error, StoreUnavailable)
    assert str(path) in str(error)
    assert "directory must exist and be writable" in str(error)
    store = SQLiteStore(path)
    with pytest.raises(StoreUnavailable):
        await store.append(creation("a"))
    path.parent.mkdir(parents=True)
    await store.append(creation("a"))
    assert await store.load("a") is not None
    await store.close()


async def test_paths_that_can_be_no_database(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "s.db", Path("/proc/flowlet/s.db")):
        assert str(path) in str(await refused(path))


async def test_a_damaged_page_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = SQLiteStore(path)
    for n in range(50):
        await store.append(creation(f"id-{n}", b"x" * 2000))
    await store.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    for call in (store.load("id-1"), store.append(creation("new")), store.scan(kind="run")):
        with pytest.raises(StoreError, match=r"damaged|refused"):
            await call
    await store.close()


async def test_a_file_that_was_taken_away_is_not_made_anew_by_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = SQLiteStore(path)
    await store.append(creation("a"))
    for name in ("s.db", "s.db-wal", "s.db-shm"):
        (tmp_path / name).unlink()
    with pytest.raises(StoreUnavailable):
        await store.scan()
    assert not path.exists()
    await store.close()


async def test_a_full_disk_loses_nothing_and_works_again(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = SQLiteStore(path)
    await store.append(creation("a"))

    def limit(pages: int) -> None:
        assert store._writer is not None
        assert store._writer._connection is not None
        store._writer._connection.execute(f"PRAGMA max_page_count = {pages}")

    limit(40)
    stored = ["a"]

    async def fill() -> None:
        for n in range(100):
            await store.append(creation(f"id-{n}", b"x" * 8000))
            stored.append(f"id-{n}")

    with pytest.raises(StoreUnavailable, match="disk is full"):
        await fill()
    assert len(stored) > 2
    assert [head.id for head in await store.scan()] == stored
    await store.append([Write(id="a", expect=1, records=[b"small"])])
    limit(1_000_000)
    await store.append(creation("big", b"x" * 100_000))
    assert [head.id for head in await store.scan()] == [*stored, "big"]
    await store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    connection.close()


async def test_what_sqlite_cannot_store_is_an_error_of_its_own(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s.db")
    await store.append(creation("a"))
    for write in (
        Write(id="\ud800", expect=0, create=RUN, records=[b"1"]),
        Write(id="b", expect=0, create=New("run", "\ud800"), records=[b"1"]),
        Write(id="a", expect=1, records=[b"1"], status="\ud800"),
        Write(id="a", signals=[Signal("t", b"", "\ud800")]),
        Write(id="a", expect=1, records=[object()]),  # type: ignore[list-item]
    ):
        with pytest.raises((EncodeError, TypeError)):
            await store.append([write])
    with pytest.raises(EncodeError):
        await store.load("\ud800")
    with pytest.raises(EncodeError):
        await store.scan(status=["\ud800"])
    assert [(head.id, head.version, head.inbox) for head in await store.scan()] == [("a", 1, 0)]
    await store.close()


async def test_a_value_that_is_too_large_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s.db")
    largest = store.capabilities.max_payload
    assert largest is not None
    huge = bytes(largest + 1)
    await store.append(creation("a"))
    for write in (
        Write(id="a", expect=1, records=[b"", huge]),
        Write(id="a", snapshot=huge),
        Write(id="a", signals=[Signal("t", huge)]),
    ):
        with pytest.raises(PayloadTooLarge, match="keep a reference"):
            await store.append([write])
    with pytest.raises(PayloadTooLarge):
        await store.append([], work=lambda connection: [Write(id="a", expect=1, records=[huge])])
    half = bytes(1000)
    await store.append([Write(id="a", expect=1, records=[half] * 10)])
    stored = await store.load("a")
    assert stored is not None
    assert stored.head.version == 11
    await store.close()
