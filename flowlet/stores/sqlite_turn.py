"""What one event loop hands to the writer: gathered during a turn of the loop, committed at its end.

Law: everything here runs on the loop; only `Turn.finished` is called from the writer's thread. What
was gathered is either committed at once, in this thread, or handed to the writer's: at once only when
commits are known to be short, the writer is idle and nobody else holds the lock.

Why at the end of the turn: a commit inside `append` would leave each of 64 tasks its own fsync, a hop
to the writer's thread and back costs as much as a short commit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import anyio

from flowlet.stores.bell import Bell
from flowlet.stores.port import Port
from flowlet.stores.sqlite_work import Append, Request
from flowlet.stores.sqlite_writer import Writer

__all__ = ["Turn"]

_BOUND = 1024
"""Requests that are accepted and not finished; whoever brings one more waits before it is accepted."""

_MOST_AT_ONCE, _LARGEST_AT_ONCE = 256, 1 << 20
"""Requests, and bytes of them, that are committed in the loop's own thread."""

_LOOK_EVERY = 0.005
_STEP_ASIDE, _STEPS_ASIDE = 2e-5, 8


class Turn:
    """The requests of one event loop to one writer.

    Attributes:
        inline: transactions that were committed in the loop's own thread.
    """

    def __init__(self, port: Port, writer: Writer, bell: Bell) -> None:
        self.port = port
        self.inline: int = 0
        self._writer, self._bell = writer, bell
        self._gathered: list[Request] = []
        self._size, self._is_brief = 0, True  # of what was gathered
        self._accepted = 0  # and not finished
        self._flying = 0  # of these, in the writer's hands
        self._watching = False
        self._steps_aside = _STEPS_ASIDE
        self._room: anyio.Event | None = None

    def is_full(self) -> bool:
        """Return whether the next request has to wait for `room` before it is accepted."""
        return self._accepted >= _BOUND

    async def room(self) -> None:
        """Wait until some request is finished."""
        if self._room is None:
            self._room = anyio.Event()
        await self._room.wait()

    async def result(self, request: Request) -> Any:
        """Have the request done and return its value, or raise its error.

        A cancellation is raised when the outcome is there.
        """
        self._accept(request)
        await self.port.wait(request)
        error, request.error = request.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it holds this frame; let the two not keep each other alive
        return request.value

    async def finish(self, request: Request) -> None:
        """Hand over everything that was gathered and this as the last, and wait until it is done."""
        self._accept(request)
        self._end()
        await self.port.wait(request)

    def _accept(self, request: Request) -> None:
        request.turn = self
        self._accepted += 1
        self._gathered.append(request)
        self._size += request.size
        self._is_brief = self._is_brief and request.is_brief
        if len(self._gathered) == 1:
            self.port.soon(self._end)

    def _end(self) -> None:
        requests, self._gathered = self._gathered, []
        if not requests:
            return
        fits_here = self._fits_here(requests)
        self._size, self._is_brief = 0, True
        if not (fits_here and self._commit_here(requests)):
            self._hand(requests)

    def _commit_here(self, requests: Sequence[Request]) -> bool:
        try:
            news = self._writer.commit_here(requests)
        except BaseException:  # an interrupt from the keyboard: the thread will see it through
            self._hand(requests)
            raise
        if news is None:
            return False
        self.inline += 1
        self._deliver(requests, news)
        return True

    def _hand(self, requests: Sequence[Request]) -> None:
        self._flying += len(requests)
        self._writer.hand(requests)
        if not self._watching:
            self._watching = True
            self.port.later(_LOOK_EVERY, self._look)

    def _fits_here(self, requests: Sequence[Request]) -> bool:
        return (
            self._is_brief
            and not self._flying
            and self._size <= _LARGEST_AT_ONCE
            and len(requests) <= _MOST_AT_ONCE
            and self._writer.pace.is_short(time.monotonic())
        )

    def _look(self) -> None:
        """Let the writer's thread run when it seems not to: a loop that is always busy starves it.

        Whoever releases the GIL around a short system call usually gets it back before a thread that
        waits for it has woken up; sleeping, be it for no time, lets that thread have it. A batch takes
        a handful of such turns. When they do not help, it is the disk that is slow and not the thread
        that starves: then fewer are given up.
        """
        if not self._flying:
            self._watching = False
            return
        served = self._writer.served
        for _ in range(self._steps_aside):
            time.sleep(_STEP_ASIDE)
            if self._writer.served != served:
                self._steps_aside = _STEPS_ASIDE
                break
        else:
            self._steps_aside = max(1, self._steps_aside // 2)
        self.port.later(_LOOK_EVERY, self._look)

    def finished(self, requests: Sequence[Request], news: bool) -> None:
        """Take back what the writer's thread has done. Called from that thread."""
        self.port.post(lambda: self._land(requests, news))

    def _land(self, requests: Sequence[Request], news: bool) -> None:
        self._flying -= len(requests)
        self._deliver(requests, news)

    def _deliver(self, requests: Sequence[Request], news: bool) -> None:
        self._accepted -= len(requests)
        if self._room is not None:
            self._room.set()
            self._room = None
        if news:
            self._bell.ring()
        if self._bell.on_commit is not None and (appends := sum(isinstance(request, Append) for request in requests)):
            self._bell.on_commit(appends)
        self.port.wake(requests)
