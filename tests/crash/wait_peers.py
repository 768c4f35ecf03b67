"""Processes that send signals to runs which wait, while another one executes them; all on one SQLite file.

    python tests/crash/wait_peers.py FOLDER BACKEND

One process starts the runs. Two others send to them: one that knows their definition, and so takes some of them over,
and one that does not. Prints counts as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

import anyio
from evidence import read_journal
from killing import fork, fork_aside

from flowlet import Flowlet, Registry, Run, provided
from flowlet.core.codec import Codec
from flowlet.core.run_records import Ended, SignalTaken
from flowlet.stores.sqlite import SQLiteStore

RUNS = 40
SIGNALS = 25
"""To each of them."""

LEASE = 3600.0
"""Seconds: what was forgotten is not found by a heartbeat."""

PATIENCE = 60

registry = Registry()


@registry.saga
async def collect(run: Run = provided) -> list[int]:
    return [await run.receive("n", type=int) for _ in range(SIGNALS)]


def open_flow(database: Path, known: Registry | None) -> Flowlet:
    return Flowlet(SQLiteStore(database, synchronous="NORMAL"), registry=known, lease=LEASE)


async def begin(database: Path) -> None:
    """Make the database and the runs."""
    async with open_flow(database, registry) as flow:
        for number in range(RUNS):
            await flow.start(collect, id=f"r-{number}")


async def execute(database: Path) -> None:
    """Be there until all of them have ended."""
    async with open_flow(database, registry) as flow:
        for number in range(RUNS):
            await flow.handle(f"r-{number}", collect).result()


async def send(database: Path, is_stranger: bool) -> None:
    """Send to every other run, in order, now and then with a moment between two signals."""
    dice = random.Random(int(is_stranger))
    async with open_flow(database, None if is_stranger else registry) as flow, anyio.create_task_group() as group:

        async def send_to(id: str) -> None:
            for value in range(SIGNALS):
                await anyio.sleep(dice.choice((0.0, 0.0, 0.001, 0.01)))
                await flow.handle(id).send("n", value)

        for number in range(int(is_stranger), RUNS, 2):
            group.start_soon(send_to, f"r-{number}")


async def look_at(database: Path) -> None:
    """Each run has received every signal once, and in order."""
    store = SQLiteStore(database)
    for number in range(RUNS):
        stored = await store.load(f"r-{number}")
        assert stored is not None
        assert stored.head.status == "completed"
        records = read_journal(stored)
        last = records[-1]
        assert isinstance(last, Ended)
        assert Codec(list[int]).decode(last.value or b"", "the result") == list(range(SIGNALS))
        assert [r.number for r in records if isinstance(r, SignalTaken)] == list(range(1, SIGNALS + 1))
    await store.close()


def main(folder: Path, backend: str) -> None:
    database = folder / "peers.db"
    assert fork(begin, database, backend=backend) == 0
    pids = [fork_aside(execute, database, backend=backend, stuck_after=PATIENCE)]
    pids += [fork_aside(send, database, way, backend=backend, stuck_after=PATIENCE) for way in (False, True)]
    for pid in pids:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == 0, f"process {pids.index(pid) + 1} ended with {code}" + " (stuck)" * (code == -signal.SIGALRM)
    assert fork(look_at, database, backend=backend) == 0
    print(json.dumps({"signals": RUNS * SIGNALS}))


if __name__ == "__main__":
    import asyncio  # noqa: F401 - imported before the first fork, as are these, so that a child starts at once

    import tenacity  # noqa: F401
    import trio  # noqa: F401

    main(Path(sys.argv[1]), sys.argv[2])
