"""Wake-ups between processes: LISTEN and NOTIFY, and looking now and then where those do not get through.

Law: whoever watches is woken by every change, if not at once then at the next look. Nothing here is part of a
commit: a notification follows it, since PostgreSQL would let commits that notify wait for each other. Failing to
listen or to tell is never an error of anybody's: there is still the next look.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress

from flowlet.errors import FlowletError
from flowlet.stores.bell import Bell
from flowlet.stores.postgres_driver import Connection
from flowlet.stores.postgres_errors import DRIVER_ERRORS
from flowlet.stores.postgres_link import Link, Pool, farewell, terminate

__all__ = ["Listener", "Teller"]

_PROVEN, _UNPROVEN = 5.0, 0.5
"""Seconds between two looks: when notifications are known to arrive, and when they are not."""

_ARRIVAL = 1.0
"""Seconds within which a notification arrives, if at all."""

_AGAIN = 0.5
_PROBE_EVERY = 60.0
_TELL_EVERY = 0.005

_TELL = "SELECT pg_notify($1, $2)"


def _channel(schema: str) -> str:
    return f"flowlet.{schema}"[:63]  # PostgreSQL's limit; who shares a channel is woken for no reason, no more


class Teller:
    """Tells other processes that there are news; what happens meanwhile is told in one go."""

    def __init__(self, pool: Pool, schema: str) -> None:
        self.token: str = secrets.token_hex(8)
        self._pool, self._channel = pool, _channel(schema)
        self._has_news = False
        self._task: asyncio.Task[None] | None = None

    def tell(self) -> None:
        """Tell them, soon."""
        self._has_news = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        while self._has_news:
            self._has_news = False
            await self.say(self.token)
            await asyncio.sleep(_TELL_EVERY)

    async def say(self, word: str) -> None:
        """Send one notification."""
        with suppress(FlowletError):
            await self._pool.use(lambda connection: connection.execute(_TELL, self._channel, word))

    async def close(self) -> None:
        """Say what is left to be said."""
        if self._task is not None:
            await asyncio.wait([self._task])


class Listener:
    """Rings a bell when another process has news, or may have some.

    Attributes:
        is_proven: notifications are known to arrive: of a server behind a pooler they may not.
    """

    def __init__(self, link: Link, bell: Bell, teller: Teller) -> None:
        self.is_proven: bool = False
        self._link, self._bell, self._teller = link, bell, teller
        self._channel = _channel(link.address.schema)
        self._word = ""
        self._arrived = asyncio.Event()
        self._first = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connection: Connection | None = None

    async def listening(self) -> None:
        """Wait until somebody listens, or it is clear that nobody can just now."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._serve())
        if not self._first.is_set():
            await self._first.wait()

    async def close(self) -> None:
        """Listen no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._connection is not None:
            await farewell(self._connection)

    def drop(self) -> None:
        """Let go of the connection, when the event loop it belongs to has ended."""
        if self._connection is not None:
            terminate(self._connection)

    async def _serve(self) -> None:
        while True:
            with suppress(FlowletError, *DRIVER_ERRORS):
                await self._listen()
            self.is_proven = False
            if self._connection is not None:
                self._connection.terminate()
                self._connection = None
            self._first.set()
            self._bell.ring()
            await asyncio.sleep(_AGAIN)

    async def _listen(self) -> None:
        connection = self._connection = await self._link.connect()
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        await connection.add_listener(self._channel, self._heard)
        self._first.set()
        self._bell.ring()  # for what has happened while nobody listened
        proven_at = float("-inf")
        loop = asyncio.get_running_loop()
        while not lost.is_set():
            if loop.time() - proven_at > _PROBE_EVERY or not self.is_proven:
                await self._prove()
                proven_at = loop.time()
            with suppress(TimeoutError):
                await asyncio.wait_for(lost.wait(), _PROVEN if self.is_proven else _UNPROVEN)
                return
            await connection.execute("SELECT 1")  # or it is lost, and nobody has told
            self._bell.ring()

    async def _prove(self) -> None:
        """Find out whether a notification that another connection sends arrives at this one."""
        self._word = f"probe {secrets.token_hex(8)}"
        self._arrived.clear()
        await self._teller.say(self._word)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), _ARRIVAL)
        self.is_proven = self._arrived.is_set()

    def _heard(self, connection: object, process: int, channel: str, word: object) -> None:
        if word == self._word:
            self._arrived.set()
        elif word != self._teller.token and not str(word).startswith("probe "):
            self._bell.ring()
