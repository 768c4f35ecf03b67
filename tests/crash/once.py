"""Sweeps over what must not happen twice, or not be undone: each process is killed at a chosen write or effect.

As ``SCENE FOLDER BACKEND SWEEP`` it lets a process work on one run, kills it behind its n-th write or its n-th
effect, and lets others finish; for every n there is. The sweep ``deep`` does it to the second process as well.
Where a run waits for its operator, the process that sees it is one: it looks at what has happened, and answers.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from evidence import read_journal
from killing import Kill, KillingStore, die, fork

from flowlet import Flowlet, Registry, compensate, current_run, gather, provided, step
from flowlet.core.run_records import AttemptBegan, Attention, Resolved, RunRecord, StepEnded, StepErred
from flowlet.errors import RunParked
from flowlet.stores.sqlite import SQLiteStore

RUN = "r"


class Place:
    """Where the effects of this process go, and behind which of them it dies; 0 for never."""

    effects = ""
    last = 0
    count = 0


class Refused(Exception):
    """What steps raise."""


def passes() -> None:
    """Count an effect, and die behind it if it is the chosen one."""
    Place.count += 1
    if Place.count == Place.last:
        die()


def effect(note: str = "") -> int:
    """Do something to the world, in one system call."""
    run = current_run()
    line = f"{run.idempotency_key.partition('/')[2]}\t{run.attempt}\t{note}\n"
    descriptor = os.open(Place.effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    passes()
    return run.attempt


def read_effects() -> list[tuple[str, int, str]]:
    path = Path(Place.effects)
    lines = path.read_text().splitlines() if path.exists() else []
    return [(key, int(attempt), note) for key, attempt, note in (line.split("\t") for line in lines)]


def enter(connection: sqlite3.Connection, note: str) -> str:
    connection.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT, note TEXT)")
    passes()
    connection.execute("INSERT INTO entries VALUES (?, ?)", (current_run().idempotency_key, note))
    passes()
    return note


# ---------------------------------------------------------------- behind a pivot
registry = Registry()


@step
async def reserve() -> int:
    return effect()


@compensate(reserve)
async def release() -> None:
    effect()


@step(pivot=True)
async def charge() -> int:
    return effect()


@compensate(charge)
async def refund(charge: int) -> None:
    effect()


@step
async def ship() -> int:
    attempt = effect()
    if attempt < 3:
        raise Refused(f"attempt {attempt}")
    return attempt


@compensate(ship)
async def recall(ship: int) -> None:
    effect()


@step
async def mail() -> int:
    return effect()


@registry.saga
async def selling() -> int:
    await reserve()
    await charge()
    shipped = await ship()
    await mail()
    return shipped


@registry.saga
async def selling_in_parallel() -> int:
    await reserve()
    _, shipped, _ = await gather(mail(), ship_after_charge(), charge())
    return shipped


@step
async def ship_after_charge() -> int:
    await anyio.sleep(0.01)
    attempt = effect()
    if attempt < 2:
        raise Refused(f"attempt {attempt}")
    return attempt


async def resume(flow: Flowlet, parked: RunParked) -> None:
    await flow.handle(RUN).resume()


async def give_up(flow: Flowlet, parked: RunParked) -> None:
    """Try once more, then have it undone."""
    tried = sum(isinstance(r, Attention) for r in await flow._open_runs.records(RUN))
    await (flow.handle(RUN).resume() if tried == 1 else flow.handle(RUN).compensate())


def check_forward(records: Sequence[RunRecord], kills: int) -> None:
    """All but the failing step is on record once, that one once for each attempt, and nothing was undone."""
    outcomes = [r for r in records if isinstance(r, (StepEnded, StepErred))]
    tried = [r for r in outcomes if r.key.startswith("ship")]
    assert [r.attempt for r in tried] == list(range(1, len(tried) + 1))
    assert isinstance(tried[-1], StepEnded)
    assert sorted(r.key for r in outcomes if r not in tried) == ["charge", "mail", "reserve"]
    assert not any("~" in key for key, _, _ in read_effects())
    check_repeats(records, kills)


def check_given_up(records: Sequence[RunRecord], kills: int) -> None:
    """What was done, the pivot included, was undone once, in reverse."""
    keys = [r.key for r in records if isinstance(r, StepEnded)]
    assert keys == ["reserve", "charge", "charge~refund", "reserve~release"]
    check_repeats(records, kills)


def check_repeats(records: Sequence[RunRecord], kills: int) -> None:
    """Effects are on record, but for at most one for each kill, and each answer answers one question."""
    recorded = Counter((r.key, r.attempt) for r in records if isinstance(r, (StepEnded, StepErred)))
    done = Counter((key, attempt) for key, attempt, _ in read_effects())
    assert max(recorded.values()) == 1
    assert set(done) == set(recorded)
    assert sum((done - recorded).values()) <= 3 * kills  # three are under way in parallel
    questions = sum(isinstance(r, Attention) for r in records)
    assert questions == sum(isinstance(r, Resolved) for r in records)


# ---------------------------------------------------------------- at most once
@step(at_most_once=True)
async def pay() -> int:
    return effect()


@step(at_most_once=True, key=lambda name: name)
async def post(name: str) -> int:
    return effect(name)


@registry.saga
async def paying() -> int:
    await reserve()
    paid = await pay()
    await gather(post("left"), mail(), post("right"))
    return paid


async def look_and_answer(flow: Flowlet, parked: RunParked) -> None:
    """Find out whether the step in question has happened: that is what its effects are for."""
    key = parked.reason.split("'")[1]
    happened = [attempt for k, attempt, _ in read_effects() if k == key]
    assert len(happened) <= 1
    if happened:
        await flow.handle(RUN).skip(key, happened[0])
    else:
        await flow.handle(RUN).resume()


def check_once(records: Sequence[RunRecord], kills: int) -> None:
    """Nothing that runs at most once was done twice, and nothing was left out."""
    done = Counter(key for key, _, _ in read_effects())
    assert [done[key] for key in ("pay", "post:left", "post:right")] == [1, 1, 1], done
    began = [(r.key, r.attempt) for r in records if isinstance(r, AttemptBegan)]
    assert len(set(began)) == len(began), "an attempt has begun twice"
    ended = Counter(r.key for r in records if isinstance(r, StepEnded))
    answered = Counter(r.step for r in records if isinstance(r, Resolved) and r.action == "skip")
    assert all(ended[key] + answered[key] == 1 for key in ("pay", "post:left", "post:right"))


# ---------------------------------------------------------------- transactions
@step(transactional=True)
async def book(n: int, connection: sqlite3.Connection = provided) -> str:
    return enter(connection, f"entry {n}")


@step(transactional=True, retry=3)
async def book_at_last(connection: sqlite3.Connection = provided) -> str:
    note = enter(connection, "at last")
    if current_run().attempt < 3:
        raise Refused("not yet")
    return note


@registry.saga
async def booking() -> str:
    await book(1)
    await gather(book(2), mail(), book(3))
    return await book_at_last()


def book_first(connection: sqlite3.Connection = provided) -> str:
    return enter(connection, "entry 1")


def book_second(book_first: str, connection: sqlite3.Connection = provided) -> str:
    return enter(connection, "entry 2")


booking_in_threads = registry.saga(
    "booking_in_threads", step(transactional=True)(book_first), step(transactional=True)(book_second)
)


async def never(flow: Flowlet, parked: RunParked) -> None:
    raise AssertionError(parked.reason)


def check_booked(records: Sequence[RunRecord], kills: int) -> None:
    """Each row is there once, and its step has one record."""
    connection = sqlite3.connect(Place.effects.removesuffix(".effects") + ".db")
    rows = connection.execute("SELECT key, note FROM entries").fetchall()
    connection.close()
    keys = [r.key for r in records if isinstance(r, StepEnded) and r.key != "mail"]
    assert sorted(key for key, _ in rows) == sorted(f"{RUN}/{key}" for key in keys)
    assert len(set(rows)) == len(rows) in (2, 4)


# ---------------------------------------------------------------- scenes
@dataclass
class Scene:
    """What is killed, who answers, and what must have come of it."""

    definition: Callable[..., Any]
    status: str
    operator: Callable[[Flowlet, RunParked], Any]
    check: Callable[[Sequence[RunRecord], int], None]


SCENES = {
    "pivot": Scene(selling, "completed", resume, check_forward),
    "pivot_in_gather": Scene(selling_in_parallel, "completed", resume, check_forward),
    "pivot_undone": Scene(selling, "compensated", give_up, check_given_up),
    "at_most_once": Scene(paying, "completed", look_and_answer, check_once),
    "transactional": Scene(booking, "completed", never, check_booked),
    "transactional_threads": Scene(booking_in_threads, "completed", never, check_booked),
}


async def work_on(name: str, database: Path, kill: Kill | None, last: int) -> None:
    """Enter a Flowlet and see the run to its end, as its caller and its operator."""
    scene = SCENES[name]
    Place.last = last
    async with Flowlet(KillingStore(SQLiteStore(database), kill), registry=registry) as flow:
        handle = await flow.start(scene.definition, id=RUN)
        while True:
            try:
                await handle.result()
            except RunParked as parked:
                await scene.operator(flow, parked)
            except Refused:
                break
            else:
                break


async def look_at(name: str, database: Path, kills: int) -> None:
    """Judge what the processes have left behind."""
    store = SQLiteStore(database)
    try:
        stored = await store.load(RUN)
    finally:
        await store.close()
    assert stored is not None
    assert stored.head.status == SCENES[name].status, stored.head.status
    SCENES[name].check(read_journal(stored), kills)


class Sweep:
    """Trials of one scene, each on a database of its own."""

    work_on = staticmethod(work_on)
    look_at = staticmethod(look_at)

    def __init__(self, name: str, folder: Path, backend: str) -> None:
        self.trials = self.kills = 0
        self._name, self._folder, self._backend = name, folder, backend

    def run(self, plan: Sequence[tuple[Kill | None, int]]) -> list[bool]:
        """Let one process after the other work until the run has ended; tell which of them were killed."""
        self.trials += 1
        database = self._folder / f"{self.trials}.db"
        Place.effects = str(self._folder / f"{self.trials}.effects")
        killed: list[bool] = []
        for kill, last in [*plan, (None, 0)]:
            code = fork(self.work_on, self._name, database, kill, last, backend=self._backend)
            killed.append(code == -9)
            if code == 0:
                break
            assert killed[-1], f"{self._name}, {plan}: process {len(killed)} ended with {code}"
        self.kills += sum(killed)
        code = fork(self.look_at, self._name, database, sum(killed), backend=self._backend)
        assert code == 0, f"{self._name}, {plan}: killed {killed}, and what was left is wrong: see {database}"
        for leftover in self._folder.glob(f"{self.trials}.*"):
            leftover.unlink()
        return killed

    def sweep(self) -> None:
        """Kill the first process behind every write, and behind every effect, which is before the next write."""
        self._sweep([], "after")
        self._sweep([], "effect")

    def deep(self) -> None:
        """Kill before every write as well, and a second process wherever the first one was killed."""
        self._sweep([], "before")
        for n in range(1, 1000):
            killed = self._sweep([(Kill(n, "after"), 0)], "after") + self._sweep([(None, n)], "effect")
            if killed == 0:
                return

    def _sweep(self, before: Sequence[tuple[Kill | None, int]], kind: str) -> int:
        """Kill the process behind those; return how many of those before were."""
        for n in range(1, 1000):
            killed = self.run([*before, _death(kind, n)])
            if len(killed) <= len(before) or not killed[len(before)]:
                return sum(killed[: len(before)])
        raise AssertionError("it does not come to an end")


def _death(kind: Any, n: int) -> tuple[Kill | None, int]:
    return (None, n) if kind == "effect" else (Kill(n, kind), 0)


def main(name: str, folder: str, backend: str, kind: str = "sweep") -> None:
    sweep = Sweep(name, Path(folder), backend)
    getattr(sweep, kind)()
    print(json.dumps({"trials": sweep.trials, "kills": sweep.kills}))


if __name__ == "__main__":
    import asyncio  # noqa: F401 - imported before the first fork, as are these, so that a child starts at once

    import tenacity  # noqa: F401
    import trio  # noqa: F401

    main(*sys.argv[1:])
