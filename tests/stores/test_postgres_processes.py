"""Several processes on one PostgreSQL store, some of them killed: each run ends once, each row is there once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from evidence import Effect, check, read_effects
from postgres_server import database_url, new_database, run_sql
from workloads import WORKLOADS

import flowlet
from flowlet.store import Stored

pytest.importorskip("asyncpg")

from flowlet.stores.postgres import PostgresStore

HERE = Path(__file__).parent
PLACES = [str(Path(flowlet.__file__).parent.parent), str(HERE), str(HERE.parent / "crash")]
RUNS = 60

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def url() -> Iterator[str]:
    with new_database(database_url()) as made:
        yield made


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `postgres_peer.py`; what still runs at the end of the test is killed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PLACES)}
    started: list[subprocess.Popen[str]] = []

    def start_one(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, str(HERE / "postgres_peer.py"), *map(str, arguments)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def load(url: str, count: int) -> dict[str, Stored]:
    async def load_all() -> dict[str, Stored]:
        store = PostgresStore(url)
        found = {f"o-{n}": await store.load(f"o-{n}") for n in range(count)}
        await store.close()
        return {id: stored for id, stored in found.items() if stored is not None}

    return asyncio.run(load_all())


def effects_by_run(path: Path) -> dict[str, list[Effect]]:
    found: dict[str, list[Effect]] = defaultdict(list)
    for effect in read_effects(path):
        found[effect.run].append(effect)
    return found


def ended_well(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    assert json.loads(output.splitlines()[-1]) == {"refused": RUNS}


@pytest.mark.parametrize("shift", [0, 3600])
def test_two_processes_share_the_runs_and_execute_none_twice(
    start: Start, url: str, tmp_path: Path, shift: int
) -> None:
    """Both start all of them; of the second the clock may be an hour fast, which makes no difference."""
    peers = [start("share", url, tmp_path / "effects", 0, 1, RUNS, 0, n * shift) for n in range(2)]
    for peer in peers:
        ended_well(peer)
    effects = effects_by_run(tmp_path / "effects")
    for id, stored in load(url, RUNS).items():
        check(WORKLOADS["failing"], stored, effects.pop(id), crashes=0)
    assert not effects


@pytest.mark.parametrize("kill_at", [1, 30, 70])
def test_the_runs_of_a_killed_process_are_taken_over(start: Start, url: str, tmp_path: Path, kill_at: int) -> None:
    victim = start("share", url, tmp_path / "effects", 0, 3, RUNS, kill_at, 0)
    others = [start("share", url, tmp_path / "effects", n, 3, RUNS, 0, 0) for n in (1, 2)]
    assert victim.wait(timeout=90) == -signal.SIGKILL
    for peer in others:
        ended_well(peer)
    effects = effects_by_run(tmp_path / "effects")
    found = load(url, RUNS)
    assert len(found) == RUNS
    for id, stored in found.items():
        check(WORKLOADS["failing"], stored, effects[id], crashes=int(effects.pop(id)[0].pid == victim.pid))
    assert not effects


@pytest.mark.parametrize("when", ["before", "within", "uncommitted", "committed"])
def test_a_transactional_step_is_done_once_whenever_its_process_dies(start: Start, url: str, when: str) -> None:
    run_sql(url, "CREATE TABLE public.booked (name int)")
    victim = start("book", url, when)
    assert victim.wait(timeout=30) == -signal.SIGKILL
    committed = run_sql(url, "SELECT name FROM public.booked")
    assert committed == ([(7,)] if when == "committed" else [])
    heir = start("book", url, "never")
    output, _ = heir.communicate(timeout=60)
    assert heir.returncode == 0
    assert json.loads(output) == {"result": 8}
    assert run_sql(url, "SELECT name FROM public.booked") == [(7,)]
