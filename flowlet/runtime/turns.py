"""Taking turns: one machine handles one event at a time, to completion.

Law: whoever finds the machine idle has the turn at once, without a lock, a task or an event; others queue
in the order they came, each in its own task. A turn is handed on exactly once, also by a caller that is
cancelled after it got it. The context variable `machine_context` holds the turn whose callbacks are
running, so that waiting for one's own machine is an error instead of a deadlock.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import anyio
import msgspec

from flowlet.core.current import machine_context
from flowlet.errors import MachineError


class Raised(msgspec.Struct, frozen=True, eq=False):
    """An event raised inside a transition, to be handled after it.

    Attributes:
        method: the trigger method it was raised by, None when it was raised by the event's name.
        arguments: the encoded pair of positional and keyword arguments, for a machine with a store.
    """

    event: str
    method: str | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    arguments: bytes = b""


NO_ARGUMENTS: Final = msgspec.msgpack.encode(((), {}))


class Waiter:
    """A caller that waits for its turn.

    Attributes:
        turn: the turn it was given.
        moved: the machine has got a store in the meantime; queue there instead.
    """

    __slots__ = ("event", "moved", "turn")

    def __init__(self) -> None:
        self.event: anyio.Event = anyio.Event()
        self.turn: Turn | None = None
        self.moved: bool = False


class Turn(msgspec.Struct, eq=False):
    """The right to handle one event, from its guards to its last hook.

    Attributes:
        outer: the turn in whose callbacks this one was taken: another machine's.
        raised: events raised by the callbacks.
        delayed: the same with the seconds that they are to be handled after.
        waiters: those who come next.
        outbox: where what its callbacks start and send is queued; None while that acts at once. See
            `flowlet.runtime.outbox`.
        scope: what they are part of: a run, a step, or an event of a run; None for none of them.
    """

    outer: Turn | None = None
    raised: deque[Raised] | None = None
    delayed: list[tuple[float, Raised]] | None = None
    waiters: deque[Waiter] | None = None
    outbox: Any = None
    scope: object = None

    def queue(self, event: str) -> None:
        """Raise an event that nobody gives arguments to."""
        if self.raised is None:
            self.raised = deque()
        self.raised.append(Raised(event, None, (), {}, NO_ARGUMENTS))

    # What is deep-copied or pickled with a machine by code of its own is a machine without this.
    def __deepcopy__(self, memo: object) -> None:
        return None

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return type(None), ()


BUSY: Final = Turn()
"""The turn of a transition whose callbacks wait for nothing, until somebody queues or raises an event."""


def is_inside(turn: Turn) -> bool:
    """Say whether the running code is part of the turn's callbacks, in this task or one started by them."""
    held: Turn | None = machine_context.get()
    while held is not None:
        if held is turn:
            return True
        held = held.outer
    return False


def refuse_inside(event: str | None) -> None:
    """Raise for an event that is awaited by its own machine's callbacks, or a load by its own ``on_load``."""
    if event is None:
        raise MachineError(
            "a machine cannot be loaded or created by its own on_load: it would wait for itself for ever"
        )
    raise MachineError(
        f"event {event!r} was awaited inside a callback of the same machine, which would wait for itself for ever; "
        f"write raise_event(self.{event}), which is handled after this transition"
    )


async def take(seat: Any, event: str | None) -> Turn | None:
    """Take the turn of a machine, at once or when it comes; see `wait`."""
    held: Turn | None = seat._flowlet_turn
    return open_turn(seat) if held is None else await wait(seat, held, event)


async def wait(seat: Any, held: Turn, event: str | None) -> Turn | None:
    """Queue for the turn of a machine that somebody else has.

    Args:
        seat: the object whose ``_flowlet_turn`` is the turn: the machine, or its bond to a store.
        held: the turn that was found there.
        event: the event that is to be handled, for the message of an error.

    Returns:
        The turn; None when the machine has got a store in the meantime.
    """
    if held is BUSY:
        held = _unfold(seat, event)
    elif is_inside(held):
        refuse_inside(event)
    waiter = Waiter()
    if held.waiters is None:
        held.waiters = deque()
    held.waiters.append(waiter)
    try:
        await waiter.event.wait()
    except BaseException:
        if waiter.turn is not None:
            hand_on(seat, waiter.turn)
        elif not waiter.moved:
            # The queue is passed on from turn to turn, so it is the same one that was joined.
            held.waiters.remove(waiter)
        raise
    turn = waiter.turn
    if turn is not None:
        turn.outer = machine_context.get()
        machine_context.set(turn)
    return turn


def _unfold(seat: Any, event: str | None) -> Turn:
    """Make a turn to queue at out of a `BUSY` one, which its holder will find.

    No callback of a BUSY turn waits, so who comes while there is one came while it is being stored. A
    machine without a store has no such moment: there it is a callback that drives a coroutine by hand.
    """
    if getattr(seat, "_flowlet_state", None) is not None:
        refuse_inside(event)
    turn: Turn = Turn()
    seat._flowlet_turn = turn
    return turn


def leave(seat: Any, turn: Turn) -> None:
    """End a turn of the running task and hand it on."""
    depart(turn)
    hand_on(seat, turn)


def depart(turn: Turn) -> None:
    """Note that the running task is no longer in a turn's callbacks."""
    machine_context.set(turn.outer)


def hand_on(seat: Any, turn: Turn) -> None:
    """Give the turn to who came first, or leave the machine idle."""
    waiters = turn.waiters
    if not waiters:
        seat._flowlet_turn = None
        return
    waiter = waiters.popleft()
    waiter.turn = seat._flowlet_turn = Turn(None, None, None, waiters)
    waiter.event.set()


def open_turn(seat: Any) -> Turn:
    """Give an idle machine, or one in a `BUSY` turn, a turn of the running task that others can see."""
    turn: Turn = Turn(machine_context.get())
    seat._flowlet_turn = turn
    machine_context.set(turn)
    return turn


def enter_turn(turn: Turn) -> None:
    """Note that the running task is in a turn's callbacks, if it is not noted."""
    here = machine_context.get()
    if here is not turn:
        turn.outer = here
        machine_context.set(turn)


def move(turn: Turn) -> None:
    """Send everybody who waits to queue again, since the machine has got a store."""
    for waiter in turn.waiters or ():
        waiter.moved = True
        waiter.event.set()
    turn.waiters = None
