"""Step definitions: a ``@step`` with its types resolved and its compensation attached.

Law: a definition is immutable and complete; whatever can be known before a step runs (parameters,
codecs, what a compensation is given) is worked out here, at assembly.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from flowlet.core.annotations import MISSING, Parameter, Signature, codec_for, read_signature
from flowlet.core.codec import Codec
from flowlet.core.faults import Faults, describe, nearest
from flowlet.core.marks import CompensationMark, StepMark, step_mark
from flowlet.core.retry import Retry
from flowlet.errors import DecodeError, EncodeError

Provide = Callable[[Any], Any]
"""Gives the value for a provided parameter's annotation."""

encode_input: Callable[[Any], bytes] = msgspec.msgpack.Encoder(order="deterministic").encode
"""Encodes a tuple of inputs, so that equal inputs have equal bytes."""

UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError)
"""What `encode_input` raises for a value that cannot be stored."""

_SCALARS = (int, str, float, bool, bytes, type(None))
_SHORT = 32
_NONE = b"\xc0"


class StepDefinition(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A step (or a compensation, which is executed the same way).

    Attributes:
        function: the user's function, unwrapped.
        is_async: False for a plain def, which runs in a worker thread.
        method: it takes the saga's instance first.
        inputs: parameters that the caller gives.
        providers: parameters that flowlet fills, by annotation.
        result: the codec of what it returns.
        input: the codec of the tuple of its inputs.
        kinds: for each input, its type if a value of just that type needs no check, as with int and str.
        arity: the number of inputs if all may be given by position, else -1.
        scalar: the result's type if a value of it is its own encoding's decoding, as with int and str.
        plain: a call is nothing but awaiting the function with its inputs.
        positional: so many inputs are passed by position, the others by their names, ``keywords``.
        compensation: how to undo it, or None.
        timeout: seconds that one attempt may take.
        pivot: see `flowlet.step`, as for the three that follow.
        special: one of those three is set.
        halt: sees to it that what a stopped call of it has set going ends, given the call, or None.
    """

    name: str
    function: Callable[..., Any]
    is_async: bool
    method: bool
    inputs: tuple[Parameter, ...]
    providers: tuple[Parameter, ...]
    result: Codec[Any]
    input: Codec[Any]
    signature: inspect.Signature
    arity: int
    kinds: tuple[type | None, ...]
    scalar: type | None
    plain: bool = False
    positional: int
    keywords: tuple[str, ...]
    retry: Retry | None = None
    timeout: float | None = None
    key: Callable[..., str] | None = None
    compensation: CompensationDefinition | None = None
    pivot: bool = False
    at_most_once: bool = False
    compensate_unknown: bool = False
    transactional: bool = False
    special: bool = False
    halt: Callable[[Any], Awaitable[None]] | None = None

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return the inputs in the order of the parameters, defaults filled in.

        Raises:
            TypeError: as Python itself would for such a call.
        """
        if not kwargs and len(args) == self.arity:
            return args
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}{self.signature}: {error}") from None
        bound.apply_defaults()
        return tuple(bound.arguments[p.name] for p in self.inputs)

    def call(self, owner: object | None, args: tuple[Any, ...], provided: dict[str, Any] | None) -> Any:
        """Call the user's function with bound inputs; the result of an async one must be awaited."""
        named = dict(zip(self.keywords, args[self.positional :], strict=True)) if self.keywords else {}
        if provided:
            named.update(provided)
        head = args[: self.positional] if self.keywords else args
        if owner is None:
            return self.function(*head, **named)
        return self.function(owner, *head, **named)

    def exchange_input(self, args: tuple[Any, ...]) -> tuple[bytes, tuple[Any, ...]]:
        """Encode bound inputs and return them with what they decode to, as a replay would have them.

        A step that changes what it is given so changes nothing that another step is given later.

        Raises:
            EncodeError: one of them cannot be stored.
            DecodeError: one of them is not of the annotated type.
        """
        data = self._encode(args)
        return data, self._decode(args, data)

    def _encode(self, args: tuple[Any, ...]) -> bytes:
        try:
            return encode_input(args)
        except UNENCODABLE as error:
            raise EncodeError(
                f"an argument of {self.name!r} cannot be stored: {error}; pass data, and take services "
                "through a parameter with the default `provided`"
            ) from error

    def _decode(self, args: tuple[Any, ...], data: bytes) -> tuple[Any, ...]:
        """Decode what `args` were encoded to; the error names the argument."""
        try:
            return tuple(self.input.decode(data, f"an argument of {self.name!r}"))
        except DecodeError:
            for parameter, value in zip(self.inputs, args, strict=True):
                Codec(parameter.annotation).decode(encode_input(value), f"argument {parameter.name!r} of {self.name!r}")
            raise

    def decode(self, value: bytes) -> Any:
        """Decode a recorded result to the annotated type."""
        if value == _NONE and self.result.type is None:
            return None
        return self.result.decode(value, f"the result of step {self.name!r}")


