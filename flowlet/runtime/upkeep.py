"""A value that is made, kept and closed in one task of flowlet's own.

Law: a context manager is left by the task that entered it, whoever first needed the value and whoever leaves the
`Flowlet`. Who waits for the value may be cancelled; the making goes on for the others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from flowlet.runtime.tasks import Latch, Task, spawn


class Upkeep:
    """One value.

    Args:
        title: names it in the log; its `repr` may hold a password.
        make: makes it; what closes it goes to the stack.
        lose: hears that it has closed by itself, since something that it does in the background has failed.

    Attributes:
        ready: set when it is made, or cannot be.
        value, error: which of the two, while ``ready`` is set. An error that comes later is that of closing it.
    """

    def __init__(
        self,
        title: str,
        make: Callable[[AsyncExitStack], Awaitable[Any]],
        lose: Callable[[Upkeep], None] = lambda upkeep: None,
    ) -> None:
        self.title = title
        self.ready: Latch = Latch()
        self.value: Any = None
        self.error: BaseException | None = None
        self._left = Latch()
        self._make, self._lose = make, lose
        self._task: Task = spawn(self._main, self._broke, self._ended)

    async def _main(self) -> None:
        async with AsyncExitStack() as stack:
            self.value = await self._make(stack)
            self.ready.set()
            await self._left.wait()

    def _broke(self, error: BaseException) -> None:
        self.error = error

    def _ended(self, task: Task) -> None:
        if not self.ready.is_set:
            self.error = self.error or RuntimeError("it was being made when the Flowlet was left")
            self.ready.set()
        elif not self._left.is_set:
            self._lose(self)

    async def close(self) -> BaseException | None:
        """Close it; return what that raised."""
        is_made = self.ready.is_set and self.error is None
        self._left.set()
        if not is_made:
            self._task.cancel()
        await self._task.done.wait()
        return self.error if is_made else None
