"""Connections to the database: made when they are needed, and given back or thrown away.

Law: whoever asks for something is not whom it belongs to. Each use of a connection is a task of this module's
own, so that a caller who is cancelled never makes the driver cancel a statement on the server; what was begun
is finished. A connection that failed is never used again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import anyio

from flowlet.errors import ConfigError
from flowlet.stores.postgres_address import Address
from flowlet.stores.postgres_driver import Connection, asyncpg
from flowlet.stores.postgres_errors import DRIVER_ERRORS, is_cut, is_passing, is_starting, translated
from flowlet.stores.postgres_schema import is_made, prepare

__all__ = ["ANSWER", "PATIENCE", "Link", "Pool", "again", "farewell", "outlast", "terminate"]

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds for which a server that was there is expected back: it restarts, or another one takes over."""

ANSWER = 60.0
"""Seconds for one statement of this store."""

_PAUSES = (0.0, 0.01, 0.05, 0.1, 0.2)
"""Seconds before what met a deadlock or a failed serialization is tried again."""

_SETTINGS = """
    SET default_transaction_isolation = 'read committed'; SET default_transaction_deferrable = off;
    SET lock_timeout = '10s'; SET jit = off;
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""


class Link:
    """Makes connections, on one event loop.

    Attributes:
        address: where to.
        was_there: the database has been reached before.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.was_there: bool = False
        self._opening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """See that the schema is there; done once.

        Raises:
            FlowletError: it cannot be used; the next call tries again.
        """
        if self._opening is None or (self._opening.done() and _has_failed(self._opening)):
            self._opening = asyncio.get_running_loop().create_task(self._open())
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        for pause in (*_PAUSES, None):
            connection = await self.connect()
            try:
                await prepare(connection, self.address)
                return
            except DRIVER_ERRORS as error:
                # Made in one transaction, it is there or not: it may be made again when the answer was lost.
                if pause is None or not (is_passing(error) or is_starting(error)):
                    raise translated(error, self.address) from error
                await asyncio.sleep(pause)
            finally:
                await farewell(connection)

    async def finds_tables(self) -> bool:
        """Tell whether the schema is there; make nothing.

        Raises:
            FlowletError: it cannot be told, or the schema is not ours.
        """
        connection = await self.connect()
        try:
            return await is_made(connection, self.address)
        except DRIVER_ERRORS as error:
            raise translated(error, self.address) from error
        finally:
            await farewell(connection)

    async def connect(self, *, is_ours: bool = True) -> Connection:
        """Return a new connection.

        Args:
            is_ours: only this store uses it, so it has the settings that the store wants.

        Raises:
            FlowletError: there is none to be had, of a server that was there before not within `PATIENCE`.
        """
        deadline = time.monotonic() + (PATIENCE if self.was_there else 0.0)
        pause = 0.02
        while True:
            try:
                return await self._connect_once(is_ours)
            except DRIVER_ERRORS as error:
                if not is_starting(error) or time.monotonic() + pause > deadline:
                    raise translated(error, self.address) from error
            except ValueError:
                # The driver's own reading of the URL or of PG variables: its text may have any part of them.
                text = f"{self.address.shown}: the driver cannot read a setting of the URL or of the PG variables"
                raise ConfigError(f"{text}; correct it") from None
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.5)

    async def _connect_once(self, is_ours: bool) -> Connection:
        connect: Any = asyncpg.connect
        connection: Connection = await connect(
            self.address.dsn,
            timeout=self.address.connect_timeout,
            command_timeout=ANSWER if is_ours else None,
            # Statements are few and constant; the largest is beyond the driver's default.
            max_cached_statement_lifetime=0,
            max_cacheable_statement_size=0,
        )
        try:
            if is_ours:
                await connection.execute(_SETTINGS)
        except BaseException:
            connection.terminate()
            raise
        self.was_there = True
        return connection


class Pool:
    """A few connections, each used by one task at a time.

    Args:
        link: makes them.
        size: at most so many.
        is_ours: see `Link.connect`.

    Attributes:
        room: to be held by whoever calls `take`.
    """

    def __init__(self, link: Link, size: int, *, is_ours: bool = True) -> None:
        self._link, self._is_ours = link, is_ours
        self.room: asyncio.Semaphore = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    async def use(self, work: Callable[[Connection], Awaitable[T]], *, repeatable: bool = False) -> T:
        """Do something with a connection, in a task of its own: it goes on when the caller is cancelled.

        Args:
            work: may be called again after a deadlock or a failed serialization.
            repeatable: it may also be when the connection was lost, since it does no harm twice.
        """
        return await asyncio.shield(self.spawn(self._use(work, repeatable)))

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do something in a task of the pool's own; `close` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also when nobody waits for it any more

    async def _use(self, work: Callable[[Connection], Awaitable[T]], repeatable: bool) -> T:
        await self._link.open()
        try:
            return await again(lambda: self._once(work))
        except DRIVER_ERRORS as error:
            if not (repeatable and is_cut(error)):
                raise translated(error, self._link.address) from error
        try:
            return await again(lambda: self._once(work))
        except DRIVER_ERRORS as error:
            raise translated(error, self._link.address) from error

    async def _once(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        async with self.room:
            connection = await self.take()
            try:
                value = await work(connection)
            except BaseException as error:
                self.give_back(connection, error)
                raise
            self.give_back(connection)
            return value

    async def take(self) -> Connection:
        """Return a connection that nobody uses; `give_back` must follow."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await self._link.connect(is_ours=self._is_ours)

    def give_back(self, connection: Connection, error: BaseException | None = None) -> None:
        """Keep a connection for the next, unless it has failed or is in the middle of something."""
        unfit = error is not None and (not isinstance(error, DRIVER_ERRORS) or is_cut(error))
        if unfit or self._is_closed or connection.is_closed() or connection.is_in_transaction():
            connection.terminate()
        else:
            self._idle.append(connection)

    async def close(self) -> None:
        """Wait for what is under way, and close the connections."""
        self._is_closed = True
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        while self._idle:
            await farewell(self._idle.pop())

    def drop(self) -> None:
        """Let go of everything, when the event loop it belongs to has ended."""
        self._is_closed = True
        while self._idle:
            terminate(self._idle.pop())


async def again(call: Callable[[], Awaitable[T]]) -> T:
    """Make a call, and make it again when it met a deadlock or a failed serialization."""
    for pause in _PAUSES:
        try:
            return await call()
        except DRIVER_ERRORS as error:
            if not is_passing(error):
                raise
        await asyncio.sleep(pause)
    return await call()


async def outlast(future: asyncio.Future[Any], seconds: float) -> None:
    """Wait until something is done, whatever arrives meanwhile, but no longer than this."""
    deadline = time.monotonic() + seconds
    # The scope keeps anyio from cancelling this task again in every turn of the loop; the inner `except` is for
    # `Task.cancel`, which no scope holds off.
    with anyio.CancelScope(shield=True):
        while not future.done() and (left := deadline - time.monotonic()) > 0:
            try:
                await asyncio.wait([future], timeout=left)
            except asyncio.CancelledError:
                continue


async def farewell(connection: Connection) -> None:
    """Close a connection; if the server does not answer, without it."""
    with suppress(*DRIVER_ERRORS):
        await connection.close(timeout=2.0)
        return
    terminate(connection)


def terminate(connection: Connection) -> None:
    """Drop a connection, also when its event loop has ended."""
    with suppress(RuntimeError):
        connection.terminate()


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.cancelled() or task.exception() is not None
