"""Handling what is due of a machine: its timers, each as an event of its own.

Law: a timer is handled in the machine's turn, like any event, and is gone with the commit that it leads to. One that
finds no transition, or is refused, is gone as well. Nobody waits for it, so what fails is logged.
"""

from __future__ import annotations

import time
from typing import Any

import anyio

from flowlet.core.chart import Plan
from flowlet.core.configurations import DEFINITION
from flowlet.core.current import run_context
from flowlet.core.machine import MachineDefinition
from flowlet.errors import Conflict, HookFailed, StoreUnavailable
from flowlet.runtime.logs import Log
from flowlet.runtime.machine_bond import Bond
from flowlet.runtime.machine_choice import choose
from flowlet.runtime.machine_driver import begin, continue_raised, settle
from flowlet.runtime.machine_office import Busy
from flowlet.runtime.machine_step import follow
from flowlet.runtime.machine_timers import TIMERS, Due, LooseTimers, begun, first_due, without
from flowlet.runtime.machine_works import INVOKE, REVOKE, LooseWork, Outcome
from flowlet.runtime.turns import Turn, leave, take

_PATIENCE = 0.02
"""Seconds between two looks whether another process is through."""

AGAIN = 1.0
"""Seconds after which what could not be handled rings again."""


async def fire_due(machine: Any) -> None:
    """Handle what is due of a machine without a store."""
    turn = None if isinstance(machine._flowlet_turn, Bond) else await take(machine, "a timer's")
    if turn is None:
        return  # it has got a store meanwhile, which has the timers now
    timers: LooseTimers = getattr(machine, TIMERS)
    try:
        while (key := first_due(timers.running, time.monotonic())) is not None:
            due = timers.running[key]
            if key.startswith(INVOKE) and due.raised is not None:
                timers.running = begun(timers.running, key)
                work = getattr(type(machine), DEFINITION).works[due.raised.method]
                timers.works[work.state] = LooseWork(machine, work, due.raised.kwargs, tell_loose)
                continue
            timers.running = without(timers.running, key)
            try:
                await _fire(machine, None, turn, key, due)
            except Exception as error:
                Log().error("machine.timer_failed", definition=type(machine).__name__, timer=key, error=repr(error))
        timers.set(timers.running)
    finally:
        leave(machine, turn)


async def fire_stored(machine: Any, *, claimed: bool = False) -> None:
    """Handle what is due of a machine with a store.

    Args:
        claimed: this process owns it for that, and gives it back with it.

    Raises:
        Busy: another process is at it.
        StoreUnavailable: it could not be recorded, and is still due.
    """
    bond: Bond = machine._flowlet_turn
    turn, pause, is_begun = await take(bond, "a timer's"), 0.0, False
    assert turn is not None
    try:
        if bond.stale:
            await bond.refresh(machine)
        if claimed:
            await bond.lease(machine, patient=False)
        if bond.raised:
            await continue_raised(machine, bond, turn)
        while (key := first_due(bond.timers, bond.office.now())) is not None:
            due = bond.timers[key]
            if key.startswith(INVOKE):
                await bond.begin_work(machine, key)
                is_begun = True
                continue
            if key.startswith(REVOKE):
                await bond.revoke()
                if key in bond.timers:
                    raise StoreUnavailable(f"the run of a state that {bond.id!r} has left could not be cancelled yet")
                continue
            bond.timers = without(bond.timers, key)
            try:
                await _fire(machine, bond, turn, key, due)
            except StoreUnavailable:
                bond.stale = True
                raise
            except Conflict:
                await bond.refresh(machine)  # another process was faster
                if bond.raised:  # and is not through
                    pause = AGAIN
                    return
            except Exception as error:
                bond.log_timer_failed(key, error)
                if bond.stale:
                    await bond.refresh(machine)
                    bond.timers = without(bond.timers, key)
        if not bond.stale:
            await _record(machine, bond, turn)
        if is_begun:
            await bond.forget_wake()
    except BaseException:
        bond.stale = True
        pause = AGAIN
        raise
    finally:
        if bond.leased:
            await bond.give_back()
        leave(bond, turn)
        bond.arm(pause)


async def _record(machine: Any, bond: Bond, turn: Turn) -> None:
    """Record what has rung, unless another process has."""
    try:
        await bond.settle(machine, turn)
    except HookFailed as failure:
        if not isinstance(failure.__cause__, Conflict):
            raise
        await bond.refresh(machine)


