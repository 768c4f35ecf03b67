"""A picture: what is to be seen, before it is written in any format.

Law: vertices have ids of letters, digits and underscores that no format gives a meaning to; all other text is as the
user wrote it, and is escaped by who writes it out.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Literal, TypeAlias

import msgspec

Shape: TypeAlias = Literal[
    "state",
    "region",
    "parallel",
    "final",
    "history",
    "fork",
    "anywhere",
    "call",
    "step",
    "compensation",
    "pause",
    "end",
]
Look: TypeAlias = Literal["plain", "active", "around"]
"""``around`` is what has something active inside."""

WIDTH = 48
"""Longer lines are broken, in characters."""

# What Mermaid or JavaScript gives a meaning to, in any case; ids that end like the last three are Mermaid's own.
_RESERVED = re.compile(
    "accdescr|acctitle|as|call|choice|class|classdef|click|constructor|default|direction|end|flowchart|fork|graph|"
    "hasownproperty|hide|href|interpolate|isprototypeof|join|linkstyle|note|propertyisenumerable|prototype|root|"
    "scale|state|statediagram|style|subgraph|tolocalestring|tostring|valueof|.*_start|.*_end|.*_parent",
    re.IGNORECASE,
)


class Vertex(msgspec.Struct, frozen=True):
    """Something that edges join.

    Attributes:
        lines: what is written on it.
        children: vertices inside of it; it is then a box around them.
        entry: the ids to which its initial pseudo-state leads.
    """

    id: str
    lines: tuple[str, ...]
    shape: Shape
    look: Look = "plain"
    children: tuple[Vertex, ...] = ()
    entry: tuple[str, ...] = ()

    def walk(self) -> Iterator[Vertex]:
        """Iterate over it and all inside of it, outer ones first."""
        yield self
        for child in self.children:
            yield from child.walk()


class Edge(msgspec.Struct, frozen=True):
    """An arrow between the vertices with these ids.

    Attributes:
        lines: what is written at it.
        aside: it is off the usual way.
    """

    source: str
    target: str
    lines: tuple[str, ...] = ()
    aside: bool = False


class Picture(msgspec.Struct, frozen=True):
    """All of it.

    Attributes:
        id: the name, as an id.
        kind: a chart of states, or a flow of steps.
        entry: the ids to which the initial pseudo-state leads.
    """

    id: str
    kind: Literal["chart", "flow"]
    vertices: tuple[Vertex, ...]
    edges: tuple[Edge, ...]
    entry: tuple[str, ...] = ()

    def walk(self) -> Iterator[Vertex]:
        """Iterate over all vertices, outer ones first."""
        for vertex in self.vertices:
            yield from vertex.walk()

    def homes(self) -> dict[str, str | None]:
        """Map the id of each vertex to that of the one it is in, None at the top."""
        homes: dict[str, str | None] = {v.id: None for v in self.vertices}
        homes.update((child.id, v.id) for v in self.walk() for child in v.children)
        return homes


class Idents:
    """Gives names ids that are valid in every format and different from each other."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def make(self, name: str) -> str:
        """Return a new id that resembles a name."""
        ident = re.sub(r"[^A-Za-z0-9_]", "_", name)[:WIDTH]
        if not ident[:1].isalpha():
            ident = f"s_{ident}"
        if _RESERVED.fullmatch(ident):
            ident = f"{ident}_"
        number = 1
        chosen = ident
        while chosen in self._given:
            number += 1
            chosen = f"{ident}_{number}"
        self._given.add(chosen)
        return chosen


def break_lines(text: str) -> list[str]:
    """Break a text into lines of bounded width, without characters that no picture can show."""
    clean = "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return textwrap.wrap(clean, WIDTH, break_on_hyphens=False) or [""]
