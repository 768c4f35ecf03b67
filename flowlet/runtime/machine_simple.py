"""The usual transition, boiled down: one candidate, at most one guard and one hook, and none of them waits.

Law: what is done here is what `flowlet.runtime.machine_driver` does for such a transition, in the same
order and with the same promises; only what cannot matter for it is left out. Whatever turns out to be
unusual on the way (an event was raised, somebody queues, the store fails) goes on in the general driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from flowlet.core.chart import Plan, Plans
from flowlet.core.codec import pack
from flowlet.core.current import run_context
from flowlet.core.hooks import refuse_awaitable
from flowlet.core.machine import MachineDefinition
from flowlet.core.machine_data import Snapshot
from flowlet.core.machine_members import effects
from flowlet.core.machine_records import Moved
from flowlet.core.states import Configuration
from flowlet.errors import TransitionNotAllowed
from flowlet.runtime.machine_bond import Bond
from flowlet.runtime.machine_driver import finish, hook_failure
from flowlet.runtime.turns import BUSY, Turn, enter_turn, leave, open_turn
from flowlet.store import Write

# guard, it is async, its name, action, state afterwards, enter hook, it is async, what to put back, its reader
Simple: TypeAlias = tuple[Any, bool, str, Any, Configuration, Any, bool, Snapshot, Any]
SimplePlans: TypeAlias = Mapping[Configuration, Simple]

# the plan, the same, and whether the hook may change data
Stored: TypeAlias = tuple[Plan, Simple, bool]
StoredPlans: TypeAlias = Mapping[Configuration, Stored]

_UNREAD: Final = object()


def simplify(definition: MachineDefinition, table: Plans) -> tuple[SimplePlans, StoredPlans]:
    """Boil down those plans of a trigger that are simple, for machines without and with a store."""
    simple: dict[Configuration, Simple] = {}
    stored: dict[Configuration, Stored] = {}
    for configuration, plans in table.items():
        if not _is_simple(plans):
            continue
        (plan,) = plans
        simple[configuration] = way = _boil(definition, plan)
        if not (plan.exclusive or plan.retry or plan.target.final):
            stored[configuration] = (plan, way, _may_change_data(definition, plan))
    return simple, stored


def _is_simple(plans: tuple[Plan, ...]) -> bool:
    (plan, *others) = plans
    checks = [c for c in (plan.gate, *plan.checks) if c is not None]
    if others or plan.waits or not plan.plain or plan.exits or plan.failed is not None:
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


def is_calm(bond: Bond) -> bool:
    """Say whether a stored machine can move at once: idle, up to date, and not inside of a run."""
    return bond._flowlet_turn is None and not bond.stale and not bond.raised and run_context.get() is None


async def move_stored(machine: Any, bond: Bond, way: Stored, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make a simple transition of a machine with a store."""
    plan, (guard, guard_is_async, guard_name, action, target, enter, enter_is_async, snapshot, read), changes = way
    bond._flowlet_turn = BUSY
    taken: Any = _UNREAD
    try:
        if guard is not None:
            agreed = guard(machine)
            if guard_is_async:
                agreed = await agreed
            if agreed is not True:
                judge(machine, plan.event, guard_name, agreed)
        if read is not None:
            taken = snapshot.take(machine)
        result = await action(machine, *args, **kwargs)
        if bond._flowlet_turn is not BUSY:
            await bond.commit(machine, bond._flowlet_turn, plan, target, args, kwargs, None, result)
        else:
            await _commit(machine, bond, plan, target, args, kwargs)
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


async def _commit(
    machine: Any, bond: Bond, plan: Plan, target: Configuration, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Do what `Bond.commit` does when nothing was raised, no run is involved and no lease is held."""
    office, definition = bond.office, bond.definition
    values, data = bond.changed(machine)
    at = office.now()
    token = office.token()
    actor = plan.parameters.who(args, kwargs)
    record = Moved(plan.event, plan.source.state, target.state, at, token, definition.version, data, actor)
    write = Write(id=bond.id, expect=bond.version, records=(pack(record),), state=target.state)
    try:
        await office.store.append((write,))
    except BaseException as error:
        if not await bond.is_stored(error, token):
            raise
    machine._flowlet_state = target
    bond.at = at
    bond.version += 1
    bond.values = values
    if data is not None:
        bond.data = data
    if office.log.active:
        bond.log_committed(record)


def _end(bond: Bond) -> None:
    """End the turn; what has been raised counts for nothing."""
    turn: Turn | None = bond._flowlet_turn
    if turn is BUSY or turn is None:
        bond._flowlet_turn = None
        return
    enter_turn(turn)
    turn.raised = None
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
