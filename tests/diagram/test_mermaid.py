"""`flowlet.diagram.mermaid`: what golden files do not show at a glance."""

from __future__ import annotations

import pytest

from flowlet.diagram.mermaid import escape, write_mermaid
from flowlet.diagram.picture import Edge, Picture, Vertex


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("after 3 d [can_ship] / ship (exclusive)", "after 3 d [can_ship] / ship (exclusive)"),
        ("done.invoke.On.Loading", "done.invoke.On.Loading"),
        ("not_(x), __init__", "not#95;(x), #95;#95;init#95;#95;"),
        ('a "b"; c: <d> & #35;', "a #34;b#34;#59; c#58; #60;d#62; #38; #35;35#59;"),
        ("direction LR", "#100;irection LR"),
        ("redirection", "redirection"),
        ("%%{init}%%", "#37;#37;#123;init#125;#37;#37;"),
        ("größe 日本", "größe 日本"),
        ("a\nb", "a b"),
        ("x" * 50, "x" * 48 + "<br/>xx"),
    ],
)
def test_escape(text: str, written: str) -> None:
    assert escape(text) == written


def test_loops_of_one_vertex_share_an_arrow() -> None:
    one = Vertex("A", ("A",), "state")
    edges = (Edge("A", "A", ("x",)), Edge("A", "A", ("y",)))
    picture = Picture("p", "chart", (one,), edges)
    assert write_mermaid(picture) == "stateDiagram-v2\n    A\n    A --> A : x<br/>y\n"


def test_boxes_three_deep_begin_with_their_initial_state() -> None:
    """Or else Mermaid's layout fails when one state leaves the outermost, which is entered as a whole."""
    leaf = Vertex("C", ("C",), "state")
    inner = Vertex("B", ("B",), "state", children=(leaf,), entry=("C",))
    outer = Vertex("A", ("A",), "state", children=(inner, Vertex("D", ("D",), "state")), entry=("B",))
    off = Vertex("Off", ("Off",), "state")
    picture = Picture("p", "chart", (outer, off), (Edge("Off", "A"), Edge("D", "Off")), entry=("Off",))
    text = " ".join(write_mermaid(picture).split())
    boxes = "state A { [*] --> B state B { [*] --> C C } D }"
    assert text == f"stateDiagram-v2 [*] --> Off {boxes} Off Off --> A D --> Off"
