"""Directed graphs: what comes before and after what, against the definitions of these words."""

from __future__ import annotations

import copy
import graphlib
import itertools
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowlet.core.digraph import CriticalPath, Digraph
from flowlet.errors import CycleError, FlowletError

DIAMOND = {"a": ["b", "c"], "b": ["d"], "c": ["d"]}
LOOP = {"a": ["b"], "b": ["c", "a"], "c": ["d"], "d": ["b"]}


# ------------------------------------------------------------------ what it is made of
def test_nodes_and_edges_are_as_they_were_given() -> None:
    graph = Digraph({"a": ["c", "b"], "x": []})
    assert graph.nodes == ("a", "x", "c", "b")
    assert graph.edges == (("a", "c"), ("a", "b"))
    assert len(graph) == 4
    assert "b" in graph
    assert "y" not in graph
    assert graph.successors("a") == ("c", "b")
    assert graph.predecessors("b") == ("a",)
    assert repr(graph) == "<Digraph of 4 nodes and 2 edges>"


def test_a_row_may_be_an_iterator() -> None:
    assert Digraph({"a": iter(["b", "c"]), "b": iter(())}).edges == (("a", "b"), ("a", "c"))


@pytest.mark.parametrize("rows", [{0: [1], 1: [2]}, {0: [1.0], 1: []}, {0: [-1], 1: []}, {1: [0], 0: []}, {0: [True]}])
def test_nodes_may_be_numbers(rows: dict[Any, list[Any]]) -> None:
    graph = Digraph(rows)
    assert graph.edges == tuple((a, b) for a, row in rows.items() for b in row)
    assert graph.order() == list(dict.fromkeys([*rows, *(b for row in rows.values() for b in row)]))


def test_a_node_that_is_not_there() -> None:
    with pytest.raises(FlowletError, match="the graph has no node 'bb'; did you mean 'b'"):
        Digraph({"aa": ["b"], "b": []}).ancestors("bb")
    with pytest.raises(FlowletError, match="the graph has no node 7"):
        Digraph({1: [2]}).ancestors(7)


def test_an_empty_graph() -> None:
    graph: Digraph[str] = Digraph({})
    assert graph.order() == []
    assert graph.generations() == []
    assert list(graph.cycles()) == []
    assert graph.critical_path({}) == CriticalPath((), 0.0)


# ------------------------------------------------------------------ order
def test_order_and_generations() -> None:
    graph = Digraph(DIAMOND)
    assert graph.order() == ["a", "b", "c", "d"]
    assert graph.generations() == [("a",), ("b", "c"), ("d",)]


def test_a_cycle_has_no_order() -> None:
    with pytest.raises(CycleError, match="there is a cycle: a -> b -> a") as caught:
        Digraph(LOOP).order()
    assert caught.value.cycle == ("a", "b")
    assert pickle.loads(pickle.dumps(caught.value)).cycle == ("a", "b")  # noqa: S301 - our own
    assert copy.copy(caught.value).cycle == ("a", "b")
    with pytest.raises(CycleError):
        Digraph(LOOP).generations()
    with pytest.raises(CycleError, match="a -> a"):
        Digraph({"a": ["a"]}).order()


# ------------------------------------------------------------------ paths and cycles
def test_paths() -> None:
    assert list(Digraph(DIAMOND).paths("a", "d")) == [("a", "b", "d"), ("a", "c", "d")]
    assert list(Digraph(DIAMOND).paths("d", "a")) == []
    assert list(Digraph(DIAMOND).paths("a", "a")) == [("a",)]
    assert list(Digraph(LOOP).paths("a", "d")) == [("a", "b", "c", "d")]


def test_an_edge_that_is_there_twice_is_one_path() -> None:
    assert list(Digraph({"a": ["b", "b"]}).paths("a", "b")) == [("a", "b")]


def test_paths_are_bounded_and_come_one_by_one() -> None:
    ladder = {(n, side): [(n + 1, 0), (n + 1, 1)] for n in range(60) for side in (0, 1)}  # 2 ** 60 paths
    graph = Digraph(ladder)
    assert len(list(graph.paths((0, 0), (60, 0)))) == 1000
    assert len(list(graph.paths((0, 0), (60, 0), limit=7))) == 7
    endless = graph.paths((0, 0), (60, 0), limit=None)
    assert len({next(endless) for _ in range(1500)}) == 1500


def test_no_path_is_looked_for_in_vain() -> None:
    """A search that walks into every blind alley would not end here."""
    blind = {(n, side): [(n + 1, 0), (n + 1, 1)] for n in range(60) for side in (0, 1)}
    graph = Digraph({**blind, (0, 0): [*blind[0, 0], (99, 9)], (60, 0): [(0, 0)]})
    assert list(graph.paths((0, 0), (99, 9))) == [((0, 0), (99, 9))]
    assert list(graph.paths((5, 0), (99, 9), limit=3)) != []


def test_cycles() -> None:
    assert list(Digraph(LOOP).cycles()) == [("a", "b"), ("b", "c", "d")]
    assert list(Digraph({"a": ["a", "b"], "b": ["a"]}).cycles()) == [("a",), ("a", "b")]
    assert list(Digraph(DIAMOND).cycles()) == []
    full = Digraph({n: [m for m in range(12) if m != n] for n in range(12)})
    assert len(list(full.cycles())) == 1000
    assert len(list(full.cycles(limit=5))) == 5


