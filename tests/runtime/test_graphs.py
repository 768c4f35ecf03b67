"""Graphs that run: which edges are taken, what joins wait for, what becomes of the state, what ends a run."""

from __future__ import annotations

import operator
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import anyio
import pytest
from msgspec import Struct

from flowlet import Flowlet, Registry, Retry, Run, compensate, current_run, gather, provided, step
from flowlet.errors import (
    DecodeError,
    EdgeFailed,
    FlowletError,
    GraphError,
    GraphStuck,
    IdConflict,
    IterationLimit,
    RunCancelled,
    RunParked,
    RunTimeout,
    StepTimeout,
    UpdateError,
    WriteConflict,
)
from flowlet.graph import Graph, Join
from flowlet.runtime.handle import Handle
from flowlet.store import Store

pytestmark = pytest.mark.anyio

Until = Callable[[Callable[[], Any]], Awaitable[None]]


class Broken(Exception):
    pass


class Trail(Struct):
    """A state that says which nodes were executed."""

    path: Annotated[list[str], operator.add] = []
    rounds: int = 0
    note: str = ""


def leave(name: str) -> dict[str, list[str]]:
    return {"path": [name]}


def join_up(
    flow: Flowlet,
    edges: Mapping[str, Sequence[str]],
    *,
    entries: Collection[str] = ("a",),
    finals: Collection[str] = ("z",),
    slow: Mapping[str, anyio.Event] = {},
    joins: Mapping[str, Join] = {},
    writes: Mapping[str, Any] = {},
    name: str = "g",
    **options: Any,
) -> Graph[Trail]:
    """Make a graph of nodes that leave their names, and wait for an event if they are slow."""
    graph = flow.graph(name, state=Trail, **options)
    for node in dict.fromkeys([*edges, *(target for row in edges.values() for target in row)]):

        def make(node: str) -> Callable[..., Any]:
            async def visit(state: Trail) -> dict[str, Any]:
                if node in slow:
                    await slow[node].wait()
                return {**leave(node), **({"note": writes[node]} if node in writes else {})}

            return visit

        graph.node(make(node), name=node, join=joins.get(node, "all"))
    for source, targets in edges.items():
        for target in targets:
            graph.edge(source, target)
    for entry in entries:
        graph.entry(entry)
    graph.final(*finals)
    return graph


async def keys(handle: Handle[Any]) -> list[str]:
    return list((await handle.report()).steps)


