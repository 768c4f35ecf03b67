"""The example sends every invoice, however often it is killed, and says which could not be sent."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

CONCURRENCY, COUNT, BATCH = 16, 1200, 100


class Office:
    """One database and one outbox, in a folder of their own."""

    def __init__(self, folder: Path, script: Path) -> None:
        self._folder = folder
        self._script = script

    def start(self, *options: str) -> subprocess.Popen[str]:
        files = ["--db", str(self._folder / "i.db"), "--outbox", str(self._folder / "i.outbox")]
        numbers = ["--count", str(COUNT), "--concurrency", str(CONCURRENCY)]
        command = [sys.executable, str(self._script), *files, *numbers, *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *options: str) -> tuple[int, str]:
        process = self.start(*options)
        output, errors = process.communicate(timeout=60)
        assert all("worker.dead" in line for line in errors.splitlines()), errors
        return process.returncode, output

    def letters(self) -> Counter[str]:
        lines = (self._folder / "i.outbox").read_text(encoding="utf-8").splitlines()
        return Counter(line.partition("\t")[0] for line in lines)


@pytest.fixture
def office(tmp_path: Path, root: Path) -> Office:
    return Office(tmp_path, root / "examples" / "invoices.py")


SENT = {f"invoices-{COUNT}/{n}" for n in range(COUNT) if n % 100 != 50}


def check(output: str) -> None:
    assert output.startswith(f"completed: {COUNT:,} of {COUNT:,} items in ")
    assert "12 failed" in output
    assert re.search(r"item 50 \(Invoice\(.*NoAddress: customer 50 has no address", output)


def test_undisturbed(office: Office) -> None:
    code, output = office.run()
    assert code == 0
    check(output)
    assert office.letters() == Counter(SENT)
    assert f"letters: {len(SENT):,} for {len(SENT):,} invoices" in output
    assert office.run() == (code, output), "called once more, it did something"


def test_killed_again_and_again(office: Office) -> None:
    kills = [1, 300, 17, 250]
    for kill in kills:
        assert office.run("--crash-at", str(kill)) == (-signal.SIGKILL, "")
    code, output = office.run()
    assert code == 0
    check(output)
    letters = office.letters()
    assert set(letters) == SENT
    assert letters.total() - len(SENT) <= len(kills) * (CONCURRENCY + 2 * BATCH)


def test_two_at_once(office: Office) -> None:
    both = [office.start(), office.start()]
    for process in both:
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        check(output)
    assert office.letters() == Counter(SENT)
