"""kill -9 around the writes and effects of runs that wait: every time, signal and child is on record once.

What is killed and what is judged is in `waits`; here it is only asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TypeAlias

import pytest

import flowlet

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}
Sweep: TypeAlias = tuple[str, str, str]

# The least number of kills that each comes to: its writes, and behind them its effects as well. The script takes every
# other combination, too; the suite has those that differ most.
SWEEPS: dict[Sweep, int] = {
    ("sleeping", "asyncio", "behind"): 15,
    ("receiving", "trio", "before"): 10,
    ("gathering", "trio", "before"): 10,
    ("gathering", "asyncio", "behind"): 11,
    ("awaiting", "trio", "before"): 20,
    ("awaiting", "asyncio", "behind"): 20,
    ("starting", "asyncio", "behind"): 20,
    ("cancelled", "trio", "before"): 20,
    ("failing", "asyncio", "behind"): 20,
    ("retrying", "trio", "before"): 10,
}


def run_script(script: str, folder: Path, *arguments: str) -> dict[str, int]:
    """Run one of the scripts beside this file in a process that forks; return its counts."""
    folder.mkdir()
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-4000:]
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counts


@pytest.mark.parametrize("sweep", SWEEPS, ids="-".join)
def test_killed_around_every_write_and_behind_every_effect(sweep: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    counts = run_script("waits.py", folder, sweep[0], str(folder), *sweep[1:])
    assert counts["kills"] >= SWEEPS[sweep], counts


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_sleep_of_a_month_outlasts_its_processes(backend: str, tmp_path: Path) -> None:
    folder = tmp_path / "month"
    assert run_script("wait_restarts.py", folder, str(folder), backend) == {"kills": 3}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_signals_of_other_processes_are_received_once_and_in_order(backend: str, tmp_path: Path) -> None:
    folder = tmp_path / "peers"
    assert run_script("wait_peers.py", folder, str(folder), backend) == {"signals": 1000}
