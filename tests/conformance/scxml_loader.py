"""Turns charts that were read from SCXML files into flowlet machines, so that public suites can be replayed.

Law: no statechart semantics. `build_machine` writes a chart down in flowlet's public marks, `build_model` for the model
in ``tests/properties``; what a transition does to the configuration is decided there alone.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import scxml_model as model
from scxml_chart import Arrow, Block, Chart, Node, Session
from scxml_script import ScriptError

from flowlet import Registry, in_state, raise_event, state, transition

DOUBTS = frozenset({"conflict", "cycle", "dead_end", "no_final", "shadowed", "unreachable"})
"""What may be doubtful in a chart of a suite; the suites contain all of it."""

Pause = Callable[[], Awaitable[object]]


class MachineSession:
    """What content may do in a flowlet machine."""

    def __init__(self, machine: Any, plan: Plan, event: dict[str, Any] | None = None) -> None:
        self._machine, self._plan, self.event = machine, plan, event

    @property
    def vars(self) -> dict[str, Any]:
        found: dict[str, Any] = self._machine.vars
        return found

    @vars.setter
    def vars(self, value: dict[str, Any]) -> None:
        self._machine.vars = value

    def is_in(self, id: str) -> bool:
        return in_state(self._machine, self._plan.paths[id])

    def raise_event(self, name: str, data: Any) -> None:
        if name in self._plan.served:  # nothing else could find a transition
            raise_event(self._machine, name, event={"name": name, "data": data})

    def send(self, name: str, delay: float, data: Any) -> None:
        if name in self._plan.served:
            raise_event(self._machine, name, event={"name": name, "data": data}, after=delay)


class Early:
    """Keeps what content raises before there is a machine to raise it in."""

    def __init__(self) -> None:
        self.event: dict[str, Any] | None = None
        self.vars: dict[str, Any] = {}
        self.raised: list[tuple[str, Any]] = []

    def is_in(self, id: str) -> bool:
        return False

    def raise_event(self, name: str, data: Any) -> None:
        self.raised.append((name, data))

    def send(self, name: str, delay: float, data: Any) -> None:
        raise ScriptError("nothing can be sent yet")


class Plan:
    """The names that the parts of a chart have in flowlet.

    Attributes:
        names: of the classes of the states, by id; unique in the chart, so that hooks may be named after them.
        paths: the canonical names of the states, by id.
        served: the events that some transition is for.
        pause: what actions and hooks wait for.
    """

    def __init__(self, chart: Chart, pause: Pause | None) -> None:
        self.chart, self.pause = chart, pause
        self.names = {node.id: f"s{n}_{_identifier(node.id)}" for n, node in enumerate(chart.nodes, 1)}
        self.paths: dict[str, str] = {}
        for node in chart.nodes:
            above = self.paths.get(node.parent.id if node.parent is not None else "")
            self.paths[node.id] = f"{above}.{self.names[node.id]}" if above else self.names[node.id]
        self.served = {event for arrow in chart.arrows for event in arrow.events(chart)}

    async def wait(self) -> None:
        """Wait as long as actions and hooks are to wait."""
        if self.pause is not None:
            await self.pause()

    def event(self, name: str) -> str:
        """Name an event as flowlet does: those of finished states by the state's path."""
        id = name.removeprefix("done.state.")
        return f"done.state.{self.paths[id]}" if id != name and id in self.paths else name


def _identifier(id: str) -> str:
    return re.sub(r"\W", "_", id).lower()


class Machine(NamedTuple):
    """A chart as a flowlet machine.

    Attributes:
        ids: the ids of the states by their canonical names.
        atomic: the ids of those that have no children.
        events: the names of the events it knows.
    """

    registry: Registry
    cls: Any
    ids: Mapping[str, str]
    atomic: frozenset[str]
    events: frozenset[str]

    def configuration(self, active: Iterable[str]) -> set[str]:
        """Return the ids of the atomic states among the names of active ones."""
        return {self.ids[name] for name in active} & self.atomic


PROBE = "probe"
"""An event that nothing ever happens on, but that a machine without a store starts at."""

START = "start"
"""The class of a state of the loader's own, for charts that start somewhere below the top."""


