"""kill -9 before and after every journal write of a run: it always ends as it must, each thing once.

What is killed is in `workloads`, what is judged in `evidence`, and the trials are made by `killing` in
processes that fork; here they are only asked for.
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

# The sweeps of each workload on each event loop, and the least number of kills that they come to: an undisturbed
# run makes so many appends, and each of them is killed before and after.
SWEEPS = {
    ("three", "asyncio", "four_runs"): 2 * (1 + 4 * 4),
    ("three_failing", "asyncio", "four_runs"): 2 * (1 + 4 * 6),
    ("three_failing", "trio", "four_runs"): 2 * (1 + 4 * 6),
    ("long", "asyncio", "ten_recoveries"): 6 * 11,
    ("long_failing", "asyncio", "ten_recoveries"): 6 * 11,
    ("long", "asyncio", "heirs"): 10 * 2,
    ("failing", "asyncio", "sweep"): 2 * 9,
    ("failing", "asyncio", "sweep_twice"): 9 * 8,
    ("failing", "asyncio", "every"): 2 * 13,
    ("failing", "asyncio", "in_a_row"): 8 + 11,
    ("failing", "trio", "sweep"): 2 * 9,
    ("assembled", "asyncio", "sweep"): 2 * 9,
    ("class", "asyncio", "sweep"): 2 * 9,
    ("stubborn", "asyncio", "sweep"): 2 * 12,
    ("working", "asyncio", "sweep"): 2 * 6,
    ("parallel", "asyncio", "sweep"): 2 * 8,
    ("parallel", "trio", "sweep"): 2 * 8,
    ("parallel_failing", "asyncio", "sweep"): 2 * 9,
    ("parallel_failing", "trio", "sweep"): 2 * 9,
    ("parallel_failing", "asyncio", "in_a_row"): 8 + 11,
    ("retrying", "asyncio", "sweep"): 2 * 14,
    ("retrying", "asyncio", "in_a_row"): 13 + 11,
    ("pipeline", "asyncio", "sweep"): 2 * 8,
    ("pipeline", "trio", "sweep"): 2 * 8,
    ("pipeline", "asyncio", "in_a_row"): 6 + 11,
}

Sweep: TypeAlias = tuple[str, str, str]


def run_sweep(sweep: Sweep, folder: Path) -> subprocess.CompletedProcess[str]:
    workload, backend, kind = sweep
    folder.mkdir()
    command = [sys.executable, str(HERE / "killing.py"), workload, str(folder), backend, kind]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT)


@pytest.mark.parametrize("sweep", SWEEPS, ids="-".join)
def test_killed_at_every_write(sweep: Sweep, tmp_path: Path) -> None:
    done = run_sweep(sweep, tmp_path / "sweep")
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["kills"] >= SWEEPS[sweep], counts
    assert counts["processes"] >= counts["kills"] + counts["trials"]
