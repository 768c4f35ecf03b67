"""The usual transition, boiled down: one candidate, at most one guard and one hook.

Law: what is done here is what `flowlet.runtime.machine_driver` does for such a transition, in the same
order and with the same promises; only what cannot matter for it is left out. Whatever turns out to be
unusual on the way (an event was raised, somebody queues, the store fails) goes on in the general driver.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, TypeAlias

import msgspec

from flowlet.core.chart import Plan, Plans
from flowlet.core.codec import pack
from flowlet.core.configurations import DEFINITION, Configuration
from flowlet.core.current import machine_context
from flowlet.core.guards import guard_failure
from flowlet.core.hooks import refuse_awaitable
from flowlet.core.machine import MachineDefinition
from flowlet.core.machine_data import DataShape, Snapshot
from flowlet.core.machine_members import effects
from flowlet.core.machine_records import Moved
from flowlet.core.statechart import Table
from flowlet.errors import TransitionNotAllowed
from flowlet.runtime.machine_bond import EVERY, Bond
from flowlet.runtime.machine_driver import drain, finish
from flowlet.runtime.machine_step import hook_failure
from flowlet.runtime.turns import BUSY, Turn, enter_turn, leave, open_turn
from flowlet.store import Write

# guard, it is async, its name, action, state afterwards, enter hook, it is async, what to put back, its reader
Simple: TypeAlias = tuple[Any, bool, str, Any, Configuration, Any, bool, Snapshot, Any]

# the plan, the same, whether the hook may change data, event, source, target, what the data is like
Stored: TypeAlias = tuple[Plan, Simple, bool, str, str, str, DataShape]


class Ways(msgspec.Struct, frozen=True, eq=False):
    """The simple plans of a trigger, by configuration.

    Attributes:
        quick: of machines without a store, when no callback waits.
        waiting: of machines without a store, when one may.
        stored: of machines with a store, when no callback waits.
    """

    quick: dict[Configuration, Simple]
    waiting: dict[Configuration, Simple]
    stored: dict[Configuration, Stored]


_UNREAD: Final = object()


def simplify(definition: MachineDefinition, table: Plans) -> Ways:
    """Boil down those plans of a trigger that are simple; of nested states, as they are found."""
    ways = Ways({}, {}, {})
    if isinstance(table, Table):
        table.listener = partial(_add, definition, ways)
    else:
        for configuration in table:
            _add(definition, ways, configuration, table.get(configuration))
    return ways


def _add(definition: MachineDefinition, ways: Ways, configuration: Configuration, plans: tuple[Plan, ...]) -> None:
    if not _is_simple(plans):
        return
    (plan,) = plans
    way = _boil(definition, plan)
    # What runs of a machine without a store is looked after with each event: see `machine_timers.take_up`.
    loose = definition.chart is None or not (definition.chart.timed or definition.works)
    if plan.waits:
        if loose:
            ways.waiting[configuration] = way
        return
    if loose:
        ways.quick[configuration] = way
    if not (plan.exclusive or plan.retry or plan.target.final or configuration.memory != plan.target.memory):
        names = (plan.event, configuration.state, plan.target.state)
        ways.stored[configuration] = (plan, way, _may_change_data(definition, plan), *names, definition.data)


def _is_simple(plans: tuple[Plan, ...]) -> bool:
    (plan, *others) = plans
    checks = [c for c in (plan.gate, *plan.checks) if c is not None]
    if others or not plan.plain or plan.exits or plan.rescue is not None:
        return False
    if plan.more or plan.landing.times or plan.landing.done or plan.target.restless:
        return False
    if len(checks) > 1 or len(plan.enters) > 1 or any(c.leaf is None or not c.leaf.alone for c in checks):
        return False
    return all(hook.alone for hook in plan.enters)


def _boil(definition: MachineDefinition, plan: Plan) -> Simple:
    check = next((c for c in (plan.gate, *plan.checks) if c is not None), None)
    guard = None if check is None else check.leaf
    enter = plan.enters[0] if plan.enters else None
    # An action that is seen to assign little needs little put back.
    assigned = effects(plan.action.function, definition.cls)
    snapshot = definition.snapshot if assigned is None else Snapshot(tuple(sorted(assigned)))
    return (
        None if guard is None else guard.function,
        guard is not None and guard.is_async,
        "" if check is None else check.name,
        plan.action.function,
        plan.target,
        None if enter is None else enter.function,
        enter is not None and enter.is_async,
        snapshot,
        snapshot.read if snapshot.names else None,
    )


def _may_change_data(definition: MachineDefinition, plan: Plan) -> bool:
    if not plan.enters:
        return False
    assigned = effects(plan.enters[0].function, definition.cls)
    return assigned is None or not definition.data.immutable or not assigned.isdisjoint(definition.data.names)


def judge(machine: Any, event: str, guard: str, answer: Any) -> None:
    """Refuse, unless the guard's answer counts as true."""
    if answer is not False:
        refuse_awaitable(answer, f"guard {guard!r}")
    if not answer:
        raise TransitionNotAllowed(event, machine._flowlet_state.state, "guard", guard)


