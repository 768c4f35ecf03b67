"""Drawing a graph: its nodes, and the edges with what they are taken for.

Law: what an edge's condition is, only its name or its label can say; the picture shows that and no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flowlet.diagram.exported import EdgeExport, GraphExport, NodeExport
from flowlet.diagram.picture import Edge, Idents, Picture, Shape, Vertex
from flowlet.diagram.wording import duration
from flowlet.errors import FlowletError


def draw_graph(graph: GraphExport, active: Sequence[str]) -> Picture:
    """Draw a graph.

    Args:
        active: names of nodes to highlight.

    Raises:
        FlowletError: an edge of the export leads from or to a node that it does not have.
    """
    idents = Idents()
    call = Vertex(idents.make("begin"), _call_lines(graph), "call")
    ids = {node.name: idents.make(node.name) for node in graph.nodes}
    nodes = [
        Vertex(ids[n.name], _node_lines(n), _shape(n), "active" if n.name in active else "plain") for n in graph.nodes
    ]
    entries = [Edge(call.id, ids[node.name]) for node in graph.nodes if node.entry]
    return Picture(Idents().make(graph.name), "flow", (call, *nodes), (*entries, *_edges(graph, ids)))


def _shape(node: NodeExport) -> Shape:
    if node.kind == "pause":
        return "pause"
    return "end" if node.final else "step"


def _edges(graph: GraphExport, ids: dict[str, str]) -> Iterator[Edge]:
    for edge in graph.edges:
        for name in (edge.source, edge.target):
            if name not in ids:
                raise FlowletError(f"{graph.name}: an edge joins {name!r}, which the export does not have")
        yield Edge(ids[edge.source], ids[edge.target], tuple(_edge_lines(edge)))


def _edge_lines(edge: EdgeExport) -> Iterator[str]:
    if edge.label is not None:
        yield edge.label
    elif edge.otherwise:
        yield "otherwise"
    elif edge.when is not None:
        yield "[condition]" if edge.when == "<lambda>" else f"[{edge.when}]"
    if edge.max_iterations is not None:
        yield f"at most {edge.max_iterations} times"


def _call_lines(graph: GraphExport) -> tuple[str, ...]:
    title = f"{graph.name}({graph.state})"
    return (title,) if graph.deadline is None else (title, f"deadline {duration(graph.deadline)}")


def _node_lines(node: NodeExport) -> tuple[str, ...]:
    words: list[str] = []
    if node.join != "all":
        words.append(f"waits for {node.join}")
    if node.attempts != 1:
        words.append(f"{node.attempts} attempts")
    if node.timeout is not None:
        words.append(f"timeout {duration(node.timeout)}")
    return (node.name, ", ".join(words)) if words else (node.name,)
