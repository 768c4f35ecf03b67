"""What a machine's class consists of: its triggers, guards and other methods, with what it inherits.

Law: bases come first and keep their place, so that a subclass that replaces a method does not change the
order in which candidates are tried. Finding is done here, judging elsewhere; faults are noted, not raised.
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Generic, Protocol

import msgspec

from flowlet.core.configurations import DEFINITION
from flowlet.core.faults import Faults, describe
from flowlet.core.marks import (
    COMPENSATES,
    GUARD,
    STATE,
    STEP,
    TRANSITIONS,
    TRIGGER,
    TransitionMark,
    Trigger,
)


class Members(msgspec.Struct, frozen=True, eq=False):
    """The attributes of a class and its bases.

    Attributes:
        all: every attribute by name, the most derived one.
        triggers: those marked ``@transition``, in order.
        guards: those marked ``@guard``, by the guard's name.
    """

    all: Mapping[str, Any]
    triggers: Mapping[str, Trigger]
    guards: Mapping[str, Any]

    def marks(self) -> Iterable[TransitionMark]:
        for trigger in self.triggers.values():
            yield from trigger.transitions

    def refs(self) -> Iterable[Any]:
        """Every state reference that a transition makes."""
        for mark in self.marks():
            yield from mark.sources
            yield from mark.targets
            yield mark.on_error


def refuse_kind(cls: Any, faults: Faults) -> bool:
    """Note why something cannot be a machine at all; return whether it cannot."""
    if not isinstance(cls, type):
        faults.add(describe(cls), "a machine is a class; put @flow.machine on a class")
        return True
    reason = _unfit(cls)
    if reason is not None:
        faults.add(cls, reason)
    return reason is not None


def _unfit(cls: type) -> str | None:
    if issubclass(cls, msgspec.Struct):
        return "a msgspec.Struct cannot be a machine, since it has no room for a state; use a dataclass"
    if issubclass(cls, enum.Enum):
        return "an Enum cannot be a machine; its members can be the states of one"
    if issubclass(cls, (tuple, str, int, float, bytes, frozenset, BaseException)):
        return f"a subclass of {cls.__mro__[-2].__name__} cannot be a machine; use a dataclass or a plain class"
    params: Any = getattr(cls, "__dataclass_params__", None)
    if (params is not None and params.frozen) or _is_frozen_attrs(cls):
        return "a frozen class cannot be a machine, since its attributes are the machine's data; leave out frozen=True"
    return None


def _is_frozen_attrs(cls: type) -> bool:
    return hasattr(cls, "__attrs_attrs__") and cls.__setattr__.__name__ == "_frozen_setattrs"


def gather(cls: type, faults: Faults) -> Members:
    """Collect the attributes of a class, its bases first."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__[:-1]):
        if base in (Generic, Protocol):
            continue
        for name, member in vars(base).items():
            if not _loses_mark(base, name, member, found, faults):
                found[name] = member
    for name, member in found.items():
        _check_wrapping(cls, name, member, faults)
    triggers = {n: t for n, m in found.items() if (t := getattr(m, TRANSITIONS, None)) is not None}
    for name, trigger in triggers.items():
        if getattr(trigger.action, STEP, None) is not None:
            continue  # noted already
        if not inspect.iscoroutinefunction(trigger.action):
            faults.add(_method(cls, name), "a trigger must be a coroutine function: write `async def`")
        elif not list(inspect.signature(trigger.action).parameters):
            faults.add(_method(cls, name), "a trigger is a method: give it `self` as its first parameter")
    return Members(found, triggers, _guards(cls, found, faults))


def _check_wrapping(cls: type, name: str, member: Any, faults: Faults) -> None:
    """Note what is put around or under ``@transition`` and would be lost, or would hide it."""
    where = _method(cls, name)
    inner = member.fget if isinstance(member, property) else getattr(member, "__func__", None)
    if isinstance(member, functools.partialmethod):
        inner = member.func
    if inner is not None and getattr(inner, TRANSITIONS, None) is not None:
        kind = type(member).__name__
        faults.add(where, f"a trigger is a plain async method that takes the machine; leave out @{kind}")
        return
    trigger = getattr(member, TRANSITIONS, None)
    if trigger is None:
        return
    for mark, title in ((STEP, "step"), (GUARD, "guard"), (COMPENSATES, "compensation")):
        if getattr(member, mark, None) is not None or getattr(trigger.action, mark, None) is not None:
            what = f"it is marked as a trigger and as a {title}, and can only be one"
            faults.add(where, f"{what}; let the trigger call a {title} of its own" if mark == STEP else what)
            return
    if getattr(member, TRIGGER, None) is not member:
        faults.add(where, "a decorator above @transition would be lost; put it below, next to the function")


def _loses_mark(base: type, name: str, member: Any, found: Mapping[str, Any], faults: Faults) -> bool:
    """A method that replaces a trigger or guard must say what it is, or it would silently be neither."""
    former = found.get(name)
    for mark, kind, spelling in ((TRANSITIONS, "trigger", "@transition"), (GUARD, "guard", "@guard")):
        if getattr(former, mark, None) is not None and getattr(member, mark, None) is None:
            what = f"it overrides a {kind} without {spelling}; put the mark on it, or rename it"
            faults.add(_method(base, name), what)
            return True
    return False


