"""Cancelled runs that are killed at every write, and runs that one process ends while another cancels them.

As ``sweep NAME FOLDER BACKEND`` it kills a process that cancels its own run at every write; as ``race FOLDER
BACKEND`` it lets a process end runs that another one cancels. What was done is printed as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import killing
import workloads
from evidence import effects_by_run, read_journal
from killing import Failed, Kill, KillingStore, Trials, Way, fork
from workloads import WORKLOADS, Flaky, Refused, Slip, Workload, effect, paint, registries, reserve

from flowlet import Flowlet, Registry, compensate, gather, provided, step
from flowlet.core.run_records import Interrupted, StepEnded, StepErred
from flowlet.errors import CompensationFailed, RunCancelled, RunFinished
from flowlet.stores.sqlite import SQLiteStore

RUN = "o-1"
"""The id of the run in a sweep."""

CHILD = "o-1/child"
"""That of its child, if it has one."""


# ---------------------------------------------------------------- definitions
@step
async def stop(order: int, flow: Flowlet = provided) -> Slip:
    slip = effect(order)
    await flow.handle(RUN).cancel()
    await anyio.sleep(60)
    return slip


@registries["cancelled"].saga
async def cancelled(order: int) -> Slip:
    await reserve(order)
    await gather(paint(order, "left"), paint(order, "right"))
    return await stop(order)


@registries["cancelled_together"].saga(parallel_compensation=True)
async def cancelled_together(order: int) -> Slip:
    await reserve(order)
    await gather(paint(order, "left"), paint(order, "right"))
    slips = await gather(stop(order), workloads.wait_long(order))
    return slips[0]


@registries["cancelled_abroad"].saga
async def cancelled_abroad(order: int, flow: Flowlet = provided) -> Slip:
    """Waits for something that is not flowlet's when it is cancelled."""
    slip = await reserve(order)
    await flow.handle(RUN).cancel()
    await anyio.sleep(60)
    return slip


@registries["family"].saga
async def child(order: int) -> Slip:
    await paint(order, "left")
    return await stop(order)


@registries["family"].saga
async def family(order: int) -> Slip:
    await reserve(order)
    slips = await gather(child(order), workloads.wait_long(order))
    return slips[0]


@step
async def borrow(order: int) -> Slip:
    return effect(order)


@compensate(borrow)
async def bring_back(order: int, borrow: Slip) -> None:
    effect(borrow.pid)
    if not workloads.mended(RUN).exists():
        raise Flaky("out of order")


@registries["resumed_together"].saga(parallel_compensation=True)
async def resumed_together(order: int) -> Slip:
    await borrow(order)
    await reserve(order)
    await borrow(order)
    raise Refused("no")


@step
async def reserve_place(order: int) -> Slip:
    return effect(order)


@step
async def stop_at(order: int, split: Slip, flow: Flowlet = provided) -> Slip:
    slip = effect(split.pid)
    if slip.step == "stop_at[2]":
        await flow.handle(RUN).cancel()
    await anyio.sleep(0.001 if slip.step == "stop_at[0]" else 60)  # it ends at about the time of the cancellation
    return slip


async def tidy(split: list[Slip] | None, stop_at: list[Slip] | None, error: Exception | None) -> Slip:
    assert isinstance(error, RunCancelled), error
    assert split is not None
    assert stop_at is None
    return effect(split[0].pid)


async def leave(order: int) -> Slip:
    await anyio.sleep(0.001)
    return effect(order)


closed = registries["closed"].pipeline(
    "closed",
    *(workloads.split, reserve_place, stop_at),
    each={stop_at: "split"},
    needs={stop_at: reserve_place},
    finally_=[tidy, leave],
)

_UNDO = {"reserve": "reserve~unreserve", "paint": "paint~scrape", "paint#2": "paint#2~scrape"}
_DONE = {"reserve": "s", "paint": "s", "paint#2": "s"}
WORKLOADS["cancelled"] = Workload(cancelled, "cancelled", {**_DONE, "stop": "c"}, _UNDO, "stop", width=2)
for name, definition in {
    "cancelled_together": cancelled_together,
    "cancelled_abroad": cancelled_abroad,
    "family": family,
}.items():
    WORKLOADS[name] = Workload(definition, "cancelled", {}, _UNDO, width=3)
WORKLOADS["closed"] = Workload(closed, "cancelled", {}, width=4, closes=("~tidy", "~leave"))
WORKLOADS["resumed_together"] = Workload(resumed_together, "compensated", {}, width=3)


# ---------------------------------------------------------------- one process
async def work_on(name: str, database: Path, ids: Sequence[str], kill: Kill | None, way: Way) -> None:
    """See the run to its end; mend what its compensations fail of, and let it go on."""
    workload = WORKLOADS[name]
    store = KillingStore(SQLiteStore(database, synchronous="NORMAL"), kill)
    flow = Flowlet(store, registry=registries[name])
    database.with_suffix(".writes").write_text("0")
    async with flow:
        if way != "recover" or await flow.store.load(RUN, limit=0) is None:
            await flow.start(workload.definition, 7, id=RUN)
        while isinstance((error := await outcome_of(flow, workload)).__cause__, CompensationFailed):
            workloads.mended(RUN).touch()
            await flow.handle(RUN).resume()
        assert isinstance(error, RunCancelled if workload.status == "cancelled" else Refused)


async def outcome_of(flow: Flowlet, workload: Workload) -> Exception:
    try:
        value = await flow.handle(RUN, workload.definition).result()
    except (RunCancelled, Refused) as error:
        return error
    raise AssertionError(f"it completed: {value}")


