"""The writes that make in one store what another has of a run, a machine or a definition.

Law: pure functions of what was read. Each write carries the version and the fence that were seen, so that a store
refuses it when it is not the first. What the last write of an entity says (how it stands, that it has ended) is
true of all of it, so the last write is that one; it leaves the entity asleep.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from flowlet.store import UNCHANGED, Head, New, Signal, Stored, Write

__all__ = ["CONSUMED", "facts", "is_filler", "may_go_on", "new_entity", "record_writes", "rest", "size_of"]

CONSUMED = "flowlet/consumed"
"""The topic of the empty signals that stand for consumed ones, so that those behind them keep their numbers."""

_FILLERS = 1000
_LARGEST = 4 << 20
"""Bytes of signals in one write, unless a single one has more."""


def facts(head: Head) -> tuple[object, ...]:
    """Return what a copy's head has in common with the original's, but for the time at which it falls due."""
    ends = head.closed is not None
    return (*_kind(head), head.version, head.status, head.state, head.inbox, ends)


def may_go_on(head: Head, there: Head) -> bool:
    """Tell whether an entity may be the beginning of a copy, as far as heads tell.

    What has been copied in part has no status yet; what was copied before the original went on has the old one.
    """
    if there.closed is not None or there.owner is not None:
        return False
    is_behind = there.version < head.version or there.inbox < head.inbox
    return is_behind or (there.status, there.state) in (("", ""), (head.status, head.state))


def is_filler(signal: Signal) -> bool:
    """Tell whether a signal stands for one that was consumed."""
    return signal.topic == CONSUMED and not signal.payload


def new_entity(stored: Stored) -> list[Write]:
    """Return the writes of an entity that is not there, of which all records are here."""
    head = stored.head
    *writes, last = [*record_writes(stored, 0), *rest(stored, None)]
    if head.inbox or not writes:
        return [*writes, last]
    # Nothing comes between: most entities are one write.
    end = replace(writes[-1], status=last.status, state=last.state, close=last.close)
    return [*writes[:-1], end]


def record_writes(stored: Stored, after: int, fence: int = 0) -> list[Write]:
    """Return the writes of an entity's records, which follow record ``after``, and of its snapshot.

    A snapshot stands for the records up to a certain one, so the write with that one ends there.
    """
    head, writes = stored.head, list[Write]()
    cut = stored.snapshot_version - after
    for records in (stored.records[: max(cut, 0)], stored.records[max(cut, 0) :]):
        if records:
            version = after + len(records)
            is_there = version == stored.snapshot_version and stored.snapshot is not None
            write = Write(
                id=head.id,
                expect=after,
                create=None if after else New(*_kind(head)),
                fence=fence if after else None,
                records=records,
                snapshot=stored.snapshot if is_there and stored.snapshot is not None else UNCHANGED,
            )
            writes.append(write)
            after = version
    return writes


def rest(stored: Stored, there: Stored | None) -> list[Write]:
    """Return the writes that follow an entity's last record: of its inbox, and the one that says how it stands.

    Args:
        there: what the other store has of it; None for what has just been created.
    """
    head = stored.head
    received, fence = (0, 0) if there is None else (there.head.inbox, there.head.fence)
    consumed = head.inbox - len(stored.signals)
    writes = list[Write]()
    while received < consumed:
        count = min(_FILLERS, consumed - received)
        fillers = [Signal(CONSUMED, b"")] * count
        writes.append(Write(id=head.id, fence=fence, inbox=received, signals=fillers))
        received += count
    for signals in _portions([signal for signal in stored.signals if signal.number > received]):
        writes.append(Write(id=head.id, fence=fence, inbox=received, signals=signals))
        received += len(signals)
    last = Write(
        id=head.id,
        expect=head.version,
        fence=fence,
        inbox=head.inbox,
        status=head.status,
        state=head.state,
        wake=None,
        close=head.closed is not None,
        consumed=consumed,
    )
    return [*writes, last]


def size_of(write: Write) -> int:
    """Return how many bytes of values a write has."""
    size = sum(map(len, write.records)) + sum(len(signal.payload) for signal in write.signals)
    return size if isinstance(write.snapshot, msgspec.UnsetType) else size + len(write.snapshot)


def _portions(signals: Sequence[Signal]) -> list[list[Signal]]:
    portions, size = list[list[Signal]](), _LARGEST
    for signal in signals:
        size += len(signal.payload)
        if size >= _LARGEST or len(portions[-1]) >= _FILLERS:
            portions.append([])
            size = len(signal.payload)
        portions[-1].append(Signal(signal.topic, signal.payload, signal.message_id))
    return portions


def _kind(head: Head) -> tuple[str, str, str]:
    return head.kind, head.definition, head.definition_version
