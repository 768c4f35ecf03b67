"""Schedules in processes that die or race: each tick starts one run, and the clock is a file that all of them read.

Run as a script this file makes the trials: it forks processes on databases of their own.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from killing import Kill, KillingStore, fork, fork_aside

import flowlet
from flowlet import Flowlet, Registry, step
from flowlet.core.schedule import MOST, PREFIX, run_id, state_codec
from flowlet.core.schedule_ticks import micros
from flowlet.stores.sqlite import SQLiteStore

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
FEW = 3
MANY = 1000
LEASE = timedelta(days=1000)  # the clock leaps by hours, which must not be taken for the death of who holds a lease
LONGEST = 90
"""Seconds that the processes may take which share many ticks."""

registry = Registry()

noted: list[Path] = []
"""The file that steps leave a line in; each process sets its own before it begins."""


@step
async def note(tick: datetime) -> None:
    line = f"{tick.isoformat()} {os.getpid()}\n"
    descriptor = os.open(noted[0], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


@registry.every(HOUR, missed="all")
@registry.saga
async def hourly(tick: datetime) -> None:
    await note(tick)


class FileClock:
    """A clock that is a file, which may be read and moved by all processes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if not os.pread(self._file, 8, 0):
            self.move(START)

    def __call__(self) -> float:
        (time,) = struct.unpack("d", os.pread(self._file, 8, 0))
        return float(time)

    def move(self, to: datetime) -> None:
        os.pwrite(self._file, struct.pack("d", to.timestamp()), 0)


class TimedStore(KillingStore):
    """Kills its process at a write, and goes by a clock that is a file."""

    def __init__(self, database: Path, kill: Kill | None) -> None:
        self.clock = FileClock(database.with_suffix(".clock"))
        super().__init__(SQLiteStore(database, synchronous="NORMAL", clock=self.clock), kill or Kill(0, "before"))


def expected(count: int) -> list[str]:
    return [run_id("hourly", micros(START + n * HOUR)) for n in range(1, count + 1)]


# In children ------------------------------------------------------------------------------------------------
async def work(database: Path, kill: Kill | None) -> None:
    """Move the clock from tick to tick, and wait until what they have started has ended."""
    noted[:] = [database.with_suffix(".noted")]
    store = TimedStore(database, kill)
    async with Flowlet(store, registry=registry) as flow:
        schedule = flow.schedule("hourly")
        while (info := await schedule.info()).last != START + FEW * HOUR:
            assert info.next is not None
            store.clock.move(info.next)
            await anyio.sleep(0.005)
        await all_ended(flow)
    database.with_suffix(".writes").write_text(str(store.writes))


async def share(database: Path) -> None:
    """Fire what falls due until all of it has been fired, by whomever."""
    noted[:] = [database.with_suffix(".noted")]
    async with Flowlet(TimedStore(database, None), registry=registry, lease=LEASE) as flow:
        schedule = flow.schedule("hourly")
        while (await schedule.info()).last != START + MANY * HOUR:
            await anyio.sleep(0.05)
        await all_ended(flow)


async def all_ended(flow: Flowlet) -> None:
    while await flow.store.scan(kind="run", status=("running", "pending"), limit=1):
        await anyio.sleep(0.01)


async def compare(database: Path) -> None:
    """Whatever moment it died at: the runs are those of the ticks that the schedule says it has fired."""
    store = SQLiteStore(database)
    stored = await store.load(PREFIX + "hourly", limit=0)
    fired = 0
    if stored is not None:
        last = state_codec.decode(stored.snapshot or b"", "it").last
        fired = 0 if last is None else (last - micros(START)) // micros(datetime(1970, 1, 1, 1, tzinfo=UTC))
    assert [head.id for head in await store.scan(kind="run")] == expected(fired)
    await store.close()


async def judge(database: Path, count: int, crashes: int, processes: int) -> None:
    """Each tick has started one run, which has ended, and its step was done once for each process that died on it."""
    store = SQLiteStore(database)
    heads = []
    while page := await store.scan(kind="run", after=heads[-1].order if heads else 0):
        heads += page
    assert sorted(head.id for head in heads) == expected(count)
    assert {head.status for head in heads} == {"completed"}
    stored = await store.load(PREFIX + "hourly")
    assert stored is not None
    assert stored.head.owner is None
    assert len(stored.records) == 1, "it grows with its ticks, or was changed"
    await store.close()
    lines = [line.split() for line in database.with_suffix(".noted").read_text().splitlines()]
    times = Counter(line[0] for line in lines)
    assert set(times) == {(START + n * HOUR).isoformat() for n in range(1, count + 1)}
    again = sum(times.values()) - count
    assert again <= crashes * (1 if count == FEW else MOST), times  # so many it may have been at
    by_process = Counter(line[1] for line in lines)
    assert len(by_process) >= processes, by_process


