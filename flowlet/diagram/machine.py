"""Drawing a machine: its states, how they lie in each other, and its transitions.

Law: what an arrow cannot say becomes a pseudo-state: several targets are a fork, the whole machine as a source is a
vertex of its own, a history is a vertex from which an arrow leads to its default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flowlet.diagram.exported import ANYWHERE, TOGETHER, MachineExport, StateExport, TransitionExport
from flowlet.diagram.picture import Edge, Idents, Look, Picture, Shape, Vertex
from flowlet.diagram.wording import error_label, transition_label
from flowlet.errors import FlowletError

_HISTORY = {"shallow": "(H)", "deep": "(H*)"}


def draw_machine(machine: MachineExport, active: Sequence[str]) -> Picture:
    """Draw a machine.

    Args:
        active: names of active states.

    Raises:
        FlowletError: the export names a state that it does not have.
    """
    return _Drawing(machine, active).draw()


class _Drawing:
    def __init__(self, machine: MachineExport, active: Sequence[str]) -> None:
        self._machine = machine
        self._idents = Idents()
        self._ids: dict[str, str] = {}
        self._states: dict[str, StateExport] = {}
        self._children: dict[str | None, list[StateExport]] = {None: []}
        self._pseudo: list[Vertex] = []
        for state in machine.states:
            if state.parent not in self._children:
                raise FlowletError(
                    f"{machine.name}: the parent {state.parent!r} of {state.name!r} is not listed before it"
                )
            self._states[state.name] = state
            self._ids[state.name] = self._idents.make(state.name)
            self._children[state.name] = []
            self._children[state.parent].append(state)
        self._looks = self._highlight(active)

    def draw(self) -> Picture:
        machine = self._machine
        first = self._children[None]
        vertices = [self._vertex(state) for state in first]
        edges = [*self._history_edges(), *(e for t in machine.transitions for e in self._edges(t))]
        leading = [s.name for s in first if s.initial] or [n for n in machine.initial.split(TOGETHER) if n]
        entry = tuple(self._id(name) for name in leading)
        return Picture(Idents().make(machine.name), "chart", (*vertices, *self._pseudo), tuple(edges), entry)

    def _id(self, name: str) -> str:
        found = self._ids.get(name)
        if found is None:
            raise FlowletError(f"{self._machine.name}: the export has no state {name!r}, but leads there")
        return found

    # States -------------------------------------------------------------------------------------
    def _highlight(self, active: Sequence[str]) -> dict[str, Look]:
        looks: dict[str, Look] = {}
        above: set[str] = set()
        for name in active:
            parent = self._states[name].parent
            while parent is not None and parent not in above:
                above.add(parent)
                parent = self._states[parent].parent
        looks.update((name, "active") for name in active)
        looks.update((name, "around") for name in above)
        return looks

    def _vertex(self, state: StateExport) -> Vertex:
        children = self._children[state.name]
        return Vertex(
            id=self._ids[state.name],
            lines=_lines(state),
            shape=_shape(state, self._states.get(state.parent or "")),
            look=self._looks.get(state.name, "plain"),
            children=tuple(self._vertex(child) for child in children),
            entry=tuple(self._id(name) for name in self._entry(state, children)),
        )

    def _entry(self, state: StateExport, children: Sequence[StateExport]) -> Sequence[str]:
        if state.type == "parallel" or not children:
            return ()
        return state.default or [child.name for child in children if child.initial]

    # Edges --------------------------------------------------------------------------------------
    def _history_edges(self) -> Iterator[Edge]:
        for state in self._machine.states:
            if state.type in _HISTORY and state.default:
                yield from self._lead(self._ids[state.name], state.default)

    def _edges(self, transition: TransitionExport) -> Iterator[Edge]:
        source = self._anywhere() if transition.source == ANYWHERE else self._id(transition.source)
        label = transition_label(transition)
        if transition.targets:
            yield from self._lead(source, transition.targets, label)
        else:
            yield Edge(source, source, (label,))
        if transition.on_error is not None:
            yield Edge(source, self._id(transition.on_error), (error_label(transition),), aside=True)

    def _lead(self, source: str, targets: Sequence[str], *lines: str) -> Iterator[Edge]:
        if len(targets) == 1:
            yield Edge(source, self._id(targets[0]), lines)
            return
        fork = Vertex(self._idents.make("split"), (), "fork")
        self._pseudo.append(fork)
        yield Edge(source, fork.id, lines)
        for target in targets:
            yield Edge(fork.id, self._id(target))

    def _anywhere(self) -> str:
        if ANYWHERE not in self._ids:
            self._ids[ANYWHERE] = self._idents.make("any_state")
            self._pseudo.append(Vertex(self._ids[ANYWHERE], ("* (any state)",), "anywhere"))
        return self._ids[ANYWHERE]


def _lines(state: StateExport) -> tuple[str, ...]:
    title = f"{state.title} {_HISTORY[state.type]}" if state.type in _HISTORY else state.title
    return (title,) if state.invoke is None else (title, f"invoke {state.invoke}")


def _shape(state: StateExport, parent: StateExport | None) -> Shape:
    if state.type in _HISTORY:
        return "history"
    if state.type == "parallel":
        return "parallel"
    if state.type == "final":
        return "final"
    return "region" if parent is not None and parent.type == "parallel" else "state"
