"""What one step returns against what another one takes: refused only where it is surely wrong."""

from __future__ import annotations

import datetime
import decimal
import enum
import types
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Annotated, Any, Generic, List, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar, Union  # noqa: UP035

import pytest
from msgspec import Meta, Struct

from flowlet.core.compatibility import item_types, may_take, type_name

T = TypeVar("T")
Number = TypeVar("Number", int, float)


class Animal(Struct):
    name: str


Bound = TypeVar("Bound", bound=Animal)


class Dog(Animal):
    pass


class Plant(Struct):
    name: str


class Page(Struct, Generic[T]):
    items: list[T]


@dataclass
class Point:
    x: int


class Pair(NamedTuple):
    a: int
    b: str


class Row(TypedDict):
    n: int


class Colour(enum.Enum):
    RED = "red"


class Size(enum.StrEnum):
    BIG = "big"


UserId = NewType("UserId", int)
Positive = Annotated[int, Meta(gt=0)]

FIT: list[tuple[Any, Any]] = [
    (int, int),
    (int, float),
    (bool, int),
    (None, None),
    (type(None), None),
    (int, Any),
    (Any, int),
    (int, object),
    (T, str),
    (str, T),
    (Number, int),
    (float, Number),
    (Dog, Bound),
    (int, Optional[int]),  # noqa: UP045 - the other spelling
    (int | None, int),
    (Union[int, str], Union[str, bytes]),  # noqa: UP007
    (Dog, Animal),
    (Dog, Dog | Plant),
    (datetime.datetime, datetime.date),
    (list[int], list[int]),
    (list[int], list[float]),
    (list[int], list),
    (list, list[int]),
    (list[int], Sequence[int]),
    (List[int], list[int]),  # noqa: UP006
    (list[Dog], Iterable[Animal]),
    (list[int | None], list[int]),
    (Sequence[int], list[int]),
    (Mapping[str, int], dict[str, int]),
    (tuple[int, int], Sequence[int]),
    (tuple[int, str], tuple[int, str]),
    (tuple[int, ...], tuple[int, int]),
    (tuple[int, str], Sequence[int | str]),
    (Pair, tuple[int, str]),
    (dict[str, int], Mapping[str, int]),
    (dict[str, list[int]], Mapping[str, Sequence[float]]),
    (Row, dict[str, int]),
    (dict[str, int], Row),
    (Row, Mapping[str, Any]),
    (set[int], Set[int]),
    (frozenset[str], Collection[str]),
    (UserId, int),
    (int, UserId),
    (Positive, int),
    (int, Positive),
    (str, Literal["a", "b"]),
    (Literal["a"], str),
    (Literal["a", "c"], Literal["a", "b"]),
    (Literal[1], float),
    (Size, str),
    (Page[int], Page[int]),
    (Page[int], Page),
    ("unresolved", int),
    (types.GenericAlias(list, ("unresolved",)), list[int]),
]

DO_NOT_FIT: list[tuple[Any, Any]] = [
    (str, int),
    (float, int),
    (int, bool),
    (int, str),
    (None, str),
    (str, None),
    (int, decimal.Decimal),
    (bytes, str),
    (int | str, bytes),
    (int | None, str),
    (Number, str),
    (Animal, Plant),
    (Animal, Dog),
    (Plant, Bound),
    (Point, Animal),
    (datetime.date, datetime.datetime),
    (list[int], list[str]),
    (list[list[int]], list[list[str]]),
    (list[int], tuple[int, ...]),
    (tuple[int, ...], list[int]),
    (list[int], set[int]),
    (set[int], list[int]),
    (int, list[int]),
    (list[int], int),
    (tuple[int, str], tuple[int, int]),
    (tuple[int, str], tuple[int]),
    (tuple[int, str], Sequence[int]),
    (tuple[str, ...], tuple[int, int]),
    (dict[str, int], dict[str, str]),
    (dict[int, int], Mapping[str, int]),
    (dict[str, int], list[str]),
    (list[int], Row),
    (Sequence[int], Mapping[str, int]),
    (UserId, str),
    (str, UserId),
    (Positive, str),
    (int, Literal["a"]),
    (Literal["a"], Literal["b"]),
    (Literal["a"], int),
    (Literal[True], Literal[1]),
    (Colour, str),
    (str, Colour),
    (Page[int], Page[str]),
]


@pytest.mark.parametrize(("given", "wanted"), FIT, ids=str)
def test_what_may_be_right_passes(given: Any, wanted: Any) -> None:
    assert may_take(given, wanted)


@pytest.mark.parametrize(("given", "wanted"), DO_NOT_FIT, ids=str)
def test_what_is_surely_wrong_is_refused(given: Any, wanted: Any) -> None:
    assert not may_take(given, wanted)


@pytest.mark.parametrize("given", [pair[0] for pair in FIT + DO_NOT_FIT], ids=str)
def test_every_type_takes_itself(given: Any) -> None:
    assert may_take(given, given)


@pytest.mark.parametrize(
    ("annotation", "items"),
    [
        (list[int], (int,)),
        (tuple[int, ...], (int,)),
        (tuple[int, str], (int, str)),
        (Sequence[Dog], (Dog,)),
        (Iterable[int], (int,)),
        (list, (Any,)),
        (Any, (Any,)),
        (T, (Any,)),
        (list[int] | None, (int,)),
        (list[int] | tuple[str, ...], (int, str)),
        (Annotated[list[int], Meta(max_length=3)], (int,)),
        (Pair, (Any,)),
        (set[int], None),
        (frozenset[int], None),
        (dict[str, int], None),
        (Mapping[str, int], None),
        (str, None),
        (bytes, None),
        (int, None),
        (None, None),
        (Dog, None),
    ],
    ids=str,
)
def test_items_of_ordered_collections(annotation: Any, items: tuple[Any, ...] | None) -> None:
    assert item_types(annotation) == items


@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        (int, "int"),
        (None, "None"),
        (list[int], "list[int]"),
        (Optional[int], "int | None"),  # noqa: UP045
        (int | None, "int | None"),
        (list[Dog], "list[Dog]"),
        (dict[str, tuple[int, ...]], "dict[str, tuple[int, ...]]"),
        (Sequence[Point], "Sequence[Point]"),
        (Literal["a", 1], "Literal['a', 1]"),
        (Positive, "int"),
        (UserId, "UserId"),
        (T, "T"),
        (Any, "Any"),
        (List, "List"),  # noqa: UP006
        ("later", "later"),
    ],
    ids=str,
)
def test_types_are_named_as_written(annotation: Any, name: str) -> None:
    assert type_name(annotation) == name
