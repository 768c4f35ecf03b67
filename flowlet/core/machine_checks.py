"""Judging a machine as a whole: what can be reached, left and chosen.

Law: every check notes all it finds and goes on. What is legal but doubtful (`DOUBTS`) is a fault too,
unless the definition allows it by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowlet.core.chart import Candidate, in_order
from flowlet.core.faults import Faults, nearest
from flowlet.core.states import State

DOUBTS = frozenset({"dead_end", "unreachable", "shadowed"})
"""The kinds of faults that ``allow={...}`` lets pass."""


def check_settings(cls: type, version: Any, on_conflict: Any, allow: Iterable[Any], faults: Faults) -> None:
    """Judge what was given beside the class."""
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        faults.add(cls, f"version must be a whole number of at least 1, not {version!r}")
    if on_conflict not in ("raise", "retry"):
        faults.add(cls, f'on_conflict must be "raise" or "retry", not {on_conflict!r}')
    for name in allow:
        if name not in DOUBTS:
            faults.add(cls, f"allow={name!r} is not known{nearest(str(name), DOUBTS)}; there are {sorted(DOUBTS)}")


def check_initial(cls: type, states: Mapping[str, State], faults: Faults) -> None:
    """Exactly one state is the initial one."""
    initial = [name for name, state in states.items() if state.initial]
    if not states:
        faults.add(cls, "it has no states; mark nested classes with @state, or use an Enum of state(...) values")
    elif not initial:
        faults.add(cls, "it has no initial state; write @state(initial=True) on one")
    elif len(initial) > 1:
        faults.add(cls, f"it has more than one initial state ({', '.join(initial)}); keep initial=True on one")


def check_chart(
    cls: type, states: Mapping[str, State], candidates: Sequence[Candidate], allow: frozenset[str], faults: Faults
) -> None:
    """Note states that cannot be reached or left, and transitions that can never be chosen."""
    if "unreachable" not in allow:
        _check_reach(cls, states, candidates, faults)
    if "dead_end" not in allow:
        _check_dead_ends(cls, states, candidates, faults)
    if "shadowed" not in allow:
        _check_shadows(cls, candidates, faults)


def _targets(candidate: Candidate) -> list[State]:
    return [s for s in (candidate.target, candidate.on_error) if s is not None]


def _check_reach(cls: type, states: Mapping[str, State], candidates: Sequence[Candidate], faults: Faults) -> None:
    reached = [name for name, state in states.items() if state.initial]
    if not reached:
        return  # reported as such; everything else would follow from it
    for name in reached:  # grows while it is read
        for candidate in candidates:
            if candidate.source.name == name:
                reached.extend(t.name for t in _targets(candidate) if t.name not in reached)
    for name in states:
        if name not in reached:
            what = f"state {name!r} is unreachable: no transition leads to it"
            faults.add(cls, f'{what}; add one, or allow={{"unreachable"}}')


def _check_dead_ends(cls: type, states: Mapping[str, State], candidates: Sequence[Candidate], faults: Faults) -> None:
    left = {c.source.name for c in candidates if any(t.name != c.source.name for t in _targets(c))}
    for name, state in states.items():
        if not state.final and name not in left:
            faults.add(
                cls,
                f"state {name!r} is a dead end: no transition leaves it; "
                f'write @state(final=True), add a transition, or allow={{"dead_end"}}',
            )


def _check_shadows(cls: type, candidates: Sequence[Candidate], faults: Faults) -> None:
    taken: dict[tuple[str, str, bool], Candidate] = {}
    for candidate in in_order(candidates):
        # A wildcard yields to specific transitions by design; only another wildcard can hide it.
        key = (candidate.event, candidate.source.name, candidate.wildcard)
        earlier = taken.get(key)
        if earlier is not None:
            same = "is there twice" if _is_same(earlier, candidate) else "is never chosen"
            faults.add(
                cls,
                f"transition {_title(candidate)} {same}: it is shadowed by {_title(earlier)}, which has no guard; "
                f'give that one a guard, put it last, or allow={{"shadowed"}}',
            )
        elif candidate.check is None:
            taken[key] = candidate


def _is_same(one: Candidate, other: Candidate) -> bool:
    return one.method == other.method and one.target is other.target and one.check is None and other.check is None


def _title(candidate: Candidate) -> str:
    target = "itself" if candidate.target is None else candidate.target.name
    return f"{candidate.method} ({candidate.source.name} -> {target})"