def build_machine(chart: Chart, *, allow: Iterable[str] = DOUBTS, pause: Pause | None = None) -> Machine:
    """Write a chart down in flowlet's marks and assemble it.

    Args:
        pause: what every action and hook awaits when it has done its work; by default, they do not wait.
    """
    plan = Plan(chart, pause)
    body: dict[str, Any] = {"__annotations__": {"vars": dict[str, Any]}, "__init__": _initializer(plan)}
    top = [node for node in chart.root.children if node.kind not in ("shallow", "deep")]
    start = chart.root.default or [top[0].id]
    if len(start) > 1 or start[0] not in {node.id for node in top}:
        body[START] = state(initial=True)(type(START, (), {}))
        body["leave_start"] = transition(START, [plan.paths[id] for id in start], eventless=True)(
            _nothing("leave_start")
        )
    for node in chart.root.children:
        body[plan.names[node.id]] = _state_class(node, plan, initial=START not in body and node.id == start[0])
    for name, arrow in chart.named_arrows():
        body.update(_members(name, arrow, plan))
    for node in chart.nodes:
        body.update(_hooks(node, plan))
    body[PROBE] = transition("*", None, guard=_named(lambda self: False, "never", {"return": bool}))(_nothing(PROBE))
    registry = Registry()
    cls = registry.machine(name=chart.name, allow=set(allow))(type("Chart", (), body))
    return Machine(
        registry,
        cls,
        ids={path: id for id, path in plan.paths.items()},
        atomic=frozenset(node.id for node in chart.nodes if node.kind in ("atomic", "final")),
        events=frozenset({PROBE, *plan.served}),
    )


def _initializer(plan: Plan) -> Callable[..., None]:
    """Make an ``__init__`` that gives the data their first values, unless they come from a history."""

    def initialize(self: Any, vars: dict[str, Any] | None = None) -> None:
        self._early = []
        self.vars = {} if vars is None else vars
        if vars is None:
            early = Early()
            for block in plan.chart.start:
                block(early)
            self.vars, self._early = early.vars, early.raised

    initialize.__name__, initialize.__annotations__ = "__init__", {"vars": dict[str, Any] | None, "return": None}
    return initialize


def _state_class(node: Node, plan: Plan, *, initial: bool) -> type:
    inside = {plan.names[child.id]: child for child in node.children}
    real = [child for child in node.children if child.kind not in ("shallow", "deep")]
    default = node.default if node.default is not None or node.kind != "compound" else [real[0].id]
    first = default[0] if node.kind == "compound" and default is not None and len(default) == 1 else None
    direct = first in {child.id for child in real}
    body = {name: _state_class(child, plan, initial=direct and child.id == first) for name, child in inside.items()}
    options: dict[str, Any] = {"initial": initial, "value": node.id}
    if node.kind in ("final", "parallel"):
        options[node.kind] = True
    elif node.kind in ("shallow", "deep"):
        options["history"] = node.kind
    if default is not None and not direct and node.kind != "parallel":
        options["default"] = [plan.paths[id] for id in default]
    return state(**options)(type(plan.names[node.id], (), body))


def _nothing(name: str) -> Callable[..., Any]:
    async def nothing(self: Any) -> None: ...

    return _named(nothing, name, {"return": None})


def _members(name: str, arrow: Arrow, plan: Plan) -> dict[str, Any]:
    """Write one transition as a method, with one line for each of its events."""
    source = plan.paths[arrow.source.id] if arrow.source.parent is not None else "*"
    options: dict[str, Any] = {"internal": arrow.internal and bool(arrow.targets)}  # without a target it means nothing
    if arrow.cond is not None:
        options["guard"] = _guard(f"{name}_cond", arrow.cond, plan)
    targets = [plan.paths[id] for id in arrow.targets] or None
    events = [plan.event(event) for event in arrow.events(plan.chart)]
    lines: list[dict[str, Any]] = [{"event": event} for event in events]
    if arrow.descriptors is None:
        lines = [{"eventless": True}]
    method = _action(name, arrow.content, plan)
    for line in reversed(lines):
        method = transition(source, targets, **options, **line)(method)
    return {name: method} if lines else {}


