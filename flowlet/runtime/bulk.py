"""Bulk operations: one function, many items.

Law: what goes on is in `Operation`; this is what a program holds of it. Nothing begins before it is awaited or
iterated over, and each bulk is one operation, however often it is asked.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

from flowlet.core.bulk import BulkReport, Outcome
from flowlet.errors import RunError
from flowlet.runtime.bulk_operation import Operation
from flowlet.runtime.outlet import Outlet

T_co = TypeVar("T_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)
A = TypeVar("A")


class Bulk(Generic[T_co, R_co]):
    """A bulk operation; `Flowlet.bulk` makes one.

    Await it for a report. Iterate over it for the outcomes, as the items end; use ``async with`` around that if you may
    leave early, so that what is under way has ended when you go on.

    Example:
        >>> import anyio
        >>> from flowlet import Flowlet
        >>> flow = Flowlet()
        >>> async def double(n: int) -> int:
        ...     return 2 * n
        >>> async def main() -> None:
        ...     report = await flow.bulk(double, [1, 2, 3])
        ...     print(report.succeeded)
        ...     async with flow.bulk(double, [1, 2, 3], ordered=True) as outcomes:
        ...         async for outcome in outcomes:
        ...             print(outcome.item, outcome.value)
        >>> anyio.run(main)
        3
        1 2
        2 4
        3 6
    """

    __slots__ = ("__weakref__", "_begun", "_concurrency", "_make", "_name", "_operation", "_ordered", "_outlet")

    def __init__(self, name: str, concurrency: int, ordered: bool, make: Callable[[Outlet | None], Operation]) -> None:
        self._name = name
        self._concurrency = concurrency
        self._ordered = ordered
        self._make = make
        self._begun = False
        self._operation: Operation | None = None
        self._outlet: Outlet | None = None

    def __await__(self) -> Generator[Any, Any, BulkReport[T_co]]:
        return self._finish().__await__()

    async def _finish(self) -> BulkReport[T_co]:
        operation = self._operation or self._begin(None)
        if self._outlet is not None:  # what nobody iterates over any more holds nothing up
            while await self._take(operation, self._outlet) is not None:
                pass
        return await operation.finish()

    def _begin(self, outlet: Outlet | None) -> Operation:
        self._begun = True
        operation = self._make(outlet)
        self._operation, self._outlet = operation, outlet
        operation.begin()
        return operation

    def cancel(self) -> None:
        """Cut off what is under way and begin no further item; awaiting it then gives a report of what was done.

        With an id it ends as cancelled for good, in every process, as with ``flow.handle(id).cancel()``. To leave it so
        that it can be gone on with, cancel who awaits it instead, or leave its ``async with``.

        Raises:
            RunError: it has not begun.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet
            >>> flow = Flowlet()
            >>> async def double(n: int) -> int:
            ...     return 2 * n
            >>> async def main() -> None:
            ...     bulk = flow.bulk(double, range(10**9))
            ...     async for outcome in bulk:
            ...         if outcome.index == 100:
            ...             bulk.cancel()
            ...     print((await bulk).status)
            >>> anyio.run(main)
            cancelled
        """
        if self._operation is None:
            raise RunError(f"the bulk operation of {self._name} has not begun: await it, or iterate over it")
        if not self._operation.task.done.is_set:
            self._operation.cut("cancelled")

    # -------------------------------------------------------------- outcomes
    def __aiter__(self) -> AsyncIterator[Outcome[T_co, R_co]]:
        return self

    async def __anext__(self) -> Outcome[T_co, R_co]:
        """Wait for the next outcome.

        Raises:
            Exception: the items, or the store, have broken the operation; an item's own error is in its outcome.
        """
        operation, outlet = self._streaming()
        outcome = await self._take(operation, outlet)
        if outcome is None:
            await operation.finish()
            raise StopAsyncIteration
        return outcome

    def _streaming(self, ordered: bool = False) -> tuple[Operation, Outlet]:
        if self._operation is None:
            outlet = Outlet(self._concurrency, self._ordered or ordered)
            return self._begin(outlet), outlet
        if self._outlet is None:
            raise RunError("this bulk operation was awaited: begin another one to iterate over its outcomes")
        return self._operation, self._outlet

    @staticmethod
    async def _take(operation: Operation, outlet: Outlet) -> Outcome[Any, Any] | None:
        try:
            return await outlet.take()
        except BaseException:
            await operation.leave()
            raise

    async def __aenter__(self) -> Self:
        self._streaming()
        return self

    async def __aexit__(
        self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        operation = self._operation
        assert operation is not None
        if not operation.task.done.is_set:
            await operation.leave()
        error = operation.error
        if t is None and error is not None and not isinstance(error, Exception):  # an interrupt is for everybody
            raise error

    def __del__(self) -> None:
        operation = self._operation
        if not self._begun:
            text = f"the bulk operation of {self._name} was never begun: await it"
            warnings.warn(text, RuntimeWarning, stacklevel=2, source=self)
        elif operation is not None and not operation.task.done.is_set:
            with suppress(RuntimeError):  # the event loop is closed, and its tasks with it
                operation.task.cancel()

    # -------------------------------------------------------------- combinators
    async def values(self) -> list[R_co]:
        """Return what the function returned, in the order of the items.

        Raises:
            BulkFailed: items have failed; with ``on_error="collect"``, after all were tried.
            RunTimeout, RunCancelled: it was cut off.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet
            >>> flow = Flowlet()
            >>> async def double(n: int) -> int:
            ...     return 2 * n
            >>> async def main() -> None:
            ...     print(await flow.bulk(double, range(5)).values())
            >>> anyio.run(main)
            [0, 2, 4, 6, 8]
        """
        found = {outcome.index: outcome async for outcome in self if outcome.error is None}
        (await self).raise_errors()
        return [found[index].value for index in sorted(found)]

    async def filter(self) -> list[T_co]:
        """Return the items for which the function returned something true, in their order.

        Raises:
            BulkFailed, RunTimeout, RunCancelled: as `values`.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet
            >>> flow = Flowlet()
            >>> async def is_even(n: int) -> bool:
            ...     return n % 2 == 0
            >>> async def main() -> None:
            ...     print(await flow.bulk(is_even, range(5)).filter())
            >>> anyio.run(main)
            [0, 2, 4]
        """
        found = {outcome.index: outcome.item async for outcome in self if outcome.error is None and outcome.value}
        (await self).raise_errors()
        return [found[index] for index in sorted(found)]

    @overload
    async def reduce(self, function: Callable[[A, R_co], Awaitable[A]], initial: A, /) -> A: ...
    @overload
    async def reduce(self, function: Callable[[A, R_co], A], initial: A, /) -> A: ...
    async def reduce(self, function: Callable[[Any, Any], Any], initial: Any, /) -> Any:
        """Put what the function returned together, in the order of the items, without keeping it.

        Args:
            function: takes what there is so far and the next value; plain or async.
            initial: what there is before the first.

        Raises:
            BulkFailed, RunTimeout, RunCancelled: as `values`.

        Example:
            >>> import anyio, operator
            >>> from flowlet import Flowlet
            >>> flow = Flowlet()
            >>> async def double(n: int) -> int:
            ...     return 2 * n
            >>> async def main() -> None:
            ...     print(await flow.bulk(double, range(5)).reduce(operator.add, 0))
            >>> anyio.run(main)
            20
        """
        self._streaming(ordered=True)
        async for outcome in self:
            if outcome.error is None:
                initial = function(initial, outcome.value)
                if inspect.isawaitable(initial):
                    initial = await initial
        (await self).raise_errors()
        return initial

    def __repr__(self) -> str:
        return f"<Bulk of {self._name}>"
