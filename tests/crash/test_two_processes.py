"""Several processes on one SQLite file: each run belongs to one at a time, and outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import msgspec
import pytest
from evidence import check, effects_by_run, owners, read_effects, read_journal
from workloads import WORKLOADS

import flowlet
from flowlet.core.run_records import StepEnded, StepErred
from flowlet.store import Stored
from flowlet.stores.sqlite import SQLiteStore

RUNS = 300
LEASE = 10.0  # the default
PAUSED = ["fails", "compensates", "retries", "gathers", "gathers and fails"]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `peers.py`; what still runs at the end of the test is killed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}
    started: list[subprocess.Popen[str]] = []

    def start_one(command: str, *options: object) -> subprocess.Popen[str]:
        script = str(Path(__file__).with_name("peers.py"))
        arguments = [command, tmp_path / "s.db", tmp_path / "effects", *options]
        process = subprocess.Popen(
            [sys.executable, script, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def load(folder: Path, ids: list[str]) -> dict[str, Stored]:
    async def load_all() -> dict[str, Stored]:
        store = SQLiteStore(folder / "s.db")
        found = {id: await store.load(id) for id in ids}
        await store.close()
        return {id: stored for id, stored in found.items() if stored is not None}

    return anyio.run(load_all)


def test_two_processes_share_the_runs_and_execute_none_twice(start: Start, tmp_path: Path) -> None:
    # Both start all of them: the first to come owns a run, and the other waits for its end.
    peers = [start("share", 0, 1, RUNS, 0) for _ in range(2)]
    for peer in peers:
        output, _ = peer.communicate(timeout=60)
        assert peer.returncode == 0
        assert json.loads(output.splitlines()[-1])["refused"] == RUNS
    effects = effects_by_run(tmp_path / "effects")
    for id, stored in load(tmp_path, [f"o-{n}" for n in range(RUNS)]).items():
        check(WORKLOADS["failing"], stored, effects.pop(id), crashes=0)
    assert not effects
    by_peer = Counter(e.pid for e in read_effects(tmp_path / "effects"))
    assert set(by_peer) <= {peer.pid for peer in peers}


@pytest.mark.parametrize("kill_at", [1, 150, 400, 500])
def test_the_runs_of_a_killed_process_are_taken_over_at_once(start: Start, tmp_path: Path, kill_at: int) -> None:
    victim = start("share", 0, 3, RUNS, kill_at)
    others = [start("share", n, 3, RUNS, 0) for n in (1, 2)]
    assert victim.wait(timeout=60) == -signal.SIGKILL
    killed_at = time.monotonic()
    for peer in others:
        output, _ = peer.communicate(timeout=60)
        assert peer.returncode == 0
        assert json.loads(output.splitlines()[-1])["refused"] == RUNS
    assert time.monotonic() - killed_at < LEASE / 2, "they waited for the lease"
    effects = effects_by_run(tmp_path / "effects")
    taken = 0
    for id, stored in load(tmp_path, [f"o-{n}" for n in range(RUNS)]).items():
        turns = owners(effects[id])
        assert turns in ([turns[0]], [victim.pid, turns[-1]]), f"{id} was worked on by {turns}"
        taken += len(turns) == 2
        check(WORKLOADS["failing"], stored, effects.pop(id), crashes=int(turns[0] == victim.pid))
    assert not effects
    assert taken >= 1


@pytest.mark.parametrize("resumed", ["when its runs are taken", "when its runs have ended"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_paused_owner_neither_writes_nor_compensates(
    start: Start, tmp_path: Path, backend: str, resumed: str
) -> None:
    paused = start("pause", backend)
    os.waitid(os.P_PID, paused.pid, os.WSTOPPED)
    before = len(read_effects(tmp_path / "effects"))
    rescued = start("rescue", backend)
    if resumed == "when its runs are taken":
        while {s.head.fence for s in load(tmp_path, PAUSED).values()} == {1}:
            time.sleep(0.02)
        paused.send_signal(signal.SIGCONT)
    output, _ = rescued.communicate(timeout=60)
    assert rescued.returncode == 0
    ends = json.loads(output)
    stored = load(tmp_path, PAUSED)
    if resumed == "when its runs have ended":
        paused.send_signal(signal.SIGCONT)
    output, _ = paused.communicate(timeout=60)
    assert paused.returncode == 0
    told = json.loads(output.splitlines()[-1])
    assert told["ends"] == ends, "the former owner tells its callers something else"
    assert sorted(told["log"]) == sorted(["run.left", id] for id in PAUSED), "not one line for each run that it lost"
    rescue = read_effects(tmp_path / "effects")[before:]
    assert {effect.pid for effect in rescue} == {rescued.pid}, "the former owner went on"
    assert load(tmp_path, PAUSED) == stored, "the former owner wrote"
    statuses = {id: s.head.status for id, s in stored.items()}
    assert statuses == {id: "completed" if id == "gathers" else "compensated" for id in PAUSED}
    for id in stored:
        _check_recorded_once(stored[id], paused.pid)


def _check_recorded_once(stored: Stored, former: int) -> None:
    ended = [r for r in read_journal(stored) if isinstance(r, (StepEnded, StepErred))]
    assert len(ended) == len({r.key for r in ended})
    assert stored.head.fence >= 3, "nobody took it over"
    held = [r.value for r in ended if isinstance(r, StepEnded) and r.key.startswith("hold")]
    assert former not in [msgspec.msgpack.decode(value)["pid"] for value in held], "it wrote what it held"
