"""A connection to a Redis server that is owned by a task of its own, and what is asked of it.

Law: who asks never touches the connection, so a caller that is cancelled breaks nothing and abandons
nothing; the outcome is on the ticket before anyone is woken. What was asked in one turn of the loop, or
while the server was busy with what came before, goes out together; appends of many callers go as one
command, which the server brings to its disk at once, and each has an outcome of its own.

Nothing is sent twice: when a connection breaks, whoever waits learns that the outcome is not known.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from flowlet.errors import FlowletError
from flowlet.store import Write
from flowlet.stores.bell import Bell
from flowlet.stores.port import AsyncioPort, Ticket
from flowlet.stores.redis_errors import broken, is_script_unknown, meaning, refused, unreachable
from flowlet.stores.redis_forms import Packed, failure_of, words_of
from flowlet.stores.redis_opening import Command, Link
from flowlet.stores.redis_scripts import SCRIPTS, name_of
from flowlet.stores.redis_url import Place

__all__ = ["Append", "Asked", "Line", "Run"]

_BOUND = 1024
"""Requests that are accepted and not finished; whoever brings one more waits before it is accepted."""

_MOST_AT_ONCE, _LARGEST_AT_ONCE = 128, 1 << 20
"""Appends, and bytes of them, that one command carries: the server serves nobody else meanwhile."""

_SLOWEST = 1 << 20
"""Bytes a second that a slow network still carries: what is large may take longer."""


class Asked(Ticket):
    """Commands whose replies are the value: the only one, or a list.

    Attributes:
        size: bytes that are sent, where they are many.
    """

    __slots__ = ("commands",)

    size: int = 0
    value: Any
    error: BaseException | None

    def __init__(self, *commands: Command) -> None:
        super().__init__()
        # Here, and not where they are sent: what cannot be sent concerns nobody but the caller.
        self.commands: list[tuple[bytes | int, ...]] = [words_of(command) for command in commands]

    def settle(self, replies: list[Any], name: str) -> None:
        """Note the outcome."""
        for reply in replies:
            if isinstance(reply, Exception):
                self.error = refused(reply, name)
                self.error.__cause__ = reply
                break
        else:
            self.value = replies[0] if len(replies) == 1 else replies
        self.done = True

    def fail(self, error: FlowletError) -> None:
        """Note why there is no outcome."""
        _note(self, error)


class Run(Asked):
    """A script to be run; what it returns is the value."""

    __slots__ = ()

    def __init__(self, script: str, place: Place, *arguments: Any) -> None:
        super().__init__(("EVALSHA", name_of(script), 1, f"{place.prefix}:", *arguments))


class Append(Ticket):
    """An append, with its outcome."""

    __slots__ = ("packed", "size", "writes")

    packed: Packed
    writes: Sequence[Write]

    def __init__(self, writes: Sequence[Write], packed: Packed) -> None:
        super().__init__()
        self.writes, self.packed = writes, packed
        self.size: int = sum(map(len, packed))


class _Together(Asked):
    """Appends that go as one command; its value is the counter of changes."""

    __slots__ = ("appends", "ring", "size")

    def __init__(self, appends: list[Append], prefix: str, now: str, ring: Callable[[int], None]) -> None:
        words = [word for append in appends for word in append.packed]
        super().__init__(("EVALSHA", name_of("append"), 1, f"{prefix}:", now, *words))
        self.appends, self.ring = appends, ring
        self.size = sum(append.size for append in appends)

    def settle(self, replies: list[Any], name: str) -> None:
        super().settle(replies, name)
        if isinstance(self.error, FlowletError):
            self.fail(self.error)
            return
        news, failures = self.value
        for index, result in failures:
            append = self.appends[index]
            append.error = failure_of(append.writes, result, lambda words: meaning(words, name))
        for append in self.appends:
            append.done = True
        self.ring(news)

    def fail(self, error: FlowletError) -> None:
        super().fail(error)
        for append in self.appends:
            _note(append, error)


def _note(ticket: Ticket, error: FlowletError) -> None:
    # Each caller gets an exception of its own, for each adds to its traceback.
    ticket.error = type(error)(*error.args)
    ticket.error.__cause__ = error.__cause__
    ticket.done = True


def _fail(asked: Sequence[Asked], cause: Exception, error: FlowletError) -> None:
    if error is not cause:
        error.__cause__ = cause
    for ticket in asked:
        if not ticket.done:
            ticket.fail(error)


class Line:
    """Asks one server, on one event loop.

    Args:
        place: the server.
        link: opens a connection to it.
        now: returns the time to be stored as text, empty for the server's own.
        ring: takes the counter of changes whenever the server tells it.
        bell: the store's, which knows who wants to hear of commits.

    Attributes:
        batches: commands that carried appends.
    """

    def __init__(
        self,
        place: Place,
        link: Callable[[Place], Awaitable[Link]],
        now: Callable[[], str],
        ring: Callable[[int], None],
        bell: Bell,
    ) -> None:
        self._place, self._connect, self._now, self._ring, self._bell = place, link, now, ring, bell
        self.port: AsyncioPort = AsyncioPort()
        self.batches: int = 0
        self._queue: deque[Asked | Append] = deque()
        self._accepted = 0  # and not finished
        self._room: asyncio.Event | None = None
        self._idle: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._link: Link | None = None

    async def result(self, ticket: Asked | Append) -> Any:
        """Have it done and return its value, or raise its error; a cancellation only when the outcome is there."""
        while self._accepted >= _BOUND:
            if self._room is None:
                self._room = asyncio.Event()
            await self._room.wait()
        self._accept(ticket)
        await self.port.wait(ticket)
        error, ticket.error = ticket.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it holds this frame; let the two not keep each other alive
        return ticket.value

    async def close(self) -> None:
        """Finish what was accepted, then hang up."""
        task = self._task
        if task is None:
            return
        while self._accepted and not task.done():
            last = Asked()
            self._accept(last)
            await self.port.wait(last)
        task.cancel()
        await asyncio.wait([task])

    def _accept(self, ticket: Asked | Append) -> None:
        self._accepted += 1
        self._queue.append(ticket)
        if self._idle is not None:
            if not self._idle.done():
                self._idle.set_result(None)
        elif self._task is None or self._task.done():
            # Its end came with that of everything on this loop; whoever still asks is served all the same.
            self._task = asyncio.get_running_loop().create_task(self._serve(), name="flowlet redis")

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        asked: list[Asked] = []
        try:
            while True:
                if not self._queue:
                    self._idle = loop.create_future()
                    await self._idle
                    self._idle = None
                asked = self._take()
                await self._ask(asked)
                self._deliver(asked)
                asked = []
        finally:
            self._idle = None
            link, self._link = self._link, None
            _fail(asked, ended := broken(None, self._place.name), ended)
            self._deliver(asked)
            if link is not None:
                await link.close()
            if self._queue:
                self._task = loop.create_task(self._serve(), name="flowlet redis")

    def _take(self) -> list[Asked]:
        """Return everything that was accepted, the appends joined."""
        asked: list[Asked] = []
        appends: list[Append] = []
        size = 0
        for ticket in self._queue:
            if isinstance(ticket, Asked):
                asked.append(ticket)
                continue
            if appends and (len(appends) >= _MOST_AT_ONCE or size + ticket.size > _LARGEST_AT_ONCE):
                asked.append(self._joined(appends))
                appends, size = [], 0
            appends.append(ticket)
            size += ticket.size
        if appends:
            asked.append(self._joined(appends))
        self._queue.clear()
        return asked

    def _joined(self, appends: list[Append]) -> _Together:
        self.batches += 1
        return _Together(appends, self._place.prefix, self._now(), self._ring)

    async def _ask(self, asked: list[Asked]) -> None:
        """Note the outcome of each."""
        try:
            async with asyncio.timeout(self._place.timeout):
                link = await self._linked()
        except Exception as error:
            _fail(asked, error, unreachable(error, self._place.name))
            return
        try:
            size = sum(ticket.size for ticket in asked)
            async with asyncio.timeout(self._place.timeout + size / _SLOWEST):
                await self._exchange(link, asked)
        except Exception as error:
            self._link = None
            await link.close()
            _fail(asked, error, broken(error, self._place.name))

    async def _linked(self) -> Link:
        link = self._link
        if link is not None and not link.is_there():
            self._link = None
            await link.close()
            link = None
        if link is None:
            link = self._link = await self._connect(self._place)
        return link

    async def _exchange(self, link: Link, asked: Sequence[Asked], is_second: bool = False) -> None:
        commands = [command for ticket in asked for command in ticket.commands]
        replies = await link.talk(commands) if commands else []
        again: list[Asked] = []
        at = 0
        for ticket in asked:
            mine = replies[at : at + len(ticket.commands)]
            at += len(ticket.commands)
            if not is_second and any(map(is_script_unknown, mine)):
                again.append(ticket)  # the server has done nothing of it
            else:
                ticket.settle(mine, self._place.name)
        if again:
            await link.talk([("SCRIPT", "LOAD", text) for text in SCRIPTS.values()])
            await self._exchange(link, again, is_second=True)

    def _deliver(self, asked: Sequence[Asked]) -> None:
        tickets: list[Ticket] = []
        for ticket in asked:
            tickets += ticket.appends if isinstance(ticket, _Together) else (ticket,)
            if isinstance(ticket, _Together) and self._bell.on_commit is not None:
                self._bell.on_commit(len(ticket.appends))
        self._accepted -= len(tickets)
        if self._room is not None:
            self._room.set()
            self._room = None
        self.port.wake(tickets)
