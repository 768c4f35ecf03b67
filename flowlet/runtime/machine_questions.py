"""What one asks a machine, and the two other ways to give it an event.

Law: questions change nothing and take no turn: they tell of the state the machine is in now, and may be
asked from inside callbacks.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from typing import Any, NoReturn, ParamSpec, overload

from flowlet.core.chart import Plan
from flowlet.core.codec import encode
from flowlet.core.configurations import Configuration
from flowlet.core.current import run_context
from flowlet.core.marks import StateRef
from flowlet.core.retry import Seconds, seconds
from flowlet.core.run import InsideEvent
from flowlet.errors import MachineError
from flowlet.runtime.machine_bond import Bond
from flowlet.runtime.machine_choice import choose
from flowlet.runtime.machine_driver import handle, start
from flowlet.runtime.machine_install import TURN, definition_of, has_room_for_timers
from flowlet.runtime.machine_trigger import EVENT, EventRef
from flowlet.runtime.turns import BUSY, Raised, Turn, is_inside, leave, open_turn, take

P = ParamSpec("P")


class Answer:
    """What `can` returns: await it to get a bool.

    It refuses to be used as a truth value, since a forgotten ``await`` would always be true.
    """

    __slots__ = ("_args", "_kwargs", "_machine", "_ref")

    def __init__(self, machine: Any, ref: EventRef, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._machine, self._ref, self._args, self._kwargs = machine, ref, args, kwargs

    def __await__(self) -> Generator[Any, Any, bool]:
        return self._ask().__await__()

    def __bool__(self) -> NoReturn:
        raise TypeError("can(...) must be awaited: write `if await can(...)`")

    async def _ask(self) -> bool:
        machine = self._machine
        bond = machine._flowlet_turn
        if not isinstance(bond, Bond):
            bond = None
        elif bond.stale:
            await _catch_up(machine, bond, self._ref.event)
        plans = self._ref.table.get(_started(machine), ())
        scope = run_context.get()
        if bond is None or scope is None or scope.inside is not None:
            return isinstance(await choose(machine, bond, plans, self._args, self._kwargs), Plan)
        # A replay may find the machine in another state and ask no guard, or another one.
        run = scope.run()
        token = run_context.set(InsideEvent(run, f"{run.id}/can_{self._ref.event}"))
        try:
            return isinstance(await choose(machine, bond, plans, self._args, self._kwargs), Plan)
        finally:
            run_context.reset(token)


async def _catch_up(machine: Any, bond: Bond, event: str) -> None:
    """Read the history again before answering, unless the question comes from the machine's own callbacks."""
    held = bond._flowlet_turn
    if held is not None and is_inside(held):
        return
    turn = await take(bond, event)
    assert turn is not None
    try:
        if bond.stale:
            await bond.refresh(machine)
    finally:
        leave(bond, turn)


def can(event: Callable[P, Awaitable[Any]], /, *args: P.args, **kwargs: P.kwargs) -> Answer:
    """Ask whether an event would be accepted now; nothing but its guards runs.

    Args:
        event: a trigger of a machine, as in ``can(order.confirm, by="ann")``, not called.

    Returns:
        An `Answer` to be awaited.

    Raises:
        MachineError: it is not a trigger of a machine.

    Example:
        >>> import anyio
        >>> from flowlet import Flowlet, can, state, transition
        >>> flow = Flowlet()
        >>> @flow.machine
        ... class Lamp:
        ...     @state(initial=True)
        ...     class Off: ...
        ...     @state
        ...     class On: ...
        ...     @transition(Off, On)
        ...     async def switch_on(self) -> None: ...
        ...     @transition(On, Off)
        ...     async def switch_off(self) -> None: ...
        >>> async def main() -> None:
        ...     lamp = Lamp()
        ...     print(await can(lamp.switch_on), await can(lamp.switch_off))
        >>> anyio.run(main)
        True False
    """
    machine, ref = _trigger(event, "can")
    return Answer(machine, ref, args, kwargs)


