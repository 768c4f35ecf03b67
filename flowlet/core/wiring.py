"""Wiring assembled definitions: which step's result goes into which parameter.

Law: a parameter named like a step receives that step's result; every other parameter is an input of
the definition. The wiring is worked out once, at assembly, and is a tuple of numbers afterwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from flowlet.core.annotations import Parameter
from flowlet.core.codec import Codec
from flowlet.core.compatibility import item_types, may_take, type_name
from flowlet.core.definitions import CHILD
from flowlet.core.digraph import Digraph
from flowlet.core.faults import Faults, nearest
from flowlet.core.marks import step_mark
from flowlet.core.steps import StepDefinition, build_step, plain_mark

StepRef: TypeAlias = Callable[..., Any] | str
"""A step of a definition: its function, or its name."""


class Wired(msgspec.Struct, frozen=True, eq=False):
    """A step in its place.

    Attributes:
        sources: where each of its inputs comes from: the index of a step, or ``-1 - i`` for
            input ``i`` of the definition.
        needs: the indexes of the steps whose results it takes, and of those that it only comes after.
        result: the type of its value; of a step that is done for each item, the list of their results.
        owner: the object that the step is a method of, or None.
        each: which of its inputs takes one item at a time, or None.
    """

    step: StepDefinition
    sources: tuple[int, ...]
    needs: tuple[int, ...]
    result: Any
    owner: Any = None
    each: int | None = None

    def arguments(self, inputs: Sequence[Any], values: Sequence[Any]) -> tuple[Any, ...]:
        """Pick the step's inputs from those of the definition and from earlier results."""
        return tuple(values[s] if s >= 0 else inputs[-1 - s] for s in self.sources)


class Wiring(msgspec.Struct, frozen=True, eq=False):
    """The steps of a definition with their edges, and what it is started with."""

    name: str
    steps: tuple[Wired, ...]
    inputs: tuple[Parameter, ...]
    starter: StepDefinition

    def leads_to(self, start: int, end: int) -> bool:
        """Tell whether a step needs another one, directly or through others."""
        stack = [end]
        seen: set[int] = set()
        while stack:
            for need in self.steps[stack.pop()].needs:
                if need == start:
                    return True
                if need not in seen:
                    seen.add(need)
                    stack.append(need)
        return False


def wire(
    name: str,
    functions: Sequence[Callable[..., Any]],
    namespace: Mapping[str, Any],
    faults: Faults,
    *,
    any_order: bool,
    needs: Mapping[StepRef, StepRef | Sequence[StepRef]] | None = None,
    each: Mapping[StepRef, StepRef] | None = None,
) -> Wiring | None:
    """Wire steps by their parameter names, noting every fault; None when there are any.

    Args:
        any_order: a step may take the result of one that is listed behind it.
        needs: steps that come after others without taking a result.
        each: the parameters that take one item at a time, by step.
    """
    before = len(faults.problems)
    found = _find_steps(name, functions, namespace, faults)
    known = [(step, owner) for step, owner in found.values() if step is not None]
    names = list(found)
    later = _read_needs(name, needs or {}, names, faults)
    if len(known) < len(found) or not known:
        return None
    told = len(faults.problems)
    items = _read_each(name, each or {}, [step for step, _ in known], faults)
    is_read = len(faults.problems) == told
    places = {step.name: place for place, (step, _) in enumerate(known)}
    inputs = _find_inputs(name, [step for step, _ in known], places, items, faults)
    order = [p.name for p in inputs]
    wired = tuple(
        _wire_step(step, owner, places, order, later.get(place, ()), items.get(place))
        for place, (step, owner) in enumerate(known)
    )
    _check_order(name, wired, later, faults, any_order=any_order)
    if is_read:  # else it would only say that a list is no item
        _check_types(name, wired, inputs, faults)
    if len(faults.problems) > before:
        return None
    return Wiring(name, wired, inputs, _build_starter(name, inputs, wired[-1]))


def _find_steps(
    name: str, functions: Sequence[Callable[..., Any]], namespace: Mapping[str, Any], faults: Faults
) -> dict[str, tuple[StepDefinition | None, Any]]:
    """Return the steps by name, None where one has faults, each with the object that it is a method of."""
    found: dict[str, tuple[StepDefinition | None, Any]] = {}
    if not functions:
        faults.add(name, "has no steps; list the functions it is made of")
    for function in functions:
        child = child_step(function)
        if child is not None:
            if _check_name(name, child.name, found, "name=", faults):
                found[child.name] = (child, None)
            continue
        if not callable(function) or isinstance(function, type):
            faults.add(name, f"{function!r} is no function, so it cannot be a step")
            continue
        mark = plain_mark(function)
        owner = getattr(function, "__self__", None) if mark.method else None
        if mark.method and owner is None:
            faults.add(name, f"step {mark.name!r} is a method; list it as that of an object, `thing.{mark.name}`")
        elif _check_name(name, mark.name, found, "@step(name=...)", faults):
            found[mark.name] = (build_step(mark, namespace, faults, method=owner is not None), owner)
    return found


