"""The pipeline over weather stations: what it says, and that killed in any step it goes on where it was."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

STATIONS = ["ALM", "BRK", "CLF", "DUN", "ELM", "FRN", "GLN"]
STEPS = 14
"""Steps of a run, each item of the eight stations in the file included."""


class Office:
    """The files of one run, in a directory of their own."""

    def __init__(self, folder: Path, script: Path) -> None:
        self.script = script
        self.folder = folder

    def run(self, *options: str, code: int = 0) -> str:
        command = [sys.executable, str(self.script), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=self.folder)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def table(self) -> list[tuple[str, int]]:
        with closing(sqlite3.connect(self.folder / "weather.db")) as table:
            return table.execute("SELECT station, readings FROM summaries ORDER BY station").fetchall()


@pytest.fixture
def office(tmp_path: Path, root: Path) -> Office:
    return Office(tmp_path, root / "examples" / "etl.py")


def counts(output: str) -> tuple[int, int]:
    found = re.search(r"recovered (\d+) steps of earlier runs, executed (\d+) now", output)
    assert found is not None, output
    return int(found[1]), int(found[2])


def test_what_it_says(office: Office) -> None:
    output = office.run()
    assert re.findall(r"^([A-Z]{3})  ", output, re.MULTILINE) == STATIONS
    assert "frost at        Almond Hill, Dunmore, Elm Park, Fern Valley, Glen Water" in output
    assert "rejected lines  12, such as line 15: " in output
    assert re.search(r"^summarize +completed +8 ", output, re.MULTILINE)
    assert "LookupError: nobody knows station XQZ" in output
    assert counts(output) == (0, STEPS)
    assert [station for station, _ in office.table()] == STATIONS
    assert sum(readings for _, readings in office.table()) == 327


def test_run_again_it_does_nothing_and_says_the_same(office: Office) -> None:
    first = office.run().rpartition("recovered")[0]
    again = office.run()
    assert again.rpartition("recovered")[0] == first
    assert counts(again) == (STEPS, 0)
    assert (office.folder / "etl.log").read_text().count("\n") == 1


@pytest.mark.parametrize("where", ["extract", "audit", "stations", "summarize", "warn", "load", "~log"])
def test_killed_in_any_step_it_goes_on(office: Office, where: str) -> None:
    office.run("--crash-in", where, code=-signal.SIGKILL)
    output = office.run()
    recovered, executed = counts(output)
    assert recovered + executed == STEPS, "a step that was on record was executed again, or one is missing"
    if where in ("warn", "load", "~log"):
        assert recovered >= 3
    assert re.findall(r"^([A-Z]{3})  ", output, re.MULTILINE) == STATIONS
    assert (office.folder / "etl.log").read_text() == (
        f"etl:weather.csv: 7 stations of {office.script.with_name('weather.csv')}\n"
    )


def test_another_file_is_another_run(office: Office) -> None:
    office.run()
    other = office.folder / "other.csv"
    other.write_text("time,station,temperature,humidity\n2026-01-17T00:00:00,ELM,4.2,80\nnonsense\n")
    output = office.run("--csv", str(other))
    assert re.findall(r"^([A-Z]{3})  .* (\S+) +\S+$", output, re.MULTILINE) == [("ELM", "4.0")]
    assert "frost at        none" in output
    assert re.search(r"^warn +skipped +0 +0\.0  its condition was false$", output, re.MULTILINE)


def test_a_file_that_is_not_there_fails_and_is_logged(office: Office) -> None:
    missing = office.folder / "missing.csv"
    office.run("--csv", str(missing), code=1)
    assert (office.folder / "etl.log").read_text().startswith("etl:missing.csv: failed: [Errno 2] No such file")
