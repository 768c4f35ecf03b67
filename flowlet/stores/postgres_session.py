"""All that a PostgreSQL store has open on one event loop.

Law: it belongs to one loop and one process. What was accepted is finished before it is closed; what a loop that
has ended left behind is let go without a word to the server, which then undoes what was not committed.
"""

from __future__ import annotations

import asyncio
import os

from flowlet.errors import ConfigError, StoreError
from flowlet.stores.bell import Bell
from flowlet.stores.postgres_address import Address
from flowlet.stores.postgres_catalog import Catalog
from flowlet.stores.postgres_committer import Committer
from flowlet.stores.postgres_link import Link, Pool
from flowlet.stores.postgres_news import Listener, Teller
from flowlet.stores.postgres_work import Desk

__all__ = ["Session", "loop_here"]


class Session:
    """The connections of one store, and who uses them.

    Attributes:
        loop: the event loop they belong to.
        reads: for everything but appends.
        committer: for appends.
        desk: for appends with work.
        listener: for news from other processes.
    """

    reads: Pool

    def __init__(self, address: Address, bell: Bell, largest: int) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._process, self._shown, self._bell = os.getpid(), address.shown, bell
        link = Link(address)
        self.reads, self._works = Pool(link, address.pool_size), Pool(link, address.pool_size, is_ours=False)
        catalog = Catalog(self.reads, address.schema)
        self._teller = Teller(self.reads, address.schema)
        self.committer: Committer = Committer(link, catalog, self.tell, bell)
        self.desk: Desk = Desk(link, self._works, catalog, self.tell, largest)
        self.listener: Listener = Listener(link, bell, self._teller)
        self._link = link

    def tell(self) -> None:
        """Tell those who watch, here and elsewhere, that something has changed."""
        self._bell.ring()
        self._teller.tell()

    async def open(self) -> None:
        """See that the database can be used."""
        await self._link.open()

    def is_here(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether it belongs to this loop.

        Raises:
            StoreError: it belongs to the process that this one was forked from.
        """
        if self._process != os.getpid():
            # The sockets are shared now: two processes would talk over each other.
            text = f"the store on {self._shown} was open when this process was forked from process {self._process}"
            raise StoreError(f"{text}; close it before forking, or start processes with 'spawn'")
        return self.loop is loop

    async def close(self) -> None:
        """Finish what was accepted, then close all connections."""
        await self.listener.close()
        await self.committer.close()
        await self._works.close()
        await self._teller.close()
        await self.reads.close()

    def drop(self) -> None:
        """Let go of everything, when its loop has ended."""
        for part in (self.listener, self.committer, self._works, self.reads):
            part.drop()


def loop_here() -> asyncio.AbstractEventLoop:
    """Return the event loop that the caller runs on.

    Raises:
        ConfigError: it is none of asyncio's.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        text = "PostgresStore works on asyncio only, as asyncpg does; run the program on asyncio, or use another store"
        raise ConfigError(text) from None
