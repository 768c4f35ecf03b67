"""What follows in a pipeline when a step fails: ``on_error=``.

Law: an action, a function of the exception, or a value that stands in. Values are encoded and judged here, at
assembly; functions are executed as steps, so that what they return is on record.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from flowlet.core.annotations import MISSING, Signature, read_signature
from flowlet.core.codec import encode
from flowlet.core.compatibility import may_take, type_name
from flowlet.core.faults import Faults, describe, nearest
from flowlet.core.marks import step_mark
from flowlet.core.side_steps import Source, build_side_step, known_sources
from flowlet.core.steps import StepDefinition
from flowlet.core.wiring import Wired, Wiring, find_place
from flowlet.errors import DecodeError, EncodeError


class HandlerFunction(Protocol):
    """A function of the exception; it may also take inputs and results."""

    def __call__(self, error: Any, /, *args: Any, **kwargs: Any) -> Any: ...


# The form with one argument comes first, so that type checkers know that of a lambda.
OnError: TypeAlias = Literal["stop", "skip"] | Callable[[Exception], object] | HandlerFunction | object
"""What follows when a step fails: an action, a function of the exception, or the value that stands in."""

OTHERS = "*"
"""The key under which a mapping by step has what goes for the steps that it does not name."""


class Handler(msgspec.Struct, frozen=True, eq=False):
    """An ``on_error=`` that is a function: its value stands in for the result."""

    step: StepDefinition
    sources: tuple[Source, ...]


class StandIn(msgspec.Struct, frozen=True, eq=False):
    """An ``on_error=`` that is a value, encoded."""

    value: bytes


Policy: TypeAlias = Literal["stop", "skip"] | Handler | StandIn


def read_policies(
    on_error: Any, wiring: Wiring, names: list[str], namespace: Mapping[str, Any], faults: Faults
) -> list[Policy]:
    by_place: dict[int, Any] = {}
    others = on_error
    if isinstance(on_error, Mapping):
        others = on_error.get(OTHERS, "stop")
        for ref, policy in on_error.items():
            index = None if ref == OTHERS else find_place(ref, names, wiring.name, "on_error=", faults)
            if index is not None:
                by_place[index] = policy
    return [_read_policy(by_place.get(index, others), index, wiring, namespace, faults) for index in range(len(names))]


def _read_policy(policy: Any, index: int, wiring: Wiring, namespace: Mapping[str, Any], faults: Faults) -> Policy:
    wired = wiring.steps[index]
    if isinstance(policy, str):
        if policy == "stop":
            return "stop"
        if policy == "skip":
            return "skip"
        hint = nearest(policy, ("stop", "skip"))
        text = f'on_error= is "stop", "skip", a function or a value, not the text {policy!r}{hint}'
        faults.add(wiring.name, f"{text}; a text that stands in wants a function: lambda error: {policy!r}")
        return "stop"
    if callable(policy):
        return _read_handler(policy, index, wiring, namespace, faults)
    what = f"the value that stands in for step {wired.step.name!r}"
    try:
        data = encode(policy, what)
        wired.step.result.decode(data, what)
    except (EncodeError, DecodeError) as error:
        faults.add(wiring.name, f"on_error= {policy!r} is not what step {wired.step.name!r} returns: {error}")
        return "stop"
    return StandIn(data)


def _read_handler(policy: Any, index: int, wiring: Wiring, namespace: Mapping[str, Any], faults: Faults) -> Policy:
    wired = wiring.steps[index]
    mark = step_mark(policy)
    function = policy if mark is None else mark.function
    where = f"{wiring.name}: on_error= {describe(policy)}"
    if not inspect.isroutine(function) and not isinstance(function, type):
        faults.add(where, "is an object and no function; write a function of the exception, such as a lambda")
        return "stop"
    try:
        signature = read_signature(function, namespace, faults)
    except (TypeError, ValueError):
        faults.add(where, "has no signature that can be read; write a function of the exception")
        return "stop"
    inputs = signature.inputs
    required = [p for p in inputs if p.required]
    if not inputs or signature.variadic:
        faults.add(where, "must take one argument, the exception")
        return "stop"
    alone = required[0] if len(required) == 1 else inputs[0] if not required else None
    taken: list[tuple[str, Source]] = []
    if alone is not None and all(p.name != "error" for p in inputs):
        taken = [(alone.name, "error")]
    else:
        known = known_sources(wiring)
        for parameter in inputs:
            source = _handler_source(parameter.name, index, wiring, known)
            if source is not None:
                taken.append((parameter.name, source))
            elif parameter.required:
                hint = nearest(parameter.name, ["error", *known])
                what = "comes not before it" if parameter.name in known else f"is provided by nothing{hint}"
                faults.add(
                    where,
                    f"parameter {parameter.name!r} {what}; it must take one argument, the exception, or `error` and, "
                    f"by name, inputs and results that step {wired.step.name!r} comes after",
                )
    _check_types(signature, dict(taken), index, wiring, where, faults)
    step = build_side_step(getattr(policy, "__name__", "on_error"), policy, signature, [n for n, _ in taken])
    step = msgspec.structs.replace(step, result=wired.step.result, scalar=wired.step.scalar)
    return Handler(step, tuple(source for _, source in taken))


def _check_types(
    signature: Signature, taken: Mapping[str, Source], index: int, wiring: Wiring, where: str, faults: Faults
) -> None:
    """Note what surely cannot take what it is given, or stand in for the result."""
    wired = wiring.steps[index]
    for parameter in signature.inputs:
        source = taken.get(parameter.name, "error")
        if source == "error" or parameter.annotation is MISSING:
            continue
        if source == "item":
            assert wired.each is not None
            given: Any = wired.step.inputs[wired.each].annotation
        else:
            given = wiring.inputs[-1 - source].annotation if source < 0 else wiring.steps[source].result
        if not may_take(given, parameter.annotation):
            name = parameter.name
            faults.add(where, f"takes {name}: {type_name(parameter.annotation)}, but {name!r} is {type_name(given)}")
    wanted: Any = wired.step.result.type
    if signature.result is not MISSING and not may_take(signature.result, wanted):
        name = wired.step.name
        faults.add(where, f"returns {type_name(signature.result)}, but step {name!r} returns {type_name(wanted)}")


def _handler_source(name: str, index: int, wiring: Wiring, known: Mapping[str, int]) -> Source | None:
    wired = wiring.steps[index]
    if name == "error":
        return "error"
    if wired.each is not None and wired.step.inputs[wired.each].name == name:
        return "item"
    source = known.get(name)
    return source if source is not None and (source < 0 or wiring.leads_to(source, index)) else None


def describe_policy(policy: Policy, wired: Wired) -> dict[str, Any]:
    """Return what follows a failure, as plain data that JSON can hold."""
    if isinstance(policy, str):
        return {"on_error": policy}
    if isinstance(policy, Handler):
        return {"on_error": "handle", "handler": policy.step.name}
    return {"on_error": "stand_in", "stand_in": msgspec.to_builtins(wired.step.decode(policy.value), str_keys=True)}
