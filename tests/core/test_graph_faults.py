"""What is wrong with a graph is found when it is built, all at once, and the message says what to do."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import pytest
from msgspec import Meta, Struct

from flowlet import Flowlet, Registry, compensate, step
from flowlet.errors import DefinitionError
from flowlet.graph import Graph

Add = Callable[[Graph[Any]], None]


class State(Struct):
    text: str = ""
    notes: Annotated[list[str], operator.add] = []


async def write(state: State) -> dict[str, Any]:
    return {}


async def check(state: State) -> None: ...


async def publish(state: State) -> None: ...


async def alone(state: State) -> None: ...


def draft() -> Graph[State]:
    return Registry().graph("review", state=State)


def sound() -> Graph[State]:
    """Return a graph that has nothing wrong with it, until something is added."""
    graph = draft()
    graph.node(write)
    graph.node(check)
    graph.node(publish)
    graph.entry(write)
    graph.edge(write, check)
    graph.edge("check", publish)
    graph.final(publish)
    return graph


def problems(graph: Graph[Any]) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        graph.build()
    return list(caught.value.problems)


def test_a_sound_graph_has_no_faults() -> None:
    sound().build()


# ------------------------------------------------------------------ how it is joined
def both(graph: Graph[Any]) -> None:
    graph.edge(write, publish, when=bool, otherwise=True)


@pytest.mark.parametrize(
    ("add", "problem"),
    [
        (
            lambda g: g.edge(write, "chek"),
            "an edge's target names 'chek', which is no node of it; did you mean 'check'?",
        ),
        (lambda g: g.edge("wirte", check), "an edge's source names 'wirte', which is no node of it; did you mean"),
        (lambda g: g.edge(print, check), "an edge's source names print, which is no node of it; add it with node()"),
        (lambda g: g.entry("x"), "entry() names 'x', which is no node of it"),
        (lambda g: g.final("x"), "final() names 'x', which is no node of it"),
        (
            lambda g: g.edge(write, check),
            "the edge from 'write' to 'check' is there twice; put both conditions into one",
        ),
        (lambda g: g.edge(publish, write), "'publish' is final, but edges lead on from it"),
        (lambda g: g.entry(write), "'write' is named twice as entry"),
        (lambda g: g.final(publish), "'publish' is named twice as final"),
        (lambda g: g.node(write), "has two nodes named 'write'; give one another name="),
        (lambda g: g.pause("check", type=State), "has two nodes named 'check'"),
        (lambda g: g.node(alone), "'alone' cannot be reached from an entry"),
        (lambda g: g.node(alone), "no path leads from 'alone' to a final node"),
        (lambda g: g.node(write, name="again") and g.edge(write, "again"), "names write, which is several nodes:"),
        (both, "the edge from 'write' to 'publish' has when= and otherwise=; leave one out"),
        (
            lambda g: g.edge(write, publish, otherwise=True),
            "the edge from 'write' to 'publish' is taken otherwise, but no edge there has when=",
        ),
        (
            lambda g: [g.edge(write, n, otherwise=True) for n in (write, publish)],
            "'write' has 2 edges with otherwise=True, to 'write', 'publish'; keep one",
        ),
        (
            lambda g: g.edge(write, publish, max_iterations=3),
            "the edge from 'write' to 'publish' has max_iterations=, but lies in no cycle",
        ),
        (
            lambda g: g.edge(check, write, max_iterations=0),
            "max_iterations of the edge from 'check' to 'write' must be a whole number of at least 1, not 0",
        ),
        (
            lambda g: g.edge(check, write, when=write),
            "the edge from 'check' to 'write': when= must be a plain function of the state; do slow work in a node",
        ),
        (
            lambda g: g.edge(check, write, label=3),
            "the label of the edge from 'check' to 'write' must be a text, not 3",
        ),
        (lambda g: g.edge(check, write, when=lambda: True), "must take one argument, the state"),
        (lambda g: g.edge(check, write, when=3), "when= must be a plain function of the state"),
    ],
)
def test_joints(add: Add, problem: str) -> None:
    graph = sound()
    add(graph)
    assert any(problem in p for p in problems(graph)), problems(graph)


def test_a_graph_of_nothing() -> None:
    assert problems(draft()) == ["review: has no nodes; add some with node()"]


def test_no_entry_and_no_end() -> None:
    graph = draft()
    graph.node(write)
    assert problems(graph) == [
        "review: has no entry; say where it begins with entry(node)",
        "review: has no final node; say where it ends with final(node)",
    ]


def test_all_at_once() -> None:
    graph = draft()
    graph.node(write)
    graph.node(check, join="some")
    graph.pause("editor", type=int)
    graph.entry("writer")
    graph.edge(write, check)
    graph.edge(write, check)
    graph.final(check)
    found = problems(graph)
    assert len(found) == 5
    for part in (
        "entry() names 'writer', which is no node of it; did you mean 'write'?",
        "is there twice",
        "no path leads from 'editor' to a final node",
        'join= is "all", "any" or a whole number of at least 1, not \'some\'',
        "node 'editor': takes int, which is no dict of fields of the state; give merge=",
    ):
        assert any(part in p for p in found), (part, found)


# ------------------------------------------------------------------ the state
@pytest.mark.parametrize("state", [int, dict, "State", State()])
def test_a_state_that_is_none(state: Any) -> None:
    graph = Registry().graph("g", state=state)
    assert any("g: state= takes a msgspec.Struct or a dataclass, not" in p for p in problems(graph))


def test_fields_that_cannot_be_stored() -> None:
    class Odd(Struct):
        lock: Callable[[], None]
        any: Any
        fine: int

    found = problems(Registry().graph("g", state=Odd))
    assert any("Odd: field 'lock' has a type that cannot be stored" in p for p in found)
    assert any("Odd: field 'any' is annotated Any" in p for p in found)


def test_a_state_without_fields() -> None:
    class Empty(Struct): ...

    assert any("its state Empty has no fields" in p for p in problems(Registry().graph("g", state=Empty)))


def test_reducers() -> None:
    async def slow(a: int, b: int) -> int:
        return a + b

    @dataclass
    class Odd:
        two: Annotated[int, max, min]
        slow: Annotated[int, slow]
        one: Annotated[int, lambda a: a]
        fine: Annotated[int, Meta(ge=0), max]

    found = problems(Registry().graph("g", state=Odd))
    assert any("Odd.two: has 2 reducers (max, min); keep one" in p for p in found)
    assert any("Odd.slow: its reducer slow is async" in p for p in found)
    assert any("Odd.one: its reducer <lambda> must take two values" in p for p in found)
    assert not any("Odd.fine" in p for p in found)


# ------------------------------------------------------------------ nodes
class Changes(TypedDict, total=False):
    txt: str


class Article(Struct):
    text: str
    author: str


class Plain(Struct):
    text: str


@step
async def pay(state: State) -> None: ...


@compensate(pay)
async def refund(state: State) -> None: ...


@step(pivot=True)
async def commit(state: State) -> None: ...


@step(at_most_once=True)
async def once(state: State) -> None: ...


class Desk:
    @step
    async def write(self, state: State) -> None: ...


def node_of(function: Any) -> Any:
    return lambda g: g.node(function, name="n")


async def takes_other(state: Plain) -> None: ...


async def takes_fields(text: str, note: str) -> None: ...


async def takes_wrong(text: str, notes: list[int]) -> None: ...


async def takes_many(*states: State) -> None: ...


async def returns_state(state: State) -> State:
    return state


async def returns_text(state: State) -> str:
    return ""


async def returns_article(state: State) -> Article:
    return Article("", "")


async def returns_changes(state: State) -> Changes:
    return {}


@pytest.mark.parametrize(
    ("add", "problem"),
    [
        (node_of(3), "3 is no function, so it cannot be a node"),
        (node_of(State), "is no function, so it cannot be a node"),
        (node_of(takes_other), "parameter 'state' is no field of State"),
        (node_of(takes_fields), "parameter 'note' is no field of State; did you mean 'notes'?"),
        (node_of(takes_wrong), "parameter 'notes' is annotated list[int], but the field is list[str]"),
        (node_of(takes_many), "takes_many: a step takes *args or **kwargs"),
        (node_of(returns_state), "returns the whole state State: it must be a dict of the fields that change"),
        (node_of(returns_text), "returns str, which is no dict of fields of the state; give merge= to make one of it"),
        (node_of(returns_article), "returns 'author', which is no field of State"),
        (node_of(returns_changes), "returns 'txt', which is no field of State; did you mean 'text'?"),
        (node_of(pay), "has a compensation, but a graph undoes nothing; make it a saga"),
        (node_of(commit), "is a pivot, but a graph never goes back; make it a saga"),
        (node_of(Desk.write), "is a method; add that of an object, `thing.write`"),
        (lambda g: g.node(once, name="n", retry=3), "at_most_once=True excludes retry="),
        (lambda g: g.node(check, name="a.b"), "a node's name is a text without # : ~ / . [ ], not 'a.b'; give name="),
        (lambda g: g.node(lambda state: None), "a node's name is a text without # : ~ / . [ ], not '<lambda>'"),
        (lambda g: g.node(check, name="n", join=0), 'join= is "all", "any" or a whole number of at least 1, not 0'),
        (
            lambda g: g.node(check, name="n", join=True),
            'join= is "all", "any" or a whole number of at least 1, not True',
        ),
        (lambda g: g.node(check, name="n", timeout=-1), "node 'n': timeout: must be finite and not negative, not -1"),
        (lambda g: g.node(check, name="n", retry="3"), "node 'n': retry= takes a Retry or a number of attempts"),
        (lambda g: g.node(check, name="n", merge=write), "merge= takes a plain function of the state and the value"),
        (lambda g: g.pause("n", type=Any), "type= is annotated Any"),
        (lambda g: g.pause("n", type=Article), "takes 'author', which is no field of State; or give merge="),
        (lambda g: g.pause("n", type=State), "takes the whole state State"),
        (lambda g: g.pause("n", type=str, merge=lambda s: {}), "merge= takes a plain function of the state"),
    ],
)
def test_nodes(add: Add, problem: str) -> None:
    graph = sound()
    add(graph)
    assert any(problem in p for p in problems(graph)), problems(graph)


def test_what_nodes_may_be() -> None:
    async def by_field(notes: list[str], text: str) -> dict[str, str] | None:
        return None

    def plain(state):  # type: ignore[no-untyped-def]
        return {"text": "x"}

    def plain_field(text):  # type: ignore[no-untyped-def]
        return {"text": text}

    def plain_fields(text, notes):  # type: ignore[no-untyped-def]
        return {"text": text, "notes": notes}

    async def part(state: State) -> Plain:
        return Plain("x")

    async def number(state: State) -> int:
        return 1

    graph = draft()
    for place, node in enumerate((by_field, plain, plain_field, plain_fields, part, Desk().write)):
        graph.node(node, name=f"n{place}")
    graph.node(number, merge=lambda state, n: {"text": str(n)})
    graph.pause("editor", type=Plain)
    for place in range(5):
        graph.edge(f"n{place}", f"n{place + 1}")
    graph.edge("n5", number)
    graph.edge(number, "editor")
    graph.entry("n0")
    graph.final("editor")
    steps = graph.definition().steps
    assert [[p.annotation for p in steps[f"n{place}"].inputs] for place in range(4)] == [
        [list[str], str],
        [State],
        [str],
        [str, Annotated[list[str], operator.add]],
    ]


# ------------------------------------------------------------------ graphs within graphs
def test_a_graph_of_another_state() -> None:
    other = Registry().graph("other", state=Plain)
    other.node(takes_other)
    other.entry(takes_other)
    other.final(takes_other)
    graph = sound()
    graph.node(other)
    assert "review: node 'other': has the state Plain, this graph State; use one" in problems(graph)


def test_the_faults_of_a_graph_within_are_told() -> None:
    inner = Registry().graph("inner", state=State)
    inner.node(write)
    graph = sound()
    graph.node(inner, retry=2)
    graph.edge(write, inner)
    graph.edge(inner, publish)
    assert problems(graph) == [
        "review: node 'inner': retry= does not go with a graph, whose nodes have their own",
        "inner: has no entry; say where it begins with entry(node)",
        "inner: has no final node; say where it ends with final(node)",
    ]


def test_a_graph_that_contains_itself() -> None:
    registry = Registry()
    outer, inner = registry.graph("outer", state=State), registry.graph("inner", state=State)
    for graph, other in ((outer, inner), (inner, outer)):
        graph.node(other)
        graph.entry(other)
        graph.final(other)
    assert problems(outer) == ["outer: contains itself, so that it has no end; leave it out as a node"]


# ------------------------------------------------------------------ the graph as a whole
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"version": 0}, "version must be a whole number of at least 1, not 0"),
        ({"max_iterations": 0}, "max_iterations must be a whole number of at least 1, not 0"),
        ({"max_iterations": None}, "max_iterations must be a whole number of at least 1, not None"),
        ({"max_concurrency": True}, "max_concurrency must be a whole number of at least 1, not True"),
        ({"timeout": "1"}, "timeout: must be seconds or a timedelta, not '1'"),
        ({"deadline": -1}, "deadline: must be finite and not negative, not -1"),
    ],
)
def test_options(options: dict[str, Any], problem: str) -> None:
    graph = Registry().graph("g", state=State, **options)
    assert f"g: {problem}" in problems(graph)


def test_a_name_is_there_once() -> None:
    registry = Registry()
    registry.graph("review", state=State)
    registry.graph("review", state=State, version=2)
    with pytest.raises(DefinitionError, match="review: the name is taken by another definition of version 1"):
        registry.graph("review", state=State)
    with pytest.raises(DefinitionError, match="the name is taken"):
        registry.saga("review", check)
    registry.saga("pay", check)
    with pytest.raises(DefinitionError, match="the name is taken"):
        registry.graph("pay", state=State)


def test_a_built_graph_does_not_change() -> None:
    graph = sound()
    graph.build()
    graph.build()
    changes: list[Callable[[], Any]] = [
        lambda: graph.node(write, name="more"),
        lambda: graph.pause("more", type=Plain),
        lambda: graph.edge(check, write),
        lambda: graph.entry(check),
        lambda: graph.final(check),
    ]
    for change in changes:
        with pytest.raises(DefinitionError, match="review: is built already, and does not change any more"):
            change()


@pytest.mark.anyio
async def test_entering_a_flowlet_builds_its_graphs() -> None:
    registry = Registry()
    registry.graph("one", state=State)
    registry.graph("two", state=State)
    with pytest.raises(DefinitionError) as caught:
        async with Flowlet(registry=registry):
            pass
    assert caught.value.problems == (
        "one: has no nodes; add some with node()",
        "two: has no nodes; add some with node()",
    )


def test_faults_do_not_freeze_a_graph() -> None:
    graph = sound()
    graph.node(alone)
    problems(graph)
    graph.edge(write, alone)
    graph.edge(alone, publish)
    graph.build()


def test_a_state_whose_annotations_only_its_maker_knows() -> None:
    """msgspec looks for the names in the class's module only."""
    from decimal import Decimal as Amount

    class Local(Struct):
        amount: Amount

    found = problems(Registry().graph("g", state=Local))
    assert any("name 'Amount' is not defined" in p for p in found), found
