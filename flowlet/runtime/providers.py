"""What fills parameters ``= provided``: values, what makes them, and containers of services, by type.

Law: a value is chosen by the parameter's annotation, exactly, and by nothing else. What a factory makes is made when
it is first needed, once, also if many need it at the same time; it is closed when the `Flowlet` is left, in reverse
order, and made anew when that is entered again. A look-up that finds nothing to make awaits nothing.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import anyio

from flowlet.core.annotations import Parameter
from flowlet.core.run import Run
from flowlet.errors import ConfigError, ProviderFailed
from flowlet.runtime.logs import Log
from flowlet.runtime.tasks import spawn

if TYPE_CHECKING:
    from flowlet.runtime.factories import Factory
    from flowlet.runtime.upkeep import Upkeep

Provide: TypeAlias = Callable[[Any], Any]


class Services(Protocol):
    """A container of services, such as one of another library; see `Flowlet.provide_from`."""

    def __contains__(self, annotation: Any, /) -> bool:
        """Tell whether it has a service of this type."""
        ...

    def open(self) -> AbstractAsyncContextManager[Callable[[Any], Awaitable[Any]]]:
        """Open a scope: what returns a service of a type, once; leaving the scope closes what it has returned."""
        ...


class Source:
    """What gives the value for one type.

    Attributes:
        factory: what makes it; None where the value was given.
        upkeep: what keeps the value that was made.
        overrides: it counts for a time in place of others.
    """

    __slots__ = ("factory", "is_made", "overrides", "upkeep", "value")

    def __init__(self, value: Any, factory: Factory | None) -> None:
        self.value: Any = value
        self.factory: Factory | None = factory
        self.is_made: bool = factory is None
        self.upkeep: Upkeep | None = None
        self.overrides: bool = False

    def forget(self) -> None:
        """Have the value made anew when it is needed next, if it is made at all."""
        if self.factory is not None:
            self.value, self.is_made, self.upkeep = None, False, None


class Providers:
    """The provided values of one `Flowlet`.

    Attributes:
        is_plain: all values there are have been made, and none is taken anew for a call, so that looking up is enough.
    """

    def __init__(self, log: Log | None = None) -> None:
        self._log = log or Log()
        self._ready: dict[Any, Any] = {}
        self._references: dict[Any, Any] = {}
        self._sources: dict[Any, list[Source]] = {}  # the last one counts: those before it are overridden
        self._services: list[Services] = []
        self._kept: list[Upkeep] = []
        # Of services that are taken for as long as the Flowlet is open: the scope, and who may ask it now.
        self._takers: dict[int, tuple[Upkeep, anyio.Lock]] = {}
        self._taken: dict[Any, Any] = {}
        self.is_open: bool = False
        self.is_plain: bool = True

    # -------------------------------------------------------------- what is given
    def add(self, key: Any, source: Source) -> None:
        """Give what fills parameters annotated with ``key``, in place of what did before."""
        sources = self._sources.setdefault(key, [])
        sources[: bool(sources) and not sources[0].overrides] = [source]
        self._show(key)

    def add_reference(self, key: Any, value: Any) -> None:
        """Give a value without keeping it alive, for one that holds these providers itself."""
        self._references[key] = self._ready[key] = weakref.ref(value)

    def add_services(self, services: Services) -> None:
        """Give a container that is asked for what nothing else provides."""
        self._services.append(services)
        self.is_plain = False

    def override(self, key: Any, source: Source) -> None:
        """Let a source count in place of the others until `restore`."""
        source.overrides = True
        self._sources.setdefault(key, []).append(source)
        self._show(key)

    def restore(self, key: Any, source: Source) -> None:
        """Let a source that has overridden others count no longer."""
        sources = self._sources[key]
        sources.remove(source)
        source.forget()  # nobody would tell it when the value has been closed
        if not sources:
            del self._sources[key]
        self._show(key)

    def _show(self, key: Any) -> None:
        """Have the value of the source that counts found, if it is there."""
        sources = self._sources.get(key)
        if sources and sources[-1].is_made:
            self._ready[key] = sources[-1].value
        elif not sources and key in self._references:
            self._ready[key] = self._references[key]
        else:
            self._ready.pop(key, None)
        self.is_plain = not self._services and all(s[-1].is_made for s in self._sources.values())

    # -------------------------------------------------------------- looking up
    def provide(self, annotation: Any) -> Any:
        """Return the value for a parameter, which has been made.

        Raises:
            ConfigError: nothing provides it, or it is still to be made.
        """
        try:
            value = self._ready[annotation]
        except (KeyError, TypeError):
            try:
                value = self._taken[annotation]
            except (KeyError, TypeError):
                raise self._nothing(annotation) from None
        return value() if type(value) is weakref.ref else value

    def _nothing(self, annotation: Any) -> ConfigError:
        from flowlet.runtime.factories import type_title

        name = type_title(annotation)
        if self.has(annotation):
            return ConfigError(
                f"{name} has not been made yet, and cannot be made in the middle of an event: call "
                "flow.provide before the machine is created or loaded"
            )
        return ConfigError(f"nothing provides {name}: call flow.provide({name}, value) before the run")

    def has(self, annotation: Any) -> bool:
        """Tell whether there is something that gives the value for a parameter."""
        try:
            found = annotation in self._ready or annotation in self._sources
        except TypeError:
            return False
        return found or self._services_with(annotation) is not None

    def is_service(self, annotation: Any) -> bool:
        """Tell whether the value for a parameter comes from a container."""
        is_given = annotation in self._ready or annotation in self._sources
        return not is_given and self._services_with(annotation) is not None

    def _services_with(self, annotation: Any) -> Services | None:
        return next((s for s in self._services if annotation in s), None)

    @property
    def keys(self) -> Iterator[Any]:
        """The types that are provided here."""
        return iter({**self._ready, **self._sources})

    @property
    def sources(self) -> dict[Any, list[Source]]:
        """What was given, by type; the last one counts."""
        return self._sources

    def factory(self, annotation: Any) -> Factory | None:
        """Return what makes the value for a type, if something does."""
        sources = self._sources.get(annotation)
        return sources[-1].factory if sources else None

    def scope(self, parameters: Iterable[Parameter]) -> AbstractAsyncContextManager[Provide] | None:
        """Return what has to be entered for one call that takes parameters; None if all of it is there."""
        ready = self._ready
        for parameter in parameters:
            if parameter.annotation not in ready and parameter.annotation is not Run:
                return self._scope([p.annotation for p in parameters])
        return None

    @asynccontextmanager
    async def _scope(self, annotations: Sequence[Any]) -> AsyncGenerator[Provide]:
        """Make what has to be made, and take services that are closed when the call is over."""
        stack = AsyncExitStack()
        try:
            own = await self._take_for_call(annotations, stack)
            yield lambda annotation: own[annotation] if annotation in own else self.provide(annotation)
        except BaseException:
            with anyio.CancelScope(shield=True):  # a cancelled call closes what it has taken, too
                await stack.__aexit__(*sys.exc_info())
            raise
        with anyio.CancelScope(shield=True):
            await stack.aclose()

    async def _take_for_call(self, annotations: Sequence[Any], stack: AsyncExitStack) -> dict[Any, Any]:
        """Have made what is made once, and return the services that are taken for one call."""
        opened: dict[int, Callable[[Any], Awaitable[Any]]] = {}
        own: dict[Any, Any] = {}
        for annotation in annotations:
            if annotation is Run or annotation in self._ready or await self._make(annotation):
                continue
            services = self._services_with(annotation)
            if services is None:
                continue
            try:
                take = opened.get(id(services))
                if take is None:
                    take = opened[id(services)] = await stack.enter_async_context(services.open())
                own[annotation] = await take(annotation)
            except Exception as error:
                raise _failed(annotation, error) from error
        return own

    # -------------------------------------------------------------- making
    async def make(self, annotations: Iterable[Any]) -> None:
        """Make the values of these types that have to be made, for as long as the Flowlet is open.

        Raises:
            ProviderFailed: one of them cannot be made.
        """
        for annotation in annotations:
            if annotation is Run or annotation in self._ready or annotation in self._taken:
                continue
            if not await self._make(annotation):
                services = self._services_with(annotation)
                if services is not None:
                    await self._take(services, annotation)

    async def _make(self, annotation: Any) -> bool:
        """Have the source of a type make its value; tell whether there is one."""
        sources = self._sources.get(annotation)
        if not sources:
            return False
        source, factory = sources[-1], sources[-1].factory
        if factory is None:
            return True
        from flowlet.runtime.factories import type_title

        cycle = find_cycle(self._sources, annotation)
        if cycle is not None:
            raise ConfigError(cycle)

        async def begin(stack: AsyncExitStack) -> Any:
            await self.make(p.annotation for p in factory.parameters)
            given = {p.name: self.provide(p.annotation) for p in factory.parameters}
            value = await factory.make(given, stack)
            if source.upkeep in self._kept:  # what it is made of is behind it by now, and is to be closed later
                self._kept.remove(source.upkeep)
                self._kept.append(source.upkeep)
            return value

        upkeep = source.upkeep
        if upkeep is None:
            upkeep = source.upkeep = self._keep(type_title(annotation), begin)
        await upkeep.ready.wait()
        if upkeep.error is not None:
            if source.upkeep is upkeep:
                source.upkeep = None  # who needs it next tries again
                self._forget(upkeep)
            raise _failed(annotation, upkeep.error, factory.name) from upkeep.error
        if source.upkeep is upkeep and not source.is_made:
            source.value, source.is_made = upkeep.value, True
            self._show(annotation)
        # What counts may have been replaced meanwhile.
        return annotation in self._ready or await self._make(annotation)

    async def _take(self, services: Services, annotation: Any) -> None:
        """Take a service for as long as the Flowlet is open."""
        key = id(services)
        if key not in self._takers:
            keep = self._keep(type(services).__qualname__, lambda stack: stack.enter_async_context(services.open()))
            self._takers[key] = keep, anyio.Lock()
        taker, lock = self._takers[key]
        await taker.ready.wait()
        try:
            if taker.error is not None:
                self._forget(taker)  # who needs it next tries again
                raise taker.error
            async with lock:  # many containers make two of what is asked for twice at the same time
                if annotation not in self._taken:
                    value = await taker.value(annotation)
                    if self._takers.get(key, (None,))[0] is taker:
                        self._taken[annotation] = value
        except Exception as error:
            raise _failed(annotation, error) from error

    def _keep(self, title: str, make: Callable[[AsyncExitStack], Awaitable[Any]]) -> Upkeep:
        from flowlet.runtime.upkeep import Upkeep

        if not self.is_open:
            raise ConfigError("provided values are made inside `async with flow:`, which closes them; enter it first")
        upkeep = Upkeep(title, make, self._lose)
        self._kept.append(upkeep)
        return upkeep

    def _forget(self, upkeep: Upkeep) -> None:
        if upkeep in self._kept:
            self._kept.remove(upkeep)
        self._takers = {key: taker for key, taker in self._takers.items() if taker[0] is not upkeep}

    def _lose(self, upkeep: Upkeep) -> None:
        """Have a value made anew that has broken while nobody looked."""
        self._log.error("flowlet.provided_lost", value=upkeep.title, error=repr(upkeep.error))
        if any(taker is upkeep for taker, _ in self._takers.values()):
            self._taken.clear()
        self._forget(upkeep)
        for key, sources in self._sources.items():
            for source in sources:
                if source.upkeep is upkeep:
                    source.forget()
                    self._show(key)

    # -------------------------------------------------------------- the end
    async def close(self) -> None:
        """Close what was made, the last first; it is made anew when the Flowlet is entered again.

        Raises:
            ProviderFailed: something could not be closed; the others are.
        """
        self.is_open = False
        kept, self._kept = self._kept, []
        self._takers.clear()
        self._taken.clear()
        for key, sources in self._sources.items():
            for source in sources:
                source.forget()
            self._show(key)
        if kept:
            await self._close(kept)

    async def _close(self, kept: list[Upkeep]) -> None:
        failures: list[BaseException] = []

        async def main() -> None:
            for upkeep in reversed(kept):
                error = await upkeep.close()
                if error is not None:
                    self._log.error("flowlet.provided_not_closed", value=upkeep.title, error=repr(error))
                    failures.append(error)

        task, cancelled = spawn(main, failures.append), None
        while not task.done.is_set:
            try:
                await task.done.wait()
            except anyio.get_cancelled_exc_class() as error:  # a task of asyncio is cancelled through any shield
                cancelled = error
        if cancelled is not None:
            raise cancelled
        if failures:
            raise ProviderFailed(f"a provided value could not be closed: {failures[0]!r}") from failures[0]


def find_cycle(sources: dict[Any, list[Source]], key: Any) -> str | None:
    """Say of what makes a type that it needs itself, by which way; None if it does not."""
    from flowlet.runtime.factories import type_title

    path: list[Any] = []

    def walk(annotation: Any) -> bool:
        if annotation in path:
            path.append(annotation)
            return True
        path.append(annotation)
        own = sources.get(annotation)
        factory = own[-1].factory if own else None
        if factory is not None and any(walk(p.annotation) for p in factory.parameters):
            return True
        path.pop()
        return False

    if not walk(key):
        return None
    return f"what provides {type_title(path[-1])} needs itself: {' -> '.join(map(type_title, path))}"


def _failed(annotation: Any, error: BaseException, name: str = "") -> ProviderFailed:
    from flowlet.runtime.factories import type_title

    if isinstance(error, ProviderFailed):
        return error
    maker = f"{name}, which makes it, failed" if name else "taking it from its container failed"
    return ProviderFailed(f"there is no {type_title(annotation)}: {maker}: {type(error).__name__}: {error}")