async def tell_loose(machine: Any, work: LooseWork, outcome: Outcome) -> None:
    """Tell a machine without a store how work has ended, if it has not been left."""
    turn = await take(machine, "the end of its work")
    timers: LooseTimers | None = getattr(machine, TIMERS, None)
    if turn is None:
        return
    try:
        state = next((s for s, w in timers.works.items() if w is work), None) if timers is not None else None
        if timers is None or state is None:
            return
        del timers.works[state]
        timers.running = without(timers.running, INVOKE + state)
        if not await _handle(machine, None, turn, outcome) and "error" in outcome[1]:
            Log().error("machine.work_failed", definition=type(machine).__name__, error=repr(outcome[1]["error"]))
    except Exception as error:
        Log().error("machine.work_failed", definition=type(machine).__name__, error=repr(error))
    finally:
        leave(machine, turn)


async def tell_stored(machine: Any, id: str, outcome: Outcome) -> None:
    """Tell a machine with a store how a run that it invoked has ended, if it has not been left or told.

    Raises:
        StoreUnavailable: it could not be recorded, and is to be told again.
    """
    bond: Bond = machine._flowlet_turn
    turn = await take(bond, "the end of its work")
    assert turn is not None
    token = run_context.set(None)  # it is told by a step of the run, of which this is no part
    try:
        while True:
            if bond.stale:
                await bond.refresh(machine)
            if bond.raised and not await _is_through(machine, bond, turn):
                continue
            key = next((k for k, d in bond.timers.items() if k.startswith(INVOKE) and _is_of(d, id)), None)
            if key is None:
                return
            bond.timers = without(bond.timers, key)
            try:
                if not await _handle(machine, bond, turn, outcome) and "error" in outcome[1]:
                    bond.log_timer_failed(key, outcome[1]["error"])
            except Conflict:
                bond.stale = True
                continue
            except StoreUnavailable:
                bond.stale = True
                raise
            except Exception as error:
                bond.log_timer_failed(key, error)
                if bond.stale:
                    await bond.refresh(machine)
                    bond.timers = without(bond.timers, key)
            if not bond.stale:
                await _record(machine, bond, turn)
    except BaseException:
        bond.stale = True
        raise
    finally:
        run_context.reset(token)
        if bond.leased:
            await bond.give_back()
        leave(bond, turn)


async def _is_through(machine: Any, bond: Bond, turn: Turn) -> bool:
    """See to it that what an event has raised is handled first, by this process or the one that is at it."""
    try:
        await continue_raised(machine, bond, turn)
    except Busy:
        await anyio.sleep(_PATIENCE)
        bond.stale = True
        return False
    return not bond.stale


def _is_of(due: Due, id: str) -> bool:
    return due.raised is not None and due.raised.event == id


async def _handle(machine: Any, bond: Bond | None, turn: Turn, outcome: Outcome) -> bool:
    """Handle the event that work has ended with; tell whether there was a transition for it."""
    event, given = outcome
    definition: MachineDefinition = getattr(type(machine), DEFINITION)
    plans: Any = definition.plans.get(event, {})
    return await _follow(machine, bond, turn, plans, (), given)


async def start_stored(machine: Any) -> None:
    """Start a machine that has just been made durable."""
    bond: Bond = machine._flowlet_turn
    if not machine._flowlet_state.fresh:
        return
    turn = await take(bond, "create")
    assert turn is not None
    turn.scope = run_context.get()
    try:
        await begin(machine, bond, turn, bond.definition)
    except BaseException as error:
        bond.stale = bond.stale or not isinstance(error, Exception)
        raise
    finally:
        if bond.leased:
            await bond.give_back()
        leave(bond, turn)


async def _fire(machine: Any, bond: Bond | None, turn: Turn, key: str, due: Due) -> None:
    definition: MachineDefinition = getattr(type(machine), DEFINITION)
    raised = due.raised
    if raised is not None:
        tables = definition.plans if raised.method is None else definition.method_plans
        plans: Any = tables.get(raised.method or raised.event, {})
        args, kwargs = raised.args, raised.kwargs
    else:
        plans = definition.chart.timed.get(key, {}) if definition.chart is not None else {}
        args, kwargs = (), {}
    await _follow(machine, bond, turn, plans, args, kwargs)


async def _follow(
    machine: Any, bond: Bond | None, turn: Turn, plans: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Take the transition that is enabled, if there is one, and see it to its end."""
    definition: MachineDefinition = getattr(type(machine), DEFINITION)
    choice = plans.get(machine._flowlet_state, ())
    if bond is not None and not bond.leased and any(option.exclusive for option in choice):
        await bond.lease(machine, patient=True)
        choice = plans.get(machine._flowlet_state, ())
    plan = await choose(machine, bond, choice, args, kwargs)
    if not isinstance(plan, Plan):
        return False
    try:
        await follow(machine, bond, turn, plan, args, kwargs)
    except HookFailed as failure:
        if failure.committed:
            await settle(machine, bond, turn, definition)
        raise
    await settle(machine, bond, turn, definition)
    return True
