"""The trigger methods of an assembled machine: what calling ``order.confirm()`` runs.

Law: a trigger is a coroutine function like the one it replaces. The usual transition (one candidate, no
more than one guard and one hook, none of which waits, no store) is made right here, with what the general
driver does and no more; everything else goes to `flowlet.runtime.machine_driver.handle`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flowlet.core.chart import Plans
from flowlet.core.current import run_context
from flowlet.core.guards import guard_failure
from flowlet.core.hooks import refuse_awaitable
from flowlet.core.machine import MachineDefinition
from flowlet.core.marks import TRANSITIONS, TRIGGER, is_automatic
from flowlet.errors import MachineError
from flowlet.runtime.machine_bond import Bond
from flowlet.runtime.machine_driver import drain, handle
from flowlet.runtime.machine_simple import Ways, judge, move_stored, move_waiting, simplify
from flowlet.runtime.machine_step import act_for_heir, hook_failure
from flowlet.runtime.turns import BUSY, Turn, depart, leave

EVENT = "__flowlet_event__"
"""The attribute of a trigger that holds its `EventRef`."""


class EventRef:
    """What a trigger method stands for.

    Attributes:
        event: the event's name.
        method: the method's name.
        table: its candidates, by configuration.
    """

    __slots__ = ("definition", "event", "method", "table")

    definition: MachineDefinition
    event: str
    method: str
    table: Plans

    def __init__(self, definition: MachineDefinition, event: str, method: str, table: Plans) -> None:
        self.definition, self.event, self.method, self.table = definition, event, method, table


def make_trigger(definition: MachineDefinition, method: str) -> Callable[..., Any]:
    """Build the function that replaces a marked method."""
    trigger = definition.methods[method]
    table = definition.method_plans[method]
    event = next((m.event for m in trigger.transitions if m.event), method)
    ways = simplify(definition, table)
    parameters = definition.parameters[method]
    takes = parameters.names or parameters.keywords or parameters.variadic or parameters.provided
    build = _with_arguments if takes else _alone
    own = [mark for mark in trigger.transitions if not is_automatic(mark)]
    made = build(definition, table, ways, event, method) if own else _automatic(method)
    made = functools.wraps(trigger.action)(made)
    setattr(made, TRANSITIONS, trigger)
    setattr(made, TRIGGER, made)
    setattr(made, EVENT, EventRef(definition, event, method, table))
    return made


def _automatic(method: str) -> Callable[..., Any]:
    async def trigger(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise MachineError(
            f"{type(self).__name__}.{method} happens by itself, and is not fired; give it a transition with an event"
        )

    return trigger


# The two functions below are the same but for the arguments, whose handing on would cost the first a third
# of its time. Their order of things is that of `machine_step.follow`. Nothing in them waits, so nobody
# else runs before the turn is over, and a failure before the commit may simply end it.
def _alone(definition: MachineDefinition, table: Plans, ways: Ways, event: str, method: str) -> Callable[..., Any]:
    find, find_waiting, find_stored = ways.quick.get, ways.waiting.get, ways.stored.get
    run = run_context.get

    async def trigger(self: Any) -> Any:
        held = self._flowlet_turn
        if held is not None:
            if type(held) is Bond and held._flowlet_turn is None and not held.stale and not held.raised:
                stored = find_stored(self._flowlet_state)
                if stored is not None and run() is None:
                    return await move_stored(self, held, stored, (), {})
            if type(self).__flowlet_machine__ is not definition:
                return await act_for_heir(self, held, definition, method, (), {})
            return await handle(self, definition, table, event, (), {})
        plan = find(self._flowlet_state)
        if plan is None:
            way = find_waiting(self._flowlet_state)
            if way is None:
                return await handle(self, definition, table, event, (), {})
            return await move_waiting(self, way, event, (), {})
        guard, guard_is_async, guard_name, action, target, enter, enter_is_async, snapshot, read = plan
        self._flowlet_turn = BUSY
        try:
            if guard is not None:
                try:
                    agreed = guard(self)
                    if guard_is_async:
                        agreed = await agreed
                except Exception as error:
                    raise guard_failure(self, guard_name, error) from error
                if agreed is not True:
                    judge(self, event, guard_name, agreed)
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
    definition: MachineDefinition, table: Plans, ways: Ways, event: str, method: str
) -> Callable[..., Any]:
    find, find_waiting, find_stored = ways.quick.get, ways.waiting.get, ways.stored.get
    run = run_context.get

    async def trigger(self: Any, *args: Any, **kwargs: Any) -> Any:
        held = self._flowlet_turn
        if held is not None:
            if type(held) is Bond and held._flowlet_turn is None and not held.stale and not held.raised:
                stored = find_stored(self._flowlet_state)
                if stored is not None and run() is None:
                    return await move_stored(self, held, stored, args, kwargs)
            if type(self).__flowlet_machine__ is not definition:
                return await act_for_heir(self, held, definition, method, args, kwargs)
            return await handle(self, definition, table, event, args, kwargs)
        plan = find(self._flowlet_state)
        if plan is None:
            way = find_waiting(self._flowlet_state)
            if way is None:
                return await handle(self, definition, table, event, args, kwargs)
            return await move_waiting(self, way, event, args, kwargs)
        guard, guard_is_async, guard_name, action, target, enter, enter_is_async, snapshot, read = plan
        self._flowlet_turn = BUSY
        try:
            if guard is not None:
                try:
                    agreed = guard(self)
                    if guard_is_async:
                        agreed = await agreed
                except Exception as error:
                    raise guard_failure(self, guard_name, error) from error
                if agreed is not True:
                    judge(self, event, guard_name, agreed)
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
