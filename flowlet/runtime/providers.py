"""What fills parameters ``= provided``: values and factories by type.

Law: a value is chosen by the parameter's annotation and by nothing else; a factory runs once, when its
value is first needed.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

from flowlet.errors import ConfigError


class Providers:
    """The provided values of one `Flowlet`."""

    def __init__(self) -> None:
        self._values: dict[Any, Any] = {}

    def add_value(self, key: Any, value: Any) -> None:
        """Give the value for parameters annotated with ``key``."""
        self._values[key] = value

    def add_reference(self, key: Any, value: Any) -> None:
        """Give a value without keeping it alive, for one that holds these providers itself."""
        self._values[key] = weakref.ref(value)

    def add_factory(self, factory: Callable[[], Any]) -> None:
        """Have the values for parameters annotated like the factory's result made by it.

        Raises:
            ConfigError: it is async, or its result has no annotation.
        """
        try:
            signature = inspect.signature(factory, eval_str=True)
        except NameError as error:
            raise ConfigError(f"the return annotation of {factory!r} cannot be resolved: {error}") from error
        key = factory if isinstance(factory, type) else signature.return_annotation
        if key is inspect.Signature.empty or inspect.iscoroutinefunction(factory):
            raise ConfigError(f"{factory!r} must be a plain function whose return annotation is the type it provides")
        self._values[key] = _Lazy(factory)

    def provide(self, annotation: Any) -> Any:
        """Return the value for a parameter.

        Raises:
            ConfigError: nothing provides it.
        """
        try:
            value = self._values[annotation]
        except (KeyError, TypeError):
            name = getattr(annotation, "__qualname__", repr(annotation))
            raise ConfigError(f"nothing provides {name}: call flow.provide({name}, value) before the run") from None
        if isinstance(value, weakref.ref):
            return value()
        if isinstance(value, _Lazy):
            value = self._values[annotation] = value.factory()
        return value


class _Lazy:
    """A provided value that is made when it is first needed."""

    __slots__ = ("factory",)

    def __init__(self, factory: Callable[[], Any]) -> None:
        self.factory = factory
