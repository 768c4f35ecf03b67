"""Workers over one iterator: each takes the next item when it has done with its last one.

Law: an item is taken only by a worker that is free for it, so nothing is read ahead and nothing is queued. No lock,
no task for an item, no cancel scope. What is under way when the crew is stopped ends; when it is cut off, it is
cancelled. The crew is done when no task of it is left, and not before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from itertools import chain
from math import log2
from time import perf_counter
from typing import Any, TypeAlias

import anyio.lowlevel

from flowlet.core.bulk import Outcome
from flowlet.errors import RunError
from flowlet.runtime.feed import Feed
from flowlet.runtime.percentiles import LEAST, PER_DOUBLING
from flowlet.runtime.tally import Tally
from flowlet.runtime.tasks import Latch, Task, on_trio, spawn

Pair: TypeAlias = tuple[int, Any]
Call: TypeAlias = Callable[[Any], Awaitable[Any]]
Do: TypeAlias = Callable[[int, Any], Awaitable[None]]
Again: TypeAlias = Callable[[int, Any, Exception, float], Awaitable[Outcome[Any, Any]]]

_EVERY = 0.005
"""Seconds after which a worker lets others run, even if its items never wait for anything."""


class Crew:
    """Workers, and what they have come to.

    Args:
        concurrency: at most so many.
        glance: called every few milliseconds while items end, with the time of ``perf_counter``.

    Attributes:
        error: why it was stopped, if an item or the items themselves have broken it.
        stopped: no further item is taken.
        is_cut: what was under way is cancelled.
        done: set when no task of it is left.
    """

    stopped: bool
    is_cut: bool

    def __init__(self, concurrency: int, glance: Callable[[float], None]) -> None:
        self._concurrency = concurrency
        self._glance = glance
        self._work: Callable[[], Awaitable[None]] = _nothing
        self._feed: Feed | None = None
        self._hired = 0
        self._tasks: set[Task] = set()
        self._look_at = 0.0
        self.error: BaseException | None = None
        self.stopped = self.is_cut = False
        self.done: Latch = Latch()

    # -------------------------------------------------------------- beginning and ending
    def begin_plainly(
        self,
        source: Iterator[Pair],
        call: Call,
        tally: Tally,
        failed: Callable[[], None],
        again: Again | None = None,
    ) -> None:
        """Call a function with each item, count, and keep nothing.

        Args:
            failed: called after a failure was counted.
            again: tries an item further that has failed once.
        """
        self._begin(lambda: self._work_plainly(source, call, tally, failed, again))

    def begin(self, source: Iterator[Pair] | Feed, do: Do) -> None:
        """Have each item seen to; what ``do`` raises breaks the crew, so it keeps the errors of items."""
        if isinstance(source, Feed):
            self._feed = feed = source
            if self.stopped:
                feed.stop()
            self._spawn(feed.main)
            self._begin(lambda: self._work_on_feed(feed, do))
        else:
            self._begin(lambda: self._work_on(source, do))

    def _begin(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._look_at = perf_counter() + _EVERY
        self._hire()
        if not self._tasks:  # it was stopped before it began
            self.done.set()

    def stop(self) -> None:
        """Take no further item; what is under way ends."""
        self.stopped = True
        self._look_at = 0.0
        if self._feed is not None:
            self._feed.stop()

    def cut(self) -> None:
        """Cancel what is under way, and take no further item."""
        self.stop()
        self.is_cut = True
        for task in list(self._tasks):
            task.cancel()

    def fail(self, error: BaseException) -> None:
        """Stop because of an error that is no item's; the first one counts."""
        if self.error is None:
            self.error = error
        if isinstance(error, Exception):
            self.stop()
        else:
            self.cut()

    def _hire(self) -> None:
        if self._hired < self._concurrency and not self.stopped:
            self._hired += 1
            self._spawn(self._work)

    def _spawn(self, main: Callable[[], Awaitable[None]]) -> None:
        self._tasks.add(spawn(lambda: self._guard(main), self.fail, self._over, inherits=True))

    def _over(self, task: Task) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._work, self._feed = _nothing, None  # which hold this crew
            self.done.set()

    async def _guard(self, main: Callable[[], Awaitable[None]]) -> None:
        try:
            await main()
        except BaseException as error:
            if isinstance(error, anyio.get_cancelled_exc_class()):
                self.is_cut = self.stopped = True  # by whoever ends the event loop, if not by `cut`
                raise
            # Not left to the task: some of these end the event loop, and the caller is to hear of them.
            self.fail(error)

    # -------------------------------------------------------------- working
    async def _work_plainly(
        self, source: Iterator[Pair], call: Call, tally: Tally, failed: Callable[[], None], again: Again | None
    ) -> None:
        first = None if self.stopped else next(source, None)  # hired, and stopped before it began
        if first is None:
            return
        self._hire()
        counts, clock = tally.durations.counts, perf_counter
        for index, item in chain((first,), source):
            began = clock()
            try:
                await call(item)
            except BaseException as error:
                problem: Exception | None = self.judge(index, error)
            else:
                problem = None
            if problem is None:
                ended = clock()
                counts[int(log2(ended - began + LEAST) * PER_DOUBLING)] += 1
            else:
                attempts = 1
                if again is not None:
                    outcome = await again(index, item, problem, began)
                    problem, attempts = outcome.error, outcome.attempts
                ended = clock()
                counts[int(log2(ended - began + LEAST) * PER_DOUBLING)] += 1
                if problem is not None:
                    tally.fail(index, item, problem, attempts)
                    failed()
            if ended >= self._look_at and not await self._look(ended):
                return

    async def _work_on(self, source: Iterator[Pair], do: Do) -> None:
        first = None if self.stopped else next(source, None)  # hired, and stopped before it began
        if first is None:
            return
        self._hire()
        for index, item in chain((first,), source):
            await do(index, item)
            now = perf_counter()
            if now >= self._look_at and not await self._look(now):
                return

    async def _work_on_feed(self, feed: Feed, do: Do) -> None:
        while not self.stopped and (pair := await feed.take()) is not None:
            self._hire()
            await do(*pair)
            now = perf_counter()
            if now >= self._look_at and not await self._look(now):
                return

    async def _look(self, now: float) -> bool:
        """Let others run, and tell whether to go on."""
        if not self.stopped:
            self._look_at = now + _EVERY
            self._glance(now)
            await anyio.lowlevel.checkpoint()
        return not self.stopped

    def judge(self, index: int, error: BaseException) -> Exception:
        """Return what an item has failed with; raise what is no failure of an item.

        A cancellation that nobody asked the worker for has come from inside the item: from a task that it awaits.
        """
        if isinstance(error, Exception):
            trace = error.__traceback__
            return error.with_traceback(trace and trace.tb_next)  # without the worker's frame, which lives on
        if self.is_cut or on_trio() or not isinstance(error, anyio.get_cancelled_exc_class()) or _is_cancelling():
            raise error
        problem = RunError(f"item {index} was cancelled by something that it awaited")
        problem.__cause__ = error
        return problem


def _is_cancelling() -> bool:
    import asyncio

    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _nothing() -> None:
    raise AssertionError("not begun")  # pragma: no cover
