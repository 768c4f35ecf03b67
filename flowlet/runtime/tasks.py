"""Tasks, one-shot events and worker threads on asyncio and trio alike.

Law: flowlet holds no task group across calls, because frameworks enter and leave in different tasks.
Its own tasks are spawned here, hold no references to the spawner's cancel scopes, and never let an
exception escape to the event loop.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.lowlevel

from flowlet.core.current import machine_context, run_context

if TYPE_CHECKING:
    import asyncio  # imported where it is used: a third of the time of `import flowlet`


def on_trio() -> bool:
    """Tell whether the code runs under trio, without importing it."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_task())


def is_loop_running() -> bool:
    """Tell whether an event loop runs in this thread."""
    if on_trio():
        return True
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def check_cancelled() -> None:
    """Raise the cancellation that the running task is still under, if it is under one."""
    await anyio.lowlevel.checkpoint()
    if not on_trio():
        import asyncio

        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError


class Latch:
    """A one-shot event that costs nothing until somebody waits for it."""

    __slots__ = ("_event", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._event: anyio.Event | None = None

    def set(self) -> None:
        """Let every present and future waiter go on."""
        self.is_set = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Wait until it is set."""
        if self.is_set:
            return
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()


class Task(Protocol):
    """A task of flowlet's own."""

    done: Latch

    def cancel(self) -> None:
        """Ask it to stop."""
        ...


Main = Callable[[], Awaitable[None]]
OnError = Callable[[BaseException], None]


def spawn(main: Main, on_error: OnError, on_done: Callable[[Task], None] | None = None) -> Task:
    """Start ``main`` as a task of the running event loop.

    Args:
        on_error: hears of what it raises.
        on_done: called when the task is over, also when it was cancelled before it began.
    """
    if on_trio():
        return _TrioTask(main, on_error, on_done)
    return _AsyncioTask(main, on_error, on_done)


def current_task_function() -> Callable[[], object]:
    """Return the fastest way to tell the running task on the running event loop."""
    if on_trio():
        import trio

        return trio.lowlevel.current_task
    import asyncio

    if sys.version_info >= (3, 12):
        return asyncio.current_task
    # Before 3.12 current_task is Python code that looks the loop up first; this is what it then does.
    tasks: Any = asyncio.tasks._current_tasks  # type: ignore[attr-defined]
    loop = asyncio.get_running_loop()
    return lambda: tasks.get(loop)


def loop_token() -> object:
    """Return an object that identifies the running event loop."""
    if on_trio():
        import trio

        return trio.lowlevel.current_trio_token()
    import asyncio

    return asyncio.get_running_loop()


def _leave_contexts() -> None:
    """A task of flowlet's own belongs to no run or machine callback of whoever spawned it."""
    run_context.set(None)
    machine_context.set(None)


class _AsyncioTask:
    __slots__ = ("_on_done", "_task", "done")

    def __init__(self, main: Main, on_error: OnError, on_done: Callable[[Task], None] | None) -> None:
        import asyncio

        self.done = Latch()
        self._on_done = on_done
        self._task = asyncio.get_running_loop().create_task(self._run(main, on_error))
        # Not a `finally` in `_run`: a task that is cancelled before it began never gets there.
        self._task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        if self._on_done is not None:
            self._on_done(self)
        self.done.set()

    async def _run(self, main: Main, on_error: OnError) -> None:
        import asyncio

        _leave_contexts()
        try:
            await main()
        except asyncio.CancelledError:
            pass  # only `cancel` and the end of the loop cancel it; nobody awaits the task itself
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            on_error(error)

    def cancel(self) -> None:
        self._task.cancel()


class _TrioTask:
    __slots__ = ("_on_done", "_scope", "done")

    def __init__(self, main: Main, on_error: OnError, on_done: Callable[[Task], None] | None) -> None:
        import trio

        self.done = Latch()
        self._on_done = on_done
        self._scope = trio.CancelScope()
        trio.lowlevel.spawn_system_task(self._run, main, on_error)

    async def _run(self, main: Main, on_error: OnError) -> None:
        import trio

        _leave_contexts()
        try:
            with self._scope:
                await main()
        except trio.Cancelled:
            raise  # the end of the trio run
        except BaseException as error:
            on_error(error)  # anything that leaves a system task would take the whole program down
        finally:
            if self._on_done is not None:
                self._on_done(self)
            self.done.set()

    def cancel(self) -> None:
        self._scope.cancel()
