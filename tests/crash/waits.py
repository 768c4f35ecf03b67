"""Sweeps over runs that wait: each process is killed at a chosen write or effect, and others go on.

As ``SCENE FOLDER BACKEND SWEEP`` it lets a process work on one run, which waits for times, signals and children, kills
it before its n-th write (``before``), or behind its n-th write or effect (``behind``), for every n there is, and lets
another one finish; ``twice`` kills a second one wherever the first one was killed, which takes minutes. What is left
must be what an undisturbed process leaves: the same runs, with the same records but for times and attempts.

Time is in a file that all processes share. It passes quickly, and only while somebody works on the runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
from evidence import read_journal
from killing import Kill
from once import RUN, Place, Sweep, passes
from wait_clock import ClockedStore, FileClock

from flowlet import Flowlet, Registry, Retry, Run, compensate, current_run, gather, provided, step
from flowlet.core.engine import OURS
from flowlet.core.run_records import (
    AttemptErred,
    Ended,
    Noted,
    Published,
    RunRecord,
    SignalTaken,
    StepEnded,
    StepErred,
    StepStopped,
    TimerFired,
    TimerSet,
)
from flowlet.errors import RunCancelled, RunFinished, SignalTimeout
from flowlet.stores.sqlite import SQLiteStore

TICK = 2.7
"""Seconds of the shared clock that pass at a time."""


# ---------------------------------------------------------------- what waits
registry = Registry()


EFFECTS = ("act", "open_account", "close_account", "refuse", "insist")
"""The steps that leave something in the world."""


class Refused(Exception):
    """What a run fails with."""


def effect() -> None:
    """Do something to the world, in one system call."""
    descriptor = os.open(Place.effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{current_run().idempotency_key} {current_run().attempt}\n".encode())
    finally:
        os.close(descriptor)
    passes()


def read_effects() -> list[str]:
    """Return the keys under which something was done, each with the attempt, in that order."""
    path = Path(Place.effects)
    return path.read_text().splitlines() if path.exists() else []


@step(key=lambda name: name)
async def act(name: str) -> str:
    effect()
    return name


@step
async def open_account() -> str:
    effect()
    return "account"


@compensate(open_account)
async def close_account(open_account: str) -> None:
    effect()


@registry.saga
async def sleeping(run: Run = provided) -> str:
    """Times alone: from now, until a time, and one that has come already."""
    await act("a")
    await run.sleep(30)
    await run.publish("place", "awake")
    await act("b")
    await run.sleep_until(run.now() + timedelta(seconds=20))
    await run.sleep_until(run.now() - timedelta(seconds=20))
    return await act("c")


@registry.saga
async def receiving(run: Run = provided) -> list[int]:
    """Signals that have come, and others that do not; what comes is taken in order and once."""
    await run.publish("place", 1)
    got = [await run.receive("n", type=int, timeout=10)]
    with contextlib.suppress(SignalTimeout):
        got.append(await run.receive("never", type=int, timeout=10))
    await act("between")
    got.append(await run.receive("n", type=int))
    await run.publish("place", 2)
    got.append(await run.receive("n", type=int, timeout=3))
    return got


@registry.saga
async def gathering(run: Run = provided) -> list[str]:
    """Waits and steps side by side; one that fails stops the others."""
    n, _, name, m = await gather(run.receive("n", type=int), run.sleep(10), act("beside"), run.receive("n", type=int))
    try:
        await gather(run.receive("never", type=int, timeout=5), run.sleep(1000), run.receive("in vain", type=int))
    except SignalTimeout:
        await run.publish("place", "over")
    return [str(n), str(m), name, await act("last")]


@registry.saga
async def napping(seconds: int, run: Run = provided) -> str:
    """A child, which waits itself."""
    await act("before")
    await run.sleep(seconds)
    return await act(f"after {seconds}")


@registry.saga
async def awaiting(run: Run = provided) -> list[str]:
    """Children that are awaited, one by one and side by side, and a signal beside them."""
    first = await napping(10)
    second, number, third = await gather(napping(20), run.receive("n", type=int), napping(5))
    return [first, second, str(number), third]


@registry.saga
async def starting(run: Run = provided) -> list[str]:
    """Children that are started, and awaited later or never."""
    await act("a")
    attached = await run.start(napping, 10)
    await run.start(napping, 15, detached=True)
    named = await run.start(napping, 5, id="a child with a name")
    await run.sleep(3)
    return [await attached.result(), await named.result()]


@registry.saga
async def cancelled(run: Run = provided) -> None:
    """Cancelled while it waits; what belongs to it is cancelled as well, and the rest goes on."""
    await open_account()
    await run.start(napping, 1_000_000)
    await run.start(napping, 5, detached=True)
    await run.publish("place", "waits")
    await run.receive("never", type=int)


@registry.saga
async def failing(run: Run = provided) -> None:
    """Fails beside children that wait; they have ended before it is undone."""
    await open_account()
    await run.start(napping, 1_000_000)
    await run.sleep(5)
    await gather(napping(1_000_001), refuse())


@step
async def refuse() -> None:
    effect()
    raise Refused("no")


@step(retry=Retry(attempts=3, wait=20))
async def insist() -> int:
    effect()
    if current_run().attempt < 3:
        raise Refused("not yet")
    return current_run().attempt


@registry.saga
async def retrying(run: Run = provided) -> int:
    """The pauses between attempts are waits as well, alone and beside another one."""
    await act("a")
    await insist()
    tried, _, number = await gather(insist(), run.sleep(30), run.receive("n", type=int))
    return tried + number


@dataclass
class Scene:
    """What is killed.

    Attributes:
        numbers: how many signals are sent to it.
        is_cancelled: somebody cancels it when it has come to where it waits.
        timers, signals: how many ends of times and signals are on record in all runs.
        statuses: how the runs end, by how many.
    """

    definition: Callable[..., Any]
    timers: int
    statuses: dict[str, int]
    numbers: int = 0
    signals: int = 0
    is_cancelled: bool = False


SCENES = {
    "sleeping": Scene(sleeping, 3, {"completed": 1}),
    "receiving": Scene(receiving, 1, {"completed": 1}, numbers=3, signals=3),
    "gathering": Scene(gathering, 2, {"completed": 1}, numbers=2, signals=2),
    "awaiting": Scene(awaiting, 3, {"completed": 4}, numbers=1, signals=1),
    "starting": Scene(starting, 4, {"completed": 4}),
    "cancelled": Scene(cancelled, 1, {"cancelled": 2, "completed": 1}, is_cancelled=True),
    "retrying": Scene(retrying, 1, {"completed": 1}, numbers=1, signals=1),
    "failing": Scene(failing, 1, {"compensated": 1, "cancelled": 2}),
}


# ---------------------------------------------------------------- a process
async def work_on(name: str, database: Path, kill: Kill | None, last: int) -> None:
    """Enter a Flowlet, start or find the run, send what it waits for, let time pass, and see all runs to their end."""
    scene = SCENES[name]
    Place.last = last
    store = ClockedStore(database, kill)
    async with Flowlet(store, registry=registry) as flow, anyio.create_task_group() as group:
        handle = await flow.start(scene.definition, id=RUN)
        for number in range(scene.numbers):
            with contextlib.suppress(RunFinished):
                await handle.send("n", number, message_id=f"m{number}")
        group.start_soon(pass_time, store.clock)
        if scene.is_cancelled:
            await cancel(flow)
        with contextlib.suppress(Refused, RunCancelled):
            await handle.result()
        while any(head.closed is None for head in await store.scan(kind="run")):
            await anyio.sleep(0.005)
        group.cancel_scope.cancel()


async def pass_time(clock: FileClock) -> None:
    while True:
        await anyio.sleep(0.002)
        clock.set(clock() + TICK)


async def cancel(flow: Flowlet) -> None:
    """Cancel the run once it waits, unless it has been."""
    handle = flow.handle(RUN)
    while await handle.status() != "waiting" or await handle.read("place") is None:
        if await handle.status() in ("compensating", "cancelled"):
            return
        await anyio.sleep(0.005)
    with contextlib.suppress(RunFinished):
        await handle.cancel()


# ---------------------------------------------------------------- what is left
async def look_at(name: str, database: Path, kills: int) -> None:
    """Judge what the processes have left behind."""
    scene = SCENES[name]
    store = SQLiteStore(database)
    try:
        heads = await store.scan(kind="run")
        runs = {head.id: await store.load(head.id) for head in heads}
    finally:
        await store.close()
    journals = {id: read_journal(stored) for id, stored in runs.items() if stored is not None}
    assert Counter(head.status for head in heads) == scene.statuses, heads
    every = [record for records in journals.values() for record in records]
    assert sum(isinstance(r, TimerFired) for r in every) == scene.timers
    assert sum(isinstance(r, SignalTaken) for r in every) == scene.signals
    for id, records in journals.items():
        check_waits(records)
        stored = runs[id]
        assert stored is not None
        left = {signal.number for signal in stored.signals if not signal.topic.startswith(OURS)}
        assert left <= {r.number for r in records if isinstance(r, SignalTaken)}, "a signal was never taken"
    check_effects(journals, kills)
    check_same(database.with_name("expected.json"), journals)


def check_waits(records: Sequence[RunRecord]) -> None:
    """Each wait has one time and one end, not before that time; signals are taken once and in order."""
    due = {r.start: r.due for r in records if isinstance(r, TimerSet)}
    assert len(due) == sum(isinstance(r, TimerSet) for r in records), "a time was set twice"
    fired = [r for r in records if isinstance(r, TimerFired)]
    assert all(r.at >= due[r.start] for r in fired), "a time was over early"
    starts = [r.start for r in records if isinstance(r, (TimerFired, SignalTaken, StepEnded, StepErred, StepStopped))]
    assert len(set(starts)) == len(starts), "something has ended twice"
    taken = [r.number for r in records if isinstance(r, SignalTaken)]
    assert taken == sorted(set(taken))
    numbers = [r.number for r in records if isinstance(r, Published)]
    assert numbers == sorted(set(numbers)), "something was published twice"


def check_effects(journals: dict[str, list[RunRecord]], kills: int) -> None:
    """What is on record was done, and only what was cut off was done again."""
    recorded = {
        f"{id}/{r.key} {r.attempt}"
        for id, records in journals.items()
        for r in records
        if isinstance(r, (StepEnded, StepErred, AttemptErred))
        and re.split("[:#]|.*~", r.key)[-2 if ":" in r.key else -1] in EFFECTS
    }
    done = Counter(read_effects())
    assert recorded, "no step has an effect"
    assert recorded <= set(done), recorded - set(done)
    assert max(done.values()) <= 1 + kills, done
    assert sum(done.values()) - len(recorded) <= 5 * kills + len(set(done) - recorded), done


def check_same(expected: Path, journals: dict[str, list[RunRecord]]) -> None:
    """Hold what is left against what the first process left, which nobody disturbed."""
    # Whether a time was set for a wait that a signal has ended is a question of what came first.
    kept = {id: [r for r in records if not isinstance(r, TimerSet)] for id, records in journals.items()}
    shapes = {id: sorted(map(shape, records)) for id, records in kept.items()}
    if not all(isinstance(records[-1], Ended) and records[-1].status == "completed" for records in journals.values()):
        shapes = {RUN: shapes[RUN]}  # how far the others had come when they were cancelled is a question of luck
    if not expected.exists():
        expected.write_text(json.dumps(shapes))
    assert shapes == json.loads(expected.read_text())


def shape(record: RunRecord) -> list[str]:
    """Return what a record says, but for times, attempts and errors."""
    fields = ("key", "start", "topic", "payload", "number", "status", "" if isinstance(record, Noted) else "value")
    said = [getattr(record, field, None) for field in fields]
    return [type(record).__name__, *map(repr, said)]


class WaitSweep(Sweep):
    """Trials of one scene."""

    work_on = staticmethod(work_on)
    look_at = staticmethod(look_at)

    def before(self) -> None:
        """Kill a process before each of its writes."""
        self.run([])
        self._sweep([], "before")

    def behind(self) -> None:
        """Kill a process behind each of its writes, and behind each of its effects."""
        self.run([])
        self._sweep([], "after")
        self._sweep([], "effect")

    def twice(self) -> None:
        """Kill a second process behind each of its writes wherever the first one was killed."""
        self.run([])
        for n in range(1, 1000):
            if not self._sweep([(Kill(n, "after"), 0)], "after"):
                return


def main(name: str, folder: str, backend: str, kind: str) -> None:
    sweep = WaitSweep(name, Path(folder), backend)
    make: Callable[[], None] = getattr(sweep, kind)
    make()
    print(json.dumps({"trials": sweep.trials, "kills": sweep.kills}))


if __name__ == "__main__":
    import asyncio  # noqa: F401 - imported before the first fork, as are these, so that a child starts at once

    import tenacity  # noqa: F401
    import trio  # noqa: F401

    main(*sys.argv[1:])
