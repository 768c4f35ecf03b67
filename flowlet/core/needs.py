"""Who takes what: the parameters ``= provided`` of a definition, and of what flowlet calls for it.

Law: read at assembly or on entering a `Flowlet`, and never while something runs. Nothing here knows what is provided.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from flowlet.core.annotations import Parameter, provided, read_signature
from flowlet.core.faults import Faults, describe

if TYPE_CHECKING:
    from flowlet.core.definitions import RunDefinition
    from flowlet.core.steps import StepDefinition


class Need(msgspec.Struct, frozen=True):
    """A parameter that flowlet has to fill.

    Attributes:
        where: what takes it, as faults name it.
        in_run: a `Run` is there for it.
        in_transaction: it may be the store's connection.
    """

    where: str
    name: str
    annotation: Any
    in_run: bool = False
    in_transaction: bool = False


def takes_provided(function: Any) -> bool:
    """Say whether a parameter has the default `provided`, without reading any annotation."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(getattr(function, "__func__", function))
    defaults = getattr(function, "__defaults__", None) or ()
    keywords: dict[str, Any] = getattr(function, "__kwdefaults__", None) or {}
    return any(value is provided for value in (*defaults, *keywords.values()))


def refuse_provided(function: Any, where: object, what: str, advice: str, faults: Faults) -> None:
    """Note that a function which is judged anew on each replay wants to be given a service."""
    if takes_provided(function):
        faults.add(where, f"{what} takes a parameter `= provided`, but must judge by what it is given alone; {advice}")


def needs_of_run(definition: RunDefinition) -> Iterator[Need]:
    """List what a definition that runs are made of takes, with its steps and what undoes them."""
    yield from _needs(describe(definition.target or definition.name), definition.constructor)
    yield from _needs_of_step(definition.starter, definition.name)
    for step in (*definition.steps.values(), *definition.sides):
        yield from _needs_of_step(step)
        if step.compensation is not None:
            yield from _needs_of_step(step.compensation.step)


def _needs_of_step(step: StepDefinition, name: str | None = None) -> Iterator[Need]:
    where = describe(step.function) if name is None or step.method else name
    yield from _needs(where, step.providers, in_run=True, in_transaction=step.transactional)


def _needs(where: str, parameters: Iterable[Parameter], **kind: bool) -> Iterator[Need]:
    return (Need(where, p.name, p.annotation, **kind) for p in parameters)


def needs_of_callbacks(
    functions: Mapping[str, Callable[..., Any]], namespace: Mapping[str, Any], *, method: bool = True
) -> Iterator[Need]:
    """List what the callbacks of a machine take.

    Args:
        functions: by what faults call them.
        method: they take the machine first.
    """
    for where, function in functions.items():
        if takes_provided(function):  # the others' annotations may be anything
            signature = read_signature(function, namespace, Faults(), method=method)
            yield from _needs(where, signature.providers)
