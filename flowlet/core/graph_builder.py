"""Building a graph: names are looked up, graphs within it are expanded, faults are collected, the plan is made.

Law: reads what was added and changes nothing of it. A fault leaves a node without a step in its place, so that the rest
can be judged as if it were there.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, cast

import msgspec

from flowlet.core.annotations import Parameter
from flowlet.core.codec import Codec
from flowlet.core.definitions import Context, Draft, RunDefinition
from flowlet.core.faults import Faults, describe, nearest
from flowlet.core.graph import GraphInterpretation
from flowlet.core.graph_checks import GraphOptions, Joint, check_joints, check_limits, check_options, is_count
from flowlet.core.graph_fields import StateType, read_state_type
from flowlet.core.graph_nodes import NodeDraft, build_node, build_pause, check_name, read_join
from flowlet.core.graph_plan import ITERATIONS, GraphEdge, GraphNode, GraphPlan, make_plan
from flowlet.core.graph_tokens import ALL
from flowlet.core.retry import seconds
from flowlet.core.rows import find_components
from flowlet.core.steps import StepDefinition
from flowlet.errors import DefinitionError


class EdgeDraft(msgspec.Struct, eq=False, frozen=True):
    """An edge as it was added. Nodes are meant by their names, or by what was added as one."""

    source: Any
    target: Any
    when: Any = None
    otherwise: bool = False
    label: str | None = None
    limit: Any = None


class Parts(msgspec.Struct, eq=False, kw_only=True):
    """All that was said of a graph."""

    name: str
    state: Any
    options: GraphOptions
    namespace: Mapping[str, Any]
    nodes: list[NodeDraft] = []
    edges: list[EdgeDraft] = []
    entries: list[Any] = []
    finals: list[Any] = []


class _Expandable(Protocol):
    """A graph that can be a node of another one: `GraphDraft`, which builds itself with what is here."""

    def plan(self) -> GraphPlan: ...


class _Place(msgspec.Struct, frozen=True):
    """Where a node is in the plan: for an expanded graph, where it begins and where it ends."""

    first: tuple[int, ...]
    last: tuple[int, ...]


def build_plan(parts: Parts, faults: Faults) -> GraphPlan | None:
    """Build what runs, noting faults; None if there are any."""
    check_options(parts.name, parts.options, faults)
    state = read_state_type(parts.name, parts.state, parts.namespace, faults)
    names = _Names(parts, faults)
    joints = [j for j in (names.join(edge) for edge in parts.edges) if j is not None]
    entries = [n for n in (names.find(ref, "entry()") for ref in parts.entries) if n is not None]
    finals = [n for n in (names.find(ref, "final()") for ref in parts.finals) if n is not None]
    if not parts.nodes:
        faults.add(parts.name, "has no nodes; add some with node()")
    elif not parts.entries:
        faults.add(parts.name, "has no entry; say where it begins with entry(node)")
    if parts.nodes and not parts.finals:
        faults.add(parts.name, "has no final node; say where it ends with final(node)")
    check_joints(parts.name, names.all, joints, entries, finals, faults)
    check_limits(parts.name, names.all, joints, faults)
    if state is None:
        return None
    nodes, places = _make_nodes(parts, state, faults)
    if faults.problems:
        return None
    inner = _cycle_sizes(nodes)
    _tie(nodes, places, joints)
    for name in finals:
        for number in places[name].last:
            nodes[number] = msgspec.structs.replace(nodes[number], final=True)
    _limit(nodes, inner, parts.options.max_iterations)
    first = tuple(number for name in entries for number in places[name].first)
    return make_plan(parts.name, state, tuple(nodes), first, parts.options.max_concurrency)


class _Names:
    """The names of a graph's nodes, and how they are found."""

    def __init__(self, parts: Parts, faults: Faults) -> None:
        self._where, self._faults = parts.name, faults
        self.all: list[str] = []
        self._by_thing: dict[Any, list[str]] = {}
        for draft in parts.nodes:
            check_name(f"{parts.name}: node {draft.name!r}", draft.name, faults)
            if draft.name in self.all:
                faults.add(parts.name, f"has two nodes named {draft.name!r}; give one another name=")
                continue
            self.all.append(draft.name)
            if draft.thing is not None:
                self._by_thing.setdefault(_identity(draft.thing), []).append(draft.name)
        self._known = set(self.all)

    def find(self, ref: Any, what: str) -> str | None:
        """Return the name of the node that is meant, noting that there is none."""
        if isinstance(ref, str):
            if ref in self._known:
                return ref
            self._faults.add(self._where, f"{what} names {ref!r}, which is no node of it{nearest(ref, self.all)}")
            return None
        found = self._by_thing.get(_identity(ref), ())
        if len(found) == 1:
            return found[0]
        if found:
            given = ", ".join(map(repr, found))
            self._faults.add(self._where, f"{what} names {describe(ref)}, which is several nodes: {given}; give a name")
        else:
            self._faults.add(self._where, f"{what} names {describe(ref)}, which is no node of it; add it with node()")
        return None

    def join(self, edge: EdgeDraft) -> Joint | None:
        """Return an edge between names."""
        source = self.find(edge.source, "an edge's source")
        target = self.find(edge.target, "an edge's target")
        if source is None or target is None:
            return None
        return Joint(source, target, edge.when, bool(edge.otherwise), edge.label, edge.limit)


