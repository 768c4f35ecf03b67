"""Judging a machine as a whole: what can be reached, left and chosen.

Law: every check notes all it finds and goes on. What is legal but doubtful (`DOUBTS`) is a fault too,
unless the definition allows it by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowlet.core.chart import Candidate, in_order
from flowlet.core.chart_checks import Reach, arrows_of, check_conflicts, check_cycles, check_reach
from flowlet.core.faults import Faults, nearest
from flowlet.core.states import State, States

DOUBTS = frozenset({"conflict", "cycle", "dead_end", "no_final", "no_initial", "shadowed", "unreachable"})
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
    initial = [name for name, state in states.items() if state.initial and state.parent is None]
    if not states:
        faults.add(cls, "it has no states; mark nested classes with @state, or use an Enum of state(...) values")
    elif not initial:
        faults.add(cls, "it has no initial state; write @state(initial=True) on one")
    elif len(initial) > 1:
        faults.add(cls, f"it has more than one initial state ({', '.join(initial)}); keep initial=True on one")


def check_chart(
    cls: type, states: States, candidates: Sequence[Candidate], allow: frozenset[str], faults: Faults
) -> None:
    """Note states that cannot be reached or left, and transitions that can never be chosen."""
    reach = Reach(states.tree, arrows_of(candidates))
    if not any(state.initial and state.parent is None for state in states.by_name.values()):
        allow |= {"unreachable", "no_final"}  # which would follow from it, and it is reported as such
    check_reach(cls, reach, allow, faults)
    if "cycle" not in allow:
        check_cycles(cls, reach, faults)
    if "conflict" not in allow:
        check_conflicts(cls, reach, faults)
    if "shadowed" not in allow:
        _check_shadows(cls, candidates, faults)


def _check_shadows(cls: type, candidates: Sequence[Candidate], faults: Faults) -> None:
    taken: dict[Any, Candidate] = {}
    for candidate in in_order(candidates):
        # A wildcard yields to specific transitions by design; only another wildcard can hide it.
        # Each delay is waited for on its own.
        cause = {"event": candidate.event, "after": ("after", candidate.line)}.get(candidate.cause, candidate.cause)
        key = (cause, candidate.source, candidate.wildcard)
        earlier = taken.get(key)
        if earlier is not None:
            same = "is there twice" if _is_same(earlier, candidate) else "is never chosen"
            faults.add(
                cls,
                f"transition {candidate.title()} {same}: it is shadowed by {earlier.title()}, which has no guard; "
                f'give that one a guard, put it last, or allow={{"shadowed"}}',
            )
        elif candidate.check is None:
            taken[key] = candidate


def _is_same(one: Candidate, other: Candidate) -> bool:
    return one.method == other.method and one.targets == other.targets and one.check is None and other.check is None
