"""`flowlet.diagram.picture`: ids that no format gives a meaning to, and lines."""

from __future__ import annotations

import pytest

from flowlet.diagram.picture import WIDTH, Idents, Picture, Vertex, break_lines


@pytest.mark.parametrize(
    ("name", "ident"),
    [
        ("Draft", "Draft"),
        ("Playing.Low", "Playing_Low"),
        ("End", "End_"),
        ("Default", "Default_"),
        ("Ending", "Ending"),
        ("Playing_start", "Playing_start_"),
        ("Größe", "Gr__e"),
        ("2nd", "s_2nd"),
        ("__proto__", "s___proto__"),
        ("", "s_"),
        ("x" * 500, "x" * WIDTH),
    ],
)
def test_ids(name: str, ident: str) -> None:
    assert Idents().make(name) == ident


def test_ids_are_different() -> None:
    idents = Idents()
    assert [idents.make(name) for name in ("A.B", "A_B", "A B")] == ["A_B", "A_B_2", "A_B_3"]


def test_lines_are_broken_where_there_is_room() -> None:
    assert break_lines("short") == ["short"]
    assert break_lines("") == [""]
    assert break_lines(" two\nlines\t") == [" two lines"]
    assert break_lines("a\x00b\ud800") == ["a\ufffdb\ufffd"]
    assert break_lines("word " * 20) == ["word " * 8 + "word", "word " * 8 + "word", "word word"]
    assert [len(line) for line in break_lines("x" * 100)] == [48, 48, 4]


def test_homes() -> None:
    inner = Vertex("A_B", ("B",), "state")
    picture = Picture("p", "chart", (Vertex("A", ("A",), "state", children=(inner,)), Vertex("C", ("C",), "state")), ())
    assert picture.homes() == {"A": None, "A_B": "A", "C": None}
    assert [v.id for v in picture.walk()] == ["A", "A_B", "C"]
