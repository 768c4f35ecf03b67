"""kill -9 around pivots, steps that run at most once, and transactions: nothing is done twice, or half.

What is killed, who answers and what is judged is in `once`; here it is only asked for.
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

# The least number of kills that each comes to: its writes, and its effects.
SWEEPS = {
    ("pivot", "asyncio"): 10 + 6,
    ("pivot_in_gather", "trio"): 8 + 5,
    ("pivot_undone", "asyncio"): 11 + 6,
    ("at_most_once", "asyncio"): 8 + 5,
    ("at_most_once", "trio"): 8 + 5,
    ("transactional", "asyncio"): 9 + 13,
    ("transactional_threads", "trio"): 4 + 4,
}
Sweep: TypeAlias = tuple[str, str]


def run_sweep(sweep: Sweep, folder: Path) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    command = [sys.executable, str(HERE / "once.py"), sweep[0], str(folder), sweep[1]]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=ENVIRONMENT)


@pytest.mark.parametrize("sweep", SWEEPS, ids="-".join)
def test_killed_behind_every_write_and_every_effect(sweep: Sweep, tmp_path: Path) -> None:
    done = run_sweep(sweep, tmp_path / "sweep")
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["kills"] >= SWEEPS[sweep], counts
