"""Services from svcs, for parameters ``= provided``.

Law: the registry is the application's own. A container is opened for each attempt of a step and closed with it, so
that what must not be shared, such as a session, is not. Imported by whoever has svcs, of which it needs nothing but
its registry and containers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from flowlet.errors import MissingExtra

try:
    import svcs
except ImportError as _error:
    raise MissingExtra("flowlet.ext.svcs needs svcs: pip install svcs") from _error


class Services:
    """The services of a svcs registry, for `Flowlet.provide_from`.

    Args:
        registry: where they are registered, also later. Factories may be async.

    Example:
        >>> import anyio, svcs
        >>> from flowlet import Flowlet, provided, step
        >>> from flowlet.ext.svcs import Services
        >>> class Gateway: ...
        >>> registry = svcs.Registry()
        >>> registry.register_factory(Gateway, Gateway)
        >>> flow = Flowlet()
        >>> flow.provide_from(Services(registry))
        >>> @step
        ... async def charge(amount: int, gateway: Gateway = provided) -> str:
        ...     return f"{amount} through a {type(gateway).__name__}"
        >>> checkout = flow.saga("checkout", charge)
        >>> async def main() -> None:
        ...     async with flow:
        ...         print(await checkout(7))
        >>> anyio.run(main)
        7 through a Gateway
    """

    def __init__(self, registry: svcs.Registry) -> None:
        self._registry = registry

    def __contains__(self, annotation: Any, /) -> bool:
        return annotation in self._registry

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Callable[[Any], Awaitable[Any]]]:
        """Open a container, and close it with all that was taken from it."""
        async with svcs.Container(self._registry) as container:
            yield container.aget
