"""The example's commands are processes of their own; nothing is left in between but the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


class Office:
    """A folder with the file in it, and where the commands are given."""

    def __init__(self, folder: Path, script: Path) -> None:
        self.folder = folder
        self.script = script

    def give(self, command: str, expect: int = 0) -> list[str]:
        """Give a command, and return the lines that it prints."""
        done = subprocess.run(
            [sys.executable, str(self.script), *command.split()],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return (done.stdout + (done.stderr if expect else "")).splitlines()


@pytest.fixture
def office(tmp_path: Path, root: Path) -> Office:
    return Office(tmp_path, root / "examples" / "expenses.py")


def test_submitted_decided_and_paid_by_different_processes(office: Office) -> None:
    waits = "e-7 waits on level manager for any manager"
    assert office.give("submit e-7 --by ann --amount 25000") == [
        "  mail: opened manager: any manager can decide",
        waits,
    ]
    assert office.give("submit e-7 --by ann --amount 25000")[-1] == waits  # nothing is done again
    assert office.give("inbox ann") == office.give("inbox fay") == []
    assert "level manager, until" in office.give("inbox bob")[0]
    assert "cannot decide on it" in office.give("approve e-7 --by ann", expect=1)[-1]
    assert office.give("approve e-7 --by bob --comment fine") == [
        "bob has approved level manager",
        "  mail: approved manager",
        "  mail: opened finance: fay, fin can decide",
        "e-7 waits on level finance for fay, fin",
    ]
    assert office.give("delegate e-7 --by fay --to flo")[-1] == "e-7 waits on level finance for fin, flo"
    assert office.give("approve e-7 --by flo")[0] == "flo has approved level finance on behalf of fay"
    assert office.give("approve e-7 --by fin")[-2:] == ["  paid 25000 to ann", "e-7 is settled: paid 25000 to ann"]
    assert "has ended" in office.give("approve e-7 --by dan", expect=1)[-1]
    history = [line.split("  ")[1] for line in office.give("show e-7")[:-1]]
    assert history[0] == "submitted by ann"
    assert 'approved manager by bob "fine"' in history
    assert any(line.startswith("refused manager by ann") for line in history)
    assert history[-1].startswith("ended")


def test_sent_back_changed_and_withdrawn(office: Office) -> None:
    office.give("submit e-8 --by ann --amount 25000")
    office.give("approve e-8 --by bob")
    assert office.give("reject e-8 --by fin")[-1] == "e-8 waits on level manager for any manager"
    assert office.give("change e-8 --by ann --amount 9000")[0] == "ann has changed it to 9000: it begins anew"
    assert office.give("approve e-8 --by bob")[-1] == "e-8 is settled: paid 9000 to ann"
    office.give("submit e-9 --by bob --amount 5")
    assert "cannot withdraw" in office.give("withdraw e-9 --by ann", expect=1)[-1]
    assert office.give("withdraw e-9 --by bob")[-1] == "e-9 is settled: withdrawn: bob has withdrawn the request"
    assert "there is no run" in office.give("show e-10", expect=1)[-1]
