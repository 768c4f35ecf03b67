"""kill -9 at every append of a statechart with timers, raised and done events: the next process goes on by itself.

Run as a script this file makes the trials: it forks processes on databases of their own, many at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from killing import Kill, KillingStore, fork, fork_aside

import flowlet
from flowlet import Flowlet, Registry, raise_event, state, transition
from flowlet.runtime.machine_questions import state_of
from flowlet.stores.sqlite import SQLiteStore

registry = Registry()

hooked: list[Path] = []
"""The file that enter hooks leave a line in; each process sets its own before it begins."""


@registry.machine
class Parcel:
    """Each action notes itself in the data, which is committed with its transition; hooks may be lost, or not run."""

    log: tuple[str, ...] = ()

    @state(initial=True)
    class Packing:
        @state(initial=True)
        class Empty: ...

        @state(final=True)
        class Full: ...

    @state(parallel=True)
    class Way:
        @state
        class Road:
            @state(initial=True)
            class Near: ...

            @state
            class Far: ...

            @state(final=True)
            class There: ...

        @state
        class Papers:
            @state(initial=True)
            class Open: ...

            @state(final=True)
            class Stamped: ...

    @state
    class Door: ...

    @state(final=True)
    class Home: ...

    def _note(self, what: str) -> None:
        self.log = (*self.log, what)

    @transition(Packing.Empty, Packing.Full, after=0.02)
    async def fill(self) -> None:
        self._note("fill")
        raise_event(self.weigh, 7)

    @transition(Packing, None)
    async def weigh(self, grams: int) -> None:
        self._note(f"weigh {grams}")

    @transition(Packing, Way, done=True)
    async def leave(self) -> None:
        self._note("leave")

    @transition(Way.Road.Near, Way.Road.Far, after=0.02)
    async def drive(self) -> None:
        self._note("drive")

    @transition(Way.Road.Far, Way.Road.There, eventless=True)
    async def arrive(self) -> None:
        self._note("arrive")

    @transition(Way.Papers.Open, Way.Papers.Stamped, after=0.04)
    async def stamp(self) -> None:
        self._note("stamp")

    @transition(Way, Door, done=True)
    async def ring(self) -> None:
        self._note("ring")
        raise_event(self, "answer", "bell", after=0.02)
        raise_event(self.wait)

    @transition(Door, None)
    async def wait(self) -> None:
        self._note("wait")

    @transition(Door, Home)
    async def answer(self, what: str) -> None:
        self._note(f"answer {what}")

    async def on_enter_full(self) -> None:
        _hook("Full")

    async def on_enter_way(self) -> None:
        _hook("Way")

    async def on_enter_there(self) -> None:
        _hook("There")

    async def on_enter_door(self) -> None:
        _hook("Door")


LOG = ("fill", "weigh 7", "leave", "drive", "arrive", "stamp", "ring", "wait", "answer bell")
EVENTS = ["fill", "weigh", "done.state.Packing", "drive", "arrive", "stamp", "done.state.Way", "wait", "answer"]


def _hook(name: str) -> None:
    with hooked[0].open("a") as file:
        file.write(f"{name}\n")


# In children ------------------------------------------------------------------------------------------------
async def work(database: Path, kill: Kill | None) -> None:
    """Enter a Flowlet and wait until the parcel is home; make it only if there is none."""
    hooked[:] = [database.with_suffix(".hooked")]
    store = KillingStore(SQLiteStore(database, synchronous="NORMAL"), kill or Kill(0, "before"))
    async with Flowlet(store, registry=registry) as flow:
        if await store.load("p", limit=0) is None:
            await flow.create(Parcel, id="p")
        while True:
            stored = await store.load("p", limit=0)
            if stored is not None and stored.head.status == "final":
                break
            await anyio.sleep(0.01)
    database.with_suffix(".writes").write_text(str(store.writes))


async def judge(database: Path) -> None:
    """Everything has happened, once, in its order; no enter hook has run twice."""
    async with Flowlet(SQLiteStore(database), registry=registry) as flow:
        assert [t.event async for t in flow.history("p")] == EVENTS
        parcel = await flow.load(Parcel, "p")
        assert (state_of(parcel), parcel.log) == ("Home", LOG)
        stored = await flow.store.load("p", limit=0)
        assert stored is not None
        assert stored.head.owner is None
        assert stored.head.closed is not None
        await flow.verify(Parcel, "p")
    names = database.with_suffix(".hooked").read_text().split()
    assert len(names) == len(set(names)), names


# In the process that makes them -------------------------------------------------------------------------------
class Trial:
    """One database, and the kills of the processes that work on it."""

    def __init__(self, folder: Path, kills: Sequence[Kill], backend: str) -> None:
        self.kills, self.backend = list(kills), backend
        self.database = folder / f"{backend}-{'-'.join(f'{k.when}{k.n}' for k in kills)}.db"
        self.killed = 0
        self.done = False
        self._process = 0

    def begin(self) -> None:
        if not self.done:
            kill = self.kills.pop(0) if self.kills else None
            self._process = fork_aside(work, self.database, kill, backend=self.backend)

    def end(self) -> None:
        if not self.done:
            code = os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])
            if code not in (0, -signal.SIGKILL):
                sys.exit(f"{self.database.name}: a process ended with {code}")
            self.killed += code != 0
            self.done = code == 0


def main(folder: Path) -> None:
    """Count the appends of a process that is left alone, then kill others at each of them."""
    alone = Trial(folder, (), "asyncio")
    alone.begin()
    alone.end()
    writes = int(alone.database.with_suffix(".writes").read_text())
    trials = []
    whens: tuple[Literal["before", "after"], ...] = ("before", "after")
    for n in range(1, writes + 1):
        for when in whens:
            backend = "trio" if (n + (when == "after")) % 2 else "asyncio"
            again = [Kill(1 + n % 4, "after", every=True)] if when == "after" else []
            trials.append(Trial(folder, [Kill(n, when), *again], backend))
    for _ in range(3):
        for some in (trials[:14], trials[14:28], trials[28:]):  # more at once would only wait for each other
            for trial in some:
                trial.begin()
            for trial in some:
                trial.end()
    for trial in (alone, *trials):
        if fork(judge, trial.database) != 0:
            sys.exit(f"{trial.database.name}: what was left is wrong")
    print(json.dumps({"writes": writes, "trials": len(trials), "kills": [t.killed for t in trials]}))


# The test -----------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_killed_at_every_append_it_goes_on_in_the_next_process_by_itself(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}
    done: Any = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=100, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    # The creation, and a record for each event.
    assert found["writes"] >= 1 + len(EVENTS)
    assert found["trials"] == 2 * found["writes"]
    assert all(found["kills"]), found
    assert sum(found["kills"]) > 2.3 * found["writes"]  # of those killed behind a write, most a second time


if __name__ == "__main__":
    import asyncio  # noqa: F401 - imported before the first fork, as are these, so that a child starts at once
    import sqlite3  # noqa: F401

    import tenacity  # noqa: F401
    import trio  # noqa: F401

    main(Path(sys.argv[1]))
