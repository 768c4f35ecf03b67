"""Which store a command works on, and how it is opened.

Law: ``--store`` goes before the store of ``--app``, which goes before the configured one. Opening to read makes nothing
and opens no worker; opening to write needs a store that is there. A URL is shown without its password. A SQLite file
is read without an event loop, whose import would take longer than the reading.
"""

from __future__ import annotations

import copy
import os
import re
import sys
from collections.abc import Callable, Coroutine
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from flowlet.stores.onlooker import look_at, open_onlooker

if TYPE_CHECKING:
    from flowlet.app import Flowlet
    from flowlet.core.definitions import RunDefinition
    from flowlet.store import Store

T = TypeVar("T")


class Place:
    """A store, as a command was told of it.

    Args:
        store: a URL, or None.
        app: ``module:name`` of a `Flowlet`, or None.

    Attributes:
        flow: the application's, if one was named. It is never entered.
        shown: the store, for people.
    """

    def __init__(self, store: str | None, app: str | None) -> None:
        self.flow: Flowlet | None = None if app is None else load_flow(app)
        self.url: str | None = store
        if store is None and self.flow is None:
            self.url = _configured()
        self.shown: str = hide_password(self.url) if self.url is not None else _name(self.flow)

    def read(self, work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
        """Do something with the store that changes nothing."""

        is_plain_file = self.flow is None and self.url is not None and self.url.startswith("sqlite:")

        async def main() -> T:
            store = self._coded(await self._look(has_loop=not is_plain_file))
            try:
                return await work(store)
            finally:
                await store.close()

        if is_plain_file:
            return _step_through(main())
        return _in_loop(main)

    def write(self, work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
        """Do something with the store that may change it; it must be there."""

        async def main() -> T:
            await _touch(await self._look())
            store = self._coded(self.bare())
            try:
                return await work(store)
            finally:
                await store.close()

        return _in_loop(main)

    def bare(self) -> Store:
        """Return the store as it is named, not opened yet, without the application's codec."""
        from flowlet.stores import open_store

        if self.url is not None:
            return open_store(self.url)
        assert self.flow is not None
        store: Any = self.flow.store
        return cast("Store", getattr(store, "inner", store))

    def find(self, name: str, version: str) -> RunDefinition | None:
        """Look a definition up in the application."""
        return None if self.flow is None else self.flow.registry.find_run(name, version)

    async def _look(self, *, has_loop: bool = True) -> Store:
        return await open_onlooker(self.url, has_loop=has_loop) if self.url is not None else await look_at(self.bare())

    def _coded(self, store: Store) -> Store:
        """Return the store as seen through the application's codec, if it has one."""
        if self.flow is None or not hasattr(self.flow.store, "inner"):
            return store
        coded: Any = copy.copy(self.flow.store)
        coded.inner = store
        return cast("Store", coded)


async def _touch(store: Store) -> None:
    """See that the store is there, which a file is asked for no earlier."""
    try:
        await store.scan(limit=1)
    finally:
        await store.close()


def _in_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    import anyio

    return anyio.run(main)


def _step_through(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits for an event loop."""
    try:
        work.send(None)
    except StopIteration as end:
        return cast(T, end.value)
    work.close()
    raise AssertionError("what reads a file has waited for an event loop")


def _configured() -> str:
    """Return the URL that the environment or a file says."""
    from flowlet.config import Config

    url = Config.load().store
    if url.startswith("memory:"):
        raise click.UsageError(
            "which store? give --store URL, or set FLOWLET_STORE, or write store = ... into flowlet.toml; "
            "a store in memory is gone with its process"
        )
    return url


def hide_password(url: str) -> str:
    """Return a URL as it may be shown: without a password, also one that is among its options."""
    # Up to the last @: a password that was not escaped may have any character.
    url = re.sub(r"(?<=//)([^/?#@:]*):.*@", r"\1:***@", url)
    return re.sub(r"((?:^|[?&])\w*password=)[^&#]*", r"\1***", url)


def _name(flow: Flowlet | None) -> str:
    assert flow is not None
    store: Any = getattr(flow.store, "inner", flow.store)
    path = getattr(store, "path", None)
    return f"sqlite:///{path}" if isinstance(path, str) else repr(store)


# ---------------------------------------------------------------- code
def load_module(name: str) -> Any:
    """Import a module as ``python -m`` would: from the current directory as well.

    Raises:
        click.UsageError: there is none.
    """
    if not re.fullmatch(r"\w+(\.\w+)*", name):
        plain = re.sub(r"\W+", ".", name.removesuffix(".py")).strip(".")
        raise click.UsageError(f"{name!r} is no name of a module; write it with dots, perhaps {plain!r}")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise click.UsageError(f"{name} needs the module {error.name!r}, which is not installed") from error
        text = f"there is no module {error.name!r} here ({os.getcwd()}) or among what is installed"
        raise click.UsageError(text) from None


def load_thing(where: str, what: str) -> Any:
    """Return what ``module:name`` names.

    Raises:
        click.UsageError: there is nothing of that name.
    """
    from flowlet.core.faults import nearest

    module_name, colon, path = where.partition(":")
    if not colon or not path:
        raise click.UsageError(f"{what} takes module:name, as in shop.orders:flow, not {where!r}")
    found = load_module(module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            raise click.UsageError(f"{module_name} has no {path!r}{nearest(name, vars(found))}")
        found = getattr(found, name)
    return found


def load_flow(where: str) -> Flowlet:
    """Return the application's `Flowlet`, its definitions built.

    Raises:
        DefinitionError: they have faults.
        click.UsageError: it is none.
    """
    from flowlet.app import Flowlet

    found = load_thing(where, "--app")
    if not isinstance(found, Flowlet):
        raise click.UsageError(f"--app takes a flowlet.Flowlet, and {where} is a {type(found).__name__}")
    found.registry.build_drafts()
    return found


__all__ = ["Place", "hide_password", "load_flow", "load_module", "load_thing"]
