"""kill -9 around the writes of an approval chain, and two processes that want to be the last to decide.

What is killed and what is judged is in `approval_killing` and `approval_racing`; here it is only asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flowlet

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}

# The least number of kills that each comes to: a start, two timers and five decisions, each with what follows from it.
SWEEPS = {
    ("trio", "before"): 20,
    ("asyncio", "after"): 20,
    ("trio", "effect"): 12,
}

TRIALS = 50


def run_script(name: str, folder: Path, *args: str) -> dict[str, int]:
    folder.mkdir()
    command = [sys.executable, str(HERE / name), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-4000:]
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counts


@pytest.mark.parametrize("sweep", SWEEPS, ids="-".join)
def test_killed_around_every_write_and_behind_every_effect(sweep: tuple[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    counts = run_script("approval_killing.py", folder, "chain", str(folder), *sweep)
    assert counts["kills"] >= SWEEPS[sweep], counts


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_of_two_processes_one_is_the_last(backend: str, tmp_path: Path) -> None:
    folder = tmp_path / "race"
    counts = run_script("approval_racing.py", folder, str(folder), backend, str(TRIALS))
    assert counts["decided"] == TRIALS
    assert counts["too_late"] == TRIALS
    assert counts["by_both"] == 2, "one process has always been faster: they did not race"
