"""Choosing what an event does: the guards are asked, in the order of the candidates.

Law: nothing changes here. Each guard is asked at most once for an event, and a refusal says which one it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from flowlet.core.chart import Plan
from flowlet.core.configurations import Configuration
from flowlet.core.current import machine_context, run_context
from flowlet.core.guards import guard_failure
from flowlet.core.hooks import EventParameters, Transition, refuse_awaitable
from flowlet.core.machine import MachineDefinition
from flowlet.core.statechart import Choice, Move
from flowlet.errors import MachineError, TransitionNotAllowed
from flowlet.runtime.machine_bond import Bond
from flowlet.runtime.outbox import JUDGING
from flowlet.runtime.turns import Turn


class Happening:
    """What callbacks may ask about the transition they are part of; see `flowlet.core.hooks.Moment`."""

    __slots__ = ("_bond", "_committed", "_made", "_plan", "_who", "error", "target")

    def __init__(self, bond: Bond | None, plan: Plan | None, who: str | None = None) -> None:
        self._bond, self._plan, self._who = bond, plan, who
        self._made: Transition | None = None
        self._committed = False
        self.error: BaseException | None = None
        self.target: Configuration | None = None if plan is None else plan.target

    def commit(self) -> None:
        """Have the transition described anew after the commit, with its version and time."""
        self._made = None
        self._committed = True

    def transition(self) -> Transition:
        if self._made is None:
            assert self._plan is not None
            assert self.target is not None
            bond = self._bond
            version, at = (0, datetime.now(UTC)) if bond is None else bond.stamp(committed=self._committed)
            self._made = Transition(
                self._plan.event, self._plan.source.state, self.target.state, version, at, self._who
            )
        return self._made

    def provide(self, annotation: Any, what: str) -> Any:
        if self._bond is None:
            raise MachineError(f"{what} is provided by a Flowlet, and this machine has none; use flow.create")
        return self._bond.office.provided(annotation, what)


async def choose(
    machine: Any, bond: Bond | None, plans: Sequence[Plan] | Choice, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Plan | str | None:
    """Find the first plan whose guards agree.

    Returns:
        The plan; or the name of the first guard that refused; or None when there are no plans.

    Raises:
        TypeError: the arguments do not fit the method whose guards would judge them.
        HookFailed: a guard raised.
    """
    if type(plans) is Choice:
        return await _choose_moves(machine, bond, plans, args, kwargs)
    refusal: str | None = None
    misfit: TypeError | None = None
    agreed: Any = None
    for plan in cast("Sequence[Plan]", plans):
        if plan.asks:
            try:
                plan.parameters.check(args, kwargs)
            except TypeError as error:
                misfit = misfit or error  # of several methods that serve the event, another may take them
                continue
        gate = plan.gate
        if gate is not None and gate.leaf.function is not agreed:  # type: ignore[union-attr]
            refused = await _ask(gate, machine, bond, args, kwargs)
            if refused is not None:
                refusal = refusal or refused
                continue
            agreed = gate.leaf.function  # type: ignore[union-attr]
        for check in plan.checks:
            refused = await _ask(check, machine, bond, args, kwargs)
            if refused is not None:
                refusal = refusal or refused
                break
        else:
            return plan
    if misfit is not None:
        raise misfit
    return refusal


async def _choose_moves(
    machine: Any, bond: Bond | None, choice: Choice, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Plan | str | None:
    """Find for each active region the first transition whose guards agree; each guard is asked once."""
    refusals: dict[Any, str | None] = {}
    enabled: list[Move] = []
    misfit: TypeError | None = None
    for level in choice.levels:
        for move in level:
            if move in enabled:
                break
            given = taken_of(move.parameters, kwargs) if move.candidate.automatic else kwargs
            if move.asks:
                try:
                    move.parameters.check(args, given)
                except TypeError as error:
                    misfit = misfit or error
                    continue
            if await _refusal(move, refusals, machine, bond, args, given) is None:
                enabled.append(move)
                break
    if enabled:
        return choice.plan(enabled)
    if misfit is not None:
        raise misfit
    return next((refused for refused in refusals.values() if refused is not None), None)


async def _refusal(
    move: Move,
    known: dict[Any, str | None],
    machine: Any,
    bond: Bond | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> str | None:
    """Ask the guards of a move that have not been asked yet."""
    gate = move.candidate.gate
    for check in (gate, move.candidate.check):
        if check is None:
            continue
        key: Any = check if check.leaf is None else (check.leaf.function, check is gate or check.leaf.event.method)
        if key not in known:
            known[key] = await _ask(check, machine, bond, args, kwargs)
        if known[key] is not None:
            return known[key]
    return None


def taken_of(parameters: EventParameters, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return of what could be given to a transition that happens by itself what it takes."""
    return {name: value for name, value in kwargs.items() if parameters.has(name)}


async def _ask(
    check: Any, machine: Any, bond: Bond | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    leaf = check.leaf
    if leaf is None or not leaf.alone:
        asked = check.refusal(machine, args, kwargs, Happening(bond, None))
        refusal: str | None = await (asked if bond is None or not check.awaits else _apart(asked))
        return refusal
    try:
        answer = leaf.function(machine)
        if leaf.is_async:
            answer = await (answer if bond is None or not leaf.awaits else _apart(answer))
    except Exception as error:
        raise guard_failure(machine, check.name, error) from error
    if answer is not True and answer is not False and not leaf.is_async:
        refuse_awaitable(answer, f"guard {check.name!r}")
    return None if answer else check.name


async def _apart(asked: Awaitable[Any]) -> Any:
    """Await what a guard of a machine with a store answers, and let it start and send nothing."""
    here = machine_context.get()
    machine_context.set(Turn(here, None, None, None, JUDGING, run_context.get()))
    try:
        return await asked
    finally:
        machine_context.set(here)


def not_allowed(definition: MachineDefinition, event: str, state: str, chosen: str | None) -> TransitionNotAllowed:
    """Build the refusal that says which of the two it was."""
    if chosen is not None:
        return TransitionNotAllowed(event, state, "guard", chosen)
    sources = dict.fromkeys(c.state for c in definition.plans.get(event, ()))
    return TransitionNotAllowed(event, state, "no_transition", None, f"it leaves {', '.join(sources) or 'no state'}")
