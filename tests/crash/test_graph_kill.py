"""kill -9 around the writes and effects of graphs: every node is recorded once, and sees the state that it saw before.

What is killed and what is judged is in `graphs`; here it is only asked for.
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

# The least number of kills that each comes to: its writes, twice, and its effects.
SWEEPS = {
    ("diamond", "asyncio", "all"): 2 * 8 + 6,
    ("diamond", "trio", "all"): 2 * 8 + 6,
    ("diamond", "asyncio", "twice"): 8 * 4,
    ("looping", "asyncio", "all"): 2 * 9 + 8,
    ("looping", "trio", "all"): 2 * 9 + 8,
    ("reviewed", "asyncio", "all"): 2 * 9 + 3,
    ("reviewed", "trio", "all"): 2 * 9 + 3,
}
Sweep: TypeAlias = tuple[str, str, str]


def run_sweep(sweep: Sweep, folder: Path) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    command = [sys.executable, str(HERE / "graphs.py"), sweep[0], str(folder), *sweep[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT)


@pytest.mark.parametrize("sweep", SWEEPS, ids="-".join)
def test_killed_around_every_write_and_behind_every_effect(sweep: Sweep, tmp_path: Path) -> None:
    done = run_sweep(sweep, tmp_path / "sweep")
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["kills"] >= SWEEPS[sweep], counts
