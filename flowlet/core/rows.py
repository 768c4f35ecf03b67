"""Graphs as rows of numbers: for each node, what follows it. The algorithms behind `Digraph`.

Law: pure, and without recursion, so that no graph is too deep. Numbers only: names are somebody else's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any


def are_places(rows: list[list[Any]], size: int) -> bool:
    """Tell whether rows are made of numbers below a size."""
    found = set(chain.from_iterable(rows))
    return set(map(type, found)) <= {int} and all(0 <= node < size for node in found)


def count_before(rows: Sequence[Sequence[int]]) -> list[int]:
    """Count what leads to each node."""
    left = [0] * len(rows)
    for row in rows:
        for after in row:
            left[after] += 1
    return left


def sort_rows(rows: Sequence[Sequence[int]]) -> list[int]:
    """Return the nodes that can be ordered, in order."""
    left = count_before(rows)
    order = [node for node, count in enumerate(left) if not count]
    add = order.append
    for node in order:  # which grows meanwhile
        for after in rows[node]:
            left[after] -= 1
            if not left[after]:
                add(after)
    return order


def reach(rows: list[list[int]], start: int, avoid: Collection[int] = ()) -> set[int]:
    """Return what can be reached from a node by at least one edge."""
    found: set[int] = set()
    stack = [start]
    while stack:
        for after in rows[stack.pop()]:
            if after not in found and after not in avoid:
                found.add(after)
                stack.append(after)
    return found


def find_paths(
    rows: list[list[int]], start: int, end: int, inside: Collection[int], winds: bool
) -> Iterator[tuple[int, ...]]:
    """Yield paths by depth-first search, never in vain: a step is taken only if the end can still be reached.

    Args:
        inside: nodes to keep to; all of them lead to the end.
        winds: there may be cycles, so that what leads to the end may do so only by way of the path itself.
    """
    path = [start]
    on_path = {start}

    def following(at: int) -> Iterator[int]:
        for after in dict.fromkeys(rows[at]):
            is_open = after in inside and after not in on_path
            if after == end or (is_open and (not winds or _leads(rows, after, end, inside, on_path))):
                yield after

    stack = [following(start)]
    while stack:
        after = next(stack[-1], None)
        if after is None:
            stack.pop()
            on_path.discard(path.pop())
        elif after == end:
            yield (*path, end)
        else:
            path.append(after)
            on_path.add(after)
            stack.append(following(after))


def _leads(rows: list[list[int]], start: int, end: int, inside: Collection[int], avoid: set[int]) -> bool:
    stack, seen = [start], {start}
    while stack:
        for after in rows[stack.pop()]:
            if after == end:
                return True
            if after not in seen and after not in avoid and after in inside:
                seen.add(after)
                stack.append(after)
    return False


def walk_back(came: Mapping[int, int], start: int, end: int) -> list[int]:
    path = [end]
    while path[-1] != start:
        path.append(came[path[-1]])
    return path[::-1]


def find_components(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the strongly connected components, those that follow others first (Tarjan, 1972, without recursion)."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    open_nodes: list[int] = []
    is_open = bytearray(len(rows))
    found: list[list[int]] = []
    for root in range(len(rows)):
        if root in number:
            continue
        work = [(root, iter(rows[root]))]
        number[root] = low[root] = len(number)
        open_nodes.append(root)
        is_open[root] = 1
        while work:
            node, following = work[-1]
            for after in following:
                if after not in number:
                    number[after] = low[after] = len(number)
                    open_nodes.append(after)
                    is_open[after] = 1
                    work.append((after, iter(rows[after])))
                    break
                if is_open[after]:
                    low[node] = min(low[node], number[after])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == number[node]:
                    component: list[int] = []
                    while not component or component[-1] != node:
                        component.append(open_nodes.pop())
                        is_open[component[-1]] = 0
                    found.append(component)
    return found
