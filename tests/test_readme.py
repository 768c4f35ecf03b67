"""The examples of the README and of all docstrings are executed, in order, each document in its own namespace."""

from __future__ import annotations

from pathlib import Path

import pytest
from sybil import Document, Sybil
from sybil.parsers.doctest import DocTestParser
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).resolve().parent.parent
PAGES = Sybil(parsers=[PythonCodeBlockParser()])
DOCSTRINGS = Sybil(parsers=[DocTestParser()])


def modules_with_examples() -> list[str]:
    paths = sorted((ROOT / "flowlet").rglob("*.py"))
    return [p.relative_to(ROOT).as_posix() for p in paths if ">>>" in p.read_text(encoding="utf-8")]


def evaluate(document: Document) -> int:
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what the examples write land in a directory of the test."""
    monkeypatch.chdir(tmp_path)


def test_readme() -> None:
    assert evaluate(PAGES.parse(ROOT / "README.md")) > 0


@pytest.mark.parametrize("module", modules_with_examples())
def test_docstrings(module: str) -> None:
    assert evaluate(DOCSTRINGS.parse(ROOT / module)) > 0
