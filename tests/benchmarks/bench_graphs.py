"""What a graph adds to the work of its nodes, and how fast graphs are put in order.

Run it: ``python tests/benchmarks/bench_graphs.py``. Each line measures flowlet, what one would write by hand, and,
where they are installed, others, in turns in the same process, so that a noisy machine disturbs all of them. Nodes do
nothing, or sleep for a millisecond as nodes that wait for something do. By hand and the others keep no journal; flowlet
does, in memory.
"""

from __future__ import annotations

import argparse
import gc
import graphlib
import importlib
import importlib.util
import itertools
import operator
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, TypedDict

import anyio
from msgspec import Struct

from flowlet import Flowlet, Registry
from flowlet.graph import Graph
from flowlet.traversal import Digraph

registry = Registry()
NAP = 0.001
WIDTH = 100
Rows = list[list[int]]
Visit = Callable[..., Awaitable[Any]]


class Count(Struct):
    """The state. Nodes that do nothing do not change it."""

    total: Annotated[int, operator.add] = 0


async def nothing(state: Count) -> None: ...


async def nap(state: Count) -> None:
    await anyio.sleep(NAP)


async def count(state: Count) -> dict[str, int]:
    return {"total": 1}


# ---------------------------------------------------------------- the graphs
def line(size: int) -> Rows:
    return [[n + 1] for n in range(size - 1)] + [[]]


def layers(size: int) -> Rows:
    """Layers of nodes between a first and a last one; each node leads to three of the next layer."""
    rows: Rows = [[] for _ in range(size)]
    inner = list(range(1, size - 1))
    parts = [inner[n : n + WIDTH] for n in range(0, len(inner), WIDTH)]
    rows[0] = list(parts[0])
    for part, following in itertools.pairwise(parts):
        for place, node in enumerate(part):
            rows[node] = sorted({following[(place + step) % len(following)] for step in (0, 1, 7)})
    for node in range(1, size - 1):
        rows[node] = rows[node] or [size - 1]
    return rows


def draw(name: str, rows: Rows, visit: Visit) -> Graph[Count]:
    graph = registry.graph(name, state=Count)
    for number, row in enumerate(rows):
        graph.node(visit, name=f"n{number}")
        for target in row:
            graph.edge(f"n{number}", f"n{target}")
    graph.entry("n0")
    graph.final(f"n{len(rows) - 1}")
    return graph


# ---------------------------------------------------------------- by hand
def kahn(rows: Rows) -> list[int]:
    """As one would write it over lists."""
    left = [0] * len(rows)
    for row in rows:
        for target in row:
            left[target] += 1
    order = [node for node, before in enumerate(left) if before == 0]
    place = 0
    while place < len(order):
        for target in rows[order[place]]:
            left[target] -= 1
            if left[target] == 0:
                order.append(target)
        place += 1
    return order


def by_hand(rows: Rows, visit: Visit) -> Callable[[], Awaitable[Any]]:
    """Await node after node in their order."""

    async def run() -> Count:
        state = Count()
        for _ in kahn(rows):
            await visit(state)
        return state

    return run


def by_hand_together(rows: Rows, visit: Visit) -> Callable[[], Awaitable[Any]]:
    """Run what can run at once in a task group, layer by layer."""
    generations = Digraph(dict(enumerate(rows))).generations()

    async def run() -> Count:
        state = Count()
        for generation in generations:
            async with anyio.create_task_group() as group:
                for _ in generation:
                    group.start_soon(visit, state)
        return state

    return run


# ---------------------------------------------------------------- others
def in_langgraph(rows: Rows, pause: float) -> Callable[[], Awaitable[Any]]:
    from langgraph.graph import END, START, StateGraph

    async def visit(state: dict[str, Any]) -> dict[str, Any]:
        if pause:
            await anyio.sleep(pause)
        return {}

    class State(TypedDict):
        total: Annotated[int, operator.add]

    graph = StateGraph(State)
    before: list[list[int]] = [[] for _ in rows]
    for number, row in enumerate(rows):
        graph.add_node(f"n{number}", visit)
        for target in row:
            before[target].append(number)
    for number, sources in enumerate(before):
        if sources:
            graph.add_edge([f"n{n}" for n in sources] if len(sources) > 1 else f"n{sources[0]}", f"n{number}")
    graph.add_edge(START, "n0")
    graph.add_edge(f"n{len(rows) - 1}", END)
    compiled = graph.compile()

    async def run() -> Any:
        return await compiled.ainvoke({"total": 0}, {"recursion_limit": len(rows) + 10})

    return run


