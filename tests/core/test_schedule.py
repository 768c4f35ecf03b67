"""What a schedule keeps, what is due of it, and what becomes of it when it is changed, paused or removed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from flowlet import Registry, state, step, transition
from flowlet.core.codec import pack
from flowlet.core.schedule import (
    LATE,
    MOST,
    Due,
    Missed,
    ScheduleState,
    begin,
    build_schedule,
    change,
    find_due,
    inputs_at,
    resume,
    run_id,
    state_codec,
)
from flowlet.core.schedule_ticks import MICROS, micros, moment
from flowlet.errors import DecodeError, DefinitionError

NOON = micros(datetime(2026, 1, 1, 12, tzinfo=UTC))
MINUTE = 60 * MICROS
registry = Registry()


@registry.saga
async def report(region: str, tick: datetime, copies: int = 1) -> str:
    return f"{region} {tick} {copies}"


@registry.saga
async def clean() -> None: ...


def every(minutes: int = 10, missed: Missed = "once", now: int = NOON) -> ScheduleState:
    """Return a schedule that has just been put up, with the first tick ``minutes`` later."""
    definition = build_schedule(registry.definitions["clean", "1"], timedelta(minutes=minutes), missed=missed)
    return begin(definition.plan, now)


# ---------------------------------------------------------------- what runs are given
def test_the_tick_is_filled_in_wherever_it_stands() -> None:
    run = registry.definitions["report", "1"]
    plan = build_schedule(run, 60, args=("eu", 3)).plan
    assert inputs_at(run, plan, NOON) == ("eu", datetime(2026, 1, 1, 12, tzinfo=UTC), 3)
    assert inputs_at(run, build_schedule(run, 60, args=["us"]).plan, NOON)[2] == 1


def test_a_tick_that_is_no_time_is_an_input_like_others() -> None:
    other = Registry()

    @other.saga
    async def count(tick: int) -> int:
        return tick

    run = other.definitions["count", "1"]
    assert inputs_at(run, build_schedule(run, 60, args=(5,)).plan, NOON) == (5,)
    with pytest.raises(DefinitionError, match="missing a required argument: 'tick'; a parameter `tick: datetime`"):
        build_schedule(run, 60)


def test_inputs_that_the_code_does_not_take_any_more() -> None:
    old, new = Registry(), Registry()

    @old.saga(name="job")
    async def first(number: int) -> None: ...

    @new.saga(name="job")
    async def second(number: str) -> None: ...

    plan = build_schedule(old.definitions["job", "1"], 60, args=(5,)).plan
    with pytest.raises(DecodeError, match="the inputs of 'job' that a schedule keeps"):
        inputs_at(new.definitions["job", "1"], plan, NOON)


def test_runs_are_named_after_their_ticks() -> None:
    assert run_id("clean", NOON) == "clean@2026-01-01T12:00:00Z"


# ---------------------------------------------------------------- what cannot be meant
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"args": ()}, "missing a required argument: 'region'$"),
        ({"args": ("eu", 1, 2)}, "too many positional arguments"),
        ({"args": (1,)}, "argument 'region' of 'report' does not decode to str"),
        ({"args": (object(),)}, "an argument of 'report' cannot be stored"),
        ({"args": "eu"}, "args: takes a tuple of inputs, not 'eu'"),
        ({"missed": "never"}, "missed: takes one of 'skip', 'once', 'all', not 'never'"),
        ({"overlap": "queue"}, "overlap: takes one of 'allow', 'skip', not 'queue'"),
        ({"missed": "all", "overlap": "skip"}, 'choose missed="once", or overlap="allow"'),
        ({"name": ""}, "name: an id is a text of 1 to 500 characters"),
        ({"name": 3}, "name: an id is a text"),
        ({"name": "x" * 401}, "name: takes a text of at most 400 characters, not of 401"),
    ],
)
def test_what_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        build_schedule(registry.definitions["report", "1"], 60, **{"args": ("eu",), **options})


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(DefinitionError) as caught:
        build_schedule(registry.definitions["report", "1"], -1, args="eu", missed="x", overlap="y", name="")
    assert len(caught.value.problems) == 5


def test_only_what_has_runs_can_be_on_a_schedule() -> None:
    fresh = Registry()

    @fresh.machine
    class Lamp:
        @state(initial=True)
        class Off: ...

        @state(final=True)
        class On: ...

        @transition(Off, On)
        async def switch(self) -> None: ...

    async def plain() -> None: ...

    @step
    async def alone() -> None: ...

    for thing, why in ((Lamp, "a machine has no runs"), (plain, "it is not assembled"), (alone, "it is not assembled")):
        with pytest.raises(
            DefinitionError, match=f"{why}; a schedule takes a saga, pipeline, graph or approval chain: put"
        ):
            fresh.every(60)(thing)
    assert not fresh.schedules


# ---------------------------------------------------------------- in registries
def test_every_gives_back_what_it_was_given() -> None:
    fresh = Registry()

    @fresh.saga
    async def tidy() -> None: ...

    assert fresh.every(60)(tidy) is tidy
    assert fresh.every("0 2 * * *", name="nightly")(tidy) is tidy
    assert list(fresh.schedules) == ["tidy", "nightly"]


def test_a_name_is_taken_once() -> None:
    fresh = Registry()
    fresh.every(60)(clean)
    with pytest.raises(DefinitionError, match="schedule 'clean': the name is taken by another schedule; give name="):
        fresh.every(60)(clean)


def test_what_is_on_a_schedule_is_included_with_it() -> None:
    fresh, merged = Registry(), Registry()
    fresh.every(60)(clean)
    assert ("clean", "1") in fresh.definitions
    merged.include(fresh)
    merged.include(fresh)
    assert merged.schedules == fresh.schedules
    other = Registry()
    other.every(30)(clean)
    with pytest.raises(DefinitionError, match="the name is taken by another schedule"):
        merged.include(other)


# ---------------------------------------------------------------- what is due
def test_nothing_is_due_before_the_first_tick() -> None:
    schedule = every(10)
    assert schedule.next == NOON + 10 * MINUTE
    assert schedule.wake == schedule.next / MICROS
    assert find_due(schedule, NOON + 10 * MINUTE - 1) == Due((), None, schedule.next)


@pytest.mark.parametrize("missed", ["skip", "once", "all"])
def test_a_tick_that_is_on_time_is_fired(missed: Missed) -> None:
    schedule = every(10, missed)
    first = NOON + 10 * MINUTE
    for late in (0, 1, LATE):
        assert find_due(schedule, first + late) == Due(
            (first,) if missed != "all" else [first], None, first + 10 * MINUTE
        )


def test_what_was_missed() -> None:
    ticks = [NOON + n * 10 * MINUTE for n in range(1, 8)]
    now = ticks[5] + 5 * MINUTE
    assert find_due(every(10, "skip"), now) == Due((), ticks[0], ticks[6])
    assert find_due(every(10, "once"), now) == Due((ticks[5],), ticks[0], ticks[6])
    assert find_due(every(10, "all"), now) == Due(ticks[:6], None, ticks[6])


def test_the_last_of_those_that_were_missed_may_be_on_time() -> None:
    ticks = [NOON + n * 10 * MINUTE for n in range(1, 4)]
    assert find_due(every(10, "skip"), ticks[1] + LATE) == Due((ticks[1],), ticks[0], ticks[2])
    assert find_due(every(10, "skip"), ticks[1] + LATE + 1) == Due((), ticks[0], ticks[2])


def test_many_are_started_a_hundred_at_a_time() -> None:
    schedule = every(1, "all")
    now = NOON + 250 * MINUTE
    counts = []
    while ticks := (due := find_due(schedule, now)).ticks:
        counts.append(len(ticks))
        schedule = replace(schedule, next=due.next, last=ticks[-1])
    assert counts == [MOST, MOST, 50]


def test_what_is_paused_or_removed_has_no_wake() -> None:
    for off in (replace(every(), paused=True), replace(every(), removed=True)):
        assert off.wake is None
        assert find_due(off, NOON + 100 * MINUTE).ticks == ()
    assert replace(every(), paused=True).status == "paused"


# ---------------------------------------------------------------- what changes
def test_the_anchor_is_a_whole_second() -> None:
    schedule = every(now=NOON + 123_456)
    assert schedule.anchor == NOON
    short = build_schedule(registry.definitions["clean", "1"], 0.25)
    assert begin(short.plan, NOON + 123_456).anchor == NOON + 123_456


def test_what_goes_on_later_has_its_first_tick_then() -> None:
    paused = replace(every(10), paused=True)
    again = resume(paused, NOON + 35 * MINUTE)
    assert (again.paused, again.next) == (False, NOON + 40 * MINUTE)


def test_with_the_same_times_what_is_due_stays_due() -> None:
    schedule = every(10)
    plan = replace(schedule.plan, missed="all", version="2")
    changed = change(schedule, plan, NOON + 35 * MINUTE)
    assert changed == replace(schedule, plan=plan)


def test_new_times_count_from_now_on() -> None:
    schedule = replace(every(10), last=NOON)
    plan = build_schedule(registry.definitions["clean", "1"], timedelta(minutes=7)).plan
    changed = change(schedule, plan, NOON + 35 * MINUTE)
    assert changed.next == NOON + 42 * MINUTE, "it is not counted from the same beginning"
    future = build_schedule(registry.definitions["clean", "1"], 60, start=datetime(2027, 1, 1, tzinfo=UTC)).plan
    assert change(change(schedule, future, NOON), plan, NOON).next == NOON + 7 * MINUTE
    nightly = build_schedule(registry.definitions["clean", "1"], "0 2 * * *").plan
    changed = change(schedule, nightly, NOON)
    assert moment(changed.next or 0) == datetime(2026, 1, 2, 2, tzinfo=UTC)


def test_no_tick_is_fired_again_for_a_clock_that_was_put_back() -> None:
    schedule = replace(every(10), last=NOON + 50 * MINUTE, paused=True)
    assert resume(schedule, NOON).next == NOON + 60 * MINUTE
    plan = build_schedule(registry.definitions["clean", "1"], timedelta(minutes=5)).plan
    assert change(schedule, plan, NOON).next == NOON + 55 * MINUTE


def test_what_is_paused_stays_so_when_the_code_changes() -> None:
    paused = replace(every(10), paused=True)
    plan = build_schedule(registry.definitions["clean", "1"], "0 2 * * *").plan
    assert change(paused, plan, NOON).paused


def test_what_was_removed_comes_back_and_counts_from_then() -> None:
    removed = replace(every(10), removed=True, paused=True)
    back = change(removed, removed.plan, NOON + 25 * MINUTE)
    assert (back.removed, back.paused, back.next) == (False, False, NOON + 35 * MINUTE)


def test_ticks_ahead() -> None:
    assert every(10).ticks(3) == [NOON + n * 10 * MINUTE for n in (1, 2, 3)]
    assert every(10).ticks(0) == []


def test_the_state_is_stored_and_read() -> None:
    for when in (timedelta(minutes=3), "0 2 * * *"):
        plan = build_schedule(registry.definitions["clean", "1"], when, start=datetime(2026, 5, 1, tzinfo=UTC)).plan
        schedule = replace(begin(plan, NOON), last=NOON, run="r", open=("r", "s"), paused=True)
        assert state_codec.decode(pack(schedule), "it") == schedule
    with pytest.raises(DecodeError):
        state_codec.decode(msgspec.msgpack.encode({"plan": 1}), "it")
