"""The configurations a machine can be in: which states are active together, and what its histories remember.

Law: a configuration is an immutable, interned value: two are equal exactly if they are the same object, so that
everything planned for one is a dict lookup away. Those of a flat machine exist at assembly, those of nested states
are made when they are first reached.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from flowlet.core.marks import MACHINE
from flowlet.core.tree import ROOT, Memory, Tree, numbers

DEFINITION = MACHINE
"""The attribute of an assembled class that holds its `MachineDefinition`."""

TOGETHER = " + "
"""Between the names of atomic states that are active together."""


class Configuration:
    """The set of states that are active together; in a flat machine exactly one.

    Attributes:
        names: the active states, in document order.
        state: the one word for listings and records: the active atomic states.
        final: nothing leads out of it.
        active: the same as ``names``, as numbers of the tree.
        memory: what histories remember.
        restless: a transition without an event may lead out of it.
        fresh: the machine is not started yet: nothing has been entered.
    """

    __slots__ = ("_home", "active", "final", "fresh", "memory", "names", "restless", "state")

    active: int
    final: bool
    fresh: bool
    memory: Memory
    names: tuple[str, ...]
    restless: bool

    def __init__(
        self,
        names: tuple[str, ...],
        final: bool,
        home: tuple[str, str],
        *,
        state: str | None = None,
        active: int = 0,
        memory: Memory = (),
        restless: bool = False,
        fresh: bool = False,
    ) -> None:
        self.names, self.final, self._home = names, final, home
        self.state: str = names[0] if state is None else state
        self.active, self.memory, self.restless, self.fresh = active, memory, restless, fresh

    def __repr__(self) -> str:
        return f"<{self.state}>"

    def unstarted(self) -> Configuration:
        """Return the same for a machine that has not been started."""
        return Configuration(
            self.names, self.final, self._home, state=self.state, active=self.active, memory=self.memory, fresh=True
        )

    def unsettled(self) -> Configuration:
        """Return the same for a machine that is in the middle of something."""
        return Configuration(
            self.names, self.final, self._home, state=self.state, active=self.active, memory=self.memory
        )

    # Identity is equality, so copies of a machine share it and a pickled one finds it again.
    def __copy__(self) -> Configuration:
        return self

    def __deepcopy__(self, memo: object) -> Configuration:
        return self

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return recall, (*self._home, self.state, self.memory, self.fresh)


def recall(module: str, qualname: str, state: str, memory: Memory, fresh: bool) -> Configuration:
    """Find the configuration of an assembled class again (used by pickle and copy)."""
    found: Any = sys.modules[module]
    for part in qualname.split("."):
        found = getattr(found, part)
    definition = getattr(found, DEFINITION)
    if fresh:
        initial: Configuration = definition.initial
        return initial
    configuration: Configuration = definition.configurations.remembering(state, memory)
    return configuration


class Configurations(Mapping[str, Configuration]):
    """The configurations of one machine by the word that records have for them.

    Args:
        tree: its states.
        home: module and qualified name of its class.
        restless: the set of states that a transition without an event leaves.
    """

    home: tuple[str, str]

    def __init__(self, tree: Tree, home: tuple[str, str], restless: int) -> None:
        self._tree, self.home, self._restless = tree, home, restless
        self._numbers = {node.name: node.number for node in tree.nodes}
        self._made: dict[tuple[int, Memory], Configuration] = {}
        self._words: dict[str, Configuration] = {}

    def of(self, active: int, memory: Memory) -> Configuration:
        """Return the configuration with these active states and memory."""
        found = self._made.get((active, memory))
        return self._make(active, memory) if found is None else found

    def _make(self, active: int, memory: Memory) -> Configuration:
        nodes = self._tree.nodes
        leaves = list(self._tree.leaves(active))
        made = self._made[active, memory] = Configuration(
            tuple(n.name for n in nodes if active >> n.number & 1 and n.number != ROOT),
            any(nodes[leaf].kind == "final" and nodes[leaf].ancestors[0] == ROOT for leaf in leaves),
            self.home,
            state=TOGETHER.join(nodes[leaf].name for leaf in leaves),
            active=active,
            memory=memory,
            restless=bool(active & self._restless),
        )
        return made

    def remembering(self, state: str, memory: Memory) -> Configuration:
        """Return the configuration for a record's word and memory.

        Raises:
            KeyError: the machine cannot be in it.
        """
        if len(memory) != len(self._tree.histories):
            raise KeyError(state)
        return self.of(self[state].active, memory)

    def memory(self, names: Mapping[str, tuple[str, ...]]) -> Memory:
        """Return what histories remember, out of what a record says.

        Raises:
            KeyError: there is no such state, or it is none that the history can remember.
        """
        sets: dict[int, int] = {}
        for name, states in names.items():
            history = self._numbers[name]
            allowed = self._tree.memorable(history)
            sets[history] = sum(1 << self._numbers[n] for n in states)
            if sets[history] & ~allowed:
                raise KeyError(f"{name} remembering {', '.join(states)}")
        return tuple(sets.get(history, 0) for history in self._tree.histories)

    def remembered(self, memory: Memory) -> dict[str, tuple[str, ...]]:
        """Return the same for a record."""
        nodes = self._tree.nodes
        return {
            nodes[history].name: tuple(nodes[n].name for n in numbers(states))
            for history, states in zip(self._tree.histories, memory, strict=True)
            if states
        }

    def __getitem__(self, state: str) -> Configuration:
        found = self._words.get(state)
        if found is None:
            leaves = 0
            for name in state.split(TOGETHER):
                leaves |= 1 << self._numbers[name]
            active = self._tree.grown(leaves)
            if not self._tree.is_legal(active) or active & self._tree.atoms != leaves:
                raise KeyError(state)
            found = self._words[state] = self.of(active, self._tree.nothing)
        return found

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the states."""
        return (node.name for node in self._tree.nodes if node.number != ROOT)

    def __len__(self) -> int:
        return len(self._tree.nodes) - 1
