"""Reading a marked class into a `MachineDefinition`, with every fault it has.

Law: nothing here changes the class, and nothing raises for what a user wrote: faults are collected, and a
definition is made only when there are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowlet.core.annotations import MISSING
from flowlet.core.chart import Candidate, Plan, in_order, plan, tabulate
from flowlet.core.codec import Codec
from flowlet.core.faults import Faults, describe
from flowlet.core.hooks import Callback, EventParameters, event_parameters, is_async, may_wait, read_callback
from flowlet.core.machine import MachineDefinition, Migration
from flowlet.core.machine_checks import check_chart, check_initial, check_settings
from flowlet.core.machine_data import Snapshot, collect_data
from flowlet.core.machine_guards import GuardBinder, check_unused
from flowlet.core.machine_hooks import HookFunctions, bind_hooks, collect_hooks
from flowlet.core.machine_members import Members, assigned_names, gather, refuse_kind
from flowlet.core.marks import TransitionMark
from flowlet.core.states import Configuration, State, States, collect_states

ANYWHERE = "*"


def build_machine(
    cls: Any,
    *,
    name: str,
    namespace: Mapping[str, Any],
    faults: Faults,
    version: int = 1,
    on_conflict: str = "raise",
    allow: frozenset[str] = frozenset(),
    migrate: Mapping[int, Migration] | None = None,
) -> MachineDefinition | None:
    """Read and check a class.

    Args:
        name: the definition's name, under which its machines are stored.
        namespace: names that annotations may use beyond the module's, such as the assembler's locals.
        faults: where everything that is wrong is noted.
        version: the definition version; raise it when older histories no longer fit.
        on_conflict: ``"retry"`` makes every transition of the class try again after a `Conflict`.
        allow: kinds of doubts to let pass, see `flowlet.core.machine_checks.DOUBTS`.
        migrate: by definition version, what turns its records into those of the next.

    Returns:
        The definition, or None when faults were noted.
    """
    before = len(faults.problems)
    if refuse_kind(cls, faults):
        return None
    check_settings(cls, version, on_conflict, allow, faults)
    definition = _Reading(cls, name, version, on_conflict, allow, namespace, migrate or {}, faults).read()
    return definition if len(faults.problems) == before else None


class _Reading:
    """One reading of one class; its methods run once, in the order of `read`."""

    def __init__(
        self,
        cls: type,
        name: str,
        version: int,
        on_conflict: str,
        allow: frozenset[str],
        namespace: Mapping[str, Any],
        migrate: Mapping[int, Migration],
        faults: Faults,
    ) -> None:
        self.cls, self.name, self.version, self.allow = cls, name, version, allow
        self.retry = on_conflict == "retry"
        self.namespace, self.migrate, self.faults = namespace, migrate, faults
        self.members: Members = gather(cls, faults)
        self.states: States = collect_states(cls, self.members.all, self.members.refs(), faults)
        self.parameters: dict[str, EventParameters] = {
            method: event_parameters(trigger.action, namespace, faults)
            for method, trigger in self.members.triggers.items()
        }
        self.guards = GuardBinder(cls, self.members, namespace, faults)

    def read(self) -> MachineDefinition:
        check_initial(self.cls, self.states.by_name, self.faults)
        self._check_migrations()
        candidates = self._candidates()
        check_unused(self.cls, self.members, self._events(), self.faults)
        check_chart(self.cls, self.states.by_name, candidates, self.allow, self.faults)
        hooks = collect_hooks(self.cls, self.members.all, self.states.by_name, self.faults)
        data = collect_data(self.cls, self.members.all, self.namespace, self.faults)
        configurations = self._configurations()
        plans = self._plans(candidates, configurations, hooks)
        assigned = [n for n in assigned_names(self.members.all, self.cls) if n not in data.names]
        initial = next((c for n, c in configurations.items() if self.states.by_name[n].initial), None)
        return MachineDefinition(
            cls=self.cls,
            name=self.name,
            version=self.version,
            states=self.states,
            initial=initial or Configuration(("?",), False, ("", "")),
            configurations=configurations,
            candidates=tuple(candidates),
            plans={e: tabulate([p for p in plans if p.event == e]) for e in dict.fromkeys(p.event for p in plans)},
            method_plans={m: tabulate([p for p in plans if p.method == m]) for m in self.members.triggers},
            methods=dict(self.members.triggers),
            methods_of=self._methods_of(candidates),
            parameters=self.parameters,
            results={m: self._result(t.action) for m, t in self.members.triggers.items()},
            data=data,
            snapshot=Snapshot((*data.names, *assigned)),
            migrations=dict(self.migrate),
        )

    def _check_migrations(self) -> None:
        for start, function in self.migrate.items():
            if isinstance(start, bool) or not isinstance(start, int) or not 1 <= start < self.version:
                older = f"from 1 to {self.version - 1}" if self.version > 1 else "(raise version= first)"
                self.faults.add(self.cls, f"migrate={{{start!r}: ...}} must name an older definition version {older}")
            elif not callable(function) or is_async(function):
                self.faults.add(self.cls, f"migrate={{{start!r}: ...}} must be a plain function from dict to dict")

    # Candidates ---------------------------------------------------------------------------------
    def _events(self) -> list[str]:
        return [_event(mark, method) for method, t in self.members.triggers.items() for mark in t.transitions]

    def _candidates(self) -> list[Candidate]:
        """Resolve every ``@transition`` line into a candidate for each of its source states."""
        found: list[Candidate] = []
        line = 0
        for method, trigger in self.members.triggers.items():
            for mark in trigger.transitions:
                self._check_mark(method, mark)
                found.extend(self._resolve(method, mark, line))
                line += 1
        return found

    def _check_mark(self, method: str, mark: TransitionMark) -> None:
        where = self._where(method)
        if mark.event is not None and not _is_event_name(mark.event):
            self.faults.add(where, f"event={mark.event!r} cannot be an event's name: use a word without spaces")
        if mark.on_conflict not in ("raise", "retry"):
            self.faults.add(where, f'on_conflict must be "raise" or "retry", not {mark.on_conflict!r}')
        if not isinstance(mark.exclusive, bool):
            self.faults.add(where, f"exclusive must be True or False, not {mark.exclusive!r}")
        if not mark.sources:
            self.faults.add(where, 'the transition has no source state; give one, several, or "*"')
        if method.startswith(("on_enter_", "on_exit_")) or method in ("on_transition", "on_load"):
            self.faults.add(where, "a trigger cannot have the name of a hook; rename it")

    def _resolve(self, method: str, mark: TransitionMark, line: int) -> list[Candidate]:
        event = _event(mark, method)
        parameters = self.parameters[method]
        target = None if mark.target is None else self._find(method, mark.target, "target")
        on_error = None if mark.on_error is None else self._find(method, mark.on_error, "on_error")
        gate = self.guards.gate(event, method, parameters)
        check = None if mark.guard is None else self.guards.check(mark.guard, method, parameters)
        if mark.target is not None and target is None:
            return []
        return [
            Candidate(
                event=event,
                method=method,
                source=source,
                target=target,
                wildcard=wildcard,
                gate=gate,
                check=check,
                exclusive=bool(mark.exclusive),
                retry=self.retry or mark.on_conflict == "retry",
                on_error=on_error,
                line=line,
            )
            for source, wildcard in self._sources(method, mark)
        ]

    def _sources(self, method: str, mark: TransitionMark) -> list[tuple[State, bool]]:
        found: list[tuple[State, bool]] = []
        for ref in mark.sources:
            if isinstance(ref, str) and ref == ANYWHERE:
                found.extend((s, True) for s in self.states.by_name.values() if not s.final)
                continue
            state = self._find(method, ref, "source")
            if state is not None and state.final:
                self.faults.add(
                    self._where(method), f"it leaves the final state {state.name!r}; drop that source, or final=True"
                )
            elif state is not None:
                found.append((state, False))
        return found

    def _find(self, method: str, ref: Any, role: str) -> State | None:
        state = self.states.find(ref)
        if state is None:
            if role != "source" and isinstance(ref, str) and ref == ANYWHERE:
                self.faults.add(self._where(method), f'"*" can only be a source, not the {role}')
            else:
                self.faults.add(self._where(method), f"{role} {self.states.unknown(ref)}")
        return state

    # Plans --------------------------------------------------------------------------------------
    def _configurations(self) -> dict[str, Configuration]:
        home = (self.cls.__module__, self.cls.__qualname__)
        return {n: Configuration((n,), s.final, home) for n, s in self.states.by_name.items()}

    def _plans(
        self, candidates: list[Candidate], configurations: Mapping[str, Configuration], functions: HookFunctions
    ) -> list[Plan]:
        """Plan every candidate, in the order they are tried."""
        hooks = {
            m: bind_hooks(self.cls, functions, m, self.parameters[m], candidates, self.namespace, self.faults)
            for m in self.members.triggers
        }
        actions = {m: self._action(m) for m in self.members.triggers}
        return [
            plan(c, configurations, actions[c.method], self.parameters[c.method], hooks[c.method])
            for c in in_order(candidates)
        ]

    def _action(self, method: str) -> Callback:
        function = self.members.triggers[method].action
        parameters = self.parameters[method]
        takes = bool(parameters.names or parameters.keywords or parameters.variadic)
        return Callback(method, function, True, may_wait(function), takes, (), parameters, not takes)

    def _methods_of(self, candidates: list[Candidate]) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for candidate in candidates:
            if candidate.method not in found.get(candidate.event, ()):
                found[candidate.event] = (*found.get(candidate.event, ()), candidate.method)
        return found

    def _result(self, action: Any) -> Codec[Any] | None:
        """Return what decodes a recorded result; None when the annotation does not tell."""
        annotation = read_callback(action, self.namespace, Faults())[0].result
        if annotation is MISSING or annotation is Any:
            return None
        try:
            return Codec(annotation)
        except (TypeError, ValueError, NotImplementedError):
            return None

    def _where(self, method: str) -> str:
        return f"{describe(self.cls)}.{method}"


def _event(mark: TransitionMark, method: str) -> str:
    """Return the event's name; what cannot be one is noted elsewhere."""
    return mark.event if isinstance(mark.event, str) and mark.event else method


def _is_event_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ANYWHERE) and not any(c.isspace() for c in name)