async def look_at(workload: Workload, database: Path, ids: Sequence[str], effects: Path, crashes: int) -> None:
    """Judge what the processes have left behind."""
    store = SQLiteStore(database, synchronous="NORMAL")
    try:
        stored = [await store.load(id) for id in (RUN, CHILD)]
    finally:
        await store.close()
    effects_of = effects_by_run(effects)
    for run in stored:
        if run is None:
            continue
        done = Counter(e.key for e in effects_of[run.head.id])
        records = read_journal(run)
        assert run.head.status == workload.status
        assert sum(isinstance(r, Interrupted) for r in records) == (workload.status == "cancelled")
        ended = [r.key for r in records if isinstance(r, StepEnded)]
        assert len(ended) == len(set(ended)), "a step has two results"
        forward = [key for key in ended if "~" not in key]
        undone = [key.partition("~")[0] for key in ended if "~" in key]
        if workload.closes:
            assert tuple(ended[-len(workload.closes) :]) == workload.closes
            assert forward[-1] in ("reserve_place", "split", "stop_at[0]")
        else:
            assert sorted(undone) == sorted(forward)
        starts = [r.start for r in records if hasattr(r, "start") and type(r).__name__ != "AttemptErred"]
        assert sorted(starts) == list(range(1, len(starts) + 1)), "starts are not 1..n"
        recorded = Counter(r.key for r in records if isinstance(r, (StepEnded, StepErred)))
        for key, count in recorded.items():
            assert count <= done[key] <= count + crashes, f"{key}: {done[key]} effects, {count} recorded"
    assert stored[0] is not None
    if workload.definition is family and stored[1] is not None:
        mine, its = stored[0].head, stored[1].head
        assert its.closed is not None
        assert mine.closed is not None
        assert its.closed <= mine.closed


class CancelTrials(Trials):
    """Trials whose processes work as above."""

    def _fork(self, main: Callable[..., Awaitable[None]], *args: Any) -> int:
        if main is killing.work_on:
            main = work_on
        elif self._name != "cancelled":
            main = look_at
        return super()._fork(main, *args)


# ---------------------------------------------------------------- a race
racing = Registry()
RUNS = 40


@step
async def take(order: int) -> int:
    await anyio.sleep(0.002)
    return order


@compensate(take)
async def give(order: int) -> None: ...


@racing.saga
async def buy(order: int) -> int:
    for _ in range(3):
        await take(order)
    return order


@step
async def hang() -> None:
    await anyio.sleep(60)


@racing.saga
async def hanging() -> None:
    await hang()


async def end(database: Path) -> None:
    """Start runs, one after the other, and see their ends."""
    async with Flowlet(SQLiteStore(database, synchronous="NORMAL"), registry=racing) as flow:
        handles = [await flow.start(hanging, id="hanging")]
        for number in range(RUNS):
            handles.append(await flow.start(buy, number, id=f"r-{number}"))
            await anyio.sleep(0.01)
        for handle in handles:
            with contextlib.suppress(RunCancelled):
                await handle.result()


async def cancel(database: Path, report: Path) -> None:
    """Cancel what the other process executes; say of each run whether that was in time."""
    outcomes: dict[str, bool] = {}
    async with Flowlet(SQLiteStore(database, synchronous="NORMAL")) as flow:
        for number in range(RUNS):
            while await flow.store.load(f"r-{number}", limit=0) is None:
                await anyio.sleep(0.001)
            await anyio.sleep(0.002 * (number % 8))
            try:
                await flow.handle(f"r-{number}").cancel()
                outcomes[f"r-{number}"] = True
            except RunFinished:
                outcomes[f"r-{number}"] = False
        before = time.perf_counter()
        await flow.handle("hanging").cancel()
        try:
            await flow.handle("hanging").result()
        except RunCancelled:
            seconds = time.perf_counter() - before
    report.write_text(json.dumps({"outcomes": outcomes, "seconds": seconds}))


async def judge(database: Path, report: Path) -> None:
    store = SQLiteStore(database, synchronous="NORMAL")
    outcomes = json.loads(report.read_text())["outcomes"]
    try:
        for id, in_time in outcomes.items():
            stored = await store.load(id)
            assert stored is not None
            read_journal(stored)
            assert stored.head.status == ("cancelled" if in_time else "completed"), (id, in_time, stored.head)
    finally:
        await store.close()


def race(folder: Path, backend: str) -> dict[str, float]:
    """Let two processes work on a database at once, and judge what they leave."""
    database, report = folder / "race.db", folder / "race.json"
    pids = []
    for main in (lambda: fork(end, database, backend=backend), lambda: fork(cancel, database, report, backend=backend)):
        pid = os.fork()
        if pid == 0:
            os._exit(main())
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if codes != [0, 0] or fork(judge, database, report) != 0:
        raise Failed(f"the processes ended with {codes}; see {database}")
    found = json.loads(report.read_text())
    return {"cancelled": sum(found["outcomes"].values()), "runs": RUNS, "seconds": found["seconds"]}


def main(command: str, *options: str) -> None:
    if command == "race":
        print(json.dumps(race(Path(options[0]), options[1])))
        return
    name, folder, backend = options
    trials = CancelTrials(name, Path(folder), backend)
    trials.sweep()
    print(json.dumps({"trials": trials.count, "kills": trials.kills}))


if __name__ == "__main__":
    import asyncio  # noqa: F401 - imported before the first fork, as are these, so that a child starts at once
    import sqlite3  # noqa: F401

    import tenacity  # noqa: F401
    import trio  # noqa: F401

    main(*sys.argv[1:])
