"""The store of the example runs a saga, keeps it in text that can be read, and is small; the kit proves the rest."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

HISTORY = """\
  o-1  Started
  o-1  StepEnded
  o-1  StepEnded
  o-1  Ended
  o-2  Started
  o-2  StepEnded
  o-2  StepErred
"""


def run(root: Path, *arguments: object) -> str:
    command = [sys.executable, str(root / "examples" / "custom_store.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_runs_a_saga_and_shows_what_is_in_the_folder(root: Path, tmp_path: Path) -> None:
    said = run(root, tmp_path)
    assert said.startswith("shelf of chair, paid 80\nrolled back: 9000 is more than the card allows\nhistory.jsonl: ")
    assert HISTORY in said
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]
    for line in (tmp_path / "history.jsonl").read_text(encoding="utf-8").splitlines():
        assert set(json.loads(line)) == {"now", "writes"}


def test_a_second_process_finds_the_runs_done(root: Path, tmp_path: Path) -> None:
    first, second = run(root, tmp_path), run(root, tmp_path)
    assert [line for line in second.splitlines() if line.startswith("  o-")] == [
        line for line in first.splitlines() if line.startswith("  o-")
    ]


def test_a_folder_of_its_own_when_none_is_given(root: Path) -> None:
    assert HISTORY in run(root)


def test_the_store_is_about_60_lines(root: Path) -> None:
    tree = ast.parse((root / "examples" / "custom_store.py").read_text(encoding="utf-8"))
    (store,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "FolderStore"]
    assert store.end_lineno is not None
    assert store.end_lineno - store.lineno < 75
