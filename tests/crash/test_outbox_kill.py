"""kill -9 before and after every append of a machine whose actions start runs and send signals, and races for one.

What is killed and what is judged is in `outbox_worker`, which makes the trials in processes that fork. Run as a script
this file is a process that races: it takes orders on stdin and answers on stdout.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

import flowlet
from flowlet import Flowlet, Registry, state, step, transition
from flowlet.errors import Conflict
from flowlet.stores.sqlite import SQLiteStore

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}
RACES = 100

registry = Registry()


@step
async def note(who: str) -> str:
    return who


@registry.saga
async def tell(who: str) -> str:
    return await note(who)


@registry.machine
class Prize:
    """Whoever wins it starts a run that says so; all under the same id."""

    _flow: Flowlet

    @state(initial=True)
    class Open: ...

    @state(final=True)
    class Won: ...

    @transition(Open, Won)
    async def win(self, who: str, id: str | None) -> None:
        await self._flow.start(tell, who, id=id)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_killed_at_every_append(backend: str, tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "outbox_worker.py"), str(tmp_path), backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["appends"] >= 15, counts
    # The last appends of a process vary by a few with what is committed together.
    assert counts["kills"] >= 2 * (counts["appends"] - 4), counts


def test_of_two_processes_that_race_the_winner_has_started_its_run(tmp_path: Path) -> None:
    path = str(tmp_path / "race.db")

    async def prepare() -> None:
        async with Flowlet(SQLiteStore(path, synchronous="NORMAL"), registry=registry) as flow:
            for n in range(RACES):
                await flow.create(Prize(), id=f"p-{n}")

    async def check(winners: list[str]) -> None:
        async with Flowlet(SQLiteStore(path, synchronous="NORMAL"), registry=registry) as flow:
            runs = {run.id async for run in flow.runs()}
            assert runs == {name_of(n) or f"p-{n}@2/tell" for n in range(RACES)}
            for n, winner in enumerate(winners):
                assert await flow.handle(name_of(n) or f"p-{n}@2/tell").result() == winner

    asyncio.run(prepare())
    racers = [
        subprocess.Popen(
            [sys.executable, __file__, path, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        for name in ("ann", "bob")
    ]
    winners: list[str] = []
    try:
        for _ in range(RACES):
            tell_all(racers)
            assert answers(racers) == ["ready", "ready"]
            tell_all(racers)
            outcomes = answers(racers)
            assert sorted(outcomes) == ["Conflict", "won"], outcomes
            winners.append(("ann", "bob")[outcomes.index("won")])
    finally:
        for process in racers:
            process.kill()
            process.communicate()
    assert len(set(winners)) == 2, winners  # or it was no race
    asyncio.run(check(winners))


def name_of(n: int) -> str | None:
    """Return the id that is given to a race's run; every other one gets none."""
    return f"r-{n}" if n % 2 else None


def pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def tell_all(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        stdin, _ = pipes(process)
        stdin.write("\n")
        stdin.flush()


def answers(processes: list[subprocess.Popen[str]]) -> list[str]:
    return [pipes(process)[1].readline().strip() for process in processes]


async def race(path: str, who: str) -> None:
    """Load when told to, say so, fire when told to, and say what became of it."""
    async with Flowlet(SQLiteStore(path, synchronous="NORMAL"), registry=registry) as flow:
        for n in range(RACES):
            await asyncio.to_thread(sys.stdin.readline)
            prize: Any = await flow.load(Prize, f"p-{n}")
            prize._flow = flow
            print("ready", flush=True)
            sys.stdin.readline()
            try:
                await prize.win(who, name_of(n))
                print("won", flush=True)
            except Conflict:
                print("Conflict", flush=True)


if __name__ == "__main__":
    asyncio.run(race(*sys.argv[1:]))
