"""Reading what is given to `Flowlet.provide`: whether it is a value or makes one, of which type, and out of what.

Law: a function, method, class or `functools.partial` makes the value, unless it is of the type itself; anything else
is the value. What a factory returns is awaited, and entered if it is a context manager; a value is taken as it is.
Nothing is called here but by `Factory.make`.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NewType

import msgspec

from flowlet.core.annotations import MISSING, Parameter, read_signature
from flowlet.core.faults import Faults, describe
from flowlet.errors import ConfigError

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

_YIELDS = (Iterator, Iterable, Generator, AsyncIterator, AsyncIterable, AsyncGenerator)
_WRAPS = (AbstractContextManager, AbstractAsyncContextManager, Awaitable)


class Factory(msgspec.Struct, frozen=True, eq=False):
    """What makes a provided value.

    Attributes:
        key: the type of the value.
        parameters: those of the function that are provided themselves.
    """

    key: Any
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]

    @property
    def name(self) -> str:
        return describe(_bare(self.function))

    async def make(self, given: Mapping[str, Any], stack: AsyncExitStack) -> Any:
        """Make the value; what closes it goes to the stack.

        Raises:
            ConfigError: what it made is not of the type.
        """
        function, bare = self.function, _bare(self.function)
        if inspect.isasyncgenfunction(bare):
            made = await stack.enter_async_context(asynccontextmanager(function)(**given))
        elif inspect.isgeneratorfunction(bare):
            made = stack.enter_context(contextmanager(function)(**given))
        else:
            made = function(**given)
            if inspect.iscoroutine(made) or (inspect.isawaitable(made) and not hasattr(type(made), "__aenter__")):
                made = await made
            made = await self._entered(made, stack)
        if not is_of(made, self.key):
            raise ConfigError(f"{self.name} is to make a {type_title(self.key)}, and made {_kind_of(made)}")
        return made

    async def _entered(self, made: Any, stack: AsyncExitStack) -> Any:
        """Enter a context manager; many give themselves, others what they are about, some nothing of use."""
        if hasattr(type(made), "__aenter__") and hasattr(type(made), "__aexit__"):
            inside = await stack.enter_async_context(made)
        elif hasattr(type(made), "__enter__") and hasattr(type(made), "__exit__"):
            inside = stack.enter_context(made)
        else:
            return made
        return made if is_of(made, self.key) and not is_of(inside, self.key) else inside


def read_given(key: Any, given: Any, namespace: Mapping[str, Any], *, is_checked: bool = True) -> Factory | None:
    """Look at the second argument of ``provide``; None if it is the value itself.

    Args:
        namespace: names that annotations may use beyond the module's.
        is_checked: it must be of the type; what replaces it in tests need only look like it.

    Raises:
        ConfigError: the key is no type, or it can neither be of that type nor make one.
    """
    check_key(key)
    is_function = inspect.isroutine(given) or isinstance(given, (type, functools.partial))
    if not is_function or (is_of(given, key) and not _is_vague(key, given)):
        if is_checked and not is_of(given, key):
            raise ConfigError(f"provide({type_title(key)}, ...) was given {_kind_of(given)}, which is none")
        return None
    made, parameters = _read(given, namespace)
    if is_checked and made is not MISSING and _differs(made, key):
        title = describe(_bare(given))
        raise ConfigError(f"provide({type_title(key)}, {title}): {title} makes a {type_title(made)}, which is none")
    return Factory(key, given, parameters)


def read_factory(function: Any, namespace: Mapping[str, Any]) -> Factory:
    """Look at the only argument of ``provide``, which says itself what it makes.

    Args:
        namespace: as in `read_given`.

    Raises:
        ConfigError: it does not.
    """
    if not callable(function):
        raise ConfigError(f"provide() takes a type and its value, or what makes the value, not {function!r:.100}")
    key, parameters = _read(function, namespace)
    if key is MISSING or key is None or key is type(None):
        raise ConfigError(
            f"{describe(_bare(function))} does not say what it provides: annotate what it returns, or write "
            f"`flow.provide(Type, {describe(_bare(function))})`"
        )
    check_key(key)
    return Factory(key, function, parameters)


def check_key(key: Any) -> None:
    """Refuse what no parameter is annotated with.

    Raises:
        ConfigError: it is no type.
    """
    is_type = isinstance(key, (type, NewType)) or typing.get_origin(key) is not None
    if not is_type or key is object or key is Any:
        raise ConfigError(f"provide() takes the type that parameters are annotated with, not {key!r:.100}")
    try:
        hash(key)
    except TypeError:
        raise ConfigError(f"provide(): the type {key!r} cannot be looked up; give it a name with NewType") from None


def is_of(value: Any, key: Any) -> bool:
    """Say whether a value is of a type, as far as that can be told."""
    if isinstance(key, NewType):
        return is_of(value, key.__supertype__)
    origin = typing.get_origin(key)
    if origin is typing.Annotated:
        return is_of(value, key.__origin__)
    if origin in (typing.Union, types.UnionType):
        return any(is_of(value, one) for one in typing.get_args(key))
    kind = key if origin is None else origin
    if not isinstance(kind, type) or (getattr(kind, "_is_protocol", False) and not _is_runtime(kind)):
        return True
    try:
        return isinstance(value, kind)
    except TypeError:
        return True


def _kind_of(value: Any) -> str:
    """Say what a value is without showing it: what is provided may be, or hold, a password."""
    if isinstance(value, type) or inspect.isroutine(value):
        return describe(value)
    return "None" if value is None else f"an object of {type_title(type(value))}"


def _is_runtime(protocol: type) -> bool:
    return bool(getattr(protocol, "_is_runtime_protocol", False))


def _is_vague(key: Any, given: Any) -> bool:
    """Say whether nobody can tell if a function is the value: the type is a protocol that is not called itself."""
    kind = typing.get_origin(key) or key
    if not isinstance(kind, type):
        return False
    is_protocol = bool(getattr(kind, "_is_protocol", False))
    return is_protocol and not _is_runtime(kind) and "__call__" not in vars(kind)


def _differs(made: Any, key: Any) -> bool:
    """Say whether a function that returns the one cannot give the other: neither is a kind of the other."""
    if made is Any or not (isinstance(made, type) and isinstance(key, type)):
        return False
    try:
        return not (issubclass(made, key) or issubclass(key, made))
    except TypeError:
        return False


def _bare(function: Any) -> Any:
    """Return the function in which the code is: a partial, and what is wrapped, has none."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _read(function: Any, namespace: Mapping[str, Any]) -> tuple[Any, tuple[Parameter, ...]]:
    """Return the type of what a function makes, and what it takes that is provided.

    Raises:
        ConfigError: an annotation cannot be resolved, or nobody gives it what it takes.
    """
    bare, title = _bare(function), describe(_bare(function))
    code = inspect.unwrap(bare)
    is_class = isinstance(code, type)
    owner: Any = code.__init__ if is_class else code
    faults = Faults()
    try:
        if is_class and owner is object.__init__:
            return bare, ()
        signature = read_signature(owner, namespace, faults, method=is_class)
        bound = inspect.signature(function).parameters
    except (TypeError, ValueError):  # something written in C
        return (bare if is_class else MISSING), ()
    taken = [p for p in signature.parameters if p.name in bound]
    if faults.problems and (not is_class or any(p.provided for p in taken)):
        raise ConfigError(f"provide(): {'; '.join(faults.problems)}")
    for parameter in taken:
        if bound[parameter.name].default is inspect.Parameter.empty:
            raise ConfigError(
                f"provide(): nobody gives {title} its parameter {parameter.name!r}; give it the default `provided`"
            )
    parameters = tuple(p for p in taken if bound[p.name].default is p.default and p.provided)
    return (bare if is_class else _made_by(code, signature.result)), parameters


def _made_by(function: Any, result: Any) -> Any:
    """Return the type of the value behind what a function is annotated to return."""
    origin, arguments = typing.get_origin(result), typing.get_args(result)
    yields = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    if arguments and (origin in _WRAPS or (yields and origin in _YIELDS)):
        return arguments[0]
    if origin is Coroutine:
        return arguments[2]
    return result


def type_title(key: Any) -> str:
    """Name a type in a message."""
    return describe(key) if isinstance(key, (type, NewType)) else str(key).replace("typing.", "")
