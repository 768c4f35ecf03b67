"""Processes that live for 300 ms each, and 300 runs that end all the same; see `restarts.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flowlet

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_queued_runs_end_although_no_process_lives_long(tmp_path: Path, backend: str) -> None:
    script = str(Path(__file__).with_name("restarts.py"))
    command = [sys.executable, script, str(tmp_path), backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout)
    assert counts["runs"] == 300
    assert counts["kills"] >= 4  # a run has a second of work, and a process a third of one: also if one has them all
    assert counts["taken_over"] == 300
