"""Doing one item, or one list of items: calls, attempts, timeouts, and the outcome.

Law: whatever an item's function raises is that item's failure and nobody else's; a list whose call fails is tried
item by item. No outcome is made here that is not given to ``accept``, and each item has one.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any, Protocol, TypeAlias

import anyio
import msgspec

from flowlet.core.annotations import Parameter
from flowlet.core.bulk import Outcome
from flowlet.core.bulk_function import BulkFunction
from flowlet.core.retry import Retry
from flowlet.errors import RunError, StepTimeout
from flowlet.runtime.crew import Crew, Pair
from flowlet.runtime.providers import Providers
from flowlet.runtime.tasks import call_in_thread

Accept: TypeAlias = Callable[[Outcome[Any, Any]], bool]
"""Takes an outcome; tells whether the worker is to wait for room before its next item."""


class Surroundings(Protocol):
    """What an item with a run of its own is called within.

    Attributes:
        check: waits until an item may begin, or raises why it may not.
    """

    @property
    def check(self) -> Callable[[int], Awaitable[None]]: ...

    def enter(self, index: int, attempt: int) -> object:
        """Begin an attempt of an item."""
        ...

    def leave(self, token: Any) -> None:
        """End it."""
        ...

    def provided(self) -> dict[str, Any]:
        """Return the provided arguments that differ from attempt to attempt."""
        ...


class Pace:
    """Lets items begin at a steady rate: none earlier, and no burst after a pause.

    Args:
        rate: items per second.
    """

    def __init__(self, rate: float) -> None:
        self._gap = 1 / rate
        self._next = perf_counter()

    async def turn(self, count: int = 1) -> None:
        """Wait until so many more items may begin."""
        now = perf_counter()
        begins = max(now, self._next)
        self._next = begins + self._gap * count
        if begins > now:
            await anyio.sleep(begins - now)


class ItemWork:
    """Sees to items.

    Args:
        crew: whose items they are; it tells failures from cancellations.
        provided: the arguments that are the same for every call.
        surroundings: None where an item belongs to no run of its own.
    """

    def __init__(
        self,
        crew: Crew,
        function: BulkFunction,
        retry: Retry | None,
        timeout: float | None,
        pace: Pace | None,
        provided: dict[str, Any],
        accept: Accept,
        room: Callable[[], Awaitable[None]],
        surroundings: Surroundings | None = None,
    ) -> None:
        self._crew = crew
        self._function = function
        self._call = call_of(function, crew, timeout, provided)
        self._retry = retry
        self._pace = pace
        self._accept = accept
        self._room = room
        self._surroundings = surroundings

    async def do(self, index: int, item: Any) -> None:
        """See to one item."""
        if self._pace is not None:
            await self._pace.turn()
        if self._accept(await self._attempt(index, item, item)):
            await self._room()

    async def do_list(self, index: int, pairs: Sequence[Pair]) -> None:
        """See to a list of items, together; one after the other if that fails."""
        if self._pace is not None:
            await self._pace.turn(len(pairs))
        began = perf_counter()
        try:
            if self._surroundings is not None:
                await self._surroundings.check(index)
            values = await self._call([item for _, item in pairs])
            outcomes = self._shared_out(pairs, values, (perf_counter() - began) / len(pairs))
        except BaseException as error:
            outcomes = []
            problem = self._crew.judge(index, error)
            if len(pairs) == 1:
                only = pairs[0][1]
                outcomes = [await self._attempt(index, only, [only], is_list=True, failed=problem, began=began)]
        is_full = False
        for outcome in outcomes:
            is_full |= self._accept(outcome)
        if not outcomes:
            for number, item in pairs:
                is_full |= self._accept(await self._attempt(number, item, [item], is_list=True))
        if is_full:
            await self._room()

    def _shared_out(self, pairs: Sequence[Pair], values: Any, seconds: float) -> list[Outcome[Any, Any]]:
        """Give each item of a list its part of what the function returned."""
        if values is None:
            values = [None] * len(pairs)
        count = len(values) if isinstance(values, Sequence) and not isinstance(values, (str, bytes)) else None
        if count != len(pairs):
            found = f"{values!r:.80}" if count is None else f"{count} results"
            problem = RunError(
                f"{self._function.name} was given a list of {len(pairs)} items and returned {found}: with batch=True "
                "it must return one result for each item, in their order, or None"
            )
            return [Outcome(index, item, None, problem, seconds) for index, item in pairs]
        return [Outcome(index, item, value, None, seconds) for (index, item), value in zip(pairs, values, strict=True)]

    async def do_again(self, index: int, item: Any, failed: Exception, began: float) -> Outcome[Any, Any]:
        """See to one item that has failed the first time."""
        return await self._attempt(index, item, item, failed=failed, began=began)

    async def _attempt(
        self,
        index: int,
        item: Any,
        given: Any,
        is_list: bool = False,
        failed: Exception | None = None,
        began: float | None = None,
    ) -> Outcome[Any, Any]:
        """Try an item as often as its policy says.

        Args:
            failed: what the first attempt has failed with, if that was made elsewhere.
            began: when that was.
        """
        attempt, clock = 1, perf_counter
        began = clock() if began is None else began
        while True:
            if failed is None:
                try:
                    value = await self._once(index, given, attempt)
                except BaseException as error:
                    failed = self._crew.judge(index, error)
                else:
                    if is_list:
                        return self._shared_out(((index, item),), value, clock() - began)[0]
                    return Outcome(index, item, value, None, clock() - began, attempt)
            problem, failed = failed, None
            delay = None
            if self._retry is not None:
                try:
                    delay = self._delay(attempt, problem, clock() - began)
                except Exception as broken:  # a stop, wait or retry of the user's own
                    problem = broken
            if delay is None:
                return Outcome(index, item, None, problem, clock() - began, attempt)
            await anyio.sleep(delay)
            attempt += 1

    async def _once(self, index: int, given: Any, attempt: int) -> Any:
        surroundings = self._surroundings
        if surroundings is None:
            return await self._call(given)
        await surroundings.check(index)
        token = surroundings.enter(index, attempt)
        try:
            return await self._call(given, **surroundings.provided())
        finally:
            surroundings.leave(token)

    def _delay(self, attempt: int, problem: Exception, seconds: float) -> float | None:
        from flowlet.runtime.retrying import next_delay

        return next_delay(self._retry, attempt, problem, seconds)


def call_of(
    function: BulkFunction, crew: Crew, timeout: float | None, provided: dict[str, Any]
) -> Callable[..., Awaitable[Any]]:
    """Return what makes one attempt: the user's own function, if nothing has to be added."""
    call = function.call
    if function.is_async and timeout is None and not provided:
        return call

    async def in_time(item: Any, **more: Any) -> Any:
        with anyio.move_on_after(timeout):
            return await call(item, **provided, **more)
        raise _too_long(function.name, timeout)

    async def in_thread(item: Any, **more: Any) -> Any:
        # In a tuple, because trio refuses a bare coroutine: what a lambda that calls an async function returns.
        ended, found = await call_in_thread(lambda: (call(item, **provided, **more),), timeout, lambda: crew.is_cut)
        if not ended or found is None:
            raise _too_long(function.name, timeout)
        return await found[0] if inspect.isawaitable(found[0]) else found[0]

    async def with_provided(item: Any, **more: Any) -> Any:
        return await call(item, **provided, **more)

    if not function.is_async:
        return in_thread
    return with_provided if timeout is None else in_time


def _too_long(name: str, timeout: float | None) -> StepTimeout:
    return StepTimeout(f"{name} did not end within {timeout} s; give it more with timeout=")


def within_scopes(
    function: BulkFunction, parameters: Sequence[Parameter], providers: Providers, is_cut: Callable[[], bool]
) -> BulkFunction:
    """Return a function that takes some of its parameters from a container, anew for each call."""

    async def call(given: Any, **more: Any) -> Any:
        scope = providers.scope(parameters)
        assert scope is not None
        async with scope as provide:
            more |= {p.name: provide(p.annotation) for p in parameters}
            if function.is_async:
                return await function.call(given, **more)
            _, found = await call_in_thread(lambda: (function.call(given, **more),), None, is_cut)
            return found[0] if found else None

    return msgspec.structs.replace(function, call=call, is_async=True)
