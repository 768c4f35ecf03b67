"""What is recorded of a bulk operation with an id.

Law: as with runs, the wire shape of a record is an array, and fields are only ever added at the end, with a default.

The operation itself is a run with two records: that it was begun, and how it ended. Its items are divided into
*shards*, ranges of equal size, each an entity of its own, so that several processes can work on one operation.
A shard's records say which items it has, by digests, and what became of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from flowlet.core.bulk import Outcome
from flowlet.core.codec import Codec, pack
from flowlet.core.failures import Failure, describe_failure, rebuild_failure
from flowlet.core.sizes import FRAME, check_size, fit
from flowlet.core.steps import UNENCODABLE, encode_input
from flowlet.errors import DecodeError, EncodeError, PayloadTooLarge

KIND = "shard"
"""The kind of a shard's entity."""

WIDTH = 8
"""Bytes of an item's digest."""

_LEAST, _MOST, _UNKNOWN = 10, 1000, 200
_PARTS = 20

_SCALARS = (int, str, float, bool, bytes)


class BulkFacts(msgspec.Struct, frozen=True, array_like=True):
    """What a bulk operation was begun with; the input of its `Started`.

    Attributes:
        size: items of a shard.
        total: how many items there are, or None if they did not tell.
        shards: a digest of each shard's digests, if all items were there at the beginning.
    """

    size: int
    total: int | None
    shards: bytes = b""


BULK = "bulk:"
"""What the name of a bulk operation's definition begins with, before that of its function."""


class BulkSums(msgspec.Struct, frozen=True, array_like=True):
    """How a bulk operation ended; the value of its `Ended`."""

    total: int
    succeeded: int
    failed: int
    seconds: float


class ItemEnded(msgspec.Struct, frozen=True, array_like=True):
    """What became of an item.

    Attributes:
        place: in its shard, from 0.
        value: the encoded result, or None if it failed.
    """

    place: int
    seconds: float
    attempts: int
    value: bytes | None
    error: Failure | None = None


class ShardRecord(msgspec.Struct, frozen=True, array_like=True, tag="o"):
    """A part of what is known of a shard.

    Attributes:
        digests: of the items that follow those in the records before.
        ended: items that have ended, each of them among those with a digest.
        worker: who made the shard, in its first record: no two processes make the same one.
    """

    digests: bytes
    ended: Sequence[ItemEnded] = ()
    worker: str = ""


facts_codec: Codec[BulkFacts] = Codec(BulkFacts)
sums_codec: Codec[BulkSums] = Codec(BulkSums)
shard_codec: Codec[ShardRecord] = Codec(ShardRecord)


def shard_size(total: int | None, limit: int | None) -> int:
    """Return how many items a shard is to have: few enough that processes can share them, many enough to commit few.

    Args:
        limit: bytes that a record may have.
    """
    size = _UNKNOWN if total is None else max(_LEAST, min(_MOST, -(-total // _PARTS)))
    return size if limit is None else min(size, (limit - FRAME) // WIDTH)


def digest_item(item: Any) -> tuple[bytes, EncodeError | None]:
    """Return that by which an item is recognised, and why it cannot be stored, if so: it has failed then."""
    problem = None
    try:
        data = encode_input(item)
    except UNENCODABLE as error:
        name = type(item).__qualname__
        data = name.encode(errors="replace")
        problem = EncodeError(
            f"the item, a {name}, cannot be stored: {error}; use msgspec types (Struct, dataclass, int, str, list ...)"
        )
        problem.__cause__ = error
    return hashlib.blake2b(data, digest_size=WIDTH).digest(), problem


def digest_shard(digests: bytes) -> bytes:
    """Return that by which the items of a shard are recognised, all together."""
    return hashlib.blake2b(digests, digest_size=WIDTH).digest()


def record_item(outcome: Outcome[Any, Any], place: int, codec: Codec[Any], limit: int | None) -> tuple[bytes, Any]:
    """Encode what became of an item, and the outcome as a reader of the record would have it.

    What cannot be stored or is not of the annotated type is the item's failure.
    """
    error, value, data = outcome.error, outcome._value, None
    if error is None:
        try:
            data, value = _exchange(value, codec, limit, outcome.index)
        except (EncodeError, DecodeError, PayloadTooLarge) as problem:
            error = problem
    if error is not None:
        failure = fit(describe_failure(error, attempts=outcome.attempts), limit)
        record = pack((place, outcome.seconds, outcome.attempts, None, failure))
    else:
        record = pack((place, outcome.seconds, outcome.attempts, data))
    if error is outcome.error and value is outcome._value:
        return record, outcome
    return record, Outcome(outcome.index, outcome.item, value, error, outcome.seconds, outcome.attempts)


def _exchange(value: Any, codec: Codec[Any], limit: int | None, index: int) -> tuple[bytes, Any]:
    """Encode a result, and decode it to the annotated type."""
    what = f"the result of item {index}"
    try:
        data = pack(value)
    except UNENCODABLE as error:
        raise EncodeError(
            f"{what} cannot be stored: {error}; return msgspec types (Struct, dataclass, datetime, list ...)"
        ) from error
    check_size(data, limit, what, FRAME)
    if type(value) is codec.type and codec.type in _SCALARS:
        return data, value  # which is what decoding would give
    return data, codec.decode(data, what)


def pack_shard_record(digests: bytes, ended: Sequence[bytes]) -> bytes:
    """Put encoded items into one record."""
    return pack(("o", digests, [msgspec.Raw(item) for item in ended]))


def rebuild_outcome(record: ItemEnded, index: int, item: Any, codec: Codec[Any]) -> Outcome[Any, Any]:
    """Return what became of an item, as recorded."""
    value, error = None, None
    if record.error is not None:
        error = rebuild_failure(record.error)
    else:
        try:
            value = codec.decode(record.value or b"\xc0", f"the recorded result of item {index}")
        except DecodeError as problem:  # the function has been annotated otherwise since
            error = problem
    return Outcome(index, item, value, error, record.seconds, record.attempts)
