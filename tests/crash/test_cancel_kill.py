"""Cancelled runs: kill -9 before and after every write, and cancellations from another process against ends.

What is done and judged is in `cancelling`, in processes that fork; here it is only asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flowlet

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}

# What is asked for, and the least number of kills that it comes to.
SWEEPS = {
    ("sweep", "cancelled", "asyncio"): 20,
    ("sweep", "cancelled_together", "trio"): 14,  # what ends together is one append
    ("sweep", "cancelled_abroad", "asyncio"): 10,
    ("sweep", "family", "asyncio"): 24,
    ("sweep", "closed", "asyncio"): 12,
    ("sweep", "closed", "trio"): 12,
    ("sweep", "resumed_together", "asyncio"): 14,
}
RACES = [("race", "asyncio"), ("race", "trio")]

Ask = Callable[[tuple[str, ...]], Any]


def run(command: tuple[str, ...], folder: Path) -> Any:
    folder.mkdir()
    *words, backend = command
    options = [sys.executable, str(HERE / "cancelling.py"), *words, str(folder), backend]
    done = subprocess.run(options, capture_output=True, text=True, timeout=200, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Do what is asked for."""
    return lambda command: run(command, tmp_path / "-".join(command))


@pytest.mark.parametrize("command", SWEEPS, ids="-".join)
def test_killed_at_every_write(command: tuple[str, ...], ask: Ask) -> None:
    """In the end it is cancelled, and each step that has a result was undone once."""
    assert ask(command)["kills"] >= SWEEPS[command]


@pytest.mark.parametrize("command", RACES, ids="-".join)
def test_what_was_cancelled_in_time_never_completes(command: tuple[str, ...], ask: Ask) -> None:
    found = ask(command)
    assert 0 < found["cancelled"] <= found["runs"]
    assert found["seconds"] < 5  # half of a lease, on a busy machine; it takes 0.1 until a cancellation is noticed