async def move_waiting(machine: Any, way: Simple, event: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make a simple transition of a machine without a store, while which others may run."""
    guard, guard_is_async, guard_name, action, target, enter, enter_is_async, snapshot, read = way
    outer = machine_context.get()
    turn: Turn = Turn(outer)
    machine._flowlet_turn = turn
    machine_context.set(turn)
    taken: Any = _UNREAD
    try:
        if guard is not None:
            try:
                agreed = guard(machine)
                if guard_is_async:
                    agreed = await agreed
            except Exception as error:
                raise guard_failure(machine, guard_name, error) from error
            if agreed is not True:
                judge(machine, event, guard_name, agreed)
        if read is not None:
            try:
                taken = read(machine)
            except AttributeError:
                taken = snapshot.take(machine)
        result = await action(machine, *args, **kwargs)
    except BaseException:
        if taken is not _UNREAD:
            snapshot.restore(machine, taken)
        turn.raised = turn.delayed = None
        leave(machine, turn)
        raise
    machine._flowlet_state = target
    if enter is not None:
        try:
            outcome = enter(machine)
            if enter_is_async:
                await outcome
            elif outcome is not None:
                refuse_awaitable(outcome, f"hook {enter.__name__!r}")
        except BaseException as error:
            await _drain(machine, turn, error)
            raise hook_failure(machine, enter.__name__, error, committed=True) from error
    if turn.raised is not None or turn.waiters is not None or turn.delayed is not None:
        await _drain(machine, turn, None)
    else:
        machine._flowlet_turn = None
        machine_context.set(outer)
    return result


async def _drain(machine: Any, turn: Turn, error: BaseException | None) -> None:
    """Handle what was raised, unless the hook was cancelled, and end the turn."""
    try:
        if error is None or isinstance(error, Exception):
            await drain(machine, None, turn, getattr(type(machine), DEFINITION))
    finally:
        leave(machine, turn)


async def move_stored(machine: Any, bond: Bond, way: Stored, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make a simple transition of a machine with a store that is idle, up to date and not inside of a run.

    Up to the hook this is `flowlet.runtime.machine_step.follow` with `Bond.commit`.
    """
    plan, simple, changes, event, left, reached, shape = way
    guard, guard_is_async, guard_name, action, target, enter, enter_is_async, snapshot, read = simple
    bond._flowlet_turn = BUSY
    taken: Any = _UNREAD
    try:
        if guard is not None:
            try:
                agreed = guard(machine)
                if guard_is_async:
                    agreed = await agreed
            except Exception as error:
                raise guard_failure(machine, guard_name, error) from error
            if agreed is not True:
                judge(machine, event, guard_name, agreed)
        if read is not None:
            try:
                taken = read(machine)
            except AttributeError:
                taken = snapshot.take(machine)
        result = await action(machine, *args, **kwargs)
        if bond._flowlet_turn is BUSY:
            office = bond.office
            try:
                values, data = shape.read(machine), None
                if values != bond.values or not shape.immutable:
                    data = pack(shape.struct(*values))
                    shape.fits(data)
            except Exception:
                values, data = bond.changed(machine)  # which says what is wrong
            at = office.now()
            if at < bond.at:
                at = bond.at
            actor = None if plan.parameters.actor is None else plan.parameters.who(args, kwargs)
            record = Moved(event, left, reached, at, office.token, bond.definition.version, data, actor)
            packed = pack(record)
            if office.max_payload is not None and len(packed) > office.max_payload:
                bond.check_size(packed, f"event {event!r}")
            write = Write(id=bond.id, expect=bond.version, records=(packed,), state=reached)
            if bond.version - bond.snapshot_at >= EVERY:
                write = bond.with_snapshot(write, record, target, bond.timers)
            try:
                await office.store.append((write,))
            except BaseException as error:
                if not await bond.is_stored(error, packed):
                    raise
            machine._flowlet_state = target
            bond.at = at
            bond.version += 1
            bond.values = values
            if data is not None:
                bond.data = data
            if office.log.active:
                bond.log_committed(record)
        else:  # it has raised something
            await bond.commit(machine, bond._flowlet_turn, plan, plan.landing, args, kwargs, None, result)
    except BaseException:
        if taken is not _UNREAD:
            snapshot.restore(machine, taken)
        bond.doubt()
        _end(bond)
        raise
    if bond._flowlet_turn is not BUSY:
        enter_turn(bond._flowlet_turn)  # somebody queues: what the hook raises must find the turn
    if enter is not None:
        try:
            outcome = enter(machine)
            if enter_is_async:
                await outcome
            elif outcome is not None:
                refuse_awaitable(outcome, f"hook {enter.__name__!r}")
        except BaseException as error:
            await _finish(machine, bond)
            raise hook_failure(machine, enter.__name__, error, committed=True) from error
    if changes or bond._flowlet_turn is not BUSY:
        await _finish(machine, bond)
    else:
        bond._flowlet_turn = None
    return result


def _end(bond: Bond) -> None:
    """End the turn; what has been raised counts for nothing."""
    turn: Turn | None = bond._flowlet_turn
    if turn is BUSY or turn is None:
        bond._flowlet_turn = None
        return
    enter_turn(turn)
    turn.raised = turn.delayed = None
    leave(bond, turn)


async def _finish(machine: Any, bond: Bond) -> None:
    """Handle what was raised, record what the hook assigned, and end the turn."""
    turn: Turn | None = bond._flowlet_turn
    if turn is BUSY or turn is None:
        turn = open_turn(bond)
    else:
        enter_turn(turn)
    try:
        await finish(machine, bond, turn)
    except BaseException as error:
        bond.stale = bond.stale or not isinstance(error, Exception)
        raise
    finally:
        if bond.leased:
            await bond.give_back()
        leave(bond, turn)
