"""Appends with user code in their transaction: on a connection of their own, not in anybody else's batch.

Law: what the code does on the connection and what the append stores are committed together or not at all. The
transaction holds no lock of this store while the code runs: what it is to follow is looked at before, and judged
when it is stored. Until the code has ended a cancellation undoes all; from then on the outcome is waited for.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import Callable, Sequence

from flowlet.errors import FlowletError, StoreError
from flowlet.store import Work, Write
from flowlet.stores.postgres_batch import APPEND, arguments, first_refusal, refusals
from flowlet.stores.postgres_catalog import Catalog
from flowlet.stores.postgres_driver import Connection, Transaction, asyncpg
from flowlet.stores.postgres_errors import DRIVER_ERRORS, translated
from flowlet.stores.postgres_link import ANSWER, Link, Pool, again, outlast
from flowlet.stores.postgres_schema import in_schema
from flowlet.stores.refusal import malformed

__all__ = ["Desk"]

_LOOK = """
    SELECT h.id, h.version, h.fence, h.inbox, h.closed FROM @.heads h WHERE h.id = ANY ($1::text[])
    UNION ALL SELECT NULL, NULL, NULL, NULL, length(set_config('flowlet.work', $2, true))
"""
_MARK = "SELECT current_setting('flowlet.work', true)"

_ENDED = "`work` has ended the transaction it runs in; flowlet begins and commits it, use savepoints if you need any"
_FAILED = "a statement of `work` has failed, and with it the transaction; let its error pass, or use a savepoint"


class _WorkFailed(Exception):
    """User code has raised: for the caller of the append, unchanged."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class _Progress:
    """How far an append has come.

    Attributes:
        is_storing: the work has ended, what follows is not to be cut off.
    """

    is_storing = False


class Desk:
    """Does appends with work, each on a connection of its own.

    Args:
        pool: of connections that nothing else uses.
        tell: called after something was stored that those who watch must hear of.
        largest: the largest value that is accepted, in bytes.
    """

    def __init__(self, link: Link, pool: Pool, catalog: Catalog, tell: Callable[[], None], largest: int) -> None:
        self._link, self._pool, self._catalog, self._tell, self._largest = link, pool, catalog, tell, largest
        self._append = in_schema(APPEND, link.address.schema)
        self._look = in_schema(_LOOK, link.address.schema)

    async def append(self, writes: Sequence[Write], work: Work) -> None:
        """Store an append with work.

        Raises:
            BaseException: what the work has raised, or why the append was refused; nothing was stored.
        """
        progress = _Progress()
        task = self._pool.spawn(self._outcome(writes, work, progress))
        try:
            error = await asyncio.shield(task)
        except asyncio.CancelledError:
            if not progress.is_storing:
                task.cancel()
            await outlast(task, ANSWER)
            raise
        if error is not None:
            try:
                raise error
            finally:
                del error  # it holds this frame; let the two not keep each other alive

    async def _outcome(self, writes: Sequence[Write], work: Work, progress: _Progress) -> BaseException | None:
        """Return the error of an append, or None: it would not survive the way through a task unchanged."""
        try:
            await self._link.open()
            async with self._pool.room:
                await again(lambda: self._once(writes, work, progress))
        except _WorkFailed as failure:
            return failure.error
        except DRIVER_ERRORS as problem:
            error = translated(problem, self._link.address)
            error.__cause__ = problem
            return error
        except FlowletError as error:
            return error
        return None

    async def _once(self, writes: Sequence[Write], work: Work, progress: _Progress) -> None:
        connection = await self._pool.take()
        progress.is_storing = False
        transaction = connection.transaction(isolation="read_committed")
        try:
            await transaction.start()
            token = await self._judge(connection, writes)
            more = await _perform(work, connection)
            progress.is_storing = True
            is_news = await self._store(connection, [*writes, *more], token)
            await _commit(transaction)
        except BaseException:
            await _undo(connection, transaction)
            await self._put_away(connection)
            raise
        _ = self._pool.spawn(self._put_away(connection))  # nobody need wait for this
        if is_news:
            self._tell()

    async def _judge(self, connection: Connection, writes: Sequence[Write]) -> str:
        """Refuse what is refused already, before the work is done; mark the transaction."""
        token = secrets.token_hex(8)
        rows = await connection.fetch(self._look, [write.id for write in writes], token, timeout=ANSWER)
        error = first_refusal(writes, {row[0]: row[1:] for row in rows if row[0] is not None})
        if error is not None:
            raise error
        return token

    async def _store(self, connection: Connection, writes: Sequence[Write], token: str) -> bool:
        """Store the writes; return whether those who watch must hear of it."""
        if not connection.is_in_transaction():
            raise StoreError(_ENDED)
        if error := malformed(writes, self._largest):
            raise error
        await self._catalog.learn(writes)
        try:
            if await connection.fetchval(_MARK, timeout=ANSWER) != token:
                raise StoreError(_ENDED)
        except asyncpg.InFailedSQLTransactionError as problem:
            raise StoreError(_FAILED) from problem
        if not writes:
            return False
        values = arguments([writes], self._catalog.numbers)
        row = await connection.fetchrow(self._append, *values, timeout=ANSWER)
        refused: dict[int, FlowletError] = refusals([writes], row)
        if refused:
            raise refused[0]
        return bool(row["notable"])

    async def _put_away(self, connection: Connection) -> None:
        """Take back from a connection what user code has set, and keep it for the next; or throw it away."""
        if not connection.is_closed():
            try:
                await connection.reset(timeout=ANSWER)
            except BaseException:
                connection.terminate()
        self._pool.give_back(connection)


async def _perform(work: Work, connection: Connection) -> list[Write]:
    try:
        made = work(connection)
        return list(await made if inspect.isawaitable(made) else made)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # it is this append that is cancelled
        raise _WorkFailed(error) from error
    except BaseException as error:
        raise _WorkFailed(error) from error


async def _undo(connection: Connection, transaction: Transaction) -> None:
    """Undo what was not committed. Only dropped, a connection would leave the server at work, with its locks held."""
    try:
        async with asyncio.timeout(ANSWER):
            await transaction.rollback()
    except BaseException:
        connection.terminate()


async def _commit(transaction: Transaction) -> None:
    try:
        async with asyncio.timeout(ANSWER):
            await transaction.commit()
    except asyncpg.IntegrityConstraintViolationError as error:
        raise _WorkFailed(error) from error  # a deferred constraint: it is about the work's rows
