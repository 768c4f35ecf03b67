"""Ticks against lists of minutes, and policies against a loop that keeps no state but what it has fired."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from flowlet import Registry
from flowlet.core.schedule import LATE, MOST, Missed, ScheduleState, begin, build_schedule, change, find_due, resume
from flowlet.core.schedule_ticks import MICROS, Cadence, Cron, Interval, micros, moment

MINUTE = 60 * MICROS
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/St_Johns"]
SWITCHES = [datetime(2026, 3, 29), datetime(2026, 10, 25), datetime(2026, 3, 8), datetime(2026, 11, 1)]  # noqa: DTZ001
SWITCHES += [datetime(2026, 4, 5), datetime(2026, 10, 4), datetime(2026, 6, 15)]  # noqa: DTZ001

registry = Registry()


@registry.saga
async def clean() -> None: ...


RUN = registry.definitions["clean", "1"]


# ---------------------------------------------------------------- when ticks are
class Fields:
    """A cron expression of minutes and hours, and what it means, said in another way."""

    def __init__(self, minutes: frozenset[int] | None, hours: frozenset[int] | None) -> None:
        self.minutes, self.hours = minutes, hours

    def __repr__(self) -> str:
        return self.expression

    @property
    def expression(self) -> str:
        fields = (
            "*" if values is None else ",".join(map(str, sorted(values))) for values in (self.minutes, self.hours)
        )
        return " ".join([*fields, "* * *"])

    def ticks(self, zone: ZoneInfo, first: datetime, days: int) -> list[int]:
        if self.minutes is None or self.hours is None:
            begin = first.replace(tzinfo=zone).astimezone(UTC)
            moments = (begin + timedelta(minutes=n) for n in range(days * 1440))
            return [micros(m) for m in moments if self._matches(m.astimezone(zone))]
        fixed = {
            _first_moment(first + timedelta(days=d, minutes=m), zone) for d in range(days) for m in self._minutes()
        }
        return sorted(fixed)

    def _matches(self, local: datetime) -> bool:
        return (self.minutes is None or local.minute in self.minutes) and (
            self.hours is None or local.hour in self.hours
        )

    def _minutes(self) -> list[int]:
        assert self.minutes is not None
        assert self.hours is not None
        return [60 * h + m for h in self.hours for m in self.minutes]


def _first_moment(wall: datetime, zone: ZoneInfo) -> int:
    """Return when clocks show this for the first time, or when the gap ends in which they never do."""
    while True:
        local = wall.replace(tzinfo=zone)
        if local.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == wall:
            return micros(local)
        wall += timedelta(minutes=1)


values = st.frozensets(st.sampled_from([0, 1, 15, 29, 30, 31, 45, 59]), min_size=1, max_size=3)
hours = st.frozensets(st.sampled_from([0, 1, 2, 3, 12, 23]), min_size=1, max_size=3)
fields = st.one_of(
    st.builds(Fields, values, hours),
    st.builds(Fields, values, st.none()),
    st.builds(Fields, st.none(), hours),
)


@settings(max_examples=300, deadline=None)
@given(fields, st.sampled_from(ZONES), st.sampled_from(SWITCHES), st.data())
def test_cron_expressions_go_by_the_clocks_of_their_zone(
    fields: Fields, name: str, day: datetime, data: st.DataObject
) -> None:
    zone, cadence = ZoneInfo(name), Cron(fields.expression, name)
    expected = fields.ticks(zone, day - timedelta(days=2), 5)
    lower = micros((day - timedelta(days=1)).replace(tzinfo=zone))
    upper = micros((day + timedelta(days=2)).replace(tzinfo=zone))
    time = data.draw(st.integers(lower, upper))
    later = [tick for tick in expected if tick > time]
    if later:
        assert moment(cadence.after(time, 0) or 0) == moment(later[0])
    past = [tick for tick in expected if tick <= time]
    if past:
        known = data.draw(st.sampled_from(past))
        assert moment(cadence.latest(time, 0, known)) == moment(past[-1])


@given(st.integers(1, 10**9), st.integers(0, 10**12), st.integers(0, 10**12))
def test_intervals_are_counted_from_their_anchor(length: int, anchor: int, time: int) -> None:
    interval = Interval(length)
    tick = interval.after(time, anchor)
    assert tick is not None
    assert tick > time
    assert tick >= anchor
    assert (tick - anchor) % length == 0
    assert tick - length <= time or tick == anchor
    if time >= anchor:
        assert interval.latest(time, anchor, anchor) == tick - length


# ---------------------------------------------------------------- what is fired
CADENCES: list[timedelta | str] = [timedelta(minutes=7), timedelta(seconds=1), "*/10 * * * *", "30 2 * * *"]
looks = st.lists(st.integers(0, 3 * 1440 * 60), min_size=1, max_size=12)


def all_ticks(cadence: Cadence, state: ScheduleState, upto: int) -> list[int]:
    found, tick = [], state.next
    while tick is not None and tick <= upto:
        found.append(tick)
        tick = cadence.after(tick, state.anchor)
    return found


def expected_of(missed: Missed, due: list[int], now: int) -> list[int]:
    """Return which of the ticks that have come since the last look are fired."""
    if missed == "all" or not due:
        return due
    return [] if missed == "skip" and now - due[-1] > LATE else due[-1:]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CADENCES), st.sampled_from(["skip", "once", "all"]), looks)
def test_each_tick_is_fired_once_or_left_out_by_its_policy(
    when: timedelta | str, missed: Missed, pauses: list[int]
) -> None:
    if when == timedelta(seconds=1):
        pauses = [pause // 500 for pause in pauses]
    plan = build_schedule(RUN, when, missed=missed, zone="Europe/Berlin" if isinstance(when, str) else None).plan
    now = micros(datetime(2026, 3, 28, 12, tzinfo=UTC))
    schedule = begin(plan, now)
    fired: list[int] = []
    expected: list[int] = []
    for pause in pauses:
        now += pause * MICROS
        expected += expected_of(missed, all_ticks(plan.cadence, schedule, now), now)
        while schedule.next is not None and schedule.next <= now:
            due = find_due(schedule, now)
            assert len(due.ticks) <= MOST
            assert due.next is not None
            assert due.next > schedule.next, "it would look again and again"
            fired += due.ticks
            schedule = replace(schedule, next=due.next, last=due.ticks[-1] if due.ticks else schedule.last)
    assert fired == expected
    assert fired == sorted(set(fired))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["look", "pause", "resume", "change", "back"]), st.integers(0, 100)), max_size=30
    )
)
def test_whatever_is_done_to_a_schedule_no_tick_is_fired_twice_or_early(acts: list[tuple[str, int]]) -> None:
    plans = [build_schedule(RUN, timedelta(minutes=n)).plan for n in (5, 7)]
    now = micros(datetime(2026, 1, 1, tzinfo=UTC))
    schedule, fired = begin(plans[0], now), []
    for act, minutes in acts:
        now += -minutes * MINUTE if act == "back" else minutes * MINUTE
        if act == "pause":
            schedule = replace(schedule, paused=True)
        elif act == "resume" and schedule.paused:
            schedule = resume(schedule, now)
        elif act == "change":
            schedule = change(schedule, plans[minutes % 2], now)
        due = find_due(schedule, now)
        assert not (schedule.paused and due.ticks)
        assert all(tick <= now for tick in due.ticks)
        fired += due.ticks
        schedule = replace(schedule, next=due.next, last=due.ticks[-1] if due.ticks else schedule.last)
    assert fired == sorted(set(fired))


def test_the_model_of_the_gap_is_right() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    gap = _first_moment(datetime(2026, 3, 29, 2, 30), berlin)  # noqa: DTZ001
    assert moment(gap) == datetime(2026, 3, 29, 1, tzinfo=UTC)
