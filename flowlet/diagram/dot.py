"""Writing a picture in Graphviz' DOT language.

Law: whatever a text contains, ``dot`` shows it as it is. Strings are quoted by the rules of the language
(https://graphviz.org/doc/info/lang.html) and of its labels (https://graphviz.org/docs/attr-types/escString/), where a
backslash and an ampersand have a meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from flowlet.diagram.picture import Edge, Look, Picture, Shape, Vertex, break_lines

_INDENT = "    "
_HEAD = (
    "compound=true",
    'fontname="Helvetica"',
    'node [fontname="Helvetica", fontsize="12", shape="box", style="rounded"]',
    'edge [fontname="Helvetica", fontsize="10"]',
)
_SHAPES: Mapping[Shape, dict[str, str]] = {
    "region": {"style": "rounded,dashed"},
    "final": {"peripheries": "2"},
    "history": {"shape": "ellipse", "style": ""},
    "fork": {"shape": "box", "style": "filled", "fillcolor": "black", "height": "0.06", "width": "0.6"},
    "anywhere": {"shape": "plaintext", "style": ""},
    "call": {"shape": "ellipse", "style": ""},
    "step": {"style": ""},
    "compensation": {"style": "rounded,dashed"},
    "pause": {"shape": "hexagon", "style": ""},
    "end": {"style": "", "peripheries": "2"},
}
_BOX = {"style": "rounded", "color": "black", "penwidth": "1"}  # said of each, since inner ones inherit from outer ones
_LOOKS: Mapping[Look, dict[str, str]] = {
    "active": {"color": "#b45309", "penwidth": "3", "fillcolor": "#fde68a"},
    "around": {"color": "#b45309", "penwidth": "3"},
}


def write_dot(picture: Picture) -> str:
    """Write a picture as DOT text."""
    return "\n".join([f'digraph "{picture.id}" {{', *(_INDENT + line for line in _Graph(picture).write()), "}"]) + "\n"


def quote(lines: Iterable[str]) -> str:
    r"""Write lines as one quoted string in which nothing has a meaning.

    Example:
        >>> from flowlet.diagram.dot import quote
        >>> print(quote(['a "b"', "c\\d & e"]))
        "a \"b\"\nc\\d &amp; e"
    """
    whole = [part for line in lines for part in break_lines(line)]
    return '"' + "\\n".join(p.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;") for p in whole) + '"'


class _Graph:
    """A graph on its way to text.

    DOT joins nodes only: a box around others has a node inside, and an arrow to it is cut off at the border. The node
    is a dot when an arrow leads there from inside, and is not seen otherwise.
    """

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._homes = picture.homes()
        self._boxes = {v.id for v in picture.walk() if v.children}
        ends = [end for edge in picture.edges for end in ((edge.source, edge.target), (edge.target, edge.source))]
        self._joined_inside = {box for box, other in ends if box in self._boxes and box in self._around(other)}

    def write(self) -> Iterator[str]:
        picture = self._picture
        yield from _HEAD
        for vertex in picture.vertices:
            yield from self._declare(vertex)
        yield from self._enter("root", picture.entry)
        yield from (self._arrow(edge) for edge in picture.edges)

    def _declare(self, vertex: Vertex) -> Iterator[str]:
        looks = {**_SHAPES.get(vertex.shape, {}), **_LOOKS.get(vertex.look, {})}
        if vertex.look == "active":
            looks["style"] = ",".join(filter(None, (looks.get("style", "rounded"), "filled")))
        if not vertex.children:
            yield f'"{vertex.id}" [{_attributes(vertex.lines, looks)}]'
            return
        yield f'subgraph "cluster_{vertex.id}" {{'
        for line in self._inside(vertex, {**_BOX, **looks}):
            yield _INDENT + line
        yield "}"

    def _inside(self, vertex: Vertex, looks: Mapping[str, str]) -> Iterator[str]:
        yield f"label={quote(vertex.lines)}"
        yield from (f'{name}="{value}"' for name, value in looks.items())
        style = "filled" if vertex.id in self._joined_inside else "invis"
        yield f'"{vertex.id}" [label="", shape="point", style="{style}"]'
        for child in vertex.children:
            yield from self._declare(child)
        yield from self._enter(vertex.id, vertex.entry)

    def _enter(self, home: str, entry: tuple[str, ...]) -> Iterator[str]:
        if entry:
            start = f"{home}_start"
            yield f'"{start}" [label="", shape="circle", style="filled", fillcolor="black", width="0.15"]'
            yield from (self._arrow(Edge(start, target)) for target in entry)

    def _arrow(self, edge: Edge) -> str:
        words: list[str] = []
        if edge.lines:
            words.append(f"label={quote(edge.lines)}")
        if edge.aside:
            words.append('style="dashed"')
        if edge.source in self._boxes and edge.source not in self._around(edge.target):
            words.append(f'ltail="cluster_{edge.source}"')
        if edge.target in self._boxes and edge.target not in self._around(edge.source):
            words.append(f'lhead="cluster_{edge.target}"')
        attributes = f" [{', '.join(words)}]" if words else ""
        return f'"{edge.source}" -> "{edge.target}"{attributes}'

    def _around(self, ident: str) -> set[str]:
        """Return the boxes a vertex is in, itself included."""
        found: set[str] = set()
        inside: str | None = ident
        while inside is not None:
            found.add(inside)
            inside = self._homes.get(inside)
        return found


def _attributes(lines: Iterable[str], looks: Mapping[str, str]) -> str:
    return ", ".join([f"label={quote(lines)}", *(f'{name}="{value}"' for name, value in looks.items())])
