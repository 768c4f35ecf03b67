"""How large what is stored may be, and making it fit where it must.

Law: what a user has given is refused when it is too large, with a typed error before it is stored; what
flowlet itself must say, that something failed and why, is shortened until it fits.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from flowlet.core.codec import pack
from flowlet.core.failures import Failure
from flowlet.errors import PayloadTooLarge

LEAST = 4096
"""The least limit there may be, in bytes: what a record has beside a user's values must fit, whatever fails."""

FRAME = 256
"""Bytes that a record has beside its values and names, at most: tag, numbers, times, a digest."""

ALWAYS_FITS = 1024
"""An input of so many bytes need not be measured."""


def check_size(data: bytes, limit: int | None, what: str, beside: int = 0) -> None:
    """Judge a value that is to be stored; ``what`` names it in the error.

    Args:
        beside: bytes of what is stored in the same record.

    Raises:
        PayloadTooLarge: they are more than ``limit``.
    """
    if limit is not None and len(data) + beside > limit:
        raise too_large(len(data) + beside, limit, what)


def too_large(size: int, limit: int, what: str) -> PayloadTooLarge:
    """Make the error for a record of so many bytes."""
    return PayloadTooLarge(
        f"{what} takes {size:,} bytes to store, and {limit:,} are allowed (max_payload= of the Flowlet, or what its "
        "store takes); keep the data elsewhere and pass a reference",
        size,
        limit,
    )


def fit(failure: Failure, limit: int | None, beside: int = 0) -> Failure:
    """Shorten a failure so that a record of ``limit`` bytes has room for it.

    What it takes to rebuild the exception goes first, then the end of its message.

    Args:
        beside: bytes of what is stored in the same record.
    """
    if limit is None:
        return failure
    room = limit - FRAME - beside
    if len(pack(failure)) <= room:
        return failure
    failure = replace(failure, args=None, state=None)
    excess = len(pack(failure)) - room
    if excess <= 0:
        return failure
    note = f"... (shortened, it had {len(failure.message):,} characters)"
    return replace(failure, message=_cut(failure.message, excess + len(note)) + note)


def fit_all(failures: Sequence[Failure], limit: int | None) -> tuple[Failure, ...]:
    """Shorten failures that share the room for one, each to its part."""
    if limit is None or not failures:
        return tuple(failures)
    part = (limit - FRAME) // len(failures) + FRAME
    return tuple(fit(failure, part) for failure in failures)


def fit_text(text: str, limit: int | None) -> str:
    """Shorten a text so that a record of ``limit`` bytes has room for it."""
    excess = 0 if limit is None else len(_utf8(text)) - (limit - FRAME)
    return text if excess <= 0 else _cut(text, excess + 3) + "..."


def _cut(text: str, excess: int) -> str:
    """Take so many bytes of UTF-8, or a few more, from the end of a text."""
    data = _utf8(text)
    return data[: max(0, len(data) - excess)].decode(errors="ignore")


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")
