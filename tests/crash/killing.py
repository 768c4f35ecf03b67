"""A store that kills its process, and trials: processes on one database, each killed at a chosen write.

Trials fork: the parent has one thread and never opens a store, so that a child is a process with
everything imported and nothing begun.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import anyio
import structlog
import workloads
from evidence import check, read_effects
from workloads import RUN, WORKLOADS, Workload, registries

from flowlet import Flowlet
from flowlet.store import Capabilities, Claims, Head, Stored, Work, Write
from flowlet.stores.sqlite import SQLiteStore

T = TypeVar("T")
When = Literal["before", "after"]
Way = Literal["execute", "start", "recover"]

STUCK_AFTER = 30
"""Seconds after which a child that has not ended is killed, and the trial fails."""


class Kill(NamedTuple):
    """At which write a process dies: before its n-th is handed to the store, or after it was acknowledged."""

    n: int
    when: When
    every: bool = False  # count claims, heartbeats and releases as well as appends


class KillingStore:
    """Delegates to a SQLite store, and kills the process at the n-th write."""

    def __init__(self, store: SQLiteStore, kill: Kill | None) -> None:
        self._store = store
        self.kill = kill
        self.writes = 0

    @property
    def capabilities(self) -> Capabilities:
        return self._store.capabilities

    async def _write(self, method: Callable[[], Awaitable[T]], is_append: bool = False) -> T:
        kill = self.kill
        if kill is None or not (is_append or kill.every):
            return await method()
        self.writes += 1
        mine = self.writes == kill.n
        if mine and kill.when == "before":
            die()
        result = await method()
        if mine:
            die()
        return result

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        await self._write(lambda: self._store.append(writes, work=work), is_append=True)

    async def claim(self, worker: str, /, **options: Any) -> Claims:
        return await self._write(lambda: self._store.claim(worker, **options))

    async def heartbeat(self, worker: str, lease: float, /) -> Sequence[str]:
        return await self._write(lambda: self._store.heartbeat(worker, lease))

    async def release(self, worker: str, /, ids: Sequence[str] | None = None) -> None:
        await self._write(lambda: self._store.release(worker, ids))

    async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Stored | None:
        return await self._store.load(id, after=after, limit=limit)

    async def scan(self, **options: Any) -> Sequence[Head]:
        return await self._store.scan(**options)

    async def now(self) -> float:
        return await self._store.now()

    async def watch(self, seen: int, timeout: float, /) -> int:
        return await self._store.watch(seen, timeout)

    async def prune(self, *, closed_before: float, limit: int = 1000) -> int:
        return await self._store.prune(closed_before=closed_before, limit=limit)

    async def close(self) -> None:
        await self._store.close()


def die() -> None:
    """End this process as a power switch would."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


# ---------------------------------------------------------------- one process
async def work_on(name: str, database: Path, kill: Kill | None, way: Way) -> None:
    """Enter a Flowlet and see the run to its end: start it, or find it."""
    workload = WORKLOADS[name]
    flow = Flowlet(KillingStore(SQLiteStore(database), kill), registry=registries[name])
    flow.provide(workloads.Workshop, workloads.Workshop())
    async with flow:
        try:
            if way == "recover" and await flow.store.load(RUN, limit=0) is not None:
                value = await flow.handle(RUN, workload.definition).result()
            elif way == "execute":
                value = await flow.execute(workload.definition, 7, id=RUN)
            else:
                value = await (await flow.start(workload.definition, 7, id=RUN)).result()
        except workloads.Refused as error:
            value = error
    assert isinstance(value, workloads.Slip if workload.failing is None else workloads.Refused), value


async def look_at(workload: Workload, database: Path, effects: Path, crashes: int) -> None:
    """Judge what the processes have left behind."""
    store = SQLiteStore(database)
    try:
        stored = await store.load(RUN)
    finally:
        await store.close()
    assert stored is not None, "the run is not in the store"
    check(workload, stored, read_effects(effects), crashes)


