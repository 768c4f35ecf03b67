"""What a `Flowlet` gives to parameters ``= provided``.

Law: nothing is made here; see `flowlet.runtime.providers`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, overload

from flowlet.app.life import Life
from flowlet.core.annotations import caller_namespace
from flowlet.runtime.providers import Providers, Services, Source

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")
V = TypeVar("V")
F = TypeVar("F", bound=Callable[..., Any])

Made: TypeAlias = (
    T | Awaitable[T] | Iterator[T] | AsyncIterator[T] | AbstractContextManager[T] | AbstractAsyncContextManager[T]
)
"""What a factory may return or yield for a value."""


class ProvideSide(Life):
    """What a `Flowlet` does about injection."""

    @overload
    def provide(self, factory: F, /) -> F: ...
    @overload
    def provide(self, key: TypeForm[T], value: T | Callable[..., Made[T]], /) -> None: ...
    def provide(self, *args: Any) -> Any:
        """Give the value for parameters ``= provided`` that are annotated with a type, or what makes it.

        A parameter is filled by its very annotation: what is provided for a class fills no parameter annotated with
        its base. ``Annotated[Gateway, "eu"]`` and ``NewType("Eu", Gateway)`` are types of their own, for several
        values of one class.

        A function, method, class or ``functools.partial`` makes the value; anything else is the value. It may be
        async, and take parameters ``= provided`` itself. It runs when its value is first needed, once; who needs it at
        the same time waits for the same one. What is cleaned up afterwards is yielded by a generator (async or not),
        or is a context manager, which is entered; that is closed when the Flowlet is left, the last first, on the same
        loop, and made anew when it is entered again. A value that is given as such is neither entered nor closed.

        Calling it again for a type replaces what was given before. Alone, a class provides itself, and a function
        what it is annotated to return: ``@flow.provide``.

        Entering the Flowlet fails if there is nothing for a parameter of one of its definitions. A factory that
        fails is the failure of the step that needs its value, as if the step had raised `ProviderFailed`; the next
        attempt calls it again.

        Raises:
            ConfigError: the value is not of the type, or the factory does not make one of it, does not say what it
                makes, or has a parameter that nobody gives.

        Example:
            >>> import anyio
            >>> from collections.abc import AsyncIterator
            >>> from flowlet import Flowlet, provided, step
            >>> flow = Flowlet()
            >>> class Config:
            ...     url = "https://pay.example"
            >>> class Gateway:
            ...     def __init__(self, url: str) -> None:
            ...         self.url = url
            >>> flow.provide(Config, Config())
            >>> @flow.provide
            ... async def open_gateway(config: Config = provided) -> AsyncIterator[Gateway]:
            ...     print("open")
            ...     yield Gateway(config.url)
            ...     print("close")
            >>> @step
            ... async def charge(amount: int, gateway: Gateway = provided) -> str:
            ...     return f"{amount} through {gateway.url}"
            >>> checkout = flow.saga("checkout", charge)
            >>> async def main() -> None:
            ...     async with flow:
            ...         print(await checkout(7))
            >>> anyio.run(main)
            open
            7 through https://pay.example
            close
        """
        from flowlet.runtime.factories import read_factory, read_given

        if len(args) == 2:
            factory = read_given(*args, caller_namespace(1))
            self._providers.add(args[0], Source(args[1], None) if factory is None else Source(None, factory))
            return None
        if len(args) != 1:
            raise TypeError("provide() takes a type and its value, or what makes the value")
        factory = read_factory(args[0], caller_namespace(1))
        self._providers.add(factory.key, Source(None, factory))
        return args[0]

    def override(self, key: TypeForm[Any], value: V, /) -> Override[V]:
        """Give another value for a type, in tests, within ``with`` or ``async with``; then it is as before.

        The value, or what makes it, need only look like the type. Overrides nest. What was made before out of the
        value that is overridden keeps that one: to have it made of the other, override before entering the Flowlet.

        Returns:
            What is entered, and gives what was passed.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, provided
            >>> flow = Flowlet()
            >>> class Gateway:
            ...     name = "visa"
            >>> _ = flow.provide(Gateway)
            >>> class FakeGateway:
            ...     name = "fake"
            >>> @flow.saga
            ... async def pay(gateway: Gateway = provided) -> str:
            ...     return gateway.name
            >>> async def main() -> None:
            ...     async with flow:
            ...         with flow.override(Gateway, FakeGateway()):
            ...             print(await pay())
            ...         print(await pay())
            >>> anyio.run(main)
            fake
            visa
        """
        return Override(self._providers, key, value, caller_namespace(1))

    def provide_from(self, services: Services, /) -> None:
        """Take what nothing else provides from a container, such as `flowlet.ext.svcs.Services`.

        A step opens a scope of the container for each attempt, and closes it when the attempt has ended; so do
        compensations, nodes and items of a bulk operation. All else (bodies, classes of sagas, guards, hooks, actions,
        and factories) shares a scope that is closed when the Flowlet is left.

        Args:
            services: asked in the order in which they were given.

        Example:
            >>> import svcs
            >>> from flowlet import Flowlet
            >>> from flowlet.ext.svcs import Services
            >>> registry = svcs.Registry()
            >>> registry.register_value(float, 0.19)
            >>> flow = Flowlet()
            >>> flow.provide_from(Services(registry))
        """
        self._providers.add_services(services)


class Override(Generic[V]):
    """What `Flowlet.override` returns."""

    def __init__(self, providers: Providers, key: Any, value: V, namespace: Mapping[str, Any]) -> None:
        from flowlet.runtime.factories import read_given

        factory = read_given(key, value, namespace, is_checked=False)
        self._providers, self._key, self._value = providers, key, value
        self._source = Source(value, None) if factory is None else Source(None, factory)
        self._count = 0

    def __enter__(self) -> V:
        if not self._count:
            self._providers.override(self._key, self._source)
        self._count += 1
        return self._value

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /) -> None:
        self._count -= 1
        if not self._count:
            self._providers.restore(self._key, self._source)

    async def __aenter__(self) -> V:
        return self.__enter__()

    async def __aexit__(
        self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        self.__exit__(t, e, tb)
