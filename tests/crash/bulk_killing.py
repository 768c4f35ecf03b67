"""Trials of a bulk operation: processes that are killed in the middle of it, one after the other or side by side.

As ``SWEEP FOLDER BACKEND`` it makes the trials of a sweep, each on a database of its own: a process is killed at a
chosen write, or behind a chosen item, and others do the rest. What is judged is what they have left behind.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import anyio
from bulk_evidence import recorded, shard_heads
from killing import LEASE, Kill, KillingStore, die, fork, fork_aside

from flowlet import Flowlet, Run, provided
from flowlet.config import BulkConfig, Config
from flowlet.store import Work, Write
from flowlet.stores.sqlite import SQLiteStore

BULK = "june"


ONCE = Config(bulk=BulkConfig(retry_attempts=1))
"""What fails here fails at once, unless a test says otherwise."""


class Refused(Exception):
    """What poisonous items raise."""


class Place:
    """Where the effects of this process go, and behind which of them it dies, or is stopped; 0 for never."""

    effects = ""
    last = 0
    pause = 0
    count = 0


class Case(NamedTuple):
    """A bulk operation: one item in ``poison`` fails."""

    items: int
    poison: int
    concurrency: int
    seconds: float = 0.0

    def expected(self) -> tuple[str, int, int, list[int]]:
        failed = list(range(0, self.items, self.poison))
        return "completed", self.items, self.items - len(failed), failed


SMALL = Case(60, 7, 4)
LARGE = Case(10_000, 100, 64)
SLOW = Case(400, 10, 4, 0.001)


class BusyStore(KillingStore):
    """Knows whether an append is under way: a process that is stopped with the file's lock would stop all."""

    busy = 0

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        self.busy += 1
        try:
            await super().append(writes, work=work)
        finally:
            self.busy -= 1

    async def heartbeat(self, worker: str, lease: float, /) -> Sequence[str]:
        self.busy += 1
        try:
            return await super().heartbeat(worker, lease)
        finally:
            self.busy -= 1


