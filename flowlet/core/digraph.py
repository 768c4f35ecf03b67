"""Directed graphs: order, generations, what comes before and after, paths, cycles, the critical path.

Law: pure. A graph is immutable and knows nodes and what follows each, nothing of definitions. Nodes come in the order
in which they were given, so that the same graph has the same answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec

from flowlet.core.faults import nearest
from flowlet.core.rows import are_places, count_before, find_components, find_paths, reach, sort_rows, walk_back
from flowlet.errors import CycleError, FlowletError

N = TypeVar("N", bound=Hashable)


class Timed(Protocol):
    """A report of a run, as far as it says how long its steps took."""

    @property
    def steps(self) -> Mapping[str, Any]: ...


class CriticalPath(msgspec.Struct, Generic[N], frozen=True):
    """The nodes that one after the other take longest.

    Attributes:
        nodes: from first to last.
        seconds: what they take together.
    """

    nodes: tuple[N, ...]
    seconds: float


class Digraph(Generic[N]):
    """A directed graph. Nodes are anything hashable.

    Args:
        successors: what follows each node. A node that only follows others need not be a key.

    Example:
        >>> from flowlet.traversal import Digraph
        >>> graph = Digraph({"write": ["check", "spell"], "check": ["print"], "spell": ["print"]})
        >>> graph.order()
        ['write', 'check', 'spell', 'print']
        >>> graph.generations()
        [('write',), ('check', 'spell'), ('print',)]
        >>> list(graph.paths("write", "print"))
        [('write', 'check', 'print'), ('write', 'spell', 'print')]
        >>> graph.successors("write"), graph.predecessors("spell")
        (('check', 'spell'), ('write',))
        >>> sorted(graph.ancestors("print")), sorted(graph.descendants("spell"))
        (['check', 'spell', 'write'], ['print'])
        >>> loop = Digraph({"try": ["fail"], "fail": ["try", "give up"]})
        >>> list(loop.cycles()), loop.cycle_of("fail")
        ([('try', 'fail')], ('fail', 'try'))
        >>> loop.components()
        [('try', 'fail'), ('give up',)]
    """

    __slots__ = ("_before", "_names", "_places", "_rows")

    def __init__(self, successors: Mapping[N, Iterable[N]]) -> None:
        names = list(successors)
        named = list(map(list, successors.values()))
        places = dict(zip(names, range(len(names)), strict=True))
        try:
            if names == list(range(len(names))) and are_places(named, len(names)):
                rows = cast("list[list[int]]", named)  # they are called what their places are
            else:
                rows = [list(map(places.__getitem__, row)) for row in named]
        except KeyError:  # some only follow others
            names = list(dict.fromkeys(chain(names, *named)))
            places = dict(zip(names, range(len(names)), strict=True))
            rows = [list(map(places.__getitem__, row)) for row in named]
            rows += [[] for _ in range(len(names) - len(rows))]
        self._names, self._places, self._rows = names, places, rows
        self._before: list[list[int]] | None = None

    @property
    def nodes(self) -> tuple[N, ...]:
        """All nodes, in the order in which they were given."""
        return tuple(self._names)

    @property
    def edges(self) -> tuple[tuple[N, N], ...]:
        """All edges, as (from, to)."""
        names = self._names
        return tuple((names[i], names[j]) for i, row in enumerate(self._rows) for j in row)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, node: object) -> bool:
        return node in self._places

    def __repr__(self) -> str:
        return f"<Digraph of {len(self)} nodes and {sum(map(len, self._rows))} edges>"

    def successors(self, node: N) -> tuple[N, ...]:
        """Return what follows a node directly."""
        return self._named(dict.fromkeys(self._rows[self._place(node)]))

    def predecessors(self, node: N) -> tuple[N, ...]:
        """Return what a node follows directly."""
        return self._named(dict.fromkeys(self._backward()[self._place(node)]))

    # -------------------------------------------------------------- order
    def order(self) -> list[N]:
        """Return the nodes so that each comes before all that follow it (Kahn, 1962).

        Raises:
            CycleError: there is a cycle.
        """
        rows = self._rows
        order = sort_rows(rows)
        if len(order) < len(rows):
            raise self._cyclic()
        return list(map(self._names.__getitem__, order))

    def generations(self) -> list[tuple[N, ...]]:
        """Return the nodes in layers: first those that follow nothing, then those that follow just these ...

        Raises:
            CycleError: there is a cycle.
        """
        rows = self._rows
        left = count_before(rows)
        layer = [node for node, count in enumerate(left) if not count]
        layers: list[list[int]] = []
        placed = 0
        while layer:
            layers.append(layer)
            placed += len(layer)
            following: list[int] = []
            for node in layer:
                for after in rows[node]:
                    left[after] -= 1
                    if not left[after]:
                        following.append(after)
            layer = following
        if placed < len(rows):
            raise self._cyclic()
        return [self._named(layer) for layer in layers]

    # -------------------------------------------------------------- reach
    def ancestors(self, node: N) -> set[N]:
        """Return the nodes that lead to a node; itself only if it lies in a cycle."""
        return set(self._named(reach(self._backward(), self._place(node))))

    def descendants(self, node: N) -> set[N]:
        """Return the nodes that a node leads to; itself only if it lies in a cycle."""
        return set(self._named(reach(self._rows, self._place(node))))

    # -------------------------------------------------------------- paths and cycles
    def paths(self, start: N, end: N, *, limit: int | None = 1000) -> Iterator[tuple[N, ...]]:
        """Yield the paths from a node to another one that pass no node twice.

        Args:
            limit: at most so many, since there may be very many; None for all.
        """
        first, last = self._place(start), self._place(end)
        useful = reach(self._backward(), last) | {last}
        if first == last or first not in useful:
            return iter([(start,)][: limit if first == last else 0])
        winds = len(sort_rows(self._rows)) < len(self._rows)
        return map(self._named, islice(find_paths(self._rows, first, last, useful, winds), limit))

    def cycles(self, *, limit: int | None = 1000) -> Iterator[tuple[N, ...]]:
        """Yield the cycles that pass no node twice, each once, from the first of its nodes on.

        Args:
            limit: at most so many, since there may be very many; None for all.
        """
        return map(self._named, islice(self._all_cycles(), limit))

    def _all_cycles(self) -> Iterator[tuple[int, ...]]:
        for component in find_components(self._rows):
            inside = set(component)
            for start in sorted(component):
                if start in self._rows[start]:
                    yield (start,)
                for after in dict.fromkeys(self._rows[start]):
                    if after in inside and after != start:
                        yield from ((start, *path[:-1]) for path in find_paths(self._rows, after, start, inside, True))
                inside.discard(start)  # what follows does without it

    def cycle_of(self, node: N) -> tuple[N, ...]:
        """Return a shortest cycle that a node lies in, from it on; nothing if it lies in none."""
        start = self._place(node)
        came: dict[int, int] = {}
        queue = deque([start])
        while queue:
            at = queue.popleft()
            for after in self._rows[at]:
                if after == start:
                    return self._named(walk_back(came, start, at))
                if after not in came:
                    came[after] = at
                    queue.append(after)
        return ()

    def components(self) -> list[tuple[N, ...]]:
        """Return the groups of nodes that lead to each other, each before those that follow it (Tarjan, 1972)."""
        return [self._named(sorted(component)) for component in reversed(find_components(self._rows))]

    # -------------------------------------------------------------- the critical path
    def critical_path(self, durations: Mapping[N, float] | Timed) -> CriticalPath[N]:
        """Return the nodes that one after the other take longest: what is to be made faster first.

        Nodes that lie in a cycle with each other count as one, which takes as long as all of them together.

        Args:
            durations: seconds by node, 0 for those that are missing; or the report of a run, where all that was done
                for a node counts.

        Example:
            >>> from flowlet.traversal import Digraph
            >>> graph = Digraph({"write": ["check", "spell"], "check": ["print"], "spell": ["print"]})
            >>> graph.critical_path({"write": 2, "check": 1, "spell": 5, "print": 1})
            CriticalPath(nodes=('write', 'spell', 'print'), seconds=8.0)
        """
        seconds = self._durations(durations)
        groups = list(reversed(find_components(self._rows)))
        home = {node: place for place, group in enumerate(groups) for node in group}
        best = [sum(seconds[node] for node in group) for group in groups]
        own, came = list(best), [-1] * len(groups)
        for place, group in enumerate(groups):
            for after in {home[after] for node in group for after in self._rows[node]} - {place}:
                if best[place] + own[after] > best[after]:
                    best[after], came[after] = best[place] + own[after], place
        at = max(range(len(groups)), key=best.__getitem__, default=-1)
        total = best[at] if at >= 0 else 0.0
        path: list[int] = []
        while at >= 0:
            path[:0] = sorted(groups[at])
            at = came[at]
        return CriticalPath(self._named(path), total)

    def _durations(self, durations: Mapping[N, float] | Timed) -> list[float]:
        found = [0.0] * len(self._names)
        if isinstance(durations, Mapping):
            for node, taken in durations.items():
                found[self._place(node)] = float(taken)
            return found
        for key, step in durations.steps.items():
            for name in (key, key.partition("#")[0].partition("[")[0]):  # `clean#2` and `clean[0]` are of `clean`
                place = self._places.get(cast("N", name))
                if place is not None:
                    found[place] += step.seconds
                    break
        return found

    # -------------------------------------------------------------- inside
    def _place(self, node: N) -> int:
        place = self._places.get(node)
        if place is None:
            hint = nearest(node, [n for n in self._names if isinstance(n, str)]) if isinstance(node, str) else ""
            raise FlowletError(f"the graph has no node {node!r}{hint}")
        return place

    def _named(self, places: Iterable[int]) -> tuple[N, ...]:
        return tuple(map(self._names.__getitem__, places))

    def _backward(self) -> list[list[int]]:
        if self._before is None:
            before: list[list[int]] = [[] for _ in self._rows]
            for node, row in enumerate(self._rows):
                for after in row:
                    before[after].append(node)
            self._before = before
        return self._before

    def _cyclic(self) -> CycleError:
        return CycleError(tuple(map(str, next(self.cycles(limit=1)))))
