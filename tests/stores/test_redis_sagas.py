"""Sagas on a Redis server: they survive their process and the server, and belong to one process at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
import workloads
from evidence import check, effects_by_run, owners, read_effects
from redis_server import DURABLE, Server
from workloads import WORKLOADS, Refused, registries

import flowlet
from flowlet import Flowlet
from flowlet.errors import StoreUnavailable
from flowlet.store import Stored
from flowlet.stores.redis import RedisStore

RUNS = 60
HOUR = 3600
LANES = 16
KILLS = 3

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, *DURABLE) as server:
        yield server


@pytest.fixture
def start(tmp_path: Path, server: Server) -> Iterator[Start]:
    """Start `redis_peer.py`; what still runs at the end of the test is killed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}
    started: list[subprocess.Popen[str]] = []

    def start_one(ahead: float, command: str, *options: object) -> subprocess.Popen[str]:
        script = str(Path(__file__).with_name("redis_peer.py"))
        arguments = [ahead, command, f"{server.url}?durability=power", tmp_path / "effects", *options]
        process = subprocess.Popen(
            [sys.executable, script, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def load(server: Server) -> dict[str, Stored]:
    async def load_all() -> dict[str, Stored]:
        store = RedisStore(server.url)
        found = {head.id: await store.load(head.id) for head in await store.scan(kind="run", limit=1000)}
        await store.close()
        return {id: stored for id, stored in found.items() if stored is not None}

    return anyio.run(load_all)


def test_processes_whose_clocks_are_apart_execute_nothing_twice(start: Start, server: Server, tmp_path: Path) -> None:
    peers = [start(ahead, "share", 0, 1, RUNS, 0) for ahead in (-HOUR, 0, HOUR)]
    for peer in peers:
        output, _ = peer.communicate(timeout=90)
        assert peer.returncode == 0
        assert json.loads(output.splitlines()[-1])["refused"] == RUNS
    effects = effects_by_run(tmp_path / "effects")
    runs = load(server)
    assert sorted(runs) == sorted(f"o-{n}" for n in range(RUNS))
    for id, stored in runs.items():
        assert len(owners(effects[id])) == 1
        check(WORKLOADS["failing"], stored, effects[id], crashes=0)
    assert set(Counter(e.pid for e in read_effects(tmp_path / "effects"))) <= {peer.pid for peer in peers}


@pytest.mark.parametrize("kill_at", [1, 60, 150])
def test_the_runs_of_a_killed_process_are_taken_over(
    start: Start, server: Server, tmp_path: Path, kill_at: int
) -> None:
    victim = start(HOUR, "share", 0, 2, RUNS, kill_at)
    other = start(0, "share", 1, 2, RUNS, 0)
    assert victim.wait(timeout=90) == -signal.SIGKILL
    output, _ = other.communicate(timeout=90)
    assert other.returncode == 0
    assert json.loads(output.splitlines()[-1])["refused"] == RUNS
    effects = effects_by_run(tmp_path / "effects")
    taken = 0
    runs = load(server)
    assert len(runs) == RUNS
    for id, stored in runs.items():
        turns = owners(effects[id])
        assert turns in ([turns[0]], [victim.pid, other.pid]), f"{id} was worked on by {turns}"
        taken += len(turns) == 2
        check(WORKLOADS["failing"], stored, effects[id], crashes=int(turns[0] == victim.pid))
    assert taken or kill_at == 1


@pytest.mark.parametrize("name", ["failing", "parallel"])
def test_a_server_started_again_under_load_loses_nothing_and_fails_nothing(
    server: Server, tmp_path: Path, name: str
) -> None:
    workloads.effects_file = str(tmp_path / "effects")
    started: set[str] = set()
    ended: set[str] = set()
    interrupted: list[set[str]] = []
    is_over = False

    async def lane(flow: Flowlet, lane: int) -> None:
        number = lane
        while not is_over:
            id = f"o-{number}"
            try:
                started.add(id)
                await (await flow.start(WORKLOADS[name].definition, number, id=id)).result()
            except StoreUnavailable:
                await anyio.sleep(0.02)
                continue
            except Refused:
                pass
            ended.add(id)
            number += LANES

    async def use() -> None:
        nonlocal is_over
        flow = Flowlet(RedisStore(f"{server.url}?durability=power&socket_timeout=3"), registry=registries[name])
        async with flow, anyio.create_task_group() as group:
            for number in range(LANES):
                group.start_soon(lane, flow, number)
            for _ in range(KILLS):
                await anyio.sleep(0.2)
                interrupted.append(started - ended)
                server.kill()
                await anyio.sleep(0.2)
                await anyio.to_thread.run_sync(server.start)
                with anyio.fail_after(30):
                    while not interrupted[-1] <= ended:
                        await anyio.sleep(0.01)
            is_over = True

    anyio.run(use)
    assert all(len(runs) > LANES / 2 for runs in interrupted)
    runs = load(server)
    assert set(runs) == started == ended
    effects = effects_by_run(tmp_path / "effects")
    for id, stored in runs.items():
        check(WORKLOADS[name], stored, effects[id], crashes=sum(id in runs for runs in interrupted))
