"""A graph while it is being written: what was added, and the moment when it is built.

Law: nothing is judged when it is added, since what it refers to may come later; all faults are found when the graph is
built, which happens once. From then on it does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flowlet.core.definitions import Draft, RunDefinition
from flowlet.core.faults import Faults
from flowlet.core.graph_builder import EdgeDraft, Parts, build_plan, describe_plan
from flowlet.core.graph_checks import GraphOptions
from flowlet.core.graph_nodes import NodeDraft
from flowlet.core.graph_plan import GraphPlan
from flowlet.errors import DefinitionError


class GraphDraft(Draft):
    """What was said of a graph so far.

    Args:
        namespace: the names that annotations may use beyond those of their modules.
        bind: makes of the definition what is called.
    """

    def __init__(
        self,
        name: str,
        state: Any,
        options: GraphOptions,
        namespace: Mapping[str, Any],
        bind: Callable[[RunDefinition], Any],
    ) -> None:
        super().__init__(name, str(options.version))
        self._parts = Parts(name=name, state=state, options=options, namespace=namespace)
        self._bind = bind
        self._plan: GraphPlan | None = None
        self._caller: Any = None
        self._is_building = False

    def add_node(self, draft: NodeDraft) -> None:
        """Add a node, or a pause."""
        self._refuse_if_built()
        self._parts.nodes.append(draft)

    def add_edge(self, draft: EdgeDraft) -> None:
        """Add an edge."""
        self._refuse_if_built()
        self._parts.edges.append(draft)

    def add_entry(self, node: Any) -> None:
        """Have the run begin with a node."""
        self._refuse_if_built()
        self._parts.entries.append(node)

    def add_finals(self, nodes: tuple[Any, ...]) -> None:
        """Have the run end with one of these nodes."""
        self._refuse_if_built()
        self._parts.finals.extend(nodes)

    def plan(self) -> GraphPlan:
        """Return what runs, which is built if that has not been done yet.

        Raises:
            DefinitionError: with everything that is wrong with it.
        """
        self.definition()
        assert self._plan is not None
        return self._plan

    def definition(self) -> RunDefinition:
        """Return the definition, which is built if that has not been done yet.

        Raises:
            DefinitionError: with everything that is wrong with it.
        """
        if self.built is None:
            if self._is_building:
                raise DefinitionError([f"{self.name}: contains itself, so that it has no end; leave it out as a node"])
            self._is_building = True
            try:
                self._build()
            finally:
                self._is_building = False
        assert self.built is not None
        return self.built

    def caller(self) -> Any:
        """Return what runs the graph when it is called."""
        self.definition()
        return self._caller

    def _build(self) -> None:
        faults = Faults()
        plan = build_plan(self._parts, faults)
        faults.raise_if_any()
        assert plan is not None
        definition = describe_plan(plan, self._parts)
        self._caller = self._bind(definition)
        self._plan = plan
        self.publish(definition)

    def _refuse_if_built(self) -> None:
        if self.built is not None:
            raise DefinitionError(
                [f"{self.name}: is built already, and does not change any more; add to it before it is used"]
            )
