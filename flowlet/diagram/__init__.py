"""Pictures of definitions: Mermaid and Graphviz DOT text, and SVG where the program ``dot`` is installed.

    flowlet.diagram                what one imports: `diagram`, `Diagram`, `DotFailed`
    flowlet.diagram.source         what was given -> its export and what is active
    flowlet.diagram.exported       the shape of an export
    flowlet.diagram.machine        the export of a machine -> a picture
    flowlet.diagram.run            the export of a saga or a pipeline -> a picture
    flowlet.diagram.graph          the export of a graph -> a picture
    flowlet.diagram.approval       the export of an approval chain -> a picture
    flowlet.diagram.picture        a picture: vertices, edges and their names; it knows of no format
    flowlet.diagram.mermaid, .dot  a picture -> text
    flowlet.diagram.program        text -> SVG

Law: a picture is drawn from what a definition exports and nothing else, so that one can be drawn without the user's
code; the same definition gives the same text. No module here imports a store, a runtime or the facade.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flowlet.core.marks import StateRef
from flowlet.diagram.approval import draw_approval
from flowlet.diagram.dot import write_dot
from flowlet.diagram.exported import ApprovalExport, Export, GraphExport, MachineExport
from flowlet.diagram.graph import draw_graph
from flowlet.diagram.machine import draw_machine
from flowlet.diagram.mermaid import write_mermaid
from flowlet.diagram.picture import Picture
from flowlet.diagram.program import DotFailed
from flowlet.diagram.result import Diagram
from flowlet.diagram.run import draw_run
from flowlet.diagram.source import read_source

__all__ = ["Diagram", "DotFailed", "diagram"]


def diagram(thing: object, /, *, active: StateRef | Iterable[StateRef] | None = None) -> Diagram:
    """Draw a machine, a saga, a pipeline, a graph or an approval chain.

    Args:
        thing: an assembled class, function or graph, an object of a machine (what it is in now is highlighted), a
            definition, or the dict that its ``export()`` has returned.
        active: what to highlight: states, as class, Enum member or name, steps and nodes by their names, or the word
            by which listings and records call a configuration (``"Playing.Low + Muted"``).

    Returns:
        A `Diagram`; notebooks show it as a picture.

    Raises:
        FlowletError: it is nothing that can be drawn, or ``active`` names what is not in it.

    Example:
        >>> from flowlet import Registry, state, transition
        >>> from flowlet.diagram import diagram
        >>> registry = Registry()
        >>> @registry.machine
        ... class Door:
        ...     @state(initial=True)
        ...     class Closed: ...
        ...     @state(final=True)
        ...     class Open: ...
        ...     @transition(Closed, Open)
        ...     async def push(self) -> None: ...
        >>> print(diagram(Door, active=Door.Closed), end="")
        stateDiagram-v2
            [*] --> Closed
            Closed
            Open
            Open --> [*]
            Closed --> Open : push
            classDef active fill:#fde68a,stroke:#b45309,stroke-width:3px
            class Closed active
    """
    exported, names = read_source(thing, active)
    picture = draw(exported, names)
    return Diagram(exported.name, write_mermaid(picture), write_dot(picture))


def draw(exported: Export, names: Sequence[str]) -> Picture:
    """Draw an export; ``names`` are those of what is active."""
    if isinstance(exported, MachineExport):
        return draw_machine(exported, names)
    if isinstance(exported, ApprovalExport):
        return draw_approval(exported, names)
    return draw_graph(exported, names) if isinstance(exported, GraphExport) else draw_run(exported, names)
