"""The type of a graph's state: its fields, their reducers, and what may be a change of them.

Law: worked out once, at assembly. What nodes return is bytes that decode to the fields' own types, as a replay would
have it; anything else is an `UpdateError` that names the node and the field.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NoReturn, Optional, Union, get_args, get_origin

import msgspec
import msgspec.inspect
from msgspec import UNSET, UnsetType

from flowlet.core.annotations import UNRESOLVED, codec_for, resolve_hints
from flowlet.core.codec import Codec, encode
from flowlet.core.compatibility import type_name
from flowlet.core.faults import Faults, describe, nearest
from flowlet.core.needs import refuse_provided
from flowlet.errors import DecodeError, UpdateError

Reducer = Callable[[Any, Any], Any]

NOTHING = (b"\xc0", b"\x80")
"""What a node has returned that changes nothing: None or an empty dict, encoded."""

_anything: Codec[Any] = Codec(Any)


class Field(msgspec.Struct, frozen=True, eq=False):
    """One field of the state.

    Attributes:
        reducer: makes the new value of the present one and of what a node returns for it; None: the latter it is.
    """

    name: str
    annotation: Any
    reducer: Reducer | None


class StateType(msgspec.Struct, frozen=True, eq=False):
    """What is known of the class that a graph's state is of.

    Attributes:
        cls: a Struct or a dataclass.
        whole: the codec of all of it.
        part: the codec of what a node returns: some of the fields, or None; it refuses others.
        shown: the same, as the dict that people are shown.
        is_fixed: nothing of it can be changed in place, so that nodes may share one object.
    """

    cls: type[Any]
    fields: dict[str, Field]
    whole: Codec[Any]
    part: Codec[Any]
    shown: Codec[Any]
    is_fixed: bool

    def read(self, value: bytes, node: str) -> dict[str, Any]:
        """Decode what a node has returned.

        Raises:
            UpdateError: it is no dict of fields and their values.
        """
        if value in NOTHING:
            return {}
        try:
            changes = self.part.decode(value, node)
        except DecodeError as error:
            self._refuse(value, node, error)
        if changes is None:
            return {}
        return {name: new for name in self.fields if (new := getattr(changes, name)) is not UNSET}

    def convert(self, changes: Any, node: str) -> dict[str, Any]:
        """Turn what a ``merge=`` has returned into the fields' types.

        Raises:
            UpdateError: it is no dict of fields and their values.
        """
        if changes is not None and not isinstance(changes, Mapping):
            raise UpdateError(
                f"merge= of {node!r} returned {describe(type(changes))}, not a dict of the fields it changes", node
            )
        return self.read(encode(changes, f"what merge= of {node!r} returned"), node)

    def _refuse(self, value: bytes, node: str, error: DecodeError) -> NoReturn:
        """Say what is wrong with a change that does not decode."""
        changes = _anything.decode(value, f"what {node!r} returned")
        if not isinstance(changes, dict):
            raise UpdateError(
                f"{node!r} returned {describe(type(changes))}; a node returns a dict of the fields it changes, or None",
                node,
            ) from error
        for name, new in changes.items():
            field = self.fields.get(name)
            if field is None:
                hint = nearest(name, self.fields) if isinstance(name, str) else ""
                raise UpdateError(
                    f"{node!r} returned {name!r}, which is no field of {describe(self.cls)}{hint}", node, str(name)
                ) from error
            try:
                Codec(field.annotation).decode(encode(new, name), f"the field {name!r}")
            except DecodeError as wrong:
                raise UpdateError(f"{node!r} returned what is wrong: {wrong}", node, name) from wrong
        raise UpdateError(f"{node!r} returned what is wrong: {error}", node) from error  # pragma: no cover - see above


def read_state_type(where: str, cls: Any, namespace: Mapping[str, Any], faults: Faults) -> StateType | None:
    """Learn what there is to know of a graph's ``state=``, noting its faults; None when it cannot be used."""
    if not isinstance(cls, type) or not (issubclass(cls, msgspec.Struct) or dataclasses.is_dataclass(cls)):
        faults.add(where, f"state= takes a msgspec.Struct or a dataclass, not {describe(cls)}")
        return None
    before = len(faults.problems)
    hints = resolve_hints(cls, namespace, faults)
    names = (
        list(cls.__struct_fields__) if issubclass(cls, msgspec.Struct) else [f.name for f in dataclasses.fields(cls)]
    )
    if not names:
        faults.add(where, f"its state {describe(cls)} has no fields, so that no node could change anything")
    fields = {}
    for name in names:
        if codec_for(hints[name], cls, f"field {name!r}", faults) is not None or hints[name] is UNRESOLVED:
            fields[name] = Field(name, hints[name], _find_reducer(cls, name, hints[name], faults))
    whole = codec_for(cls, where, "its state", faults) if len(faults.problems) == before else None
    if whole is None or len(faults.problems) > before:
        return None
    return StateType(cls, fields, whole, Codec(_part_type(cls, fields)), Codec(_dict_type(cls, fields)), _is_fixed(cls))


def _dict_type(cls: type, fields: Mapping[str, Field]) -> Any:
    """Make the type of a dict of some of the fields of a class."""
    rows = {f.name: f.annotation for f in fields.values()}
    part = typing.TypedDict(f"{cls.__name__}Changes", rows, total=False)  # type: ignore[misc]  # made at run time
    return Optional[part]  # noqa: UP045 - not every type has `|`


