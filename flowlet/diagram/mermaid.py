"""Writing a picture as Mermaid text: ``stateDiagram-v2`` for charts, ``flowchart`` for flows.

Law: whatever a text contains, Mermaid's parser reads the picture that was drawn. Text that is not plain words is
written as numeric entities, which Mermaid takes out before it parses (``encodeEntities`` in its ``utils``).
Syntax: https://mermaid.js.org/syntax/stateDiagram.html and https://mermaid.js.org/syntax/flowchart.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from flowlet.diagram.picture import Edge, Idents, Picture, Vertex, break_lines

_INDENT = "    "
_START = _END = "[*]"
_STYLES = {
    "active": "fill:#fde68a,stroke:#b45309,stroke-width:3px",
    "around": "stroke:#b45309,stroke-width:3px",
    "compensation": "stroke-dasharray:4",
}
_BRACKETS = {
    "call": ('(["', '"])'),
    "step": ('["', '"]'),
    "compensation": ('("', '")'),
    "pause": ('{{"', '"}}'),
    "end": ('[["', '"]]'),
}

# Everything but words and a little punctuation. What is let through has a meaning to Markdown, which Mermaid knows in
# labels, at the ends of words, doubled, or as a link; and `direction LR` anywhere in a line is a statement.
_UNSAFE = re.compile(
    r"[^\w ,()/?'\[\].]|\[(?=\[)|\](?=[\](])|(?<!\w)\.|\.(?!\w)|(?<![^\W_])_|_(?![^\W_])|d(?=irection\s)",
    re.IGNORECASE,
)


def write_mermaid(picture: Picture) -> str:
    """Write a picture as Mermaid text."""
    lines = _Chart(picture).write() if picture.kind == "chart" else _write_flow(picture)
    return "\n".join([*lines, *_write_styles(picture)]) + "\n"


def escape(text: str) -> str:
    """Write a text so that Mermaid shows it as it is, broken into lines."""
    return "<br/>".join(_UNSAFE.sub(lambda m: f"#{ord(m[0])};", line) for line in break_lines(text))


def _title(lines: Iterable[str]) -> str:
    return "<br/>".join(escape(line) for line in lines) or "#160;"  # an empty title is no title to the parser


class _Chart:
    """A chart on its way to text.

    Mermaid moves a state into a box in which an arrow to it is written, so an arrow is written inside a box only if
    both its ends are just there. And it ends an arrow to a box at the first vertex inside that is no box; its layout
    fails on many charts of three levels if that lies deep, so the initial pseudo-state comes first in its box. (What
    its layout still fails on, in 11.17, are some parallel states within parallel ones: mermaid-js/mermaid#4052.)
    """

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._homes = picture.homes()
        self._inner: dict[str, list[Edge]] = {}
        self._outer: list[Edge] = []
        self._idents = Idents()
        boxes = {v.id: v for v in picture.walk() if v.children}
        for ident in self._homes:
            self._idents.make(ident)
        for edge in _join_loops(picture.edges):
            home = self._homes[edge.source]
            together = home is not None and home == self._homes[edge.target] and boxes[home].shape != "parallel"
            self._inner.setdefault(home, []).append(edge) if home and together else self._outer.append(edge)

    def write(self) -> list[str]:
        picture = self._picture
        body = [*self._enter(None, picture.entry)]
        body += [line for vertex in picture.vertices for line in self._declare(vertex)]
        body += [f"{v.id} --> {_END}" for v in picture.vertices if v.shape == "final"]
        body += [_arrow(edge) for edge in self._outer]
        return ["stateDiagram-v2", *(_INDENT + line for line in body)]

    def _declare(self, vertex: Vertex) -> Iterator[str]:
        if vertex.shape == "fork":
            yield f"state {vertex.id} <<fork>>"
            return
        title = _title(vertex.lines)
        head = vertex.id if title == vertex.id else f'"{title}" as {vertex.id}'
        if not vertex.children:
            yield head if head == vertex.id else f"state {head}"
            return
        yield f"state {head} {{"
        yield from (_INDENT + line for line in self._inside(vertex))
        yield "}"

    def _inside(self, vertex: Vertex) -> Iterator[str]:
        yield from self._enter(vertex.id, vertex.entry)
        for number, child in enumerate(vertex.children):
            if number and vertex.shape == "parallel":
                yield "--"
            yield from self._declare(child)
        yield from (f"{child.id} --> {_END}" for child in vertex.children if child.shape == "final")
        yield from (_arrow(edge) for edge in self._inner.get(vertex.id, ()))

    def _enter(self, home: str | None, entry: tuple[str, ...]) -> Iterator[str]:
        """Lead from the initial pseudo-state to what is entered, by a fork if that is not just one state beside it."""
        if len(entry) == 1 and self._homes[entry[0]] == home:
            yield f"{_START} --> {entry[0]}"
        elif entry:
            fork = self._idents.make("entry")
            yield f"state {fork} <<fork>>"
            yield f"{_START} --> {fork}"
            self._outer.extend(Edge(fork, target) for target in entry)


def _join_loops(edges: Iterable[Edge]) -> list[Edge]:
    """Make one arrow of all that lead from a vertex to itself: Mermaid draws the last one only."""
    joined: dict[object, Edge] = {}
    for number, edge in enumerate(edges):
        key = edge.source if edge.source == edge.target else number
        before = joined.get(key)
        joined[key] = edge if before is None else replace(before, lines=before.lines + edge.lines)
    return list(joined.values())


def _arrow(edge: Edge) -> str:
    label = f" : {_title(edge.lines)}" if edge.lines else ""
    return f"{edge.source} --> {edge.target}{label}"


def _write_flow(picture: Picture) -> Iterator[str]:
    yield "flowchart TB"
    for vertex in picture.vertices:
        left, right = _BRACKETS[vertex.shape]
        yield f"{_INDENT}{vertex.id}{left}{_title(vertex.lines)}{right}"
    for edge in picture.edges:
        arrow = "-.->" if edge.aside else "-->"
        label = f'|"{_title(edge.lines)}"|' if edge.lines else ""
        yield f"{_INDENT}{edge.source} {arrow}{label} {edge.target}"


def _write_styles(picture: Picture) -> Iterator[str]:
    vertices = list(picture.walk())
    classes = {
        "compensation": [v.id for v in vertices if v.shape == "compensation"],
        "around": [v.id for v in vertices if v.look == "around"],
        "active": [v.id for v in vertices if v.look == "active"],
    }
    for name, ids in classes.items():
        if ids:
            yield f"{_INDENT}classDef {name} {_STYLES[name]}"
            yield f"{_INDENT}class {','.join(ids)} {name}"