# ------------------------------------------------------------------ the ways to run one
async def test_a_graph_runs_as_everything_else_does(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": ["b"], "b": ["z"]})
    async with flow:
        assert (await graph(Trail())).path == ["a", "b", "z"]
        assert (await flow.execute(graph, Trail(), id="x")).path == ["a", "b", "z"]
        handle = await flow.start(graph, Trail(["0"]), id="h")
        assert (await handle.result()).path == ["0", "a", "b", "z"]
        assert await keys(handle) == ["a", "b", "z"]
        assert (await flow.handle("h", graph).result()).path == ["0", "a", "b", "z"]
        assert [run.id async for run in flow.runs(graph, status="completed")][1:] == ["x", "h"]
        with pytest.raises(IdConflict):
            await flow.start(graph, Trail(["other"]), id="h")


def test_from_a_plain_script() -> None:
    flow = Flowlet()
    graph = join_up(flow, {"a": ["z"]})
    assert flow.run(graph, Trail()).path == ["a", "z"]


async def test_a_graph_that_is_included(flow: Flowlet) -> None:
    """It is built when the Flowlet is entered, however late its parts were added."""
    registry = Registry()
    graph: Graph[Trail] = registry.graph("late", state=Trail)
    flow.include(registry)

    @graph.node(name="only")
    def only(state: Trail) -> dict[str, Any]:
        return leave("only")

    graph.entry(only)
    graph.final("only")
    async with flow:
        assert flow.registry.find_run("late", "1") is not None
        assert (await graph(Trail())).path == ["only"]


async def test_a_graph_that_nobody_includes() -> None:
    graph = Registry().graph("alone", state=Trail)

    @graph.node
    async def only(state: Trail) -> None: ...

    graph.entry(only)
    graph.final(only)
    with pytest.raises(FlowletError, match="no Flowlet includes it"):
        await graph(Trail())
    async with Flowlet() as flow:
        with pytest.raises(FlowletError, match="'alone' is not included here"):
            await flow.execute(graph, Trail())


async def test_a_graph_in_a_body_is_a_child_run(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": ["z"]})

    @flow.saga
    async def outer(word: str) -> list[str]:
        one = await graph(Trail([word]))
        two, three = await gather(graph(one), graph(Trail()))
        return [*two.path, *three.path]

    async with flow:
        assert await flow.execute(outer, "w", id="o") == ["w", "a", "z", "a", "z", "a", "z"]
        assert await flow.handle("o/g#2").status() == "completed"


async def test_of_what_another_thing_is_it_is_told(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": ["z"]})
    async with flow:
        with pytest.raises(DecodeError, match="argument 'state' of 'g' does not decode to Trail"):
            await flow.execute(graph, {"path": 1})  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="missing a required argument"):
            await flow.execute(graph)  # type: ignore[call-overload]


# ------------------------------------------------------------------ which edges are taken
@pytest.mark.parametrize(
    ("rounds", "path"),
    [
        (0, ["a", "always", "none"]),
        (1, ["a", "always", "odd"]),
        (2, ["a", "always", "two"]),
        (3, ["a", "always", "odd", "three"]),
    ],
)
async def test_conditions(flow: Flowlet, rounds: int, path: list[str]) -> None:
    graph = join_up(flow, {"a": []}, finals=())
    for name in ("always", "odd", "two", "three", "none"):
        graph.node(lambda state, name=name: leave(name), name=name)
        graph.final(name)
    graph.edge("a", "always")
    graph.edge("a", "odd", when=lambda s: s.rounds % 2 == 1)
    graph.edge("a", "two", when=lambda s: s.rounds == 2)
    graph.edge("a", "three", when=lambda s: s.rounds == 3)
    graph.edge("a", "none", otherwise=True)
    async with flow:
        done = await graph(Trail(rounds=rounds))
    assert [done.path[0], *sorted(done.path[1:])] == path


async def test_a_condition_sees_what_the_node_has_changed(flow: Flowlet) -> None:
    graph: Graph[Trail] = flow.graph("loop", state=Trail)

    @graph.node
    async def turn(state: Trail) -> dict[str, Any]:
        return {"rounds": state.rounds + 1}

    @graph.node
    async def end(state: Trail) -> None: ...

    graph.entry(turn)
    graph.edge(turn, turn, when=lambda s: s.rounds < 4)
    graph.edge(turn, end, otherwise=True)
    graph.final(end)
    async with flow:
        handle = await flow.start(graph, Trail())
        assert (await handle.result()).rounds == 4
        assert await keys(handle) == ["turn", "turn#2", "turn#3", "turn#4", "end"]


async def test_a_condition_that_raises_names_its_edge(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": []})
    graph.node(lambda state: None, name="z")
    graph.edge("a", "z", when=lambda s: s.missing)
    async with flow:
        handle = await flow.start(graph, Trail())
        with pytest.raises(EdgeFailed, match="edge from 'a' to 'z' failed with AttributeError") as caught:
            await handle.result()
        assert (caught.value.source, caught.value.target) == ("a", "z")
        assert await handle.status() == "failed"


async def test_a_condition_that_has_to_be_awaited(flow: Flowlet) -> None:
    async def slowly(state: Trail) -> bool:
        return True

    graph = join_up(flow, {"a": []})
    graph.node(lambda state: None, name="z")
    graph.edge("a", "z", when=lambda s: slowly(s))  # type: ignore[arg-type,return-value]  # noqa: PLW0108 - an async function is refused before
    async with flow:
        with pytest.raises(EdgeFailed, match="returned an awaitable; do slow work in a node"):
            await graph(Trail())


# ------------------------------------------------------------------ branches
async def test_all_branches_run_at_the_same_time(flow: Flowlet) -> None:
    here = {name: anyio.Event() for name in "bcd"}

    async def meet(state: Trail) -> None:
        name = current_run().idempotency_key[-1]
        here[name].set()
        for event in here.values():
            await event.wait()

    graph = join_up(flow, {"a": [], "z": []})
    for name in "bcd":
        graph.node(meet, name=name)
        graph.edge("a", name)
        graph.edge(name, "z")
    async with flow:
        with anyio.fail_after(20):
            assert (await graph(Trail())).path == ["a", "z"]


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_no_branch_is_dropped_by_a_limit(flow: Flowlet, limit: int) -> None:
    running = most = 0
    full = anyio.Event()

    async def count(state: Trail) -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == limit:
            full.set()
        with anyio.fail_after(10):
            await full.wait()
        await anyio.sleep(0.001)
        running -= 1
        return leave("n")

    graph = join_up(flow, {"a": [], "z": []}, max_concurrency=limit)
    for number in range(12):
        graph.node(count, name=f"n{number}")
        graph.edge("a", f"n{number}")
        graph.edge(f"n{number}", "z")
    async with flow:
        assert (await graph(Trail())).path == ["a", *["n"] * 12, "z"]
    assert most == limit


async def test_a_join_waits_for_branches_of_unequal_length(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": ["b", "c"], "b": ["z"], "c": ["d"], "d": ["e"], "e": ["z"]})
    async with flow:
        done = await graph(Trail())
    assert done.path[0] == "a"
    assert done.path[-1] == "z"
    assert sorted(done.path) == ["a", "b", "c", "d", "e", "z"]


async def test_a_branch_that_dies_does_not_block_a_join(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": ["b", "c"], "b": ["z"], "c": []})
    graph.edge("c", "z", when=lambda s: False)
    async with flow:
        done = await graph(Trail())
    assert sorted(done.path) == ["a", "b", "c", "z"]
    assert done.path[-1] == "z"


async def test_a_join_for_any_goes_ahead_and_what_is_late_ends_there(flow: Flowlet, until: Until) -> None:
    slow = {"c": anyio.Event()}
    graph = join_up(
        flow, {"a": ["b", "c"], "b": ["j"], "c": ["d"], "d": ["j"], "j": ["z"]}, joins={"j": "any"}, slow=slow
    )
    async with flow:
        handle = await flow.start(graph, Trail())
        with anyio.fail_after(20):
            while "z" not in await keys(handle):
                await anyio.sleep(0.002)
        assert await handle.status() == "running"  # a token is left, which ends at the join
        slow["c"].set()
        assert (await handle.result()).path == ["a", "b", "j", "z", "c", "d"]


async def test_a_join_for_some(flow: Flowlet) -> None:
    slow = {"d": anyio.Event()}
    edges = {"a": ["b", "c", "d"], "b": ["j"], "c": ["j"], "d": ["j"], "j": ["z"]}
    graph = join_up(flow, edges, joins={"j": 2}, slow=slow)
    async with flow:
        handle = await flow.start(graph, Trail())
        with anyio.fail_after(20):
            while "z" not in await keys(handle):
                await anyio.sleep(0.002)
        slow["d"].set()
        done = await handle.result()
    assert sorted(done.path[1:3]) == ["b", "c"]
    assert done.path[3:] == ["j", "z", "d"]


async def test_a_join_for_more_than_can_come(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": ["b", "c"], "b": ["j"], "c": ["j"], "j": ["z"]}, joins={"j": 9})
    async with flow:
        done = await graph(Trail())
    assert done.path[-2:] == ["j", "z"]
    assert len(done.path) == 5


async def test_joins_that_wait_for_each_other(flow: Flowlet) -> None:
    """Each can still be reached from the other: the one that has waited longer goes ahead."""
    edges = {"a": ["b", "c"], "b": ["c", "z"], "c": ["b"]}
    graph = join_up(flow, edges, max_iterations=5)
    graph_of_two = join_up(flow, {"a": ["b", "c"], "b": [], "c": []}, name="two")
    graph_of_two.edge("b", "c", when=lambda s: s.path.count("c") < 2)
    graph_of_two.edge("c", "b", when=lambda s: s.path.count("b") < 2)
    graph_of_two.node(lambda state: leave("z"), name="z")
    graph_of_two.edge("b", "z", when=lambda s: s.path.count("b") == 2)
    async with flow:
        with pytest.raises(IterationLimit):
            await graph(Trail())
        assert (await graph_of_two(Trail())).path == ["a", "b", "c", "b", "c", "z"]


async def test_several_entries(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": ["z"], "b": ["z"]}, entries=("a", "b"))
    async with flow:
        done = await graph(Trail())
    assert sorted(done.path[:2]) == ["a", "b"]
    assert done.path[2:] == ["z"]


async def test_several_finals(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": ["y", "z"]}, finals=("y", "z"))
    async with flow:
        assert sorted((await graph(Trail())).path) == ["a", "y", "z"]


# ------------------------------------------------------------------ loops
async def test_loops_are_limited_and_the_cycle_is_named(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": ["b"], "b": ["c"], "c": ["b"]}, max_iterations=7)
    graph.node(lambda state: None, name="z")
    graph.edge("c", "z", when=lambda s: False)
    async with flow:
        handle = await flow.start(graph, Trail())
        with pytest.raises(IterationLimit, match="executed more than 7 times, in the cycle b -> c -> b: let") as caught:
            await handle.result()
        assert await keys(handle) == ["a", "b", "c", *(f"{n}#{i}" for i in range(2, 8) for n in "bc")]
    assert (caught.value.node, caught.value.limit, caught.value.cycle) == ("b", 7, ("b", "c"))


async def test_an_edge_can_be_limited_by_itself(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": ["b"], "b": []})
    graph.edge("b", "a", max_iterations=2)
    graph.node(lambda state: None, name="z")
    graph.edge("a", "z", when=lambda s: False)
    async with flow:
        handle = await flow.start(graph, Trail())
        with pytest.raises(
            IterationLimit, match="the edge from 'b' to 'a' was to be taken more than 2 times, in the cycle"
        ):
            await handle.result()
        assert await keys(handle) == ["a", "b", "a#2", "b#2", "a#3", "b#3"]


async def test_a_long_line_is_no_cycle(flow: Flowlet) -> None:
    line = {f"n{n}": [f"n{n + 1}"] for n in range(299)}
    graph = join_up(flow, line, entries=("n0",), finals=("n299",), max_iterations=1)
    async with flow:
        assert len((await graph(Trail())).path) == 300


# ------------------------------------------------------------------ how it ends
async def test_a_graph_that_reaches_no_final_node(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": ["b", "c"], "b": [], "c": []})
    graph.node(lambda state: None, name="z")
    for node in "bc":
        graph.edge(node, "z", when=lambda s: s.rounds > 0)
    async with flow:
        handle = await flow.start(graph, Trail())
        with pytest.raises(GraphStuck, match="ended without reaching a final node: no edge was taken after") as caught:
            await handle.result()
        assert await handle.status() == "failed"
    assert sorted(caught.value.died) == ["b", "c"]
    assert isinstance(caught.value, GraphError)


async def test_a_node_that_fails_stops_the_others(flow: Flowlet) -> None:
    stopped = anyio.Event()

    async def wait(state: Trail) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    def fail(state: Trail) -> None:
        raise Broken("no")

    graph = join_up(flow, {"a": [], "z": []})
    for name, node in (("b", wait), ("c", fail)):
        graph.node(node, name=name)
        graph.edge("a", name)
        graph.edge(name, "z")
    async with flow:
        handle = await flow.start(graph, Trail())
        with pytest.raises(Broken, match="no"):
            await handle.result()
        assert stopped.is_set()
        report = await handle.report()
    assert {name: s.status for name, s in report.steps.items()} == {"a": "completed", "b": "cancelled", "c": "failed"}


async def test_retry_and_timeout_of_a_node(flow: Flowlet) -> None:
    @step(retry=2)
    async def flaky(state: Trail, run: Run = provided) -> dict[str, Any]:
        if run.attempt < 3:
            raise Broken
        return leave(run.idempotency_key)

    async def hang(state: Trail) -> None:
        await anyio.sleep_forever()

    graph: Graph[Trail] = flow.graph("g", state=Trail)
    graph.node(flaky, retry=Retry(attempts=3, wait=0))
    graph.node(hang, timeout=0.01)
    graph.entry(flaky)
    graph.edge(flaky, hang)
    graph.final(hang)
    async with flow:
        handle = await flow.start(graph, Trail(), id="r")
        with pytest.raises(StepTimeout, match=r"step 'hang' did not end within 0\.01 s"):
            await handle.result()
        assert (await handle.report()).steps["flaky"].value == {"path": ["r/flaky"]}
        assert (await handle.report()).steps["flaky"].attempts == 3


async def test_cancelling(flow: Flowlet) -> None:
    slow = {"b": anyio.Event()}
    graph = join_up(flow, {"a": ["b"], "b": ["z"]}, slow=slow)
    async with flow:
        handle = await flow.start(graph, Trail())
        with anyio.fail_after(20):
            while await keys(handle) != ["a"]:
                await anyio.sleep(0.002)
        await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result()
        assert await handle.status() == "cancelled"


async def test_a_deadline_and_a_timeout(flow: Flowlet) -> None:
    graphs = [
        join_up(flow, {"a": ["z"]}, slow={"a": anyio.Event()}, name=name, **{name: 0.05})
        for name in ("deadline", "timeout")
    ]
    async with flow:
        for graph in graphs:
            with anyio.fail_after(20), pytest.raises(RunTimeout):
                await graph(Trail())


# ------------------------------------------------------------------ the state
async def test_writers_that_do_not_know_of_each_other(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": ["b", "c"], "b": ["z"], "c": ["d"], "d": ["z"]}, writes={"b": "1", "d": "2"})
    async with flow:
        handle = await flow.start(graph, Trail())
        with pytest.raises(
            WriteConflict, match="have both changed 'note', and neither came before the other"
        ) as caught:
            await handle.result()
    assert sorted(caught.value.writers) == ["b", "d"]
    assert caught.value.field == "note"


@pytest.mark.parametrize("first", ["b", "d"])
async def test_that_is_so_whoever_is_faster(flow: Flowlet, first: str) -> None:
    slow = {"b": anyio.Event(), "d": anyio.Event()}
    edges = {"a": ["b", "c"], "b": ["j"], "c": ["d"], "d": ["j"], "j": ["k"], "k": ["z"]}
    graph = join_up(flow, edges, writes={"d": "2", "k": "3"}, slow=slow, joins={"j": "any"})
    graph_of_late = flow
    async with graph_of_late:
        handle = await flow.start(graph, Trail())
        slow[first].set()
        with anyio.fail_after(20):
            while "z" not in await keys(handle):
                await anyio.sleep(0.002)
        slow["b"].set()
        slow["d"].set()
        if first == "d":  # then k comes after d, by way of the join
            assert (await handle.result()).note == "3"
        else:
            with pytest.raises(WriteConflict, match="'k' and 'd' have both changed 'note'"):
                await handle.result()


async def test_writers_of_which_one_came_before_the_other(flow: Flowlet) -> None:
    edges = {"a": ["b", "c"], "b": ["j"], "c": ["j"], "j": ["z"]}
    graph = join_up(flow, edges, writes={"a": "0", "b": "1", "j": "2", "z": "3"})
    async with flow:
        assert (await graph(Trail())).note == "3"


async def test_a_writer_that_ended_at_a_join_is_not_forgotten(flow: Flowlet) -> None:
    """The branch that wrote has ended, but what comes later does not follow from it."""
    slow = {"k": anyio.Event()}
    edges = {"a": ["b", "c"], "b": ["j"], "c": ["j"], "j": ["k"], "k": ["l"], "l": ["z"]}
    graph = join_up(flow, edges, writes={"c": "1", "z": "2"}, slow=slow, joins={"j": "any"}, max_concurrency=1)
    async with flow:
        handle = await flow.start(graph, Trail())
        slow["k"].set()
        with pytest.raises(WriteConflict) as caught:
            await handle.result()
    assert caught.value.writers == ("c", "z")


async def test_a_long_loop_keeps_no_memory_of_its_past(flow: Flowlet) -> None:
    graph: Graph[Trail] = flow.graph("g", state=Trail, max_iterations=2000)

    @graph.node
    async def turn(state: Trail) -> dict[str, Any]:
        return {"rounds": state.rounds + 1}

    @graph.node
    async def end(state: Trail) -> None: ...

    graph.entry(turn)
    graph.edge(turn, turn, when=lambda s: s.rounds < 500)
    graph.edge(turn, end, otherwise=True)
    graph.final(end)
    from flowlet.core.graph_tokens import Tokens

    seen: list[int] = []
    hand_on = Tokens.hand_on

    def watch(self: Tokens, firing: Any, nodes: Any) -> Any:
        seen.append(firing.past.bit_length() + firing.own.bit_length())
        return hand_on(self, firing, nodes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tokens, "hand_on", watch)
        async with flow:
            assert (await graph(Trail())).rounds == 500
    assert len(seen) == 501
    assert max(seen) <= 2


@dataclass
class Basket:
    """A state that is a dataclass, with what a Struct could not have either."""

    items: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Frozen:
    number: int = 0
    seen: tuple[int, ...] = ()


class FrozenStruct(Struct, frozen=True):
    number: int = 0
    seen: Annotated[tuple[int, ...], operator.add] = ()


async def test_a_node_that_changes_its_own_object_changes_nothing_else(flow: Flowlet) -> None:
    graph: Graph[Basket] = flow.graph("g", state=Basket)
    seen: list[Basket] = []

    @graph.node
    async def spoil(state: Basket) -> None:
        state.items.append("spoiled")
        state.tags = {"spoiled"}
        seen.append(state)

    graph.node(spoil, name="other")
    graph.node(spoil, name="last")
    graph.entry(spoil.__name__)
    graph.entry("other")
    graph.edge("spoil", "last")
    graph.edge("other", "last")
    graph.final("last")
    given = Basket(["apple"])
    async with flow:
        assert await graph(given) == Basket(["apple"])
    assert given == Basket(["apple"])
    assert seen == [Basket(["apple", "spoiled"], {"spoiled"})] * 3
    assert len({id(s) for s in seen}) == 3


@pytest.mark.parametrize("cls", [Frozen, FrozenStruct])
async def test_a_frozen_state(flow: Flowlet, cls: Any) -> None:
    graph: Graph[Any] = flow.graph("g", state=cls)

    async def add(state: Any) -> dict[str, Any]:
        return {"number": state.number + 1, "seen": (*(() if cls is FrozenStruct else state.seen), state.number)}

    for name in "abc":
        graph.node(add, name=name)
    graph.entry("a")
    graph.edge("a", "b")
    graph.edge("b", "c")
    graph.final("c")
    given = cls()
    async with flow:
        assert await graph(given) == cls(3, (0, 1, 2))
    assert given == cls()


async def test_fields_as_parameters(flow: Flowlet) -> None:
    graph: Graph[Trail] = flow.graph("g", state=Trail)

    @graph.node
    async def write(note: str, rounds: int, run: Run = provided) -> dict[str, Any]:
        return {"note": f"{note}{rounds}", "path": [run.idempotency_key]}

    graph.entry(write)
    graph.final(write)
    async with flow:
        assert await flow.execute(graph, Trail(note="n", rounds=3), id="r") == Trail(["r/write"], 3, "n3")


class Desk:
    def __init__(self, word: str) -> None:
        self.word = word

    @step
    async def marked(self, state: Trail) -> dict[str, Any]:
        return leave(f"marked {self.word}")

    def plain(self, state: Trail) -> dict[str, Any]:
        return leave(f"plain {self.word} {threading.current_thread() is threading.main_thread()}")


async def test_methods_of_an_object(flow: Flowlet) -> None:
    graph: Graph[Trail] = flow.graph("g", state=Trail)
    desk = Desk("oak")
    graph.node(desk.marked)
    graph.node(desk.plain)
    graph.entry(desk.marked)
    graph.edge(desk.marked, desk.plain)
    graph.final(desk.plain)
    async with flow:
        assert (await graph(Trail())).path == ["marked oak", "plain oak False"]


@pytest.mark.parametrize(
    ("returned", "field", "problem"),
    [
        ({"nte": "x"}, "nte", "'a' returned 'nte', which is no field of Trail; did you mean 'note'?"),
        ({"rounds": "x"}, "rounds", "'a' returned what is wrong: the field 'rounds' does not decode to int"),
        ({"note": None, "rounds": 1}, "note", "the field 'note' does not decode to str"),
        ({1: 2}, "1", "'a' returned 1, which is no field of Trail"),
        ([1], "", "'a' returned list; a node returns a dict of the fields it changes, or None"),
    ],
)
async def test_what_is_no_change(flow: Flowlet, returned: Any, field: str, problem: str) -> None:
    graph: Graph[Trail] = flow.graph("g", state=Trail)
    graph.node(lambda state: returned, name="a")
    graph.entry("a")
    graph.final("a")
    async with flow:
        with pytest.raises(UpdateError) as caught:
            await graph(Trail())
    assert problem in str(caught.value)
    assert (caught.value.node, caught.value.field) == ("a", field)


async def test_a_reducer_that_fails(flow: Flowlet) -> None:
    class Odd(Struct):
        number: Annotated[int, lambda a, b: a // b] = 6

    graph: Graph[Odd] = flow.graph("g", state=Odd)
    graph.node(lambda state: {"number": 0}, name="a")
    graph.entry("a")
    graph.final("a")
    async with flow:
        with pytest.raises(UpdateError, match="of 'number' failed with ZeroDivisionError") as caught:
            await graph(Odd())
    assert (caught.value.node, caught.value.field) == ("a", "number")


async def test_a_node_sees_the_state_at_the_moment_it_begins(flow: Flowlet) -> None:
    slow = {"c": anyio.Event()}
    seen: list[list[str]] = []
    graph = join_up(flow, {"a": ["b", "c"], "c": ["z"]}, slow=slow)

    async def look(state: Trail) -> None:
        seen.append(list(state.path))
        slow["c"].set()

    graph.node(look, name="l")
    graph.edge("b", "l")
    graph.edge("l", "z")
    async with flow:
        await graph(Trail())
    assert seen == [["a", "b"]]


# ------------------------------------------------------------------ other definitions as nodes
async def test_a_saga_is_a_child_run(flow: Flowlet) -> None:
    @step
    async def charge(amount: int) -> int:
        return amount * 2

    @flow.saga
    async def checkout(rounds: int) -> int:
        return await charge(rounds)

    graph: Graph[Trail] = flow.graph("g", state=Trail)
    graph.node(checkout, merge=lambda state, paid: {"note": f"{state.rounds} paid {paid}"})
    graph.entry(checkout)
    graph.final(checkout)
    async with flow:
        assert (await flow.execute(graph, Trail(rounds=4), id="r")).note == "4 paid 8"
        assert await flow.handle("r/checkout").status() == "completed"


async def test_a_merge_that_is_wrong(flow: Flowlet) -> None:
    results: dict[str, Any] = {"raises": None, "list": [1], "unknown": {"x": 1}}

    def merge(state: Trail, value: str) -> Any:
        if value == "raises":
            raise Broken("no")
        return results[value]

    async def say(note: str) -> str:
        return note

    graph: Graph[Trail] = flow.graph("g", state=Trail)
    graph.node(say, merge=merge)
    graph.entry(say)
    graph.final(say)
    async with flow:
        for note, problem in (
            ("raises", "merge= of 'say' failed with Broken: no"),
            ("list", "merge= of 'say' returned list, not a dict of the fields it changes"),
            ("unknown", "'say' returned 'x', which is no field of Trail"),
        ):
            with pytest.raises(UpdateError, match=problem):
                await graph(Trail(note=note))


def inner_graph(flow: Flowlet, name: str = "inner", **options: Any) -> Graph[Trail]:
    return join_up(flow, {"a": ["b", "c"], "b": ["y"], "c": ["z"]}, finals=("y", "z"), name=name, **options)


async def test_a_graph_within_is_expanded(flow: Flowlet) -> None:
    inner = inner_graph(flow)
    graph = join_up(flow, {"first": [], "last": []}, entries=("first",), finals=("last",))
    graph.node(inner)
    graph.node(inner, name="twice")
    graph.edge("first", "inner")
    graph.edge("inner", "twice")
    graph.edge("twice", "last")
    async with flow:
        handle = await flow.start(graph, Trail())
        done = await handle.result()
        found = await keys(handle)
        assert (await inner(Trail())).path[0] == "a"  # by itself it runs as well
    assert found[0] == "first"
    assert found[-1] == "last"
    assert sorted(found[1:-1]) == sorted(f"{g}.{n}" for g in ("inner", "twice") for n in "abcyz")
    assert found.index("inner.z") < found.index("twice.a")
    assert done.path.count("a") == 2


async def test_a_graph_within_that_is_final_and_entry(flow: Flowlet) -> None:
    graph: Graph[Trail] = flow.graph("g", state=Trail)
    inner = inner_graph(flow)
    graph.node(inner, name="i")
    graph.entry(inner)
    graph.final("i")
    async with flow:
        assert sorted((await graph(Trail())).path) == ["a", "b", "c", "y", "z"]


async def test_a_graph_within_joins_as_it_is_told_to(flow: Flowlet) -> None:
    slow = {"late": anyio.Event()}
    inner = inner_graph(flow)
    graph = join_up(flow, {"first": ["soon", "late"], "last": []}, entries=("first",), finals=("last",), slow=slow)
    graph.node(inner, join="any")
    for name in ("soon", "late"):
        graph.edge(name, inner)
    graph.edge(inner, "last")
    async with flow:
        handle = await flow.start(graph, Trail())
        with anyio.fail_after(20):
            while "inner.z" not in await keys(handle):
                await anyio.sleep(0.002)
        slow["late"].set()
        done = await handle.result()
    assert done.path.count("a") == 1


async def test_a_graph_within_keeps_its_own_limit(flow: Flowlet) -> None:
    inner = join_up(flow, {"a": ["b"], "b": ["a"]}, max_iterations=3, name="inner")
    inner.node(lambda state: None, name="z")
    inner.edge("b", "z", when=lambda s: False)
    graph: Graph[Trail] = flow.graph("g", state=Trail, max_iterations=50)
    graph.node(inner)
    graph.entry(inner)
    graph.final(inner)
    async with flow:
        with pytest.raises(IterationLimit, match=r"more than 3 times, in the cycle inner\.a -> inner\.b -> inner\.a"):
            await graph(Trail())


async def test_a_graph_within_may_do_that_in_each_round_around_it(flow: Flowlet) -> None:
    inner = join_up(flow, {"a": ["b"], "b": []}, max_iterations=3, name="inner")
    inner.edge("b", "a", when=lambda s: len(s.path) % 6 != 0)
    inner.node(lambda state: {"rounds": state.rounds + 1}, name="z")
    inner.edge("b", "z", otherwise=True)
    graph: Graph[Trail] = flow.graph("g", state=Trail, max_iterations=4)
    graph.node(inner)
    graph.node(lambda state: None, name="end")
    graph.entry(inner)
    graph.edge(inner, inner, when=lambda s: s.rounds < 4)
    graph.edge(inner, "end", otherwise=True)
    graph.final("end")
    assert [n["max_iterations"] for n in graph.definition().export()["nodes"]] == [12, 12, 4, None]
    async with flow:
        done = await graph(Trail())
    assert done.path.count("a") == 12


# ------------------------------------------------------------------ pauses
class Remark(Struct):
    text: str
    good: bool = False


def reviewed(flow: Flowlet, log: list[str]) -> Graph[Trail]:
    """Assemble the same graph again, as another process would."""
    graph: Graph[Trail] = flow.graph("review", state=Trail)

    @graph.node
    async def write(state: Trail) -> dict[str, Any]:
        log.append("write")
        return {"rounds": state.rounds + 1, **leave("write")}

    @graph.node
    async def publish(state: Trail) -> dict[str, Any]:
        log.append("publish")
        return leave("publish")

    graph.pause("editor", type=Remark, merge=lambda s, r: {"note": r.text, "path": [r.text]})
    graph.entry(write)
    graph.edge(write, "editor")
    graph.edge("editor", publish, when=lambda s: s.note == "good")
    graph.edge("editor", write, otherwise=True)
    graph.final(publish)
    return graph


async def until_status(handle: Handle[Any], status: str) -> None:
    with anyio.fail_after(20):
        while await handle.status() != status:
            await anyio.sleep(0.002)


async def test_a_pause_waits_for_somebody(flow: Flowlet) -> None:
    log: list[str] = []
    graph = reviewed(flow, log)
    async with flow:
        handle = await flow.start(graph, Trail(), id="r")
        await until_status(handle, "waiting")
        assert log == ["write"]
        await handle.send("editor", Remark("shorter"))
        with anyio.fail_after(20):
            while log != ["write", "write"]:
                await anyio.sleep(0.002)
        await until_status(handle, "waiting")
        await handle.send("editor", Remark("good"))
        done = await handle.result()
        report = await handle.report()
    assert list(report.steps) == ["write", "editor", "write#2", "editor#2", "publish"]
    assert report.steps["editor"].value == Remark("shorter")
    assert done.path == ["write", "shorter", "write", "good", "publish"]
    assert log == ["write", "write", "publish"]


async def test_another_process_goes_on_behind_the_pause(new_store: Callable[[], Store]) -> None:
    first, second = Flowlet(new_store()), Flowlet(new_store())
    before: list[str] = []
    after: list[str] = []
    one, two = reviewed(first, before), reviewed(second, after)
    async with first:
        handle: Handle[Trail] = await first.start(one, Trail(), id="r")
        await until_status(handle, "waiting")
    async with second:
        again = second.handle("r", two)
        assert await again.status() == "waiting"
        await again.send("editor", Remark("good"))
        with anyio.fail_after(20):
            done = await again.result()
    assert done.path == ["write", "good", "publish"]
    assert (before, after) == (["write"], ["publish"])


async def test_what_is_sent_before_is_waiting_there(flow: Flowlet) -> None:
    log: list[str] = []
    graph = reviewed(flow, log)
    slow = anyio.Event()

    async def wait(state: Trail) -> None:
        await slow.wait()

    graph.node(wait, name="wait")
    graph.entry("wait")
    graph.edge("wait", "editor")
    async with flow:
        handle = await flow.start(graph, Trail(), id="r")
        await handle.send("editor", Remark("good"))
        slow.set()
        with anyio.fail_after(20):
            assert (await handle.result()).note == "good"


async def test_the_payload_is_checked(flow: Flowlet) -> None:
    graph = reviewed(flow, [])
    async with flow:
        handle = await flow.start(graph, Trail(), id="r")
        with pytest.raises(DecodeError):
            await handle.send("editor", {"text": 3})
        with pytest.raises(FlowletError, match="editr"):
            await handle.send("editr", Remark("good"))
        await handle.send("editor", Remark("good"))
        await handle.result()


async def test_a_payload_with_fields_of_the_state_needs_no_merge(flow: Flowlet) -> None:
    class Note(Struct):
        note: str
        rounds: int = 7

    graph: Graph[Trail] = flow.graph("g", state=Trail)
    graph.pause("editor", type=Note)
    graph.entry("editor")
    graph.final("editor")
    async with flow:
        handle = await flow.start(graph, Trail(rounds=1))
        await handle.send("editor", Note("n"))
        with anyio.fail_after(20):
            assert await handle.result() == Trail([], 7, "n")


async def test_a_pause_beside_a_branch_that_goes_on(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": ["b"], "b": ["c"], "c": ["z"]})
    graph.pause("p", type=str, merge=lambda s, text: {"note": text})
    graph.edge("a", "p")
    graph.edge("p", "z")
    async with flow:
        handle = await flow.start(graph, Trail())
        await until_status(handle, "waiting")
        assert await keys(handle) >= ["a", "b", "c"]
        await handle.send("p", "now")
        with anyio.fail_after(20):
            assert await handle.result() == Trail(["a", "b", "c", "z"], 0, "now")


async def test_a_pause_that_is_cancelled(flow: Flowlet) -> None:
    graph = reviewed(flow, [])
    async with flow:
        handle = await flow.start(graph, Trail(), id="r")
        await until_status(handle, "waiting")
        await handle.cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await handle.result()


async def test_a_deadline_while_it_waits(flow: Flowlet) -> None:
    graph: Graph[Trail] = flow.graph("g", state=Trail, deadline=0.1)
    graph.pause("p", type=str, merge=lambda s, text: {"note": text})
    graph.entry("p")
    graph.final("p")
    async with flow:
        with anyio.fail_after(20), pytest.raises(RunTimeout):
            await graph(Trail())


async def test_what_is_sent_twice_is_taken_once(flow: Flowlet) -> None:
    graph = reviewed(flow, [])
    async with flow:
        handle = await flow.start(graph, Trail(), id="r")
        for _ in range(2):
            await handle.send("editor", Remark("shorter"), message_id="m1")
        with anyio.fail_after(20):
            while "write#2" not in await keys(handle):
                await anyio.sleep(0.002)
        await until_status(handle, "waiting")
        await handle.send("editor", Remark("good"))
        assert (await handle.result()).path == ["write", "shorter", "write", "good", "publish"]


@pytest.mark.parametrize("way", ["cancelled", "failed"])
async def test_a_child_run_that_is_cut_off_is_undone(flow: Flowlet, way: str) -> None:
    undone: list[str] = []
    booked, failing = anyio.Event(), anyio.Event()

    @step
    async def book(note: str) -> str:
        return "booked"

    @compensate(book)
    async def release(book: str) -> None:
        undone.append(book)

    @step
    async def hang(note: str) -> str:
        booked.set()
        await anyio.sleep_forever()
        return ""

    @flow.saga
    async def travel(note: str) -> dict[str, str]:
        return {"note": await book(note) + await hang(note)}

    async def fail(state: Trail) -> None:
        await failing.wait()
        raise Broken("no")

    graph = join_up(flow, {"a": ["z"]})
    graph.node(travel)
    graph.node(fail)
    for node in (travel, fail):
        graph.edge("a", node)
        graph.edge(node, "z")
    async with flow:
        handle = await flow.start(graph, Trail(), id="r")
        with anyio.fail_after(20):
            await booked.wait()
            if way == "cancelled":
                await handle.cancel()
            else:
                failing.set()
            with pytest.raises(RunCancelled if way == "cancelled" else Broken):
                await handle.result()
        assert undone == ["booked"]
        assert await flow.handle("r/travel").status() == "cancelled"


async def test_a_graph_changed_under_a_run_sets_it_aside(new_store: Callable[[], Store]) -> None:
    first, second = Flowlet(new_store()), Flowlet(new_store())
    one = reviewed(first, [])
    async with first:
        handle: Handle[Trail] = await first.start(one, Trail(), id="r")
        await until_status(handle, "waiting")
    other: Graph[Trail] = second.graph("review", state=Trail)
    other.node(lambda state: leave("draft"), name="draft")
    other.pause("editor", type=Remark, merge=lambda s, r: {"note": r.text})
    other.entry("draft")
    other.edge("draft", "editor")
    other.final("editor")
    async with second:
        again = second.handle("r", other)
        await again.send("editor", Remark("good"))
        with anyio.fail_after(20), pytest.raises(RunParked, match="'draft'"):
            await again.result()


async def test_a_node_that_fails_beside_a_pause(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": ["z"]})
    graph.pause("p", type=str, merge=lambda s, text: {"note": text})

    async def fail(state: Trail) -> None:
        raise Broken("no")

    graph.node(fail)
    for node in ("p", "fail"):
        graph.edge("a", node)
        graph.edge(node, "z")
    async with flow:
        handle = await flow.start(graph, Trail())
        with anyio.fail_after(20), pytest.raises(Broken):
            await handle.result()
        assert await handle.status() == "failed"


async def test_one_can_look_on(flow: Flowlet) -> None:
    graph = join_up(flow, {"a": ["b"], "b": ["z"]})
    graph.pause("p", type=str, merge=lambda s, text: {"note": text})
    graph.edge("a", "p")
    graph.edge("p", "z")
    seen: list[tuple[str, str | None]] = []
    async with flow:
        handle = await flow.start(graph, Trail())
        with anyio.fail_after(20):
            async for record in handle.events():
                seen.append((record.kind, record.step))
                if record.step == "b":
                    await handle.send("p", "now")
    assert seen[0][0] == "started"
    assert seen[1:] == [
        ("step_completed", "a"),
        ("step_completed", "b"),
        ("signal", "p"),
        ("step_completed", "z"),
        ("completed", None),
    ]


async def test_what_a_reducer_makes_is_of_the_type_that_is_annotated(flow: Flowlet) -> None:
    class Odd(Struct, frozen=True):
        seen: Annotated[tuple[int, ...], lambda a, b: [*a, *b]] = ()

    graph: Graph[Odd] = flow.graph("g", state=Odd)
    kinds: list[type] = []

    def look(state: Odd) -> dict[str, Any]:
        kinds.append(type(state.seen))
        return {"seen": [1]}

    for name in "abcd":
        graph.node(look, name=name)
    graph.entry("a")
    for source, target in ("ab", "ac", "bd", "cd"):
        graph.edge(source, target)
    graph.final("d")
    async with flow:
        assert await graph(Odd()) == Odd((1, 1, 1, 1))
    assert kinds == [tuple] * 4
