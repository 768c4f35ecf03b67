"""A run that sleeps for a month, in the lives of seven processes, between which the clock goes on, or back.

    python tests/crash/wait_restarts.py FOLDER BACKEND

Every other process is killed; none but the last may go on with the run. Prints the number of kills as JSON.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

import anyio
from evidence import read_journal
from killing import die, fork
from once import RUN, Place
from wait_clock import ClockedStore, FileClock
from waits import act, read_effects, registry

from flowlet import Flowlet, Run, provided
from flowlet.core.run_records import StepEnded, TimerFired, TimerSet
from flowlet.stores.sqlite import SQLiteStore

DAY = 86400.0


@registry.saga
async def month(run: Run = provided) -> float:
    await act("first day")
    await run.sleep(timedelta(days=30))
    return (await act("last day"), run.now().timestamp())[1]


async def live_for_a_while(database: Path, is_first: bool, is_last: bool, dies: bool) -> None:
    """Begin, and be there for a moment, in which the run must not go on, unless its time has come."""
    store = ClockedStore(database, None)
    async with Flowlet(store, registry=registry) as flow:
        handle = await flow.start(month, id=RUN) if is_first else flow.handle(RUN, month)
        if is_last:
            await handle.result()
            return
        with anyio.fail_after(20):
            while await handle.status() != "waiting":
                await anyio.sleep(0.005)
        await anyio.sleep(0.1)
        assert await handle.status() == "waiting"
        if dies:
            die()


def restarts(folder: Path, backend: str) -> dict[str, int]:
    """Let a run sleep for a month, in the lives of seven processes, between which the clock goes on, or back."""
    database = folder / "month.db"
    Place.effects = str(folder / "month.effects")
    clock = FileClock(database.with_suffix(".clock"))
    began = clock()
    days = (0.0, 9.0, 20.0, 15.0, -5.0, 29.999, 30.0001)
    for number, day in enumerate(days):
        clock.set(began + day * DAY)
        is_last = number == len(days) - 1
        dies = number % 2 == 0 and not is_last
        code = fork(live_for_a_while, database, number == 0, is_last, dies, backend=backend)
        assert code == (-9 if dies else 0), f"process {number + 1}, on day {day}, ended with {code}"
    assert fork(look_at_month, database, began, backend=backend) == 0
    return {"kills": 3}


async def look_at_month(database: Path, began: float) -> None:
    """The time that was stored when it began was kept, and has come once."""
    store = SQLiteStore(database)
    stored = await store.load(RUN)
    await store.close()
    assert stored is not None
    records = read_journal(stored)
    (timer,) = [r for r in records if isinstance(r, TimerSet)]
    (fired,) = [r for r in records if isinstance(r, TimerFired)]
    assert timer.due == began + 30 * DAY
    assert fired.at == began + 30.0001 * DAY
    assert [r.key for r in records if isinstance(r, StepEnded)] == ["act:first day", "act:last day"]
    assert read_effects() == [f"{RUN}/act:first day 1", f"{RUN}/act:last day 1"]


if __name__ == "__main__":
    import asyncio  # noqa: F401 - imported before the first fork, as are these, so that a child starts at once

    import tenacity  # noqa: F401
    import trio  # noqa: F401

    print(json.dumps(restarts(Path(sys.argv[1]), sys.argv[2])))
