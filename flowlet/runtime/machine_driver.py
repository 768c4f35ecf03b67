"""Driving a machine through an event, from its turn to where nothing is left to be done.

Law: an event is one transition, and then those that follow by themselves, each with a commit of its own: first the
ones without an event, then what callbacks have raised, until the machine is at rest (a macrostep of W3C SCXML).
"""

from __future__ import annotations

from collections import deque
from typing import Any

from flowlet.core.chart import Plan, Plans
from flowlet.core.configurations import DEFINITION
from flowlet.core.current import run_context
from flowlet.core.machine import MachineDefinition
from flowlet.core.run import InsideEvent
from flowlet.errors import Conflict, HookFailed, MachineError
from flowlet.runtime.machine_bond import Bond
from flowlet.runtime.machine_choice import Happening, choose, not_allowed
from flowlet.runtime.machine_step import follow, run_enter_hooks
from flowlet.runtime.machine_timers import advance, leave_off, take_up
from flowlet.runtime.turns import Raised, Turn, leave, open_turn, take, wait

LONGEST = 10_000
"""Events that callbacks may raise in one turn before it is taken for an endless loop."""


async def drain(machine: Any, bond: Bond | None, turn: Turn, definition: MachineDefinition) -> None:
    """Go on until nothing is left to be done: transitions without an event, then what callbacks have raised.

    Each is a transition of its own. An event that finds no transition, or is refused, is discarded, as in a
    statechart. One that fails does not stop those behind it; the first failure is raised when all are handled.
    """
    failure: tuple[str, Exception] | None = None
    handled = 0
    eager = True
    while True:
        item = None
        try:
            if eager and machine._flowlet_state.restless and await _move_on(machine, bond, turn, definition):
                pass
            elif turn.raised and not (definition.chart is not None and machine._flowlet_state.final):
                item = turn.raised.popleft()
                await _handle_raised(machine, bond, turn, definition, item)
                eager = True
            else:
                if turn.raised:
                    turn.raised.clear()  # the machine has ended
                break
        except Exception as error:
            failure = failure or (_named(item), error)
            eager = item is not None  # what is taken by itself is not tried again until something else has happened
            if bond is not None and bond.stale:
                if turn.raised:
                    turn.raised.clear()  # they are in the last record; the next event continues them
                break
        handled += 1
        if handled > LONGEST:
            if turn.raised:
                turn.raised.clear()
            text = f"more than {LONGEST} transitions followed one event by themselves: an endless loop"
            failure = (_named(item), MachineError(text))
            break
    if bond is None and turn.delayed:
        advance(machine, turn, None)
    if failure is not None:
        what, cause = failure
        text = f"{what} failed ({cause!r}); the transition before it has been committed"
        raise HookFailed(text, True) from cause


def _named(item: Raised | None) -> str:
    """Name what followed a transition, in the message of its failure."""
    return "a transition without an event" if item is None else f"the raised event {item.event!r}"


async def _move_on(machine: Any, bond: Bond | None, turn: Turn, definition: MachineDefinition) -> bool:
    """Take the transitions without an event that are enabled now; tell whether there were any."""
    assert definition.chart is not None
    choice = definition.chart.eventless.get(machine._flowlet_state, None)
    if choice is None:
        return False
    plan = await choose(machine, bond, choice, (), {})
    if not isinstance(plan, Plan):
        return False
    await follow(machine, bond, turn, plan, (), {})
    return True


async def is_interrupted(machine: Any, bond: Bond) -> bool:
    """Say whether a machine that nobody is at should go on by itself."""
    if bond.raised:
        return True
    chart, here = bond.definition.chart, machine._flowlet_state
    choice = None if chart is None or not here.restless else chart.eventless.get(here, None)
    return choice is not None and isinstance(await choose(machine, bond, choice, (), {}), Plan)


async def begin(machine: Any, bond: Bond | None, turn: Turn, definition: MachineDefinition) -> None:
    """Start a machine: run the enter hooks of its initial states, and what follows by itself.

    Raises:
        HookFailed: a hook raised; the machine has started.
    """
    landing = definition.start
    machine._flowlet_state = landing.target
    if bond is None and landing.times:
        advance(machine, turn, landing)
    try:
        await run_enter_hooks(machine, bond, turn, landing, (), {}, Happening(bond, None))
    except HookFailed:
        await settle(machine, bond, turn, definition)
        raise
    await settle(machine, bond, turn, definition)


async def start(machine: Any) -> None:
    """Start a machine that has not been started; a stored one has."""
    if isinstance(machine._flowlet_turn, Bond):
        return
    turn = await take(machine, "the start")
    if turn is None:
        return  # it has got a store meanwhile
    try:
        if machine._flowlet_state.fresh:
            await begin(machine, None, turn, getattr(type(machine), DEFINITION))
    finally:
        leave(machine, turn)


async def settle(machine: Any, bond: Bond | None, turn: Turn, definition: MachineDefinition) -> None:
    """See a transition to its end: what follows by itself, what was raised, what hooks have assigned."""
    if bond is not None:
        await finish(machine, bond, turn)
    elif is_unsettled(machine, turn):
        await drain(machine, None, turn, definition)


def is_unsettled(machine: Any, turn: Turn) -> bool:
    """Say whether something is to follow a transition by itself."""
    return bool(turn.raised) or turn.delayed is not None or machine._flowlet_state.restless


async def _handle_raised(
    machine: Any, bond: Bond | None, turn: Turn, definition: MachineDefinition, item: Raised
) -> None:
    tables = definition.plans if item.method is None else definition.method_plans
    plans = tables.get(item.method or item.event, {}).get(machine._flowlet_state, ())
    plan = await choose(machine, bond, plans, item.args, item.kwargs)
    if isinstance(plan, Plan):
        await follow(machine, bond, turn, plan, item.args, item.kwargs)
    elif bond is not None:
        bond.log_discarded(machine, item.event)


