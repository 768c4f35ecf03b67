"""Bulk operations of a `Flowlet`."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from msgspec import UNSET, UnsetType

from flowlet.app.life import Life
from flowlet.core.annotations import caller_namespace
from flowlet.core.retry import Retry, Seconds

if TYPE_CHECKING:
    from typing import Unpack

    from flowlet.runtime.bulk import Bulk
    from flowlet.runtime.bulk_operation import Operation
    from flowlet.runtime.bulk_options import BulkOptions, OnError, ShowProgress
    from flowlet.runtime.outlet import Outlet

T = TypeVar("T")
R = TypeVar("R")


class BulkSide(Life):
    """What a `Flowlet` does with many items."""

    @cached_property
    def _held_shards(self) -> set[str]:
        return set()

    @overload
    def bulk(
        self,
        fn: Callable[[list[T]], Awaitable[Sequence[R]]],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *,
        batch: Literal[True],
        **options: Unpack[BulkOptions],
    ) -> Bulk[T, R]: ...
    @overload
    def bulk(
        self,
        fn: Callable[[list[T]], Awaitable[None]],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *,
        batch: Literal[True],
        **options: Unpack[BulkOptions],
    ) -> Bulk[T, None]: ...
    @overload
    def bulk(
        self,
        fn: Callable[[T], Awaitable[R]],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *,
        batch: Literal[False] = False,
        **options: Unpack[BulkOptions],
    ) -> Bulk[T, R]: ...
    @overload
    def bulk(
        self,
        fn: Callable[[T], R],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *,
        batch: Literal[False] = False,
        **options: Unpack[BulkOptions],
    ) -> Bulk[T, R]: ...
    def bulk(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any] | AsyncIterable[Any],
        /,
        *,
        batch: bool = False,
        concurrency: int | UnsetType = UNSET,
        id: str | None = None,
        batch_size: int | None = None,
        retry: Retry | int | UnsetType | None = UNSET,
        timeout: Seconds | None = None,
        total_timeout: Seconds | UnsetType | None = UNSET,
        rate: float | None = None,
        ordered: bool = False,
        on_error: OnError = "collect",
        progress: ShowProgress = None,
    ) -> Any:
        """Do the same with many items, several at a time; an item that fails is a line in the report.

        Items are taken one by one as workers become free, from any iterable or async iterable, also an endless one;
        with few workers busy, nothing is read ahead. A failed item fails nothing else. Memory does not grow with
        the number of items, but with that of failures.

        With ``id=`` the outcome of each item is recorded in the store, many in one commit. A process that is killed
        loses at most those of the last moment: call it again with the same id, function and items, and the rest is
        done. Items that were under way may be done twice, and have the same ``run.idempotency_key`` both times. Several
        processes that call it at once share the items. When all are done, calling it again only reports. Like a run, it
        is listed by `runs`, and ``flow.handle(id)`` tells its status and cancels it.

        Args:
            fn: async, or a plain function, which is called in threads. It takes an item, and may have parameters
                ``= provided``. A ``@step`` brings its ``retry`` and ``timeout`` along.
            items: with an id, always the same ones in the same order; they and the results must be storable.
            batch: ``fn`` takes a list of up to ``batch_size`` items and returns a list with a result for each, or
                None. If it fails, the items of that list are tried one by one, so that only the bad ones fail.
            concurrency: calls under way at once. The Flowlet's ``config.bulk`` says it by default, as it does with
                the size of lists, ``retry`` and ``total_timeout``: 5.
            id: makes it durable; unique in the store.
            batch_size: items of a list, 10 by default; with an id, outcomes of a commit, which also happens ten times a
                second, 100 by default.
            retry: how often an item is tried, or a policy; 1 or None for once. By default what the ``@step`` says, or
                else three times, after 1 and 2 seconds; a saga that is called with each item has its own retries.
                Attempts of an item start anew in a new process.
            timeout: seconds (or a timedelta) that one attempt may take.
            total_timeout: seconds (or a timedelta) after which what is under way is cancelled; the report says
                ``"timed_out"``. None for no limit, 300 by default. With an id, call it again for the rest.
            rate: at most so many items begin in a second.
            ordered: outcomes are given out in the order of the items.
            on_error: ``"collect"`` goes on whatever fails; ``"stop"`` begins no item after the first failure; a
                whole number does so after so many failures; a share, such as 0.05, when more than that part of what
                is done has failed (of 20 items at least). What is under way ends; the report says ``"failed"``.
            progress: True for a bar (needs ``flowlet[cli]``), or a function that takes a `Progress`, called up to
                ten times a second. Whatever is configured.

        Returns:
            A `Bulk`: await it for a `BulkReport`, iterate over it for an `Outcome` of each item, or ask it for
            ``values()``, ``filter()`` or ``reduce(...)``.

        Raises:
            ConfigError, DefinitionError: an option or the function cannot be meant.
            Disabled: this Flowlet is.
            IdConflict: when awaited: the id is taken by another function, or by other items.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet
            >>> flow = Flowlet()
            >>> async def invert(n: int) -> float:
            ...     return 1 / n
            >>> async def main() -> None:
            ...     async with flow:
            ...         report = await flow.bulk(invert, [1, 0, 4], concurrency=2, id="june")
            ...         print(report.status, report.succeeded, [str(e) for e in report.errors])
            ...         async with flow.bulk(invert, [1, 4], ordered=True) as outcomes:
            ...             async for outcome in outcomes:
            ...                 print(outcome.item, outcome.value)
            >>> anyio.run(main)
            completed 2 ['item 1 (0): ZeroDivisionError: division by zero']
            1 1.0
            4 0.25
        """
        # Imported when there are many items: most programs have none, and would pay for it at their start.
        from flowlet.core.bulk_function import read_function
        from flowlet.runtime.bulk import Bulk
        from flowlet.runtime.bulk_options import make_plan

        self._check_enabled()
        function = read_function(fn, caller_namespace(1), batch=batch, recorded=id is not None)
        plan = make_plan(
            function,
            items,
            self._config.bulk,
            batch=batch,
            concurrency=concurrency,
            id=id,
            batch_size=batch_size,
            retry=retry,
            timeout=timeout,
            total_timeout=total_timeout,
            rate=rate,
            ordered=ordered,
            on_error=on_error,
            progress=progress,
        )

        def make(outlet: Outlet | None) -> Operation:
            from flowlet.runtime.bulk_operation import Operation

            ledger = None
            if plan.id is not None:
                from flowlet.runtime.bulk_ledger import Ledger

                ledger = Ledger(plan, self._open_store, self._open_runs, self._held_shards)
            return Operation(plan, self._providers, self._log, outlet, ledger)

        return Bulk(function.name, plan.concurrency, plan.ordered, make)
