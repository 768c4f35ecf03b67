"""Processes that are asked to end, one after the other, and what they leave: nothing stranded, nothing done twice.

Where a process is asked to end and has the time, each step is executed exactly once; only a kill, or a grace
time that is over, may cost one execution more of the step that was under way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from draining import REFUSED, SERVED
from evidence import Effect, check, read_effects

import flowlet
from flowlet.core.run_records import StepEnded, run_record_codec
from flowlet.store import Stored
from flowlet.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no such signals there")

Start = Callable[..., "subprocess.Popen[str]"]
COUNT = 40


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `draining.py`; what still runs at the end of the test is killed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}
    started: list[subprocess.Popen[str]] = []

    def start_one(command: str, *, host: str = "", **options: Any) -> subprocess.Popen[str]:
        script = str(Path(__file__).with_name("draining.py"))
        arguments = [command, str(tmp_path / "s.db"), str(tmp_path / "effects")]
        arguments += [f"--{name}={value}" for name, value in options.items()]
        here = environment
        if host:  # its workers' locks are out of the others' sight, as those of another host are
            (tmp_path / host).mkdir()
            here = {**environment, "TMPDIR": str(tmp_path / host)}
        process = subprocess.Popen(
            [sys.executable, script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=here,
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], *lines: str) -> None:
    """Wait until a process has said all of these."""
    wanted = set(lines)
    assert process.stdout is not None
    while wanted:
        line = process.stdout.readline()
        assert line, process.communicate()
        wanted.discard(line.strip())


def end(process: subprocess.Popen[str], code: int) -> list[Any]:
    """Wait for a process to end; return what it has logged."""
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    return [json.loads(line) for line in errors.splitlines()]


def load_all(folder: Path) -> dict[str, Stored]:
    async def load() -> dict[str, Stored]:
        store = SQLiteStore(folder / "s.db")
        found = {head.id: await store.load(head.id) for head in await store.scan(kind="run", limit=10_000)}
        await store.close()
        return {id: stored for id, stored in found.items() if stored is not None}

    return anyio.run(load)


def effects_by_run(folder: Path) -> dict[str, list[Effect]]:
    found: dict[str, list[Effect]] = defaultdict(list)
    for effect in read_effects(folder / "effects"):
        found[effect.run].append(effect)
    return found


def steps(stored: Stored) -> list[str]:
    records = [run_record_codec.decode(data, "a record") for data in stored.records]
    return [record.key for record in records if isinstance(record, StepEnded)]


def judge(folder: Path, runs: int, *, crashes: int = 0) -> None:
    """Hold all runs against what must have come of them."""
    effects = effects_by_run(folder)
    everything = load_all(folder)
    assert len(everything) == runs
    for id, stored in everything.items():
        check(SERVED, stored, effects[id], crashes)


# ------------------------------------------------------------------ being asked to end
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_process_that_is_asked_to_end_finishes_its_steps_and_strands_nothing(
    start: Start, tmp_path: Path, backend: str
) -> None:
    asked = start("serve", backend=backend, count=COUNT)
    read_until(asked, "long", "ready")
    asked.send_signal(signal.SIGTERM)
    assert end(asked, -signal.SIGTERM) == []
    left = load_all(tmp_path)
    assert {stored.head.owner for stored in left.values()} == {None}
    assert steps(left["long-0"]) == ["take", "make"], "the running step was not recorded, or the next began"
    assert any(stored.head.closed is None for stored in left.values())
    assert end(start("finish", backend=backend), 0) == []
    judge(tmp_path, COUNT + 1)


def test_what_is_not_in_the_middle_of_a_step_goes_on_elsewhere_meanwhile(start: Start, tmp_path: Path) -> None:
    other = start("watch")
    read_until(other, "ready")
    asked = start("serve", count=COUNT, long=90, grace=120)
    read_until(asked, "long", "ready")
    asked.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 45
    while {id for id, stored in load_all(tmp_path).items() if stored.head.closed is None} != {"long-0"}:
        assert time.monotonic() < deadline, "they waited for the long step"
        time.sleep(0.05)
    assert asked.poll() is None
    asked.send_signal(signal.SIGTERM)  # the second one: at once
    end(asked, -signal.SIGTERM)
    other.send_signal(signal.SIGTERM)
    end(other, -signal.SIGTERM)
    end(start("finish"), 0)
    judge(tmp_path, COUNT + 1, crashes=1)


def test_a_step_that_outlasts_the_grace_time_is_executed_again(start: Start, tmp_path: Path) -> None:
    asked = start("serve", long=30, grace=0.2)
    read_until(asked, "long", "ready")
    began = time.monotonic()
    asked.send_signal(signal.SIGTERM)
    assert end(asked, -signal.SIGTERM) == []
    assert time.monotonic() - began < 5  # 0.3 when nothing else runs
    left = load_all(tmp_path)["long-0"]
    assert (left.head.owner, left.head.status, steps(left)) == (None, "running", ["take"])
    end(start("finish", long=0.1), 0)
    judge(tmp_path, 1, crashes=1)
    makes = [effect for effect in read_effects(tmp_path / "effects") if effect.key == "make"]
    assert len(makes) == 2
    assert {effect.attempt for effect in makes} == {1}, "being cut off is no failed attempt"


# ------------------------------------------------------------------ rolling restarts
@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL])
def test_the_next_process_of_the_same_name_is_up_before_the_last_one_ends(
    start: Start, tmp_path: Path, ended_by: signal.Signals
) -> None:
    old = start("serve", name="orders", count=COUNT)
    read_until(old, "long", "ready")
    new = start("serve", name="orders", first=COUNT, count=COUNT)
    read_until(new, "ready")
    # It has stolen nothing: what the old one works on is the old one's still.
    assert {e.pid for e in read_effects(tmp_path / "effects") if e.run == "long-0"} == {old.pid}
    old.send_signal(ended_by)
    end(old, -ended_by)
    deadline = time.monotonic() + 30
    while any(stored.head.closed is None for stored in load_all(tmp_path).values()):
        assert time.monotonic() < deadline, "something is stranded"
        time.sleep(0.05)
    new.send_signal(signal.SIGTERM)
    end(new, -signal.SIGTERM)
    judge(tmp_path, 2 * COUNT + 2, crashes=int(ended_by == signal.SIGKILL))


def test_ten_restarts_in_a_row_under_load(start: Start, tmp_path: Path) -> None:
    for restart in range(10):
        process = start("serve", name="orders", first=restart * 15, count=15, long=0.1)
        read_until(process, "ready")
        process.send_signal(signal.SIGTERM)
        assert end(process, -signal.SIGTERM) == []
        assert {stored.head.owner for stored in load_all(tmp_path).values()} == {None}
    end(start("finish", name="orders"), 0)
    judge(tmp_path, 10 * 16)


# ------------------------------------------------------------------ dead, or believed to be
def test_a_zombie_says_one_line_and_does_nothing(start: Start, tmp_path: Path) -> None:
    zombie = start("freeze", lease=1)
    read_until(zombie, "holding")
    os.waitid(os.P_PID, zombie.pid, os.WSTOPPED)
    end(start("finish", lease=1), 0)
    stored = load_all(tmp_path)
    zombie.send_signal(signal.SIGCONT)
    output, errors = zombie.communicate(timeout=60)
    assert zombie.returncode == 0, errors
    assert output.split() == ["Refused"]  # its caller is told what came of the run
    assert [json.loads(line)["event"] for line in errors.splitlines()] == ["run.left"], errors
    assert load_all(tmp_path) == stored, "it wrote"
    effects = effects_by_run(tmp_path)["o-1"]
    assert [e.key for e in effects if e.pid == zombie.pid] == ["take", "refuse"], "it compensated"
    check(REFUSED, stored["o-1"], effects, crashes=1)


def test_a_dead_peer_of_another_host_is_noticed_within_one_lease(start: Start, tmp_path: Path) -> None:
    lease = 2.0
    other = start("watch", host="there", lease=lease)
    victim = start("serve", host="here", lease=lease, long=60)
    read_until(other, "ready")
    read_until(victim, "long", "ready")
    time.sleep(0.7 * lease)  # both beat at their usual pace
    victim.kill()
    victim.wait()
    killed_at = time.monotonic()
    while not any(e.pid == other.pid for e in read_effects(tmp_path / "effects")):
        assert time.monotonic() - killed_at < lease + 3, "nobody has taken its run over"  # 3 for a busy machine
        time.sleep(0.01)
    assert time.monotonic() - killed_at > 0.3, "it was no matter of the lease"
