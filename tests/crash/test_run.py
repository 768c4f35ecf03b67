"""A bounded part of the chaos; see `run.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.mark.parametrize(("backend", "seed"), [("asyncio", 1), ("trio", 2)])
def test_chaos(backend: str, seed: int) -> None:
    command = [sys.executable, str(Path(__file__).with_name("run.py"))]
    command += ["--minutes", "0.1", "--seed", str(seed), "--backend", backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = json.loads(done.stdout)
    assert counts["faults"] == []
    assert counts["kills"] >= 8
    assert counts["runs"] >= 30  # on a machine that has much else to do
    assert counts["taken_over"] >= 5
