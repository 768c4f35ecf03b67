"""How writes are told to a Redis server, and how what it tells is read.

Law: pure functions of values. Texts go as UTF-8 and bytes as they are; a time goes as the shortest text
that gives the same float back, and is stored as that text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from flowlet.errors import EncodeError, FlowletError, PayloadTooLarge, StoreError
from flowlet.store import UNCHANGED, Claims, Head, Signal, Stored, Write
from flowlet.stores.refusal import refusal

__all__ = [
    "Packed",
    "claims_of",
    "failure_of",
    "head_of",
    "listed",
    "packed",
    "question",
    "stored_of",
    "time_of",
    "words_of",
]

Packed: TypeAlias = "list[bytes]"
"""An append: a header, then the payloads of its writes in order: records, snapshot, signals."""

_MOST_BYTES = 256 * 1024 * 1024
"""Of one append: half of what Redis takes as one value, a quarter of what it reads from one client."""

_HUGE = 1.7976931348623157e308
_pack = msgspec.msgpack.Encoder().encode
_read_signal = msgspec.msgpack.Decoder(tuple[str, bytes, str | None]).decode


class _Found(msgspec.Struct, frozen=True):
    """What the server found where it refused a write; see `flowlet.stores.refusal.Facts`."""

    version: int
    fence: int
    inbox: int
    closed: float | None


def packed(writes: Sequence[Write]) -> Packed:
    """Return an append as the server takes it.

    Raises:
        EncodeError: a text, a time or a number has no form there.
        PayloadTooLarge: all values together are more than the server would take at once.
    """
    payloads: list[bytes] = []
    try:
        parts = [_part(write, payloads) for write in writes]
        header = _pack((len(payloads), parts))
    except (UnicodeError, OverflowError) as error:
        raise _no_form(error) from error
    size = sum(map(len, payloads))
    if size > _MOST_BYTES:
        text = f"an append of {size:,} bytes is more than the {_MOST_BYTES:,} that this store takes at once"
        raise PayloadTooLarge(f"{text}; store large values elsewhere and keep references", size, _MOST_BYTES)
    return [header, *payloads]


def _part(write: Write, payloads: list[bytes]) -> tuple[object, ...]:
    """Return one write for the header, and add its payloads."""
    payloads.extend(write.records)
    if write.snapshot is not UNCHANGED:
        payloads.append(write.snapshot)
    for signal in write.signals:
        payloads.append(_pack((signal.topic, signal.payload, signal.message_id)))
    new, owner = write.create, write.owner
    return (
        write.id,
        _or_false(write.expect),
        _or_false(write.fence),
        _or_false(write.inbox),
        new is not None and (new.kind, new.definition, new.definition_version),
        len(write.records),
        write.status is not UNCHANGED and write.status,
        write.state is not UNCHANGED and write.state,
        write.wake is not UNCHANGED and ("" if write.wake is None else time_of(write.wake)),
        write.close,
        owner is not UNCHANGED and (owner is None or (owner,)),
        write.snapshot is not UNCHANGED,
        [_or_false(signal.message_id) for signal in write.signals],
        write.consumed,
    )


def _or_false(value: object) -> object:
    return False if value is None else value


def time_of(seconds: float) -> str:
    """Return a time as text."""
    seconds = float(seconds)
    if seconds != seconds:
        raise EncodeError("a time for Redis is not a number (NaN); give seconds since the epoch")
    return repr(seconds)


def words_of(command: Sequence[bytes | str | int]) -> tuple[bytes | int, ...]:
    """Return a command and its arguments as the driver sends them without looking at them."""
    try:
        return tuple(word.encode() if isinstance(word, str) else word for word in command)
    except UnicodeError as error:
        raise _no_form(error) from error


def _no_form(error: Exception) -> EncodeError:
    return EncodeError(f"Redis cannot store this ({error}); use text that UTF-8 can encode and 64-bit integers")


def failure_of(writes: Sequence[Write], result: Any, failed: Callable[[str], FlowletError]) -> FlowletError:
    """Return the error of an append that was not stored.

    Args:
        writes: of the append.
        result: what the script says of it.
        failed: makes an error of the words of the server, if it was the server that failed.
    """
    if result[0] == b"failed":
        return failed(result[1].decode(errors="replace"))
    index, is_there, version, fence, inbox, closed = result
    found = _Found(version, fence, inbox, float(closed) if closed else None) if is_there else None
    return refusal(writes[index], found) or StoreError(
        f"the server refused the write to {writes[index].id!r} for a reason that this version does not know; update it"
    )


def question(
    kind: str | None,
    definition: str | None,
    status: Sequence[str] | None,
    state: str | None,
    wake_before: float | None,
    after: int,
    limit: int,
) -> bytes:
    """Return what a scan asks for."""
    before = wake_before is not None and time_of(wake_before)
    words = (_or_false(kind), _or_false(definition), status is not None and list(status), _or_false(state))
    return listed((*words, before, after, limit))


def listed(words: Sequence[object]) -> bytes:
    """Return texts, numbers, or lists of them, as a script takes them."""
    try:
        return _pack(words)
    except (UnicodeError, OverflowError) as error:
        raise _no_form(error) from error


def head_of(row: Any) -> Head:
    """Return the head that a script tells of: the id and the fields of its hash."""
    id, facts = row
    wake, owner, closed = facts[7], facts[8], facts[14]
    return Head(
        id=id.decode(),
        kind=facts[1].decode(),
        definition=facts[2].decode(),
        definition_version=facts[3].decode(),
        order=int(facts[0]),
        version=int(facts[4]),
        status=facts[5].decode(),
        state=facts[6].decode(),
        wake=None if wake is None else float(wake),
        owner=None if owner is None else owner.decode(),
        fence=int(facts[9]),
        claims=int(facts[10]),
        inbox=int(facts[11]),
        created=float(facts[12]),
        updated=float(facts[13]),
        closed=None if closed is None else float(closed),
    )


def stored_of(row: Any, records: Any, snapshot: bytes | None, snapshot_version: int, signals: Any) -> Stored:
    """Return an entity."""
    head = head_of(row)
    first = head.inbox - len(signals) + 1
    read = (_read_signal(data) for data in signals)
    return Stored(
        head=head,
        records=tuple(records),
        snapshot=snapshot,
        snapshot_version=snapshot_version,
        signals=tuple(Signal(*facts, number) for number, facts in enumerate(read, first)),
    )


def claims_of(heads: Any, wake: bytes | None) -> Claims:
    """Return what a claim has taken."""
    time = None if wake is None else float(wake)
    return Claims(heads=[head_of(row) for row in heads], wake=float("inf") if time == _HUGE else time)
