"""The timers of machines: transitions marked ``after=``, and events raised with a delay.

Law: a timer is a key and a time; which ones run is worked out with each transition and, for a machine with a store,
committed together with it. What rings is a hint: whether the time has come, and what is to be done, is looked up when
the machine has its turn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from flowlet.core.chart import Landing
from flowlet.core.codec import encode
from flowlet.core.configurations import DEFINITION
from flowlet.core.machine_records import Pending, Timer
from flowlet.runtime.alarms import Alarms
from flowlet.runtime.logs import Log
from flowlet.runtime.machine_works import INVOKE, REVOKE, LooseWork, entry
from flowlet.runtime.tasks import loop_token, spawn
from flowlet.runtime.turns import NO_ARGUMENTS, Raised, Turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TIMERS = "_flowlet_timers"
"""The attribute of a machine without a store that holds its `LooseTimers`, once it has had any."""


class Due(msgspec.Struct, frozen=True, eq=False):
    """One timer.

    Attributes:
        at: seconds of the clock that the machine goes by.
        raised: what was raised with a delay, or the work to be done; None for a transition marked ``after=``.
        under_way: it has rung, and what it stands for goes on.
    """

    at: float
    raised: Raised | None = None
    under_way: bool = False


Running = Mapping[str, Due]
"""The timers that run, by key. Never changed: what changes them makes another one."""


def after(
    running: Running, landing: Landing | None, turn: Turn, now: float, begun: Callable[[str], Raised] | None = None
) -> Running:
    """Return what runs behind a transition; the same object when that is what ran before.

    Args:
        landing: what the transition does; None when there was none.
        turn: has what was raised with a delay; whoever makes this true takes it from there.
        begun: describes the work that a state invokes.
    """
    times = landing is not None and landing.times
    if not times and not turn.delayed:
        return running
    found = dict(running)
    if landing is not None:
        for key in landing.stops:
            found.pop(key, None)
        for name in landing.ends:
            work = found.pop(INVOKE + name, None)
            if work is not None and work.raised is not None:
                found[REVOKE + work.raised.event] = Due(now, work.raised)
        for key, seconds in landing.starts:
            found[key] = Due(now + seconds)
        for name in landing.invokes:
            assert begun is not None
            found[INVOKE + name] = Due(now, begun(name))
    for seconds, raised in turn.delayed or ():
        number = 1
        while (key := f"{raised.event}~{number}") in found:
            number += 1
        found[key] = Due(now + seconds, raised)
    return found if found.keys() != running.keys() or any(found[k] is not running[k] for k in found) else running


def next_due(running: Running) -> float | None:
    """Return when the first of them is due."""
    return min((due.at for due in running.values() if not due.under_way), default=None)


def first_due(running: Running, now: float) -> str | None:
    """Return the key of the one that is due, of several the earliest; of those for one time, the one set first."""
    ready = [key for key, due in running.items() if due.at <= now and not due.under_way]
    return min(ready, key=lambda key: running[key].at, default=None)


def begun(running: Running, key: str) -> Running:
    """Return the same with one of them under way."""
    return {k: msgspec.structs.replace(due, under_way=True) if k == key else due for k, due in running.items()}


def without(running: Running, key: str) -> Running:
    """Return the others."""
    return {other: due for other, due in running.items() if other != key}


# In records -------------------------------------------------------------------------------------------
def recorded(running: Running) -> tuple[Timer, ...]:
    """Return timers as a record has them."""
    return tuple(
        Timer(key, due.at, None if due.raised is None else pending(due.raised)) for key, due in running.items()
    )


def pending(raised: Raised) -> Pending:
    """Return what was raised as a record has it."""
    return Pending(raised.event, raised.method, raised.arguments or NO_ARGUMENTS)


# Of machines without a store --------------------------------------------------------------------------
class LooseTimers:
    """The timers of one machine without a store, by the clock of the process.

    They keep the machine alive while they run.

    Args:
        fire: handles what is due of a machine.

    Attributes:
        works: what is under way, by the state.
        left: what was raised when a caller was cancelled in the middle of a macrostep; None when none was.
    """

    def __init__(self, machine: Any, fire: Callable[[Any], Awaitable[None]]) -> None:
        self.running: Running = {}
        self.left: deque[Raised] | None = None
        self.works: dict[str, LooseWork] = {}
        self._fire = partial(fire, machine)
        self._alarms, self._loop = self._make(), loop_token()

    def _make(self) -> Alarms:
        return Alarms(time.monotonic, self._ring, self._broke)

    def attend(self) -> None:
        """See to it that they ring on this loop: the task that did it ended with the former one."""
        if self.running and loop_token() is not self._loop:
            self.set(self.running)

    def set(self, running: Running) -> None:
        """Let these run."""
        self.running = running
        if loop_token() is not self._loop:
            self._alarms, self._loop = self._make(), loop_token()
        at = next_due(running)
        if at is None:
            self._alarms.drop("next")
        else:
            self._alarms.set("next", at)

    def _ring(self, _: str) -> None:
        spawn(self._fire, self._broke)

    def _broke(self, error: BaseException) -> None:
        Log().error("machine.timer_failed", error=repr(error))

    # A copy of a machine is a machine of its own, whose timers begin with its next transition.
    def __deepcopy__(self, memo: object) -> None:
        return None

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return type(None), ()


def loose_timers(machine: Any) -> LooseTimers:
    """Return the timers of a machine without a store."""
    from flowlet.runtime.machine_firing import fire_due  # which drives the machine, which lets timers run

    timers: LooseTimers | None = getattr(machine, TIMERS, None)
    if timers is None:
        timers = LooseTimers(machine, fire_due)
        setattr(machine, TIMERS, timers)
    return timers


def leave_off(machine: Any, turn: Turn) -> None:
    """Keep what a cancelled caller leaves to be done, for the next event."""
    loose_timers(machine).left = deque(turn.raised or ())
    machine._flowlet_state = machine._flowlet_state.unsettled()  # which no quick way knows


def take_up(machine: Any, turn: Turn) -> bool:
    """Give a turn what a cancelled caller has left; tell whether one has."""
    timers: LooseTimers | None = getattr(machine, TIMERS, None)
    if timers is None:
        return False
    timers.attend()
    if timers.left is None:
        return False
    turn.raised, timers.left = timers.left, None
    here, definition = machine._flowlet_state, getattr(type(machine), DEFINITION)
    machine._flowlet_state = definition.configurations.of(here.active, here.memory)
    return True


def carried(machine: Any, now: float) -> Running:
    """Return what runs of a machine that is about to get a store, by the store's clock."""
    timers: LooseTimers | None = getattr(machine, TIMERS, None)
    if timers is None:
        return {}
    here = time.monotonic()
    found: dict[str, Due] = {}
    for key, due in timers.running.items():
        raised = due.raised
        if raised is not None:
            arguments = encode((raised.args, raised.kwargs), f"an argument of the raised event {raised.event!r}")
            raised = msgspec.structs.replace(raised, arguments=arguments)
        found[key] = Due(now + max(0.0, due.at - here), raised)
    return found


def advance(machine: Any, turn: Turn, landing: Landing | None) -> None:
    """Let the timers of a machine without a store run as a transition says."""
    timers = loose_timers(machine)
    works = getattr(type(machine), DEFINITION).works
    now = time.monotonic()
    running = after(timers.running, landing, turn, now, lambda name: entry(machine, works[name], name, stored=False))
    running = {key: due for key, due in running.items() if not key.startswith(REVOKE)}
    turn.delayed = None
    if running != timers.running:
        timers.set(running)


async def end_works(machine: Any, states: Sequence[str]) -> None:
    """Cancel what states of a machine without a store have invoked, and wait for its end."""
    for state in states:
        work = loose_timers(machine).works.pop(state, None)
        if work is not None:
            await work.end()
