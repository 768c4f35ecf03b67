"""What a pipeline does in any case: ``finally_=``.

Law: a closing step takes what there is, and None for what there is not, so its parameters must take None. It may be
repeated after a crash, and nothing undoes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from flowlet.core.annotations import MISSING, Signature, read_signature
from flowlet.core.compatibility import may_take, takes_none, type_name
from flowlet.core.faults import Faults, nearest
from flowlet.core.side_steps import Source, build_side_step, known_sources
from flowlet.core.steps import StepDefinition, plain_mark
from flowlet.core.wiring import Wiring, child_step


class Closing(msgspec.Struct, frozen=True, eq=False):
    """A ``finally_=`` step."""

    key: str
    step: StepDefinition
    sources: tuple[Source, ...]


def read_closings(
    functions: Any, wiring: Wiring, names: Sequence[str], namespace: Mapping[str, Any], faults: Faults
) -> tuple[Closing, ...]:
    found: list[Closing] = []
    taken = list(names)
    for function in [functions] if callable(functions) else functions:
        child = child_step(function)
        if child is None and not inspect.isroutine(function):
            faults.add(wiring.name, f"finally_= has {function!r}, which is no function")
            continue
        closing = _read_closing(function, child, wiring, namespace, faults)
        name = closing.step.name
        if name in taken:
            faults.add(wiring.name, f"has two steps named {name!r}, one of them in finally_=; rename one")
        taken.append(name)
        found.append(closing)
    return tuple(found)


def _read_closing(
    function: Any, child: StepDefinition | None, wiring: Wiring, namespace: Mapping[str, Any], faults: Faults
) -> Closing:
    mark = None if child is not None else plain_mark(function)
    name = child.name if child is not None else mark.name if mark is not None else ""
    where = f"{wiring.name}: finally_= step {name!r}"
    if mark is not None and (mark.pivot or mark.at_most_once or mark.compensations or mark.method):
        faults.add(where, "must be a function, or a step that may be repeated and has no compensation")
    if child is not None:
        # What a child run takes has no place that may stay empty.
        needed = tuple(msgspec.structs.replace(p, required=True) for p in child.inputs)
        signature = Signature(needed, child.result.type, False)
    else:
        assert mark is not None
        signature = read_signature(mark.function, namespace, faults)
    if signature.variadic:
        faults.add(where, "takes *args or **kwargs; name what it takes")
    sources: dict[str, Source | None] = {p.name: _closing_source(p, wiring, where, faults) for p in signature.inputs}
    used = [n for n, s in sources.items() if s is not None]
    step = child or build_side_step(name, function, signature, used)
    return Closing(f"~{name}", step, tuple(s for s in sources.values() if s is not None))


def _closing_source(parameter: Any, wiring: Wiring, where: str, faults: Faults) -> Source | None:
    name, annotation = parameter.name, parameter.annotation
    if name == "error":
        if annotation is not MISSING and not takes_none(annotation):
            faults.add(where, "parameter 'error' must take None as well, when nothing failed: `Exception | None`")
        return "error"
    known = known_sources(wiring)
    source = known.get(name)
    if source is None:
        if parameter.required:
            choice = ", ".join([*known, "error"])
            faults.add(
                where,
                f"parameter {name!r} is provided by nothing{nearest(name, [*known, 'error'])}; it may take {choice}",
            )
        return None
    given: Any = wiring.inputs[-1 - source].annotation if source < 0 else wiring.steps[source].result
    if annotation is MISSING:
        return source
    if source >= 0 and not takes_none(annotation):
        faults.add(
            where,
            f"parameter {name!r} must take None as well, when step {name!r} has no result: `{type_name(given)} | None`",
        )
    elif not may_take(given, annotation):
        faults.add(where, f"takes {name}: {type_name(annotation)}, but {name!r} is {type_name(given)}")
    return source
