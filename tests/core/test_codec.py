"""Values become bytes and come back typed; what cannot says so as EncodeError or DecodeError, with its place."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

import msgspec
import pytest

from flowlet.core.codec import Codec, encode
from flowlet.errors import DecodeError, EncodeError


class Point(msgspec.Struct):
    x: int
    y: int = 0


@dataclass
class Line:
    points: list[Point]


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (int, 2**63),
        (float, 1.5),
        (str, "ä\x00"),
        (bytes, b"\x00\xff"),
        (type(None), None),
        (Point, Point(1)),
        (Line, Line([Point(1, 2)])),
        (Colour, Colour.RED),
        (Decimal, Decimal("1.10")),
        (uuid.UUID, uuid.UUID(int=7)),
        (datetime, datetime(2024, 2, 29, 12, tzinfo=UTC)),
        (dict[str, list[int | None]], {"a": [1, None]}),
        (tuple[int, str], (1, "a")),
        (set[int], {1, 2}),
    ],
)
def test_round_trip(type_: Any, value: object) -> None:
    back = Codec[Any](type_).decode(encode(value, "it"), "it")
    assert back == value
    assert type(back) is type(value)


def endless() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


@pytest.mark.parametrize("value", [object(), lambda: 1, 2**70, endless(), "\ud800", {1: object()}, 1j])
def test_what_has_no_encoding(value: object) -> None:
    with pytest.raises(EncodeError, match=r"the thing cannot be stored: .*; use msgspec types"):
        encode(value, "the thing")


@pytest.mark.parametrize(
    ("type_", "data"),
    [
        (int, b"\xa1a"),
        (Point, b"\x81\xa1y\x01"),  # x is missing
        (int, b""),
        (int, b"\x01\x01"),
        (str, b"\xa1\xff"),  # no UTF-8
        (list[int], b"\x92\x01"),  # cut off
        (Colour, b"\xa4blue"),
        (dict[str, int], b"\xc1"),
    ],
)
def test_what_does_not_decode(type_: Any, data: bytes) -> None:
    name = getattr(type_, "__name__", repr(type_))
    with pytest.raises(DecodeError, match="the thing does not decode to ") as caught:
        Codec[Any](type_).decode(data, "the thing")
    assert name.partition("[")[0] in str(caught.value)
    assert caught.value.__cause__ is not None


def test_deeply_nested_bytes_are_a_typed_error() -> None:
    with pytest.raises(DecodeError):
        Codec[Any](Any).decode(b"\x91" * 100_000, "it")


def test_a_type_that_nothing_decodes_to_is_refused_when_the_codec_is_built() -> None:
    with pytest.raises(TypeError):
        Codec[Any](Point | Line)