def _action(name: str, content: Block, plan: Plan) -> Callable[..., Any]:
    async def act(self: Any, event: dict[str, Any] | None = None) -> None:
        content(MachineSession(self, plan, event))

    async def act_and_pause(self: Any, event: dict[str, Any] | None = None) -> None:
        await act(self, event)
        await plan.wait()

    # One whose code has no await is known not to wait for anything, so that there are two of them.
    chosen = act if plan.pause is None else act_and_pause
    return _named(chosen, name, {"event": dict[str, Any] | None, "return": None})


def _guard(name: str, cond: Callable[[Session], bool], plan: Plan) -> Callable[..., bool]:
    def agrees(self: Any, event: dict[str, Any] | None = None) -> bool:
        return cond(MachineSession(self, plan, event))

    return _named(agrees, name, {"event": dict[str, Any] | None, "return": bool})


def _hooks(node: Node, plan: Plan) -> Iterator[tuple[str, Callable[..., Any]]]:
    if node.kind in ("shallow", "deep"):
        return
    name = plan.names[node.id]
    yield f"on_enter_{name}", _hook(f"on_enter_{name}", node.on_entry, plan, early=True)
    if node.on_exit:
        yield f"on_exit_{name}", _hook(f"on_exit_{name}", node.on_exit, plan, early=False)


def _hook(name: str, blocks: Sequence[Block], plan: Plan, *, early: bool) -> Callable[..., Any]:
    async def hook(self: Any) -> None:
        session = MachineSession(self, plan)
        if early and self._early:  # what the data raised comes before what the first state raises
            raised, self._early = self._early, []
            for event, data in raised:
                session.raise_event(event, data)
        for block in blocks:
            block(session)

    async def hook_and_pause(self: Any) -> None:
        await hook(self)
        await plan.wait()

    return _named(hook if plan.pause is None else hook_and_pause, name, {"return": None})


def _named(function: Callable[..., Any], name: str, annotations: Mapping[str, Any]) -> Callable[..., Any]:
    function.__name__, function.__qualname__ = name, f"Chart.{name}"
    function.__annotations__ = dict(annotations)
    return function


# ------------------------------------------------------------------ the model
class ModelSession:
    """What content may do in the model."""

    def __init__(self, interpreter: model.Interpreter) -> None:
        self._interpreter, self.event = interpreter, interpreter.event

    @property
    def vars(self) -> dict[str, Any]:
        found: dict[str, Any] = self._interpreter.data
        return found

    @vars.setter
    def vars(self, value: dict[str, Any]) -> None:
        self._interpreter.data = value

    def is_in(self, id: str) -> bool:
        return self._interpreter.is_in(id)

    def raise_event(self, name: str, data: Any) -> None:
        self._interpreter.raise_event(name, {"name": name, "data": data})

    def send(self, name: str, delay: float, data: Any) -> None:
        self._interpreter.send(name, delay, {"name": name, "data": data})


def build_model(chart: Chart) -> model.Interpreter:
    """Write a chart down for the model."""
    root = model.State("", "root")
    made = {"": root}
    for node in chart.nodes:
        assert node.parent is not None
        made[node.id] = made[node.parent.id].add(node.id, node.kind)  # type: ignore[arg-type]
        made[node.id].on_entry = [_model_content(block) for block in node.on_entry]
        made[node.id].on_exit = [_model_content(block) for block in node.on_exit]
    for node in chart.root.walk():
        real = [child.id for child in node.children if child.kind not in ("shallow", "deep")]
        made[node.id].initial = [made[id] for id in node.default or real[:1]]
    for name, arrow in chart.named_arrows():
        source = made[arrow.source.id]
        for event in [None] if arrow.descriptors is None else arrow.events(chart):
            t = model.Transition(name, source, event, [made[id] for id in arrow.targets], internal=arrow.internal)
            t.action = [_model_content(arrow.content)]
            t.cond = None if arrow.cond is None else _model_condition(arrow.cond)
            source.transitions.append(t)
    interpreter = model.Interpreter(root, {})
    for block in chart.start:
        block(ModelSession(interpreter))
    return interpreter


def _model_content(block: Callable[[Session], None]) -> model.Content:
    return lambda interpreter: block(ModelSession(interpreter))


def _model_condition(cond: Callable[[Session], bool]) -> Callable[[model.Interpreter], bool]:
    return lambda interpreter: cond(ModelSession(interpreter))
