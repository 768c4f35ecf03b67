"""When ticks are: intervals, cron expressions, and what clocks do that are put forward or back."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from flowlet.core.schedule_ticks import Cadence, Interval, micros, moment, read_cadence, text_of, tick_of
from flowlet.errors import DefinitionError, MissingExtra

BERLIN = ZoneInfo("Europe/Berlin")
SPRING = datetime(2026, 3, 29, tzinfo=UTC)  # at 01:00 UTC, 02:00 becomes 03:00
AUTUMN = datetime(2026, 10, 25, tzinfo=UTC)  # at 01:00 UTC, 03:00 becomes 02:00


def between(cadence: Cadence, first: datetime, last: datetime, anchor: int = 0) -> list[datetime]:
    """Return the ticks after one time and up to another."""
    found: list[datetime] = []
    tick = cadence.after(micros(first), anchor)
    while tick is not None and tick <= micros(last):
        found.append(moment(tick))
        tick = cadence.after(tick, anchor)
    return found


def in_berlin(expression: str, day: datetime) -> list[str]:
    """Return the ticks of a day of Berlin's clocks, as those clocks and their distance from UTC."""
    cadence = read_cadence(expression, "Europe/Berlin", None)
    begin = day.replace(tzinfo=BERLIN)
    ticks = between(cadence, begin - timedelta(microseconds=1), begin.replace(hour=23, minute=59))
    return [tick.astimezone(BERLIN).strftime("%H:%M%z") for tick in ticks]


def at(text: str) -> int:
    return micros(datetime.fromisoformat(text))


# ---------------------------------------------------------------- clocks that are put forward or back
def test_a_fixed_time_within_the_gap_is_due_right_after_it() -> None:
    assert in_berlin("30 2 * * *", SPRING) == ["03:00+0200"]
    assert in_berlin("0 2 * * *", SPRING) == ["03:00+0200"]
    assert in_berlin("59 1 * * *", SPRING) == ["01:59+0100"]
    assert in_berlin("30 2 * * *", SPRING + timedelta(days=1)) == ["02:30+0200"]


def test_what_is_due_twice_within_the_gap_is_due_once_after_it() -> None:
    assert in_berlin("0,30 2 * * *", SPRING) == ["03:00+0200"]
    assert in_berlin("0 2,3 * * *", SPRING) == ["03:00+0200"]


def test_a_fixed_time_that_comes_twice_is_due_the_first_time() -> None:
    assert in_berlin("30 2 * * *", AUTUMN) == ["02:30+0200"]
    assert in_berlin("0 2,3 * * *", AUTUMN) == ["02:00+0200", "03:00+0100"]


def test_a_fixed_time_is_not_due_again_for_who_asks_in_the_repeated_hour() -> None:
    cadence = read_cadence("30 2 * * *", "Europe/Berlin", None)
    asked = AUTUMN.replace(hour=1, minute=15)  # 02:15 for the second time
    assert moment(cadence.after(micros(asked), 0) or 0) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


def test_with_stars_it_goes_by_real_time() -> None:
    assert in_berlin("30 * * * *", SPRING)[:4] == ["00:30+0100", "01:30+0100", "03:30+0200", "04:30+0200"]
    assert in_berlin("30 * * * *", AUTUMN)[1:5] == ["01:30+0200", "02:30+0200", "02:30+0100", "03:30+0100"]
    assert len(in_berlin("*/15 * * * *", SPRING)) == 23 * 4
    assert len(in_berlin("*/15 * * * *", AUTUMN)) == 25 * 4


def test_an_interval_knows_no_clocks() -> None:
    hours = read_cadence(timedelta(hours=1), None, None)
    assert len(between(hours, SPRING, SPRING + timedelta(days=1))) == 24


def test_half_an_hour_in_the_middle_of_the_year() -> None:
    howe = read_cadence("15 2 * * *", "Australia/Lord_Howe", None)  # 02:00 becomes 02:30
    ticks = between(howe, datetime(2026, 10, 2, tzinfo=UTC), datetime(2026, 10, 4, 23, tzinfo=UTC))
    zone = ZoneInfo("Australia/Lord_Howe")
    assert [t.astimezone(zone).strftime("%d %H:%M") for t in ticks] == ["03 02:15", "04 02:30", "05 02:15"]


# ---------------------------------------------------------------- cron expressions
@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 2 * * *", ["2026-01-02T02:00", "2026-01-03T02:00"]),
        ("*/20 3 * * *", ["2026-01-01T03:00", "2026-01-01T03:20"]),
        ("0 0 29 2 *", ["2028-02-29T00:00", "2032-02-29T00:00"]),
        ("0 12 * * MON-FRI", ["2026-01-01T12:00", "2026-01-02T12:00"]),
        ("0 0 13 * FRI", ["2026-01-02T00:00", "2026-01-09T00:00"]),  # the day of the month or that of the week
        ("0 0 L * *", ["2026-01-31T00:00", "2026-02-28T00:00"]),
        ("@daily", ["2026-01-02T00:00", "2026-01-03T00:00"]),
        (" @Monthly ", ["2026-02-01T00:00", "2026-03-01T00:00"]),
        ("@hourly", ["2026-01-01T03:00", "2026-01-01T04:00"]),
        ("@weekly", ["2026-01-04T00:00", "2026-01-11T00:00"]),
        ("@yearly", ["2027-01-01T00:00", "2028-01-01T00:00"]),
    ],
)
def test_cron_expressions(expression: str, expected: list[str]) -> None:
    cadence = read_cadence(expression, None, None)
    first = cadence.after(at("2026-01-01T02:30:00+00:00"), 0)
    second = cadence.after(first or 0, 0)
    assert [moment(t or 0).strftime("%Y-%m-%dT%H:%M") for t in (first, second)] == expected


