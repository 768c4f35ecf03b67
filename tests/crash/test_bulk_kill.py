"""kill -9, or being stopped, in the middle of bulk operations: each item is recorded once, whoever does the rest.

The trials are made by `bulk_killing` in processes that fork; here they are only asked for.
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
    ("every_write", "asyncio"): 14 + 5,
    ("every_write", "trio"): 14 + 5,
    ("every_item", "asyncio"): 12,
    ("in_a_row", "asyncio"): 20,
    ("in_a_row", "trio"): 20,
    ("large", "asyncio"): 8 + 3,
    ("stopped", "asyncio"): 4,
    ("stopped", "trio"): 4,
    ("side_by_side", "asyncio"): 13,
    ("side_by_side", "trio"): 13,
}
"""The sweeps on each event loop, and the least number of kills that they come to."""


@pytest.mark.parametrize("sweep", SWEEPS, ids="-".join)
def test_killed_in_the_middle(sweep: tuple[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "bulk_killing.py"), sweep[0], str(tmp_path), sweep[1]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["kills"] >= SWEEPS[sweep], counts
