"""Whether what one step returns can be what another one takes, judged by their annotations.

Law: only what is surely wrong is refused. Where annotations leave it open (``Any``, a type variable, a union of
which one member fits, a class that nothing is known of) the values decide. Pure: types in, an answer out.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from itertools import product
from typing import Annotated, Any, Final, Literal, NewType, NoReturn, TypeVar, Union, get_args, get_origin

_ANYTHING: Final = (Any, object, NoReturn, typing.Never)
_UNIONS: Final = (Union, types.UnionType)
_ITEMS: Final = (list, tuple, Sequence, Collection, Iterable)
_ABSTRACT: Final = ("collections.abc", "typing")
_NUMBERS: Final = {float: (int,), complex: (int, float)}
"""What is taken for a number of a wider type (PEP 484)."""


def may_take(given: Any, wanted: Any) -> bool:
    """Tell whether a value annotated ``given`` may be passed to a parameter annotated ``wanted``.

    Example:
        >>> may_take(list[int], list[float]), may_take(list[int], list[str]), may_take(int | None, int)
        (True, False, True)
    """
    return any(_fits(one, other) for one, other in product(_members(given), _members(wanted)))


def takes_none(wanted: Any) -> bool:
    """Tell whether a parameter may be given None."""
    return may_take(None, wanted)


def item_types(annotation: Any) -> tuple[Any, ...] | None:
    """Return what the items of an ordered collection may be, or None if the type is surely none.

    A set has no order, and a mapping no items in this sense; a text is one value.
    """
    found: list[Any] = []
    is_known = False
    for member in _members(annotation):
        if _is_open(member):
            return (Any,)
        origin, args = get_origin(member) or member, get_args(member)
        if not isinstance(origin, type) or not _has_items(origin):
            continue
        is_known = True
        found.extend(a for a in args or (Any,) if a is not Ellipsis)
    return tuple(found) if is_known else None


def type_name(annotation: Any) -> str:
    """Return a type as its author may have written it, without modules."""
    if annotation is None or annotation is type(None):
        return "None"
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in _UNIONS:
        return " | ".join(map(type_name, args))
    if origin is Annotated:
        return type_name(args[0])
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, args))}]"
    if origin is not None and args:
        return f"{type_name(origin)}[{', '.join('...' if a is Ellipsis else type_name(a) for a in args)}]"
    name = getattr(annotation, "__name__", None)
    return name if isinstance(name, str) else str(annotation).replace("typing.", "")


def _has_items(origin: type) -> bool:
    if issubclass(origin, (str, bytes, bytearray, memoryview, Mapping, Set)):
        return False
    return origin in _ITEMS or issubclass(origin, Sequence)


def _members(annotation: Any) -> list[Any]:
    """Return the types that a union is of, or the one type, without what has no meaning for a value."""
    annotation = _bare(annotation)
    if get_origin(annotation) in _UNIONS:
        return [member for a in get_args(annotation) for member in _members(a)]
    if isinstance(annotation, TypeVar):
        choices = annotation.__constraints__ or ((annotation.__bound__,) if annotation.__bound__ is not None else ())
        return [member for choice in choices for member in _members(choice)] or [Any]
    return [annotation]


def _bare(annotation: Any) -> Any:
    """Return what an alias, a new type or an annotated type stands for."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__"):  # a `type` statement of Python 3.12
            annotation = annotation.__value__
        else:
            return type(None) if annotation is None else annotation


def _is_open(member: Any) -> bool:
    """Tell whether nothing can be said of a type."""
    origin = get_origin(member) or member
    return member in _ANYTHING or not (isinstance(origin, type) or origin is Literal)


def _fits(given: Any, wanted: Any) -> bool:
    if _is_open(given) or _is_open(wanted):
        return True
    if get_origin(given) is Literal:
        return any(_fits_value(value, wanted) for value in get_args(given))
    if get_origin(wanted) is Literal:
        return any(_fits(type(value), given) or _fits(given, type(value)) for value in get_args(wanted))
    source, target = _class_of(given), _class_of(wanted)
    if not _is_kind_of(source, target):
        return False
    return _arguments_fit(source, get_args(given), target, get_args(wanted))


def _class_of(annotation: Any) -> Any:
    origin = get_origin(annotation) or annotation
    return dict if typing.is_typeddict(origin) else origin  # what is in it is for the values to say


def _fits_value(value: object, wanted: Any) -> bool:
    if get_origin(wanted) is Literal:
        return any(type(value) is type(other) and value == other for other in get_args(wanted))
    return _fits(type(value), wanted)


def _is_kind_of(source: type, target: type) -> bool:
    try:
        if issubclass(source, target) or source in _NUMBERS.get(target, ()):
            return True
        # A value of an abstract type is of some concrete one; that of a class is of just this class once it is stored.
        return source.__module__ in _ABSTRACT and issubclass(target, source)
    except TypeError:  # a protocol that cannot be asked
        return True


def _arguments_fit(source: type, given: tuple[Any, ...], target: type, wanted: tuple[Any, ...]) -> bool:
    """Compare what is in brackets, where both say something and mean the same by it."""
    if not given or not wanted:
        return True
    if _has_items(source) and _has_items(target):
        return _items_fit(given, source is tuple, wanted, target is tuple)
    if source is not target and {source.__module__, target.__module__} - {"builtins", *_ABSTRACT}:
        return True  # a class of somebody's own, whose parameters may mean something else
    return len(given) != len(wanted) or all(map(may_take, given, wanted))


def _items_fit(given: tuple[Any, ...], of_tuple: bool, wanted: tuple[Any, ...], for_tuple: bool) -> bool:
    fixed_given = of_tuple and given[-1] is not Ellipsis
    fixed_wanted = for_tuple and wanted[-1] is not Ellipsis
    ones, others = [a for a in given if a is not Ellipsis], [a for a in wanted if a is not Ellipsis]
    if fixed_given and fixed_wanted:
        return len(ones) == len(others) and all(map(may_take, ones, others))
    return all(any(may_take(one, other) for other in others) for one in ones)