def test_the_shortest_cycle_of_a_node() -> None:
    graph = Digraph({**LOOP, "e": ["a"]})
    assert graph.cycle_of("b") == ("b", "a")
    assert graph.cycle_of("d") == ("d", "b", "c")
    assert graph.cycle_of("e") == ()
    assert Digraph({"a": ["a"]}).cycle_of("a") == ("a",)


def test_components() -> None:
    assert Digraph({**LOOP, "e": ["a"], "d": ["b", "f"]}).components() == [("e",), ("a", "b", "c", "d"), ("f",)]


# ------------------------------------------------------------------ the critical path
def test_the_critical_path() -> None:
    path = Digraph(DIAMOND).critical_path({"a": 1, "b": 2, "c": 5, "d": 1})
    assert path == CriticalPath(("a", "c", "d"), 7.0)
    assert Digraph(DIAMOND).critical_path({}).seconds == 0.0
    with pytest.raises(FlowletError, match="no node 'e'"):
        Digraph(DIAMOND).critical_path({"e": 1})


def test_a_cycle_counts_as_one() -> None:
    path = Digraph({**LOOP, "d": ["b", "e"]}).critical_path({"a": 1, "b": 1, "c": 1, "d": 1, "e": 2})
    assert path == CriticalPath(("a", "b", "c", "d", "e"), 6.0)


def test_the_critical_path_of_a_report() -> None:
    keys = {"a": 1.0, "b": 2.0, "b#2": 2.0, "c[0]": 1.0, "c[1]": 4.0, "d": 1.0, "of another definition": 100.0}
    report = SimpleNamespace(steps={key: SimpleNamespace(seconds=seconds) for key, seconds in keys.items()})
    assert Digraph(DIAMOND).critical_path(report) == CriticalPath(("a", "c", "d"), 7.0)


# ------------------------------------------------------------------ against the definitions
def graphs(acyclic: bool) -> st.SearchStrategy[dict[int, list[int]]]:
    def build(size: int, pairs: list[tuple[int, int]]) -> dict[int, list[int]]:
        rows: dict[int, list[int]] = {n: [] for n in range(size)}
        for a, b in pairs:
            a, b = a % size, b % size
            if acyclic:
                a, b = min(a, b), max(a, b)
                if a == b:
                    continue
            rows[a].append(b)
        return rows

    number = st.integers(0, 6)
    return st.builds(build, st.integers(1, 7), st.lists(st.tuples(number, number), max_size=14))


@given(graphs(acyclic=True))
def test_order_of_any_graph_without_cycles(rows: dict[int, list[int]]) -> None:
    graph = Digraph(rows)
    order = graph.order()
    assert sorted(order) == sorted(rows)
    assert all(order.index(a) < order.index(b) for a, b in graph.edges)
    layers = graph.generations()
    home = {n: place for place, layer in enumerate(layers) for n in layer}
    assert sorted(home) == sorted(rows)
    assert all(home[n] == max((home[m] + 1 for m in graph.predecessors(n)), default=0) for n in rows)


@given(graphs(acyclic=False))
def test_cycles_of_any_graph(rows: dict[int, list[int]]) -> None:
    graph = Digraph(rows)
    cycles = list(graph.cycles())
    expected = {
        path
        for size in range(1, len(rows) + 1)
        for path in itertools.permutations(rows, size)
        if path[0] == min(path) and all(b in rows[a] for a, b in zip(path, (*path[1:], path[0]), strict=True))
    }
    assert len(cycles) == len(set(cycles))
    assert set(cycles) == expected
    try:
        graphlib.TopologicalSorter(rows).prepare()
    except graphlib.CycleError:
        assert cycles
    else:
        assert not cycles


@given(graphs(acyclic=False), st.integers(0, 6), st.integers(0, 6))
def test_reach_and_paths_of_any_graph(rows: dict[int, list[int]], a: int, b: int) -> None:
    a, b = a % len(rows), b % len(rows)
    graph = Digraph(rows)
    paths = list(graph.paths(a, b))
    inner = [n for n in rows if n not in (a, b)]
    expected = {
        (a, *way, b)
        for size in range(len(inner) + 1)
        for way in itertools.permutations(inner, size)
        if all(y in rows[x] for x, y in itertools.pairwise((a, *way, b)))
    }
    assert len(paths) == len(set(paths))
    assert set(paths) == ({(a,)} if a == b else expected)
    assert (b in graph.descendants(a)) == (a in graph.ancestors(b))
    if a != b:
        assert (b in graph.descendants(a)) == bool(paths)
    else:
        assert (a in graph.descendants(a)) == bool(graph.cycle_of(a))


@given(graphs(acyclic=False))
def test_components_of_any_graph(rows: dict[int, list[int]]) -> None:
    graph = Digraph(rows)
    components = graph.components()
    home = {n: place for place, group in enumerate(components) for n in group}
    assert sorted(home) == sorted(rows)
    assert all(home[a] <= home[b] for a, b in graph.edges)
    for a, b in itertools.permutations(rows, 2):
        assert (home[a] == home[b]) == (b in graph.descendants(a) and a in graph.descendants(b))


@given(graphs(acyclic=True), st.lists(st.integers(0, 5), min_size=7, max_size=7))
def test_the_critical_path_of_any_graph(rows: dict[int, list[int]], seconds: list[int]) -> None:
    graph = Digraph(rows)
    found = graph.critical_path({n: float(seconds[n]) for n in rows})
    longest = max(sum(seconds[n] for n in path) for a in rows for b in rows for path in graph.paths(a, b))
    assert found.seconds == longest == sum(seconds[n] for n in found.nodes)
    assert all(b in rows[a] for a, b in itertools.pairwise(found.nodes))
