"""A `Flowlet` for code without an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from flowlet.app.life import Life

if TYPE_CHECKING:
    from flowlet.app.blocking import Blocking
    from flowlet.app.flowlet import Flowlet


class BlockingSide(Life):
    """How a `Flowlet` is used from plain threads."""

    def blocking(self, *, backend: Literal["asyncio", "trio"] = "asyncio") -> Blocking:
        """Return what scripts, tests and frameworks without an event loop use this Flowlet through.

        Within ``with``, or between its ``open()`` and ``close()``, the Flowlet is entered on an event loop in a thread
        of its own: runs go on, timers ring, and what a dead process has left is taken up. Any number of threads may
        call it; each call waits for its result. After a fork, open one in each process. SIGTERM does not drain it,
        since signals belong to the main thread: close it where your program ends.

        Args:
            backend: the event loop.

        Raises:
            FlowletError: on entering it, or calling it: an event loop runs in this thread; await there.

        Example:
            >>> from flowlet import Flowlet, step
            >>> flow = Flowlet()
            >>> @step
            ... async def double(n: int) -> int:
            ...     return 2 * n
            >>> twice = flow.saga("twice", double)
            >>> with flow.blocking() as b:
            ...     handle = b.start(twice, 21, id="r-1")
            ...     print(handle.result(timeout=5), [run.id for run in b.runs(status="completed")])
            42 ['r-1']
        """
        from flowlet.app.blocking import Blocking

        return Blocking(cast("Flowlet", self), backend)
