"""A store that kills its process, and trials: processes on one database, each killed at a chosen write.

Trials fork: the parent has one thread and never opens a store, so that a child is a process with
everything imported and nothing begun.
"""

from __future__ import annotations

import contextlib
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
from evidence import check, effects_by_run
from workloads import WORKLOADS, Workload, registries

from flowlet import Flowlet
from flowlet.errors import RunError
from flowlet.store import Capabilities, Claims, Head, Stored, Work, Write
from flowlet.stores.sqlite import SQLiteStore

T = TypeVar("T")
When = Literal["before", "after"]
Way = Literal["execute", "start", "recover"]

LEASE = 10.0  # the default

STUCK_AFTER = 30
"""Seconds after which a child that has not ended is killed, and the trial fails."""


class Kill(NamedTuple):
    """At which write a process dies: before its n-th is handed to the store, or after it was acknowledged."""

    n: int  # 0 for never
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
async def work_on(name: str, database: Path, ids: Sequence[str], kill: Kill | None, way: Way) -> None:
    """Enter a Flowlet and see the runs to their end, all at once: start them, or find them."""
    workload = WORKLOADS[name]
    store = KillingStore(SQLiteStore(database), kill or Kill(0, "before"))
    flow = Flowlet(store, registry=registries[name])
    flow.provide(workloads.Workshop, workloads.Workshop())
    async with flow, anyio.create_task_group() as group:
        for id in ids:
            group.start_soon(see_to, flow, workload, id, way)
    database.with_suffix(".writes").write_text(str(store.writes))


async def see_to(flow: Flowlet, workload: Workload, id: str, way: Way) -> None:
    """See one run to its end, which must be as its workload says."""
    value = await outcome_of(flow, workload, id, way)
    if await flow.handle(id).status() == "compensation_failed":
        await attend(flow, id)
        value = await outcome_of(flow, workload, id, "recover")
    assert isinstance(value, workloads.Slip if workload.failing is None else workloads.Refused), value


async def attend(flow: Flowlet, id: str) -> None:
    """Do what an operator does about a run whose compensation has failed; another one may have done so."""
    workloads.mended(id).touch()
    with contextlib.suppress(RunError):
        await flow.handle(id).resume()


async def outcome_of(flow: Flowlet, workload: Workload, id: str, way: Way) -> Any:
    try:
        if way == "recover" and await flow.store.load(id, limit=0) is not None:
            return await flow.handle(id, workload.definition).result()
        if way == "execute":
            return await flow.execute(workload.definition, 7, id=id)
        return await (await flow.start(workload.definition, 7, id=id)).result()
    except workloads.Refused as error:
        return error


async def look_at(workload: Workload, database: Path, ids: Sequence[str], effects: Path, crashes: int) -> None:
    """Judge what the processes have left behind."""
    done = effects_by_run(effects)
    store = SQLiteStore(database)
    try:
        for id in ids:
            stored = await store.load(id)
            assert stored is not None, f"run {id} is not in the store"
            check(workload, stored, done.pop(id), crashes)
        assert len(await store.scan(kind="run")) == len(ids)
    finally:
        await store.close()
    assert not done, f"effects of unknown runs: {done}"


def fork(main: Callable[..., Awaitable[None]], *args: Any, backend: str = "asyncio") -> int:
    """Run a coroutine function in a child; return its exit code, negative for a signal."""
    pid = fork_aside(main, *args, backend=backend)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork_aside(
    main: Callable[..., Awaitable[None]], *args: Any, backend: str = "asyncio", stuck_after: int = STUCK_AFTER
) -> int:
    """Begin to run a coroutine function in a child; return its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(stuck_after)
            structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
            anyio.run(main, *args, backend=backend)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


# ---------------------------------------------------------------- one trial
class Failed(Exception):
    """A trial did not end as it must."""


class Trials:
    """Trials of one workload, each on a database of its own.

    Attributes:
        runs: how many runs of it a process works on at once.
    """

    def __init__(self, name: str, folder: Path, backend: str = "asyncio") -> None:
        self.workload = WORKLOADS[name]
        self.runs = 1
        self.backend = backend
        self.count = 0
        self.processes = 0
        self.kills = 0
        self.writes = 0  # of the process that finished the last trial
        self._name = name
        self._folder = folder

    def run(self, kills: Sequence[Kill], ways: Sequence[Way] = ("execute", "recover")) -> list[bool]:
        """Let one process after the other work on the runs until they have ended; tell which of them were killed.

        Args:
            kills: of the first processes; those that follow are left alone.
            ways: of the first processes; those that follow do as the last.
        """
        self.count += 1
        database = self._folder / f"{self.count}.db"
        effects = self._folder / f"{self.count}.effects"
        workloads.effects_file = str(effects)
        ids = [f"o-{n}" for n in range(1, self.runs + 1)]
        plan: list[Kill | None] = [*kills, None]
        killed: list[bool] = []
        for number, kill in enumerate(plan):
            code = self._fork(work_on, self._name, database, ids, kill, ways[min(number, len(ways) - 1)])
            killed.append(code == -signal.SIGKILL)
            if code == 0:
                break
            if not killed[-1] or kill is None:
                raise Failed(f"{self._describe(plan, ways)}: process {number + 1} ended with {code}")
        if self._fork(look_at, self.workload, database, ids, effects, killed.count(True)) != 0:
            raise Failed(f"{self._describe(plan, ways)}: killed {killed}, and what was left is wrong: see {database}")
        self.kills += killed.count(True)
        self.writes = int(database.with_suffix(".writes").read_text())
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

    def four_runs(self) -> None:
        """Work on four runs at once; count the writes of an undisturbed process, then kill one at each of them."""
        self.runs = 4
        self.run([])
        for n in range(1, self.writes + 1):
            self.all_killed([Kill(n, "before")], ("execute", "recover"))
            self.all_killed([Kill(n, "after")], ("start", "execute"))

    def all_killed(self, kills: Sequence[Kill], ways: Sequence[Way]) -> None:
        """Make a trial in which each of these kills must have come about."""
        killed = self.run(kills, ways)
        if killed != [*(True for _ in kills), False]:
            raise Failed(f"{self._describe(kills, ways)}: only {killed.count(True)} processes were killed")

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

    def ten_recoveries(self) -> None:
        """Kill ten processes in a row that recover a long run, each at its k-th write; the eleventh finishes.

        A run that fails is killed first when it has just been decided to compensate.
        """
        first = Kill(3 if self.workload.failing is None else len(self.workload.steps) + 2, "after")
        kills = [Kill(1, "before"), Kill(1, "after"), Kill(2, "before"), Kill(2, "after")]
        kills += [Kill(k, "after", every=True) for k in (2, 4)]  # the release of the dead, the first record
        for kill in kills:
            self.all_killed([first, *[kill] * 10], ("start", "recover"))

    def heirs(self) -> None:
        """Kill a process that takes over, at each of its writes; the next one need not wait for the lease.

        Raises:
            Failed: it did.
        """
        for n in range(1, 6):
            for when in ("before", "after"):
                began = time.monotonic()
                self.all_killed([Kill(3, "after"), Kill(n, when, every=True)], ("start", "recover"))
                if time.monotonic() - began > LEASE / 2:
                    raise Failed(f"{when} the {n}th write of one that took over, the next one waited for the lease")


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
