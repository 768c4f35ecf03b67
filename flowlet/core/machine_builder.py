"""Reading a marked class into a `MachineDefinition`, with every fault it has.

Law: nothing here changes the class, and nothing raises for what a user wrote: faults are collected, and a
definition is made only when there are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from flowlet.core.annotations import MISSING
from flowlet.core.chart import Candidate, Cause, Hooks, Landing, Plan, Plans, in_order, plan, tabulate
from flowlet.core.chart_checks import check_together, check_tree
from flowlet.core.codec import Codec
from flowlet.core.configurations import Configurations
from flowlet.core.faults import Faults, describe
from flowlet.core.guards import guard_leaves, guard_name
from flowlet.core.hooks import Callback, EventParameters, event_parameters, is_async, may_wait, read_callback
from flowlet.core.machine import MachineDefinition, Migration
from flowlet.core.machine_checks import check_chart, check_initial, check_settings
from flowlet.core.machine_data import DataShape, Snapshot, collect_data
from flowlet.core.machine_guards import GuardBinder, check_unused
from flowlet.core.machine_hooks import HookFunctions, announcement, bind_hooks, bind_start, collect_hooks
from flowlet.core.machine_members import Members, assigned_names, gather, refuse_kind
from flowlet.core.machine_works import read_works
from flowlet.core.marks import TransitionMark, is_automatic
from flowlet.core.needs import Need, needs_of_callbacks
from flowlet.core.statechart import Move, Statechart, Table, arrow_of
from flowlet.core.states import State, States, collect_states
from flowlet.core.tree import Arrow

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
        self.nested = (
            self.states.nested
            or any(map(_needs_chart, self.members.marks()))
            or any(s.mark.invoke is not None for s in self.states.by_name.values())
        )

    def read(self) -> MachineDefinition:
        check_initial(self.cls, self.states.by_name, self.faults)
        check_tree(self.states, self.allow, self.faults)
        self._check_migrations()
        candidates = self._candidates()
        check_unused(self.cls, self.members, self._events(), self.faults)
        check_chart(self.cls, self.states, candidates, self.allow, self.faults)
        functions = collect_hooks(self.cls, self.members.all, self.states, self.faults)
        data = collect_data(self.cls, self.members.all, self.namespace, self.faults)
        configurations = self._configurations(candidates)
        hooks = self._hooks(functions, candidates)
        chart = self._chart(candidates, configurations, functions, hooks)
        plans, method_plans = self._tables(candidates, configurations, hooks, chart)
        assigned = [n for n in assigned_names(self.members.all, self.cls) if n not in data.names]
        works = read_works(self.cls, self.states.by_name, self.members, data.names, self.namespace, self.faults)
        load = self._needs({"on_load": self.members.all.get("on_load")})
        start = self._start(functions, configurations, chart)
        at_rest = not (start.enters or start.starts or start.invokes or start.target.restless)
        initial = start.target if at_rest else start.target.unstarted()
        return MachineDefinition(
            cls=self.cls,
            name=self.name,
            version=self.version,
            states=self.states,
            initial=initial,
            start=start,
            configurations=configurations,
            candidates=tuple(candidates),
            chart=chart,
            plans=plans,
            method_plans=method_plans,
            methods=dict(self.members.triggers),
            methods_of=self._methods_of(candidates),
            parameters=self.parameters,
            results={m: self._result(t.action) for m, t in self.members.triggers.items()},
            data=data,
            snapshot=Snapshot((*data.names, *assigned)),
            migrations=dict(self.migrate),
            works=works,
            runs={},
            provided=(*self._provided(functions, data), *load, *(need for w in works.values() for need in w.provided)),
            load=load,
        )

    def _provided(self, functions: HookFunctions, data: DataShape) -> tuple[Need, ...]:
        """List what flowlet fills: of the class, and of what it calls."""
        hooks = (*functions.enter.values(), *functions.exit.values(), functions.transition)
        named: dict[str, Any] = {m: t.action for m, t in self.members.triggers.items()} | dict(self.members.guards)
        named |= {getattr(h, "__name__", str(h)): h for h in hooks}
        for mark in self.members.marks():
            leaves = () if mark.guard is None else guard_leaves(mark.guard)
            named |= {guard_name(leaf): leaf for leaf in leaves if not isinstance(leaf, str)}
        own = describe(self.cls)
        return (*(Need(own, name, annotation) for name, annotation in data.provided), *self._needs(named))

    def _needs(self, functions: Mapping[str, Any]) -> tuple[Need, ...]:
        named = {self._where(name): function for name, function in functions.items() if function is not None}
        return tuple(needs_of_callbacks(named, self.namespace))

    def _check_migrations(self) -> None:
        for start, function in self.migrate.items():
            if isinstance(start, bool) or not isinstance(start, int) or not 1 <= start < self.version:
                older = f"from 1 to {self.version - 1}" if self.version > 1 else "(raise version= first)"
                self.faults.add(self.cls, f"migrate={{{start!r}: ...}} must name an older definition version {older}")
            elif not callable(function) or is_async(function):
                self.faults.add(self.cls, f"migrate={{{start!r}: ...}} must be a plain function from dict to dict")

    # Candidates ---------------------------------------------------------------------------------
    def _events(self) -> list[str]:
        return [_label(mark, method) for method, t in self.members.triggers.items() for mark in t.transitions]

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
        self._check_cause(where, mark)
        if not mark.sources:
            self.faults.add(where, 'the transition has no source state; give one, several, or "*"')
        if method.startswith(("on_enter_", "on_exit_")) or method in ("on_transition", "on_load"):
            self.faults.add(where, "a trigger cannot have the name of a hook; rename it")

    def _check_cause(self, where: str, mark: TransitionMark) -> None:
        named = (("event=", mark.event), ("eventless=", mark.eventless), ("done=", mark.done), ("failed=", mark.failed))
        said = [name for name, given in (*named, ("after=", mark.after)) if given not in (None, False)]
        if len(said) > 1:
            self.faults.add(where, f"{' and '.join(said)} exclude each other: a transition has one cause; stack two")
        if mark.internal and not mark.targets:
            self.faults.add(where, "internal=True leads inside of the source; without a target it stays there anyway")

    def _check_automatic(self, method: str, mark: TransitionMark) -> None:
        """Nobody gives arguments to what happens by itself."""
        parameters = self.parameters[method]
        given: set[str] = {"result"} if mark.done else {"error"} if mark.failed else set()
        for name in (*parameters.names, *parameters.keywords):
            if name not in parameters.defaults and name not in given:
                self.faults.add(
                    self._where(method), f"nothing provides its parameter {name!r}: the transition happens by itself"
                )

    def _resolve(self, method: str, mark: TransitionMark, line: int) -> list[Candidate]:
        label = _label(mark, method)
        parameters = self.parameters[method]
        targets = [self._find(method, ref, "target") for ref in mark.targets]
        on_error = None if mark.on_error is None else self._find(method, mark.on_error, "on_error")
        gate = self.guards.gate(label, method, parameters)
        check = None if mark.guard is None else self.guards.check(mark.guard, method, parameters)
        if is_automatic(mark):
            self._check_automatic(method, mark)
        if None in targets:
            return []
        found = tuple(t for t in targets if t is not None)
        check_together(self._where(method), found, self.states.tree, self.faults)
        cause: Cause = "eventless" if mark.eventless else "event" if mark.after is None else "after"
        return [
            Candidate(
                event=self._event(method, mark, source, label),
                method=method,
                source=source,
                targets=found,
                wildcard=wildcard,
                gate=gate,
                check=check,
                exclusive=bool(mark.exclusive),
                retry=self.retry or mark.on_conflict == "retry",
                on_error=on_error,
                line=line,
                cause=cause,
                internal=bool(mark.internal),
                after=mark.after,
                automatic=is_automatic(mark),
            )
            for source, wildcard in self._sources(method, mark)
        ]

    def _event(self, method: str, mark: TransitionMark, source: State | None, label: str) -> str:
        """Name the event; that of something that is done, or has failed, is named after the source."""
        if not (mark.done or mark.failed):
            return label
        if source is None:
            self.faults.add(self._where(method), '"*" is never done; name the states')
            return label
        invokes = source.mark.invoke is not None
        if mark.failed and not invokes:
            self.faults.add(self._where(method), f"{source.name!r} invokes nothing that could fail; give it invoke=")
        elif not invokes and not self.states.tree.can_be_done(source.number):
            self.faults.add(
                self._where(method), f"{source.name!r} is never done; put a final state inside, or give it invoke="
            )
        return f"{'error' if mark.failed else 'done'}.{'invoke' if invokes else 'state'}.{source.name}"

    def _sources(self, method: str, mark: TransitionMark) -> list[tuple[State | None, bool]]:
        found: list[tuple[State | None, bool]] = []
        for ref in mark.sources:
            if isinstance(ref, str) and ref == ANYWHERE:
                if self.nested:
                    found.append((None, True))
                else:
                    found.extend((s, True) for s in self.states.by_name.values() if not s.final)
                continue
            state = self._find(method, ref, "source")
            if state is not None and state.final:
                self.faults.add(
                    self._where(method), f"it leaves the final state {state.name!r}; drop that source, or final=True"
                )
            elif state is not None and state.kind in ("shallow", "deep"):
                self.faults.add(self._where(method), f"nothing starts from the history {state.name!r}; name its parent")
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
    def _configurations(self, candidates: list[Candidate]) -> Configurations:
        home = (self.cls.__module__, self.cls.__qualname__)
        restless = 0
        for candidate in candidates:
            if candidate.cause == "eventless":
                restless |= 1 << (0 if candidate.source is None else candidate.source.number)
        return Configurations(self.states.tree, home, restless)

    def _hooks(self, functions: HookFunctions, candidates: list[Candidate]) -> dict[str, Hooks]:
        tree = self.states.tree
        return {
            m: bind_hooks(self.cls, functions, m, self.parameters[m], candidates, tree, self.namespace, self.faults)
            for m in self.members.triggers
        }

    def _tables(
        self,
        candidates: list[Candidate],
        configurations: Configurations,
        hooks: Mapping[str, Hooks],
        chart: Statechart | None,
    ) -> tuple[Mapping[str, Plans], Mapping[str, Plans]]:
        """Tabulate what can be done, by event and by trigger method."""
        if chart is not None:
            fired = [m for m in chart.moves if m.candidate.cause == "event"]
            events = dict.fromkeys(m.candidate.event for m in fired)
            return (
                {e: Table(chart, [m for m in fired if m.candidate.event == e]) for e in events},
                {
                    n: Table(chart, [m for m in fired if m.candidate.method == n and not m.candidate.automatic])
                    for n in self.members.triggers
                },
            )
        plans = self._plans(candidates, configurations, hooks)
        events = dict.fromkeys(p.event for p in plans)
        return (
            {e: tabulate([p for p in plans if p.event == e]) for e in events},
            {n: tabulate([p for p in plans if p.method == n]) for n in self.members.triggers},
        )

    def _plans(
        self, candidates: list[Candidate], configurations: Configurations, hooks: Mapping[str, Hooks]
    ) -> list[Plan]:
        """Plan every candidate, in the order they are tried."""
        actions = {m: self._action(m) for m in self.members.triggers}
        return [
            plan(c, configurations, actions[c.method], self.parameters[c.method], hooks[c.method])
            for c in in_order(candidates)
        ]

    def _chart(
        self,
        candidates: list[Candidate],
        configurations: Configurations,
        functions: HookFunctions,
        hooks: Mapping[str, Hooks],
    ) -> Statechart | None:
        if not self.nested:
            return None
        keys: dict[str, int] = {}
        moves = [self._move(c, hooks[c.method], keys) for c in candidates]
        invoking = sum(1 << s.number for s in self.states.by_name.values() if s.mark.invoke is not None)
        return Statechart(self.states.tree, configurations, moves, self._started(functions), announcement, invoking)

    def _move(self, candidate: Candidate, hooks: Hooks, keys: dict[str, int]) -> Move:
        timer = None
        if candidate.cause == "after":
            timer = f"{candidate.method}@{'*' if candidate.source is None else candidate.source.name}"
            keys[timer] = keys.get(timer, 0) + 1
            timer = timer if keys[timer] == 1 else f"{timer}#{keys[timer]}"
        guards = [c for c in (candidate.gate, candidate.check) if c is not None]
        rescue: Arrow | None = None
        if candidate.on_error is not None:
            rescue = msgspec.structs.replace(arrow_of(candidate, [candidate.on_error]), internal=False)
        return Move(
            candidate=candidate,
            arrow=arrow_of(candidate, candidate.targets),
            rescue=rescue,
            action=self._action(candidate.method),
            parameters=self.parameters[candidate.method],
            hooks=hooks,
            timer=timer,
            asks=any(g.takes for g in guards),
        )

    def _started(self, functions: HookFunctions) -> dict[str, Callback]:
        return bind_start(self.cls, functions, self.states.tree, self.namespace, self.faults)

    def _start(self, functions: HookFunctions, configurations: Configurations, chart: Statechart | None) -> Landing:
        if chart is not None:
            return chart.start()
        step = self.states.tree.start()
        target = configurations.of(step.active, step.memory)
        return Landing(target, tuple(self._started(functions).values()))

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


def _label(mark: TransitionMark, method: str) -> str:
    """Return the event's name, as far as the mark says; what cannot be one is noted elsewhere."""
    return mark.event if isinstance(mark.event, str) and mark.event else method


def _needs_chart(mark: TransitionMark) -> bool:
    return is_automatic(mark) or mark.internal or len(mark.targets) > 1


def _is_event_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ANYWHERE) and not any(c.isspace() for c in name)
