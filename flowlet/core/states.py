"""States of a machine and the configurations it can be in.

Law: a configuration is an immutable, interned value: two are equal exactly if they are the same object,
so that everything planned for one is a dict lookup away. States are found here, by class, Enum member
or name; what is wrong with them is noted as a fault, never raised. Imports nothing of the runtime.
"""

from __future__ import annotations

import enum
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from flowlet.core.faults import Faults, describe, nearest
from flowlet.core.marks import MACHINE, STATE, StateMark

DEFINITION = MACHINE
"""The attribute of an assembled class that holds its `MachineDefinition`."""

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def slug(name: str) -> str:
    """Spell a state's name as its hooks do: ``InTransit`` and ``IN_TRANSIT`` become ``in_transit``."""
    return _WORD_START.sub("_", name).lower()


class State(msgspec.Struct, frozen=True, eq=False):
    """One state.

    Attributes:
        slug: the name as it stands in ``on_enter_...``.
        value: what the user gave as ``state(value=...)``.
        ref: the class or Enum member that stands for it in the user's code.
    """

    name: str
    slug: str
    initial: bool
    final: bool
    value: object
    ref: Any


class Configuration:
    """The set of states that are active together; in a flat machine exactly one.

    Attributes:
        names: the active states.
        state: the one word for listings and records: the name of the (first) active state.
        final: nothing leads out of it.
    """

    __slots__ = ("_home", "final", "names", "state")

    def __init__(self, names: tuple[str, ...], final: bool, home: tuple[str, str]) -> None:
        self.names, self.final, self._home = names, final, home
        self.state = names[0]

    def __repr__(self) -> str:
        return f"<{' + '.join(self.names)}>"

    # Identity is equality, so copies of a machine share it and a pickled one finds it again.
    def __copy__(self) -> Configuration:
        return self

    def __deepcopy__(self, memo: object) -> Configuration:
        return self

    def __reduce__(self) -> tuple[Any, tuple[str, str, tuple[str, ...]]]:
        return recall, (*self._home, self.names)


def recall(module: str, qualname: str, names: tuple[str, ...]) -> Configuration:
    """Find the configuration of an assembled class again (used by pickle and copy)."""
    found: Any = sys.modules[module]
    for part in qualname.split("."):
        found = getattr(found, part)
    configuration: Configuration = getattr(found, DEFINITION).configurations[names[0]]
    return configuration


class States:
    """The states of one class, findable by what users write in their place."""

    def __init__(self, states: Mapping[str, State], refs: Mapping[Any, str]) -> None:
        self.by_name = dict(states)
        self._refs = dict(refs)

    def find(self, ref: Any) -> State | None:
        """Return the state for a class, an Enum member or a name; None when there is none."""
        if isinstance(ref, str) and not isinstance(ref, enum.Enum):
            return self.by_name.get(ref)
        try:
            name = self._refs.get(ref)
        except TypeError:  # unhashable
            return None
        return None if name is None else self.by_name.get(name)

    def unknown(self, ref: Any) -> str:
        """Say that a reference is no state, with the nearest name."""
        if isinstance(ref, type) and STATE not in vars(ref):
            near = nearest(ref.__name__, self.by_name)
            return f"state {describe(ref)!r} does not exist here (put @state on the class){near}"
        name = ref_name(ref)
        return f"state {name!r} does not exist{nearest(name, self.by_name)}"


def ref_name(ref: Any) -> str:
    """Name a state reference in a message."""
    if isinstance(ref, enum.Enum):
        return ref.name
    return ref if isinstance(ref, str) else describe(ref)


def collect_states(cls: type, members: Mapping[str, Any], refs: Iterable[Any], faults: Faults) -> States:
    """Find the states of a class: nested classes under ``@state``, or the members of one Enum.

    Args:
        members: the attributes of the class and its bases.
        refs: the sources and targets of its transitions, in which an Enum may be found.
    """
    nested = _nested_states(cls, members, faults)
    enums = list(dict.fromkeys(_enums_in([*members.values(), *refs])))
    if len(enums) > 1:
        names = " and ".join(describe(e) for e in enums)
        faults.add(cls, f"its states are in more than one Enum ({names}); put them into one")
    if enums and nested:
        faults.add(cls, "its states are partly nested classes and partly Enum members; use one of the two")
    found = {**nested, **(_enum_states(enums[0], faults) if enums else {})}
    _check_slugs(cls, found, faults)
    return States(found, _references(cls, found, enums))


def _nested_states(cls: type, members: Mapping[str, Any], faults: Faults) -> dict[str, State]:
    found: dict[str, State] = {}
    for member in members.values():
        if not isinstance(member, type) or STATE not in vars(member):
            continue
        mark: StateMark = vars(member)[STATE]
        if mark.parallel or any(isinstance(c, type) and STATE in vars(c) for c in vars(member).values()):
            faults.add(member, "nested and parallel states are not supported by this version; keep the machine flat")
        name = member.__name__
        if name in found and found[name].ref is not member:
            faults.add(cls, f"two states are called {name!r}; rename one")
        found[name] = _state(name, mark, member)
    return found


def _enums_in(things: Iterable[Any]) -> Iterable[type[enum.Enum]]:
    for thing in things:
        kind = type(thing) if isinstance(thing, enum.Enum) else thing
        if isinstance(kind, type) and issubclass(kind, enum.Enum) and any(_is_mark(m.value) for m in kind):
            yield kind


def _is_mark(value: object) -> bool:
    return isinstance(value, StateMark)


def _enum_states(kind: type[enum.Enum], faults: Faults) -> dict[str, State]:
    found: dict[str, State] = {}
    for name, member in kind.__members__.items():
        if name != member.name:
            faults.add(kind, f"{name!r} is an alias of {member.name!r}; give each state a state(...) of its own")
        elif not _is_mark(member.value):
            faults.add(kind, f"the value of {name!r} is no state; write {name} = state()")
        elif member.value.parallel:
            faults.add(kind, f"{name!r}: parallel states are not supported by this version")
        else:
            found[name] = _state(name, member.value, member)
    return found


def _state(name: str, mark: StateMark, ref: Any) -> State:
    return State(name, slug(name), bool(mark.initial), bool(mark.final), mark.value, ref)


def _check_slugs(cls: type, found: Mapping[str, State], faults: Faults) -> None:
    seen: dict[str, str] = {}
    for state in found.values():
        other = seen.setdefault(state.slug, state.name)
        if other != state.name:
            faults.add(cls, f"states {other!r} and {state.name!r} share the hooks on_enter_{state.slug}; rename one")


def _references(cls: type, found: Mapping[str, State], enums: Iterable[type[enum.Enum]]) -> dict[Any, str]:
    """Map classes and members to names; a state that a subclass replaces is also found by the old class."""
    refs: dict[Any, str] = {state.ref: state.name for state in found.values()}
    for base in cls.__mro__:
        for member in vars(base).values():
            if isinstance(member, type) and STATE in vars(member) and member.__name__ in found:
                refs.setdefault(member, member.__name__)
    for kind in enums:
        refs.update({member: member.name for member in kind if member.name in found})
    return refs
