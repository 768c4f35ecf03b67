"""The algebra of nested states: what is exited and entered, by W3C SCXML's appendix D, worked out by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from flowlet.core.tree import ROOT, Arrow, Memory, Node, Step, Tree, numbers

HISTORIES = ("shallow", "deep")


class Chart:
    """A tree whose states are called by name."""

    def __init__(self, *lines: str, default: dict[str, Sequence[str]] | None = None) -> None:
        """Read lines of ``name kind parent``, in document order; the first child is the initial one."""
        rows: list[tuple[str, str, str]] = [("", "compound", "")]
        for line in lines:
            name, kind, *rest = line.split()
            rows.append((name, kind, rest[0] if rest else ""))
        self.number = {name: n for n, (name, _, _) in enumerate(rows)}
        self.names = [name for name, _, _ in rows]
        parents = {name: parent for name, _, parent in rows[1:]}
        given = default or {}

        def above(name: str) -> tuple[int, ...]:
            return () if not name else (self.number[parents[name]], *above(parents[name]))

        nodes = []
        for name, kind, _ in rows:
            inside = [n for n, k, p in rows[1:] if p == name and k not in HISTORIES]
            leads: Sequence[str] = inside[:1] if kind == "compound" else ()
            if kind in HISTORIES:
                leads = [n for n, k, p in rows[1:] if p == parents[name] and k not in HISTORIES][:1]
            nodes.append(
                Node(
                    number=self.number[name],
                    name=name,
                    kind=kind,  # type: ignore[arg-type]
                    ancestors=above(name),
                    children=tuple(self.number[n] for n in inside),
                    histories=tuple(self.number[n] for n, k, p in rows[1:] if p == name and k in HISTORIES),
                    below=sum(1 << self.number[n] for n in parents if self.number[name] in above(n)),
                    default=tuple(self.number[n] for n in given.get(name, leads)),
                )
            )
        self.tree = Tree(nodes)

    def set(self, words: str) -> int:
        """Return the set of some states, all above them, and the root."""
        return self.tree.grown(sum(1 << self.number[w] for w in words.split())) | 1

    def said(self, states: Iterable[int]) -> str:
        return " ".join(self.names[n] for n in states)

    def leaves(self, active: int) -> str:
        return self.said(self.tree.leaves(active))

    def arrow(self, source: str, targets: str = "", *, internal: bool = False) -> Arrow:
        return Arrow(self.number[source], tuple(self.number[t] for t in targets.split()), internal)

    def step(self, here: str, *arrows: Arrow, memory: Memory | None = None) -> Step:
        return self.tree.step(arrows, self.set(here), self.tree.nothing if memory is None else memory)


# Two regions beside a plain state, one of them two levels deep.
DEEP = Chart(
    "Off atomic",
    "On parallel",
    "Left compound On",
    "LeftH deep Left",
    "L1 compound Left",
    "L1h shallow L1",
    "L1a atomic L1",
    "L1b atomic L1",
    "L2 atomic Left",
    "LF final Left",
    "Right compound On",
    "R1 atomic Right",
    "R2 atomic Right",
    "RF final Right",
    "End final",
)


def test_start_enters_outer_states_first_and_leads_to_the_first_leaves() -> None:
    start = DEEP.tree.start()
    assert (DEEP.said(start.enters), start.exits, start.memory) == ("Off", (), (0, 0))
    nested = Chart("A compound", "B compound A", "C atomic B", "D atomic A")
    assert nested.said(nested.tree.start().enters) == "A B C"
    assert nested.tree.is_legal(nested.tree.start().active)


def test_entering_a_parallel_state_enters_its_regions_in_document_order() -> None:
    step = DEEP.step("Off", DEEP.arrow("Off", "On"))
    assert DEEP.said(step.exits) == "Off"
    assert DEEP.said(step.enters) == "On Left L1 L1a Right R1"
    assert DEEP.leaves(step.active) == "L1a R1"


def test_leaving_exits_inner_states_first_in_reverse_document_order() -> None:
    step = DEEP.step("L1b R2", DEEP.arrow("On", "Off"))
    assert DEEP.said(step.exits) == "R2 Right L1b L1 Left On"
    assert DEEP.said(step.enters) == "Off"


@pytest.mark.parametrize(
    ("targets", "entered"),
    [
        ("L1b", "On Left L1 L1b Right R1"),
        ("R2", "On Left L1 L1a Right R2"),
        ("L2 R2", "On Left L2 Right R2"),
        ("R2 L1b", "On Left L1 L1b Right R2"),
        ("LF RF", "On Left LF Right RF"),
        ("Right", "On Left L1 L1a Right R1"),
    ],
)
def test_deep_and_several_targets(targets: str, entered: str) -> None:
    step = DEEP.step("Off", DEEP.arrow("Off", targets))
    assert DEEP.said(step.enters) == entered
    assert DEEP.tree.is_legal(step.active)


def test_an_external_self_transition_of_a_compound_exits_and_enters_it() -> None:
    chart = Chart("A compound", "B atomic A", "C atomic A", "D atomic")
    step = chart.step("C", chart.arrow("A", "A"))
    assert (chart.said(step.exits), chart.said(step.enters)) == ("C A", "A B")


def test_an_internal_one_keeps_it_and_only_to_what_is_inside() -> None:
    chart = Chart("A compound", "B atomic A", "C atomic A", "D atomic")
    inside = chart.step("C", chart.arrow("A", "B", internal=True))
    assert (chart.said(inside.exits), chart.said(inside.enters)) == ("C", "B")
    external = chart.step("C", chart.arrow("A", "B"))
    assert (chart.said(external.exits), chart.said(external.enters)) == ("C A", "A B")
    itself = chart.step("C", chart.arrow("A", "A", internal=True))  # not a proper descendant
    assert (chart.said(itself.exits), chart.said(itself.enters)) == ("C A", "A B")
    outside = chart.step("C", chart.arrow("A", "D", internal=True))
    assert (chart.said(outside.exits), chart.said(outside.enters)) == ("C A", "D")


def test_an_internal_transition_of_a_parallel_state_is_external() -> None:
    step = DEEP.step("L2 R2", DEEP.arrow("On", "L2", internal=True))
    assert DEEP.said(step.exits) == "R2 Right L2 Left On"
    assert DEEP.said(step.enters) == "On Left L2 Right R1"


def test_a_targetless_transition_does_nothing() -> None:
    step = DEEP.step("L2 R2", DEEP.arrow("L2"))
    assert (step.exits, step.enters, step.active) == ((), (), DEEP.set("L2 R2"))


def test_a_transition_inside_a_region_leaves_the_other_alone() -> None:
    step = DEEP.step("L1b R2", DEEP.arrow("L1", "L2"))
    assert (DEEP.said(step.exits), DEEP.said(step.enters)) == ("L1b L1", "L2")
    assert DEEP.leaves(step.active) == "L2 R2"


def test_transitions_of_two_regions_are_one_step() -> None:
    step = DEEP.step("L1b R1", DEEP.arrow("L1", "L2"), DEEP.arrow("R1", "R2"))
    assert (DEEP.said(step.exits), DEEP.said(step.enters)) == ("R1 L1b L1", "L2 R2")


# Conflicts --------------------------------------------------------------------------------------------
def kept(chart: Chart, here: str, *arrows: Arrow) -> list[int]:
    return chart.tree.compatible(arrows, chart.set(here), chart.tree.nothing)


def test_of_two_in_conflict_the_first_is_kept() -> None:
    out, other = DEEP.arrow("L2", "Off"), DEEP.arrow("R1", "End")
    assert kept(DEEP, "L2 R1", out, other) == [0]
    assert kept(DEEP, "L2 R1", other, out) == [0]


def test_a_descendant_beats_its_ancestor_wherever_it_comes() -> None:
    around, inside = DEEP.arrow("On", "Off"), DEEP.arrow("R1", "R2")
    assert kept(DEEP, "L2 R1", around, inside) == [1]
    assert kept(DEEP, "L2 R1", inside, around) == [0]


def test_an_ancestor_beaten_by_one_lets_the_other_regions_move_too() -> None:
    arrows = DEEP.arrow("On", "Off"), DEEP.arrow("L2", "LF"), DEEP.arrow("R1", "R2")
    assert kept(DEEP, "L2 R1", *arrows) == [1, 2]


def test_targetless_transitions_are_never_in_conflict() -> None:
    arrows = DEEP.arrow("L2"), DEEP.arrow("R1", "Off"), DEEP.arrow("On")
    assert kept(DEEP, "L2 R1", *arrows) == [0, 1, 2]


# Histories --------------------------------------------------------------------------------------------
def history(chart: Chart, here: str, out: Arrow) -> Memory:
    return chart.step(here, out).memory


def recall(chart: Chart, memory: Memory, target: str) -> str:
    step = chart.tree.step([chart.arrow("Off", target)], chart.set("Off"), memory)
    assert chart.tree.is_legal(step.active)
    return chart.leaves(step.active)


def test_deep_history_remembers_leaves_and_shallow_children() -> None:
    chart = Chart(
        "P compound",
        "Hs shallow P",
        "Hd deep P",
        "A compound P",
        "A1 atomic A",
        "A2 atomic A",
        "B atomic P",
        "Off atomic",
    )
    memory = history(chart, "A2", chart.arrow("P", "Off"))
    assert recall(chart, memory, "Hs") == "A1"
    assert recall(chart, memory, "Hd") == "A2"
    assert recall(chart, chart.tree.nothing, "Hs") == "A1"
    assert recall(chart, history(chart, "B", chart.arrow("P", "Off")), "Hs") == "B"


def test_deep_history_of_a_parallel_state_remembers_every_region() -> None:
    chart = Chart(
        "P parallel",
        "H deep P",
        "L compound P",
        "L1 atomic L",
        "L2 atomic L",
        "R compound P",
        "R1 atomic R",
        "R2 compound R",
        "R2a atomic R2",
        "R2b atomic R2",
        "Off atomic",
        default={"H": ["L", "R"]},
    )
    memory = history(chart, "L2 R2b", chart.arrow("P", "Off"))
    assert recall(chart, memory, "H") == "L2 R2b"
    assert recall(chart, chart.tree.nothing, "H") == "L1 R1"


def test_a_history_is_not_touched_while_its_parent_stays() -> None:
    step = DEEP.step("L1b R1", DEEP.arrow("L1b", "L1a"))
    assert step.memory == DEEP.tree.nothing
    left = DEEP.step("L1b R1", DEEP.arrow("L1", "L2"))  # L1 is exited, Left is not
    assert DEEP.tree.recalled(DEEP.number["L1h"], left.memory) == 1 << DEEP.number["L1b"]
    assert DEEP.tree.recalled(DEEP.number["LeftH"], left.memory) == 0


def test_a_history_with_a_default_deep_inside() -> None:
    chart = Chart("P compound", "H shallow P", "A compound P", "A1 atomic A", "A2 atomic A", "B atomic P", "Off atomic",
                  default={"H": ["A2"]})  # fmt: skip
    assert recall(chart, chart.tree.nothing, "H") == "A2"


def test_a_transition_to_a_history_of_its_own_source_is_judged_by_what_it_stands_for() -> None:
    memory = DEEP.step("L1b R1", DEEP.arrow("L1", "L2")).memory
    step = DEEP.step("L2 R1", DEEP.arrow("L2", "L1h"), memory=memory)
    assert (DEEP.said(step.exits), DEEP.said(step.enters)) == ("L2", "L1 L1b")


# What is done -----------------------------------------------------------------------------------------
def test_a_parallel_state_is_done_by_its_last_region() -> None:
    tree, number = DEEP.tree, DEEP.number
    assert DEEP.said(tree.done(number["LF"], DEEP.set("LF R1"))) == "Left"
    assert DEEP.said(tree.done(number["RF"], DEEP.set("LF RF"))) == "Right On"
    assert tree.done(number["End"], DEEP.set("End")) == []
    assert not tree.is_done(number["On"], DEEP.set("LF R2"))
    assert tree.is_done(number["On"], DEEP.set("LF RF"))
    assert not tree.is_done(number["R1"], DEEP.set("LF R1"))


# What is legal ----------------------------------------------------------------------------------------
def raw(chart: Chart, words: str) -> int:
    return sum(1 << chart.number[w] for w in words.split())


@pytest.mark.parametrize(
    "active",
    [
        0,
        raw(DEEP, "Off"),  # without the root
        1,  # nothing in the root
        raw(DEEP, "Off End") | 1,  # two children of a compound
        raw(DEEP, "On Left L2") | 1,  # a region is missing
        raw(DEEP, "L2 R1") | 1,  # without what they are in
        DEEP.set("L1a R1") | raw(DEEP, "LeftH"),  # a history is never active
        DEEP.set("L1 R1"),  # a compound without a child
    ],
)
def test_illegal_sets(active: int) -> None:
    assert not DEEP.tree.is_legal(active)


def test_every_set_that_is_called_legal_is_what_some_leaves_grow_to() -> None:
    tree = DEEP.tree
    legal = {active for active in range(1 << len(tree.nodes)) if active & 1 and tree.is_legal(active)}
    assert {DEEP.leaves(active) for active in legal} == {
        "Off", "End", *(f"{left} {right}" for left in ("L1a", "L1b", "L2", "LF") for right in ("R1", "R2", "RF"))
    }  # fmt: skip
    assert all(tree.grown(active & tree.atoms) == active for active in legal)


def test_numbers_are_in_document_order() -> None:
    assert list(numbers(0b101001)) == [0, 3, 5]
    assert list(numbers(0)) == []


@pytest.mark.parametrize("source", ["", "Off"])
def test_effective_targets_are_named_once(source: str) -> None:
    chart = Chart("Off atomic", "P compound", "H shallow P", "A atomic P")
    both: Any = (chart.number["H"], chart.number["A"])
    assert chart.tree.effective(both, chart.tree.nothing) == (chart.number["A"],)
    assert chart.tree.domain(Arrow(chart.number[source], both), chart.tree.nothing) == ROOT
