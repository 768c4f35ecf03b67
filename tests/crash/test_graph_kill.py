"""kill -9 around the writes and effects of graphs: every node is recorded once, and sees the state that it saw before.

What is killed and what is judged is in `graphs`; here it is only asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import pytest

import flowlet

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}

# The least number of kills that each comes to: its writes, twice, and its effects.
SWEEPS = {
    ("diamond", "asyncio", "all"): 2 * 8 + 6,
    ("diamond", "trio", "all"): 2 * 8 + 6,
    ("looping", "asyncio", "all"): 2 * 9 + 8,
    ("looping", "trio", "all"): 2 * 9 + 8,
    ("reviewed", "asyncio", "all"): 2 * 9 + 3,
    ("reviewed", "trio", "all"): 2 * 9 + 3,
    ("diamond", "asyncio", "twice"): 8 * 4,
}
Sweep: TypeAlias = tuple[str, str, str]


def run_sweep(sweep: Sweep, folder: Path) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    command = [sys.executable, str(HERE / "graphs.py"), sweep[0], str(folder), *sweep[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def sweeps(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Sweep], Future[subprocess.CompletedProcess[str]]]]:
    """Make those that were asked for side by side, as many as there are processors."""
    folder = tmp_path_factory.mktemp("graphs")
    mine = [i for i in request.session.items if i.fspath == request.path]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        wanted = [i.callspec.params["sweep"] for i in mine if "sweep" in getattr(i, "fixturenames", ())]
        futures = {sweep: pool.submit(run_sweep, sweep, folder / "-".join(sweep)) for sweep in wanted}
        yield futures.__getitem__
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("sweep", SWEEPS, ids="-".join)
def test_killed_around_every_write_and_behind_every_effect(
    sweep: Sweep, sweeps: Callable[[Sweep], Future[subprocess.CompletedProcess[str]]]
) -> None:
    done = sweeps(sweep).result()
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["kills"] >= SWEEPS[sweep], counts
