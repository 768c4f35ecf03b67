"""`flowlet.diagram.dot`: what golden files do not show at a glance."""

from __future__ import annotations

from flowlet.diagram.dot import quote, write_dot
from flowlet.diagram.picture import Edge, Look, Picture, Vertex


def test_quote() -> None:
    assert quote(['"a"', "b\\n & c"]) == '"\\"a\\"\\nb\\\\n &amp; c"'
    assert quote(["x" * 50]) == f'"{"x" * 48}\\nxx"'
    assert quote([""]) == '""'


def box(*children: Vertex, look: Look = "plain") -> Vertex:
    return Vertex("P", ("P",), "state", children=children, look=look)


def test_an_arrow_at_a_box_is_cut_off_at_its_border() -> None:
    inner, other = Vertex("P_A", ("A",), "state"), Vertex("B", ("B",), "state")
    vertices = (box(inner), other)
    outside = write_dot(Picture("p", "chart", vertices, (Edge("B", "P"), Edge("P", "B"))))
    assert '"B" -> "P" [lhead="cluster_P"]' in outside
    assert '"P" -> "B" [ltail="cluster_P"]' in outside
    assert '"P" [label="", shape="point", style="invis"]' in outside
    inside = write_dot(Picture("p", "chart", vertices, (Edge("P", "P_A"), Edge("P_A", "P"))))
    assert '"P" -> "P_A"\n' in inside
    assert '"P_A" -> "P"\n' in inside
    assert '"P" [label="", shape="point", style="filled"]' in inside


def test_a_box_does_not_pass_its_looks_on() -> None:
    inner = Vertex("Q", ("Q",), "state", children=(Vertex("Q_A", ("A",), "state"),))
    text = write_dot(Picture("p", "chart", (box(inner, look="around"),), ()))
    assert text.count('penwidth="3"') == 1
    assert text.count('penwidth="1"') == 1
