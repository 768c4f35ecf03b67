"""Runs on a SQLite file that another process locks, or whose disk is full: nothing fails, all goes on by itself."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import anyio
import pytest
from stillness import watched

from flowlet import Flowlet, step
from flowlet.errors import StoreUnavailable
from flowlet.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio

STALL = 0.5
"""Seconds a tick of 10 ms may take here; the promise is 100 ms, on a machine that does nothing else."""


class Trouble(Protocol):
    """Something that keeps a store from writing."""

    path: Path

    async def begin(self, store: SQLiteStore) -> None: ...
    async def end(self, store: SQLiteStore) -> None: ...


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""


class Lock:
    """Another process that holds the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process: subprocess.Popen[str] | None = None

    async def begin(self, store: SQLiteStore) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", LOCK, str(self.path)], **pipes)
        assert self.process.stdout is not None
        assert await anyio.to_thread.run_sync(self.process.stdout.readline) == "locked\n"

    async def end(self, store: SQLiteStore) -> None:
        assert self.process is not None
        await anyio.to_thread.run_sync(self.process.communicate, "enough\n", 20)


class FullFile:
    """A file that may not grow: SQLite itself says that it is full."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def begin(self, store: SQLiteStore) -> None:
        self._limit(store, 1)  # not less than it has

    async def end(self, store: SQLiteStore) -> None:
        self._limit(store, 1_000_000)

    def _limit(self, store: SQLiteStore, pages: int) -> None:
        assert store._writer is not None
        assert store._writer._connection is not None
        store._writer._connection.execute(f"PRAGMA max_page_count = {pages}")


class FullDisk:
    """A file system of its own with nothing left on it: the system says that it is full."""

    def __init__(self, folder: Path) -> None:
        self.path, self._ballast = folder / "s.db", folder / "ballast"

    async def begin(self, store: SQLiteStore) -> None:
        descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for size in (1 << 16, 1 << 12, 1):
                while True:
                    try:
                        os.write(descriptor, bytes(size))
                    except OSError:
                        break
        finally:
            os.close(descriptor)

    async def end(self, store: SQLiteStore) -> None:
        self._ballast.unlink()


@pytest.fixture(params=["locked", "full file", "full disk"])
def trouble(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Trouble]:
    if request.param == "locked":
        lock = Lock(tmp_path / "s.db")
        yield lock
        if lock.process is not None:
            lock.process.kill()
            lock.process.communicate()
    elif request.param == "full file":
        yield FullFile(tmp_path / "s.db")
    else:
        folder = Path(tempfile.mkdtemp())
        mount = shutil.which("mount")
        command = [mount or "", "-t", "tmpfs", "-o", "size=2m", "flowlet-test", str(folder)]
        if mount is None or subprocess.run(command, capture_output=True).returncode:
            folder.rmdir()
            pytest.skip("this session may not mount a tmpfs of its own; run as root to test a full disk")
        try:
            yield FullDisk(folder)
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
            folder.rmdir()


@pytest.mark.usefixtures("no_pauses")
async def test_a_run_outlasts_what_keeps_the_store_from_writing(trouble: Trouble) -> None:
    store = SQLiteStore(trouble.path, busy_timeout=0.1)
    flow = Flowlet(store, lease=1)
    calls: list[int] = []

    @step
    async def make(n: int) -> bytes:
        calls.append(n)
        if calls == [1, 2]:
            await trouble.begin(store)
        return bytes(50_000)

    @flow.saga
    async def body(data: bytes) -> str:
        for n in (1, 2, 3):
            await make(n)
        return "done"

    statuses: list[str] = []

    async with flow, watched() as spans:
        handle = await flow.start(body, b"", id="a")
        with pytest.raises(StoreUnavailable), anyio.fail_after(20):
            await handle.result()
        with pytest.raises(StoreUnavailable):
            await flow.start(body, bytes(100_000), id="b")
        # It lasts for longer than a lease, and nothing is made of it but patience.
        for _ in range(15):
            await anyio.sleep(0.1)
            statuses.append(await handle.status())
        assert len((await handle.report()).steps) == 1
        assert 3 not in calls, "nothing is begun before it is recorded what was done"
        await trouble.end(store)
        with anyio.fail_after(30):
            assert await flow.handle("a", body).result() == "done"
        kinds = [record.kind async for record in handle.history()]
        assert await flow.execute(body, bytes(100_000), id="b") == "done"
    assert set(statuses) == {"running"}
    assert kinds == ["started", *["step_completed"] * 3, "completed"]
    assert spans.longest() < STALL
    # What could not be recorded was done again, as often as it was tried; what had been recorded was not.
    again = calls.count(2) - 1
    assert again >= 2
    assert calls == [1, *[2] * again, 3, 1, 2, 3]
    connection = sqlite3.connect(trouble.path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_a_lock_of_three_seconds_is_only_a_delay(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "s.db")
    flow = Flowlet(f"sqlite:///{lock.path}", lease=30)
    calls: list[int] = []

    @step
    async def note(n: int) -> int:
        calls.append(n)
        if n == 2:
            await lock.begin(flow.store)  # type: ignore[arg-type]
        return n

    @flow.saga
    async def body() -> int:
        return await note(1) + await note(2) + await note(3)

    async with flow, anyio.create_task_group() as group:
        handle = await flow.start(body, id="r")
        while 2 not in calls:
            await anyio.sleep(0.01)

        async def unlock() -> None:
            await anyio.sleep(3)
            assert calls == [1, 2], "nothing is begun before it is recorded what was done"
            await lock.end(flow.store)  # type: ignore[arg-type]

        group.start_soon(unlock)
        began = anyio.current_time()
        assert await handle.result() == 6
        assert anyio.current_time() - began > 2.5
    assert calls == [1, 2, 3]
