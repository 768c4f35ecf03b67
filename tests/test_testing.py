"""The kit fails for each broken store, with the checks that are there for it."""

from __future__ import annotations

import functools
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import broken_stores
import pytest

from flowlet.testing import StoreConformance

BROKEN = {
    name: value.noticed_by
    for name, value in vars(broken_stores).items()
    if isinstance(value, type) and issubclass(value, StoreConformance) and name.startswith("Test")
}


TOGETHER = 8
"""Broken stores that one process of pytest runs: its start costs more than most checks."""


@functools.cache
def outcomes(part: int, root: Path, folder: Path) -> Mapping[str, Mapping[str, set[str]]]:
    """Run the checks that must notice some of the broken stores; say how each has ended on the loops it knows."""
    file, report = Path(broken_stores.__file__), folder / f"{part}.xml"
    names = list(BROKEN)[part * TOGETHER : (part + 1) * TOGETHER]
    wanted = [f"{file}::{name}::{check}" for name in names for check in BROKEN[name]]
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", f"--junitxml={report}", *wanted]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300)
    assert report.exists(), ended.stdout + ended.stderr
    found: dict[str, dict[str, set[str]]] = {}
    for case in ET.parse(report).iter("testcase"):
        name, check = case.attrib["classname"].rpartition(".")[2], case.attrib["name"].partition("[")[0]
        outcome = next((part.tag for part in case if part.tag in ("failure", "error", "skipped")), "passed")
        if outcome == "skipped" and "loops=" in str(case.find("skipped").get("message")):  # type: ignore[union-attr]
            continue
        found.setdefault(name, {}).setdefault(check, set()).add(outcome)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reports of this module are."""
    return tmp_path_factory.mktemp("kit")


@pytest.mark.parametrize(("name", "check"), [(name, check) for name, checks in BROKEN.items() for check in checks])
def test_a_broken_store_is_noticed(root: Path, folder: Path, name: str, check: str) -> None:
    ended = outcomes(list(BROKEN).index(name) // TOGETHER, root, folder)[name][check]
    assert "failure" in ended
    assert "error" not in ended