def child_step(thing: Any) -> StepDefinition | None:
    """Return how an assembled saga, pipeline ... is a step of another definition; None if it is not assembled."""
    found: StepDefinition | None = None
    if isinstance(thing, type):
        found = thing.__dict__.get(CHILD)
    elif not isinstance(thing, str):
        found = getattr(thing, CHILD, None)
    return found


def _check_name(name: str, step: str, others: Iterable[str], how: str, faults: Faults) -> bool:
    if not step.isidentifier():
        faults.add(name, f"a step is named {step!r}; give it a name with {how}")
        return False
    if step in others:
        faults.add(name, f"has two steps named {step!r}; rename one with {how}")
        return False
    return True


def find_place(ref: StepRef, names: Sequence[str], where: str, what: str, faults: Faults) -> int | None:
    """Return the place of a step among others; note it, and return None, if it is none of them."""
    name = name_of(ref)
    if name not in names:
        faults.add(where, f"{what} names {name!r}, which is no step of it{nearest(name, names)}")
        return None
    return names.index(name)


def name_of(ref: StepRef) -> str:
    """Return the name that a step has in a definition."""
    if isinstance(ref, str):
        return ref
    found = child_step(ref) or step_mark(ref)
    return str(found.name if found is not None else getattr(ref, "__name__", repr(ref)))


# ---------------------------------------------------------------- order and items
def _read_needs(
    name: str, needs: Mapping[StepRef, StepRef | Sequence[StepRef]], names: Sequence[str], faults: Faults
) -> dict[int, list[int]]:
    """Return what steps come after without taking its result, by their places."""
    found: dict[int, list[int]] = {}
    for ref, refs in needs.items():
        place = find_place(ref, names, name, "needs=", faults)
        others = [find_place(other, names, name, "needs=", faults) for other in _read_refs(name, ref, refs, faults)]
        if place is not None:
            found.setdefault(place, []).extend(sorted(other for other in others if other is not None))
    return found


def _read_refs(name: str, ref: StepRef, refs: Any, faults: Faults) -> Sequence[StepRef]:
    if isinstance(refs, str) or callable(refs):
        return [refs]
    if isinstance(refs, (list, tuple, set, frozenset)):
        return list(refs)
    faults.add(name, f"needs= of {name_of(ref)!r} is a step or a list of steps, not {refs!r}")
    return []


def _read_each(
    name: str, each: Mapping[StepRef, StepRef], steps: Sequence[StepDefinition], faults: Faults
) -> dict[int, int]:
    """Return which parameter takes one item at a time, both by their places."""
    names = [step.name for step in steps]
    found: dict[int, int] = {}
    for ref, wanted in each.items():
        place = find_place(ref, names, name, "each=", faults)
        if place is None:
            continue
        parameters = [p.name for p in steps[place].inputs]
        parameter = name_of(wanted)
        if parameter in parameters:
            found[place] = parameters.index(parameter)
        else:
            hint = nearest(parameter, parameters)
            faults.add(name, f"each= names {parameter!r}, which is no parameter of step {names[place]!r}{hint}")
    return found


def _wire_step(
    step: StepDefinition,
    owner: Any,
    places: Mapping[str, int],
    inputs: Sequence[str],
    later: Iterable[int],
    each: int | None,
) -> Wired:
    sources = tuple(places[p.name] if p.name in places else -1 - inputs.index(p.name) for p in step.inputs)
    needs = tuple(dict.fromkeys([*(s for s in sources if s >= 0), *later]))
    result = step.result.type if each is None else list[step.result.type]  # type: ignore[name-defined]  # at run time
    return Wired(step, sources, needs, result, owner, each)


def _find_inputs(
    name: str, steps: Sequence[StepDefinition], places: Mapping[str, int], items: Mapping[int, int], faults: Faults
) -> tuple[Parameter, ...]:
    """Collect the parameters that no step provides, in order of appearance."""
    found: dict[str, Parameter] = {}
    listed: dict[str, bool] = {}  # known only as what the items of are taken
    for place, step in enumerate(steps):
        for number, parameter in enumerate(step.inputs):
            if parameter.name in places:
                continue
            is_item = items.get(place) == number
            one = _listed(parameter) if is_item else parameter
            first = found.setdefault(parameter.name, one)
            if listed.setdefault(parameter.name, is_item) and not is_item:
                found[parameter.name], listed[parameter.name] = one, False
            elif first.annotation != one.annotation and is_item == listed[parameter.name]:
                faults.add(
                    name,
                    f"input {parameter.name!r} is annotated {type_name(first.annotation)} and, in step {step.name!r}, "
                    f"{type_name(one.annotation)}; use one type or another name",
                )
    # Python wants parameters with a default behind those without.
    return tuple(sorted(found.values(), key=lambda p: not p.required))


