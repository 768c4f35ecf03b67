"""kill -9 before and after every append of a machine whose states invoke a saga and a function.

What is killed and what is judged is in `chart_worker`, which makes the trials in processes that fork; here they are
only asked for, all side by side.
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

# What becomes of the machine, the event loop, and the least number of appends that an undisturbed process makes.
SWEEPS = {("sent", "asyncio"): 10, ("refused", "trio"): 8, ("late", "asyncio"): 8}

Sweep: TypeAlias = tuple[str, str]
Done: TypeAlias = "subprocess.CompletedProcess[str]"


def run_sweep(sweep: Sweep, folder: Path) -> Done:
    folder.mkdir()
    command = [sys.executable, str(HERE / "chart_worker.py"), sweep[0], str(folder), sweep[1]]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def sweeps(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Sweep], Future[Done]]]:
    """Make the sweeps that were asked for side by side."""
    folder = tmp_path_factory.mktemp("chart-works")
    with ThreadPoolExecutor(len(SWEEPS)) as pool:
        wanted = [i.callspec.params["sweep"] for i in request.session.items if _is_ours(i)]  # type: ignore[attr-defined]
        futures = {sweep: pool.submit(run_sweep, sweep, folder / "-".join(sweep)) for sweep in wanted}
        yield futures.__getitem__
        pool.shutdown(cancel_futures=True)


def _is_ours(item: pytest.Item) -> bool:
    return item.path == Path(__file__) and "sweep" in getattr(item, "fixturenames", ())


@pytest.mark.parametrize("sweep", SWEEPS, ids="-".join)
def test_killed_at_every_append(sweep: Sweep, sweeps: Callable[[Sweep], Future[Done]]) -> None:
    done = sweeps(sweep).result()
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["appends"] >= SWEEPS[sweep], counts
    # The last appends of a process vary by one or two with what its timers and heartbeats fall in with.
    assert counts["kills"] >= 2 * (counts["appends"] - 2), counts
