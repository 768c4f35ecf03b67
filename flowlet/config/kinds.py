"""The kinds of values that a configuration has: what each takes, as a value and as a text.

Law: pure; what cannot be meant is a `ValueError`, and whoever asked says where it stood and what is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from msgspec import Struct

from flowlet.core.sizes import LEAST


class Kind(Struct, frozen=True):
    """One kind of value.

    Attributes:
        title: its name in the table of all settings.
        takes: what is allowed, for people.
        check: returns a value as it is kept, or raises `ValueError`.
        read: makes a value of a text, or raises `ValueError`.
    """

    title: str
    takes: str
    check: Callable[[Any], Any]
    read: Callable[[str], Any]

    def convert(self, value: Any) -> Any:
        """Return a value as it is kept; texts are read."""
        return self.check(self.read(value.strip()) if isinstance(value, str) else value)


class Setting(Struct, frozen=True):
    """What is known of one field: it stands in the field's annotation."""

    kind: Kind
    meaning: str


_MOST = 2**63 - 1
_LONGEST = timedelta.max.total_seconds()
"""Numbers beyond these can only be mistakes, and no store takes them."""

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def _boolean(text: str) -> bool:
    folded = text.lower()
    if folded not in _TRUE + _FALSE:
        raise ValueError
    return folded in _TRUE


def _is_boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _whole(text: str) -> Any:
    return None if text.lower() == "none" else int(text)


def _at_least(least: int, *, zero_is_none: bool = False, optional: bool = False) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if optional and value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError
        if zero_is_none and value == 0:
            return None
        if not least <= value <= _MOST:
            raise ValueError
        return value

    return check


def _seconds(text: str) -> Any:
    """Read a number of seconds, or one with units, such as 1h30m."""
    folded = text.lower().replace(" ", "")
    if folded == "none":
        return None
    parts = _PART.findall(folded)
    if parts and "".join(number + unit for number, unit in parts) == folded:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    return float(text)


def _duration(*, positive: bool = False, optional: bool = False) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if optional and value is None:
            return None
        if isinstance(value, timedelta):
            value = value.total_seconds()
        # Of no number this compares false to is anything known: nan is one of them.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _LONGEST:
            raise ValueError
        if value == 0 and optional:
            return None
        if value == 0 and positive:
            raise ValueError
        return float(value)

    return check


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _worker_name(value: Any) -> Any:
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value)):
        raise ValueError
    return value


_UNIT_TEXT = "seconds, or a text with units such as '500ms', '10s', '5m', '1h30m' or '2d'"

BOOLEAN = Kind("boolean", "true or false (as a text also yes, no, on, off, 1 and 0)", _is_boolean, _boolean)
COUNT = Kind("whole number", "a whole number of at least 1", _at_least(1), _whole)
LIMIT = Kind(
    "whole number or none",
    "a whole number of at least 1, or 0 for no limit",
    _at_least(1, zero_is_none=True, optional=True),
    _whole,
)
BYTES = Kind("bytes or none", f"a whole number of at least {LEAST} bytes", _at_least(LEAST, optional=True), _whole)
SECONDS = Kind("duration", f"{_UNIT_TEXT}, of at least 0", _duration(), _seconds)
LEASE = Kind("duration", f"{_UNIT_TEXT}, of more than 0", _duration(positive=True), _seconds)
TIME_LIMIT = Kind("duration or none", f"{_UNIT_TEXT}; 0 for no limit", _duration(optional=True), _seconds)
TEXT = Kind("URL", "the URL of a store, such as 'sqlite:///flowlet.db'", _text, str)
NAME = Kind("text or none", "up to 64 of the letters a-z and A-Z, digits, '.', '_' and '-'", _worker_name, str)
