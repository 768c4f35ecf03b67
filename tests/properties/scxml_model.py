"""The SCXML algorithm, transcribed from appendix D of the W3C recommendation: slow, direct, and readable.

Law: the functions carry the names of the pseudo-code and do what it says, so that each can be held against
its page; nothing is remembered that can be computed again. It knows nothing of flowlet.

It differs in four places, each marked with DIFFERS: the domain of a transition may be a parallel state; an active
state is not entered again when a transition leads from inside of it to a history around it; what has reached a final
state of the root stays in it, as there is nobody to hand a result to; and a delayed event waits for
`Interpreter.advance`, so that time is a number.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["root", "atomic", "compound", "parallel", "final", "shallow", "deep"]
Content = Callable[["Interpreter"], None]
"""Executable content: it may raise events and change the data."""

MAX_MICROSTEPS = 1_000
"""A macrostep that takes more does not end."""


@dataclass(eq=False)
class State:
    """One state; ``initial`` is where entering it leads, or what a history without a memory leads to."""

    id: str
    kind: Kind
    parent: State | None = None
    children: list[State] = field(default_factory=list)
    initial: list[State] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    on_entry: list[Content] = field(default_factory=list)
    on_exit: list[Content] = field(default_factory=list)
    order: int = 0

    def __repr__(self) -> str:
        return self.id

    def add(self, id: str, kind: Kind) -> State:
        """Put a child at the end."""
        child = State(id, kind, self)
        self.children.append(child)
        return child

    @property
    def is_history(self) -> bool:
        return self.kind in ("shallow", "deep")

    @property
    def is_atomic(self) -> bool:
        return self.kind in ("atomic", "final")

    def walk(self) -> Iterator[State]:
        """Iterate over this state and all below it in document order."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(eq=False)
class Transition:
    """One transition; ``event`` is None for an eventless one, ``targets`` is empty for a targetless one."""

    name: str
    source: State
    event: str | None
    targets: list[State] = field(default_factory=list)
    cond: Callable[[Interpreter], bool] | None = None
    internal: bool = False
    action: list[Content] = field(default_factory=list)

    def __repr__(self) -> str:
        return self.name


def is_descendant(state: State, ancestor: State) -> bool:
    """Tell whether a state lies anywhere below another."""
    return ancestor in get_proper_ancestors(state)


def get_proper_ancestors(state: State, upto: State | None = None) -> list[State]:
    """List the ancestors from the parent up, ending before ``upto``."""
    found: list[State] = []
    above = state.parent
    while above is not None and above is not upto:
        found.append(above)
        above = above.parent
    return found


def get_child_states(state: State) -> list[State]:
    """List the children that are no pseudo-states."""
    return [child for child in state.children if not child.is_history]


def is_legal(configuration: Iterable[State], root: State) -> bool:
    """Judge a configuration by section 3.11: the root's and each compound's one child, all of each parallel's."""
    active = set(configuration) | {root}
    if any(s.is_history or (s.parent is not None and s.parent not in active) for s in active):
        return False
    for state in active:
        inside = [child for child in get_child_states(state) if child in active]
        wanted = len(get_child_states(state)) if state.kind == "parallel" else 0 if state.is_atomic else 1
        if len(inside) != wanted:
            return False
    return True


