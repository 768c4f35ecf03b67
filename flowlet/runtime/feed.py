"""Items for workers: numbered, in lists if asked, and pulled from an async iterator by one task for all.

Law: an async iterator is pulled when a worker waits for an item and not before, always from the same task, one item
at a time. Nothing is read ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import anyio

T = TypeVar("T")

Pair: TypeAlias = tuple[int, Any]

LULL: Any = object()
"""In place of an item: the next one comes only when those before it have been done, so no list is to wait for it."""


class _Turn:
    """A worker that waits for an item.

    Attributes:
        pair: what it was given; None when there is no more.
    """

    __slots__ = ("event", "pair")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.pair: Pair | None = None


class Feed:
    """Hands the items of an async iterator to the workers that wait for one, in the order in which they came.

    Args:
        source: numbered items. It is closed at the end: the event loop is not to find it left half read.
    """

    def __init__(self, source: AsyncGenerator[Pair, None]) -> None:
        self._source = source
        self._turns: deque[_Turn] = deque()
        self._wanted = anyio.Event()
        self._scope = anyio.CancelScope()
        self._over = False

    async def take(self) -> Pair | None:
        """Wait for an item; None when there is no more."""
        if self._over:
            return None
        turn = _Turn()
        self._turns.append(turn)
        self._wanted.set()
        await turn.event.wait()
        return turn.pair

    def stop(self) -> None:
        """Give nobody an item any more, also who waits for one."""
        if not self._over:
            self._over = True
            self._scope.cancel()
            self._dismiss()

    def _dismiss(self) -> None:
        for turn in self._turns:
            turn.event.set()
        self._turns.clear()

    async def main(self) -> None:
        """Pull the items; ends with them, when stopped, or with what they raise."""
        try:
            with self._scope:
                while not self._over:
                    if self._turns:
                        pair = await anext(self._source, None)
                        if pair is None:
                            break
                        if self._turns and pair is not LULL:
                            turn = self._turns.popleft()
                            turn.pair = pair
                            turn.event.set()
                    else:
                        self._wanted = anyio.Event()
                        await self._wanted.wait()
        finally:
            self._over = True
            self._dismiss()
            with anyio.CancelScope(shield=True):
                await self._source.aclose()


async def number(items: AsyncIterable[T]) -> AsyncGenerator[tuple[int, T], None]:
    """Number items from 0; an async generator is closed at the end, also when that is not its own."""
    index = 0
    iterator = aiter(items)
    try:
        async for item in iterator:
            yield index, item
            index += 1
    finally:
        if isinstance(iterator, AsyncGenerator):
            with anyio.CancelScope(shield=True):
                await iterator.aclose()


async def number_plainly(items: Iterable[T]) -> AsyncGenerator[tuple[int, T], None]:
    """Number items from 0."""
    for pair in enumerate(items):
        yield pair


def in_lists(pairs: Iterator[tuple[int, T]], size: int) -> Iterator[tuple[int, list[tuple[int, T]]]]:
    """Put numbered items into lists of ``size``; each has the number of its first one."""
    while batch := list(islice(pairs, size)):
        yield batch[0][0], batch


async def in_lists_async(
    pairs: AsyncGenerator[tuple[int, T], None], size: int
) -> AsyncGenerator[tuple[int, list[tuple[int, T]]], None]:
    """Put numbered items into lists of ``size``; each has the number of its first one."""
    batch: list[tuple[int, T]] = []
    try:
        async for pair in pairs:
            if pair is not LULL:
                batch.append(pair)
            if batch and (len(batch) == size or pair is LULL):
                yield batch[0][0], batch
                batch = []
        if batch:
            yield batch[0][0], batch
    finally:
        with anyio.CancelScope(shield=True):
            await pairs.aclose()
