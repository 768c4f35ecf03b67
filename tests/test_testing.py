"""The kit fails for each broken store, with the checks that are there for it."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def results(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, set[str]]]:
    """Run the checks that must notice, on all broken stores; say for each which has ended how."""
    file, report = Path(broken_stores.__file__), tmp_path_factory.mktemp("kit") / "report.xml"
    checks = sorted({check for noticed_by in BROKEN.values() for check in noticed_by})
    wanted = [f"{file}::{name}::{check}" for name, noticed_by in BROKEN.items() for check in noticed_by]
    assert checks
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *wanted]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=500)
    assert report.exists(), ended.stdout + ended.stderr
    outcomes: dict[str, dict[str, set[str]]] = {}
    for case in ET.parse(report).iter("testcase"):
        name, check = case.attrib["classname"].rpartition(".")[2], case.attrib["name"].partition("[")[0]
        outcome = next((part.tag for part in case if part.tag in ("failure", "error", "skipped")), "passed")
        if outcome == "skipped" and "loops=" in str(case.find("skipped").get("message")):  # type: ignore[union-attr]
            continue
        outcomes.setdefault(name, {}).setdefault(check, set()).add(outcome)
    return outcomes


@pytest.mark.parametrize(("name", "check"), [(name, check) for name, checks in BROKEN.items() for check in checks])
def test_a_broken_store_is_noticed(results: Mapping[str, Mapping[str, set[str]]], name: str, check: str) -> None:
    assert "failure" in results[name][check]
    assert "error" not in results[name][check]
