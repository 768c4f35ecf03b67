"""Random graphs, interrupted at random, against a model of tokens that is too simple to be wrong, and to be fast."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import anyio
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interrupted import Crash, Lives, drop_event
from msgspec import Struct

from flowlet import Registry, current_run
from flowlet.core.run_records import Ended, StepEnded, StepErred, run_record_codec
from flowlet.errors import GraphStuck, IterationLimit, WriteConflict
from flowlet.graph import Graph

LIMIT = 3


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(processors=[drop_event])
    yield
    structlog.reset_defaults()


class State(Struct):
    path: Annotated[list[str], operator.add] = []
    total: Annotated[int, operator.add] = 0
    note: str = ""


# ---------------------------------------------------------------- random graphs
class Link(Struct, frozen=True):
    """An edge: always taken, taken when the total has this rest, or otherwise."""

    source: int
    target: int
    rest: int | None = None
    otherwise: bool = False


class Plan(Struct, frozen=True):
    """A random graph; its last node is the final one."""

    size: int
    links: list[Link]
    entries: list[int]
    joins: list[int]  # 0 for all
    writes: list[bool]
    pauses: list[int]
    concurrency: int | None

    @property
    def final(self) -> int:
        return self.size - 1

    def after(self, node: int) -> list[int]:
        return [link.target for link in self.links if link.source == node]

    def reach(self, node: int, late: frozenset[int] = frozenset()) -> set[int]:
        """Return the nodes that a token at a node can come to, if it ends at those where it is late."""
        found: set[int] = set()
        stack = [node]
        while stack:
            for after in self.after(stack.pop()):
                if after not in found and after not in late:
                    found.add(after)
                    stack.append(after)
        return found


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    size = draw(st.integers(2, 7))
    number = st.integers(0, size - 1)
    pairs = draw(st.lists(st.tuples(number, number), min_size=size - 1, max_size=2 * size + 2, unique=True))
    if draw(st.booleans()):  # no cycles
        pairs = list(dict.fromkeys((min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]))
    pairs = [(a, b) for a, b in pairs if a != size - 1]
    if not any(b == size - 1 for _, b in pairs):
        pairs.append((0, size - 1))
    entries = sorted({0, *draw(st.lists(st.integers(0, size - 2), max_size=1))})
    links = [Link(a, b, draw(st.sampled_from([None, None, 0, 1]))) for a, b in pairs]
    for source in {link.source for link in links}:
        row = [n for n, link in enumerate(links) if link.source == source]
        if len(row) > 1 and any(links[n].rest is not None for n in row) and draw(st.booleans()):
            rest = [n for n in row if links[n].rest is None] or row[-1:]
            if len(row) > 1 and any(links[n].rest is not None for n in row if n != rest[0]):
                links[rest[0]] = Link(links[rest[0]].source, links[rest[0]].target, otherwise=True)
    whole = Plan(size, links, entries, [], [], [], None)
    begun = set(entries).union(*(whole.reach(n) for n in entries))
    used = {n for n in begun if n == size - 1 or size - 1 in whole.reach(n)}
    if size - 1 not in used:
        links.append(Link(0, size - 1))
        used |= {0, size - 1}
        begun |= {size - 1}
    # What is left is sound: every node is on a way from an entry to the final one.
    names = sorted(used)
    place = {node: number for number, node in enumerate(names)}
    kept = [
        Link(place[link.source], place[link.target], link.rest, link.otherwise)
        for link in links
        if link.source in used and link.target in used
    ]
    lone = [
        Link(link.source, link.target) if link.otherwise and not _has_condition(kept, link.source) else link
        for link in kept
    ]
    few = st.sampled_from([0, 0, 0, 1, 2, 3]) if draw(st.booleans()) else st.just(0)
    return Plan(
        len(names),
        lone,
        [place[n] for n in entries if n in place] or [0],
        draw(st.lists(few, min_size=len(names), max_size=len(names))),
        draw(st.lists(st.sampled_from([False, False, True]), min_size=len(names), max_size=len(names))),
        draw(st.lists(st.integers(0, 4), min_size=len(names), max_size=len(names))),
        draw(st.sampled_from([None, None, 1, 2])),
    )


def _has_condition(links: list[Link], source: int) -> bool:
    return any(link.source == source and link.rest is not None for link in links)


class World:
    """Where nodes find what they act on.

    Attributes:
        seen: by key, the states that executions began with, in all incarnations.
    """

    lives: Lives
    seen: dict[str, set[tuple[str, ...]]]


def build(plan: Plan) -> tuple[Registry, Graph[State]]:
    registry = Registry()
    graph: Graph[State] = registry.graph("g", state=State, max_iterations=LIMIT, max_concurrency=plan.concurrency)
    for number in range(plan.size):

        async def visit(state: State, number: int = number) -> dict[str, Any]:
            run, lives = current_run(), World.lives
            key = run.idempotency_key.partition("/")[2]
            World.seen.setdefault(key, set()).add(tuple(state.path))
            state.path.append("spoiled")  # its own object
            for _ in range(plan.pauses[number]):
                await anyio.lowlevel.checkpoint()
            lives.effects.append((lives.number, key, run.attempt))
            return {"path": [key], "total": number + 1, **({"note": key} if plan.writes[number] else {})}

        graph.node(visit, name=f"n{number}", join=plan.joins[number] or "all")
    for link in plan.links:
        rest = link.rest
        condition = None if rest is None else lambda state, rest=rest: state.total % 2 == rest
        graph.edge(f"n{link.source}", f"n{link.target}", when=condition, otherwise=link.otherwise)
    for entry in plan.entries:
        graph.entry(f"n{entry}")
    graph.final(f"n{plan.final}")
    return registry, graph


# ---------------------------------------------------------------- the model
@dataclass(eq=False)
class Item:
    """A node that executes, under its key, or tokens that wait at it."""

    node: int
    past: set[str] = field(default_factory=set)
    late: frozenset[int] = frozenset()
    count: int = 1
    key: str = ""


class Ends(Exception):
    """The run fails with the error."""


class Model:
    """What must come of a plan, given the order in which its nodes have ended."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.path: list[str] = []
        self.total = 0
        self.note = ""
        self.seen: dict[str, tuple[str, ...]] = {}
        self.died: list[str] = []
        self.finished = False
        self.items: list[Item] = []  # those that wait in the order in which their first tokens came
        self._writer = ""
        self._counts: Counter[int] = Counter()
        for entry in plan.entries:
            self._arrive(entry, None)
        self._fire_all()

    def land(self, key: str) -> None:
        """Take note that an execution has ended."""
        (item,) = [i for i in self.items if i.key == key]
        plan, node = self.plan, item.node
        self.path.append(key)
        self.total += node + 1
        if plan.writes[node]:
            if self._writer and self._writer not in item.past:
                raise Ends(WriteConflict("", "note", (self._writer, key)))
            self._writer = self.note = key
        links = [link for link in plan.links if link.source == node]
        met = [link.target for link in links if link.rest is not None and self.total % 2 == link.rest]
        taken = {link.target for link in links if link.rest is None and (not link.otherwise or not met)} | {*met}
        for link in links:  # in their order
            if link.target in taken:
                self._arrive(link.target, item)
        if node == plan.final:
            self.finished = True
        elif not taken:
            self.died.append(key)
        self.items.remove(item)
        self._fire_all()

    def _arrive(self, node: int, origin: Item | None) -> None:
        past = {*origin.past, origin.key} if origin else set()
        late = origin.late if origin else frozenset()
        if node in late:
            return
        for item in self.items:
            if item.node == node and not item.key:
                item.past |= past
                item.late &= late
                item.count += 1
                return
        self.items.append(Item(node, past, late))

    def _fire_all(self) -> None:
        while ready := [i for i in self.items if not i.key and self._may_fire(i)]:
            self._fire(ready[0])
        if self.items and not any(i.key for i in self.items):
            self._fire(self.items[0])
            self._fire_all()

    def _may_fire(self, item: Item) -> bool:
        join = self.plan.joins[item.node]
        if join and item.count >= join:
            return True
        return not any(
            item.node in self.plan.reach(other.node, other.late) for other in self.items if other.node != item.node
        )

    def _fire(self, item: Item) -> None:
        if self.plan.joins[item.node]:
            for other in self.items:
                if other.node != item.node and item.node in self.plan.reach(other.node):
                    other.late |= {item.node}
        self._counts[item.node] += 1
        count = self._counts[item.node]
        if count > LIMIT and item.node in self.plan.reach(item.node):
            raise Ends(IterationLimit("", f"n{item.node}", LIMIT))
        item.key = f"n{item.node}" if count == 1 else f"n{item.node}#{count}"
        self.seen[item.key] = tuple(self.path)
        self.items.remove(item)
        self.items.append(item)


