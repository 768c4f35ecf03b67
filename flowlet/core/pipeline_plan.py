"""What a pipeline does beyond its wiring: conditions, what follows a failure, and what is done in any case.

Law: everything is read, checked and turned into numbers here, at assembly; a run only looks things up. Faults are
noted, and all of them reported together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import msgspec

from flowlet.core.codec import Codec
from flowlet.core.faults import Faults, nearest
from flowlet.core.needs import refuse_provided
from flowlet.core.pipeline_closings import Closing, read_closings
from flowlet.core.pipeline_failures import OTHERS, OnError, Policy, read_policies
from flowlet.core.side_steps import known_sources
from flowlet.core.steps import StepDefinition
from flowlet.core.wiring import StepRef, Wired, Wiring, find_cycle, find_place, name_of


class Condition(msgspec.Struct, frozen=True, eq=False):
    """A ``when=`` of a step: a plain function of inputs and earlier results.

    Attributes:
        sources: as in `Wired`.
    """

    function: Callable[..., Any]
    sources: tuple[int, ...]
    needs: tuple[int, ...]


class Plan(msgspec.Struct, frozen=True, eq=False):
    """A pipeline ready to run. The tuples have one item per step, but for `entries` and `closings`.

    Attributes:
        dependents: the indexes of the steps that need this one.
        needs: how many steps this one needs.
        entries: the indexes of the steps that need none.
        closings: what is done in any case, in this order.
        limit: how many steps run at once at most, or None.
        may_be_absent: whether the pipeline may end without a value.
        chain: the steps in order, if each needs the one before it, the last one listed is the last, and nothing is said
            beyond the wiring; empty if not.
    """

    wiring: Wiring
    conditions: tuple[Condition | None, ...]
    policies: tuple[Policy, ...]
    dependents: tuple[tuple[int, ...], ...]
    needs: tuple[int, ...]
    entries: tuple[int, ...]
    closings: tuple[Closing, ...]
    limit: int | None
    may_be_absent: bool
    chain: tuple[tuple[int, Wired], ...] = ()


def build_plan(
    wiring: Wiring,
    faults: Faults,
    namespace: Mapping[str, Any],
    *,
    when: Mapping[StepRef, Callable[..., bool]],
    on_error: OnError | Mapping[StepRef, OnError],
    finally_: Sequence[Callable[..., Any]] | Callable[..., Any],
    limit: int | None,
) -> Plan:
    """Attach conditions, error handling and closing steps to a wiring, noting faults."""
    names = [w.step.name for w in wiring.steps]
    conditions: list[Condition | None] = [None] * len(names)
    for ref, function in when.items():
        index = find_place(ref, names, wiring.name, "when=", faults)
        if index is not None:
            conditions[index] = _read_condition(function, index, wiring, faults)
    if not faults.problems:
        _check_conditions(wiring, conditions, faults)
    policies = read_policies(on_error, wiring, names, namespace, faults)
    closings = read_closings(finally_, wiring, names, namespace, faults)
    return _link(wiring, tuple(conditions), tuple(policies), closings, limit)


def check_limit(name: str, limit: Any, faults: Faults) -> None:
    """Note a ``max_concurrency=`` that is none."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        faults.add(name, f"max_concurrency= must be a whole number of at least 1, or None, not {limit!r}")


def check_references(name: str, steps: Sequence[Any], when: Mapping[Any, Any], on_error: Any, faults: Faults) -> None:
    """Note the steps that are named and are none, of a pipeline whose wiring has faults."""
    names = [name_of(step) for step in steps]
    policies = [ref for ref in on_error if ref != OTHERS] if isinstance(on_error, Mapping) else []
    for what, refs in (("when=", list(when)), ("on_error=", policies)):
        for ref in refs:
            find_place(ref, names, name, what, faults)


