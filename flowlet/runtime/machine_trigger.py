"""The trigger methods of an assembled machine: what calling ``order.confirm()`` runs.

Law: a trigger is a coroutine function like the one it replaces. The usual transition (one candidate, no
more than one guard and one hook, none of which waits, no store) is made right here, with what the general
driver does and no more; everything else goes to `flowlet.runtime.machine_driver.handle`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from flowlet.core.chart import Plan, Plans
from flowlet.core.hooks import refuse_awaitable
from flowlet.core.machine import MachineDefinition
from flowlet.core.machine_members import assigns_nothing
from flowlet.core.marks import TRANSITIONS
from flowlet.core.states import Configuration
from flowlet.errors import TransitionNotAllowed
from flowlet.runtime.machine_driver import drain, handle, hook_failure
from flowlet.runtime.turns import BUSY, Turn, depart, leave

EVENT = "__flowlet_event__"
"""The attribute of a trigger that holds its `EventRef`."""

# guard, it is async, its name, action, state afterwards, enter hook, it is async, read what to put back
_Simple = tuple[Any, bool, str, Any, Configuration, Any, bool, Any]


class EventRef:
    """What a trigger method stands for.

    Attributes:
        event: the event's name.
        method: the method's name.
        table: its candidates, by configuration.
    """

    __slots__ = ("definition", "event", "method", "table")

    def __init__(self, definition: MachineDefinition, event: str, method: str, table: Plans) -> None:
        self.definition, self.event, self.method, self.table = definition, event, method, table


def make_trigger(definition: MachineDefinition, method: str) -> Callable[..., Any]:
    """Build the function that replaces a marked method."""
    trigger = definition.methods[method]
    table = definition.method_plans[method]
    event = trigger.transitions[0].event or method
    simple = {state: s for state, plans in table.items() if (s := _simplified(definition, plans)) is not None}
    parameters = definition.parameters[method]
    takes = parameters.names or parameters.keywords or parameters.variadic or parameters.provided
    build = _with_arguments if takes else _alone
    made = functools.wraps(trigger.action)(build(definition, table, simple, event))
    setattr(made, TRANSITIONS, trigger)
    setattr(made, EVENT, EventRef(definition, event, method, table))
    return made


def _simplified(definition: MachineDefinition, plans: tuple[Plan, ...]) -> _Simple | None:
    """Boil the plans for one configuration down to what the fast path follows; None when they are more."""
    (plan, *others) = plans
    checks = [c for c in (plan.gate, *plan.checks) if c is not None]
    if others or plan.waits or not plan.plain or plan.exits or plan.failed is not None:
        return None
    if len(checks) > 1 or len(plan.enters) > 1 or any(c.leaf is None or not c.leaf.alone for c in checks):
        return None
    if any(not hook.alone for hook in plan.enters):
        return None
    guard = checks[0].leaf if checks else None
    enter = plan.enters[0] if plan.enters else None
    keeps = not definition.snapshot.names or assigns_nothing(plan.action.function)
    return (
        None if guard is None else guard.function,
        guard is not None and guard.is_async,
        checks[0].name if checks else "",
        plan.action.function,
        plan.target,
        None if enter is None else enter.function,
        enter is not None and enter.is_async,
        None if keeps else definition.snapshot.read,
    )


# The two functions below are the same but for the arguments, whose handing on would cost the first a third
# of its time. Their order of things is that of `machine_driver.follow`. Nothing in them waits, so nobody
# else runs before the turn is over, and a failure before the commit may simply end it.
def _alone(
    definition: MachineDefinition, table: Plans, simple: Mapping[Configuration, _Simple], event: str
) -> Callable[..., Any]:
    find, snapshot = simple.get, definition.snapshot

    async def trigger(self: Any) -> Any:
        plan = find(self._flowlet_state) if self._flowlet_turn is None else None
        if plan is None:
            return await handle(self, definition, table, event, (), {})
        guard, guard_is_async, guard_name, action, target, enter, enter_is_async, read = plan
        self._flowlet_turn = BUSY
        try:
            if guard is not None:
                agreed = guard(self)
                if guard_is_async:
                    agreed = await agreed
                if agreed is not True:
                    _judge(self, event, guard_name, agreed)
            if read is None:
                result = await action(self)
            else:
                try:
                    taken = read(self)
                except AttributeError:
                    taken = snapshot.take(self)
                try:
                    result = await action(self)
                except BaseException:
                    snapshot.restore(self, taken)
                    raise
        except BaseException:
            _abandon(self)
            raise
        self._flowlet_state = target
        if enter is not None:
            try:
                outcome = enter(self)
                if enter_is_async:
                    await outcome
                elif outcome is not None:
                    refuse_awaitable(outcome, f"hook {enter.__name__!r}")
            except BaseException as error:
                await _end(self, definition)
                raise hook_failure(self, enter.__name__, error, committed=True) from error
        if self._flowlet_turn is BUSY:
            self._flowlet_turn = None
        else:
            await _end(self, definition)
        return result

    return trigger


def _with_arguments(
    definition: MachineDefinition, table: Plans, simple: Mapping[Configuration, _Simple], event: str
) -> Callable[..., Any]:
    find, snapshot = simple.get, definition.snapshot

    async def trigger(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = find(self._flowlet_state) if self._flowlet_turn is None else None
        if plan is None:
            return await handle(self, definition, table, event, args, kwargs)
        guard, guard_is_async, guard_name, action, target, enter, enter_is_async, read = plan
        self._flowlet_turn = BUSY
        try:
            if guard is not None:
                agreed = guard(self)
                if guard_is_async:
                    agreed = await agreed
                if agreed is not True:
                    _judge(self, event, guard_name, agreed)
            if read is None:
                result = await action(self, *args, **kwargs)
            else:
                try:
                    taken = read(self)
                except AttributeError:
                    taken = snapshot.take(self)
                try:
                    result = await action(self, *args, **kwargs)
                except BaseException:
                    snapshot.restore(self, taken)
                    raise
        except BaseException:
            _abandon(self)
            raise
        self._flowlet_state = target
        if enter is not None:
            try:
                outcome = enter(self)
                if enter_is_async:
                    await outcome
                elif outcome is not None:
                    refuse_awaitable(outcome, f"hook {enter.__name__!r}")
            except BaseException as error:
                await _end(self, definition)
                raise hook_failure(self, enter.__name__, error, committed=True) from error
        if self._flowlet_turn is BUSY:
            self._flowlet_turn = None
        else:
            await _end(self, definition)
        return result

    return trigger


def _judge(machine: Any, event: str, guard: str, answer: Any) -> None:
    """Refuse, unless the guard's answer counts as true."""
    if answer is not False:
        refuse_awaitable(answer, f"guard {guard!r}")
    if not answer:
        raise TransitionNotAllowed(event, machine._flowlet_state.state, "guard", guard)


def _abandon(machine: Any) -> None:
    """End the turn of a transition that did not happen, with all it has raised."""
    turn: Turn = machine._flowlet_turn
    if turn is not BUSY:
        depart(turn)
    machine._flowlet_turn = None


async def _end(machine: Any, definition: MachineDefinition) -> None:
    """End the turn of the fast path, handling what its hooks have raised."""
    turn: Turn = machine._flowlet_turn
    if turn is BUSY:
        machine._flowlet_turn = None
        return
    try:
        await drain(machine, None, turn, definition)
    finally:
        leave(machine, turn)
