"""Callbacks of machines: what a guard, an action or a hook takes, decided once at assembly.

Law: every parameter of a callback is bound here to where its value comes from (an argument of the event,
the `Transition`, the error, a provider); at run time nothing is guessed by name. A callback whose code
contains no ``await`` is known not to wait for anything, which the driver uses. No I/O, no clock.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Literal, Protocol

import msgspec

from flowlet.core.annotations import MISSING, Signature, read_signature
from flowlet.core.faults import Faults, nearest
from flowlet.errors import MachineError


class Transition(msgspec.Struct, frozen=True):
    """One transition that a machine has made, as hooks and histories show it.

    Attributes:
        event: the event's name.
        source: the state it left.
        target: the state it reached; the source again for an internal transition.
        version: the number of its record; 0 for a machine without a store.
        at: when it was committed, in UTC (for an exit hook: when it was about to be).
        actor: the event's argument called ``by`` or ``actor``, if it is a string.
    """

    event: str
    source: str
    target: str
    version: int
    at: datetime
    actor: str | None = None


class Moment(Protocol):
    """What a callback may be told of the transition it is part of."""

    error: BaseException | None

    def transition(self) -> Transition: ...

    def provide(self, annotation: Any, what: str) -> Any: ...


class EventParameters(msgspec.Struct, frozen=True, eq=False):
    """What a caller of an event gives: the action's parameters without the provided ones.

    Attributes:
        method: the trigger method.
        actor: the parameter called ``by`` or ``actor``, if there is one.
        names: the positional ones, in order.
        keywords: the keyword-only ones.
        defaults: values of those that may be left out.
        open: the action takes ``**kwargs``, so that names are not known.
        variadic: it takes ``*args`` or ``**kwargs``.
        provided: name and annotation of what flowlet fills in.
    """

    method: str
    names: tuple[str, ...]
    keywords: tuple[str, ...]
    defaults: Mapping[str, Any]
    actor: str | None
    open: bool
    variadic: bool
    provided: tuple[tuple[str, Any], ...]
    annotations: Mapping[str, Any]

    def has(self, name: str) -> bool:
        return self.open or name in self.names or name in self.keywords

    def value(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], default: Any = MISSING) -> Any:
        """Pick one argument of a call by its name."""
        if name in kwargs:
            return kwargs[name]
        if name in self.names:
            index = self.names.index(name)
            if index < len(args):
                return args[index]
        if name in self.defaults:
            return self.defaults[name]
        if default is MISSING:
            raise TypeError(f"{self.method}() missing a required argument: {name!r}")
        return default

    def who(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        """Return the actor: the argument called ``by`` or ``actor``, if it is a string."""
        if self.actor is None:
            return None
        value = self.value(self.actor, args, kwargs, None)
        return value if isinstance(value, str) else None

    def convert(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Give arguments that were stored as plain values the types of their annotations."""
        named = zip(self.names, args, strict=False)
        rest = args[len(self.names) :]
        return [*(self._typed(n, v) for n, v in named), *rest], {n: self._typed(n, v) for n, v in kwargs.items()}

    def _typed(self, name: str, value: Any) -> Any:
        annotation = self.annotations.get(name, MISSING)
        return value if annotation is MISSING else msgspec.convert(value, annotation)

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise `TypeError` when a call does not fit, for use before anything has happened."""
        if self.variadic:
            return
        if self.provided:  # a caller may give what would be provided
            kwargs = {n: v for n, v in kwargs.items() if all(n != name for name, _ in self.provided)}
        names = self.names[len(args) :]
        complete = len(kwargs) + len(args) == len(self.names) + len(self.keywords)
        if complete and len(args) <= len(self.names) and kwargs.keys() <= {*names, *self.keywords}:
            return
        if len(args) > len(self.names):
            raise TypeError(f"{self.method}() takes {len(self.names)} positional arguments but {len(args)} were given")
        for name in kwargs:
            if name not in names and name not in self.keywords:
                twice = "multiple values for" if name in self.names else "an unexpected keyword"
                raise TypeError(f"{self.method}() got {twice} argument {name!r}")
        for name in (*names, *self.keywords):
            self.value(name, args, kwargs)


class Binding(msgspec.Struct, frozen=True, eq=False):
    """Where one parameter of a callback comes from."""

    name: str
    source: Literal["argument", "transition", "error", "provided"]
    keyword_only: bool
    annotation: Any
    default: Any


class Callback(msgspec.Struct, frozen=True, eq=False):
    """A guard, an action or a hook, ready to be called.

    Attributes:
        name: as error messages show it.
        is_async: calling it gives a coroutine.
        awaits: its code may wait for something.
        passes: it takes exactly the event's arguments, which are handed through.
        bindings: else what it takes.
        alone: it takes nothing but the machine.
    """

    name: str
    function: Callable[..., Any]
    is_async: bool
    awaits: bool
    passes: bool
    bindings: tuple[Binding, ...]
    event: EventParameters
    alone: bool

    def call(self, machine: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], moment: Moment) -> Any:
        """Call it; the result of an async one is its coroutine."""
        if not self.passes:
            args, kwargs = self.pick(args, kwargs, moment)
        return self.function(machine, *args, **kwargs)

    def pick(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], moment: Moment
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what it takes, out of an event's arguments and the rest that it may ask for."""
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for binding in self.bindings:
            value = self._value(binding, args, kwargs, moment)
            if binding.keyword_only:
                named[binding.name] = value
            else:
                positional.append(value)
        return tuple(positional), named

    def _value(self, binding: Binding, args: tuple[Any, ...], kwargs: Mapping[str, Any], moment: Moment) -> Any:
        if binding.source == "transition":
            return moment.transition()
        if binding.source == "error":
            return moment.error
        if binding.source == "provided":
            return moment.provide(binding.annotation, f"parameter {binding.name!r} of {self.name}")
        return self.event.value(binding.name, args, kwargs, binding.default)


