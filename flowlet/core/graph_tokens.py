"""The tokens of a graph's run: where they are, which joins may go ahead, and what came before what.

Law: pure. Every edge that is taken carries a token to its target. A node that waits for all fires when nothing that is
active can still reach it; one that waits for any, or for n, fires at once, and what was on its way there meanwhile ends
there. What is decided depends on the order of the calls only, never on how many came together.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from flowlet.core.rows import find_components

ALL = 0
"""The ``join`` of a node that waits for all; any other number is how many it waits for."""


class Firing(msgspec.Struct, eq=False, gc=False):
    """One execution of a node.

    Attributes:
        past: the executions that this one follows from, as a set of bits.
        own: its own bit.
        late: the nodes at which its tokens end, as a set of bits: these have gone ahead without waiting for it.
        key: what it is called in the journal, once it has been started.
    """

    node: int
    past: int
    own: int
    late: int
    key: str = ""


class Waiting(msgspec.Struct, eq=False):
    """The tokens that wait at a node.

    Attributes:
        age: the order in which the first of them came.
        past, late: as of the execution that they become. Late is only what comes of nothing but late tokens.
        blocker: what can still reach this one: an active node, or what is late; None if that is not known.
    """

    node: int
    age: int
    count: int
    past: int
    late: int
    blocker: Active | int | None = None


Active = Firing | Waiting


class Reach:
    """What leads where: worked out when first asked, since most graphs never wait."""

    __slots__ = ("_ancestors", "_rows", "_ways")

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self._rows = rows
        self._ancestors: list[int] = []
        self._ways: dict[tuple[int, int], int] = {}

    @property
    def ancestors(self) -> list[int]:
        """For each node those that lead to it, without itself, as a set of bits."""
        if not self._ancestors:
            self._ancestors = self._work_out()
        return self._ancestors

    def onward(self, node: int, late: int) -> int:
        """Return the nodes that a token can come to from a node, without those where it is late and ends."""
        found = self._ways.get((node, late))
        if found is None:
            found, stack = 0, [node]
            while stack:
                for after in self._rows[stack.pop()]:
                    if not (found | late) >> after & 1:
                        found |= 1 << after
                        stack.append(after)
            self._ways[node, late] = found
        return found

    def _work_out(self) -> list[int]:
        ancestors = [0] * len(self._rows)
        for group in reversed(find_components(self._rows)):  # those before others first
            # Whatever leads to one node of a cycle leads to all of them.
            together = 0
            for node in group:
                together |= ancestors[node] | 1 << node
            for node in group:
                ancestors[node] |= together
                for after in self._rows[node]:
                    ancestors[after] |= together
        return [before & ~(1 << node) for node, before in enumerate(ancestors)]


class Tokens:
    """The tokens of one run.

    Args:
        joins: for each node how many tokens it waits for, or `ALL`.
        reach: what leads where in the graph.
    """

    __slots__ = (
        "_active",
        "_ages",
        "_ancestors",
        "_blocked",
        "_counts",
        "_firings",
        "_fresh",
        "_joins",
        "_late",
        "_next",
        "_reach",
        "_waiting",
    )

    def __init__(self, joins: Sequence[int], reach: Reach) -> None:
        self._joins = joins
        self._reach = reach
        self._waiting: dict[int, Waiting] = {}
        self._firings: dict[Firing, None] = {}
        # Where something executes or waits that is late nowhere: how much, and these nodes as a set of bits.
        self._counts: dict[int, int] = {}
        self._active = 0
        self._late: dict[Active, None] = {}  # the others
        self._ancestors: list[int] = []  # of `Reach`, when they are needed
        self._fresh: list[int] = []  # nodes that may be able to fire
        self._blocked: dict[Active | int, list[int]] = {}  # by what blocks them
        self._ages = 0
        self._next = 1  # the bit of the next execution

    @property
    def is_lone(self) -> bool:
        """Whether one node executes and no token waits."""
        return len(self._firings) == 1 and not self._waiting

    def __bool__(self) -> bool:
        return bool(self._firings or self._waiting)

    def begin(self, nodes: Sequence[int]) -> Sequence[Firing]:
        """Send the first tokens; return what executes because of them."""
        self._send(nodes, 0, 0)
        return self._advance()

    def hand_on(self, firing: Firing, nodes: Sequence[int]) -> Sequence[Firing]:
        """Take note that an execution has ended and sends tokens on; return what executes because of that."""
        past, late = firing.past | firing.own, firing.late
        if len(nodes) == 1 and not late and not self._waiting and len(self._firings) == 1:
            # The usual case in one piece: one token, which goes on and meets nothing.
            node = nodes[0]
            following = Firing(node, past, self._next, 0)
            self._next <<= 1
            self._firings = {following: None}
            self._counts = {node: 1}
            self._active = 1 << node
            return (following,)
        self._send(nodes, past, late)
        del self._firings[firing]
        self._leave(firing)
        return self._advance() if self._fresh or not self._firings else ()

    def _send(self, nodes: Sequence[int], past: int, late: int) -> None:
        """Have a token arrive at each of these nodes.

        Args:
            past, late: as of the execution that sends them, which is part of the past.
        """
        all_waiting, counts = self._waiting, self._counts
        for node in nodes:
            if late and late >> node & 1:
                continue
            waiting = all_waiting.get(node)
            if waiting is None:
                waiting = all_waiting[node] = Waiting(node, self._ages, 1, past, late)
                self._ages += 1
                if late:
                    self._late[waiting] = None
                else:
                    count = counts[node] = counts.get(node, 0) + 1
                    if count == 1:
                        self._active |= 1 << node
                self._fresh.append(node)
                continue
            waiting.count += 1
            waiting.past |= past
            if waiting.late & ~late:
                self._leave(waiting)
                waiting.late &= late
                self._enter(waiting)
            if self._joins[node]:  # what waits for all is no nearer to that
                self._fresh.append(node)

    def _advance(self) -> list[Firing]:
        """Let the nodes execute that now can, and return their executions in the order of their tokens."""
        fired: list[Firing] = []
        while fresh := self._fresh:
            self._fresh = []
            ready = [node for node in fresh if self._may_fire(node)]
            if len(ready) > 1:
                ready = sorted(dict.fromkeys(ready), key=self._age)
            for node in ready:
                fired.append(self._fire(node))
        if not self._firings and self._waiting:  # they wait for each other: the oldest goes ahead
            fired.append(self._fire(min(self._waiting, key=self._age)))
            fired += self._advance()  # what it has left behind may have been waited for
        return fired

    def _age(self, node: int) -> int:
        return self._waiting[node].age

    def _may_fire(self, node: int) -> bool:
        waiting = self._waiting.get(node)
        if waiting is None:
            return False
        join = self._joins[node]
        if join and waiting.count >= join:
            return True
        blocker = waiting.blocker
        if blocker is not None and (self._counts[blocker] if isinstance(blocker, int) else blocker in self._late):
            return False
        if len(self._waiting) == 1 and not self._firings:
            return True
        if not self._ancestors:
            self._ancestors = self._reach.ancestors
        before = self._active & self._ancestors[node]
        if before:
            # It is looked at again when just this one is in the way no more: of nodes in their order, likely the last.
            waiting.blocker = blocker = before.bit_length() - 1
        elif self._late:
            waiting.blocker = blocker = self._find_late(node)
        else:
            return True
        if blocker is None:
            return True
        blocked = self._blocked.get(blocker)
        if blocked is None:
            self._blocked[blocker] = [node]
        else:
            blocked.append(node)
        return False

    def _find_late(self, node: int) -> Active | None:
        """Return something late that can come to a node all the same."""
        for other in self._late:
            if other.node != node and self._reach.onward(other.node, other.late) >> node & 1:
                return other
        return None

    def _fire(self, node: int) -> Firing:
        waiting = self._waiting.pop(node)
        if self._joins[node] and (self._waiting or self._firings):
            self._leave_behind(node)
        firing = Firing(node, waiting.past, self._next, waiting.late)
        self._next <<= 1
        self._firings[firing] = None
        if waiting.late:  # otherwise the node is as active as it was
            self._enter(firing)
            self._leave(waiting)
        return firing

    def _leave_behind(self, node: int) -> None:
        """Have what is still on its way to a node that did not wait for it end there."""
        bit, before = 1 << node, self._reach.ancestors[node]
        others: list[Active] = [*self._firings, *self._waiting.values()]
        for other in others:
            if before >> other.node & 1 and not other.late & bit:
                self._leave(other)
                other.late |= bit
                self._enter(other)

    def _enter(self, item: Active) -> None:
        """Count something that executes or waits now."""
        if item.late:
            self._late[item] = None
            return
        node = item.node
        count = self._counts.get(node, 0)
        self._counts[node] = count + 1
        if not count:
            self._active |= 1 << node

    def _leave(self, item: Active) -> None:
        """Count something no more; what it was in the way of is looked at again."""
        if item.late:
            del self._late[item]
            self._fresh += self._blocked.pop(item, ())
            return
        node = item.node
        count = self._counts[node] = self._counts[node] - 1
        if not count:
            self._active ^= 1 << node
            if node in self._blocked:
                self._fresh += self._blocked.pop(node)

    def forget_past(self, firing: Firing) -> None:
        """Begin to count executions anew: the only one there is follows from all that are of interest."""
        firing.past, firing.own, self._next = 0, 1, 2