def _part_type(cls: type, fields: Mapping[str, Field]) -> Any:
    """Make the type of some of the fields of a class, and no others."""
    columns = [(f.name, Union[f.annotation, UnsetType], UNSET) for f in fields.values()]  # noqa: UP007 - not every type has `|`
    part = msgspec.defstruct(f"{cls.__name__}Changes", columns, forbid_unknown_fields=True)
    return Optional[part]  # noqa: UP045 - as above


def _find_reducer(cls: type, name: str, annotation: Any, faults: Faults) -> Reducer | None:
    """Return the function among what a field is annotated with."""
    if get_origin(annotation) is not Annotated:
        return None
    found = [m for m in get_args(annotation)[1:] if callable(m) and not isinstance(m, (type, msgspec.Meta))]
    where = f"{describe(cls)}.{name}"
    if len(found) > 1:
        faults.add(where, f"has {len(found)} reducers ({', '.join(map(describe, found))}); keep one")
    for reducer in found:
        if inspect.iscoroutinefunction(reducer):
            faults.add(where, f"its reducer {describe(reducer)} is async; make it a plain function of two values")
        elif not _takes(reducer, 2):
            faults.add(where, f"its reducer {describe(reducer)} must take two values: the present one and the new one")
    return found[0] if found else None


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Tell whether a function can be called with so many values, as far as it lets itself be asked."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # of a builtin that has no signature
        return True
    return True


def check_merge(where: str, merge: Any, faults: Faults) -> None:
    """Note what is wrong with a ``merge=``."""
    if merge is None:
        return
    if not callable(merge) or inspect.iscoroutinefunction(merge) or not _takes(merge, 2):
        faults.add(where, "merge= takes a plain function of the state and the value, which returns a dict of fields")
    refuse_provided(merge, where, "merge=", "ask in a node, and keep the answer in the state", faults)


def check_change_type(where: str, annotation: Any, state: StateType, what: str, faults: Faults) -> None:
    """Note why a type is no change of the state: dicts are, and structs that have no other fields than it has."""
    fields = _fields_of(annotation)
    if fields is None:
        return
    if annotation is state.cls:
        faults.add(where, f"{what} the whole state {describe(state.cls)}: it must be a dict of the fields that change")
    elif fields is UNRESOLVED:
        faults.add(
            where,
            f"{what} {type_name(annotation)}, which is no dict of fields of the state; give merge= to make one of it",
        )
    else:
        for name in fields:
            if name not in state.fields:
                close = nearest(name, state.fields)
                faults.add(where, f"{what} {name!r}, which is no field of {describe(state.cls)}{close}; or give merge=")


def _fields_of(annotation: Any) -> Any:
    """Return the names of a type's fields; None if any may come, `UNRESOLVED` if it has none."""
    if get_origin(annotation) is Annotated:
        return _fields_of(get_args(annotation)[0])
    if annotation in (None, Any, type(None), inspect.Parameter.empty, UNRESOLVED):
        return None
    if typing.is_typeddict(annotation):
        return list(typing.get_type_hints(annotation))
    info = msgspec.inspect.type_info(annotation)
    if isinstance(info, msgspec.inspect.UnionType):
        parts = [p for p in get_args(annotation) if p is not type(None)]
        return _fields_of(parts[0]) if len(parts) == 1 else UNRESOLVED
    if isinstance(info, msgspec.inspect.DictType):
        return None
    if isinstance(info, (msgspec.inspect.StructType, msgspec.inspect.DataclassType)):
        plain = not getattr(info, "array_like", False) and getattr(info, "tag", None) is None
        return (
            [f.name for f in info.fields] if plain and all(f.name == f.encode_name for f in info.fields) else UNRESOLVED
        )
    return UNRESOLVED


_FIXED_TYPES = tuple(
    getattr(msgspec.inspect, f"{name}Type")
    for name in (
        *("None", "Bool", "Int", "Float", "Str", "Bytes", "DateTime", "Date", "Time", "TimeDelta", "UUID", "Decimal"),
        *("Enum", "Literal"),
    )
)


def _is_fixed(cls: type) -> bool:
    """Tell whether nothing of an object can be changed: it is frozen, and so is all inside."""
    seen: set[type] = set()

    def is_fixed(info: Any) -> bool:
        kinds = msgspec.inspect
        if isinstance(info, _FIXED_TYPES):
            return True
        if isinstance(info, kinds.UnionType):
            return all(map(is_fixed, info.types))
        if isinstance(info, kinds.TupleType):
            return all(map(is_fixed, info.item_types))
        if isinstance(info, (kinds.VarTupleType, kinds.FrozenSetType)):
            return is_fixed(info.item_type)
        if not isinstance(info, (kinds.StructType, kinds.DataclassType)):
            return False
        if info.cls in seen:
            return True
        seen.add(info.cls)
        return _is_frozen(info.cls) and all(is_fixed(f.type) for f in info.fields)

    return is_fixed(msgspec.inspect.type_info(cls))


def _is_frozen(cls: Any) -> bool:
    if issubclass(cls, msgspec.Struct):
        return bool(cls.__struct_config__.frozen)
    return bool(cls.__dataclass_params__.frozen)
