"""Planning: what an event does in a configuration, computed once, before anything runs.

Law: a pure function from (definition, configuration, event) to plans. The driver follows a plan and
decides nothing but which guards agree; in a flat machine all plans exist at assembly, and nested states
will compute theirs here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from flowlet.core.guards import Check
from flowlet.core.hooks import Callback, EventParameters
from flowlet.core.states import Configuration, State


class Candidate(msgspec.Struct, frozen=True, eq=False):
    """One source state of one ``@transition`` line, with its references resolved.

    Attributes:
        target: None for an internal transition.
        wildcard: it was written for ``"*"`` and yields to every specific candidate.
        gate: ``can_<event>``, judged once for all candidates of the event.
        check: what ``guard=`` named.
        line: the place of the mark in the class, from 0.
    """

    event: str
    method: str
    source: State
    target: State | None
    wildcard: bool
    gate: Check | None
    check: Check | None
    exclusive: bool
    retry: bool
    on_error: State | None
    line: int


class Hooks(msgspec.Struct, frozen=True, eq=False):
    """The hooks of a machine, bound for one trigger method, by the state's name."""

    enter: Mapping[str, Callback]
    exit: Mapping[str, Callback]
    transition: Callback | None


class Plan(msgspec.Struct, frozen=True, eq=False):
    """One way for an event to take a machine from one configuration to the next, ready to be followed.

    Attributes:
        checks: must agree, in order; the gate is kept apart.
        exits: run before the action.
        enters: run after the commit, ``on_transition`` last.
        failed: where a failing action leads, with ``failed_enters``; None when its error is the caller's.
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
    failed: Configuration | None
    failed_enters: tuple[Callback, ...]
    exclusive: bool
    retry: bool
    asks: bool
    waits: bool
    plain: bool


Plans = Mapping[Configuration, tuple[Plan, ...]]
"""What one event (or one trigger method) can do, by the configuration it finds."""


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
    source = configurations[candidate.source.name]
    internal = candidate.target is None
    target = source if candidate.target is None else configurations[candidate.target.name]
    exits = () if internal else _some(hooks.exit.get(candidate.source.name))
    enters = () if internal else _some(hooks.enter.get(target.state))
    always = _some(hooks.transition)
    failed = None if candidate.on_error is None else configurations[candidate.on_error.name]
    failed_enters = () if failed is None else (*_some(hooks.enter.get(failed.state)), *always)
    checks = () if candidate.check is None else (candidate.check,)
    callbacks = (action, *exits, *enters, *always, *failed_enters)
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
        enters=(*enters, *always),
        failed=failed,
        failed_enters=failed_enters,
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
