"""The examples of the README and of all docstrings are executed, in order, each document in its own namespace."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil import Document, Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.doctest import DocTestParser
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).resolve().parent.parent
PAGES = Sybil(parsers=[PythonCodeBlockParser()])


class Docstrings(PythonDocStringDocument):
    """As sybil's own, and with the strings that stand below an assignment and describe it."""

    @staticmethod
    def extract_docstrings(python_source_code: str) -> Iterator[tuple[int, int, str]]:
        lines = python_source_code.splitlines(keepends=True)
        for node in ast.walk(ast.parse(python_source_code)):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset + len('"""')
                yield start, start + len(node.value.value), node.value.value


DOCSTRINGS = Sybil(parsers=[DocTestParser()], document_types={".py": Docstrings})


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


def test_readme(capsys: pytest.CaptureFixture[str]) -> None:
    examples = PAGES.parse(ROOT / "README.md").examples()
    shop, parcel, purchase, etl, review, order, chain, daily, june, pay, watched, configured, tested, blocked = examples
    shop.evaluate()
    assert capsys.readouterr().out == "charging for o-42\npayment of 120 for o-42\n"
    shop.evaluate()
    assert capsys.readouterr().out == "payment of 120 for o-42\n"
    parcel.evaluate()
    travelling = "Travelling Travelling.Goods Travelling.Goods.Moving Travelling.Papers Travelling.Papers.Open"
    assert capsys.readouterr().out == f"{travelling}\nDelivered\n"
    purchase.evaluate()
    assert capsys.readouterr().out == "p-1@2/bill -> invoice for o-42\n"
    etl.evaluate()
    assert capsys.readouterr().out == "loaded 7 failed with None\n"
    review.evaluate()
    assert capsys.readouterr().out == "version 2 of the text\n"
    order.evaluate()
    assert capsys.readouterr().out == "120 paid\n"
    chain.evaluate()
    assert capsys.readouterr().out == "[('e-7', 'finance')]\napproved ['bob', 'eve', 'sam']\n"
    daily.evaluate()
    assert capsys.readouterr().out == "report of eu for 02 January\n"
    for _ in range(2):
        june.evaluate()
        assert capsys.readouterr().out == "completed 1000 item 1000 ('nobody'): ValueError: no address\n"
    pay.evaluate()
    assert capsys.readouterr().out == "open\ncharged 40 charged 2\nclose\n"
    for quiet in (watched, configured, tested):
        quiet.evaluate()
        assert capsys.readouterr().out == ""
    blocked.evaluate()
    assert capsys.readouterr().out == "42\n8\n"


@pytest.mark.parametrize("module", modules_with_examples())
def test_docstrings(module: str) -> None:
    assert evaluate(DOCSTRINGS.parse(ROOT / module)) > 0
