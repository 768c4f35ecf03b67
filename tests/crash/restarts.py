"""Processes that are killed and started again all the time, until 300 queued runs have ended nevertheless.

    python tests/crash/restarts.py FOLDER BACKEND

A process is killed so many seconds after it has begun to work, which is when a record of a run was first
acknowledged to it: however slow the machine is, it gets to do something. Prints counts as JSON.
"""

from __future__ import annotations

import asyncio  # noqa: F401 - imported before the first fork, as are those below, so that a child starts at once
import json
import math
import os
import select
import signal
import sqlite3  # noqa: F401
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import tenacity  # noqa: F401
import trio  # noqa: F401
import workloads
from evidence import check, check_owners, effects_by_run, owners
from killing import die, fork, fork_aside
from workloads import WORKLOADS, Refused, registries

from flowlet import Flowlet
from flowlet.store import Work, Write
from flowlet.stores.sqlite import SQLiteStore

RUNS = 300
PROCESSES = 4
LIFE = 0.3
"""Seconds from the first work of a process until it is killed."""

CHAOS = 30.0
"""Seconds after which nobody is killed any more; what is left then gets ``ENDING`` seconds."""

ENDING = 30.0

UNFINISHED = ("running", "compensating")
NAMES = ("slow", "slow_failing")


def run_id(number: int) -> str:
    """Return the id of a run, which tells what it is a run of."""
    return f"{NAMES[number % 2]}-{number}"


class TellingStore(SQLiteStore):
    """Tells the parent, through a pipe, of the first append that was acknowledged."""

    def __init__(self, database: Path, pipe: int) -> None:
        super().__init__(database)
        self._pipe: int | None = pipe

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        await super().append(writes, work=work)
        if self._pipe is not None and any(write.create is None for write in writes):
            os.close(self._pipe)
            self._pipe = None


# ---------------------------------------------------------------- the children
async def queue(database: Path) -> None:
    """Start all the runs, and die when all are durable."""
    async with Flowlet(SQLiteStore(database), registry=registries["slow"]) as flow:
        async with anyio.create_task_group() as group:
            for number in range(RUNS):
                group.start_soon(start_one, flow, number)
        die()


async def start_one(flow: Flowlet, number: int) -> None:
    id = run_id(number)
    await flow.start(WORKLOADS[id.partition("-")[0]].definition, 7, id=id)


async def work(database: Path, pipe: int) -> None:
    """Take up what is there until nothing is left to do."""
    async with Flowlet(TellingStore(database, pipe), registry=registries["slow"]) as flow:
        while await flow.store.scan(kind="run", status=UNFINISHED, limit=1):
            await anyio.sleep(0.02)
        for number in range(RUNS):
            name = run_id(number).partition("-")[0]
            try:
                await flow.handle(run_id(number), WORKLOADS[name].definition).result()
            except Refused:
                assert name == "slow_failing"
            else:
                assert name == "slow"


async def judge(database: Path, effects: Path, killed: set[int], report: Path) -> None:
    """Hold each run against its workload."""
    done = effects_by_run(effects)
    taken_over = 0
    store = SQLiteStore(database)
    for number in range(RUNS):
        id = run_id(number)
        stored = await store.load(id)
        assert stored is not None, f"{id} was lost"
        turns = owners(done[id])
        check_owners(done[id], killed)
        check(WORKLOADS[id.partition("-")[0]], stored, done.pop(id), len(killed.intersection(turns)))
        taken_over += len(turns) > 1
    await store.close()
    assert not done, f"there are effects of unknown runs: {list(done)}"
    report.write_text(json.dumps({"runs": RUNS, "taken_over": taken_over}))


# ---------------------------------------------------------------- the parent
class Restarts:
    """The processes that live; each holds a pipe open until it has begun to work.

    Attributes:
        killed: the processes that were, after the one that started the runs.
        failed: what went wrong.
    """

    def __init__(self, database: Path, backend: str) -> None:
        self.killed: set[int] = set()
        self.failed: list[str] = []
        self._database = database
        self._backend = backend
        self._pipes: dict[int, int] = {}  # by pipe: process
        self._ends: dict[int, float] = {}  # by process: when it is to be killed
        self._living: set[int] = set()

    def run(self) -> None:
        """Kill and restart until everything is done."""
        self._bury(self._fork(queue, self._database))
        last = time.monotonic() + CHAOS
        for _ in range(PROCESSES):
            self._add()
        while self._living and time.monotonic() < last + ENDING:
            self._listen(0.01)
            for pid in list(self._living):
                self._look_at(pid, time.monotonic() < last)
        for pid in self._living:
            self.failed.append(f"process {pid} did not come to an end")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _fork(self, main: Callable[..., Awaitable[None]], *args: Any) -> int:
        return fork_aside(main, *args, backend=self._backend, stuck_after=int(CHAOS + ENDING))

    def _add(self) -> None:
        ours, theirs = os.pipe()
        pid = self._fork(work, self._database, theirs)
        os.close(theirs)
        self._pipes[ours] = pid
        self._living.add(pid)

    def _listen(self, patience: float) -> None:
        for pipe in select.select(list(self._pipes), [], [], patience)[0]:  # it was closed at the other end
            self._ends[self._pipes.pop(pipe)] = time.monotonic() + LIFE
            os.close(pipe)

    def _look_at(self, pid: int, may_die: bool) -> None:
        """Kill a process whose time has come, and start another; let go one that saw everything end."""
        if may_die and self._ends.get(pid, math.inf) < time.monotonic():
            os.kill(pid, signal.SIGKILL)
            self._living.discard(pid)
            if self._bury(pid):
                self._add()
        elif (found := os.waitpid(pid, os.WNOHANG))[0]:
            self._living.discard(pid)
            if found[1]:
                self.failed.append(f"process {pid} ended with {os.waitstatus_to_exitcode(found[1])}")

    def _bury(self, pid: int) -> bool:
        """Wait for the end of a process that is being killed; tell whether it was, and not done just before."""
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == -signal.SIGKILL:
            self.killed.add(pid)
        elif code:
            self.failed.append(f"process {pid} ended with {code}")
        return code == -signal.SIGKILL


def main(folder: str, backend: str) -> None:
    database, report = Path(folder, "restarts.db"), Path(folder, "report.json")
    workloads.effects_file = str(Path(folder, "effects"))
    began = time.monotonic()
    restarts = Restarts(database, backend)
    restarts.run()
    seconds = time.monotonic() - began
    for fault in restarts.failed:
        print(fault, file=sys.stderr)
    if fork(judge, database, Path(workloads.effects_file), restarts.killed, report) or restarts.failed:
        sys.exit(1)
    counts = {"kills": len(restarts.killed), "seconds": round(seconds, 1), **json.loads(report.read_text())}
    print(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
