"""When a schedule's ticks are: every so many seconds, or by a cron expression.

Law: a tick is a whole number of microseconds since the epoch, worked out from what is stored and from nothing
else, so that every process finds the same ones and none drifts. No clock is read here.

Cron expressions go by wall clocks, as Debian's cron does. Where clocks are put forward, what is due at a fixed time
within the gap is due right after it. Where they are put back, what is due at a fixed time is due once, the first time.
An expression with ``*`` for its hours or minutes goes by real time: nothing is due in the gap, and what is due in the
repeated hour is due twice.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, TypeAlias

import msgspec

from flowlet.errors import DefinitionError, MissingExtra

MICROS = 1_000_000
"""Microseconds of a second."""

_LEAST = 1000
_LONGEST = timedelta(days=36_525)
_LAST_YEAR = 9000  # so that every tick is a time that Python knows
_MINUTE = 60 * MICROS
_UNITS = (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


class Interval(msgspec.Struct, frozen=True, tag="interval"):
    """Ticks at equal distances.

    Attributes:
        micros: microseconds between two of them.
        start: when the first one is, or None for one interval after the schedule began.
    """

    micros: int
    start: int | None = None

    def after(self, time: int, anchor: int) -> int | None:
        """Return the first tick later than a time."""
        if time < anchor:
            return anchor
        return anchor + ((time - anchor) // self.micros + 1) * self.micros

    def latest(self, time: int, anchor: int, tick: int) -> int:
        """Return the last tick that is not later than a time, given one that is not."""
        return max(tick, anchor + (time - anchor) // self.micros * self.micros)

    def describe(self) -> str:
        """Say for people when the ticks are."""
        for unit, seconds in _UNITS:
            count, rest = divmod(self.micros, seconds * MICROS)
            if not rest:
                return f"every {unit}" if count == 1 else f"every {count} {unit}s"
        return f"every {self.micros / MICROS:g} seconds"


class Cron(msgspec.Struct, frozen=True, tag="cron"):
    """Ticks by a cron expression of five fields, on the wall clocks of a time zone.

    Attributes:
        start: no tick is before this time; None for no such limit.
    """

    expression: str
    zone_name: str = "UTC"
    start: int | None = None

    def after(self, time: int, anchor: int) -> int | None:
        """Return the first tick later than a time, or None when none is due in the next 50 years."""
        if self.start is not None and time < self.start:
            time = self.start - 1
        for found in _make(self.expression, moment(time, _zone(self.zone_name))):
            tick = micros(found)
            # In an hour that the clocks repeat it finds, of fixed times, those of the first time once more.
            if tick > time:
                return tick
        return None

    def latest(self, time: int, anchor: int, tick: int) -> int:
        """Return the last tick that is not later than a time, given one that is not."""
        high = time  # behind it there is none that is not too late
        while high - tick > _MINUTE:
            middle = (tick + high) // 2
            found = self.after(middle, anchor)
            if found is None or found > time:
                high = middle
            else:
                tick = found
        found = self.after(tick, anchor)  # a minute later at the soonest
        return tick if found is None or found > time else found

    def describe(self) -> str:
        """Say for people when the ticks are."""
        return f"{self.expression} ({self.zone_name})"


Cadence: TypeAlias = Interval | Cron


def read_cadence(when: Any, zone: Any, start: Any) -> Cadence:
    """Return what was written as a schedule's times.

    Args:
        when: seconds, a timedelta, or a cron expression.
        zone: the name of a time zone, for a cron expression; None for UTC.
        start: a datetime with a timezone, or None.

    Raises:
        DefinitionError: it cannot be meant.
        MissingExtra: cron expressions need what is not installed.
    """
    begin = None if start is None else _read_start(start)
    if isinstance(when, str):
        return _read_cron(when, zone, begin)
    if zone is not None:
        raise _fault(f"zone= goes with a cron expression; {when!r} is the same in every zone, leave it out")
    return Interval(_read_interval(when), begin)


def _read_start(start: Any) -> int:
    if not isinstance(start, datetime):
        raise _fault(f"start: takes a datetime with a timezone, not {start!r}")
    if start.tzinfo is None:
        raise _fault(f"start: {start!r} has no timezone; give it one, such as datetime.UTC")
    if start.year > _LAST_YEAR:
        raise _fault(f"start: {start!r} is after the year {_LAST_YEAR}")
    return micros(start)


def _read_interval(when: Any) -> int:
    if isinstance(when, bool) or not isinstance(when, (int, float, timedelta)):
        raise _fault(f"a schedule takes seconds, a timedelta or a cron expression, not {when!r}")
    try:
        length = when if isinstance(when, timedelta) else timedelta(seconds=when)
        count = length // timedelta(microseconds=1)
    except (OverflowError, ValueError):
        raise _fault(f"an interval must be finite, not {when!r}") from None
    if count < _LEAST:
        raise _fault(f"an interval must be at least a millisecond, not {when!r}")
    if length > _LONGEST:
        raise _fault(f"an interval must be 100 years at most, not {when!r}")
    return count


def _read_cron(expression: str, zone: Any, start: int | None) -> Cron:
    if zone is not None and not isinstance(zone, str):
        raise _fault(f"zone: takes the name of a time zone, such as 'Europe/Berlin', not {zone!r}")
    fields = _ALIASES.get(expression.strip().lower(), expression).split()
    if len(fields) != 5:
        raise _fault(
            f"{expression!r}: a cron expression has five fields (minute, hour, day of the month, month, day of the "
            f"week), not {len(fields)}; for seconds give a timedelta"
        )
    cron = Cron(" ".join(fields), "UTC" if zone is None else zone, start)
    if cron.after(0, 0) is None:
        raise _fault(f"{expression!r} is never due: there is no such day")
    return cron


def _make(expression: str, local: datetime) -> Any:
    try:
        # Loaded when there is a cron expression: it comes with an extra.
        from cronsim import CronSim, CronSimError
    except ImportError as error:
        raise MissingExtra(
            "cron expressions need cronsim; install it with: pip install 'flowlet[cron]', or give a timedelta"
        ) from error
    try:
        return CronSim(expression, local)
    except CronSimError as error:
        raise _fault(f"cron expression {expression!r}: {str(error)[:1].lower()}{str(error)[1:]}") from error


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    # Loaded when there is a zone: most programs have none.
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as error:
        raise _fault(
            f"there is no time zone {name!r}; name one as 'Europe/Berlin', and where a system has no zones, install "
            "them with: pip install tzdata"
        ) from error


def moment(tick: int, zone: tzinfo = UTC) -> datetime:
    """Return a tick as a datetime of a zone."""
    return (_EPOCH + timedelta(microseconds=tick)).astimezone(zone)


def micros(when: datetime) -> int:
    """Return a time as a tick."""
    return (when - _EPOCH) // timedelta(microseconds=1)


def tick_of(seconds: float) -> int:
    """Return a store's time as a tick; nothing is lost that a store has kept of a tick."""
    return round(seconds * MICROS)


def text_of(tick: int) -> str:
    """Return a tick as ids have it: ``2026-11-23T02:00:00Z``."""
    return re.sub(r"\.?0*\+00:00$", "", moment(tick).isoformat(timespec="microseconds")) + "Z"


def _fault(text: str) -> DefinitionError:
    return DefinitionError([text])
