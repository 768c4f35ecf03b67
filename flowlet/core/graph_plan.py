"""A graph ready to run: what is left of it when all names have been looked up and all checks are done.

Law: immutable, and plain data but for the functions that users gave. Nodes are numbers, in the order in which they were
added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from flowlet.core.codec import Codec
from flowlet.core.digraph import Digraph
from flowlet.core.graph_counts import Counts
from flowlet.core.graph_fields import StateType
from flowlet.core.graph_tokens import ALL, Reach, Tokens
from flowlet.core.rows import count_before, sort_rows
from flowlet.core.steps import StepDefinition

ITERATIONS = 100
"""How often a node of a cycle may be executed, if nobody says otherwise."""


class GraphEdge(msgspec.Struct, frozen=True, eq=False):
    """One edge, at its source.

    Attributes:
        target: the number of the node that it leads to.
        when: it is taken if this says so of the state; None: always, unless ``otherwise``.
        otherwise: it is taken if no edge with a condition was.
        limit: how often it may be taken in one run.
    """

    target: int
    when: Callable[[Any], Any] | None = None
    otherwise: bool = False
    label: str | None = None
    limit: int | None = None


class GraphNode(msgspec.Struct, frozen=True, eq=False):
    """One node: a step, or a pause.

    Attributes:
        name: unique in the graph; within an expanded graph that one's name comes first, with a dot.
        step: what it executes; None for a pause, which waits for a signal of its own name.
        payload: the type of that signal.
        owner: the object that the step is a method of, or None.
        takes: the fields that the step's parameters are; None when it takes the whole state.
        merge: makes a dict of changed fields of the state and of what came; None when that is one already.
        edges: what leads on from it, in the order in which they were added.
        join: how many tokens it waits for, or `ALL`.
        limit: how often it may be executed in one run, if it lies in a cycle.
        unsaid: how many factors of that limit are `ITERATIONS` because nobody has said another one.
    """

    name: str
    step: StepDefinition | None = None
    payload: Codec[Any] | None = None
    owner: Any = None
    takes: tuple[str, ...] | None = None
    merge: Callable[[Any, Any], Any] | None = None
    edges: tuple[GraphEdge, ...] = ()
    join: int = ALL
    final: bool = False
    limit: int | None = None
    unsaid: int = 0

    def allowed(self, iterations: int) -> int:
        """Return how often it may be executed where so many iterations take the place of `ITERATIONS`."""
        assert self.limit is not None
        factors: int = self.unsaid
        return int(self.limit // ITERATIONS**factors * iterations**factors)

    @property
    def is_conditional(self) -> bool:
        """Whether something has to be asked before it is known which edges are taken."""
        return any(e.when is not None or e.limit is not None for e in self.edges)


class GraphPlan(msgspec.Struct, frozen=True, eq=False):
    """A graph ready to run.

    Attributes:
        entries: the numbers of the nodes that the run begins with.
        joins: `GraphNode.join` of each node.
        next_nodes: for each node what it leads to, in any case: None where that has to be asked.
        rows: for each node what its edges lead to.
        needs: for each node how many edges lead to it, in a graph where that is all there is to know: see `Counts`.
        max_concurrency: so many nodes execute at once; None for all that can, unset for what is configured.
    """

    name: str
    state: StateType
    nodes: tuple[GraphNode, ...]
    entries: tuple[int, ...]
    joins: tuple[int, ...]
    next_nodes: tuple[tuple[int, ...] | None, ...]
    rows: tuple[tuple[int, ...], ...]
    needs: tuple[int, ...] | None
    reach: Reach
    max_concurrency: int | msgspec.UnsetType | None = msgspec.UNSET

    def tokens(self) -> Counts | Tokens:
        """Return the tokens of a run that has not begun."""
        return Tokens(self.joins, self.reach) if self.needs is None else Counts(self.rows, self.needs)

    def cycle_of(self, node: int) -> tuple[str, ...]:
        """Return the names of the nodes of a cycle that a node lies in, it first."""
        graph = Digraph(dict(enumerate(self.rows)))
        return tuple(self.nodes[number].name for number in graph.cycle_of(node))


def make_plan(
    name: str,
    state: StateType,
    nodes: tuple[GraphNode, ...],
    entries: tuple[int, ...],
    max_concurrency: int | msgspec.UnsetType | None,
) -> GraphPlan:
    """Put a plan together, with what can be worked out of its nodes."""
    rows = tuple(tuple(edge.target for edge in node.edges) for node in nodes)
    needs = [before + entries.count(number) for number, before in enumerate(count_before(rows))]
    is_plain = all(node.join == ALL for node in nodes) and len(sort_rows(rows)) == len(rows)
    return GraphPlan(
        name=name,
        state=state,
        nodes=nodes,
        entries=entries,
        joins=tuple(node.join for node in nodes),
        next_nodes=tuple(None if node.is_conditional else row for node, row in zip(nodes, rows, strict=True)),
        rows=rows,
        needs=tuple(needs) if is_plain else None,
        reach=Reach(rows),
        max_concurrency=max_concurrency,
    )