async def work_on(database: Path, case: Case, kill: Kill, last: int, pause: int = 0, lease: float = LEASE) -> None:
    """Call the bulk operation; its report must be as it must be."""
    Place.count, Place.last, Place.pause = 0, last, pause

    async def send(item: int, run: Run = provided) -> int:
        assert run.idempotency_key == f"{BULK}/{item}"
        descriptor = os.open(Place.effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{item}\t{os.getpid()}\n".encode())
        finally:
            os.close(descriptor)
        Place.count += 1
        if Place.count == Place.last:
            die()
        if Place.count == Place.pause:
            while store.busy:  # stopped with the file's lock, it would stop all
                await anyio.sleep(0)
            os.kill(os.getpid(), signal.SIGSTOP)
        await anyio.sleep(case.seconds)
        if item % case.poison == 0:
            raise Refused(item)
        return item * 2

    store = BusyStore(SQLiteStore(database), kill)
    async with Flowlet(store, lease=lease, config=ONCE) as flow:
        report = await flow.bulk(send, range(case.items), id=BULK, concurrency=case.concurrency)
        failed = [error.index for error in report.errors]
        assert (report.status, report.total, report.succeeded, failed) == case.expected(), str(report)
        assert all(error.item == error.index and isinstance(error.error, Refused) for error in report.errors)
    database.with_suffix(".writes").write_text(str(store.writes))


async def look_at(database: Path, case: Case, kills: int) -> None:
    """Judge what is left behind: each item recorded once, and none done twice without need."""
    store = SQLiteStore(database)
    try:
        head = (await store.scan(kind="run"))[0]
        assert (head.status, head.closed is not None, head.version) == ("completed", True, 2)
        shards = await shard_heads(store, BULK)
        assert [int(s.id.rpartition("-")[2]) for s in shards] == list(range(len(shards)))
        assert all(s.closed is not None and s.owner is None for s in shards), "something is left open"
        assert await recorded(store, BULK) == Counter(range(case.items)), "an item is not recorded once"
    finally:
        await store.close()
    done = Counter(int(line.partition("\t")[0]) for line in Path(Place.effects).read_text().splitlines())
    assert done.keys() == set(range(case.items))
    assert max(done.values()) <= 1 + kills
    again = done.total() - case.items
    assert again <= kills * (200 + 2 * case.concurrency), f"{again} items were done again after {kills} kills"


class Failed(Exception):
    """A trial did not end as it must."""


class Trials:
    """Trials on one event loop."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.count = self.kills = self.writes = 0
        self._folder = folder
        self._backend = backend

    def _begin(self) -> Path:
        self.count += 1
        Place.effects = str(self._folder / f"{self.count}.effects")
        return self._folder / f"{self.count}.db"

    def run(self, case: Case, *deaths: Kill | int) -> list[bool]:
        """Let one process after the other call it; they die at a write, or behind an item; the last one does not."""
        database, killed = self._begin(), []
        for death in [*deaths, 0]:
            kill, last = (death, 0) if isinstance(death, Kill) else (Kill(0, "before"), death)
            code = fork(work_on, database, case, kill, last, backend=self._backend)
            killed.append(code == -signal.SIGKILL)
            if code not in (0, -signal.SIGKILL):
                raise Failed(f"{deaths} on {self._backend}: a process ended with {code}")
        self._judge(database, case, killed.count(True), f"{deaths}")
        return killed

    def together(self, case: Case, *deaths: Kill | int) -> None:
        """Let processes call it at once; if all are killed, one more does the rest."""
        database, began = self._begin(), time.monotonic()
        fork(prepare, database)
        peers = []
        for death in deaths:
            kill, last = (death, 0) if isinstance(death, Kill) else (Kill(0, "before"), death)
            peers.append(fork_aside(work_on, database, case, kill, last, backend=self._backend))
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in peers]
        if not set(codes) <= {0, -signal.SIGKILL}:
            raise Failed(f"{deaths} on {self._backend}: processes ended with {codes}")
        if 0 not in codes and fork(work_on, database, case, Kill(0, "before"), 0, backend=self._backend) != 0:
            raise Failed(f"{deaths} on {self._backend}: the last process failed")
        if time.monotonic() - began > LEASE / 2:
            raise Failed(f"{deaths} on {self._backend}: somebody waited for a lease")
        self._judge(database, case, codes.count(-signal.SIGKILL), f"{deaths} together")

    def _judge(self, database: Path, case: Case, kills: int, what: str) -> None:
        if fork(look_at, database, case, kills) != 0:
            raise Failed(f"{what} on {self._backend}: what was left is wrong: see {database}")
        self.kills += kills
        self.writes = int(database.with_suffix(".writes").read_text())
        again = Path(Place.effects).read_bytes()
        if fork(work_on, database, case, Kill(0, "before"), 0) != 0 or Path(Place.effects).read_bytes() != again:
            raise Failed(f"{what} on {self._backend}: called once more, it did something")
        for leftover in self._folder.glob(f"{self.count}.*"):
            leftover.unlink()

    def held_up(self, case: Case, pause: int, *, resumed_at_once: bool) -> None:
        """Stop a process for longer than its lease; another one does the rest. The first goes on then, or before."""
        database, lease = self._begin(), 1.0
        never = Kill(0, "before")
        first = fork_aside(work_on, database, case, never, 0, pause, lease, backend=self._backend)
        os.waitid(os.P_PID, first, os.WSTOPPED)
        second = fork_aside(work_on, database, case, never, 0, 0, lease, backend=self._backend)
        if resumed_at_once:
            time.sleep(1.5 * lease)
            os.kill(first, signal.SIGCONT)
        codes = [os.waitstatus_to_exitcode(os.waitpid(second, 0)[1])]
        os.kill(first, signal.SIGCONT)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]))
        if codes != [0, 0]:
            raise Failed(f"held up at {pause} on {self._backend}: processes ended with {codes}")
        self._judge(database, case, 1, f"held up at {pause}")

    # -------------------------------------------------------------- sweeps
    def stopped(self) -> None:
        """Stop a process for longer than its lease."""
        for pause in (1, 25, 150):
            self.held_up(SLOW, pause, resumed_at_once=False)
        self.held_up(SLOW, 40, resumed_at_once=True)

    def every_write(self) -> None:
        """Kill a process before each of its writes and after every third; another one does the rest."""
        self.run(SMALL)
        for n in range(1, self.writes + 10):
            if not self.run(SMALL, Kill(n, "before"))[0]:
                return
            if n % 3 == 1:
                self.run(SMALL, Kill(n, "after"))
        raise Failed("it never ended")

    def every_item(self) -> None:
        """Kill a process behind every third item that it does."""
        for n in range(1, SMALL.items + 1, 5):
            if not self.run(SMALL, n)[0]:
                raise Failed(f"it was not killed behind item {n}")

    def in_a_row(self) -> None:
        """Kill twenty processes in a row, each a little further on."""
        self.run(SMALL, *[Kill(n % 4 + 1, "after" if n % 2 else "before") for n in range(20)])
        self.run(SMALL, *[3] * 15)

    def large(self) -> None:
        """Kill processes in the middle of many items, again and again."""
        killed = self.run(LARGE, 1, 777, Kill(9, "before"), 1500, Kill(20, "after"), 2500, 64, Kill(3, "after"))
        if killed.count(True) != 8:
            raise Failed(f"only {killed.count(True)} were killed")
        for n in (5, 40, 100):
            self.run(LARGE, Kill(n, "before"), Kill(n, "after"))

    def side_by_side(self) -> None:
        """Let two processes share it and kill one, or both."""
        self.together(LARGE, 0, 0)
        self.together(SLOW, 0, 0, 0)
        for n in (1, 30, 90, 150):
            self.together(SLOW, n, 0)
        for n in range(2, 20, 3):
            self.together(SLOW, Kill(n, "before" if n % 2 else "after"), 0)
        self.together(SLOW, 40, 50)
        self.together(LARGE, 2000, 0)
        self.together(LARGE, Kill(12, "after"), 3000)


async def prepare(database: Path) -> None:
    """Make the database, so that processes that begin at once do not wait for each other."""
    async with Flowlet(SQLiteStore(database)):
        pass


def main(sweep: str, folder: str, backend: str) -> None:
    trials = Trials(Path(folder), backend)
    getattr(trials, sweep)()
    print(json.dumps({"trials": trials.count, "kills": trials.kills}))


if __name__ == "__main__":
    import asyncio  # noqa: F401 - imported before the first fork, so that a child starts at once
    import sqlite3  # noqa: F401

    import trio  # noqa: F401

    main(*sys.argv[1:])
