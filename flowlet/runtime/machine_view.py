"""A machine as plain data, read without its code: for tools.

Law: it says what is on record and nothing else. Secrets that the definition names are masked, and where the store has
no definition to ask, so is the data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from flowlet.core.codec import Codec
from flowlet.core.machine_data import NO_DATA
from flowlet.core.machine_records import (
    Created,
    Moved,
    Pending,
    Record,
    Settled,
    Summary,
    Timer,
    check_complete,
    read_record,
)
from flowlet.core.secrets import MASK, redact
from flowlet.runtime.opaque import hide_bytes
from flowlet.store import Head, Store, Stored

_PAGE = 500

_data: Codec[dict[str, Any]] = Codec(dict[str, Any])
_summary: Codec[Summary] = Codec(Summary)


class TimerView(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is to happen to a machine at a time, in seconds of the store's clock."""

    key: str
    due: float


class MachineView(msgspec.Struct, frozen=True, kw_only=True):
    """One machine.

    Attributes:
        raised: events that have been raised and are still to be handled.
        is_known: the store has its definition, without which no data is shown.
    """

    head: Head
    data: dict[str, Any]
    timers: Sequence[TimerView]
    raised: Sequence[str]
    is_known: bool


class RecordView(msgspec.Struct, frozen=True, kw_only=True):
    """One record of a machine's history.

    Attributes:
        kind: ``"created"``, ``"transition"`` or ``"settled"`` (what enter hooks have changed afterwards).
        source, target: the states; of what is no transition, only ``target``.
        key: the idempotency key of the run that has fired it.
    """

    seq: int
    at: float
    kind: str
    event: str | None
    source: str | None
    target: str
    actor: str | None
    key: str | None


async def view_machine(store: Store, stored: Stored, exported: Sequence[dict[str, Any]]) -> MachineView:
    """Return how a machine stands.

    Args:
        stored: its head and snapshot.
        exported: all versions of its definition: what one of them calls a secret is masked, since its data may have
            been written by any.

    Raises:
        DecodeError: a record is damaged or missing.
    """
    head, data = stored.head, NO_DATA
    timers: Sequence[Timer] = ()
    raised: Sequence[Pending] = ()
    if stored.snapshot is not None:
        summary = _summary.decode(stored.snapshot, f"the snapshot of machine {head.id!r}")
        data, timers, raised = summary.data, summary.timers, summary.raised
    async for _, record in machine_records(store, head, stored.snapshot_version):
        data = record.data if record.data is not None else data
        timers = record.timers if record.timers is not None else timers
        raised = () if isinstance(record, Settled) else record.raised
    values = _data.decode(data, f"the data of machine {head.id!r}")
    shown: Any = values if exported else dict.fromkeys(values, MASK)
    for each in exported:
        shown = redact(shown, (each.get("secrets") or {}).get("data"))
    return MachineView(
        head=head,
        data=hide_bytes(shown),
        timers=[TimerView(key=timer.key, due=timer.due) for timer in timers],
        raised=[pending.event for pending in raised],
        is_known=bool(exported),
    )


async def machine_records(store: Store, head: Head, after: int = 0) -> AsyncIterator[tuple[int, Record]]:
    """Yield a machine's records with their numbers, page by page.

    Raises:
        DecodeError: one is damaged or missing.
    """
    while after < head.version:
        upto = min(after + _PAGE, head.version)
        stored = await store.load(head.id, after=after, limit=upto - after)
        check_complete(head.id, after, 0 if stored is None else len(stored.records), upto)
        assert stored is not None
        for data in stored.records:
            after += 1
            yield after, read_record(data, after, head.id)


def view_record(seq: int, record: Record) -> RecordView:
    """Return a record as it is shown."""
    if isinstance(record, Moved):
        return RecordView(
            seq=seq,
            at=record.at,
            kind="transition",
            event=record.event,
            source=record.source,
            target=record.target,
            actor=record.actor,
            key=None if record.key is None else record.key[0],
        )
    kind = "created" if isinstance(record, Created) else "settled"
    return RecordView(
        seq=seq, at=record.at, kind=kind, event=None, source=None, target=record.state, actor=None, key=None
    )
