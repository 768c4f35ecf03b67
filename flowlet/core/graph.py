"""Running a graph: nodes execute, the edges that are taken carry tokens on, joins wait for what can still come.

Law: one task, which waits in `Flights.land` only, or in the engine if one node is all there is. What has landed is
dealt with one by one, in the order of the journal, so that how many landed together makes no difference to what
follows. The journal is the checkpoint: there is no other.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from flowlet.core.codec import Codec, encode
from flowlet.core.definitions import Context, GraphLimits, Undone
from flowlet.core.engine import StepCall
from flowlet.core.flights import Flights
from flowlet.core.graph_fields import NOTHING
from flowlet.core.graph_plan import GraphEdge, GraphNode, GraphPlan
from flowlet.core.graph_state import GraphState
from flowlet.core.graph_tokens import Firing
from flowlet.core.steps import StepDefinition, encode_input
from flowlet.errors import EdgeFailed, GraphStuck, IterationLimit, UpdateError

LIMITS = "graph/limits"
"""The key under which a run keeps the limits that it began with, if they are not the default."""

_DEFAULT = GraphLimits()
_settled_codec: Codec[tuple[int, int | None]] = Codec(tuple[int, int | None])


class GraphInterpretation:
    """One run of a graph."""

    __slots__ = (
        "_counts",
        "_died",
        "_engine",
        "_finished",
        "_flights",
        "_limits",
        "_lone",
        "_plan",
        "_state",
        "_taken",
        "_timed",
        "_tokens",
    )

    def __init__(self, plan: GraphPlan, inputs: tuple[Any, ...], context: Context) -> None:
        self._plan = plan
        self._engine = context.engine
        self._limits = context.limits
        self._timed: dict[str, StepDefinition] = {}
        self._flights = Flights(context.engine, plan.max_concurrency or None)
        self._lone: tuple[StepCall, Firing] | None = None  # the only one there is to make
        self._tokens = plan.tokens()
        self._state = GraphState(plan.state, inputs[0])
        self._counts = [0] * len(plan.nodes)
        self._taken: dict[GraphEdge, int] = {}
        self._died: dict[str, None] = {}
        self._finished = False

    @property
    def undoes(self) -> bool:
        """Nothing: a graph has no compensation."""
        return False

    async def forward(self) -> bytes:
        """Execute nodes until no token is left; return the encoded state."""
        self._settle()
        flights = self._flights
        try:
            self._execute_all(self._tokens.begin(self._plan.entries))
            while True:
                if self._lone is not None:
                    call, firing = self._lone
                    self._lone = None
                    self._go_on(firing, call, await self._engine.perform(call))
                elif flights:
                    for landed in await flights.land():
                        if landed.error is not None:
                            raise landed.error
                        self._go_on(landed.purpose, landed.call, landed.value)
                else:
                    break
        except Exception:
            await flights.stop()
            raise
        if not self._finished:
            died = ", ".join(map(repr, self._died))
            raise GraphStuck(
                f"graph {self._plan.name!r} ended without reaching a final node: no edge was taken after {died}; give "
                "it an edge with otherwise=True",
                tuple(self._died),
            )
        return self._state.data

    def _settle(self) -> None:
        """Have the run keep to the limits that it began with, so that a replay does what was done."""
        limits, default = self._limits, _DEFAULT
        if limits.iterations == default.iterations and limits.concurrency == default.concurrency:
            mine = None
        else:
            mine = encode((limits.iterations, limits.concurrency), "the limits of graphs")
        settled = self._engine.keep(LIMITS, mine)
        if settled is not None:
            iterations, concurrency = _settled_codec.decode(settled, f"the limits of graph {self._plan.name!r}")
            self._limits = GraphLimits(iterations, concurrency, limits.node_timeout)
        elif mine is not None:
            self._limits = GraphLimits(node_timeout=limits.node_timeout)
        if self._plan.max_concurrency is UNSET and self._limits.concurrency is not None:
            self._flights = Flights(self._engine, self._limits.concurrency)

    async def backward(self, error: Exception) -> Undone:
        """Undo nothing: a graph has no compensation."""
        return Undone()

    def _execute_all(self, firings: Sequence[Firing]) -> None:
        """Start executions of nodes."""
        is_lone = self._tokens.is_lone
        for firing in firings:
            node, counts = self._plan.nodes[firing.node], self._counts
            count = counts[firing.node] = counts[firing.node] + 1
            key = firing.key = node.name if count == 1 else f"{node.name}#{count}"
            if count > 1 and node.limit is not None and count > (limit := node.allowed(self._limits.iterations)):
                self._exceed(firing.node, f"node {node.name!r} was to be executed", limit)
            if is_lone:
                self._state.forget_past(firing.past)
                self._tokens.forget_past(firing)
            if node.step is None:
                self._flights.watch(self._engine.signal(key, node.name), firing)
            elif is_lone:
                self._lone = self._call(node, node.step, key), firing
            else:
                self._flights.add(self._call(node, node.step, key), firing)

    def _call(self, node: GraphNode, step: StepDefinition, key: str) -> StepCall:
        if self._limits.node_timeout is not None:
            step = self._in_time(node, step)
        state, data = self._state.give()
        if node.takes is None:
            return StepCall(self._engine, step, key, (state,), data, node.owner)
        args = tuple(getattr(state, name) for name in node.takes)
        return StepCall(self._engine, step, key, args, encode_input(args), node.owner)

    def _in_time(self, node: GraphNode, step: StepDefinition) -> StepDefinition:
        """Return a node's step with the timeout that is configured, if it has none of its own and can have one."""
        if step.timeout is not None or step.halt is not None or step.transactional:
            return step
        timed = self._timed.get(node.name)
        if timed is None:
            timed = replace(step, timeout=self._limits.node_timeout, plain=False)
            self._timed[node.name] = timed
        return timed

    def _go_on(self, firing: Firing, call: StepCall | None, value: bytes) -> None:
        """Take over what an execution has changed, and send its tokens on."""
        number, key = firing.node, firing.key
        node = self._plan.nodes[number]
        if node.merge is not None or value not in NOTHING:
            changes = self._read_changes(node, key, call, value)
            if changes:
                self._state.change(changes, firing, key)
        targets = self._plan.next_nodes[number]
        if targets is None:
            targets = self._choose(node)
        if node.final:
            self._finished = True
        elif not targets:
            self._died[key] = None
        self._execute_all(self._tokens.hand_on(firing, targets))

    def _read_changes(self, node: GraphNode, key: str, call: StepCall | None, value: bytes) -> dict[str, Any]:
        """Return the fields that an execution has changed."""
        state = self._plan.state
        if node.payload is not None:
            given = node.payload.decode(value, f"the signal for {key!r}")
            if node.merge is None:
                return state.read(encode(given, f"the signal for {key!r}"), key)
        elif node.merge is None:
            return state.read(value, key)
        else:
            assert call is not None
            given = call.definition.decode(value)
        try:
            changes = node.merge(self._state.copy(), given)
        except Exception as error:
            raise UpdateError(f"merge= of {key!r} failed with {type(error).__name__}: {error}", key) from error
        return state.convert(changes, key)

    def _choose(self, node: GraphNode) -> tuple[int, ...]:
        """Return where the edges lead that are taken, which has to be asked."""
        state = self._state.value
        met = {edge: self._ask(node, edge, state) for edge in node.edges if edge.when is not None}
        is_met = any(met.values())
        taken = [e for e in node.edges if met.get(e, not (e.otherwise and is_met))]
        for edge in taken:
            if edge.limit is not None:
                count = self._taken[edge] = self._taken.get(edge, 0) + 1
                if count > edge.limit:
                    target = self._plan.nodes[edge.target].name
                    self._exceed(edge.target, f"the edge from {node.name!r} to {target!r} was to be taken", edge.limit)
        return tuple(edge.target for edge in taken)

    def _ask(self, node: GraphNode, edge: GraphEdge, state: Any) -> bool:
        assert edge.when is not None
        target = self._plan.nodes[edge.target].name
        try:
            answer = edge.when(state)
            if not inspect.isawaitable(answer):
                return bool(answer)
        except Exception as error:
            raise EdgeFailed(
                f"when= of the edge from {node.name!r} to {target!r} failed with {type(error).__name__}: {error}",
                node.name,
                target,
            ) from error
        if inspect.iscoroutine(answer):
            answer.close()
        raise EdgeFailed(
            f"when= of the edge from {node.name!r} to {target!r} returned an awaitable; do slow work in a node",
            node.name,
            target,
        )

    def _exceed(self, number: int, what: str, limit: int) -> None:
        cycle = self._plan.cycle_of(number)
        path = " -> ".join([*cycle, *cycle[:1]])
        raise IterationLimit(
            f"{what} more than {limit} times, in the cycle {path}: let a condition lead out of it, or raise "
            "max_iterations=",
            self._plan.nodes[number].name,
            limit,
            cycle,
        )
