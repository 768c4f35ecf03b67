"""The event loop as a store's writer sees it: later, at the end of this turn, from another thread.

Law: here, and nowhere else in this store, is what asyncio and trio do differently. Whoever waits for a
`Ticket` outlives cancellation: the outcome is on the ticket before anyone is woken, and who was
cancelled in the meantime raises that only when the outcome is there.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import anyio

if TYPE_CHECKING:
    import trio

__all__ = ["AsyncioPort", "Port", "Ticket", "TrioPort", "port_here"]


class Ticket:
    """Something a writer was asked to do, and its outcome.

    Attributes:
        done: whether the outcome is known: ``error`` if not None, else ``value``.
        waiter: what the port wakes; its own business.
    """

    __slots__ = ("done", "error", "value", "waiter")

    def __init__(self) -> None:
        self.done: bool = False
        self.error: BaseException | None = None
        self.value: Any = None
        self.waiter: Any = None


class Port(Protocol):
    """An event loop. All methods but `post` are called on it; no callback may raise."""

    def is_here(self) -> bool:
        """Return whether the caller runs on this loop."""
        ...

    def soon(self, call: Callable[[], None]) -> None:
        """Call it when everything that is ready now has had its turn."""
        ...

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call it after so many seconds."""
        ...

    def post(self, call: Callable[[], None]) -> None:
        """Call it on the loop, from any thread; forget it when the loop has ended."""
        ...

    async def wait(self, ticket: Ticket) -> None:
        """Wait until the ticket is done, whatever arrives; then raise a cancellation that did."""
        ...

    def wake(self, tickets: Iterable[Ticket]) -> None:
        """Wake those who wait for these tickets, which are done."""
        ...


class AsyncioPort:
    """An asyncio event loop."""

    __slots__ = ("_loop",)

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def is_here(self) -> bool:
        return asyncio._get_running_loop() is self._loop

    def soon(self, call: Callable[[], None]) -> None:
        self._loop.call_soon(call)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self._loop.call_later(seconds, call)

    def post(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(call)

    async def wait(self, ticket: Ticket) -> None:
        future = ticket.waiter = self._loop.create_future()
        try:
            await future
        except asyncio.CancelledError:
            await self._outlast(ticket)
            raise

    async def _outlast(self, ticket: Ticket) -> None:
        # The scope keeps anyio from cancelling this task again in every turn of the loop; the inner
        # `except` is for `Task.cancel`, which no scope holds off.
        with anyio.CancelScope(shield=True):
            while not ticket.done:
                future = ticket.waiter = self._loop.create_future()
                try:
                    await future
                except asyncio.CancelledError:
                    continue

    def wake(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            future = ticket.waiter
            if future is not None and not future.done():
                future.set_result(None)


class TrioPort:
    """A run of trio."""

    __slots__ = ("_token", "_trio")

    def __init__(self) -> None:
        import trio

        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()

    def is_here(self) -> bool:
        return self._trio.lowlevel.in_trio_run() and self._trio.lowlevel.current_trio_token() is self._token

    def soon(self, call: Callable[[], None]) -> None:
        self._token.run_sync_soon(call)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self._trio.lowlevel.spawn_system_task(self._call_later, seconds, call)

    async def _call_later(self, seconds: float, call: Callable[[], None]) -> None:
        await self._trio.sleep(seconds)
        call()

    def post(self, call: Callable[[], None]) -> None:
        with suppress(self._trio.RunFinishedError):  # nobody is left to be told
            self._token.run_sync_soon(call)

    async def wait(self, ticket: Ticket) -> None:
        cancellations: list[trio.lowlevel.RaiseCancelT] = []

        def refuse(raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            cancellations.append(raise_cancel)
            failed: trio.lowlevel.Abort = self._trio.lowlevel.Abort.FAILED
            return failed

        ticket.waiter = self._trio.lowlevel.current_task()
        await self._trio.lowlevel.wait_task_rescheduled(refuse)
        for raise_cancel in cancellations:
            raise_cancel()

    def wake(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            if ticket.waiter is not None:
                self._trio.lowlevel.reschedule(ticket.waiter)


def port_here() -> Port:
    """Return a port to the loop that the caller runs on."""
    # Only who runs on trio has imported it; it comes first because it may run as a guest of asyncio.
    module = sys.modules.get("trio")
    if module is not None and module.lowlevel.in_trio_task():
        return TrioPort()
    return AsyncioPort()