def _guards(cls: type, found: Mapping[str, Any], faults: Faults) -> dict[str, Any]:
    guards: dict[str, Any] = {}
    for name, member in found.items():
        label = getattr(member, GUARD, None)
        if label is None:
            continue
        if isinstance(member, (staticmethod, classmethod)):
            faults.add(_method(cls, name), "a guard is a plain method that takes the machine; leave out the decorator")
            continue
        if label in guards:
            faults.add(cls, f"two guards are called {label!r}; rename one")
        guards[label] = member
    return guards


def _method(cls: type, name: str) -> str:
    return f"{describe(cls)}.{name}"


def assigned_names(members: Mapping[str, Any], cls: type = object) -> list[str]:
    """Find the attributes that the methods of a class, and those they may call with ``super()``, assign.

    Together with the data they are what a transition that fails must put back. An assignment made by a
    function outside of the class is not seen.
    """
    names: dict[str, None] = {}
    inherited = [vars(base) for base in reversed(cls.__mro__[1:-1]) if base not in (Generic, Protocol)]
    for function in (f for some in (*inherited, members) for f in _functions(some)):
        code = function.__code__
        if not code.co_argcount:
            continue
        for instruction, is_own in _attribute_stores(function):
            if is_own:
                names[instruction.argval] = None
    return [n for n in names if _is_plain(members.get(n))]


def _functions(members: Mapping[str, Any]) -> Iterable[Any]:
    for name, member in members.items():
        if name in ("__init__", "__post_init__", "__attrs_post_init__", "__new__"):
            continue  # what they set, they set before any transition
        trigger = getattr(member, TRANSITIONS, None)
        found = [trigger.action] if trigger is not None else [member]
        if isinstance(member, property):
            found = [member.fget, member.fset, member.fdel]
        yield from (f for f in found if inspect.isfunction(f))


_NO_STOP_ITERATION = 3
"""The argument of the CALL_INTRINSIC_1 at the end of every coroutine since CPython 3.12; it touches no object."""


def _instructions(function: Any) -> list[Any]:
    import dis

    return [i for i in dis.get_instructions(function) if i.opname != "CACHE"]


def _attribute_stores(function: Any) -> Iterable[tuple[Any, bool]]:
    """List the instructions that assign or delete an attribute, and whether it is one of the first parameter.

    ``self.a = x`` loads self right before the store; ``self.a += x`` copies it before it loads the old
    value, and swaps it back before the store.
    """
    code = function.__code__
    owner = code.co_varnames[0] if code.co_argcount else ""
    copied: set[str] = set()
    past: list[Any] = [None, None]
    for instruction in _instructions(function):
        name = instruction.opname
        if name == "LOAD_ATTR" and past[-1].opname == "COPY" and _loads(past[-2], owner):
            copied.add(instruction.argval)
        if name in ("STORE_ATTR", "DELETE_ATTR"):
            augmented = past[-1].opname == "SWAP" and instruction.argval in copied
            yield instruction, augmented or _loads(past[-1], owner)
        past = [past[-1], instruction]


def _loads(instruction: Any, name: str) -> bool:
    if instruction is None or not ("LOAD_FAST" in instruction.opname or "LOAD_DEREF" in instruction.opname):
        return False
    value = instruction.argval
    return bool(value == name or (isinstance(value, tuple) and value[-1] == name))


def _is_plain(member: Any) -> bool:
    """Say whether an attribute of the class leaves room for one of the object: no property or other descriptor."""
    return not hasattr(type(member), "__set__") or inspect.ismemberdescriptor(member)


def _static(cls: type, name: str) -> Any:
    return inspect.getattr_static(cls, name, None)


def effects(function: Any, cls: type) -> frozenset[str] | None:
    """Find which attributes of its own object a simple function assigns; None when that cannot be known.

    A function is simple when it calls and awaits nothing and assigns to nothing but local names and plain
    attributes of its first parameter.
    """
    for instruction in _instructions(function):
        name = instruction.opname
        if name == "CALL_INTRINSIC_1" and instruction.arg == _NO_STOP_ITERATION:
            continue
        if name.startswith("CALL") or name in ("SEND", "STORE_SUBSCR", "DELETE_SUBSCR", "DELETE_ATTR", "IMPORT_NAME"):
            return None
    names: set[str] = set()
    for instruction, is_own in _attribute_stores(function):
        if not is_own or not _is_plain(_static(cls, instruction.argval)):
            return None
        names.add(instruction.argval)
    return frozenset(names)


def overrides(cls: type) -> str | None:
    """Return what a class that is not assembled itself changes of the machine it inherits, or None."""
    for base in cls.__mro__:
        if DEFINITION in vars(base):
            return None
        for name, member in vars(base).items():
            marked = any(getattr(member, mark, None) is not None for mark in (TRANSITIONS, GUARD))
            state = isinstance(member, type) and STATE in vars(member)
            if marked or state or name.startswith(("on_enter_", "on_exit_")) or name == "on_transition":
                return name
    return None
