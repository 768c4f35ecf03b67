"""Wiring assembled definitions: which step's result goes into which parameter.

Law: a parameter named like a step receives that step's result; every other parameter is an input of
the definition. The wiring is worked out once, at assembly, and is a tuple of numbers afterwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from flowlet.core.annotations import Parameter
from flowlet.core.codec import Codec
from flowlet.core.faults import Faults
from flowlet.core.marks import StepMark
from flowlet.core.steps import StepDefinition, build_step, plain_mark


class Wired(msgspec.Struct, frozen=True, eq=False):
    """A step in its place.

    Attributes:
        sources: where each of its inputs comes from: the index of a step, or ``-1 - i`` for
            input ``i`` of the definition.
        needs: the indexes of the steps whose results it takes.
        owner: the object that the step is a method of, or None.
    """

    step: StepDefinition
    sources: tuple[int, ...]
    needs: tuple[int, ...]
    owner: Any = None

    def arguments(self, inputs: Sequence[Any], values: Sequence[Any]) -> tuple[Any, ...]:
        """Pick the step's inputs from those of the definition and from earlier results."""
        return tuple(values[s] if s >= 0 else inputs[-1 - s] for s in self.sources)


class Wiring(msgspec.Struct, frozen=True, eq=False):
    """The steps of a definition with their edges, and what it is started with."""

    name: str
    steps: tuple[Wired, ...]
    inputs: tuple[Parameter, ...]
    starter: StepDefinition


def wire(
    name: str,
    functions: Sequence[Callable[..., Any]],
    namespace: Mapping[str, Any],
    faults: Faults,
    *,
    any_order: bool,
) -> Wiring | None:
    """Wire steps by their parameter names, noting every fault; None when there are any.

    Args:
        any_order: a step may take the result of one that is listed behind it.
    """
    before = len(faults.problems)
    marks = _marks(name, functions, faults)
    steps = [build_step(mark, namespace, faults, method=owner is not None) for mark, owner in marks]
    places = {mark.name: index for index, (mark, _) in enumerate(marks)}
    if any(step is None for step in steps):
        return None
    known = [step for step in steps if step is not None]
    inputs = _inputs(name, known, places, faults)
    names = [p.name for p in inputs]
    wired = tuple(_wire_step(step, owner, places, names) for step, (_, owner) in zip(known, marks, strict=True))
    _check_order(name, wired, faults, any_order=any_order)
    if len(faults.problems) > before or not wired:
        return None
    return Wiring(name, wired, inputs, _starter(name, inputs, known[-1]))


def _marks(name: str, functions: Sequence[Callable[..., Any]], faults: Faults) -> list[tuple[StepMark, Any]]:
    """Return the marks of the functions, each with the object that it is a method of."""
    marks: list[tuple[StepMark, Any]] = []
    if not functions:
        faults.add(name, "has no steps; list the functions it is made of")
    for function in functions:
        if not callable(function) or isinstance(function, type):
            faults.add(name, f"{function!r} is no function, so it cannot be a step")
            continue
        mark = plain_mark(function)
        owner = getattr(function, "__self__", None) if mark.method else None
        if mark.method and owner is None:
            faults.add(name, f"step {mark.name!r} is a method; list it as that of an object, `thing.{mark.name}`")
        elif not mark.name.isidentifier():
            faults.add(name, f"a step is named {mark.name!r}; give it a name with @step(name=...)")
        elif any(mark.name == other.name for other, _ in marks):
            faults.add(name, f"has two steps named {mark.name!r}; rename one with @step(name=...)")
        else:
            marks.append((mark, owner))
    return marks


def _wire_step(step: StepDefinition, owner: Any, places: Mapping[str, int], inputs: Sequence[str]) -> Wired:
    sources = tuple(places[p.name] if p.name in places else -1 - inputs.index(p.name) for p in step.inputs)
    return Wired(step, sources, tuple(dict.fromkeys(s for s in sources if s >= 0)), owner)


def _inputs(
    name: str, steps: Sequence[StepDefinition], places: Mapping[str, int], faults: Faults
) -> tuple[Parameter, ...]:
    """Collect the parameters that no step provides, in order of appearance."""
    found: dict[str, Parameter] = {}
    for step in steps:
        for parameter in step.inputs:
            if parameter.name in places:
                continue
            first = found.setdefault(parameter.name, parameter)
            if first.annotation != parameter.annotation:
                faults.add(
                    name,
                    f"input {parameter.name!r} is annotated {_type_name(first.annotation)} and, in step {step.name!r}, "
                    f"{_type_name(parameter.annotation)}; use one type or another name",
                )
    # Python wants parameters with a default behind those without.
    return tuple(sorted(found.values(), key=lambda p: not p.required))


def _type_name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)


def _check_order(name: str, wired: Sequence[Wired], faults: Faults, *, any_order: bool) -> None:
    if not any_order:
        for index, step in enumerate(wired):
            for need in step.needs:
                if need >= index:
                    later = wired[need].step.name
                    what = "its own result" if need == index else f"the result of {later!r}, which comes later"
                    faults.add(name, f"step {step.step.name!r} takes {what}; reorder the steps or rename the parameter")
        return
    for cycle in find_cycles(wired):
        path = " -> ".join([*cycle, cycle[0]])
        faults.add(name, f"steps need each other's results in a cycle: {path}; rename a parameter to break it")


def find_cycles(wired: Sequence[Wired]) -> list[list[str]]:
    """Return one cycle among the steps that a topological sort cannot place (Kahn, 1962)."""
    left = {i: set(w.needs) for i, w in enumerate(wired)}
    while True:
        free = [i for i, needs in left.items() if not needs & left.keys()]
        if not free:
            break
        for i in free:
            del left[i]
    if not left:
        return []
    path: list[int] = []
    node = min(left)
    while node not in path:
        path.append(node)
        node = min(n for n in left[node] if n in left)
    cycle = path[path.index(node) :]
    return [[wired[i].step.name for i in reversed(cycle)]]


def _starter(name: str, inputs: tuple[Parameter, ...], last: StepDefinition) -> StepDefinition:
    """Describe how the assembled definition is called: its inputs, and the last step's result."""
    types = tuple(p.annotation for p in inputs)

    def assembled(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError  # only its signature is used

    raw = [
        inspect.Parameter(p.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=p.default, annotation=p.annotation)
        for p in inputs
    ]
    signature = inspect.Signature(raw, return_annotation=None if last.result.type is type(None) else last.result.type)
    return StepDefinition(
        name=name,
        function=assembled,
        is_async=True,
        method=False,
        inputs=inputs,
        providers=(),
        result=last.result,
        input=Codec(tuple[types]),  # type: ignore[valid-type]  # built from annotations
        signature=signature,
        arity=len(inputs),
        kinds=(),
        scalar=last.scalar,
        positional=len(inputs),
        keywords=(),
    )
