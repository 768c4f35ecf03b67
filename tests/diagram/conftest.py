"""What the tests of pictures share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def play_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Let there be no programs but a ``dot`` of some lines of shell, or none at all; return its path."""
    path = tmp_path / "dot"

    def play(*lines: str) -> Path:
        monkeypatch.setenv("PATH", str(tmp_path))
        if lines:
            path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
            path.chmod(0o755)
        return path

    return play
