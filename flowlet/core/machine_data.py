"""The data of a machine: its annotated attributes, and how they become bytes and come back.

Law: data is what is annotated on the class, except ``ClassVar``s, underscore names and what is
``provided``. It is stored as a map, so that an attribute added later takes its default in old records; a
stored attribute that the class no longer has is an error, since dropping it silently would lose it.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import decimal
import enum
import inspect
import operator
import typing
import uuid
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import msgspec

from flowlet.core.annotations import codec_for, provided, resolve_hints
from flowlet.core.codec import Codec, encode, pack
from flowlet.core.faults import Faults, describe, nearest
from flowlet.core.marks import GUARD, STATE, TRANSITIONS
from flowlet.errors import DecodeError, EncodeError

NO_DATA = b"\x80"
"""The bytes of an empty map: the data of a machine that has none."""

_IMMUTABLE = frozenset(
    {
        int, str, float, bool, bytes, type(None), complex, uuid.UUID, decimal.Decimal,
        datetime.datetime, datetime.date, datetime.time, datetime.timedelta,
    }
)  # fmt: skip


class DataShape(msgspec.Struct, frozen=True, eq=False):
    """The attributes that are a machine's data.

    Attributes:
        names: in the order of the class.
        fits: raises when bytes are no data of this shape.
        immutable: no value of them can change in place, so unchanged attributes mean unchanged data.
        read: returns the values of all attributes as a tuple.
        parameters: the parameters of ``__init__`` that are data.
        provided: name and annotation of the ``__init__`` parameters that flowlet fills in.
        unfilled: required ``__init__`` parameters that are neither.
    """

    owner: str
    names: tuple[str, ...]
    struct: type[msgspec.Struct]
    codec: Codec[Any]
    fits: Callable[[bytes], Any]
    immutable: bool
    read: Callable[[Any], tuple[Any, ...]]
    parameters: tuple[str, ...]
    provided: tuple[tuple[str, Any], ...]
    unfilled: tuple[str, ...]

    def values(self, machine: Any) -> tuple[Any, ...]:
        """Read the data of a machine.

        Raises:
            EncodeError: an attribute has no value yet.
        """
        try:
            return self.read(machine)
        except AttributeError as error:
            advice = "give the attribute a default or set it in __init__"
            raise EncodeError(f"the data of {self.owner} cannot be stored: {error}; {advice}") from error

    def encode(self, values: tuple[Any, ...]) -> bytes:
        """Encode data, having checked that it comes back as its annotations say.

        Raises:
            EncodeError: a value is of another type than its attribute's annotation, or cannot be stored.
        """
        if not self.names:
            return NO_DATA
        try:
            data = pack(self.struct(*values))
            self.fits(data)
        except Exception:
            return self._refuse(values)
        return data

    def _refuse(self, values: tuple[Any, ...]) -> bytes:
        """Find out why data cannot be stored."""
        data = encode(self.struct(*values), f"the data of {self.owner}")
        try:
            self.codec.decode(data, "the data")
        except DecodeError as error:
            raise EncodeError(
                f"the data of {self.owner} does not fit its annotations: {error}; assign a value of the annotated type"
            ) from error
        return data

    def decode(self, data: bytes, what: str) -> tuple[Any, ...]:
        """Decode data to the values of the attributes, in order; missing ones take their defaults."""
        value = self.codec.decode(data, what)
        return tuple(getattr(value, name) for name in self.names)


def read_nothing(machine: Any) -> tuple[Any, ...]:
    """Return the data of a machine that has none."""
    return ()


def collect_data(cls: type, members: Mapping[str, Any], namespace: Mapping[str, Any], faults: Faults) -> DataShape:
    """Find the data attributes of a class and prepare their encoding."""
    hints = resolve_hints(cls, namespace, faults)
    given, initial = _defaults(cls), _init_parameters(cls)
    supplied = {name for name, default in given.items() if default is provided}
    supplied |= {p.name for p in initial if p.default is provided}
    fields: list[Any] = []
    kinds: list[Any] = []
    for name, annotation in hints.items():
        if not _is_data(name, annotation) or name in supplied:
            continue
        _check_name(cls, name, members, faults)
        if isinstance(given.get(name), dataclasses.Field) or type(given.get(name)).__name__ == "_CountingAttr":
            faults.add(cls, f"{name!r} is a field of a class to be; @flow.machine must be the outermost decorator")
            continue
        if codec_for(annotation, cls, f"data attribute {name!r}", faults) is None:
            continue
        fields.append(_field(name, annotation, given))
        kinds.append(annotation)
    fields.sort(key=len)  # those with a default last, as a Struct wants them
    names = tuple(f[0] for f in fields)
    struct = msgspec.defstruct(f"{cls.__name__}Data", fields, forbid_unknown_fields=True)
    return DataShape(
        owner=describe(cls),
        names=names,
        struct=struct,
        codec=Codec(struct),
        fits=msgspec.msgpack.Decoder(struct).decode,
        immutable=all(_is_immutable(k) for k in kinds),
        read=_reader(names),
        parameters=tuple(p.name for p in initial if p.name in names),
        provided=tuple((p.name, _init_hint(cls, p, hints, namespace)) for p in initial if p.name in supplied),
        unfilled=tuple(
            p.name for p in initial if p.default is p.empty and p.name not in names and p.name not in supplied
        ),
    )


def _is_data(name: str, annotation: Any) -> bool:
    if name.startswith("_") or annotation is ClassVar or typing.get_origin(annotation) is ClassVar:
        return False
    return not isinstance(annotation, dataclasses.InitVar)


def _check_name(cls: type, name: str, members: Mapping[str, Any], faults: Faults) -> None:
    member = members.get(name)
    if isinstance(member, type) and STATE in vars(member):
        faults.add(cls, f"{name!r} is both a state and a data attribute; rename one")
    elif getattr(member, TRANSITIONS, None) is not None or getattr(member, GUARD, None) is not None:
        faults.add(cls, f"{name!r} is both a method and a data attribute; rename one")


def _field(name: str, annotation: Any, given: Mapping[str, Any]) -> Any:
    """Describe one field for `msgspec.defstruct`."""
    if name not in given:
        return (name, annotation)
    default = given[name]
    if isinstance(default, _Factory):
        return (name, annotation, msgspec.field(default_factory=default.make))
    if type(default) in _IMMUTABLE:
        return (name, annotation, msgspec.field(default=default))
    return (name, annotation, msgspec.field(default_factory=lambda: copy.deepcopy(default)))


class _Factory(msgspec.Struct, frozen=True):
    make: Callable[[], Any]


def _defaults(cls: type) -> dict[str, Any]:
    """Collect the defaults of attributes: class attributes, dataclass fields, attrs fields."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__[:-1]):
        for name in vars(base).get("__annotations__", ()):
            value = vars(base).get(name, _NONE)
            if value is not _NONE and not inspect.ismemberdescriptor(value):
                found[name] = value
    for field in getattr(cls, "__dataclass_fields__", {}).values():
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = _Factory(field.default_factory)
    for attribute in getattr(cls, "__attrs_attrs__", ()):
        default = attribute.default
        if type(default).__name__ == "_Nothing":
            continue
        factory = getattr(default, "factory", None)
        if factory is None:
            found[attribute.name] = default
        elif not default.takes_self:
            found[attribute.name] = _Factory(factory)
    return found