# ---------------------------------------------------------------- conditions
def _read_condition(function: Any, index: int, wiring: Wiring, faults: Faults) -> Condition | None:
    where = f"{wiring.name}: when= of {wiring.steps[index].step.name!r}"
    if not callable(function) or inspect.iscoroutinefunction(function):
        faults.add(where, "must be a plain function of inputs and earlier results; do slow work in a step")
        return None
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        faults.add(where, "has no signature that can be read; write a function, such as a lambda")
        return None
    refuse_provided(function, where, "it", "ask in a step, and take what that returns", faults)
    known = known_sources(wiring)
    sources: dict[str, int] = {}
    for parameter in parameters:
        source = known.get(parameter.name)
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            faults.add(where, "takes *args or **kwargs; name what it takes")
        elif source is None and parameter.default is not inspect.Parameter.empty:
            continue
        elif source is None:
            faults.add(where, f"parameter {parameter.name!r} is provided by nothing{nearest(parameter.name, known)}")
        elif source == index or (source >= 0 and wiring.leads_to(index, source)):
            faults.add(where, f"needs the result of {parameter.name!r}, which does not come before it")
        else:
            sources[parameter.name] = source
    if len(sources) < len(parameters) or any(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters):
        function = _by_name(function, tuple(sources))
    return Condition(function, tuple(sources.values()), tuple(s for s in sources.values() if s >= 0))


def _by_name(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    def ask(*values: Any) -> Any:
        return function(**dict(zip(names, values, strict=True)))

    return ask


def _check_conditions(wiring: Wiring, conditions: list[Condition | None], faults: Faults) -> None:
    """Note a cycle that only the conditions close; without them the wiring has none."""
    joined = [
        msgspec.structs.replace(step, needs=step.needs + (condition.needs if condition else ()))
        for step, condition in zip(wiring.steps, conditions, strict=True)
    ]
    cycle = find_cycle(joined)
    if cycle:
        path = " -> ".join([*cycle, cycle[0]])
        faults.add(wiring.name, f"steps and their when= wait for each other in a cycle: {path}")


def _link(
    wiring: Wiring,
    conditions: tuple[Condition | None, ...],
    policies: tuple[Policy, ...],
    closings: tuple[Closing, ...],
    limit: int | None,
) -> Plan:
    """Count what each step waits for, its condition's sources included."""
    wanted = [
        tuple(dict.fromkeys(step.needs + (condition.needs if condition else ())))
        for step, condition in zip(wiring.steps, conditions, strict=True)
    ]
    dependents: list[list[int]] = [[] for _ in wanted]
    for index, needs in enumerate(wanted):
        for need in needs:
            dependents[need].append(index)
    plan = Plan(
        wiring=wiring,
        conditions=conditions,
        policies=policies,
        dependents=tuple(map(tuple, dependents)),
        needs=tuple(map(len, wanted)),
        entries=tuple(i for i, needs in enumerate(wanted) if not needs),
        closings=closings,
        limit=limit,
        may_be_absent=_may_be_absent(wiring, wanted, conditions, policies),
    )
    return msgspec.structs.replace(plan, chain=_find_chain(plan))


def _find_chain(plan: Plan) -> tuple[tuple[int, Wired], ...]:
    steps, left = plan.wiring.steps, list(plan.needs)
    if plan.closings or any(plan.conditions) or any(p != "stop" for p in plan.policies):
        return ()
    order: list[int] = []
    ready = list(plan.entries)
    while len(ready) == 1 and steps[ready[0]].each is None:
        place = ready.pop()
        order.append(place)
        for after in plan.dependents[place]:
            left[after] -= 1
            if left[after] == 0:
                ready.append(after)
    is_whole = len(order) == len(steps) and order[-1] == len(steps) - 1
    return tuple((place, steps[place]) for place in order) if is_whole else ()


def _may_be_absent(
    wiring: Wiring,
    wanted: Sequence[Sequence[int]],
    conditions: Sequence[Condition | None],
    policies: Sequence[Policy],
) -> bool:
    """Tell whether the last step, or one that it needs, may end without a value."""
    stack, seen = [len(wanted) - 1], set[int]()
    while stack:
        index = stack.pop()
        if index in seen:
            continue
        seen.add(index)
        lets_go = policies[index] == "skip" and wiring.steps[index].each is None
        if conditions[index] is not None or lets_go:
            return True
        stack.extend(wanted[index])
    return False


def result_codec(plan: Plan, starter: StepDefinition) -> Codec[Any]:
    """Return the codec of what the pipeline returns, which may be None if its last step may be skipped."""
    if not plan.may_be_absent:
        return starter.result
    absent: Any = Optional[starter.result.type]  # noqa: UP045 - not every type has `|`
    return Codec(absent)
