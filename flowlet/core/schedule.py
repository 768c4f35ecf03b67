"""What a schedule is, and what is to be started of it at a time.

Law: whatever a process needs to fire a schedule is in its `ScheduleState`, which the store keeps: its times, its
policies, and the inputs of its runs. What is due follows from that and a time, and from nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec.structs import replace

from flowlet.core.codec import Codec
from flowlet.core.definitions import RunDefinition
from flowlet.core.ids import check_id
from flowlet.core.schedule_ticks import MICROS, Cadence, Cron, Interval, moment, read_cadence, text_of
from flowlet.errors import DecodeError, DefinitionError, EncodeError, IdConflict

KIND: Final = "schedule"
"""The kind of a schedule's entity."""

PREFIX: Final = "flowlet/schedule/"
"""With a schedule's name it is the id of its entity."""

MOST: Final = 100
"""So many runs are started by one append."""

LATE: Final = 60 * MICROS
"""Microseconds after which a tick that is the last one due counts as missed."""

_LONGEST = 400
"""Letters of a name, of which the ids of its runs are made."""

_TICK = "tick"

Missed: TypeAlias = Literal["skip", "once", "all"]
"""What becomes of ticks that came while no process was there."""

Overlap: TypeAlias = Literal["allow", "skip"]
"""What becomes of a tick that comes while an earlier run of the schedule has not ended."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the code says of a schedule, as the store keeps it.

    Attributes:
        cadence: when its ticks are.
        definition, version: what its runs are of.
        input: their encoded inputs, with any time for ``tick``.
        tick: the place among the inputs where the tick's time goes, or None.
        missed, overlap: see `Missed` and `Overlap`.
    """

    cadence: Cadence
    definition: str
    version: str
    input: bytes
    tick: int | None
    missed: Missed
    overlap: Overlap


class ScheduleState(msgspec.Struct, frozen=True, kw_only=True):
    """How a schedule stands: the snapshot of its entity.

    Attributes:
        anchor: the tick from which those of an interval are counted.
        next: the tick that is to be fired next; None when there is none.
        last: the one that was fired last, and ``run`` the run that was started then.
        open: with ``overlap="skip"``, runs that had not ended when it was looked last.
        paused, removed: nothing is fired.
    """

    plan: Plan
    anchor: int
    next: int | None
    last: int | None = None
    run: str | None = None
    open: tuple[str, ...] = ()
    paused: bool = False
    removed: bool = False

    @property
    def wake(self) -> float | None:
        """When somebody should look, in seconds of the store's clock."""
        if self.next is None or self.paused or self.removed:
            return None
        return self.next / MICROS

    @property
    def status(self) -> str:
        """The word for listings."""
        return "removed" if self.removed else "paused" if self.paused else "active"

    def ticks(self, count: int) -> list[int]:
        """Return the next ticks, if nothing is changed until then."""
        found: list[int] = []
        tick = self.next
        while tick is not None and len(found) < count:
            found.append(tick)
            tick = self.plan.cadence.after(tick, self.anchor)
        return found


state_codec: Codec[ScheduleState] = Codec(ScheduleState)


class ScheduleEvent(msgspec.Struct, frozen=True):
    """What somebody has done to a schedule: a record of its entity. Its ticks are the runs that they have started.

    Attributes:
        what: what was done.
        at: when, in seconds of the store's clock.
        plan: what has held since, if that has changed.
    """

    what: Literal["created", "changed", "paused", "resumed", "removed", "triggered"]
    at: float
    plan: Plan | None = None


