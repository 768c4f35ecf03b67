"""Lanes: tasks that do one job after another, as long as a job ends without waiting for anything.

Law: a job runs in one task from its beginning to its end, and in a context of its own. A lane takes the next
job when its job has ended; as soon as a job waits, what is queued goes to another lane. So jobs that wait for
nothing cost no task each, and those that do run side by side.
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

    __slots__ = ("_broke", "_context", "queue")

    def __init__(self, broke: Callable[[BaseException], None]) -> None:
        self._broke = broke
        self.queue: deque[Job] = deque()
        self._context = copy_context()
        self._context.run(leave_contexts)

    def go(self) -> None:
        """See to it that what is queued is taken on."""
        if self.queue:
            self._context.copy().run(_Lane(self.queue, self._context, self.go).start, self._broke)


class _Lane:
    __slots__ = ("_context", "_hand_on", "_job", "_queue", "_task")

    def __init__(self, queue: deque[Job], context: Context, hand_on: Callable[[], None]) -> None:
        self._queue = queue
        self._context = context
        self._hand_on = hand_on
        self._job: Job | None = None
        self._task: Task | None = None

    def start(self, broke: Callable[[BaseException], None]) -> None:
        self._task = spawn(self._main, broke, self._over)

    async def _main(self) -> None:
        assert self._task is not None
        queue = self._queue
        while queue:
            job = self._job = queue.popleft()
            coroutine = job.begin(self._task)
            if coroutine is None:
                continue
            await _Relay(coroutine, self._context.copy(), self._hand_on)
            if job.stopping:  # this task was cancelled, and may have come too late for that
                break
        self._job = None

    def _over(self, _: Task) -> None:
        job, self._job = self._job, None
        if job is not None:
            job.over()
        self._hand_on()


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
