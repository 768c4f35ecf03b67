"""kill -9 before and after every append of a machine whose states invoke a saga and a function.

What is killed and what is judged is in `chart_worker`, which makes the trials in processes that fork; here they are
only asked for.
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

# What becomes of the machine, the event loop, and the least number of appends that an undisturbed process makes.
SWEEPS = {("sent", "asyncio"): 10, ("refused", "trio"): 8, ("late", "asyncio"): 8}

Sweep: TypeAlias = tuple[str, str]
Done: TypeAlias = "subprocess.CompletedProcess[str]"


def run_sweep(sweep: Sweep, folder: Path) -> Done:
    folder.mkdir()
    command = [sys.executable, str(HERE / "chart_worker.py"), sweep[0], str(folder), sweep[1]]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT)


@pytest.mark.parametrize("sweep", SWEEPS, ids="-".join)
def test_killed_at_every_append(sweep: Sweep, tmp_path: Path) -> None:
    done = run_sweep(sweep, tmp_path / "sweep")
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["appends"] >= SWEEPS[sweep], counts
    # The last appends of a process vary by one or two with what its timers and heartbeats fall in with.
    assert counts["kills"] >= 2 * (counts["appends"] - 2), counts
