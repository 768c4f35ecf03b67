"""The immutable definition of a machine: what a class means once it has been read and checked.

Law: a definition is a value; it knows nothing of objects, stores or loops, and nothing changes it after
`flowlet.core.machine_builder.build_machine` has made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec

from flowlet.core.chart import Candidate, Landing, Plans
from flowlet.core.codec import Codec
from flowlet.core.configurations import Configuration, Configurations
from flowlet.core.faults import nearest
from flowlet.core.hooks import EventParameters, Transition
from flowlet.core.machine_data import DataShape, Snapshot
from flowlet.core.machine_works import Work
from flowlet.core.marks import Trigger
from flowlet.core.needs import Need
from flowlet.core.secrets import Tree, Walk, secret_tree, secrets_of_fields, secrets_of_items
from flowlet.core.statechart import Statechart
from flowlet.core.states import State, States
from flowlet.errors import MachineError

__all__ = ["MachineDefinition", "Migration", "Transition"]

Migration: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""Turns a record of one definition version into one of the next.

It is given, and returns, a dict with the keys ``event`` (None for the creation), ``source`` (None for
the creation), ``target`` and ``data`` (a dict, or None when the transition left the data as it was), and, in
machines that have them, ``memory`` (what each history remembers) and ``timers`` (their keys, such as
``"remind@Waiting"``), or None.
"""


