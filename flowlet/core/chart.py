"""Planning: what an event does in a configuration, computed once, before anything runs.

Law: a pure function from (definition, configuration, event) to plans. The driver follows a plan and
decides nothing but which guards agree. In a flat machine all plans exist at assembly; those of nested states
are made in `flowlet.core.statechart`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from flowlet.core.configurations import Configuration
from flowlet.core.guards import Check
from flowlet.core.hooks import Callback, EventParameters
from flowlet.core.states import State

Cause: TypeAlias = Literal["event", "eventless", "after"]
"""What makes a transition be considered."""


class Candidate(msgspec.Struct, frozen=True, eq=False):
    """One source state of one ``@transition`` line, with its references resolved.

    Attributes:
        source: None for the machine as a whole: one written for ``"*"`` in a machine with nested states.
        targets: none for one that stays where it is.
        wildcard: it was written for ``"*"`` and yields to every specific candidate.
        gate: ``can_<event>``, judged once for all candidates of the event.
        check: what ``guard=`` named.
        line: the place of the mark in the class, from 0.
        internal: it leads inside of its source, which is not exited.
        after: seconds for which its source must have been active.
        automatic: no caller fires it, so that nobody gives it arguments.
    """

    event: str
    method: str
    source: State | None
    targets: tuple[State, ...]
    wildcard: bool
    gate: Check | None
    check: Check | None
    exclusive: bool
    retry: bool
    on_error: State | None
    line: int
    cause: Cause = "event"
    internal: bool = False
    after: float | None = None
    automatic: bool = False

    @property
    def target(self) -> State | None:
        """The state it leads to, if it is one."""
        return self.targets[0] if self.targets else None

    def title(self) -> str:
        """Name it in a message."""
        source = "*" if self.source is None else self.source.name
        target = " and ".join(t.name for t in self.targets) or "itself"
        return f"{self.method} ({source} -> {target})"


class Hooks(msgspec.Struct, frozen=True, eq=False):
    """The hooks of a machine, bound for one trigger method, by the state's name."""

    enter: Mapping[str, Callback]
    exit: Mapping[str, Callback]
    transition: Callback | None


class Landing(msgspec.Struct, frozen=True, eq=False):
    """What is true of a machine behind a transition.

    Attributes:
        target: the configuration it is in.
        enters: hooks that run after the commit, ``on_transition`` last.
        exits: hooks that run before the action; of a rescue, those that have not run yet.
        done: the events that say what is done by it, and that somebody listens for.
        stops: keys of the timers that are no longer to ring.
        starts: key and seconds of those that begin.
        ends: states whose invoked work is to be cancelled.
        invokes: states whose work is to be invoked.
    """

    target: Configuration
    enters: tuple[Callback, ...]
    exits: tuple[Callback, ...] = ()
    done: tuple[str, ...] = ()
    stops: frozenset[str] = frozenset()
    starts: tuple[tuple[str, float], ...] = ()
    ends: tuple[str, ...] = ()
    invokes: tuple[str, ...] = ()

    @property
    def times(self) -> bool:
        """Whether it begins or ends timers or work."""
        return bool(self.starts or self.stops or self.ends or self.invokes)


class Act(msgspec.Struct, frozen=True, eq=False):
    """One action of a plan.

    Attributes:
        rescue: where it leads when it raises; None when its error is the caller's.
    """

    action: Callback
    parameters: EventParameters
    rescue: Landing | None


class Plan(msgspec.Struct, frozen=True, eq=False):
    """One way for an event to take a machine from one configuration to the next, ready to be followed.

    Attributes:
        checks: must agree, in order; the gate is kept apart.
        exits: run before the action.
        enters: run after the commit, ``on_transition`` last.
        landing: the same, with all else that is true afterwards.
        rescue: where a failing action leads; None when its error is the caller's.
        more: further actions, of other regions.
        automatic: no caller fires it.
        asks: a guard takes the event's arguments.
        waits: a callback of it may wait for something, so that others can run in the meantime.
        plain: no callback asks for more than the event's arguments.
    """

    event: str
    method: str
    source: Configuration
    target: Configuration
    gate: Check | None
    checks: tuple[Check, ...]
    action: Callback
    parameters: EventParameters
    exits: tuple[Callback, ...]
    enters: tuple[Callback, ...]
    landing: Landing
    rescue: Landing | None
    exclusive: bool
    retry: bool
    asks: bool
    waits: bool
    plain: bool
    more: tuple[Act, ...] = ()
    automatic: bool = False


class Plans(Protocol):
    """What one event (or one trigger method) can do, by the configuration it finds."""

    def get(self, configuration: Configuration, default: Any = ..., /) -> Any: ...
    def __contains__(self, configuration: object, /) -> bool: ...
    def __iter__(self) -> Iterator[Configuration]: ...


def in_order(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Order candidates as they are tried: as declared, with the wildcards last."""
    return sorted(candidates, key=lambda c: (c.wildcard, c.line))


def plan(
    candidate: Candidate,
    configurations: Mapping[str, Configuration],
    action: Callback,
    parameters: EventParameters,
    hooks: Hooks,
) -> Plan:
    """Work out what happens when a candidate is chosen."""
    assert candidate.source is not None
    source = configurations[candidate.source.name]
    stays = candidate.target is None
    target = source if candidate.target is None else configurations[candidate.target.name]
    exits = () if stays else _some(hooks.exit.get(candidate.source.name))
    always = _some(hooks.transition)
    enters = always if stays else (*_some(hooks.enter.get(target.state)), *always)
    rescue = None
    if candidate.on_error is not None:
        failed = configurations[candidate.on_error.name]
        rescue = Landing(failed, (*_some(hooks.enter.get(failed.state)), *always))
    checks = () if candidate.check is None else (candidate.check,)
    callbacks = (action, *exits, *enters, *(() if rescue is None else rescue.enters))
    guards = (*_some(candidate.gate), *checks)
    return Plan(
        event=candidate.event,
        method=candidate.method,
        source=source,
        target=target,
        gate=candidate.gate,
        checks=checks,
        action=action,
        parameters=parameters,
        exits=exits,
        enters=enters,
        landing=Landing(target, enters, exits),
        rescue=rescue,
        exclusive=candidate.exclusive,
        retry=candidate.retry,
        asks=any(g.takes for g in guards),
        waits=any(c.awaits for c in callbacks) or any(g.awaits for g in guards),
        plain=all(c.alone or c.passes for c in callbacks) and not parameters.provided,
    )


def _some(thing: Any) -> tuple[Any, ...]:
    return () if thing is None else (thing,)


def tabulate(plans: Sequence[Plan]) -> dict[Configuration, tuple[Plan, ...]]:
    """Index plans, which come in the order they are tried, by where they start."""
    table: dict[Configuration, tuple[Plan, ...]] = {}
    for item in plans:
        table[item.source] = (*table.get(item.source, ()), item)
    return table