def _identity(thing: Any) -> Any:
    """Return what a function is known by; methods of an object are made anew whenever they are asked for."""
    if inspect.ismethod(thing):
        return id(thing.__self__), id(thing.__func__)
    return id(thing)


def _make_nodes(parts: Parts, state: StateType, faults: Faults) -> tuple[list[GraphNode], dict[str, _Place]]:
    """Make the nodes, and those of the graphs among them."""
    nodes: list[GraphNode] = []
    places: dict[str, _Place] = {}
    for draft in parts.nodes:
        where = f"{parts.name}: node {draft.name!r}"
        if isinstance(draft.thing, Draft) and hasattr(draft.thing, "plan"):
            places[draft.name] = _expand(where, draft, state, nodes, faults)
            continue
        if draft.thing is None:
            node: GraphNode | None = build_pause(where, draft, state, faults)
        else:
            node = build_node(where, draft, state, faults)
        places[draft.name] = _Place((len(nodes),), (len(nodes),))
        nodes.append(node or GraphNode(name=draft.name))
    return nodes, places


def _expand(where: str, draft: NodeDraft, state: StateType, nodes: list[GraphNode], faults: Faults) -> _Place:
    """Put the nodes of a graph in the place of one."""
    join = read_join(where, draft.join, faults)
    for option in ("retry", "timeout", "merge"):
        if getattr(draft, option) is not None:
            faults.add(where, f"{option}= does not go with a graph, whose nodes have their own")
    try:
        plan = cast(_Expandable, draft.thing).plan()
    except DefinitionError as error:
        faults.extend(error.problems)
        return _Place((), ())
    if plan.state.cls is not state.cls:
        faults.add(where, f"has the state {describe(plan.state.cls)}, this graph {describe(state.cls)}; use one")
    base = len(nodes)
    for number, node in enumerate(plan.nodes):
        name = f"{draft.name}.{node.name}"
        nodes.append(
            msgspec.structs.replace(
                node,
                name=name,
                step=None if node.step is None else msgspec.structs.replace(node.step, name=name),
                edges=tuple(msgspec.structs.replace(e, target=e.target + base) for e in node.edges),
                join=join if join != ALL and number in plan.entries else node.join,
                final=False,
            )
        )
    ends = tuple(base + number for number, node in enumerate(plan.nodes) if node.final)
    return _Place(tuple(base + number for number in plan.entries), ends)


def _tie(nodes: list[GraphNode], places: Mapping[str, _Place], joints: list[Joint]) -> None:
    """Give the nodes their edges."""
    added: dict[int, list[GraphEdge]] = {}
    for joint in joints:
        for source in places[joint.source].last:
            for target in places[joint.target].first:
                edge = GraphEdge(target, joint.when, joint.otherwise, joint.label, joint.limit)
                added.setdefault(source, []).append(edge)
    for number, edges in added.items():
        node = nodes[number]
        nodes[number] = msgspec.structs.replace(node, edges=(*node.edges, *edges))