def _listed(parameter: Parameter) -> Parameter:
    """Return the input of which a parameter takes one item at a time."""
    annotation = list[parameter.annotation]  # type: ignore[name-defined]  # made at run time
    return msgspec.structs.replace(parameter, annotation=annotation, required=True, default=inspect.Parameter.empty)


# ---------------------------------------------------------------- checks
def _check_order(name: str, wired: Sequence[Wired], later: Iterable[int], faults: Faults, *, any_order: bool) -> None:
    if not any_order:
        for index, step in enumerate(wired):
            for need in step.needs:
                if need >= index:
                    other = wired[need].step.name
                    what = "its own result" if need == index else f"the result of {other!r}, which comes later"
                    faults.add(name, f"step {step.step.name!r} takes {what}; reorder the steps or rename the parameter")
        return
    cycle = find_cycle(wired)
    if cycle:
        path = " -> ".join([*cycle, cycle[0]])
        if any(wired[behind].step.name in cycle for behind in later):
            faults.add(name, f"steps wait for each other in a cycle: {path}; change needs= or a parameter to break it")
        else:
            faults.add(name, f"steps need each other's results in a cycle: {path}; rename a parameter to break it")


def find_cycle(wired: Sequence[Wired]) -> Sequence[str]:
    """Return the names of steps that need each other, if there are any; each comes before what needs it."""
    after: dict[int, list[int]] = {place: [] for place in range(len(wired))}
    for place, step in enumerate(wired):
        for need in step.needs:
            after[need].append(place)
    return [wired[place].step.name for place in next(Digraph(after).cycles(limit=1), ())]


def _check_types(name: str, wired: Sequence[Wired], inputs: Sequence[Parameter], faults: Faults) -> None:
    """Note every parameter that surely cannot take what it is given."""
    for step in wired:
        for place, (parameter, source) in enumerate(zip(step.step.inputs, step.sources, strict=True)):
            given = inputs[-1 - source].annotation if source < 0 else wired[source].result
            whose = f"step {parameter.name!r} returns" if source >= 0 else f"input {parameter.name!r} is"
            if step.each == place:
                _check_items(name, step.step.name, parameter, given, whose, faults)
            elif source >= 0 and not may_take(given, parameter.annotation):
                faults.add(
                    name,
                    f"step {step.step.name!r} takes {parameter.name}: {type_name(parameter.annotation)}, but {whose} "
                    f"{type_name(given)}; change one of the annotations",
                )  # two types of one input are noted already


def _check_items(name: str, step: str, parameter: Parameter, given: Any, whose: str, faults: Faults) -> None:
    items = item_types(given)
    if items is None:
        faults.add(
            name,
            f"each= of step {step!r} takes the items of a list or tuple, but {whose} {type_name(given)}; return a "
            "list, or use a bulk operation for the entries of large data",
        )
    elif not all(may_take(item, parameter.annotation) for item in items):
        kinds = " or ".join(type_name(item) for item in items)
        faults.add(
            name,
            f"step {step!r} takes for each item {parameter.name}: {type_name(parameter.annotation)}, but {whose} "
            f"{type_name(given)}, whose items are {kinds}; change one of the annotations",
        )


# ---------------------------------------------------------------- the whole
def _build_starter(name: str, inputs: tuple[Parameter, ...], last: Wired) -> StepDefinition:
    """Describe how the assembled definition is called: its inputs, and the last step's result."""
    types = tuple(p.annotation for p in inputs)

    def assembled(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError  # only its signature is used

    raw = [
        inspect.Parameter(p.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=p.default, annotation=p.annotation)
        for p in inputs
    ]
    signature = inspect.Signature(raw, return_annotation=None if last.result is type(None) else last.result)
    return StepDefinition(
        name=name,
        function=assembled,
        is_async=True,
        method=False,
        inputs=inputs,
        providers=(),
        result=last.step.result if last.each is None else Codec(last.result),
        input=Codec(tuple[types]),  # type: ignore[valid-type]  # built from annotations
        signature=signature,
        arity=len(inputs),
        kinds=(),
        scalar=last.step.scalar if last.each is None else None,
        positional=len(inputs),
        keywords=(),
    )