@overload
def raise_event(event: Callable[..., Awaitable[Any]], /, *args: Any, after: Seconds, **kwargs: Any) -> None: ...
@overload
def raise_event(event: Callable[P, Awaitable[Any]], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
@overload
def raise_event(machine: object, event: str, /, *args: Any, after: Seconds | None = None, **kwargs: Any) -> None: ...
def raise_event(event: Any, /, *args: Any, **kwargs: Any) -> None:
    """Queue an event of the machine whose callback is running; it is handled right after this transition.

    Args:
        event: a trigger of the machine, as in ``raise_event(self.ship)``, not called; or the machine and an event's
            name, as in ``raise_event(self, "ship")``, which tries all methods that serve the event.
        after: seconds (or a timedelta) to wait; then it is an event of its own. A durable machine keeps it.

    Raises:
        MachineError: it is not a trigger of a machine, or no callback of that machine is running.
        EncodeError: the machine has a store, and an argument cannot be stored.

    Example:
        >>> import anyio
        >>> from flowlet import Flowlet, in_state, raise_event, state, transition
        >>> flow = Flowlet()
        >>> @flow.machine
        ... class Parcel:
        ...     @state(initial=True)
        ...     class Packed: ...
        ...     @state
        ...     class Sent: ...
        ...     @state(final=True)
        ...     class Billed: ...
        ...     @transition(Packed, Sent)
        ...     async def send(self) -> None:
        ...         raise_event(self.bill)
        ...     @transition(Sent, Billed)
        ...     async def bill(self) -> None: ...
        >>> async def main() -> None:
        ...     parcel = Parcel()
        ...     await parcel.send()
        ...     print(in_state(parcel, Parcel.Billed))
        >>> anyio.run(main)
        True
    """
    after: Seconds | None = kwargs.pop("after", None)
    if args and isinstance(args[0], str) and getattr(event, EVENT, None) is None and hasattr(event, TURN):
        machine, (name, *rest) = event, args
        definition_of(machine).event(name)
        _queue(machine, name, None, tuple(rest), kwargs, after)
        return
    machine, ref = _trigger(event, "raise_event")
    _queue(machine, ref.event, ref.method, args, kwargs, after)


def _queue(
    machine: Any, event: str, method: str | None, args: tuple[Any, ...], kwargs: dict[str, Any], after: Seconds | None
) -> None:
    bond = machine._flowlet_turn
    seat = bond if isinstance(bond, Bond) else machine
    turn: Turn | None = seat._flowlet_turn
    if turn is None or (turn is not BUSY and not is_inside(turn)):
        outside = "was called outside of the machine's hooks and actions"
        raise MachineError(f"raise_event({method or event}) {outside}; await {method or 'fire'}() instead")
    if after is not None and seat is machine and not has_room_for_timers(machine):
        raise MachineError(
            f"{type(machine).__name__} has __slots__ and no room for timers: leave them out, or use it with a store"
        )
    arguments = b"" if seat is machine else encode((args, kwargs), f"an argument of the raised event {event!r}")
    item = Raised(event, method, args, dict(kwargs), arguments)
    if turn is BUSY:
        turn = open_turn(seat)
    if after is not None:
        turn.delayed = [*(turn.delayed or ()), (seconds(after, "after"), item)]
        return
    if turn.raised is None:
        turn.raised = deque()
    turn.raised.append(item)


def _trigger(event: Any, name: str) -> tuple[Any, EventRef]:
    """Find machine and event behind ``order.confirm``."""
    if inspect.iscoroutine(event):
        event.close()
        raise MachineError(f"{name}(...) takes the trigger itself: write {name}(order.confirm), without calling it")
    machine = getattr(event, "__self__", None)
    ref = getattr(event, EVENT, None)
    if machine is None or not isinstance(ref, EventRef):
        raise MachineError(f"{name}(...) takes a trigger of a machine, such as order.confirm, not {event!r}")
    return machine, ref


async def fire(machine: object, event: str | None = None, /, *args: Any, **kwargs: Any) -> Any:
    """Fire an event by its name, trying all methods that serve it, in the order of the class.

    Args:
        event: None only starts the machine, which otherwise its first event does, or `Flowlet.create`: the enter hooks
            of its initial states run, and what follows by itself.

    Returns:
        What the chosen method returns.

    Raises:
        MachineError: the machine has no such event.
        TransitionNotAllowed: no transition for the event leaves the state, or a guard refused.

    Example:
        >>> import anyio
        >>> from flowlet import Flowlet, fire, in_state, state, transition
        >>> flow = Flowlet()
        >>> @flow.machine
        ... class Lamp:
        ...     @state(initial=True)
        ...     class Off: ...
        ...     @state
        ...     class On: ...
        ...     @transition(Off, On)
        ...     async def switch_on(self) -> None: ...
        ...     @transition(On, Off)
        ...     async def switch_off(self) -> None: ...
        >>> async def main() -> None:
        ...     lamp = Lamp()
        ...     await fire(lamp, "switch_on")
        ...     print(in_state(lamp, Lamp.On))
        >>> anyio.run(main)
        True
    """
    definition = definition_of(machine)
    if event is None:
        return await start(machine)
    return await handle(machine, definition, definition.event(event), event, args, kwargs)


def in_state(machine: object, /, *states: StateRef) -> bool:
    """Say whether a machine is in one of the states, given as class, Enum member or name.

    Raises:
        MachineError: one of them is no state of this machine.

    Example:
        >>> import anyio
        >>> from flowlet import Flowlet, in_state, state, transition
        >>> flow = Flowlet()
        >>> @flow.machine
        ... class Lamp:
        ...     @state(initial=True)
        ...     class Off: ...
        ...     @state
        ...     class On: ...
        ...     @transition(Off, On)
        ...     async def switch_on(self) -> None: ...
        ...     @transition(On, Off)
        ...     async def switch_off(self) -> None: ...
        >>> in_state(Lamp(), Lamp.Off)
        True
    """
    definition = definition_of(machine)
    names = _configuration(machine).names
    return any(definition.state(ref).name in names for ref in states)


def state_of(machine: object, /) -> str:
    """Return the name of the state a machine is in."""
    definition_of(machine)
    return _configuration(machine).state


def available_events(machine: object, /) -> list[str]:
    """List the events that have a transition from the present state; guards are not asked.

    Example:
        >>> import anyio
        >>> from flowlet import Flowlet, available_events, state, transition
        >>> flow = Flowlet()
        >>> @flow.machine
        ... class Lamp:
        ...     @state(initial=True)
        ...     class Off: ...
        ...     @state
        ...     class On: ...
        ...     @transition(Off, On)
        ...     async def switch_on(self) -> None: ...
        ...     @transition(On, Off)
        ...     async def switch_off(self) -> None: ...
        >>> available_events(Lamp())
        ['switch_on']
    """
    definition_of(machine)
    here = _started(machine)
    definition = definition_of(machine)
    return [event for event in definition.events if here in definition.plans[event]]


def states_of(machine: object, /) -> tuple[str, ...]:
    """List the states a machine is in, outer ones first; of a flat machine it is one.

    Example:
        >>> from flowlet import Registry, state, states_of, transition
        >>> registry = Registry()
        >>> @registry.machine(allow={"dead_end"})
        ... class Player:
        ...     @state(initial=True)
        ...     class Stopped: ...
        ...     @state
        ...     class Playing:
        ...         @state(initial=True)
        ...         class Quiet: ...
        ...     @transition(Stopped, Playing)
        ...     async def play(self) -> None: ...
        >>> states_of(Player())
        ('Stopped',)
    """
    return _configuration(machine).names


def _started(machine: Any) -> Configuration:
    """Return the configuration a machine is in, or will start in."""
    here: Configuration = machine._flowlet_state
    return definition_of(machine).configurations.of(here.active, here.memory)


def _configuration(machine: Any) -> Configuration:
    definition_of(machine)
    configuration: Configuration = machine._flowlet_state
    return configuration
