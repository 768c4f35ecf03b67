"""Graphs on an engine that suspends at every wait: what they start is the same every time."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from msgspec import Struct
from strict_engine import StrictRun

from flowlet import Registry, current_run
from flowlet.core.codec import pack
from flowlet.errors import IterationLimit, WriteConflict
from flowlet.graph import Graph

pytestmark = pytest.mark.anyio

SEEDS = range(12)
registry = Registry()


class State(Struct):
    path: Annotated[list[str], operator.add] = []
    rounds: Annotated[int, operator.add] = 0
    note: str = ""


done: list[str] = []


async def visit(state: State) -> dict[str, Any]:
    key = current_run().idempotency_key.partition("/")[2]
    done.append(key)
    return {"path": [key], "rounds": 1}


def draw(name: str, edges: str, **options: Any) -> Graph[State]:
    """Make a graph of words; an edge is written ``from>to``."""
    graph: Graph[State] = registry.graph(name, state=State, **options)
    pairs = [edge.split(">") for edge in edges.split()]
    for node in dict.fromkeys(name for pair in pairs for name in pair):
        graph.node(visit, name=node)
    for source, target in pairs:
        graph.edge(source, target)
    graph.entry("a")
    graph.final("z")
    return graph


diamond = draw("diamond", "a>b a>c c>d d>e b>z e>z")
narrow = draw("narrow", "a>b a>c a>d b>z c>z d>z", max_concurrency=2)

looping = draw("looping", "a>b a>d b>c d>z", max_iterations=4)
looping.edge("c", "b", when=lambda state: sum(part[0] == "c" for part in state.path) < 3)
looping.edge("c", "z", otherwise=True)

endless = draw("endless", "a>b b>c c>b a>z", max_iterations=3)
endless.edge("c", "z", when=lambda state: False)

paused = draw("paused", "a>b b>z")
paused.pause("p", type=str, merge=lambda state, text: {"note": text, "path": [text]})
paused.edge("a", "p")
paused.edge("p", "b", when=lambda state: state.note == "on")
paused.edge("p", "p", otherwise=True)


async def claim(state: State) -> dict[str, Any]:
    return {"note": current_run().idempotency_key[-1]}


torn = draw("torn", "a>b a>c b>z c>z")
torn.node(claim, name="x")
torn.node(claim, name="y")
torn.edge("b", "x")
torn.edge("c", "y")
torn.edge("x", "z")
torn.edge("y", "z")


@pytest.fixture(autouse=True)
def _forget() -> None:
    done.clear()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("graph", "keys"),
    [
        (diamond, ["a", "b", "c", "d", "e", "z"]),
        (narrow, ["a", "b", "c", "d", "z"]),
        (looping, ["a", "b", "b#2", "b#3", "c", "c#2", "c#3", "d", "z"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_every_node_is_executed_once(graph: Callable[..., Any], keys: list[str], seed: int) -> None:
    run = StrictRun(graph, State(), dice=random.Random(seed))
    state = await run.result()
    assert sorted(done) == keys
    assert state.path == done
    assert state.rounds == len(keys)
    before = list(done)
    assert await run.result() == state
    assert done == before, "a replay made an effect"


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_pause_takes_the_signals_in_their_order(seed: int) -> None:
    signals = {"p": [pack("no"), pack("not yet"), pack("on")]}
    run = StrictRun(paused, State(), dice=random.Random(seed), signals=signals)
    state = await run.result()
    assert [part for part in state.path if part not in done] == ["no", "not yet", "on"]
    assert state.note == "on"
    assert done == ["a", "b", "z"]
    assert await run.result() == state


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("graph", "error"), [(endless, IterationLimit), (torn, WriteConflict)], ids=["loop", "torn"])
async def test_what_fails_fails_again(graph: Callable[..., Any], error: type[Exception], seed: int) -> None:
    run = StrictRun(graph, State(), dice=random.Random(seed))
    with pytest.raises(error) as first:
        await run.result()
    before = list(done)
    with pytest.raises(error) as second:
        await run.result()
    assert str(first.value) == str(second.value)
    assert done == before