# Handling an event ----------------------------------------------------------------------------------
async def handle(
    machine: Any, definition: MachineDefinition, table: Plans, event: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Take the turn and handle one event, of a machine with or without a store.

    Raises:
        TransitionNotAllowed: no transition for the event leaves the state, or a guard refused.
        HookFailed: a hook raised.
        Conflict: another process was faster.
        MachineError: it was awaited inside a callback of the same machine.
    """
    held = machine._flowlet_turn
    if held is None:
        turn = open_turn(machine)
    elif isinstance(held, Bond):
        return await _handle_stored(machine, held, definition, table, event, args, kwargs)
    else:
        waited = await wait(machine, held, event)
        if waited is None:
            return await handle(machine, definition, table, event, args, kwargs)
        turn = waited
    try:
        if machine._flowlet_state.fresh:
            await begin(machine, None, turn, definition)
        elif definition.chart is not None and take_up(machine, turn):
            await drain(machine, None, turn, definition)
        plan = await choose(machine, None, table.get(machine._flowlet_state, ()), args, kwargs)
        if not isinstance(plan, Plan):
            raise not_allowed(definition, event, machine._flowlet_state.state, plan)
        try:
            result = await follow(machine, None, turn, plan, args, kwargs)
        except HookFailed:
            await drain(machine, None, turn, definition)
            raise
        if is_unsettled(machine, turn):
            await drain(machine, None, turn, definition)
        return result
    except Exception:
        raise
    except BaseException:
        if definition.chart is not None:
            leave_off(machine, turn)
        raise
    finally:
        leave(machine, turn)


async def _handle_stored(
    machine: Any,
    bond: Bond,
    definition: MachineDefinition,
    table: Plans,
    event: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    held = bond._flowlet_turn
    if held is None:
        turn = open_turn(bond)
    else:
        waited = await wait(bond, held, event)
        assert waited is not None
        turn = waited
    try:
        was_stale = bond.stale
        if was_stale:
            await bond.refresh(machine)
        if bond.raised or (was_stale and await is_interrupted(machine, bond)):
            await continue_raised(machine, bond, turn)
        scope = run_context.get()
        if scope is None:
            return await _attempt(machine, bond, turn, table, event, args, kwargs, None)
        key = scope.event_key(bond.id, event)
        if await bond.knows(key):
            return bond.recorded(key)
        turn.scope = scope
        if scope.inside is not None:
            return await _attempt(machine, bond, turn, table, event, args, kwargs, key)
        # A replay is answered from the key, so that what callbacks call must not be in the run's journal.
        turn.scope = InsideEvent(scope.run(), key)
        token = run_context.set(turn.scope)
        try:
            return await _attempt(machine, bond, turn, table, event, args, kwargs, key)
        finally:
            run_context.reset(token)
    except Exception:
        raise
    except BaseException:
        bond.stale = True  # cancelled: what hooks have assigned or raised since the last record is not in the store
        raise
    finally:
        if bond.leased:
            await bond.give_back()
        leave(bond, turn)


async def _attempt(
    machine: Any,
    bond: Bond,
    turn: Turn,
    table: Plans,
    event: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    key: str | None,
) -> Any:
    """Make the transition; after a conflict, answer from the run's key or try again if it is to be."""
    definition = bond.definition
    while True:
        plans = table.get(machine._flowlet_state, ())
        if not bond.leased and any(p.exclusive for p in plans):
            await bond.lease(machine, patient=any(p.retry for p in plans))
            plans = table.get(machine._flowlet_state, ())
        plan = await choose(machine, bond, plans, args, kwargs)
        if not isinstance(plan, Plan):
            raise not_allowed(definition, event, machine._flowlet_state.state, plan)
        try:
            result = await follow(machine, bond, turn, plan, args, kwargs, key)
        except HookFailed as failure:
            if failure.committed:
                await finish(machine, bond, turn)
            raise
        except Conflict as conflict:
            if conflict is not bond.conflict or not (plan.retry or key is not None):
                raise
            await bond.refresh(machine)
            if key is not None and key in bond.keys:
                return bond.recorded(key)
            if not plan.retry:
                raise
            if bond.raised:  # the other one is not through
                await bond.lease(machine, patient=True)
                if bond.raised:
                    await continue_raised(machine, bond, turn)
            continue
        if plan.enters or bond.is_unrecorded or is_unsettled(machine, turn):
            await finish(machine, bond, turn)
        return result


async def finish(machine: Any, bond: Bond, turn: Turn) -> None:
    """Handle what was raised, then record what the last hooks have assigned."""
    failure: HookFailed | None = None
    if is_unsettled(machine, turn):
        try:
            await drain(machine, bond, turn, bond.definition)
        except HookFailed as error:
            failure = error
    if not bond.stale:
        await bond.settle(machine, turn)
    if failure is not None:
        raise failure


async def continue_raised(machine: Any, bond: Bond, turn: Turn) -> None:
    """Handle what an interrupted turn, maybe of another process, has raised and not handled.

    It is no part of the run that happens to find it.
    """
    await bond.lease(machine, patient=False, interrupted=bool(bond.raised))
    token, scope = run_context.set(None), turn.scope
    turn.scope = None
    try:
        turn.raised = deque(bond.recall_raised())
        await drain(machine, bond, turn, bond.definition)
    except HookFailed as failure:
        bond.log_failed(failure)
    finally:
        turn.scope = scope
        run_context.reset(token)
    if not bond.stale:
        await bond.settle(machine, turn)
