"""What users' type checkers see, judged by mypy --strict and pyright strict.

Each file of this folder states types with `assert_type`, and mistakes with an ignore comment of each checker.
An ignore that is not needed is itself an error, so that a lost complaint fails the test as a wrong type does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def check(root: Path, *command: str) -> None:
    quiet = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-m", *command], cwd=root, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def cases() -> list[str]:
    return [str(p) for p in sorted(HERE.glob("*.py")) if not p.name.startswith("test_")]


def test_mypy(root: Path) -> None:
    check(root, "mypy", "--strict", "--config-file", "pyproject.toml", *cases())


def test_pyright(root: Path) -> None:
    check(root, "pyright", "--project", "pyproject.toml", "--pythonpath", sys.executable)