# In the process that makes them -------------------------------------------------------------------------------
def finish(database: Path, kills: Sequence[Kill], backend: str) -> int:
    """Let one process after the other do what is left; return how many of them were killed."""
    killed = 0
    for kill in [*kills, None]:
        code = fork(work, database, kill, backend=backend)
        killed += code == -signal.SIGKILL
        if code not in (0, -signal.SIGKILL):
            sys.exit(f"{database.name}: a process ended with {code}")
        if fork(compare, database) != 0:
            sys.exit(f"{database.name}: what was left behind is wrong")
        if code == 0:
            break
    if fork(judge, database, FEW, killed, 1) != 0:
        sys.exit(f"{database.name}: what was left at the end is wrong")
    return killed


def sweep(folder: Path, backends: Sequence[str]) -> dict[str, Any]:
    """Count the appends of a process that is left alone, then kill others at each of them, and at other writes."""
    finish(folder / "alone.db", (), backends[0])
    writes = int((folder / "alone.writes").read_text())
    whens: tuple[Literal["before", "after"], ...] = ("before", "after")
    plans = [[Kill(n, when)] for n in range(1, writes + 1) for when in whens]
    # Of what else is written, some that every process comes to; how often it looks for work is a question of time.
    plans += [[Kill(n, when, every=True), Kill(n, when, every=True)] for n in range(1, 8, 3) for when in whens]
    kills = [finish(folder / f"{n}.db", plan, backends[n % 2]) for n, plan in enumerate(plans)]
    return {"writes": writes, "kills": kills[: 2 * writes], "others": kills[2 * writes :]}


def race(folder: Path, backend: str, seed: int, deaths: int) -> dict[str, Any]:
    """Let two processes share many ticks, which come one by one and in bursts; kill some on the way."""
    database, dice = folder / "race.db", random.Random(seed)
    clock = FileClock(database.with_suffix(".clock"))
    pids = [fork_aside(share, database, backend=backend, stuck_after=LONGEST) for _ in range(2)]
    time.sleep(0.5)
    fatal = {MANY * n // (deaths + 1) for n in range(1, deaths + 1)}
    for n in range(1, MANY + 1):
        clock.move(START + n * HOUR)
        if n % 10 == 0:
            time.sleep(dice.choice([0.0, 0.02, 0.1, 0.2]))
        if n in fatal:
            victim = pids.pop(0)
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            pids.append(fork_aside(share, database, backend=backend, stuck_after=LONGEST))
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if any(codes):
        sys.exit(f"processes ended with {codes}")
    if fork(judge, database, MANY, deaths, 2) != 0:
        sys.exit(f"{database.name}: what was left at the end is wrong")
    return {"ticks": MANY}


# The tests ----------------------------------------------------------------------------------------------------
def run_script(*arguments: object) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True, timeout=110, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@forking
@pytest.mark.parametrize("backends", [("asyncio", "trio")])
def test_killed_at_every_write_each_tick_starts_one_run(tmp_path: Path, backends: tuple[str, str]) -> None:
    found = run_script("sweep", tmp_path, *backends)
    # The definition, the schedule, and for each tick its firing, its step and its end.
    assert found["writes"] >= 2 + 2 * FEW
    assert found["kills"] == [1] * 2 * found["writes"]
    assert all(found["others"])


@forking
@pytest.mark.parametrize(("backend", "deaths"), [("asyncio", 0), ("trio", 8)])
def test_two_processes_share_a_thousand_ticks(tmp_path: Path, backend: str, deaths: int) -> None:
    assert run_script("race", tmp_path, backend, 1, deaths)["ticks"] == MANY


if __name__ == "__main__":
    import asyncio  # noqa: F401 - imported before the first fork, as are these, so that a child starts at once
    import sqlite3  # noqa: F401

    import tenacity  # noqa: F401
    import trio  # noqa: F401

    command, place, *options = sys.argv[1:]
    if command == "sweep":
        print(json.dumps(sweep(Path(place), options)))
    else:
        print(json.dumps(race(Path(place), options[0], int(options[1]), int(options[2]))))
