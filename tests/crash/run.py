"""Chaos for as long as wanted: processes on one SQLite file, killed at random moments and started again.

    python tests/crash/run.py --minutes 5

Each process starts runs of all the workloads and takes over those of the dead. At the end everything is
finished and judged, and counts are printed; the exit code is 1 if anything was not as it must be, and
the folder is kept then.
"""

from __future__ import annotations

import argparse
import asyncio  # noqa: F401 - imported before the first fork, as are those below, so that a child starts at once
import json
import os
import random
import shutil
import signal
import sqlite3  # noqa: F401
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import anyio
import structlog
import tenacity  # noqa: F401
import workloads
from evidence import check, check_owners, effects_by_run
from killing import attend, see_to
from workloads import WORKLOADS, registries

from flowlet import Flowlet, Registry
from flowlet.stores.sqlite import SQLiteStore

TOGETHER = 12  # runs that a process has under way
ENDING = 60  # seconds for finishing what is left
UNFINISHED = ("running", "compensating", "compensation_failed")


async def work(database: Path, stop: Path, seed: int) -> None:
    """Start runs until there is a file ``stop``, then see that every run ends; in a process that may be killed."""
    dice = random.Random(seed)
    registry = Registry()
    for part in registries.values():
        registry.include(part)
    flow = Flowlet(SQLiteStore(database), registry=registry)
    flow.provide(workloads.Workshop, workloads.Workshop())

    async def one_after_the_other() -> None:
        while not stop.exists():
            name = dice.choice(list(WORKLOADS))
            id = f"{name}-{os.getpid()}-{dice.getrandbits(60):x}"
            await see_to(flow, WORKLOADS[name], id, "start")

    async with flow:
        async with anyio.create_task_group() as group:
            for _ in range(TOGETHER):
                group.start_soon(one_after_the_other)
        while left := await flow.store.scan(kind="run", status=UNFINISHED):
            for head in left:
                if head.status == "compensation_failed":  # of a run whose process died before it saw to it
                    await attend(flow, head.id)
            await anyio.sleep(0.05)


def start(main: Callable[..., Awaitable[None]], *args: Any, backend: str = "asyncio") -> int:
    """Run a coroutine function in a child process; return its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            structlog.configure(processors=[quietly, structlog.processors.JSONRenderer()])
            anyio.run(main, *args, backend=backend)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def quietly(logger: Any, method: str, event: Any) -> Any:
    """Let only errors through: that peers die is the idea, and that some runs need an operator."""
    if method in ("error", "critical") and event["event"] != "run.compensation_failed":
        return event
    raise structlog.DropEvent


class Chaos:
    """Processes on one file, and what becomes of them."""

    def __init__(self, folder: Path, seed: int, backend: str) -> None:
        self.backend = backend
        self.database, self.stop = folder / "chaos.db", folder / "stop"
        self.effects = folder / "effects"
        self.report = folder / "report.json"
        self.dice = random.Random(seed)
        self.workers: set[int] = set()
        self.killed: set[int] = set()
        self.faults: list[str] = []
        workloads.effects_file = str(self.effects)

    def add(self) -> None:
        self.workers.add(start(work, self.database, self.stop, self.dice.getrandbits(32), backend=self.backend))

    def kill_one(self) -> None:
        pid = self.dice.choice(sorted(self.workers))
        os.kill(pid, signal.SIGKILL)
        self.killed.add(pid)
        self._bury(pid, os.waitpid(pid, 0)[1])

    def _bury(self, pid: int, status: int) -> None:
        self.workers.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code != (-signal.SIGKILL if pid in self.killed else 0):
            self.faults.append(f"process {pid} ended with {code}")

    def run(self, seconds: float, processes: int, every: float) -> dict[str, Any]:
        """Kill and restart for so long, let everything finish, and judge it."""
        end = time.monotonic() + seconds
        for _ in range(processes):
            self.add()
        while time.monotonic() < end and not self.faults:
            time.sleep(self.dice.uniform(0, 2 * every))
            self.kill_one()
            self.add()
        self.stop.touch()
        last = time.monotonic() + ENDING
        while self.workers and time.monotonic() < last:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                self._bury(pid, status)
            else:
                time.sleep(0.02)
        if self.workers:
            self.faults.append(f"{len(self.workers)} processes did not finish within {ENDING} s")
            for pid in self.workers:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        os.waitpid(start(judge, self.database, self.effects, self.killed, self.report), 0)
        counts: dict[str, Any] = {"kills": len(self.killed), **json.loads(self.report.read_text())}
        counts["faults"] = self.faults + counts["faults"]
        return counts


async def judge(database: Path, effects: Path, killed: set[int], report: Path) -> None:
    """Hold every run against its workload; write the counts and what is wrong to a file."""
    by_run = effects_by_run(effects)
    counts: Counter[str] = Counter(runs=0, records=0, effects=0, taken_over=0)
    faults: list[str] = []
    store = SQLiteStore(database)
    after = 0
    while heads := await store.scan(kind="run", after=after):
        after = heads[-1].order
        for head in heads:
            stored = await store.load(head.id)
            assert stored is not None
            done = by_run.pop(head.id, [])
            crashed = {effect.pid for effect in done} & killed
            workload = WORKLOADS[head.id.partition("-")[0]]
            try:
                if not workload.stuck:  # who answers a run's question may be another one than who has asked it
                    check_owners(done, killed)
                check(workload, stored, done, len(crashed))
            except AssertionError as error:
                faults.append(f"{head.id}: {error or traceback.format_exc()}")
            counts.update(runs=1, records=head.version, effects=len(done), taken_over=len({e.pid for e in done}) > 1)
    await store.close()
    faults += [f"{id} has effects, but is not in the store" for id in by_run]
    report.write_text(json.dumps({**counts, "faults": faults}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--every", type=float, default=0.3, help="seconds between two kills, on average")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    options = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="flowlet-chaos-"))
    counts = Chaos(folder, seed, options.backend).run(options.minutes * 60, options.processes, options.every)
    print(json.dumps({"seed": seed, **counts}, indent=1))
    if counts["faults"]:
        print(f"see {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