_NONE = object()


def _init_parameters(cls: type) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(vars_init(cls)).parameters.values())[1:]
    except (TypeError, ValueError):
        return []
    return [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _init_hint(cls: type, parameter: inspect.Parameter, hints: Mapping[str, Any], namespace: Mapping[str, Any]) -> Any:
    own = resolve_hints(vars_init(cls), namespace, Faults())
    return own.get(parameter.name, hints.get(parameter.name, parameter.annotation))


def vars_init(cls: type) -> Any:
    """Return a class's ``__init__`` as a function."""
    return inspect.getattr_static(cls, "__init__")


def _is_immutable(annotation: Any) -> bool:
    if isinstance(annotation, type) and (annotation in _IMMUTABLE or issubclass(annotation, enum.Enum)):
        return True
    if annotation is None:
        return True
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Literal:
        return True
    if origin is typing.Annotated:
        return _is_immutable(arguments[0])
    # A union or tuple is as immutable as its parts; anything else may change in place.
    if origin in (typing.Union, _UNION, tuple):
        return all(a is ... or _is_immutable(a) for a in arguments)
    return False


_UNION: Any = type(int | str)


def _reader(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if not names:
        return read_nothing
    if len(names) == 1:
        one = operator.attrgetter(names[0])
        return lambda machine: (one(machine),)
    return operator.attrgetter(*names)


class Snapshot:
    """Reads the attributes that a transition may assign, and puts them back when it fails.

    Values are put back as the same objects: what changed inside of one stays changed.
    """

    __slots__ = ("_one", "names", "read")

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names: tuple[str, ...] = names
        self._one = len(names) == 1
        self.read: Callable[[Any], Any] = operator.attrgetter(*names) if names else read_nothing

    def take(self, machine: Any) -> Any:
        """Return the values, in a form for `restore`."""
        try:
            return self.read(machine)
        except AttributeError:  # one of them has no value yet
            values = tuple(getattr(machine, name, _NONE) for name in self.names)
            return values[0] if self._one else values

    def restore(self, machine: Any, taken: Any) -> None:
        """Put the values back; an attribute that had none loses it again."""
        for name, value in zip(self.names, (taken,) if self._one else taken, strict=True):
            now = getattr(machine, name, _NONE)
            if now is value:
                continue
            if value is _NONE:
                delattr(machine, name)
            else:
                setattr(machine, name, value)


def unknown_data(shape: DataShape, given: Mapping[str, Any]) -> str | None:
    """Say which of the given names is no data attribute, or None."""
    for name in given:
        if name not in shape.names:
            return f"{shape.owner} has no data attribute {name!r}{nearest(name, shape.names)}"
    return None