class MachineDefinition(msgspec.Struct, frozen=True, eq=False, weakref=True):
    """A machine as assembled.

    Attributes:
        cls: the user's class.
        version: the definition version, which every record carries.
        initial: the configuration of a new object; `Configuration.fresh` when starting it has something to do.
        start: what that is.
        chart: of a machine with nested states, timers and the like; None for a flat one.
        plans: by event, then by configuration: the candidates in the order they are tried.
        method_plans: the same for the candidates of one trigger method.
        methods: the trigger methods, by name.
        methods_of: the trigger methods of an event, in order.
        parameters: what the caller of a trigger gives, by method.
        results: decodes what a trigger returned, by method; None without a usable annotation.
        snapshot: reads and puts back the attributes that a failed transition must not change.
        migrations: by the version they start from.
        works: what states invoke, by their names.
        runs: the definitions of the runs that do this, by their names; made when it is registered.
        provided: the parameters that flowlet fills, of its class and its callbacks.
        load: those of ``on_load`` among them.
    """

    cls: type
    name: str
    version: int
    states: States
    initial: Configuration
    start: Landing
    configurations: Configurations
    candidates: tuple[Candidate, ...]
    chart: Statechart | None
    plans: Mapping[str, Plans]
    method_plans: Mapping[str, Plans]
    methods: Mapping[str, Trigger]
    methods_of: Mapping[str, tuple[str, ...]]
    parameters: Mapping[str, EventParameters]
    results: Mapping[str, Codec[Any] | None]
    data: DataShape
    snapshot: Snapshot
    migrations: Mapping[int, Migration]
    works: Mapping[str, Work]
    runs: dict[str, Any]
    provided: tuple[Need, ...] = ()
    load: tuple[Need, ...] = ()

    @property
    def events(self) -> tuple[str, ...]:
        """The names of all events that can be fired."""
        fired = {c.event for c in self.candidates if not c.automatic}
        return tuple(event for event in self.plans if event in fired)

    def state(self, ref: Any) -> State:
        """Return the state for a class, an Enum member or a name.

        Raises:
            MachineError: it is no state of this machine.
        """
        found = self.states.find(ref)
        if found is None:
            raise MachineError(f"{self.name}: {self.states.unknown(ref)}")
        if found.kind in ("shallow", "deep"):
            raise MachineError(f"{self.name}: nothing is ever in the history {found.name!r}; name a state")
        return found

    def event(self, name: object) -> Plans:
        """Return the plans of an event.

        Raises:
            MachineError: there is no such event.
        """
        plans = self.plans.get(name) if isinstance(name, str) else None
        if plans is None:
            raise MachineError(f"{self.name} has no event {name!r}{nearest(str(name), self.plans)}")
        return plans

    def covers(self, word: str, state: State) -> bool:
        """Say whether a machine whose head has this word is in a state."""
        try:
            return state.name in self.configurations[word].names
        except KeyError:
            return False

    def knows(self, event: str) -> bool:
        """Say whether there is a transition with this event, or one that happens by itself and is called like it."""
        return event in self.plans or any(c.event == event for c in self.candidates)

    def may(self, event: str, source: Configuration, target: str) -> bool:
        """Say whether an event can have led from a configuration to another, whatever guards have said."""
        if self.chart is not None:
            return self.chart.may(event, source, target)
        return target in self.targets(event, source)

    def targets(self, event: str, source: Configuration) -> set[str]:
        """Return the states in which an event can leave a flat machine."""
        plans = self.plans[event].get(source, ()) if event in self.plans else ()
        return {p.target.state for p in plans} | {p.rescue.target.state for p in plans if p.rescue is not None}

    def export(self) -> dict[str, Any]:
        """Describe the machine as plain data that JSON can hold, for tools that have not got the class.

        The key ``"secrets"`` is there if a type of it is marked `Secret`: trees by ``"data"``, ``"events"`` (by the
        trigger's method: of the pair of positional and keyword arguments, as it is stored) and ``"results"`` (by the
        trigger's method).
        """
        exported = self._export()
        secrets = self.secrets()
        return {**exported, "secrets": secrets} if secrets else exported

    def secrets(self) -> dict[str, Any]:
        """Return where secrets are in what is stored of it; see `flowlet.core.secrets`."""
        walk = Walk()
        events = {method: _argument_secrets(parameters, walk) for method, parameters in self.parameters.items()}
        results = {method: c.type for method, c in self.results.items() if c is not None}
        found = {
            "data": secret_tree(self.data.struct, walk),
            "events": {method: tree for method, tree in events.items() if tree is not None},
            "results": secrets_of_fields(results, walk),
        }
        return {key: tree for key, tree in found.items() if tree}

    def _export(self) -> dict[str, Any]:
        return {
            "kind": "machine",
            "name": self.name,
            "version": self.version,
            "initial": self.initial.state,
            "states": [self._export_state(s) for s in self.states.by_name.values()],
            "events": list(self.events),
            "transitions": [_export_candidate(c) for c in self.candidates],
            "data": list(self.data.names),
        }

    def _export_state(self, state: State) -> dict[str, Any]:
        nodes = self.states.tree.nodes
        node = nodes[state.number]
        around = nodes[node.ancestors[0]]
        invoke = state.mark.invoke
        return {
            "name": state.name,
            "parent": state.parent,
            "type": state.kind,
            "initial": around.kind == "compound" and state.number in around.default,
            "default": [nodes[n].name for n in node.default],
            "invoke": None if invoke is None else invoke if isinstance(invoke, str) else _title(invoke),
        }


def _export_candidate(candidate: Candidate) -> dict[str, Any]:
    guards = [c.name for c in (candidate.gate, candidate.check) if c is not None]
    return {
        "event": candidate.event,
        "method": candidate.method,
        "source": "*" if candidate.source is None else candidate.source.name,
        "targets": [t.name for t in candidate.targets],
        "guards": guards,
        "internal": candidate.internal,
        "kind": candidate.cause,
        "after": candidate.after,
        "exclusive": candidate.exclusive,
        "on_error": None if candidate.on_error is None else candidate.on_error.name,
    }


def _argument_secrets(parameters: EventParameters, walk: Walk) -> Tree | None:
    """Return where secrets are in a call's pair of positional and keyword arguments."""
    known = parameters.annotations
    pair = {
        "0": secrets_of_items([known.get(name) for name in parameters.names], walk),
        "1": secrets_of_fields({n: known.get(n) for n in (*parameters.names, *parameters.keywords)}, walk),
    }
    return {place: tree for place, tree in pair.items() if tree is not None} or None


def _title(invoked: Any) -> str:
    return str(getattr(invoked, "__name__", None) or getattr(invoked, "name", None) or invoked)