class CompensationDefinition(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """How a step is undone.

    Attributes:
        step: the compensation as something to execute; its inputs are chosen by ``sources``.
        sources: where each input comes from: the index of the step's input, ``RESULT`` or ``ERROR``.
    """

    step: StepDefinition
    sources: tuple[int, ...]


RESULT = -1
ERROR = -2


def digest(input: bytes) -> bytes:
    """Return that by which a replay recognises a step's input: itself when short, else its hash."""
    return input if len(input) <= _SHORT else hashlib.blake2b(input, digest_size=16).digest()


def build_step(
    mark: StepMark,
    namespace: Mapping[str, Any],
    faults: Faults,
    *,
    method: bool,
    signature: Signature | None = None,
) -> StepDefinition | None:
    """Resolve one ``@step``, noting its faults; None when it cannot be used.

    Args:
        signature: that of its function, if it has been read already.
    """
    before = len(faults.problems)
    if signature is None:
        signature = read_signature(mark.function, namespace, faults, method=method)
    step = build_executable(mark.name, mark.function, signature, faults, method=method)
    if len(mark.compensations) > 1:
        names = ", ".join(describe(c.function) for c in mark.compensations)
        faults.add(mark.function, f"has {len(mark.compensations)} compensations ({names}); keep one")
    compensation = None
    if len(mark.compensations) == 1:
        compensation = build_compensation(mark.compensations[0], mark.name, signature, namespace, faults, method)
    _check_options(mark, compensation, signature, faults)
    if step is None or len(faults.problems) > before:
        return None
    special = mark.at_most_once or mark.compensate_unknown or mark.transactional
    simple = not (special or step.providers or step.keywords or method) and mark.timeout is None
    return msgspec.structs.replace(
        step,
        retry=mark.retry,
        timeout=mark.timeout,
        key=mark.key,
        compensation=compensation,
        plain=step.is_async and simple,
        pivot=mark.pivot,
        at_most_once=mark.at_most_once,
        compensate_unknown=mark.compensate_unknown,
        transactional=mark.transactional,
        special=special,
    )


def _check_options(
    mark: StepMark, compensation: CompensationDefinition | None, signature: Signature, faults: Faults
) -> None:
    if mark.compensate_unknown and not mark.compensations:
        faults.add(mark.function, "compensate_unknown=True needs a @compensate for the step; add it, or leave it out")
    if mark.compensate_unknown and compensation is not None:
        for parameter, source in zip(compensation.step.inputs, compensation.sources, strict=True):
            if source == RESULT and not _takes_none(parameter.annotation):
                faults.add(
                    mark.compensations[0].function,
                    f"parameter {parameter.name!r} must take None as well: compensate_unknown=True undoes the step "
                    "also when nobody knows its result",
                )
    if mark.transactional and not any(_may_be_connection(p.annotation) for p in signature.providers):
        faults.add(
            mark.function,
            "transactional=True needs a parameter for the store's connection, such as "
            "`connection: sqlite3.Connection = provided`",
        )
    if mark.transactional and mark.timeout is not None:
        faults.add(mark.function, "transactional=True excludes timeout=: a transaction cannot be cut off; leave it out")


def _may_be_connection(annotation: Any) -> bool:
    from flowlet.core.run import Run  # which imports this module

    return annotation is not MISSING and annotation is not Run


def _takes_none(annotation: Any) -> bool:
    try:
        Codec(annotation).decode(_NONE, "")
    except (DecodeError, TypeError):
        return False
    return True


def build_executable(
    name: str, function: Callable[..., Any], signature: Signature, faults: Faults, *, method: bool
) -> StepDefinition | None:
    """Make a definition of something that is called with recorded inputs; None when it has faults."""
    if signature.variadic:
        faults.add(function, "a step takes *args or **kwargs; name its parameters, so that they can be recorded")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        faults.add(function, "is a generator; a step returns one value, such as a list")
    result = codec_for(signature.result, function, "its result", faults)
    for parameter in signature.inputs:
        codec_for(parameter.annotation, function, f"parameter {parameter.name!r}", faults, _service_hint(parameter))
    for parameter in signature.providers:
        if parameter.annotation is MISSING:
            faults.add(function, f"provided parameter {parameter.name!r} has no annotation to choose its value by")
    types = tuple(p.annotation for p in signature.inputs)
    if result is None or any(t is MISSING or t is Any for t in types):
        return None
    try:
        input_codec: Codec[Any] = Codec(tuple[types])  # type: ignore[valid-type]  # built from annotations
    except (TypeError, ValueError):
        return None  # each parameter's own fault has been noted above
    return StepDefinition(
        name=name,
        function=function,
        is_async=inspect.iscoroutinefunction(function),
        method=method,
        inputs=signature.inputs,
        providers=signature.providers,
        result=result,
        input=input_codec,
        signature=_input_signature(function, signature, method),
        arity=_arity(signature),
        kinds=tuple(t if t in _SCALARS else None for t in types),
        scalar=result.type if result.type in _SCALARS else None,
        positional=_positional(signature),
        keywords=tuple(p.name for p in signature.inputs[_positional(signature) :]),
    )


def _service_hint(parameter: Parameter) -> str:
    title = getattr(parameter.annotation, "__name__", None) or str(parameter.annotation)
    return f"; if flowlet is to fill it, as with a service, write `{parameter.name}: {title} = provided`"


def make_plain_step(
    name: str,
    function: Callable[..., Any],
    inputs: tuple[Parameter, ...],
    providers: tuple[Parameter, ...],
    result: Any,
) -> StepDefinition:
    """Make the definition of a step of flowlet's own, an async function that takes its inputs by position."""
    types = tuple(p.annotation for p in inputs)
    return StepDefinition(
        name=name,
        function=function,
        is_async=True,
        method=False,
        inputs=inputs,
        providers=providers,
        result=Codec(result),
        input=Codec(tuple[types]),  # type: ignore[valid-type]  # built from annotations
        signature=inspect.Signature(),
        arity=len(inputs),
        kinds=tuple(t if t in _SCALARS else None for t in types),
        scalar=result if result in _SCALARS else None,
        positional=len(inputs),
        keywords=(),
    )


def _arity(signature: Signature) -> int:
    if any(p.kind is inspect.Parameter.KEYWORD_ONLY for p in signature.inputs):
        return -1
    return len(signature.inputs)


def _positional(signature: Signature) -> int:
    """Count the inputs that can be passed by position: those before a provided or keyword-only one."""
    count = 0
    for parameter in signature.parameters:
        if parameter.provided or parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            break
        count += 1
    return count


def _input_signature(function: Callable[..., Any], signature: Signature, method: bool) -> inspect.Signature:
    """Return the signature of a call: without ``self`` and the provided parameters."""
    raw = list(inspect.signature(function).parameters.values())[1 if method else 0 :]
    names = {p.name for p in signature.inputs}
    return inspect.Signature([p for p in raw if p.name in names])


def build_compensation(
    mark: CompensationMark,
    step_name: str,
    step: Signature,
    namespace: Mapping[str, Any],
    faults: Faults,
    method: bool,
) -> CompensationDefinition | None:
    """Resolve one ``@compensate``: each parameter must be an argument of the step, its name, or ``error``."""
    signature = read_signature(mark.function, namespace, faults, method=method)
    places = {p.name: i for i, p in enumerate(step.inputs)}
    sources: list[int] = []
    used: list[Parameter] = []
    for parameter in signature.inputs:
        if parameter.name in places:
            sources.append(places[parameter.name])
        elif parameter.name == step_name or parameter.name == getattr(mark.step, "__name__", None):
            sources.append(RESULT)
        elif parameter.name == "error":
            sources.append(ERROR)
        elif parameter.required:
            known = [*places, step_name, "error"]
            faults.add(
                mark.function,
                f"parameter {parameter.name!r} is provided by nothing; a compensation of {step_name!r} may take "
                f"{', '.join(known)}{nearest(parameter.name, known)}",
            )
            continue
        else:
            continue
        used.append(parameter)
    if not inspect.iscoroutinefunction(mark.function) and inspect.isasyncgenfunction(mark.function):
        faults.add(mark.function, "is an async generator; a compensation is an async def or a def")
    shown = Signature(tuple(used) + signature.providers, type(None), signature.variadic)
    stored = [p for p, s in zip(used, sources, strict=True) if s != ERROR]
    for parameter in stored:
        codec_for(parameter.annotation, mark.function, f"parameter {parameter.name!r}", faults)
    return CompensationDefinition(
        step=StepDefinition(
            name=getattr(mark.function, "__name__", "compensation"),
            function=mark.function,
            is_async=inspect.iscoroutinefunction(mark.function),
            method=method,
            inputs=tuple(used),
            providers=signature.providers,
            result=Codec(Any),
            input=Codec(Any),
            signature=_input_signature(mark.function, shown, method),
            arity=len(used),
            kinds=(),
            scalar=None,
            positional=0,
            keywords=tuple(p.name for p in used),
            retry=mark.retry,
            timeout=mark.timeout,
        ),
        sources=tuple(sources),
    )


def plain_mark(function: Callable[..., Any]) -> StepMark:
    """Return the mark of a function: its own, or the one that a bare ``@step`` would make."""
    mark = step_mark(function)
    if mark is not None:
        return mark
    return StepMark(
        function=function,
        name=getattr(function, "__name__", repr(function)),
        retry=None,
        timeout=None,
        key=None,
        pivot=False,
        at_most_once=False,
        compensate_unknown=False,
        transactional=False,
        is_async=inspect.iscoroutinefunction(function),
        method=False,
        compensations=[],
    )