def _limit(nodes: list[GraphNode], inner: Mapping[int, int], given: int | msgspec.UnsetType) -> None:
    """Limit how often the nodes are executed that lie in a cycle.

    A graph within keeps its own limit, which goes for each round of a cycle that leads out of it and back.

    Args:
        inner: how many nodes each lay in a cycle with in the graph that it comes from.
    """
    limit, unsaid = (ITERATIONS, 1) if isinstance(given, msgspec.UnsetType) else (given, 0)
    for number, size in _cycle_sizes(nodes).items():
        own = nodes[number].limit
        if own is not None and inner.get(number) == size:
            continue
        allowed = limit if own is None else own * limit
        nodes[number] = msgspec.structs.replace(nodes[number], limit=allowed, unsaid=nodes[number].unsaid + unsaid)


def _cycle_sizes(nodes: list[GraphNode]) -> dict[int, int]:
    """Return for each node that lies in a cycle with how many it does."""
    rows = [[edge.target for edge in node.edges] for node in nodes]
    groups = [g for g in find_components(rows) if len(g) > 1 or g[0] in rows[g[0]]]
    return {number: len(group) for group in groups for number in group}


# ------------------------------------------------------------------ the definition
def describe_plan(plan: GraphPlan, parts: Parts) -> RunDefinition:
    """Make the definition of a plan."""

    def interpret(context: Context, inputs: tuple[Any, ...]) -> GraphInterpretation:
        return GraphInterpretation(plan, inputs, context)

    options = parts.options
    assert is_count(options.version)
    deadline = None if options.deadline is None else seconds(options.deadline, "deadline")
    timeout = options.timeout
    if timeout is not None and timeout is not msgspec.UNSET:
        timeout = seconds(timeout, "timeout")
    return RunDefinition(
        kind="graph",
        name=plan.name,
        version=str(options.version),
        deadline=deadline,
        timeout=timeout,
        target=None,
        steps={node.name: node.step for node in plan.nodes if node.step is not None},
        starter=_starter(plan),
        interpret=interpret,
        exported=_export(plan, options, deadline, None if timeout is msgspec.UNSET else timeout),
        homes=[],
        signals={node.name: node.payload for node in plan.nodes if node.payload is not None},
    )


def _starter(plan: GraphPlan) -> StepDefinition:
    """Describe how a graph is called: with a state, for a state."""
    cls = plan.state.cls

    async def graph(state: Any, /) -> Any:
        raise NotImplementedError  # only its signature is used

    parameter = inspect.Parameter("state", inspect.Parameter.POSITIONAL_ONLY, annotation=cls)
    return StepDefinition(
        name=plan.name,
        function=graph,
        is_async=True,
        method=False,
        inputs=(Parameter("state", cls, parameter.kind, required=True, provided=False),),
        providers=(),
        result=plan.state.whole,
        input=Codec(tuple[cls]),  # type: ignore[valid-type]  # built from a type
        signature=inspect.Signature([parameter], return_annotation=cls),
        arity=1,
        kinds=(None,),
        scalar=None,
        positional=1,
        keywords=(),
    )


def _export(plan: GraphPlan, options: GraphOptions, deadline: float | None, timeout: float | None) -> dict[str, Any]:
    """Return a graph as plain data."""
    return {
        "kind": "graph",
        "name": plan.name,
        "version": options.version,
        "deadline": deadline,
        "timeout": timeout,
        "max_concurrency": None if options.max_concurrency is msgspec.UNSET else options.max_concurrency,
        "state": plan.state.cls.__qualname__.rpartition("<locals>.")[2],
        "inputs": ["state"],
        "nodes": [_export_node(node, number in plan.entries) for number, node in enumerate(plan.nodes)],
        "edges": [
            {
                "source": node.name,
                "target": plan.nodes[edge.target].name,
                "when": None if edge.when is None else getattr(edge.when, "__name__", "when"),
                "otherwise": edge.otherwise,
                "label": edge.label,
                "max_iterations": edge.limit,
            }
            for node in plan.nodes
            for edge in node.edges
        ],
    }


def _export_node(node: GraphNode, is_entry: bool) -> dict[str, Any]:
    step = node.step
    kind = "pause" if step is None else "step" if step.halt is None else "run"
    return {
        "name": node.name,
        "kind": kind,
        "attempts": step.retry.attempts if step is not None and step.retry is not None else 1,
        "timeout": None if step is None else step.timeout,
        "join": "all" if node.join == ALL else "any" if node.join == 1 else node.join,
        "entry": is_entry,
        "final": node.final,
        "max_iterations": node.limit,
    }
