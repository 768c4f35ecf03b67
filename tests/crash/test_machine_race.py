"""Real processes on one SQLite file: races with one winner, and kills with nothing half done.

Run as a script this file is the other process: it takes orders on stdin and answers on stdout.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from flowlet.core.faults import Faults
from flowlet.core.machine_builder import build_machine
from flowlet.core.marks import state, transition
from flowlet.errors import Conflict
from flowlet.runtime.logs import Log
from flowlet.runtime.machine_install import install_machine
from flowlet.runtime.machine_questions import raise_event, state_of
from flowlet.runtime.machines import Machines
from flowlet.stores.sqlite import SQLiteStore

RACES = 200


class _Switch:
    """Counts its moves; its hooks count themselves, so that a loser's would be seen."""

    moves: int = 0
    hooked: int = 0

    @state(initial=True)
    class Off: ...

    @state
    class On: ...

    @transition(Off, On)
    @transition(On, Off)
    async def flip(self) -> int:
        self.moves += 1
        return self.moves

    @transition("*", None)
    async def rest(self) -> None:
        self.moves += 1
        raise_event(self.flip)

    async def on_enter_on(self) -> None:
        self.hooked += 1

    async def on_enter_off(self) -> None:
        self.hooked += 1


def _assembled() -> Any:
    faults = Faults()
    definition = build_machine(_Switch, name="Switch", namespace={}, faults=faults)
    faults.raise_if_any()
    assert definition is not None
    return install_machine(definition)


Switch = _assembled()


def opened(path: str, worker: str) -> tuple[SQLiteStore, Machines]:
    store = SQLiteStore(path, synchronous="NORMAL")
    return store, Machines(store, now=time.time, worker=worker, log=Log())


async def racer(path: str) -> None:
    """Load when told to, say so, fire when told to, and say what became of it."""
    store, machines = opened(path, f"racer-{os.getpid()}")
    for _ in range(RACES):
        sys.stdin.readline()
        switch = await machines.load(Switch, "s")
        print("ready", flush=True)
        sys.stdin.readline()
        before = switch.hooked
        try:
            await switch.flip()
            print(f"won {switch.hooked - before}", flush=True)
        except Conflict as error:
            print(f"Conflict {switch.hooked - before} {error.expected} {error.actual}", flush=True)
    await store.close()


async def worker(path: str, name: str) -> None:
    """Fire for ever, and say so after each."""
    store, machines = opened(path, name)
    await store.heartbeat(name, 0.05)
    switch = await machines.load(Switch, "s")
    while True:
        await switch.rest()
        print(switch.moves, flush=True)


def start(*args: str) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, __file__, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def tell(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        stdin, _ = pipes(process)
        stdin.write("\n")
        stdin.flush()


def answers(processes: list[subprocess.Popen[str]]) -> list[str]:
    return [pipes(process)[1].readline().strip() for process in processes]


def test_two_processes_race_on_one_machine_and_exactly_one_wins(tmp_path: Path) -> None:
    path = str(tmp_path / "race.db")

    async def prepare() -> None:
        store, machines = opened(path, "parent")
        await machines.create(Switch, id="s")
        await store.close()

    async def check() -> None:
        store, machines = opened(path, "parent")
        switch = await machines.load(Switch, "s")
        # The start has run a hook, too: versions 1,2. Each win is a transition and what its hook has assigned.
        assert (switch.moves, switch.hooked) == (RACES, RACES + 1)
        assert [t.version async for t in machines.history("s")] == list(range(3, 2 * RACES + 3, 2))
        await store.close()

    asyncio.run(prepare())
    racers = [start("race", path), start("race", path)]
    try:
        for _ in range(RACES):
            tell(racers)
            assert answers(racers) == ["ready", "ready"]
            tell(racers)
            outcome = sorted(answers(racers))
            assert outcome[1] == "won 1", outcome
            assert outcome[0].startswith("Conflict 0 "), outcome
    finally:
        for process in racers:
            process.kill()
            process.communicate()
    asyncio.run(check())


def test_a_killed_process_leaves_nothing_half_done(tmp_path: Path) -> None:
    path = str(tmp_path / "kill.db")
    moments = random.Random(20240506)

    async def look(acknowledged: int) -> int:
        store, machines = opened(path, "parent")
        await store.heartbeat("parent", 60.0)
        if not acknowledged:
            await machines.create(Switch, id="s")
        if acknowledged:
            await asyncio.sleep(0.06)  # until the killed process counts as dead
        switch = await machines.load(Switch, "s")
        events = [t.event async for t in machines.history("s")]
        # What was raised is handled, by the process or by this load: rests and flips alternate.
        assert events == ["rest", "flip"] * (len(events) // 2)
        assert switch.moves == len(events)
        assert acknowledged <= switch.moves <= acknowledged + 4
        assert state_of(switch) == ("On" if len(events) // 2 % 2 else "Off")
        await switch.rest()
        moves: int = switch.moves
        await store.close()
        return moves

    moves = asyncio.run(look(0))
    for n in range(8):
        process = start("work", path, f"worker-{n}")
        _, stdout = pipes(process)
        for _ in range(moments.randrange(1, 30)):
            moves = int(stdout.readline())
        time.sleep(moments.random() * 0.003)
        process.send_signal(signal.SIGKILL)
        # Not `communicate`, which passes over what `readline` has read ahead.
        lines = [line for line in stdout.read().splitlines() if line]
        process.communicate()
        moves = int(lines[-1]) if lines else moves
        moves = asyncio.run(look(moves))


if __name__ == "__main__":
    if sys.argv[1] == "race":
        asyncio.run(racer(sys.argv[2]))
    else:
        asyncio.run(worker(sys.argv[2], sys.argv[3]))