class ScheduleDefinition(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A schedule as the code has it.

    Attributes:
        run: what its runs are of.
    """

    name: str
    run: RunDefinition
    plan: Plan


# ------------------------------------------------------------------ reading what was written
def build_schedule(
    run: RunDefinition,
    when: Any,
    *,
    name: Any = None,
    args: Any = (),
    zone: Any = None,
    missed: Any = "once",
    overlap: Any = "allow",
    start: Any = None,
) -> ScheduleDefinition:
    """Build a schedule out of what was given to ``every``.

    Raises:
        DefinitionError: with everything that is wrong with it.
        MissingExtra: it needs what is not installed.
    """
    title = run.name if name is None else name
    problems: list[str] = []
    cadence: Cadence = Interval(1)
    try:
        cadence = read_cadence(when, zone, start)
    except DefinitionError as error:
        problems += error.problems
    problems += _check_options(title, missed, overlap)
    data, place = b"", None
    try:
        data, place = _read_inputs(run, args)
    except (DefinitionError, TypeError, EncodeError, DecodeError) as error:
        problems += error.problems if isinstance(error, DefinitionError) else [f"args: {error}"]
    if problems:
        raise DefinitionError([f"schedule {title!r:.80}: {problem}" for problem in problems])
    plan = Plan(
        cadence=cadence,
        definition=run.name,
        version=run.version,
        input=data,
        tick=place,
        missed=missed,
        overlap=overlap,
    )
    return ScheduleDefinition(name=title, run=run, plan=plan)


def _check_options(name: Any, missed: Any, overlap: Any) -> list[str]:
    problems: list[str] = []
    try:
        if len(check_id(name)) > _LONGEST:
            problems.append(f"name: takes a text of at most {_LONGEST} characters, not of {len(name)}")
    except IdConflict as error:
        problems.append(f"name: {error}")
    for what, value, words in (("missed", missed, get_args(Missed)), ("overlap", overlap, get_args(Overlap))):
        if value not in words:
            problems.append(f"{what}: takes one of {', '.join(map(repr, words))}, not {value!r}")
    if missed == "all" and overlap == "skip":
        problems.append(
            'missed="all" starts what was missed at once, of which overlap="skip" would let only the first begin; '
            'choose missed="once", or overlap="allow"'
        )
    return problems


def _read_inputs(run: RunDefinition, args: Any) -> tuple[bytes, int | None]:
    """Encode what every run gets; return also the place of the tick's time, which nobody gives."""
    if not isinstance(args, (tuple, list)):
        raise DefinitionError([f"args: takes a tuple of inputs, not {args!r:.80}"])
    starter = run.starter
    place = next((n for n, p in enumerate(starter.inputs) if p.name == _TICK and p.annotation is datetime), None)
    parameters = [p for p in starter.signature.parameters.values() if place is None or p.name != _TICK]
    try:
        bound = inspect.Signature(parameters).bind(*args)
    except TypeError as error:
        hint = "; a parameter `tick: datetime` is filled with the time of the tick" if place is None else ""
        raise DefinitionError([f"args: {run.name}{starter.signature}: {error}{hint}"]) from None
    bound.apply_defaults()
    given: Mapping[str, Any] = {**bound.arguments, **({} if place is None else {_TICK: moment(0)})}
    data, _ = starter.exchange_input(tuple(given[p.name] for p in starter.inputs))
    return data, place


# ------------------------------------------------------------------ what it does
def run_id(name: str, tick: int) -> str:
    """Return the id of the run that a tick starts."""
    return f"{name}@{text_of(tick)}"


def inputs_at(run: RunDefinition, plan: Plan, tick: int) -> tuple[Any, ...]:
    """Return the inputs of the run that a tick starts.

    Raises:
        DecodeError: what is stored does not fit this definition.
    """
    given = tuple(run.starter.input.decode(plan.input, f"the inputs of {run.name!r} that a schedule keeps"))
    if plan.tick is None:
        return given
    return (*given[: plan.tick], moment(tick), *given[plan.tick + 1 :])


def begin(plan: Plan, now: int) -> ScheduleState:
    """Return how a schedule stands that has just been put up."""
    cadence = plan.cadence
    anchor = now if cadence.start is None else cadence.start
    if cadence.start is None and (isinstance(cadence, Cron) or cadence.micros >= MICROS):
        anchor -= now % MICROS  # whole seconds are easier to read, and the first tick is behind the present even so
    return ScheduleState(plan=plan, anchor=anchor, next=cadence.after(now, anchor))


def change(state: ScheduleState, plan: Plan, now: int) -> ScheduleState:
    """Return how a schedule stands whose code has changed, or that has come back.

    As long as its times are the same, what is due stays due. New ones begin now, and what was missed of the old ones is
    not made up for; but an interval goes on being counted from the same beginning.
    """
    if state.removed:
        return replace(begin(plan, max(now, state.last or 0)), last=state.last, run=state.run, open=state.open)
    if state.plan.cadence == plan.cadence:
        return replace(state, plan=plan)
    # Counted anew each time, a long interval would never end while old and new code change it in turn.
    is_counted_on = plan.cadence.start is None and state.anchor <= now
    anchor = state.anchor if is_counted_on else begin(plan, now).anchor
    return replace(state, plan=plan, anchor=anchor, next=plan.cadence.after(max(now, state.last or 0), anchor))


def resume(state: ScheduleState, now: int) -> ScheduleState:
    """Return how a paused schedule stands that goes on: with the first tick from now."""
    upcoming = state.plan.cadence.after(max(now, state.last or 0), state.anchor)
    return replace(state, paused=False, next=upcoming)


class Due(msgspec.Struct, frozen=True):
    """What is to be started of a schedule.

    Attributes:
        ticks: those whose runs are to be started.
        dropped: the first of those that are left out, or None.
        next: the tick that comes then.
    """

    ticks: Sequence[int]
    dropped: int | None
    next: int | None


def find_due(state: ScheduleState, now: int) -> Due:
    """Return what is to be started of a schedule at a time.

    Of several ticks that are due, ``"all"`` takes each, a hundred at a time, and the other policies the last one;
    ``"skip"`` leaves that out as well once it is more than a minute late.
    """
    first, cadence = state.next, state.plan.cadence
    if first is None or first > now or state.paused or state.removed:
        return Due((), None, first)
    if state.plan.missed == "all":
        ticks = [tick for tick in state.ticks(MOST) if tick <= now]
        return Due(ticks, None, cadence.after(ticks[-1], state.anchor))
    latest = cadence.latest(now, state.anchor, first)
    late = state.plan.missed == "skip" and now - latest > LATE
    return Due(
        () if late else (latest,), first if late or first < latest else None, cadence.after(latest, state.anchor)
    )
