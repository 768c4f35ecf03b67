"""What a pipeline adds to the work of its steps. Run it: ``python tests/benchmarks/bench_pipelines.py``.

Each line measures flowlet, what one would write by hand with anyio, and, where they are installed, langgraph and
pydantic-graph, in turns in the same process, so that a noisy machine disturbs all of them. Steps do nothing, or sleep
for a millisecond as steps that wait for something do. By hand and the others keep no journal; flowlet does, in memory.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import operator
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypedDict

import anyio

from flowlet import Flowlet, Registry, step

registry = Registry()
Call = Callable[[int], Awaitable[Any]]
NAP = 0.001
ITEMS = 100


async def plain(n: int) -> int:
    return n


async def nap(n: int) -> int:
    await anyio.sleep(NAP)
    return n


# ---------------------------------------------------------------- flowlet
def make(name: str, source: str | None, work: Callable[[int], Awaitable[int]]) -> Callable[..., Any]:
    """Make a step that takes the result of another one, or the input."""
    space: dict[str, Any] = {"work": work}
    exec(f"async def {name}({source or 'n'}: int) -> int:\n    return await work({source or 'n'})", space)
    made: Callable[..., Any] = step(space[name])
    return made


def make_join(name: str, sources: list[str]) -> Callable[..., Any]:
    space: dict[str, Any] = {}
    taken, added = ", ".join(f"{s}: int" for s in sources), " + ".join(sources)
    exec(f"async def {name}({taken}) -> int:\n    return {added}", space)
    made: Callable[..., Any] = step(space[name])
    return made


def chain(work: Callable[[int], Awaitable[int]], title: str) -> Call:
    names = ["alpha", "beta", "gamma", "delta", "omega"]
    steps = [make(name, names[i - 1] if i else None, work) for i, name in enumerate(names)]
    built: Call = registry.pipeline(title, *steps)
    return built


def fan(work: Callable[[int], Awaitable[int]], width: int, title: str) -> Call:
    middle = [f"m{i}" for i in range(width)]
    steps = [make("first", None, work), *(make(m, "first", work) for m in middle), make_join("last", middle)]
    built: Call = registry.pipeline(title, *steps)
    return built


async def numbers(n: int) -> list[int]:
    return list(range(ITEMS))


async def one(numbers: int) -> int:
    return numbers


async def total(one: list[int]) -> int:
    return sum(one)


each = registry.pipeline("each", numbers, one, total, each={one: "numbers"})


# ---------------------------------------------------------------- by hand
def chain_by_hand(work: Callable[[int], Awaitable[int]]) -> Call:
    async def run(n: int) -> int:
        return await work(await work(await work(await work(await work(n)))))

    return run


def fan_by_hand(work: Callable[[int], Awaitable[int]], width: int) -> Call:
    async def run(n: int) -> int:
        first = await work(n)
        found = [0] * width

        async def put(place: int) -> None:
            found[place] = await work(first)

        async with anyio.create_task_group() as group:
            for place in range(width):
                group.start_soon(put, place)
        return sum(found)

    return run


async def each_by_hand(n: int) -> int:
    return sum([await plain(i) for i in range(ITEMS)])


# ---------------------------------------------------------------- others
def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def chain_by_langgraph(work: Callable[[int], Awaitable[int]]) -> Call:
    langgraph = importlib.import_module("langgraph.graph")

    class State(TypedDict):
        n: int

    async def node(state: State) -> State:
        return {"n": await work(state["n"])}

    builder = langgraph.StateGraph(State)
    names = [f"s{i}" for i in range(5)]
    for name in names:
        builder.add_node(name, node)
    for before, after in zip([langgraph.START, *names], [*names, langgraph.END], strict=True):
        builder.add_edge(before, after)
    compiled = builder.compile()
    return lambda n: compiled.ainvoke({"n": n})


def fan_by_langgraph(work: Callable[[int], Awaitable[int]], width: int) -> Call:
    langgraph = importlib.import_module("langgraph.graph")
    State = TypedDict("State", {"n": int, "found": Annotated[list[int], operator.add]})  # noqa: UP013 - resolved here

    async def first(state: Any) -> Any:
        return {"n": await work(state["n"])}

    async def middle(state: Any) -> Any:
        return {"found": [await work(state["n"])]}

    async def last(state: Any) -> Any:
        return {"n": sum(state["found"])}

    builder = langgraph.StateGraph(State)
    builder.add_node("first", first)
    builder.add_node("last", last)
    builder.add_edge(langgraph.START, "first")
    for place in range(width):
        builder.add_node(f"m{place}", middle)
        builder.add_edge("first", f"m{place}")
        builder.add_edge(f"m{place}", "last")
    builder.add_edge("last", langgraph.END)
    compiled = builder.compile()
    return lambda n: compiled.ainvoke({"n": n, "found": []})


def chain_by_pydantic_graph(work: Callable[[int], Awaitable[int]]) -> Call:
    builder = importlib.import_module("pydantic_graph").GraphBuilder(input_type=int, output_type=int)
    before = builder.start_node
    for place in range(5):

        async def node(context: Any) -> int:
            return await work(context.inputs)

        node.__name__ = f"s{place}"
        added = builder.step(node_id=f"s{place}")(node)
        builder.add(builder.edge_from(before).to(added))
        before = added
    builder.add(builder.edge_from(before).to(builder.end_node))
    graph = builder.build()
    return lambda n: graph.run(inputs=n)


# ---------------------------------------------------------------- measuring
async def seconds_each(call: Call, times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        await call(1)
    return (time.perf_counter() - began) / times


async def compare(title: str, rivals: dict[str, Call], times: int, rounds: int) -> None:
    """Measure all in turns; print the medians and how they compare with the one by hand."""
    for call in rivals.values():
        await call(1)
    taken: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, call in rivals.items():
            few = max(1, times // 20) if name in ("langgraph", "pydantic-graph") else times
            taken[name].append(await seconds_each(call, few))
    hand = taken["by hand"]
    print(title)
    for name, found in taken.items():
        ratio = statistics.median(a / b for a, b in zip(found, hand, strict=True))
        print(f"    {name:16} {statistics.median(found) * 1e6:12.2f} µs {ratio:10.2f}x")


async def measure(times: int, rounds: int) -> None:
    async with Flowlet(registry=registry):
        for title, work, count in (("no-op", plain, times), ("1 ms", nap, max(5, times // 50))):
            rivals = {"flowlet": chain(work, f"chain {title}"), "by hand": chain_by_hand(work)}
            if has("langgraph"):
                rivals["langgraph"] = chain_by_langgraph(work)
            if has("pydantic_graph"):
                rivals["pydantic-graph"] = chain_by_pydantic_graph(work)
            await compare(f"chain of 5 steps, {title}", rivals, count, rounds)
            rivals = {"flowlet": fan(work, 10, f"fan {title}"), "by hand": fan_by_hand(work, 10)}
            if has("langgraph"):
                rivals["langgraph"] = fan_by_langgraph(work, 10)
            await compare(f"10 parallel steps between two, {title}", rivals, count, rounds)
        rivals = {"flowlet": each, "by hand": each_by_hand}
        await compare(f"each= over {ITEMS} items, no-op", rivals, max(1, times // 10), rounds)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--times", type=int, default=500, help="calls in each round (default: %(default)s)")
    arguments.add_argument("--rounds", type=int, default=9, help="rounds (default: %(default)s)")
    options = arguments.parse_args()
    anyio.run(measure, options.times, options.rounds)


if __name__ == "__main__":
    main()
