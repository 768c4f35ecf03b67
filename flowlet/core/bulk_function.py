"""The function of a bulk operation: what is known of it before the first item.

Law: every fault that a look at the function can show is found here, all at once, and never at an item.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from flowlet.core.annotations import MISSING, Parameter, Signature, codec_for, provided, resolve_hints
from flowlet.core.codec import Codec
from flowlet.core.definitions import RunDefinition
from flowlet.core.faults import Faults
from flowlet.core.marks import step_mark
from flowlet.core.registry import definition_of
from flowlet.core.retry import Retry
from flowlet.core.run import Run
from flowlet.core.secrets import Tree, secret_tree

_OPEN = (int, str, float, bool, bytes, "int", "str", "float", "bool", "bytes")
"""Types of items that have nothing to hide."""


class BulkFunction(msgspec.Struct, frozen=True, eq=False):
    """A function that takes an item, or a list of them.

    Attributes:
        name: what a bulk operation with an id is known by.
        call: the user's function, without the wrapper that ``@step`` made of it.
        is_async: False for a plain function, which is called in a thread.
        providers: parameters that flowlet fills.
        result: the codec of what it returns for one item; None when nothing is recorded.
        retry, timeout: those of the step, if it is one.
        secrets: where in an item there is what is not shown; see `flowlet.Secret`.
    """

    name: str
    call: Callable[..., Any]
    is_async: bool
    providers: tuple[Parameter, ...] = ()
    result: Codec[Any] | None = None
    retry: Retry | None = None
    timeout: float | None = None
    secrets: Tree | None = None

    @property
    def wants_run(self) -> bool:
        """Whether a parameter is to be the `Run`."""
        return any(p.annotation is Run for p in self.providers)


def read_function(function: Any, namespace: Mapping[str, Any], *, batch: bool, recorded: bool) -> BulkFunction:
    """Look at the function of a bulk operation.

    Args:
        namespace: names that its annotations may use beside its module's.
        batch: it takes lists.
        recorded: what it returns is stored, so its return annotation is needed.

    Raises:
        DefinitionError: it cannot be used.
    """
    faults = Faults()
    if not callable(function) or isinstance(function, type):
        faults.add(repr(function), "is no function; give bulk() an async function that takes one item")
        faults.raise_if_any()
    mark = step_mark(function)
    if mark is not None and (mark.at_most_once or mark.transactional):
        faults.add(function, "is a step at_most_once=True or transactional=True, which a bulk operation cannot keep")
    unwrapped = mark.function if mark is not None and not mark.method else function
    definition = definition_of(function)
    if isinstance(definition, RunDefinition):  # a run for each item, which has what is provided from its own Flowlet
        signature: Signature | None = None
        result = definition.starter.result if recorded else None
    else:
        signature = _signature(unwrapped, namespace, faults, recorded=recorded)
        result = _result(function, signature, batch, faults) if recorded else None
    if signature is not None:
        _check_parameters(function, signature, batch, faults)
    faults.raise_if_any()
    return BulkFunction(
        name=_name(function),
        call=unwrapped,
        is_async=_is_async(unwrapped),
        providers=() if signature is None else signature.providers,
        result=result,
        retry=None if mark is None else mark.retry,
        timeout=None if mark is None else mark.timeout,
        secrets=_secrets(unwrapped, definition, namespace, batch),
    )


def _secrets(function: Any, definition: Any, namespace: Mapping[str, Any], batch: bool) -> Tree | None:
    """Find out what of an item is not to be shown."""
    if isinstance(definition, RunDefinition):
        inputs = definition.starter.inputs
        return secret_tree(inputs[0].annotation) if inputs else None
    written = getattr(_written(function), "__annotations__", {})
    name = next((n for n in written if n != "return"), None)
    if name is None or written[name] in _OPEN:
        return None
    annotation = resolve_hints(_written(function), namespace, Faults()).get(name)
    return secret_tree(_element(annotation) if batch else annotation)


def _signature(function: Any, namespace: Mapping[str, Any], faults: Faults, *, recorded: bool) -> Signature | None:
    """Read the signature, with its annotations only if they matter; None for what has none, such as builtins."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:
        return None
    hints: dict[str, Any] = {}
    if recorded or any(p.default is provided for p in parameters):
        hints = resolve_hints(_written(function), namespace, faults)
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return Signature(
        tuple(
            Parameter(p.name, hints.get(p.name, MISSING), p.kind, p.default is p.empty, p.default is provided)
            for p in named
        ),
        hints.get("return", MISSING),
        any(p.kind is p.VAR_POSITIONAL for p in parameters),
    )


def _written(function: Any) -> Any:
    """Return the function in which the annotations were written: a partial, a method and an object have none."""
    while isinstance(function, partial):
        function = function.func
    if inspect.ismethod(function):
        return function.__func__
    return function if inspect.isroutine(function) else type(function).__call__


def _check_parameters(function: Any, signature: Signature, batch: bool, faults: Faults) -> None:
    inputs = signature.inputs
    first = inputs[0] if inputs else None
    what = "a list of items" if batch else "one item"
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if (first is None or first.kind not in by_position) and not signature.variadic:
        faults.add(function, f"takes no argument; the function of a bulk operation takes {what}")
    others = [p.name for p in inputs[1:] if p.required]
    if others:
        faults.add(
            function,
            f"takes {', '.join(others)} beside {what}; bind them with functools.partial, or have flowlet provide them",
        )
    if batch and any(p.annotation is Run for p in signature.providers):
        faults.add(function, "takes a list and a Run: a list of items has no idempotency key; take one item")


def _result(function: Any, signature: Signature | None, batch: bool, faults: Faults) -> Codec[Any] | None:
    annotation = MISSING if signature is None else signature.result
    if batch and annotation is not MISSING and annotation is not None and annotation is not type(None):
        annotation = _element(annotation)
        if annotation is MISSING:
            faults.add(function, "must be annotated to return a list of results, as in -> list[int]")
            return None
    return codec_for(annotation, function, "its result", faults)


def _element(annotation: Any) -> Any:
    """Return the type of the elements of a list type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    is_list = isinstance(origin, type) and issubclass(origin, Sequence)
    return arguments[0] if is_list and arguments and (len(arguments) == 1 or arguments[1] is ...) else MISSING


def _name(function: Any) -> str:
    if isinstance(function, partial):
        return _name(function.func)
    definition = definition_of(function)
    if isinstance(definition, RunDefinition):
        return definition.name
    mark = step_mark(function)
    name = mark.name if mark is not None else getattr(function, "__name__", type(function).__name__)
    return str(name)


def _is_async(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(_written(function))
