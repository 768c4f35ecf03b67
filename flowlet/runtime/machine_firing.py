"""Handling what is due of a machine: its timers, each as an event of its own.

Law: a timer is handled in the machine's turn, like any event, and is gone with the commit that it leads to. One that
finds no transition, or is refused, is gone as well. Nobody waits for it, so what fails is logged.
"""

from __future__ import annotations

import time
from typing import Any

from flowlet.core.chart import Plan
from flowlet.core.configurations import DEFINITION
from flowlet.core.machine import MachineDefinition
from flowlet.errors import Conflict, HookFailed, StoreUnavailable
from flowlet.runtime.logs import Log
from flowlet.runtime.machine_bond import Bond
from flowlet.runtime.machine_driver import begin, choose, continue_raised, follow, settle
from flowlet.runtime.machine_office import Busy
from flowlet.runtime.machine_timers import TIMERS, Due, LooseTimers, first_due, without
from flowlet.runtime.turns import Turn, leave, take


async def fire_due(machine: Any) -> None:
    """Handle what is due of a machine without a store."""
    turn = await take(machine, "a timer's")
    if turn is None:
        return  # it has got a store meanwhile, which has timers of its own
    timers: LooseTimers = getattr(machine, TIMERS)
    try:
        while (key := first_due(timers.running, time.monotonic())) is not None:
            due = timers.running[key]
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
    turn, pause = await take(bond, "a timer's"), 0.0
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
            bond.timers = without(bond.timers, key)
            try:
                await _fire(machine, bond, turn, key, due)
            except StoreUnavailable:
                bond.stale = True
                raise
            except Conflict:
                await bond.refresh(machine)  # another process was faster
                if bond.raised:
                    break  # and is not through
            except Exception as error:
                bond.log_timer_failed(key, error)
                if bond.stale:
                    await bond.refresh(machine)
                    bond.timers = without(bond.timers, key)
        if not bond.stale:
            await bond.settle(machine, turn)
    except BaseException as error:
        bond.stale = True
        pause = 1.0 if isinstance(error, Busy) else 0.0
        raise
    finally:
        if bond.leased:
            await bond.give_back()
        leave(bond, turn)
        bond.arm(pause)


async def start_stored(machine: Any) -> None:
    """Start a machine that has just been made durable."""
    bond: Bond = machine._flowlet_turn
    if not machine._flowlet_state.fresh:
        return
    turn = await take(bond, "create")
    assert turn is not None
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
    choice = plans.get(machine._flowlet_state, ())
    if bond is not None and not bond.leased and any(option.exclusive for option in choice):
        await bond.lease(machine, patient=True)
        choice = plans.get(machine._flowlet_state, ())
    plan = await choose(machine, bond, choice, args, kwargs)
    if not isinstance(plan, Plan):
        return
    try:
        await follow(machine, bond, turn, plan, args, kwargs)
    except HookFailed as failure:
        if failure.committed:
            await settle(machine, bond, turn, definition)
        raise
    await settle(machine, bond, turn, definition)