def test_no_tick_is_before_the_start() -> None:
    start = datetime(2026, 5, 1, 12, tzinfo=UTC)
    cadence = read_cadence("0 12 * * *", None, start)
    assert between(cadence, datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 5, 2, 13, tzinfo=UTC)) == [
        start,
        start + timedelta(days=1),
    ]


# ---------------------------------------------------------------- intervals
def test_an_interval_is_counted_from_its_anchor_and_does_not_drift() -> None:
    third = Interval(333_333)
    anchor = at("2026-01-01T00:00:00+00:00")
    year = at("2027-01-01T00:00:00+00:00")
    tick = third.after(year, anchor)
    assert tick is not None
    assert (tick - anchor) % 333_333 == 0
    assert year < tick <= year + 333_333
    assert third.latest(year, anchor, anchor) == tick - 333_333


def test_the_start_of_an_interval_is_its_first_tick() -> None:
    day = Interval(86_400_000_000)
    start = at("2026-05-01T12:00:00+02:00")
    assert day.after(start - 10**12, start) == start
    assert day.after(start, start) == start + day.micros


@pytest.mark.parametrize(
    ("when", "text"),
    [
        (timedelta(days=1), "every day"),
        (timedelta(days=14), "every 14 days"),
        (3600, "every hour"),
        (5400, "every 90 minutes"),
        (1, "every second"),
        (90, "every 90 seconds"),
        (0.25, "every 0.25 seconds"),
        ("0  2 * *   *", "0 2 * * * (UTC)"),
    ],
)
def test_for_people(when: float | timedelta | str, text: str) -> None:
    assert read_cadence(when, None, None).describe() == text


# ---------------------------------------------------------------- what cannot be meant
@pytest.mark.parametrize(
    ("when", "zone", "start", "message"),
    [
        (0, None, None, "at least a millisecond, not 0"),
        (timedelta(seconds=-5), None, None, "at least a millisecond"),
        (timedelta.max, None, None, "100 years at most"),
        (60, None, datetime.max.replace(tzinfo=UTC), "after the year 9000"),
        (float("nan"), None, None, "finite, not nan"),
        (float("inf"), None, None, "finite, not inf"),
        (1e300, None, None, "finite, not 1e"),
        (True, None, None, "takes seconds, a timedelta or a cron expression, not True"),
        (None, None, None, "takes seconds, a timedelta or a cron expression, not None"),
        (60, "UTC", None, "zone= goes with a cron expression"),
        (60, None, datetime(2026, 1, 1), "has no timezone; give it one"),  # noqa: DTZ001 - that is the mistake
        (60, None, "tomorrow", "start: takes a datetime with a timezone, not 'tomorrow'"),
        ("61 * * * *", None, None, "cron expression '61 . . . .': bad minute"),
        ("* * * *", None, None, "five fields .* not 4; for seconds give a timedelta"),
        ("* * * * * *", None, None, "five fields .* not 6; for seconds give a timedelta"),
        ("", None, None, "five fields .* not 0"),
        ("@often", None, None, "five fields .* not 1"),
        ("0 0 31 4 *", None, None, "bad day-of-month"),
        ("0 0 * * *", "Mars/Olympus", None, "no time zone 'Mars/Olympus'; .* pip install tzdata"),
        ("0 0 * * *", "", None, "no time zone ''"),
        ("0 0 * * *", "../passwd", None, "no time zone '../passwd'"),
        ("0 0 * * *", 2, None, "zone: takes the name of a time zone, such as 'Europe/Berlin', not 2"),
    ],
)
def test_what_cannot_be_meant(when: Any, zone: Any, start: Any, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        read_cadence(when, zone, start)


def test_without_the_extra_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(MissingExtra, match=r"pip install 'flowlet\[cron\]'"):
        read_cadence("0 0 * * *", None, None)
    assert read_cadence(5, None, None) == Interval(5_000_000)


# ---------------------------------------------------------------- as ids and as times of a store
@pytest.mark.parametrize(
    ("time", "text"),
    [
        ("2026-11-23T02:00:00+00:00", "2026-11-23T02:00:00Z"),
        ("2026-11-23T02:00:10+00:00", "2026-11-23T02:00:10Z"),
        ("2026-11-23T02:00:00.120000+00:00", "2026-11-23T02:00:00.12Z"),
        ("2026-11-23T02:00:00.000001+00:00", "2026-11-23T02:00:00.000001Z"),
        ("2026-11-23T04:00:00+02:00", "2026-11-23T02:00:00Z"),
    ],
)
def test_a_tick_as_ids_have_it(time: str, text: str) -> None:
    assert text_of(at(time)) == text


def test_a_store_keeps_a_tick_to_the_microsecond() -> None:
    for tick in range(at("2026-01-01T00:00:00+00:00"), at("2026-01-01T00:00:00.003000+00:00"), 7):
        assert tick_of(tick / 1_000_000) == tick
