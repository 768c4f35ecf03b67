"""Judging nested states: what a tree of states must have, and what its transitions can mean.

Law: every check notes all it finds and goes on; what the algebra of `flowlet.core.tree` takes for granted is made sure
of here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowlet.core.chart import Candidate
from flowlet.core.faults import Faults
from flowlet.core.states import State, States
from flowlet.core.tree import ROOT, Arrow, Tree, numbers


def check_tree(states: States, allow: frozenset[str], faults: Faults) -> None:
    """Note what is wrong with the states themselves."""
    inside: dict[str | None, list[State]] = {}
    for state in states.by_name.values():
        inside.setdefault(state.parent, []).append(state)
    for name, state in states.by_name.items():
        within = inside.get(name, [])
        real = [s for s in within if s.kind not in ("shallow", "deep")]
        if state.kind == "parallel":
            _check_regions(state, real, faults)
        elif state.kind == "compound":
            _check_compound(state, within, allow, faults)
        if state.kind in ("shallow", "deep") and state.parent is None:
            faults.add(state.ref, "a history belongs inside of a state, whose states it remembers")
        if state.mark.invoke is not None and state.kind in ("final", "shallow", "deep"):
            faults.add(state.ref, "nothing can be invoked here, since the machine never stays in it; drop invoke=")


def _check_regions(state: State, regions: Sequence[State], faults: Faults) -> None:
    if len(regions) < 2:
        faults.add(state.ref, "a parallel state needs at least two regions; put further states inside, or drop it")
    for region in regions:
        if region.initial:
            faults.add(region.ref, f"drop initial=True: all regions of {state.name!r} are entered")
        if region.kind == "final":
            faults.add(region.ref, f"a region of {state.name!r} cannot be final; put a final state inside of it")


def _check_compound(state: State, within: Sequence[State], allow: frozenset[str], faults: Faults) -> None:
    initial = [s.name for s in within if s.initial]
    if len(initial) > 1:
        faults.add(state.ref, f"it has more than one initial state ({', '.join(initial)}); keep initial=True on one")
    elif initial and state.mark.default is not None:
        faults.add(state.ref, "it has both default= and a state with initial=True; drop one of the two")
    elif not initial and state.mark.default is None and "no_initial" not in allow:
        faults.add(
            state.ref,
            'none of its states is the initial one; write @state(initial=True) on one, or allow={"no_initial"} to take '
            "the first",
        )
    if all(s.kind in ("shallow", "deep") for s in within):
        faults.add(state.ref, "it has histories and no state to remember")


def check_together(where: object, targets: Sequence[State], tree: Tree, faults: Faults) -> None:
    """Several targets must be in different regions."""
    for place, one in enumerate(targets):
        for other in targets[place + 1 :]:
            if not are_together(tree, one.number, other.number) or _is_above(tree, one.number, other.number):
                faults.add(where, f"targets {one.name!r} and {other.name!r} are not in different regions")


def _is_above(tree: Tree, one: int, other: int) -> bool:
    return one in tree.nodes[other].ancestors or other in tree.nodes[one].ancestors


def are_together(tree: Tree, one: int, other: int) -> bool:
    """Say whether two states can be active at once."""
    if one == other or _is_above(tree, one, other):
        return True
    shared = next(a for a in tree.nodes[one].ancestors if a in tree.nodes[other].ancestors)
    return tree.nodes[shared].kind == "parallel"


# What transitions can touch ---------------------------------------------------------------------------
def entered_by(tree: Tree, arrow: Arrow) -> int:
    """Return the set of states that a transition can enter, whatever histories remember."""
    if not arrow.targets:
        return 0
    found = sum(1 << n for n in tree.step([arrow], 0, tree.nothing).enters)
    for history in tree.histories:
        defaults = any(history in tree.nodes[n].default for n in numbers(found))
        if history in arrow.targets or defaults:
            parent = tree.nodes[history].ancestors[0]
            found |= tree.nodes[parent].below & ~sum(1 << h for h in tree.histories)
            found |= sum(1 << n for n in (parent, *tree.nodes[parent].ancestors) if n != ROOT)
    return found


def exited_by(tree: Tree, arrow: Arrow) -> int:
    """Return the set of states that a transition can exit, whatever else is active."""
    domain = tree.domain(Arrow(arrow.source, arrow.targets, arrow.internal), tree.nothing)
    if domain is None:
        return 0
    for target in arrow.targets:
        if target in tree.histories:
            while domain != ROOT and not tree.nodes[domain].below >> target & 1:
                domain = tree.nodes[domain].ancestors[0]
    found = tree.nodes[domain].below & ~sum(1 << h for h in tree.histories)
    return sum(1 << n for n in numbers(found) if arrow.source == ROOT or are_together(tree, arrow.source, n))


# The chart as a whole ---------------------------------------------------------------------------------
class Reach:
    """Which states lead to which, guards aside.

    Args:
        arrows: for each candidate, what it means and what its failing means.
    """

    def __init__(self, tree: Tree, arrows: Mapping[Candidate, Sequence[Arrow]]) -> None:
        self.tree = tree
        self.arrows = arrows
        # A history can remember only what was entered otherwise.
        self._entered = {c: _union(map(self._entered_by, some)) for c, some in arrows.items()}

    def _entered_by(self, arrow: Arrow) -> int:
        if not arrow.targets:
            return 0
        return sum(1 << n for n in self.tree.step([arrow], 0, self.tree.nothing).enters)

    def reached(self) -> int:
        """Return the set of states that can be reached from the start."""
        return self.grown(sum(1 << n for n in self.tree.start().enters) | 1)

    def grown(self, states: int) -> int:
        """Return a set of states and all that can be reached from them."""
        while True:
            more = states
            for candidate, entered in self._entered.items():
                if states >> _source(candidate) & 1:
                    more |= entered
            if more == states:
                return states
            states = more

    def leads_on(self, state: int) -> bool:
        """Say whether something leaves an atomic state: a transition of it, or of a state it is in."""
        around = {state, *self.tree.nodes[state].ancestors}
        for candidate, entered in self._entered.items():
            if _source(candidate) in around and entered & ~(1 << state):
                return True
        return False

    def dooms(self, goals: int) -> int:
        """Return the atomic states from which no path leads to one of the goals."""
        doomed = 0
        for state in numbers(self.tree.atoms):
            if self.tree.nodes[state].kind == "final":
                continue
            beside = [n for n in numbers(self.tree.atoms) if n != state and are_together(self.tree, n, state)]
            around = _union(1 << n | _union(1 << a for a in self.tree.nodes[n].ancestors) for n in (state, *beside))
            if not self.grown(around) & goals:
                doomed |= 1 << state
        return doomed


def _union(sets: Iterable[int]) -> int:
    found = 0
    for states in sets:
        found |= states
    return found


def _source(candidate: Candidate) -> int:
    return ROOT if candidate.source is None else candidate.source.number


def check_reach(cls: type, reach: Reach, allow: frozenset[str], faults: Faults) -> None:
    """Note states that cannot be reached, left, or followed to an end."""
    tree = reach.tree
    reached = reach.reached()
    for node in tree.nodes[1:]:
        if node.number in tree.histories or "unreachable" in allow or reached >> node.number & 1:
            continue
        if not reached >> node.ancestors[0] & 1 and node.ancestors[0] != ROOT:
            continue  # that is reported of the state around it
        what = f"state {node.name!r} is unreachable: no transition leads to it"
        faults.add(cls, f'{what}; add one, or allow={{"unreachable"}}')
    dead = 0
    for number in numbers(tree.atoms):
        if tree.nodes[number].kind != "final" and not reach.leads_on(number):
            dead |= 1 << number
    if "dead_end" not in allow:
        for number in numbers(dead):
            faults.add(
                cls,
                f"state {tree.nodes[number].name!r} is a dead end: no transition leaves it; "
                f'write @state(final=True), add a transition, or allow={{"dead_end"}}',
            )
    goals = sum(1 << n.number for n in tree.nodes[1:] if n.kind == "final" and n.ancestors[0] == ROOT)
    if goals and "no_final" not in allow:
        for number in numbers(reach.dooms(goals) & ~dead & reached):
            faults.add(
                cls,
                f"from state {tree.nodes[number].name!r} no path leads to a final state; "
                f'add a transition, or allow={{"no_final"}}',
            )


def check_conflicts(cls: type, reach: Reach, faults: Faults) -> None:
    """Note unguarded transitions of different regions that leave their common state on the same event."""
    tree = reach.tree
    plain = [c for c in reach.arrows if c.check is None and c.source is not None and c.cause == "event"]
    for place, one in enumerate(plain):
        for other in plain[place + 1 :]:
            here, there = _source(one), _source(other)
            if one.event != other.event or _is_above(tree, here, there) or here == there:
                continue
            if are_together(tree, here, there) and exited_by(tree, reach.arrows[one][0]) & exited_by(
                tree, reach.arrows[other][0]
            ):
                faults.add(
                    cls,
                    f"transitions {one.title()} and {other.title()} are in conflict when both regions are active, and "
                    f'the first is taken; give one a guard, or allow={{"conflict"}}',
                )


def check_cycles(cls: type, reach: Reach, faults: Faults) -> None:
    """Note transitions without event and guard that lead back to where they come from."""
    tree = reach.tree
    free = {c: a[0] for c, a in reach.arrows.items() if c.cause == "eventless" and c.check is None and c.gate is None}
    leads: dict[int, int] = {}
    for candidate, arrow in free.items():
        if not arrow.targets:
            what = f"transition {candidate.title()} would be taken for ever"
            faults.add(cls, f'{what}; give it a guard, or allow={{"cycle"}}')
            continue
        entered = entered_by(tree, arrow)
        leads[arrow.source] = leads.get(arrow.source, 0) | _union(
            1 << n | _union(1 << a for a in tree.nodes[n].ancestors) for n in numbers(entered)
        )
    for start, found in leads.items():
        seen = 0
        while found != seen:
            seen = found
            found |= _union(leads.get(n, 0) for n in numbers(seen))
        if found >> start & 1:
            name = tree.nodes[start].name or "*"
            faults.add(
                cls,
                f"transitions without event and guard lead from {name!r} back to it for ever; guard one, "
                'or allow={"cycle"}',
            )


def names_of(tree: Tree, states: int) -> set[str]:
    """Return the names of a set of states."""
    return {tree.nodes[n].name for n in numbers(states) if n != ROOT}


def arrows_of(candidates: Sequence[Candidate]) -> dict[Candidate, Any]:
    """Return for each candidate what it means, and what its failing means."""
    found: dict[Candidate, Any] = {}
    for c in candidates:
        source = _source(c)
        some = [Arrow(source, tuple(t.number for t in c.targets), c.internal)]
        if c.on_error is not None:
            some.append(Arrow(source, (c.on_error.number,)))
        found[c] = some
    return found
