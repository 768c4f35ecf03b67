"""The states of a machine, as its class has them: nested classes under ``@state``, or the members of one Enum.

Law: states are found here, by class, Enum member or name, and get their place in the tree; what is wrong with them is
noted as a fault, never raised. A state's name is its path below the machine (``"Playing.Low"``). Imports nothing of
the runtime.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from flowlet.core.faults import Faults, describe, nearest
from flowlet.core.marks import STATE, StateMark
from flowlet.core.tree import Kind, Node, Tree

WITHIN = "."
"""Between the names of a state and of one inside of it."""

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def slug(name: str) -> str:
    """Spell a state's name as its hooks do: ``InTransit`` and ``IN_TRANSIT`` become ``in_transit``."""
    return _WORD_START.sub("_", name).lower()


class State(msgspec.Struct, frozen=True, eq=False):
    """One state.

    Attributes:
        name: its path below the machine.
        slug: the name as it stands in ``on_enter_...``.
        final: nothing leads out of it.
        value: what the user gave as ``state(value=...)``.
        ref: the class or Enum member that stands for it in the user's code.
        mark: what was written.
        parent: the name of the state it is in, None at the top.
        number: its place in the machine's tree.
        kind: what it is.
    """

    name: str
    slug: str
    initial: bool
    final: bool
    value: object
    ref: Any
    mark: StateMark
    parent: str | None
    number: int
    kind: Kind


class States:
    """The states of one class, findable by what users write in their place.

    Args:
        states: by name, in document order.
        refs: names by what stands for them.
        tree: the same states with their places.
    """

    def __init__(self, states: Mapping[str, State], refs: Mapping[Any, str], tree: Tree) -> None:
        self.by_name: dict[str, State] = dict(states)
        self.tree = tree
        self._refs = dict(refs)
        self._short = _unique({name: _bare(state.ref) for name, state in states.items()})

    @property
    def nested(self) -> bool:
        """Whether some are inside of others, or are histories."""
        return any(node.kind not in ("atomic", "final") for node in self.tree.nodes[1:])

    def slugs(self) -> dict[str, str]:
        """Return the names of states by how hooks call them: by path, and by the last word where that is unique."""
        paths = {_path_slug(name): name for name in self.by_name}
        short = _unique({name: state.slug for name, state in self.by_name.items()})
        return {**short, **paths}

    def find(self, ref: Any) -> State | None:
        """Return the state for a class, an Enum member or a name; None when there is none."""
        if isinstance(ref, str) and not isinstance(ref, enum.Enum):
            return self.by_name.get(ref) or self.by_name.get(self._short.get(ref, ""))
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


def _unique(words: Mapping[str, str]) -> dict[str, str]:
    """Turn a mapping round, leaving out the values that stand there more than once."""
    found: dict[str, str] = {}
    twice: set[str] = set()
    for name, word in words.items():
        if word in found:
            twice.add(word)
        found[word] = name
    return {word: name for word, name in found.items() if word not in twice}


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
    both = {**nested, **(_enum_states(enums[0], faults) if enums else {})}
    found = {name: msgspec.structs.replace(s, number=n) for n, (name, s) in enumerate(both.items(), 1)}
    _check_slugs(cls, found, faults)
    references = _references(cls, found, enums)
    return States(found, references, build_tree(found, references, faults))


def _nested_states(cls: type, members: Mapping[str, Any], faults: Faults) -> dict[str, State]:
    found: dict[str, State] = {}
    for path, member in _walk(members, ()):
        mark: StateMark = vars(member)[STATE]
        name = WITHIN.join(path)
        if name in found and found[name].ref is not member:
            faults.add(cls, f"two states are called {name!r}; rename one")
            continue
        inside = any(_is_state(c) for c in _members(member).values())
        parent = WITHIN.join(path[:-1]) or None
        found[name] = _state(name, mark, member, parent, _kind(mark, inside, member, faults))
    return found


def _walk(members: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], type]]:
    """Iterate over the state classes in a class, each before those inside of it."""
    for member in members.values():
        if _is_state(member):
            path = (*above, member.__name__)
            yield path, member
            yield from _walk(_members(member), path)


def _is_state(member: object) -> bool:
    return isinstance(member, type) and STATE in vars(member)


def _members(cls: type) -> dict[str, Any]:
    """Return the attributes of a class and its bases; bases come first and keep their place."""
    return {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}


def _kind(mark: StateMark, inside: bool, where: object, faults: Faults) -> Kind:
    """Say what a state is; what contradicts itself is noted."""
    said = [w for w, given in (("final", mark.final), ("parallel", mark.parallel), ("history", mark.history)) if given]
    if len(said) > 1:
        faults.add(where, f"it cannot be {' and '.join(said)} at once")
    if mark.history is not None and mark.history not in ("shallow", "deep"):
        faults.add(where, f'history must be "shallow" or "deep", not {mark.history!r}')
    if inside and (mark.final or mark.history):
        faults.add(where, f"a {'final' if mark.final else 'history'} state has no states inside")
        return "compound"
    if mark.history is not None:
        return "deep" if mark.history == "deep" else "shallow"
    if mark.final:
        return "final"
    if mark.parallel:
        return "parallel"
    return "compound" if inside else "atomic"


