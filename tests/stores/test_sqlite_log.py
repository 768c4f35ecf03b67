"""The write-ahead log of a SQLite store, cut off where a loss of power may cut it: what was acknowledged is there."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest

from flowlet.store import New, Signal, Stored, Write
from flowlet.stores.sqlite import SQLiteStore

RUN = New("run", "test")
HEADER, FRAME = 32, 24
"""Bytes before the first frame of a log, and before the page of each."""


class Log(NamedTuple):
    """A file and its log, as they are while a process works, and when what was acknowledged.

    Attributes:
        ends: for each append that was acknowledged, how many frames the log had then.
        commits: the numbers of the frames that end a transaction.
    """

    path: Path
    content: bytes
    page: int
    ends: list[int]
    commits: list[int]

    @property
    def frames(self) -> int:
        return (len(self.content) - HEADER) // (FRAME + self.page)

    def cut(self, frames: int, extra: int = 0) -> bytes:
        """Return the log up to a frame, and some bytes of the next one."""
        return self.content[: HEADER + frames * (FRAME + self.page) + extra]


IDS = ("a", "b", "c")


async def work(store: SQLiteStore, told: Callable[[], None]) -> None:
    """Make some history: record n of each entity says n, and so does its status."""
    for id in IDS:
        await store.append([Write(id=id, expect=0, create=RUN, records=[b"1"], status="1")])
        told()
    for version in range(1, 5):
        writes = [Write(id=id, expect=version, records=[b"%d" % (version + 1)], status=str(version + 1)) for id in IDS]
        await store.append(writes[:1])
        told()
        await store.append(writes[1:])
        told()
    await store.append([Write(id="a", signals=[Signal("t", b"p" * 9000, "m")], snapshot=b"5")])
    told()
    await store.append([Write(id="b", expect=5, records=[b"6" * 20_000], status="6", close=True)])
    told()


def done(appends: int) -> dict[str, int]:
    """Return the versions of the entities after so many appends of `work`."""
    versions = dict.fromkeys(IDS[:appends], 1)
    for n in range(max(0, appends - 3)):
        if n < 8:
            versions |= dict.fromkeys(IDS[1:] if n % 2 else IDS[:1], n // 2 + 2)
        elif n == 9:
            versions["b"] = 6
    return versions


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    path = tmp_path_factory.mktemp("log") / "s.db"
    wal = path.with_name("s.db-wal")

    async def main() -> tuple[bytes, list[int]]:
        store, sizes = SQLiteStore(path), list[int]()
        await work(store, lambda: sizes.append(wal.stat().st_size))
        # Not closed: closing would empty the log. What is copied is what a killed process leaves.
        shutil.copy(path, path.with_name("killed.db"))
        content = wal.read_bytes()
        await store.close()
        return content, sizes

    content, sizes = anyio.run(main)
    (page,) = struct.unpack(">I", content[8:12])
    frames = (len(content) - HEADER) // (FRAME + page)
    ends = [(size - HEADER) // (FRAME + page) for size in sizes]
    heads = (content[HEADER + n * (FRAME + page) :][:8] for n in range(frames))
    commits = [n for n, head in enumerate(heads, 1) if struct.unpack(">II", head)[1]]
    assert set(ends) <= set(commits), "an acknowledged append ends with a commit"
    assert len(content) == HEADER + frames * (FRAME + page)
    return Log(path.with_name("killed.db"), content, page, ends, commits)


class Opened(NamedTuple):
    versions: dict[str, int]
    entities: dict[str, Stored]


def reopen(log: Log, content: bytes, folder: Path) -> Opened:
    """Open the file with this as its log, look at all that is there, and work on."""
    path = folder / "s.db"
    for file in folder.glob("s.db*"):
        file.unlink()
    shutil.copy(log.path, path)
    path.with_name("s.db-wal").write_bytes(content)

    async def main() -> dict[str, Stored]:
        store = SQLiteStore(path, synchronous="NORMAL")
        found = {}
        for head in await store.scan(limit=1000):
            stored = await store.load(head.id)
            assert stored is not None
            found[head.id] = stored
            await store.append([Write(id=head.id, expect=head.version, records=[b"after"])])
        await store.append([Write(id="new", expect=0, create=RUN, records=[b"1"])])
        await store.close()
        return found

    entities = anyio.run(main)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("SELECT count(*) FROM records WHERE data = X'6166746572'").fetchone() == (len(entities),)
    connection.close()
    return Opened({id: stored.head.version for id, stored in entities.items()}, entities)


def check(log: Log, opened: Opened, whole: int) -> None:
    """Judge what was found of a log with so many undamaged frames."""
    acknowledged = sum(end <= whole for end in log.ends)
    # No more than that, either: each append here was a transaction of its own.
    assert opened.versions == done(acknowledged)
    for stored in opened.entities.values():
        version = stored.head.version
        assert len(stored.records) == version
        assert [int(record[:1]) for record in stored.records] == list(range(1, version + 1))
        assert stored.head.status == str(version)
    if "a" in opened.entities:
        signals, snapshot = opened.entities["a"].signals, opened.entities["a"].snapshot
        assert (len(signals), snapshot) == ((1, b"5") if acknowledged >= 12 else (0, None))
    if "b" in opened.entities:
        assert (opened.entities["b"].head.closed is not None) == (acknowledged == 13)


def test_the_history_is_what_the_checks_believe(log: Log, tmp_path: Path) -> None:
    assert len(log.ends) == 13
    assert done(13) == {"a": 5, "b": 6, "c": 5}
    check(log, reopen(log, log.content, tmp_path), log.frames)
    assert log.frames > 60


def test_cut_at_every_frame(log: Log, tmp_path: Path) -> None:
    for frames in range(log.frames + 1):
        check(log, reopen(log, log.cut(frames), tmp_path), frames)


def test_cut_in_the_middle_of_every_frame(log: Log, tmp_path: Path) -> None:
    chance = random.Random(3)
    for frames in range(log.frames):
        extra = chance.choice(
            [1, FRAME - 1, FRAME, FRAME + 1, chance.randrange(FRAME + log.page), FRAME + log.page - 1]
        )
        check(log, reopen(log, log.cut(frames, extra), tmp_path), frames)


def garbage(log: Log, frames: int) -> Iterator[bytes]:
    """Yield what may stand behind the last whole frame."""
    yield os.urandom(5000)
    yield bytes(2 * (FRAME + log.page))
    # A frame of another log, or of this one at an earlier time: its checksums do not follow from those before.
    yield log.content[HEADER : HEADER + FRAME + log.page]
    # The right frame with one bit that is wrong, and all that follow it.
    rest = bytearray(log.content[HEADER + frames * (FRAME + log.page) :])
    if rest:
        rest[random.Random(frames).randrange(min(len(rest), FRAME + log.page))] ^= 0x10
        yield bytes(rest)


def test_garbage_behind_the_last_whole_frame(log: Log, tmp_path: Path) -> None:
    for frames in (0, 1, *(n + shift for n in log.commits[::3] for shift in (-1, 0)), log.frames):
        for rubbish in garbage(log, frames):
            check(log, reopen(log, log.cut(frames) + rubbish, tmp_path), frames)


def test_a_header_that_is_cut_or_damaged(log: Log, tmp_path: Path) -> None:
    """There is nothing behind it that could be believed; the file itself is whole, and empty here."""
    for content in (b"", log.content[:7], log.content[:HEADER], os.urandom(HEADER) + log.content[HEADER:]):
        assert reopen(log, content, tmp_path).versions == {}
