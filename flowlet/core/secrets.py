"""Marking what must not be shown, and leaving it out of what is shown.

Law: a mark changes nothing of what is stored or of what user code is given; it decides what logs, traces, error
messages and tools may show. What cannot be judged is masked rather than shown. Pure: types and values in,
plain data out.

Where secrets are in a type is said by a *tree*, which JSON can hold: ``True`` (all of it), or a dict from the name of a
field, the index of an item in a tuple as text, or ``"*"`` for all items or values, to the tree of what is there. In a
recursive type ``{"^": n}`` stands for the tree ``n`` levels further up.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NewType, TypeAlias, TypeVar, Union, get_args, get_origin

import msgspec

Tree: TypeAlias = "bool | dict[str, Any]"
"""Where the secrets of a type are; see the module."""

Scope: TypeAlias = Mapping[Any, Any]
"""What type variables stand for."""

MASK: Final = "***"
"""What is shown in place of a secret."""

_ITEMS: Final = "*"
_UP: Final = "^"
_DEEP: Final = 30
"""Types nested deeper than this are masked: a generic type that grows with each turn would never end."""

_WRAPPERS: Final = (typing.Required, typing.NotRequired, typing.Final, typing.ClassVar)
_UNIONS: Final = (Union, types.UnionType)
_SHOWN: Final = (str, bytes, int, float, bool, type(None))


class Secret:
    """Mark a type as one whose values are not shown: ``Annotated[str, Secret]``.

    It stands on parameters, results, and fields of structs, dataclasses, attrs classes and TypedDicts, at any depth.
    Values are stored and given to your functions as they are (``Flowlet(codec=...)`` encrypts what is stored); logs,
    traces, the command line and flowlet's own error messages show ``***`` instead.

    Example:
        >>> from typing import Annotated
        >>> import msgspec
        >>> from flowlet import Secret
        >>> from flowlet.core.secrets import redact, secret_tree
        >>> class Card(msgspec.Struct):
        ...     holder: str
        ...     number: Annotated[str, Secret]
        >>> redact({"holder": "ann", "number": "4111"}, secret_tree(Card))
        {'holder': 'ann', 'number': '***'}
    """

    __slots__ = ()


def secret_tree(annotation: Any, walk: Walk | None = None) -> Tree | None:
    """Tell where the secrets of a type are; None when it has none.

    Args:
        walk: of other types that have been looked at before; what they share with this one is not looked at again.

    Example:
        >>> from typing import Annotated
        >>> secret_tree(dict[str, tuple[int, Annotated[str, Secret]] | None])
        {'*': {'1': True}}
    """
    return (Walk() if walk is None else walk).tree(annotation, 0, {})


def secrets_of_items(annotations: Iterable[Any], walk: Walk | None = None) -> Tree | None:
    """Return the tree of a tuple, such as that of the inputs of a call, from the types of its items."""
    found = {str(index): secret_tree(annotation, walk) for index, annotation in enumerate(annotations)}
    return {index: tree for index, tree in found.items() if tree is not None} or None


def secrets_of_fields(annotations: Mapping[str, Any], walk: Walk | None = None) -> Tree | None:
    """Return the tree of a dict from the types of its values."""
    found = {name: secret_tree(annotation, walk) for name, annotation in annotations.items()}
    return {name: tree for name, tree in found.items() if tree is not None} or None


def redact(value: Any, tree: Tree | None) -> Any:
    """Return a value with ``MASK`` in place of its secrets; the value itself is not changed.

    Args:
        value: plain data as it is decoded, or objects, which become plain data if there is a secret in their type.
        tree: see `secret_tree`; None: there are none.

    Example:
        >>> redact([["ann", "4111"], 3], {"0": {"1": True}})
        [['ann', '***'], 3]
    """
    return value if tree is None or tree is False else _redact(value, (tree,))


def _redact(value: Any, path: tuple[Tree, ...]) -> Any:
    tree = path[-1]
    while isinstance(tree, dict) and (up := _way_up(tree)):
        if up >= len(path):
            return MASK  # of a tree that was cut out of another
        path = path[:-up]
        tree = path[-1]
    if not isinstance(tree, dict):
        return MASK if tree else value
    if isinstance(value, Mapping):
        return {key: _redact_part(value[key], str(key), tree, path) for key in value}
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = [_redact_part(part, str(index), tree, path) for index, part in enumerate(value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    if isinstance(value, _SHOWN):
        return value  # of a type in a union that has no secrets
    try:
        plain = msgspec.to_builtins(value)
    except Exception:
        return MASK
    return MASK if not isinstance(plain, (*_SHOWN, dict, list, tuple)) else _redact(plain, path)


def _redact_part(value: Any, key: str, tree: dict[str, Any], path: tuple[Tree, ...]) -> Any:
    below = _merge(tree.get(key), tree.get(_ITEMS))
    return value if below is None else _redact(value, (*path, below))


def _way_up(tree: dict[str, Any]) -> int:
    up = tree.get(_UP)
    return up if type(up) is int else 0


def _merge(one: Tree | None, other: Tree | None) -> Tree | None:
    """Return the tree of what may be of either of two types."""
    if one is None or other is None or one == other:
        return one if other is None else other
    if not isinstance(one, dict) or not isinstance(other, dict) or _way_up(one) or _way_up(other):
        return True
    return {key: _merge(one.get(key), other.get(key)) for key in [*one, *other]}


def _tells(tree: Tree | None, level: int = 0) -> bool:
    """Say whether there is a secret in a tree, or a way to something above it."""
    if not isinstance(tree, dict):
        return tree is True
    if up := _way_up(tree):
        return up > level
    return any(_tells(below, level + 1) for below in tree.values())


class Walk:
    """A walk through the types that types are made of.

    A level is one step down in the tree. The types that were found to have no secret are remembered, so that what
    occurs in many places is looked at once.
    """

    def __init__(self) -> None:
        self._clean: set[Any] = set()
        self._open: dict[Any, int] = {}

    def tree(self, annotation: Any, level: int, known: Scope) -> Tree | None:
        """Return the tree of an annotation; ``known`` has what type variables stand for."""
        if level > _DEEP:
            return True
        origin, args = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            if any(mark is Secret or isinstance(mark, Secret) for mark in annotation.__metadata__):
                return True
            return self.tree(args[0], level, known)
        if isinstance(annotation, TypeVar):
            return self._variable(annotation, level, known)
        if isinstance(annotation, NewType):
            return self.tree(annotation.__supertype__, level, known)
        if origin in _UNIONS or origin in _WRAPPERS or getattr(origin, "_name", "") == "ReadOnly":
            return self._any_of(args, level, known)
        if origin is Literal:
            return None
        named = origin if origin is not None else annotation
        if hasattr(named, "__value__"):  # a `type` statement of Python 3.12
            return self._closed(annotation, level, lambda: self._alias(named, args, level, known))
        if not isinstance(named, type):
            return None
        names = _field_names(named)
        if names is None:
            return self._collection(named, args, level, known)
        scopes = _scopes(named, args, known)
        return self._closed(_key(named, scopes[named]), level, lambda: self._fields(named, names, level, scopes))

    def _closed(self, key: Any, level: int, walk: Any) -> Tree | None:
        """Walk through a type that may contain itself."""
        if key in self._clean:
            return None
        if key in self._open:
            up = level - self._open[key]
            return {_UP: up} if up else None
        self._open[key] = level
        try:
            found: Tree | None = walk()
        finally:
            del self._open[key]
        if _tells(found):
            return found
        self._clean.add(key)
        return None

    def _any_of(self, annotations: Iterable[Any], level: int, known: Scope) -> Tree | None:
        found: Tree | None = None
        for annotation in annotations:
            found = _merge(found, self.tree(annotation, level, known))
        return found

    def _variable(self, variable: Any, level: int, known: Scope) -> Tree | None:
        if variable in known:
            return self.tree(known[variable], level, {})
        choices = variable.__constraints__ or (variable.__bound__,)
        return self._any_of(choices, level, {})

    def _alias(self, alias: Any, args: tuple[Any, ...], level: int, known: Scope) -> Tree | None:
        given = [_replaced(arg, known) for arg in args]
        return self.tree(alias.__value__, level, dict(zip(alias.__type_params__, given, strict=False)))

    def _collection(self, origin: type, args: tuple[Any, ...], level: int, known: Scope) -> Tree | None:
        if issubclass(origin, Mapping) and len(args) == 2:
            if self.tree(args[0], level + 1, known) is not None:
                return True  # keys cannot be masked one by one: they would become one key
            return _under(_ITEMS, self.tree(args[1], level + 1, known))
        if origin is tuple and args and args[-1] is not Ellipsis:
            found = {str(index): self.tree(arg, level + 1, known) for index, arg in enumerate(args)}
            return {index: tree for index, tree in found.items() if tree is not None} or None
        items = self._any_of((a for a in args if a is not Ellipsis), level + 1, known)
        if issubclass(origin, (Collection, Sequence)) or items is None:
            return _under(_ITEMS, items)
        return True

    def _fields(self, cls: type, names: Mapping[str, str], level: int, scopes: Mapping[type, Scope]) -> Tree | None:
        found: dict[str, Any] = {}
        for name, annotation in _hints(cls).items():
            if name in names:
                tree = self.tree(annotation, level + 1, _scope_of(name, cls, scopes))
                if tree is not None:
                    found[names[name]] = tree
        return found or None


def _key(cls: type, known: Scope) -> Any:
    key = (cls, tuple(known.items()))
    try:
        hash(key)
    except TypeError:  # what an annotation is annotated with may be anything
        return (cls, repr(known))
    return key


def _under(key: str, tree: Tree | None) -> Tree | None:
    return None if tree is None else {key: tree}


def _field_names(cls: type) -> dict[str, str] | None:
    """Return how the fields of a class are called where it is stored; None for what has no fields."""
    if issubclass(cls, msgspec.Struct):
        if cls.__struct_config__.array_like:
            first = 0 if cls.__struct_config__.tag is None else 1
            return {name: str(place) for place, name in enumerate(cls.__struct_fields__, first)}
        return dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return {name: str(place) for place, name in enumerate(cls._fields)}  # pyright: ignore[reportAttributeAccessIssue]
    if dataclasses.is_dataclass(cls) or hasattr(cls, "__attrs_attrs__") or typing.is_typeddict(cls):
        return {name: name for base in cls.__mro__ for name in _written(base)}
    return None


def _hints(cls: type) -> dict[str, Any]:
    """Return the annotations of a class; one that cannot be resolved is taken for a secret if it reads like one."""
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception:
        written = {n: a for base in reversed(cls.__mro__) for n, a in _written(base).items()}
        return {name: _resolve(cls, annotation) for name, annotation in written.items()}


def _resolve(cls: type, annotation: Any) -> Any:
    try:
        probe = types.new_class("Probe", (), {}, lambda space: space.update(__annotations__={"it": annotation}))
        probe.__module__ = cls.__module__
        return typing.get_type_hints(probe, localns=dict(vars(cls)), include_extras=True)["it"]
    except Exception:
        return Annotated[Any, Secret] if "Secret" in str(annotation) else Any


def _scopes(cls: type, args: tuple[Any, ...], known: Scope) -> dict[type, Scope]:
    """Return what type variables stand for in a class, and in each that it is made of: there they may be others."""
    own = {v: _replaced(a, known) for v, a in zip(getattr(cls, "__parameters__", ()), args, strict=False)}
    found: dict[type, Scope] = {cls: own}
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        origin = get_origin(base) or base
        if isinstance(origin, type) and origin not in (object, typing.Generic):
            for owner, scope in _scopes(origin, get_args(base), own).items():
                found.setdefault(owner, scope)
    return found


def _scope_of(name: str, cls: type, scopes: Mapping[type, Scope]) -> Scope:
    """Return what type variables stand for where a field is defined."""
    if typing.is_typeddict(cls):  # which does not know what it is made of
        return {v: a for scope in reversed(list(scopes.values())) for v, a in scope.items()}
    owner = next((base for base in cls.__mro__ if name in _written(base)), cls)
    return scopes.get(owner, {})


def _written(cls: type) -> Mapping[str, Any]:
    """Return a class's own annotations as they are written."""
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)
    found: Mapping[str, Any] = vars(cls).get("__annotations__", {})
    return found


def _replaced(annotation: Any, known: Scope) -> Any:
    """Put what type variables stand for in their places."""
    if isinstance(annotation, TypeVar):
        return known.get(annotation, annotation)
    inside = getattr(annotation, "__parameters__", ())
    if not inside or isinstance(annotation, type):
        return annotation
    try:
        return annotation[tuple(known.get(variable, variable) for variable in inside)]
    except TypeError:  # pragma: no cover - a form that cannot be filled: take it as it is
        return annotation
