"""The appends that one statement stores together, as the arrays that the function ``append`` takes.

Law: pure: it sends nothing and waits for nothing. What the function refuses is explained by `refusal`, from what
the function has found, so that it is explained as in every other store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from flowlet.errors import FlowletError, StoreError
from flowlet.store import UNCHANGED, New, Write
from flowlet.stores.postgres_driver import Row
from flowlet.stores.refusal import refusal

__all__ = ["APPEND", "ONE", "Found", "arguments", "first_refusal", "one", "refusals"]

_VALUES = ", ".join(f"${n}" for n in range(1, 23))
APPEND = f"SELECT notable, refused, found_versions, found_fences, found_inboxes, found_ends FROM @.append({_VALUES})"  # noqa: S608

ONE = """
    WITH changed AS (
        UPDATE @.heads SET version = version + 1, claims = 0, updated = @.now(),
            status = coalesce($5, status), state = coalesce($6, state)
        WHERE id = $1 AND version = $2 AND ($3::bigint IS NULL OR fence = $3)
            AND current_setting('synchronous_commit') <> 'off'
        RETURNING n, version
    )
    INSERT INTO @.records SELECT n, version, $4 FROM changed RETURNING seq
"""
"""Stores one usual write in half the time; returns nothing when the function ``append`` has to say why not."""

_WAKE, _OWNER, _CLOSE = 1, 2, 4


class Found(msgspec.Struct, frozen=True):
    """What must be known of an entity to judge a write to it."""

    version: int
    fence: int
    inbox: int
    closed: float | None


def arguments(appends: Sequence[Sequence[Write]], catalog: Mapping[New, int]) -> list[Sequence[object] | None]:
    """Return the arguments of the function ``append`` for these appends, each a list of writes.

    Args:
        appends: no id is in two of them.
        catalog: the numbers of what the writes create.
    """
    writes = [write for append in appends for write in append]
    # Every element of an argument costs the driver as much as a column costs the server: the usual ones are left out.
    has_parts = len(writes) > len(appends)
    counts = [len(write.records) for write in writes]
    is_plain = min(counts) == max(counts) == 1
    flags = [_flags(write) for write in writes]
    firsts = [(write.expect or 0) + 1 for write in writes]
    signals = [(n, signal) for n, write in enumerate(writes, 1) for signal in write.signals]
    return [
        [n for n, append in enumerate(appends) for _ in append] if has_parts else None,
        [write.id for write in writes],
        _column([None if write.create is None else catalog[write.create] for write in writes]),
        _column([write.expect for write in writes]),
        _column([write.fence for write in writes]),
        _column([write.inbox for write in writes]),
        [bool(write.signals) for write in writes] if signals else None,
        None if is_plain else counts,
        flags if any(flags) else None,
        _column([_given(write.status) for write in writes]),
        _column([_given(write.state) for write in writes]),
        _column([_given(write.wake) for write in writes]),
        _column([_given(write.owner) for write in writes]),
        _column([write.consumed or None for write in writes]),
        _column([_given(write.snapshot) for write in writes]),
        None if is_plain else [n for n, count in enumerate(counts, 1) for _ in range(count)],
        firsts if is_plain else [first + k for first, count in zip(firsts, counts, strict=True) for k in range(count)],
        [data for write in writes for data in write.records] or None,
        [n for n, _ in signals] or None,
        [signal.topic for _, signal in signals] or None,
        [signal.payload for _, signal in signals] or None,
        [signal.message_id for _, signal in signals] or None,
    ]


def one(writes: Sequence[Write]) -> list[object] | None:
    """Return the arguments of `ONE` for these writes, or None when they are more than it does."""
    write = writes[0]
    if (
        len(writes) > 1
        or len(write.records) != 1
        or write.expect is None
        or write.create is not None
        or write.inbox is not None
        or write.wake is not UNCHANGED
        or write.owner is not UNCHANGED
        or write.snapshot is not UNCHANGED
        or write.close
        or write.signals
        or write.consumed
    ):
        return None
    return [write.id, write.expect, write.fence, write.records[0], _given(write.status), _given(write.state)]


def refusals(appends: Sequence[Sequence[Write]], row: Row) -> dict[int, FlowletError]:
    """Return why appends were refused, by their place in the batch."""
    if row["refused"] is None:
        return {}
    facts = zip(row["found_versions"], row["found_fences"], row["found_inboxes"], row["found_ends"], strict=True)
    found = dict(zip(row["refused"], facts, strict=True))
    errors: dict[int, FlowletError] = {}
    count = 0
    for place, writes in enumerate(appends):
        first, count = count + 1, count + len(writes)
        if first in found:
            judged = {w.id: found[n] for n, w in enumerate(writes, first)}
            errors[place] = first_refusal(writes, judged) or _disagreement(writes)
    return errors


def first_refusal(writes: Sequence[Write], found: Mapping[str, Sequence[Any]]) -> FlowletError | None:
    """Return the error of the first write that is refused, or None.

    Args:
        found: version, fence, inbox and end of the entities that are there; the version is None of one that is not.
    """
    for write in writes:
        facts = found.get(write.id)
        error = refusal(write, Found(*facts) if facts is not None and facts[0] is not None else None)
        if error is not None:
            return error
    return None


def _flags(write: Write) -> int:
    flags = _CLOSE if write.close else 0
    if write.wake is not UNCHANGED:
        flags |= _WAKE
    if write.owner is not UNCHANGED:
        flags |= _OWNER
    return flags


def _given(value: object) -> object:
    return None if value is UNCHANGED else value


def _column(values: list[object]) -> list[object] | None:
    """Return a column, or None for one in which nothing is: the function then sees as many NULLs."""
    for value in values:
        if value is not None:
            return values
    return None


def _disagreement(writes: Sequence[Write]) -> FlowletError:
    ids = ", ".join(repr(write.id) for write in writes)
    return StoreError(f"the server refused the writes to {ids} for a reason that flowlet does not know; report this")
