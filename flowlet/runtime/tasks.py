"""Tasks, one-shot events and worker threads on asyncio and trio alike.

Law: flowlet holds no task group across calls, because frameworks enter and leave in different tasks.
Its own tasks are spawned here, hold no references to the spawner's cancel scopes, and never let an
exception escape to the event loop.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, cast

import anyio
import anyio.lowlevel

from flowlet.core.current import machine_context, run_context

if TYPE_CHECKING:
    import asyncio  # imported where it is used: a third of the time of `import flowlet`

T = TypeVar("T")


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
        self.is_set: bool = False
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


def spawn(
    main: Main, on_error: OnError, on_done: Callable[[Task], None] | None = None, *, inherits: bool = False
) -> Task:
    """Start ``main`` as a task of the running event loop.

    Args:
        on_error: hears of what it raises.
        on_done: called when the task is over, also when it was cancelled before it began.
        inherits: it works for whoever spawns it, in the same context variables, and not for flowlet.
    """
    if on_trio():
        return _TrioTask(main, on_error, on_done, inherits)
    return _AsyncioTask(main, on_error, on_done, inherits)


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
    return partial(tasks.get, asyncio.get_running_loop())


class Breaker(Protocol):
    """A piece of the running task that can be cut short from outside, and nothing around it.

    Used with ``with``; what was cut ends there, and the task goes on behind it, once `absorb` has been awaited.

    Attributes:
        is_cut: it was.
    """

    is_cut: bool

    def __enter__(self) -> Self: ...
    def __exit__(self, t: Any, error: BaseException | None, tb: Any, /) -> bool: ...

    def cut(self) -> None:
        """Cancel what the task does inside."""
        ...

    async def absorb(self) -> None:
        """See to it, after the end of a cut one, that what was not felt inside is not felt later.

        A cancellation of the task itself that came together with the cut is raised here.
        """
        ...


def breaker_class() -> Callable[[], Breaker]:
    """Return what makes a `Breaker` on the running event loop."""
    return _TrioBreaker if on_trio() else partial(_AsyncioBreaker, cast("Any", current_task_function()))


class _AsyncioBreaker:
    """Cancels the task itself and takes that back: a scope would cost every run, a cut one in a thousand."""

    __slots__ = ("_before", "_task", "is_cut")

    def __init__(self, current_task: Callable[[], asyncio.Task[Any]]) -> None:
        self._task = current_task()
        self._before = self._task.cancelling()
        self.is_cut = False

    def __enter__(self) -> Self:
        return self

    def cut(self) -> None:
        if not self.is_cut:
            self.is_cut = True
            self._task.cancel()

    def __exit__(self, t: Any, error: BaseException | None, tb: Any, /) -> bool:
        if not self.is_cut:
            return False
        self._task.uncancel()
        import asyncio

        # Whoever else wants the task to stop is heard in `absorb`: of two cancellations at once, one is delivered.
        return isinstance(error, asyncio.CancelledError)

    async def absorb(self) -> None:
        import asyncio

        try:
            await asyncio.sleep(0)  # here a scope around it delivers its own, with its own words
        except asyncio.CancelledError:
            if self._task.cancelling() > self._before:
                raise
        if self._task.cancelling() > self._before:
            raise asyncio.CancelledError


class _TrioBreaker:
    __slots__ = ("_scope", "is_cut")

    def __enter__(self) -> Self:
        import trio

        self.is_cut = False
        self._scope = trio.CancelScope()
        self._scope.__enter__()
        return self

    def cut(self) -> None:
        self.is_cut = True
        self._scope.cancel()

    def __exit__(self, t: Any, error: BaseException | None, tb: Any, /) -> bool:
        return bool(self._scope.__exit__(t, error, tb))

    async def absorb(self) -> None:
        """Do nothing: a scope that has ended is not felt."""


async def call_in_thread(
    function: Callable[[], T], limit: float | None, is_leaving: Callable[[], bool]
) -> tuple[bool, T | None]:
    """Call a plain function in a worker thread and see it end: a thread cannot be stopped, so what it does counts.

    A cancellation is felt behind it.

    Args:
        limit: seconds after which it is left behind all the same.
        is_leaving: tells whether a cancellation leaves it behind, too.

    Returns:
        Whether it has ended, and what it returned.
    """
    with anyio.CancelScope(shield=True), anyio.move_on_after(limit) as scope:
        if on_trio():
            return True, await anyio.to_thread.run_sync(function, abandon_on_cancel=True)
        import asyncio

        call = asyncio.ensure_future(anyio.to_thread.run_sync(function, abandon_on_cancel=True))
        is_cancelled = False
        while not call.done():
            try:
                await asyncio.wait((call,))
            except asyncio.CancelledError:  # a task of asyncio is cancelled through any shield
                if scope.cancel_called or is_leaving():
                    call.cancel()
                    raise
                is_cancelled = True
        task = asyncio.current_task()
        if is_cancelled and task is not None:
            task.cancel()
            task.uncancel()  # it was counted when it came
        return True, call.result()
    return False, None


def loop_token() -> object:
    """Return an object that identifies the running event loop."""
    if on_trio():
        import trio

        return trio.lowlevel.current_trio_token()
    import asyncio

    return asyncio.get_running_loop()


def leave_contexts() -> None:
    """A task of flowlet's own belongs to no run or machine callback of whoever spawned it."""
    run_context.set(None)
    machine_context.set(None)


class _AsyncioTask:
    __slots__ = ("_on_done", "_task", "done")

    def __init__(
        self, main: Main, on_error: OnError, on_done: Callable[[Task], None] | None, inherits: bool = False
    ) -> None:
        import asyncio

        self.done = Latch()
        self._on_done = on_done
        self._task = asyncio.get_running_loop().create_task(self._run(main, on_error, inherits))
        # Not a `finally` in `_run`: a task that is cancelled before it began never gets there.
        self._task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        on_done, self._on_done = self._on_done, None  # who is told may hold this task
        if on_done is not None:
            on_done(self)
        self.done.set()

    async def _run(self, main: Main, on_error: OnError, inherits: bool) -> None:
        import asyncio

        if not inherits:
            leave_contexts()
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

    def __init__(
        self, main: Main, on_error: OnError, on_done: Callable[[Task], None] | None, inherits: bool = False
    ) -> None:
        import trio

        self.done = Latch()
        self._on_done = on_done
        self._scope = trio.CancelScope()
        context = copy_context() if inherits else None  # by default a system task has the one of the trio run
        trio.lowlevel.spawn_system_task(self._run, main, on_error, inherits, context=context)

    async def _run(self, main: Main, on_error: OnError, inherits: bool) -> None:
        import trio

        if not inherits:
            leave_contexts()
        try:
            with self._scope:
                await main()
        except trio.Cancelled:
            raise  # the end of the trio run
        except BaseException as error:
            on_error(error)  # anything that leaves a system task would take the whole program down
        finally:
            on_done, self._on_done = self._on_done, None  # who is told may hold this task
            if on_done is not None:
                on_done(self)
            self.done.set()

    def cancel(self) -> None:
        self._scope.cancel()
