"""The program on the page for those who come from lexigram-workflow is executed."""

from __future__ import annotations

from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


def test_the_program_prints_what_the_page_says(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = Sybil(parsers=[PythonCodeBlockParser()]).parse(root / "examples/from_lexigram.md").examples()
    program.namespace["__name__"] = "__main__"
    program.evaluate()
    assert capsys.readouterr().out == "confirmed by ann\nfreed place of o-43\nTransitionNotAllowed\n"