def refuse_awaitable(result: Any, what: str) -> None:
    """Raise when a plain function gave back something to be awaited, which would be true and do nothing."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise MachineError(f"{what} is a plain function that returned something to await; write `async def`")


def is_async(function: Any) -> bool:
    """Say whether calling it gives a coroutine: an ``async def``, or an object whose ``__call__`` is one."""
    if inspect.iscoroutinefunction(function):
        return True
    if inspect.isroutine(function) or isinstance(function, type):
        return False
    return inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - the method is inspected


def may_wait(function: Any) -> bool:
    """Say whether a callback may wait: every ``await``, ``async for`` and ``async with`` compiles to SEND.

    What never waits cannot be interrupted or cancelled, nor wait for the machine it is called by.
    """
    code = getattr(function, "__code__", None)
    if code is None or getattr(function, "__wrapped__", None) is not None:
        return is_async(function)
    return inspect.iscoroutinefunction(function) and any(i.opname == "SEND" for i in dis.get_instructions(code))


def read_callback(function: Any, namespace: Mapping[str, Any], faults: Faults) -> tuple[Signature, list[Any]]:
    """Read a callback's signature and its raw parameters, without the machine itself.

    Annotations matter only where flowlet looks at them, so an unresolvable one is a fault only there.
    """
    scratch = Faults()
    try:
        raw = list(inspect.signature(function).parameters.values())[1:]
        signature = read_signature(function, namespace, scratch, method=True)
    except (TypeError, ValueError):
        return Signature((), MISSING, False), []
    if any(p.provided for p in signature.parameters):
        faults.extend(scratch.problems)
    return signature, raw


def event_parameters(function: Any, namespace: Mapping[str, Any], faults: Faults) -> EventParameters:
    """Read what the caller of an action gives."""
    signature, raw = read_callback(function, namespace, faults)
    given = [p for p in raw if not any(q.name == p.name and q.provided for q in signature.parameters)]
    known = {p.name for p in given if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return EventParameters(
        method=getattr(function, "__name__", str(function)),
        actor=next((n for n in ("by", "actor") if n in known), None),
        names=tuple(p.name for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)),
        keywords=tuple(p.name for p in given if p.kind is p.KEYWORD_ONLY),
        defaults={p.name: p.default for p in given if p.default is not p.empty},
        open=any(p.kind is p.VAR_KEYWORD for p in given),
        variadic=any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in given),
        provided=tuple((p.name, p.annotation) for p in signature.providers),
        annotations={p.name: p.annotation for p in signature.inputs},
    )


def bind(
    name: str,
    function: Any,
    event: EventParameters,
    namespace: Mapping[str, Any],
    faults: Faults,
    *,
    where: object,
    extras: tuple[Literal["transition", "error"], ...] = (),
    cause: str = "",
) -> Callback:
    """Bind the parameters of a guard or hook to the arguments of an event.

    Args:
        where: what a fault is reported of.
        extras: what else the callback may ask for.
        cause: names the event in a fault.
    """
    signature, raw = read_callback(function, namespace, faults)
    waits = may_wait(function)
    if not raw or _same(raw, signature, event):
        return Callback(name, function, is_async(function), waits, bool(raw), (), event, not raw)
    bindings: list[Binding] = []
    skipped = False
    for parameter, known in zip(
        (p for p in raw if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)), signature.parameters, strict=True
    ):
        source = _source(parameter, known, event, extras)
        if source is not None:
            only = skipped or parameter.kind is parameter.KEYWORD_ONLY
            bindings.append(Binding(parameter.name, source, only, known.annotation, parameter.default))
        elif parameter.default is parameter.empty:
            near = nearest(parameter.name, [*event.names, *event.keywords])
            faults.add(where, f"{name}: nothing provides its parameter {parameter.name!r}{cause}{near}")
        else:
            skipped = True  # it keeps its default, and what follows goes by name
    return Callback(name, function, is_async(function), waits, False, tuple(bindings), event, not bindings)


def _same(raw: list[Any], signature: Signature, event: EventParameters) -> bool:
    """Say whether a callback takes exactly what the event takes, so that nothing needs picking."""
    if any(p.provided for p in signature.parameters):
        return False
    names = tuple(p.name for p in raw if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    keywords = tuple(p.name for p in raw if p.kind is p.KEYWORD_ONLY)
    kinds = [p.kind for p in raw]
    if any(p.kind is p.VAR_KEYWORD for p in raw) and any(p.kind is p.VAR_POSITIONAL for p in raw):
        return not names and not keywords
    variadic = any(k in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD) for k in kinds)
    defaults = {p.name: p.default for p in raw if p.default is not p.empty}
    same = names == event.names and keywords == event.keywords and not variadic and not event.variadic
    return same and defaults.keys() >= event.defaults.keys() and _agree(defaults, event.defaults)


def _agree(own: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    return all(own[name] is value for name, value in given.items())


def _source(
    parameter: Any, known: Any, event: EventParameters, extras: tuple[str, ...]
) -> Literal["argument", "transition", "error", "provided"] | None:
    if known.provided:
        return "provided"
    if "transition" in extras and (known.annotation is Transition or (parameter.name == "t" and not event.has("t"))):
        return "transition"
    if "error" in extras and parameter.name == "error" and not event.has("error"):
        return "error"
    return "argument" if event.has(parameter.name) else None