def fork(main: Callable[..., Awaitable[None]], *args: Any, backend: str = "asyncio") -> int:
    """Run a coroutine function in a child; return its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(STUCK_AFTER)
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        code = 1
        try:
            anyio.run(main, *args, backend=backend)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---------------------------------------------------------------- one trial
class Failed(Exception):
    """A trial did not end as it must."""


class Trials:
    """Trials of one workload, each on a database of its own."""

    def __init__(self, name: str, folder: Path, backend: str = "asyncio") -> None:
        self.workload = WORKLOADS[name]
        self.backend = backend
        self.count = 0
        self.processes = 0
        self.kills = 0
        self._name = name
        self._folder = folder

    def run(self, kills: Sequence[Kill], ways: Sequence[Way] = ("execute", "recover")) -> list[bool]:
        """Let one process after the other work on a run until it has ended; tell which of them were killed.

        Args:
            kills: of the first processes; those that follow are left alone.
            ways: of the first processes; those that follow do as the last.
        """
        self.count += 1
        database = self._folder / f"{self.count}.db"
        effects = self._folder / f"{self.count}.effects"
        workloads.effects_file = str(effects)
        plan: list[Kill | None] = [*kills, None]
        killed: list[bool] = []
        for number, kill in enumerate(plan):
            code = self._fork(work_on, self._name, database, kill, ways[min(number, len(ways) - 1)])
            killed.append(code == -signal.SIGKILL)
            if code == 0:
                break
            if not killed[-1] or kill is None:
                raise Failed(f"{self._describe(plan, ways)}: process {number + 1} ended with {code}")
        if self._fork(look_at, self.workload, database, effects, killed.count(True)) != 0:
            raise Failed(f"{self._describe(plan, ways)}: killed {killed}, and what was left is wrong: see {database}")
        self.kills += killed.count(True)
        for leftover in self._folder.glob(f"{self.count}.*"):
            leftover.unlink()
        return killed

    def _fork(self, main: Callable[..., Awaitable[None]], *args: Any) -> int:
        self.processes += 1
        return fork(main, *args, backend=self.backend)

    def _describe(self, plan: Sequence[Kill | None], ways: Sequence[Way]) -> str:
        return f"{self._name} on {self.backend}, {[k and tuple(k) for k in plan]}, {list(ways)}"

    def sweep(self, every: bool = False) -> None:
        """Kill at every write of the first process; the second finishes."""
        for n in range(1, 1000):
            before = self.run([Kill(n, "before", every)], ("execute", "recover"))
            after = self.run([Kill(n, "after", every)], ("start", "execute"))
            if not (before[0] or after[0]):
                return

    def sweep_twice(self) -> None:
        """Kill at every write of the first process and, for each of these, at every write of the second."""
        for n in range(1, 1000):
            for m in range(1, 1000):
                first: When = "before" if n % 2 else "after"
                second: When = "before" if (n + m) % 2 else "after"
                killed = self.run([Kill(n, first), Kill(m, second)], ("execute", "recover"))
                if not killed[0]:
                    return
                if not killed[1]:
                    break

    def in_a_row(self) -> None:
        """Kill each process after its first write; and at ten in a row before it."""
        self.run([Kill(1, "after")] * 60, ("start", "recover"))
        self.run([Kill(3, "before"), *[Kill(1, "before")] * 10], ("execute", "recover"))


def main(name: str, folder: str, backend: str, *sweeps: str) -> None:
    """Make these sweeps over a workload, and print what was done as JSON."""
    trials = Trials(name, Path(folder), backend)
    for sweep in sweeps:
        if sweep == "every":
            trials.sweep(every=True)
        else:
            getattr(trials, sweep)()
    print(json.dumps({"trials": trials.count, "processes": trials.processes, "kills": trials.kills}))


if __name__ == "__main__":
    import asyncio  # noqa: F401 - imported before the first fork, as are these, so that a child starts at once
    import sqlite3  # noqa: F401

    import tenacity  # noqa: F401
    import trio  # noqa: F401

    main(*sys.argv[1:])