def build_tree(states: Mapping[str, State], refs: Mapping[Any, str], faults: Faults) -> Tree:
    """Give states their places; what is wrong with these is noted."""
    names = ["", *states]
    numbers = {name: number for number, name in enumerate(names)}
    inside: dict[str, list[State]] = {name: [] for name in names}
    for state in states.values():
        inside[state.parent or ""].append(state)

    def ancestors(name: str) -> tuple[int, ...]:
        if not name:
            return ()
        parent = states[name].parent or ""
        return (numbers[parent], *ancestors(parent))

    def below(name: str) -> int:
        return sum(1 << s.number | below(s.name) for s in inside[name])

    nodes: list[Node] = []
    for name in names:
        real = [s for s in inside[name] if s.kind not in ("shallow", "deep")]
        nodes.append(
            Node(
                number=numbers[name],
                name=name,
                kind=states[name].kind if name else "compound",
                ancestors=ancestors(name),
                children=tuple(s.number for s in real),
                histories=tuple(s.number for s in inside[name] if s not in real),
                below=below(name),
                default=tuple(numbers[n] for n in _default(states.get(name), inside, states, refs, faults)),
            )
        )
    return Tree(nodes)


def _default(
    state: State | None,
    inside: Mapping[str, Sequence[State]],
    states: Mapping[str, State],
    refs: Mapping[Any, str],
    faults: Faults,
) -> list[str]:
    """Return where entering a state leads by itself."""
    if state is not None and state.mark.default is not None:
        return _given_default(state, states, refs, faults)
    if state is None or state.kind == "compound":
        within = inside["" if state is None else state.name]
        initial = [s.name for s in within if s.initial]
        return initial[:1] or [s.name for s in within if s.kind not in ("shallow", "deep")][:1]
    if state.kind in ("shallow", "deep"):  # what its parent would be entered by
        parent = states.get(state.parent or "")
        within = inside[state.parent or ""]
        if parent is not None and parent.kind == "parallel":
            return [s.name for s in within if s.kind not in ("shallow", "deep")]
        if parent is not None and parent.mark.default is not None:
            found = _given_default(parent, states, refs, Faults())
        else:
            found = _default(parent, inside, states, refs, faults)
        return [name for name in found if name != state.name]
    return []


def _given_default(state: State, states: Mapping[str, State], refs: Mapping[Any, str], faults: Faults) -> list[str]:
    given = state.mark.default
    found = States(states, refs, Tree(()))
    names: list[str] = []
    home = state.name if state.kind == "compound" else state.parent or ""
    if state.kind not in ("compound", "shallow", "deep"):
        faults.add(state.ref, "default= says where entering a compound or a history leads; drop it here")
        return []
    for ref in given if isinstance(given, (tuple, list)) else (given,):
        target = found.find(ref)
        if target is None:
            faults.add(state.ref, f"default= {found.unknown(ref)}")
        elif home and home not in _above(target, states):
            faults.add(state.ref, f"default= must be inside of {home!r}, and {target.name!r} is not")
        else:
            names.append(target.name)
    if not names:
        faults.add(state.ref, "default= names no state")
    return names


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
        elif member.value.parallel or member.value.history or member.value.default is not None:
            faults.add(kind, f"{name!r}: only states that are nested classes can be parallel, or histories")
        else:
            found[name] = _state(name, member.value, member, None, "final" if member.value.final else "atomic")
    return found


def _state(name: str, mark: StateMark, ref: Any, parent: str | None, kind: Kind) -> State:
    return State(
        name=name,
        slug=slug(_bare(ref)),
        initial=bool(mark.initial),
        final=bool(mark.final),
        value=mark.value,
        ref=ref,
        mark=mark,
        parent=parent,
        number=0,  # given when all are known
        kind=kind,
    )


def _bare(ref: Any) -> str:
    """Name a class or an Enum member without what it is in."""
    return ref.name if isinstance(ref, enum.Enum) else str(ref.__name__)


def _above(state: State, states: Mapping[str, State]) -> Iterator[str]:
    """Iterate over the names of the states that a state is in."""
    parent = state.parent
    while parent is not None:
        yield parent
        parent = states[parent].parent


def _check_slugs(cls: type, found: Mapping[str, State], faults: Faults) -> None:
    seen: dict[str, str] = {}
    for state in found.values():
        word = _path_slug(state.name)
        other = seen.setdefault(word, state.name)
        if other != state.name:
            faults.add(cls, f"states {other!r} and {state.name!r} share the hooks on_enter_{word}; rename one")


def _path_slug(name: str) -> str:
    return slug(name).replace(WITHIN, "_")


def _references(cls: type, found: Mapping[str, State], enums: Iterable[type[enum.Enum]]) -> dict[Any, str]:
    """Map classes and members to names; a state that a subclass replaces is also found by the old class."""
    refs: dict[Any, str] = {state.ref: state.name for state in found.values()}
    for base in cls.__mro__:
        for path, member in _walk(vars(base), ()):
            if WITHIN.join(path) in found:
                refs.setdefault(member, WITHIN.join(path))
    for kind in enums:
        refs.update({member: member.name for member in kind if member.name in found})
    return refs
