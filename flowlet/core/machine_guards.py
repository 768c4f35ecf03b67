"""Putting guards in their places: names looked up, expressions resolved, parameters bound.

Law: what a transition asks before it happens is fixed here; a guard that is named and does not exist,
and one that exists and is never asked, are faults.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from flowlet.core.faults import Faults, describe, nearest
from flowlet.core.guards import Check, Guard, guard_leaves, guard_name
from flowlet.core.hooks import EventParameters, bind
from flowlet.core.machine_members import Members
from flowlet.core.marks import GUARD

GATE = "can_"


class GuardBinder:
    """Builds the checks of one class.

    Args:
        members: where names are looked up.
    """

    def __init__(self, cls: type, members: Members, namespace: Mapping[str, Any], faults: Faults) -> None:
        self._cls, self._members, self._namespace, self._faults = cls, members, namespace, faults
        self._gates: dict[tuple[str, str], Check | None] = {}

    def gate(self, event: str, method: str, parameters: EventParameters) -> Check | None:
        """Return ``can_<event>`` bound for one of the event's methods, or None."""
        key = (event, method)
        if key not in self._gates:
            function = self._members.guards.get(GATE + event)
            self._gates[key] = None if function is None else self._leaf(GATE + event, function, method, parameters)
        return self._gates[key]

    def check(self, guard: Any, method: str, parameters: EventParameters) -> Check | None:
        """Return what ``guard=`` stands for; None when it stands for nothing, which is noted."""
        if isinstance(guard, Guard):
            operands = [self.check(o, method, parameters) for o in guard.operands]
            if not operands:
                self._faults.add(self._where(method), f"{guard.kind}() needs at least one guard")
            return Check(str(guard), None, guard.kind, tuple(o for o in operands if o is not None))
        name, function = self._resolve(guard, method)
        return None if function is None else self._leaf(name, function, method, parameters)

    def _resolve(self, guard: Any, method: str) -> tuple[str, Any]:
        """Look a leaf up; a guard given as the function in the class is the subclass's when it has its own."""
        if not isinstance(guard, str):
            label = str(getattr(guard, GUARD, ""))
            if label in self._members.guards:
                return label, self._members.guards[label]
            if callable(guard) and not isinstance(guard, type):
                return guard_name(guard), guard
            self._faults.add(self._where(method), f"guard={guard!r} is no guard; give a function or a name")
            return "", None
        if guard in self._members.guards:
            return guard, self._members.guards[guard]
        known = [*self._members.guards, *(n for n in self._members.all if not n.startswith("__"))]
        unmarked = callable(self._members.all.get(guard))
        hint = "; put @guard on that method" if unmarked else nearest(guard, self._members.guards or known)
        self._faults.add(self._where(method), f"guard={guard!r} names no guard of {describe(self._cls)}{hint}")
        return guard, None

    def _leaf(self, name: str, function: Any, method: str, parameters: EventParameters) -> Check:
        cause = f"; it guards {method!r}, which has no such argument"
        where = f"{describe(self._cls)}.{name}"
        return Check(name, bind(name, function, parameters, self._namespace, self._faults, where=where, cause=cause))

    def _where(self, method: str) -> str:
        return f"{describe(self._cls)}.{method}"


def check_unused(cls: type, members: Members, events: Iterable[str], faults: Faults) -> None:
    """Note guards that no event and no ``guard=`` asks, and methods named like a guard without the mark."""
    names = list(events)
    for event in names:
        if inspect.isroutine(members.all.get(GATE + event)) and GATE + event not in members.guards:
            faults.add(f"{describe(cls)}.{GATE}{event}", f"is named like the guard of {event!r}; put @guard on it")
    asked = {GATE + event for event in names}
    for mark in members.marks():
        for leaf in guard_leaves(mark.guard):
            asked.add(leaf if isinstance(leaf, str) else getattr(leaf, GUARD, ""))
    for label in members.guards:
        if label in asked:
            continue
        if label.startswith(GATE):
            near = nearest(label, [GATE + e for e in names])
            what = f"there is no event {label[len(GATE) :]!r} that it could guard"
        else:
            near, what = "", "no transition names it in guard="
        faults.add(f"{describe(cls)}.{label}", f"this guard is never asked: {what}{near}")
