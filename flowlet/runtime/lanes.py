"""Lanes: tasks that do one job after another, as long as a job ends without waiting for anything.

Law: a job runs in one task from its beginning to its end, and in a context of its own. A lane takes the next job
when its job has ended; as soon as a job waits, what is queued goes to other lanes, more of them each time. So jobs
that wait for nothing cost no task each, and those that do run side by side after a few turns of the loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any, Protocol

from flowlet.runtime.tasks import Task, leave_contexts, spawn


class Job(Protocol):
    """Work for a lane.

    Attributes:
        stopping: somebody has cancelled the lane for the sake of this job; what is queued goes to another one.
    """

    @property
    def stopping(self) -> bool: ...

    def begin(self, task: Task, /) -> Coroutine[Any, Any, None] | None:
        """Return what is to be done, in this task; None if it is not to begin any more."""
        ...

    def over(self) -> None:
        """Hear that its task is over although it has not returned."""
        ...


class Lanes:
    """Queued jobs and the lanes that do them.

    Args:
        broke: hears of what a job raises.
    """

    __slots__ = ("_broke", "_waited", "context", "fresh", "queue")

    def __init__(self, broke: Callable[[BaseException], None]) -> None:
        self._broke = broke
        self._waited = 0
        self.queue: deque[Job] = deque()
        self.fresh: int = 0  # lanes that have not begun
        self.context: Context = copy_context()
        self.context.run(leave_contexts)

    def go(self, most: int = 1) -> None:
        """See to it that what is queued is taken on, by so many more lanes at most."""
        for _ in range(min(len(self.queue) - self.fresh, most)):
            self.fresh += 1
            self.context.copy().run(_Lane(self).start, self._broke)

    def hand_on(self) -> None:
        """Hear that a job waits."""
        if self.queue:
            self._waited += 1
            self.go(self._waited)


class _Lane:
    __slots__ = ("_is_fresh", "_job", "_lanes", "_task")

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._is_fresh = True
        self._job: Job | None = None
        self._task: Task | None = None

    def start(self, broke: Callable[[BaseException], None]) -> None:
        self._task = spawn(self._main, broke, self._over)

    def _begin(self) -> None:
        if self._is_fresh:
            self._is_fresh = False
            self._lanes.fresh -= 1

    async def _main(self) -> None:
        assert self._task is not None
        self._begin()
        lanes = self._lanes
        queue = lanes.queue
        while queue:
            job = self._job = queue.popleft()
            coroutine = job.begin(self._task)
            if coroutine is None:
                continue
            await _Relay(coroutine, lanes.context.copy(), lanes.hand_on)
            if job.stopping:  # this task was cancelled, and may have come too late for that
                break
        self._job = None

    def _over(self, _: Task) -> None:
        self._begin()
        job, self._job = self._job, None
        if job is not None:
            job.over()
        self._lanes.go()


class _Relay:
    """Awaitable that runs a coroutine in the awaiting task and another context, and tells when it first waits."""

    __slots__ = ("_context", "_coroutine", "_waits")

    def __init__(self, coroutine: Coroutine[Any, Any, None], context: Context, waits: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._context = context
        self._waits = waits

    def __await__(self) -> Generator[Any, Any, None]:
        coroutine, run = self._coroutine, self._context.run
        try:
            waited = run(coroutine.send, None)
            self._waits()
            while True:
                try:
                    value = yield waited
                except GeneratorExit:
                    coroutine.close()
                    raise
                except BaseException as error:
                    waited = run(coroutine.throw, error)
                else:
                    waited = run(coroutine.send, value)
        except StopIteration:
            return
