"""The algebra of nested states: what a set of transitions exits and enters.

Law: pure functions of W3C SCXML's algorithm (https://www.w3.org/TR/scxml/#AlgorithmforSCXMLInterpretation), over
integers. States are numbered in document order, the root is 0; a set of states is an integer with a bit for each, so
that union, intersection and "in document order" cost next to nothing. What histories remember is a tuple of sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import msgspec

ROOT = 0

Kind: TypeAlias = Literal["atomic", "compound", "parallel", "final", "shallow", "deep"]
"""What a state is; the last two are histories, which are never active themselves."""

Memory: TypeAlias = tuple[int, ...]
"""For each history state, in document order, the set of states it remembers; 0 for none yet."""


class Node(msgspec.Struct, frozen=True, eq=False):
    """One state in its place.

    Attributes:
        number: its place in document order; the root is 0.
        ancestors: from the parent up to the root.
        children: real states, in document order.
        histories: history states among its children.
        below: the set of its proper descendants.
        default: where entering it leads when nothing below is targeted; of a history, when it remembers nothing.
    """

    number: int
    name: str
    kind: Kind
    ancestors: tuple[int, ...]
    children: tuple[int, ...]
    histories: tuple[int, ...]
    below: int
    default: tuple[int, ...]


class Arrow(msgspec.Struct, frozen=True):
    """A transition, as far as the algebra cares.

    Attributes:
        targets: none for one that stays where it is.
        internal: does not exit its source if that is compound and all targets are below it.
    """

    source: int
    targets: tuple[int, ...]
    internal: bool = False


class Step(msgspec.Struct, frozen=True):
    """What a set of transitions does to a configuration.

    Attributes:
        exits: states to exit, inner ones first.
        enters: states to enter, outer ones first.
        active: the set of active states afterwards.
        memory: what histories remember afterwards.
    """

    exits: tuple[int, ...]
    enters: tuple[int, ...]
    active: int
    memory: Memory


class Tree:
    """The states of one machine.

    Args:
        nodes: by number.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes: tuple[Node, ...] = tuple(nodes)
        self.histories: tuple[int, ...] = tuple(n.number for n in nodes if n.kind in ("shallow", "deep"))
        self._place = {number: place for place, number in enumerate(self.histories)}
        self.atoms: int = sum(1 << n.number for n in nodes if n.kind in ("atomic", "final"))
        self.nothing: Memory = (0,) * len(self.histories)

    # What is active -----------------------------------------------------------------------------
    def start(self) -> Step:
        """Return what entering the machine enters."""
        return self._moved((Arrow(ROOT, self.nodes[ROOT].default),), 0, 0, self.nothing)

    def leaves(self, active: int) -> Iterator[int]:
        """Iterate over the active atomic states, in document order."""
        return numbers(active & self.atoms)

    def grown(self, leaves: int) -> int:
        """Return the set of some states and all above them."""
        for number in numbers(leaves):
            for above in self.nodes[number].ancestors:
                leaves |= 1 << above
        return leaves

    def is_legal(self, active: int) -> bool:
        """Say whether a machine can be in these states and no others."""
        if not active & 1 or any(active >> h & 1 for h in self.histories):
            return False
        for number in numbers(active):
            node = self.nodes[number]
            if number != ROOT and not active >> node.ancestors[0] & 1:
                return False
            present = sum(active >> child & 1 for child in node.children)
            wanted = {"compound": 1, "parallel": len(node.children)}.get(node.kind, 0)
            if present != wanted:
                return False
        return True

    def is_done(self, number: int, active: int) -> bool:
        """Say whether a compound has a final child active, or all regions of a parallel state are done."""
        node = self.nodes[number]
        if node.kind == "compound":
            return any(active >> c & 1 and self.nodes[c].kind == "final" for c in node.children)
        return node.kind == "parallel" and all(self.is_done(c, active) for c in node.children)

    def can_be_done(self, number: int) -> bool:
        """Say whether a state has what it takes to be done: a final child, or regions that all have one."""
        node = self.nodes[number]
        if node.kind == "compound":
            return any(self.nodes[child].kind == "final" for child in node.children)
        return node.kind == "parallel" and all(map(self.can_be_done, node.children))

    def done(self, entered: int, active: int) -> list[int]:
        """Return the states that are done by entering a final state, inner one first.

        Args:
            active: with the states entered so far, so that a parallel state is done by its last region.
        """
        parent = self.nodes[entered].ancestors[0]
        if parent == ROOT:
            return []
        above = self.nodes[parent].ancestors[0]
        is_last = self.nodes[above].kind == "parallel" and self.is_done(above, active)
        return [parent, above] if is_last else [parent]

    # Transitions --------------------------------------------------------------------------------
    def exits(self, arrows: Sequence[Arrow], active: int, memory: Memory) -> int:
        """Return the set of active states that transitions exit."""
        found = 0
        for arrow in arrows:
            domain = self.domain(arrow, memory)
            if domain is not None:
                found |= active & self.nodes[domain].below
        return found

    def domain(self, arrow: Arrow, memory: Memory) -> int | None:
        """Return the state below which everything is exited; None when nothing is."""
        targets = self.effective(arrow.targets, memory)
        if not targets:
            return None
        source = self.nodes[arrow.source]
        if arrow.source == ROOT:
            return ROOT
        if arrow.internal and source.kind == "compound" and all(source.below >> t & 1 for t in targets):
            return arrow.source
        return self._common(arrow.source, targets)

    def compatible(self, arrows: Sequence[Arrow], active: int, memory: Memory) -> list[int]:
        """Choose among enabled transitions those that can be taken together.

        Of two that exit a common state, the one whose source is a descendant of the other's is preferred, else the
        one that comes first.

        Returns:
            Places in ``arrows``.
        """
        exited = [self.exits((a,), active, memory) for a in arrows]
        kept: list[int] = []
        for place, arrow in enumerate(arrows):
            beaten: list[int] = []
            for other in kept:
                if not exited[place] & exited[other]:
                    continue
                if not self.nodes[arrows[other].source].below >> arrow.source & 1:
                    break
                beaten.append(other)
            else:
                kept = [k for k in kept if k not in beaten] + [place]
        return kept

    def step(self, arrows: Sequence[Arrow], active: int, memory: Memory) -> Step:
        """Work out what taking transitions together does."""
        exits = self.exits(arrows, active, memory)
        return self._moved(arrows, exits, active & ~exits, self._remembered(exits, active, memory))

    def _moved(self, arrows: Sequence[Arrow], exits: int, remaining: int, memory: Memory) -> Step:
        entered = _Entering(self, memory)
        for arrow in arrows:
            entered.follow(arrow)
        enters = entered.states & ~remaining
        inner_first = tuple(sorted(numbers(exits), reverse=True))
        return Step(inner_first, tuple(numbers(enters)), remaining | enters | 1 << ROOT, memory)

    def _remembered(self, exits: int, active: int, memory: Memory) -> Memory:
        """Return what histories remember after states were exited."""
        if not self.histories:
            return memory
        known = list(memory)
        for number in numbers(exits):
            for history in self.nodes[number].histories:
                known[self._place[history]] = self._worth(history, number, active)
        return tuple(known)

    def _worth(self, history: int, parent: int, active: int) -> int:
        if self.nodes[history].kind == "deep":
            return active & self.nodes[parent].below & self.atoms
        return sum(active & 1 << child for child in self.nodes[parent].children)

    def effective(self, targets: Sequence[int], memory: Memory) -> tuple[int, ...]:
        """Put what histories stand for in their place."""
        if not any(t in self._place for t in targets):
            return tuple(targets)
        found: list[int] = []
        for target in targets:
            place = self._place.get(target)
            if place is None:
                found.append(target)
            elif memory[place]:
                found.extend(numbers(memory[place]))
            else:
                found.extend(self.effective(self.nodes[target].default, memory))
        return tuple(dict.fromkeys(found))

    def memorable(self, history: int) -> int:
        """Return the set of states that a history can remember; none for what is no history."""
        if history not in self._place:
            return 0
        parent = self.nodes[history].ancestors[0]
        return self._worth(history, parent, -1)

    def recalled(self, history: int, memory: Memory) -> int:
        """Return the set of states that a history remembers."""
        return memory[self._place[history]]

    def _common(self, source: int, targets: Sequence[int]) -> int:
        """Return the nearest state around all of them.

        The standard's pseudo-code passes over parallel states here, so that a region that is left for itself takes the
        parallel state with it. Its public test cases, and most implementations, keep that state and enter all its
        regions anew; so does this.
        """
        for above in self.nodes[source].ancestors:
            if all(self.nodes[above].below >> t & 1 for t in targets):
                return above
        return ROOT