class Interpreter:
    """One session of a chart.

    Attributes:
        data: what the content of the chart uses.
        trace: what has happened, as ``exit``, ``take`` or ``enter`` and a name.
        stops: the ids of the active states after each microstep.
        sent: how many events content has sent.
    """

    def __init__(self, root: State, data: Any = None) -> None:
        self.root, self.data = root, data
        for order, state in enumerate(root.walk()):
            state.order = order
        self.configuration: set[State] = set()
        self.history_value: dict[State, list[State]] = {}
        self.internal_queue: deque[tuple[str, Any]] = deque()
        self.event: Any = None
        self.running = True
        self.trace: list[str] = []
        self.stops: list[list[str]] = []
        self.sent = 0
        self.now = 0.0
        self._delayed: list[tuple[float, int, str, Any]] = []
        self._numbers = itertools.count()

    # ------------------------------------------------------------------ what content may do
    def raise_event(self, name: str, data: Any = None) -> None:
        """Queue an event for the running macrostep."""
        self.internal_queue.append((name, data))

    def send(self, name: str, delay: float = 0, data: Any = None) -> None:
        """Queue an event that comes from outside after a delay in seconds."""
        self.sent += 1
        heapq.heappush(self._delayed, (self.now + delay, next(self._numbers), name, data))

    def is_in(self, id: str) -> bool:
        """Say whether a state is active."""
        return any(state.id == id for state in self.configuration)

    @property
    def active(self) -> list[str]:
        """The ids of the active states in document order."""
        return [state.id for state in self._active()]

    @property
    def atomic(self) -> list[str]:
        """The ids of the active atomic states in document order."""
        return [state.id for state in self._active() if state.is_atomic]

    @property
    def is_stable(self) -> bool:
        """Whether nothing happens until the next event."""
        final = any(state.kind == "final" and state.parent is self.root for state in self.configuration)
        return final or not self._select_eventless_transitions()

    # ------------------------------------------------------------------ the event loop
    def start(self) -> None:
        """Enter the initial configuration (procedure ``interpret``)."""
        self._enter_states([Transition("initial", self.root, None, self.root.initial)])
        self.stops.append(self.active)
        self._finish_macrostep()
        self.advance(0)

    def send_now(self, name: str, data: Any = None) -> bool:
        """Take one external event to completion; return whether it made any transition."""
        taken = self._handle(name, data)
        self.advance(0)
        return taken

    def advance(self, seconds: float) -> None:
        """Let time pass; what becomes due comes in by itself (DIFFERS: here time is a number)."""
        until = self.now + seconds
        while self._delayed and self._delayed[0][0] <= until:
            self.now, _, name, data = heapq.heappop(self._delayed)
            self._handle(name, data)
        self.now = until

    def _handle(self, name: str, data: Any) -> bool:
        if not self.running:
            return False
        self.event = data
        enabled = self._select_transitions(name)
        self._microstep(enabled)
        self._finish_macrostep()
        return bool(enabled)

    def _finish_macrostep(self) -> None:
        """Take eventless transitions and internal events until there are none (``mainEventLoop``)."""
        for _ in range(MAX_MICROSTEPS):
            if not self.running:
                return
            enabled = self._select_eventless_transitions()
            if not enabled:
                if not self.internal_queue:
                    return
                name, self.event = self.internal_queue.popleft()
                enabled = self._select_transitions(name)
            self._microstep(enabled)
        raise RuntimeError("the macrostep does not end")

    # ------------------------------------------------------------------ selecting transitions
    def _select_eventless_transitions(self) -> list[Transition]:
        return self._select(lambda t: t.event is None)

    def _select_transitions(self, event: str) -> list[Transition]:
        return self._select(lambda t: t.event == event)

    def _select(self, matches: Callable[[Transition], bool]) -> list[Transition]:
        enabled: list[Transition] = []
        for state in self._active():
            if not state.is_atomic:
                continue
            for holder in [state, *get_proper_ancestors(state)]:
                found = next((t for t in holder.transitions if matches(t) and self._condition_match(t)), None)
                if found is not None:
                    if found not in enabled:
                        enabled.append(found)
                    break
        return self._remove_conflicting_transitions(enabled)

    def _condition_match(self, t: Transition) -> bool:
        return t.cond is None or t.cond(self)

    def _remove_conflicting_transitions(self, enabled: Sequence[Transition]) -> list[Transition]:
        filtered: list[Transition] = []
        for t1 in enabled:
            preempted = False
            to_remove: list[Transition] = []
            for t2 in filtered:
                if self._compute_exit_set([t1]) & self._compute_exit_set([t2]):
                    if is_descendant(t1.source, t2.source):
                        to_remove.append(t2)
                    else:
                        preempted = True
                        break
            if not preempted:
                filtered = [t for t in filtered if t not in to_remove]
                filtered.append(t1)
        return filtered

    # ------------------------------------------------------------------ microsteps
    def _microstep(self, enabled: Sequence[Transition]) -> None:
        self._exit_states(enabled)
        for t in enabled:
            self.trace.append(f"take {t.name}")
            self._execute(t.action)
        self._enter_states(enabled)
        self.stops.append(self.active)

    def _execute(self, blocks: Sequence[Content]) -> None:
        for block in blocks:
            block(self)

    def _exit_states(self, enabled: Sequence[Transition]) -> None:
        leaving = self._in_document_order(self._compute_exit_set(enabled))
        leaving.reverse()
        for state in leaving:
            for history in state.children:
                if history.kind == "deep":
                    self.history_value[history] = [s for s in self._active() if s.is_atomic and is_descendant(s, state)]
                elif history.kind == "shallow":
                    self.history_value[history] = [s for s in self._active() if s.parent is state]
        for state in leaving:
            self.trace.append(f"exit {state.id}")
            self._execute(state.on_exit)
            self.configuration.remove(state)

    def _compute_exit_set(self, transitions: Sequence[Transition]) -> set[State]:
        found: set[State] = set()
        for t in transitions:
            if t.targets:
                domain = self._get_transition_domain(t)
                found |= {s for s in self.configuration if is_descendant(s, domain)}
        return found

    def _enter_states(self, enabled: Sequence[Transition]) -> None:
        entering = self._compute_entry_set(enabled) - self.configuration  # DIFFERS: what is active is not entered again
        for state in self._in_document_order(entering):
            self.configuration.add(state)
            self.trace.append(f"enter {state.id}")
            self._execute(state.on_entry)
            if state.kind == "final":
                self._announce_done(state)

    def _announce_done(self, final: State) -> None:
        parent = final.parent
        assert parent is not None
        if parent is self.root:
            self.running = False  # DIFFERS: exitInterpreter would exit the states, too
            return
        self.raise_event(f"done.state.{parent.id}")
        above = parent.parent
        if above is not None and above.kind == "parallel" and self._is_in_final_state(above):
            self.raise_event(f"done.state.{above.id}")

    def _is_in_final_state(self, state: State) -> bool:
        if state.kind == "compound":
            return any(s.kind == "final" and s in self.configuration for s in get_child_states(state))
        if state.kind == "parallel":
            return all(self._is_in_final_state(s) for s in get_child_states(state))
        return False

    # ------------------------------------------------------------------ what is entered
    def _compute_entry_set(self, transitions: Sequence[Transition]) -> set[State]:
        to_enter: set[State] = set()
        for t in transitions:
            for target in t.targets:
                self._add_descendant_states_to_enter(target, to_enter)
            if t.targets:
                domain = self._get_transition_domain(t)
                for target in self._get_effective_target_states(t.targets):
                    self._add_ancestor_states_to_enter(target, domain, to_enter)
                self._add_regions(domain, to_enter)  # DIFFERS: nothing to do unless the domain is parallel
        return to_enter

    def _add_descendant_states_to_enter(self, state: State, to_enter: set[State]) -> None:
        if state.is_history:
            remembered = self.history_value.get(state, state.initial)
            for s in remembered:
                self._add_descendant_states_to_enter(s, to_enter)
            for s in remembered:
                self._add_ancestor_states_to_enter(s, state.parent, to_enter)
            return
        to_enter.add(state)
        if state.kind == "compound":
            for s in state.initial:
                self._add_descendant_states_to_enter(s, to_enter)
            for s in state.initial:
                self._add_ancestor_states_to_enter(s, state, to_enter)
        self._add_regions(state, to_enter)

    def _add_ancestor_states_to_enter(self, state: State, ancestor: State | None, to_enter: set[State]) -> None:
        for above in get_proper_ancestors(state, ancestor):
            to_enter.add(above)
            self._add_regions(above, to_enter)

    def _add_regions(self, state: State, to_enter: set[State]) -> None:
        """Enter those regions of a parallel state by default in which nothing is entered yet."""
        if state.kind == "parallel":
            for child in get_child_states(state):
                if not any(is_descendant(s, child) for s in to_enter):
                    self._add_descendant_states_to_enter(child, to_enter)

    # ------------------------------------------------------------------ domains
    def _get_transition_domain(self, t: Transition) -> State:
        targets = self._get_effective_target_states(t.targets)
        inside = all(is_descendant(s, t.source) for s in targets)
        if t.internal and t.source.kind == "compound" and inside:
            return t.source
        return self._find_lcca([t.source, *targets])

    def _find_lcca(self, states: Sequence[State]) -> State:
        """Return the least common ancestor (DIFFERS: W3C passes over parallel states, SCION does not)."""
        for ancestor in get_proper_ancestors(states[0]):
            if all(is_descendant(s, ancestor) for s in states[1:]):
                return ancestor
        return self.root

    def _get_effective_target_states(self, targets: Sequence[State]) -> list[State]:
        found: list[State] = []
        for target in targets:
            if not target.is_history:
                found.append(target)
            elif target in self.history_value:
                found.extend(self.history_value[target])
            else:
                found.extend(self._get_effective_target_states(target.initial))
        return list(dict.fromkeys(found))

    # ------------------------------------------------------------------ order
    def _active(self) -> list[State]:
        return self._in_document_order(self.configuration)

    def _in_document_order(self, states: Iterable[State]) -> list[State]:
        return sorted(states, key=lambda s: s.order)
