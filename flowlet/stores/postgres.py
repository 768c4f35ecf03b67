"""The store in a PostgreSQL database: durable, shared by processes on any number of hosts.

Law: this module joins the parts and holds no SQL. Appends go through one `postgres_committer.Committer`, in groups,
appends with work through `postgres_work.Desk`, and everything else through a small pool. The only time is the
server's, so that hosts whose clocks are apart agree on leases. asyncio only, as asyncpg.

It needs the extra: ``pip install 'flowlet[postgres]'``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from flowlet.errors import StoreNotFound, StoreUnavailable
from flowlet.store import Capabilities, Claims, Head, Stored, Work, Write
from flowlet.stores import postgres_leases, postgres_prune, postgres_reads
from flowlet.stores.bell import Bell, CommitTeller
from flowlet.stores.postgres_address import Address
from flowlet.stores.postgres_driver import Connection
from flowlet.stores.postgres_link import Link
from flowlet.stores.postgres_schema import in_schema
from flowlet.stores.postgres_session import Session, loop_here
from flowlet.stores.refusal import malformed

__all__ = ["PostgresStore"]

T = TypeVar("T")

_LARGEST = 256 * 1024 * 1024
"""PostgreSQL takes a value of 1 GB, and a statement of as much; this leaves room for what else is in it."""

_NOW = "SELECT @.now()"


class PostgresStore(CommitTeller):
    """Keep history in a schema of a PostgreSQL database, version 12 or newer.

    The schema and its tables are made at the first use; a call after `close` opens again, on any event loop of
    asyncio. One event loop at a time. ``work`` gets an `asyncpg.Connection` in a transaction and may be a coroutine
    function; it must not begin or end transactions but by ``connection.transaction()``, which makes savepoints, and
    may run a second time when the transaction had to be repeated (all it did in the database was undone). What it
    sets for the session is reset.

    An append that is cancelled after it was accepted still waits for its outcome, some milliseconds as a rule and at
    most 5 s, and then raises the cancellation. With ``work``, one that comes before the work has ended undoes it.

    A server that goes away is waited for, 10 s, when the next connection is made; what was under way when it went
    ends in `StoreUnavailable`, since nobody knows whether it was stored.

    Connections: one for appends, one to listen, and up to ``pool_size`` for reading, and as many for appends with
    work. Where notifications do not arrive, as behind some poolers, others' changes are noticed within half a
    second. A pooler must keep prepared statements: PgBouncer in session mode, or 1.21 and newer with
    ``max_prepared_statements``.

    Args:
        url: ``postgresql://user:password@host:port/database?schema=flowlet``; ``postgres://`` is the same. What it
            leaves out comes from the usual variables (``PGHOST``, ``PGUSER``, ``PGPASSWORD``, ``PGSSLMODE`` ...) and
            the password file. Options: ``schema``, ``pool_size``, ``connect_timeout`` (seconds), ``sslmode`` and the
            others of TLS, ``host``, ``target_session_attrs``, ``application_name``.
        schema: the schema, instead of the URL's; ``flowlet`` where neither says.
        pool_size: connections, instead of the URL's; 4 where neither says.

    Raises:
        ConfigError: the URL or an option is wrong; no message ever has the password.

    Example:
        >>> store = PostgresStore("postgresql://ann:secret@db.example/shop?schema=orders")
        >>> store
        <PostgresStore postgresql://ann@db.example/shop?schema=orders>
    """

    capabilities: Capabilities = Capabilities(
        durable=True, multi_process=True, transactional=True, async_work=True, max_payload=_LARGEST
    )

    def __init__(self, url: str, *, schema: str | None = None, pool_size: int | None = None) -> None:
        self._address = Address(url, schema=schema, pool_size=pool_size)
        self._bell = Bell()
        self._session: Session | None = None

    def __repr__(self) -> str:
        return f"<PostgresStore {self._address.shown}>"

    # Writing ------------------------------------------------------------------------------------
    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        """Store all writes or none of them; see `flowlet.store.Store.append`."""
        if error := malformed(writes, _LARGEST):
            raise error
        session = self._session_here()
        if work is not None:
            await session.desk.append(writes, work)
        elif writes:
            await session.committer.result(writes)

    def _session_here(self) -> Session:
        loop = loop_here()
        session = self._session
        if session is None or not session.is_here(loop):
            if session is not None:
                session.drop()
            session = self._session = Session(self._address, self._bell, _LARGEST)
        return session

    # Reading ------------------------------------------------------------------------------------
    async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Stored | None:
        """Read an entity; see `flowlet.store.Store.load`."""
        if "\0" in id:
            return None
        return await self._ask(partial(postgres_reads.load, id=id, after=after, limit=limit), repeatable=True)

    async def scan(
        self,
        *,
        kind: str | None = None,
        definition: str | None = None,
        status: Sequence[str] | None = None,
        state: str | None = None,
        wake_before: float | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[Head]:
        """List heads in the order of creation; see `flowlet.store.Store.scan`."""
        page = postgres_reads.Page(
            kind=kind,
            definition=definition,
            status=status,
            state=state,
            wake_before=wake_before,
            after=after,
            limit=limit,
        )
        return await self._ask(partial(postgres_reads.scan, page=page), repeatable=True)

    async def _ask(self, question: Callable[[Connection, str], Awaitable[T]], *, repeatable: bool = False) -> T:
        session, schema = self._session_here(), self._address.schema
        return await session.reads.use(lambda connection: question(connection, schema), repeatable=repeatable)

    # Leases -------------------------------------------------------------------------------------
    async def claim(
        self,
        worker: str,
        /,
        *,
        definitions: Sequence[tuple[str, str, str]] = (),
        ids: Sequence[str] = (),
        limit: int = 100,
    ) -> Claims:
        """Take entities that nobody alive owns; see `flowlet.store.Store.claim`."""
        question = partial(postgres_leases.claim, worker=worker, definitions=definitions, ids=ids, limit=limit)
        return await self._ask(question)

    async def heartbeat(self, worker: str, lease: float, /) -> Sequence[str]:
        """Say that the worker lives for ``lease`` more seconds; return the others on record."""
        return await self._ask(partial(postgres_leases.heartbeat, worker=worker, lease=lease), repeatable=True)

    async def release(self, worker: str, /, ids: Sequence[str] | None = None) -> None:
        """Give back the worker's leases on these ids, or all of them and its place on record."""
        await self._ask(partial(postgres_leases.release, worker=worker, ids=ids), repeatable=True)
        self._session_here().tell()

    async def now(self) -> float:
        """Return the store's own time, in seconds since the epoch: the server's clock."""

        async def ask(connection: Connection, schema: str) -> float:
            now: float = await connection.fetchval(in_schema(_NOW, schema))
            return now

        return await self._ask(ask, repeatable=True)

    async def watch(self, seen: int, timeout: float, /) -> int:
        """Wait until the change counter differs from ``seen``, or ``timeout`` seconds; return it.

        Another process's change is noticed at once where its notification arrives, else within half a second.
        """
        session, began = self._session_here(), time.monotonic()
        await session.open()
        try:
            async with asyncio.timeout(max(timeout, 1.0)):
                await session.listener.listening()
        except TimeoutError:
            return self._bell.count
        return await self._bell.wait(seen, timeout - (time.monotonic() - began))

    async def prune(self, *, closed_before: float, limit: int = 1000) -> int:
        """Delete at most ``limit`` entities closed before this time, oldest first; return how many.

        It goes in short transactions with pauses between them.
        """
        count = 0
        while count < limit:
            began = time.monotonic()
            question = partial(postgres_prune.prune, closed_before=closed_before, limit=limit - count)
            try:
                pruned = await self._ask(question)
            except StoreUnavailable:
                if not count:
                    raise
                break
            count += pruned
            if not pruned:
                break
            await asyncio.sleep(min(1.0, time.monotonic() - began))
        return count

    async def onlooker(self) -> PostgresStore:
        """Return this store, for reading, if its tables are there; make nothing.

        Raises:
            StoreNotFound: they are not.
        """
        if not await Link(self._address).finds_tables():
            text = f"{self._address.shown}: there is no schema {self._address.schema!r} with flowlet's tables"
            raise StoreNotFound(f"{text} in this database; nothing was created")
        return self

    async def close(self) -> None:
        """Finish what was accepted and close the connections."""
        session, loop = self._session, loop_here()
        if session is None:
            return
        self._session = None
        if session.is_here(loop):
            self._bell.ring()
            await session.close()
        else:
            session.drop()

    # What it has done, for tests and benchmarks ---------------------------------------------------
    @property
    def statements(self) -> int:
        """Statements that stored appends since the store was opened on this loop."""
        return 0 if self._session is None else self._session.committer.statements