class _Entering:
    """The states that transitions enter, collected as the standard's ``computeEntrySet`` does."""

    def __init__(self, tree: Tree, memory: Memory) -> None:
        self._tree, self._nodes, self._memory = tree, tree.nodes, memory
        self.states = 0

    def follow(self, arrow: Arrow) -> None:
        for target in arrow.targets:
            self._down(target)
        domain = self._tree.domain(arrow, self._memory)
        for target in self._tree.effective(arrow.targets, self._memory):
            self._up(target, domain)
        if domain is not None and self._nodes[domain].kind == "parallel":
            self._regions(self._nodes[domain])

    def _down(self, number: int) -> None:
        node = self._nodes[number]
        if node.kind in ("shallow", "deep"):
            remembered = self._tree.recalled(number, self._memory)
            self._to(tuple(numbers(remembered)) or node.default, node.ancestors[0])
            return
        self.states |= 1 << number
        if node.kind == "compound":
            self._to(node.default, number)
        elif node.kind == "parallel":
            self._regions(node)

    def _to(self, targets: Sequence[int], above: int) -> None:
        for target in targets:
            self._down(target)
        for target in targets:
            self._up(target, above)

    def _up(self, number: int, below: int | None) -> None:
        """Enter the ancestors of a state up to, and without, one of them, with all their regions."""
        for above in self._nodes[number].ancestors:
            if above == below:
                return
            self.states |= 1 << above
            if self._nodes[above].kind == "parallel":
                self._regions(self._nodes[above])

    def _regions(self, node: Node) -> None:
        for child in node.children:
            if not self.states & (self._nodes[child].below | 1 << child):
                self._down(child)


def numbers(states: int) -> Iterator[int]:
    """Iterate over the members of a set, in document order."""
    while states:
        lowest = states & -states
        yield lowest.bit_length() - 1
        states ^= lowest
