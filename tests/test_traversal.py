"""`flowlet.traversal`: every definition is a graph that one can ask for its order, its paths and its cycles."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from msgspec import Struct

from flowlet import Flowlet, Registry, state, step, transition
from flowlet.errors import FlowletError
from flowlet.traversal import CriticalPath, digraph

registry = Registry()


class Draft(Struct):
    text: str = ""


async def extract(path: str) -> list[int]:
    return [len(path)]


async def count(extract: list[int]) -> int:
    return len(extract)


async def total(extract: list[int]) -> int:
    await anyio.sleep(0.02)
    return sum(extract)


async def mean(count: int, total: int) -> float:
    return total / count


etl = registry.pipeline("etl", extract, count, total, mean)
in_line = registry.saga("in_line", extract, count)

first, second = step(extract), step(count)


@registry.saga
async def by_hand(path: str) -> int:
    return await second(await first(path))


async def write(draft: Draft) -> None: ...


async def publish(draft: Draft) -> None: ...


review = registry.graph("review", state=Draft)
review.node(write)
review.pause("editor", type=str, merge=lambda draft, text: {"text": text})
review.node(publish)
review.entry(write)
review.edge(write, "editor")
review.edge("editor", write, when=lambda draft: draft.text == "")
review.edge("editor", publish, otherwise=True)
review.final(publish)


@registry.machine
class Player:
    @state(initial=True)
    class Off: ...

    @state(parallel=True)
    class On:
        @state
        class Media:
            @state(initial=True)
            class Paused: ...

            @state
            class Playing: ...

        @state
        class Volume:
            @state(initial=True)
            class Low: ...

            @state
            class High: ...

    @state(final=True)
    class Gone: ...

    @transition(Off, On)
    async def power(self) -> None: ...

    @transition(On.Media.Paused, On.Media.Playing)
    async def play(self) -> None: ...

    @transition(On.Media.Playing, On.Media.Paused)
    async def pause(self) -> None: ...

    @transition(On.Volume.Low, On.Volume.High)
    async def louder(self) -> None: ...

    @transition(On, Off)
    async def stop(self) -> None: ...

    @transition("*", Gone, on_error=Off)
    async def smash(self) -> None: ...


def test_a_pipeline() -> None:
    steps = digraph(etl)
    assert steps.generations() == [("extract",), ("count", "total"), ("mean",)]
    assert steps.ancestors("total") == {"extract"}
    assert steps.descendants("count") == {"mean"}


def test_a_saga_is_a_line() -> None:
    assert list(digraph(in_line).paths("extract", "count")) == [("extract", "count")]
    assert len(digraph(by_hand).edges) == 1


def test_a_graph() -> None:
    nodes = digraph(review)
    assert list(nodes.cycles()) == [("write", "editor")]
    assert list(nodes.paths("write", "publish")) == [("write", "editor", "publish")]
    assert digraph(review.definition().export()).edges == nodes.edges


def test_a_machine() -> None:
    states = digraph(Player)
    assert set(states.successors("Off")) == {"On", "Gone", "Off"}  # the last when the action of `smash` fails
    assert set(states.successors("On")) == {"On.Media", "On.Volume", "Off", "Gone"}
    assert set(states.successors("On.Media.Paused")) == {"On.Media.Playing", "Off", "Gone"}
    assert states.successors("Gone") == ()
    assert "Gone" in states.descendants("On.Volume.High")
    assert ("On.Media.Paused", "On.Media.Playing") in states.cycles()
    assert digraph(Player()).edges == states.edges


@pytest.mark.anyio
async def test_the_critical_path_of_what_has_run() -> None:
    async with Flowlet(registry=registry) as flow:
        handle = await flow.start(etl, "abc")
        await handle.result()
        path = digraph(etl).critical_path(await handle.report())
    assert isinstance(path, CriticalPath)
    assert path.nodes == ("extract", "total", "mean")
    assert path.seconds >= 0.02


@pytest.mark.parametrize(
    ("thing", "problem"),
    [
        (42, "42 has no steps or states: give an assembled definition, or its export()"),
        (extract, "extract has no steps or states"),
        ({"kind": "recipe"}, "an export of kind 'recipe' cannot be read"),
        ({"kind": "graph", "nodes": []}, "this is no export: KeyError('edges') is not as it must be"),
        ({"kind": "pipeline", "steps": [{"name": "a", "needs": ["b"]}]}, "this is no export: KeyError('b')"),
    ],
)
def test_what_has_no_order(thing: Any, problem: str) -> None:
    with pytest.raises(FlowletError) as caught:
        digraph(thing)
    assert problem in str(caught.value)
