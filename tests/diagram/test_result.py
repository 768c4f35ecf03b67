"""`Diagram`: text, and pictures where there is a ``dot``, which is played by scripts here."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from flowlet.diagram import Diagram, diagram

Play = Callable[..., Path]
DRAWN = diagram({"kind": "pipeline", "name": "etl", "steps": [{"name": "größe"}]})
MARKDOWN = f"```mermaid\n{DRAWN.mermaid}```\n"


def test_what_it_is() -> None:
    assert str(DRAWN) == DRAWN.mermaid
    assert repr(DRAWN) == "<diagram of etl>"
    assert DRAWN.dot.startswith('digraph "etl" {\n')
    assert copy.copy(DRAWN) == pickle.loads(pickle.dumps(DRAWN)) == DRAWN  # noqa: S301


def test_svg_is_what_dot_says(play_dot: Play) -> None:
    play_dot('echo "<svg>$1"', "/bin/cat", 'echo "</svg>"')
    assert DRAWN.svg() == f"<svg>-Tsvg\n{DRAWN.dot}</svg>\n"
    assert DRAWN._repr_svg_() == DRAWN.svg()
    assert DRAWN._repr_markdown_() is None
    assert DRAWN._repr_mimebundle_() == {"text/plain": DRAWN.mermaid, "image/svg+xml": DRAWN.svg()}
    dot = play_dot()
    dot.rename(dot.with_name("neato"))
    assert DRAWN.svg(program="neato").startswith("<svg>")


@pytest.mark.parametrize("lines", [(), ("exit 1",)])
def test_notebooks_fall_back_to_text(play_dot: Play, lines: tuple[str, ...]) -> None:
    play_dot(*lines)
    assert DRAWN._repr_svg_() is None
    assert DRAWN._repr_markdown_() == MARKDOWN
    assert DRAWN._repr_mimebundle_() == {"text/plain": DRAWN.mermaid, "text/markdown": MARKDOWN}
    assert DRAWN._repr_mimebundle_(include={"text/plain"}) == {"text/plain": DRAWN.mermaid}
    assert DRAWN._repr_mimebundle_(exclude={"text/plain"}) == {"text/markdown": MARKDOWN}


def test_a_fence_cannot_be_closed_from_inside() -> None:
    drawn = diagram({"kind": "saga", "name": "```\n# x", "steps": []})
    assert drawn.mermaid.count("```") == 0
    assert isinstance(drawn, Diagram)
