"""Opening a store to look at it: what is not there is not made.

Law: naming a store is `flowlet.stores.open_store`'s; here it is seen to that there is one, before anything is asked of
it, so that a tool with a mistyped URL leaves no empty database behind. A built-in store says how with its method
``onlooker``; any other one is taken as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from flowlet.errors import ConfigError
from flowlet.stores import open_store, sqlite_place

if TYPE_CHECKING:
    from flowlet.store import Store

__all__ = ["look_at", "open_onlooker"]


async def open_onlooker(url: str, *, has_loop: bool = True) -> Store:
    """Return a store for reading what is kept at a URL.

    A SQLite file is opened for reading only. With a server, what is returned could write.

    Args:
        url: as `flowlet.stores.open_store` takes it.
        has_loop: False where there is no event loop, which only a SQLite file can do without.

    Raises:
        StoreNotFound: there is nothing there yet; with a file, by the first question.
        StoreUnavailable: the server does not answer.
        StoreError: what is there is not flowlet's, or newer than this code.
        ConfigError: the URL has another form, or names a store in memory.

    Example:
        >>> import anyio
        >>> from flowlet.errors import StoreNotFound
        >>> from flowlet.stores.onlooker import open_onlooker
        >>> async def main() -> None:
        ...     store = await open_onlooker("sqlite:///mistyped.db")
        ...     try:
        ...         await store.scan(kind="run")
        ...     except StoreNotFound:
        ...         print("nothing there, and nothing made")
        >>> anyio.run(main)
        nothing there, and nothing made
    """
    if url.partition("://")[0] == "sqlite":
        # Not through the store itself, which needs an event loop and takes a moment to import.
        from flowlet.stores.sqlite_onlooker import SQLiteOnlooker

        return SQLiteOnlooker(sqlite_place(url)[0], has_loop=has_loop)
    return await look_at(open_store(url))


async def look_at(store: Store) -> Store:
    """Return a store for reading what a store keeps.

    Args:
        store: one that was not used yet.

    Raises:
        StoreNotFound, StoreUnavailable, StoreError: as `open_onlooker` does.
        ConfigError: nobody else can see what it keeps.
    """
    onlooker: Any = getattr(store, "onlooker", None)
    if onlooker is not None:
        return cast("Store", await onlooker())
    if not store.capabilities.multi_process:
        raise ConfigError("'memory://' is gone with its process, so there is nothing to look at; name another store")
    return store