# ---------------------------------------------------------------- the property
crashes = st.lists(st.builds(Crash, st.integers(1, 5), st.booleans()), max_size=4)


@pytest.mark.parametrize(("backend", "examples"), [("asyncio", 400), ("trio", 80)])
def test_random_graphs_come_to_the_end_that_the_model_says(backend: str, examples: int) -> None:
    ends: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(plan=plans(), crashes=crashes, way=st.sampled_from(["execute", "start"]))
    def check(plan: Plan, crashes: list[Crash], way: Any) -> None:
        lives = World.lives = Lives(backend)
        World.seen = {}
        registry, graph = build(plan)
        result, stored = lives.run(registry, graph, [State()], crashes, way)
        records = [run_record_codec.decode(data, "a record") for data in stored.records]
        assert isinstance(records[-1], Ended)
        assert not any(isinstance(record, StepErred) for record in records)
        landed = [record.key for record in records if isinstance(record, StepEnded)]
        assert len(set(landed)) == len(landed), "a node was recorded twice"
        follow(plan, landed, result)
        ends[type(result).__name__] += 1
        ends["interrupted"] += lives.crashes
        ends["counted"] += graph.plan().needs is not None

    check()
    assert ends["interrupted"] > examples / 4, ends
    assert examples / 10 < ends["counted"] < examples * 0.9, ends  # both ways to do it
    assert all(ends[kind] > 0 for kind in ("State", "WriteConflict", "GraphStuck", "IterationLimit")), ends


def follow(plan: Plan, landed: list[str], result: Any) -> None:
    """Take the model through what has happened, and hold the result against it."""
    model: Model | None = None
    try:
        model = Model(plan)
        for key in landed:
            model.land(key)
    except Ends as end:
        (error,) = end.args
        assert type(result) is type(error), (result, error)
        if isinstance(error, WriteConflict):
            assert result.writers == error.writers
        else:
            assert isinstance(error, IterationLimit)
            assert result.node == error.node
        return
    assert model.items == []
    if model.finished:
        assert result == State(model.path, model.total, model.note)
    else:
        assert isinstance(result, GraphStuck), result
        assert result.died == tuple(model.died)
    assert {key: {path} for key, path in model.seen.items()} == World.seen
