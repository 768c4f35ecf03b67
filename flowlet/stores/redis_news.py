"""How a Redis store hears of changes that others have made: the server tells, and is asked now and then.

Law: the counter of changes, which every script that changes something raises, is the truth; the
channel on which its new value is published only saves asking. So a message that is lost, or may not be
sent, delays a wake-up and loses none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from flowlet.stores.bell import Bell
from flowlet.stores.redis_opening import Link
from flowlet.stores.redis_url import Place

__all__ = ["News"]

_ASK_EVERY, _ASK_AT_LEAST_EVERY = 0.05, 1.0
"""Seconds between two looks at the counter while nobody tells, and while somebody does."""

_AGAIN_AFTER = 1.0
"""Seconds after which a channel that was lost is tried again."""


class News:
    """The changes of one store, as one event loop hears of them.

    Args:
        place: the server.
        connect: opens a connection to it that need not have been judged.
        ask: returns the counter of changes.

    Attributes:
        is_told: the server tells of changes by itself.
    """

    def __init__(
        self, place: Place, connect: Callable[[Place], Awaitable[Link]], ask: Callable[[], Awaitable[int]], bell: Bell
    ) -> None:
        self._place, self._connect, self._ask, self._bell = place, connect, ask, bell
        self._last = -1
        self._task: asyncio.Task[None] | None = None
        self.is_told: bool = False

    def ring(self, count: int) -> None:
        """Take a value of the counter; 0 says nothing."""
        if count > self._last and count:
            self._last = count
            self._bell.ring()

    async def wait(self, seen: int, timeout: float) -> int:
        """Wait until something has changed that the caller has not seen, or ``timeout`` seconds.

        Raises:
            StoreUnavailable: the server was asked, and did not answer.
        """
        deadline = time.monotonic() + timeout
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._listen(), name="flowlet redis news")
        if not self.is_told:
            await self._look()
        while True:
            left = deadline - time.monotonic()
            if self._bell.count != seen or left <= 0:
                return self._bell.count
            pause = _ASK_AT_LEAST_EVERY if self.is_told else _ASK_EVERY
            if await self._bell.wait(seen, min(left, pause)) == seen and left > pause:
                await self._look()

    async def close(self) -> None:
        """Listen no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _look(self) -> None:
        count = await self._ask()
        if count < self._last:  # the server has lost its data, or somebody has deleted it
            self._last = -1
        self.ring(count)
        if self._last < 0:
            self._last = count

    async def _listen(self) -> None:
        while True:
            link = None
            try:
                link = await self._connect(self._place)
                await self._hear(link)
            except Exception:
                pass  # whoever asks the server is told why
            finally:
                self.is_told = False
                if link is not None:
                    await link.close()
            await asyncio.sleep(_AGAIN_AFTER)

    async def _hear(self, link: Link) -> None:
        (reply,) = await link.talk([("SUBSCRIBE", f"{self._place.prefix}:news")])
        if isinstance(reply, Exception):
            raise reply
        await self._look()  # at what was said before anyone listened
        self.is_told = True
        while True:
            kind, _, count = await link.hear()
            if kind == b"message":
                self.ring(int(count))