def in_pydantic_graph(size: int, pause: float) -> Callable[[], Awaitable[Any]]:
    builder = importlib.import_module("pydantic_graph").GraphBuilder(input_type=int, output_type=int)
    before = builder.start_node
    for place in range(size):

        async def visit(context: Any) -> int:
            if pause:
                await anyio.sleep(pause)
            return int(context.inputs)

        visit.__name__ = f"n{place}"
        added = builder.step(node_id=f"n{place}")(visit)
        builder.add(builder.edge_from(before).to(added))
        before = added
    builder.add(builder.edge_from(before).to(builder.end_node))
    graph = builder.build()
    return lambda: graph.run(inputs=1)


def is_there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


# ---------------------------------------------------------------- measuring
async def compare(title: str, calls: Mapping[str, Callable[[], Awaitable[Any]]], rounds: int, nodes: int) -> None:
    """Make each call in turns, and tell the median in microseconds, and beside the one by hand."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        await call()
    for _ in range(rounds):
        for name, call in calls.items():
            gc.collect()
            began = time.perf_counter()
            await call()
            found[name].append(time.perf_counter() - began)
    tell(title, found, nodes)


def compare_now(title: str, calls: Mapping[str, Callable[[], Any]], rounds: int, nodes: int) -> None:
    """Do as `compare`, for plain functions."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            gc.collect()
            began = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - began)
    tell(title, found, nodes)


def tell(title: str, found: Mapping[str, Sequence[float]], nodes: int) -> None:
    hand = found["by hand"]
    print(title)
    for name, seconds in found.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(seconds, hand, strict=True))
        middle = statistics.median(seconds) * 1e6
        print(f"    {name:32} {middle:12,.0f} µs {middle / nodes:10.3f} µs a node {ratio:10.2f}x")


async def measure(rounds: int, others: bool) -> None:
    size = 1000
    wide, narrow = layers(size), line(size)
    graphs = {
        "wide": draw("wide", wide, nothing),
        "narrow": draw("narrow", narrow, nothing),
        "changing": draw("changing", narrow, count),
        "naps": draw("naps", wide, nap),
    }
    async with Flowlet(registry=registry):
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "flowlet": lambda: graphs["wide"](Count()),
            "by hand": by_hand(wide, nothing),
        }
        if others and is_there("langgraph"):
            calls["langgraph"] = in_langgraph(wide, 0)
        await compare(f"{size:,} nodes that do nothing, in layers of {WIDTH}", calls, rounds, size)
        calls = {
            "flowlet": lambda: graphs["narrow"](Count()),
            "flowlet, each changes the state": lambda: graphs["changing"](Count()),
            "by hand": by_hand(narrow, nothing),
        }
        if others and is_there("pydantic_graph"):
            calls["pydantic-graph"] = in_pydantic_graph(size, 0)
        await compare(f"{size:,} nodes that do nothing, one after the other", calls, rounds, size)
        calls = {"flowlet": lambda: graphs["naps"](Count()), "by hand": by_hand_together(wide, nap)}
        if others and is_there("langgraph"):
            calls["langgraph"] = in_langgraph(wide, NAP)
        await compare(f"{size:,} nodes that sleep 1 ms, in layers of {WIDTH}", calls, max(1, rounds // 2), size)


def measure_order(rounds: int) -> None:
    size = 100_000
    rows = layers(size)
    mapping = dict(enumerate(rows))
    before: dict[int, list[int]] = {n: [] for n in mapping}
    for node, row in enumerate(rows):
        for target in row:
            before[target].append(node)
    graph = Digraph(mapping)
    assert graph.order() == kahn(rows)
    calls: dict[str, Callable[[], Any]] = {
        "by hand": lambda: kahn(rows),
        "flowlet": graph.order,
        "flowlet, and making the graph": lambda: Digraph(mapping).order(),
        "graphlib, and making the graph": lambda: list(graphlib.TopologicalSorter(before).static_order()),
    }
    if is_there("networkx"):
        import networkx

        theirs = networkx.DiGraph(mapping)
        calls["networkx"] = lambda: list(networkx.topological_sort(theirs))
        calls["networkx, and making the graph"] = lambda: list(networkx.topological_sort(networkx.DiGraph(mapping)))
    compare_now(f"putting {size:,} nodes with {sum(map(len, rows)):,} edges in order", calls, rounds, size)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=9, help="of each measurement (default: %(default)s)")
    arguments.add_argument("--alone", action="store_true", help="leave the others out that run graphs")
    options = arguments.parse_args()
    measure_order(options.rounds)
    anyio.run(measure, options.rounds, not options.alone)


if __name__ == "__main__":
    main()
