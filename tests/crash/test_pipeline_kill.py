"""kill -9 before and after every journal write of a pipeline: parallel steps, items, and what is done in any case.

Whatever dies, each step, item and closing step is on record exactly once, and the closing ones come last. The trials
are made by `killing`, as for sagas; the pipelines are ``sewing`` and ``sewing_failing`` of `workloads`.
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

SWEEPS = {
    ("sewing", "asyncio", "sweep"): 2 * 15,
    ("sewing", "trio", "sweep"): 2 * 15,
    ("sewing", "asyncio", "in_a_row"): 10 + 11,
    ("sewing_failing", "asyncio", "sweep"): 2 * 15,
    ("sewing_failing", "trio", "sweep"): 2 * 15,
    ("sewing_failing", "asyncio", "in_a_row"): 10 + 11,
    ("sewing_failing", "asyncio", "every"): 2 * 15,
}
"""The sweeps, and the least number of kills that they come to."""


@pytest.mark.parametrize("sweep", SWEEPS, ids="-".join)
def test_killed_at_every_write(sweep: tuple[str, str, str], tmp_path: Path) -> None:
    workload, backend, kind = sweep
    command = [sys.executable, str(HERE / "killing.py"), workload, str(tmp_path), backend, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["kills"] >= SWEEPS[sweep], counts
    assert counts["processes"] >= counts["kills"] + counts["trials"]
