"""The example's commands are processes of their own, and each does only what comes next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

DOUBTFUL = "This is the the text.\nTODO: an end.\n"
CHECKED = ["checked for long sentences", "checked for doubled words", "checked for open ends"]


class Desk:
    """A folder in which articles are written, and where the commands are given."""

    def __init__(self, folder: Path, script: Path) -> None:
        self.folder = folder
        self.script = script

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def give(self, *command: str, expect: int = 0) -> list[str]:
        """Give a command, and return the lines that it prints."""
        done = subprocess.run(
            [sys.executable, str(self.script), *command], cwd=self.folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return (done.stdout + (done.stderr if expect else "")).splitlines()

    def published(self, name: str) -> str | None:
        path = self.folder / "published" / name
        return path.read_text() if path.exists() else None


@pytest.fixture
def desk(tmp_path: Path, root: Path) -> Desk:
    return Desk(tmp_path, root / "examples" / "review.py")


def heads(lines: Sequence[str]) -> list[str]:
    return [line.partition(":")[0] for line in lines]


def test_an_article_without_doubts_is_published_at_once(desk: Desk) -> None:
    desk.write("a.md", "All is well.\n")
    lines = desk.give("submit", "a.md")
    assert lines[0] == "read a.md"
    assert sorted(heads(lines[1:4])) == sorted(CHECKED)
    assert lines[4:] == ["weighed 0 findings", f"published {Path('published/a.md')}", "a.md is completed"]
    assert desk.published("a.md") == "All is well.\n"
    assert desk.give("submit", "a.md") == ["a.md is completed"]  # nothing is done again


def test_an_editor_decides_in_another_process(desk: Desk) -> None:
    desk.write("a.md", DOUBTFUL)
    assert desk.give("submit", "a.md")[-2:] == ["weighed 2 findings", "a.md is waiting"]
    assert desk.give("list") == [
        "a.md is waiting",
        "  a doubled word: the the",
        "  an open end: TODO: an end.",
    ]
    assert desk.published("a.md") is None

    desk.write("a.md", "This is the text.\nTODO: an end.\n")
    lines = desk.give("decide", "a.md", "--remark", "once is enough")
    assert lines[0] == "read a.md"
    assert lines[-2:] == ["weighed 1 findings", "a.md is waiting"]
    assert desk.give("list") == ["a.md is waiting", "  an open end: TODO: an end."]

    lines = desk.give("decide", "a.md", "--approve")
    assert lines == [f"published {Path('published/a.md')}", "a.md is completed"]  # and nothing that came before
    assert desk.published("a.md") == "This is the text.\nTODO: an end.\n"
    assert "has ended" in desk.give("decide", "a.md", "--approve", expect=1)[-1]


def test_an_article_that_nobody_has_submitted(desk: Desk) -> None:
    assert "there is no run 'b.md'" in desk.give("decide", "b.md", "--approve", expect=1)[-1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_command_that_was_killed_is_given_again(desk: Desk) -> None:
    """It is killed while it reads the article, which is a pipe that nobody writes to."""
    os.mkfifo(desk.folder / "a.md")
    process = subprocess.Popen(
        [sys.executable, "-u", str(desk.script), "submit", "a.md"], cwd=desk.folder, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "read a.md\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (desk.folder / "a.md").unlink()
    desk.write("a.md", DOUBTFUL)
    assert desk.give("submit", "a.md")[-1] == "a.md is waiting"
    assert desk.give("decide", "a.md", "--approve")[-1] == "a.md is completed"
    assert desk.published("a.md") == DOUBTFUL
