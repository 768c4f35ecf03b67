"""Turning values into bytes and back: msgpack through msgspec, with typed errors.

Law: a value that flowlet stores passes through here, in both directions, and only here; what fails
is `EncodeError` or `DecodeError` with the place in its message, never msgspec's own exception.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Generic, TypeVar, get_origin

import msgspec

from flowlet.core.secrets import MASK, secret_tree
from flowlet.errors import DecodeError, EncodeError

T = TypeVar("T")

_VALUE = r"(?s)^((?:Invalid (?:enum )?value|Object contains unknown field) ).*?( - at `[^`]*`)?$"
"""Messages of msgspec that have a value in them."""

_encoder = msgspec.msgpack.Encoder()
_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)
_UNDECODABLE = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)

pack: Callable[[Any], bytes] = _encoder.encode
"""Encode without a typed error, for values that are known to encode."""


def encode(value: object, what: str) -> bytes:
    """Encode a user's value; ``what`` names it in the error.

    Raises:
        EncodeError: msgspec has no representation for it.
    """
    try:
        return pack(value)
    except _UNENCODABLE as error:
        raise EncodeError(
            f"{what} cannot be stored: {error}; use msgspec types (Struct, dataclass, int, datetime, UUID, list ...)"
        ) from error


class Codec(Generic[T]):
    """Decode bytes to one type. Building it checks that the type can be decoded to at all.

    Raises:
        TypeError: the type is one that msgspec cannot decode to (for the check at assembly).
    """

    __slots__ = ("_decode", "type")

    def __init__(self, type: Any) -> None:
        self.type: Any = type
        self._decode: Callable[[bytes], T] = msgspec.msgpack.Decoder(type).decode

    def decode(self, data: bytes, what: str) -> T:
        """Decode to the type; ``what`` names the value in the error.

        Raises:
            DecodeError: the bytes are damaged or of another shape.
        """
        try:
            return self._decode(data)
        except _UNDECODABLE as error:
            name = _name(self.type)
            cause = _without_value(error, self.type)
            raise DecodeError(f"{what} does not decode to {name}: {cause}") from cause


def _name(type: Any) -> str:
    if get_origin(type) is Annotated:  # which would call itself that
        return _name(type.__origin__)
    return getattr(type, "__name__", None) or repr(type)


def _without_value(error: Exception, type: Any) -> Exception:
    """Return an error that shows nothing of a value in whose type there is a secret.

    msgspec names the value where it is none of those that an enum or a tag allows, and names unknown fields.
    """
    if not isinstance(error, msgspec.MsgspecError) or secret_tree(type) is None:
        return error
    return error.__class__(re.sub(_VALUE, rf"\1{MASK}\2", str(error)))
