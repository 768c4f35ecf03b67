"""The places that keep history, and the URLs that name them.

Law: naming a store does no I/O and imports only the module of the store that was named. Stores import
nothing of flowlet but `flowlet.store` and `flowlet.errors`, and not each other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

from flowlet.errors import ConfigError

if TYPE_CHECKING:
    from flowlet.store import Store

__all__ = ["open_store", "sqlite_place"]

_FORMS = (
    "'memory://', 'sqlite:///relative.db', 'sqlite:////absolute.db', 'postgresql://host/db' and "
    "'redis://host:6379/0', the schemes there are so far"
)
_DURABILITY = {"power": "FULL", "process": "NORMAL"}


def open_store(url: str) -> Store:
    """Return the store that a URL names; it opens itself at its first use.

    - ``memory://``: `flowlet.stores.memory.MemoryStore`, gone when the object is.
    - ``sqlite:///relative.db``, ``sqlite:////absolute.db``: `flowlet.stores.sqlite.SQLiteStore`. With
      ``?durability=process`` an acknowledged append survives the end of the process but perhaps not
      the loss of power; the default, ``?durability=power``, survives both. Write a ``?`` or ``%`` of
      the path as ``%3F`` and ``%25``.
    - ``postgresql://user:password@host:port/database?schema=flowlet``, ``postgres://...``:
      `flowlet.stores.postgres.PostgresStore`; what the URL leaves out comes from ``PGHOST``, ``PGPASSWORD`` and so on.
    - ``redis://user:password@host:port/0?prefix=flowlet``, ``rediss://...`` with TLS,
      ``unix:///path/of/socket?db=0``: `flowlet.stores.redis.RedisStore`. With ``?durability=power`` the server must
      bring each append to its disk, with ``second`` it may lose a second of them; see there.

    Args:
        url: scheme, path and options as above.

    Raises:
        ConfigError: the URL has another form; the message names the part and what is allowed.

    Example:
        >>> open_store("memory://").capabilities.durable
        False
    """
    scheme, separator, rest = url.partition("://")
    path, _, query = rest.partition("?")
    if separator and scheme == "memory":
        return _memory(path, query)
    if separator and scheme == "sqlite":
        return _sqlite(url)
    if separator and scheme in ("postgresql", "postgres"):
        from flowlet.stores.postgres import PostgresStore

        return PostgresStore(url)
    if separator and scheme in ("redis", "rediss", "unix"):
        from flowlet.stores.redis import RedisStore

        return RedisStore(url)
    raise ConfigError(f"no store has the URL {_without_password(url)!r}; the known forms are {_FORMS}")


def _memory(path: str, query: str) -> Store:
    if path or query:
        raise ConfigError(f"'memory://' takes no path and no options, but was followed by {path or query!r}")
    from flowlet.stores.memory import MemoryStore

    return MemoryStore()


def _sqlite(url: str) -> Store:
    name, synchronous = sqlite_place(url)
    from flowlet.stores.sqlite import SQLiteStore

    return SQLiteStore(name, synchronous=synchronous)


def sqlite_place(url: str) -> tuple[str, str]:
    """Return the path that a ``sqlite://`` URL names, and the ``synchronous`` that it asks for.

    Raises:
        ConfigError: it has another form.
    """
    path, _, query = url.partition("://")[2].partition("?")
    if path and not path.startswith("/"):
        raise ConfigError(f"write 'sqlite:///{path}' (three slashes) for the relative path {path!r}")
    name = unquote(path[1:])
    if not name or name == ":memory:" or "\0" in name:
        hint = "for a store in memory write 'memory://'; the known forms are " + _FORMS
        raise ConfigError(f"'sqlite://{path}' names no file; {hint}")
    synchronous = _DURABILITY["power"]
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key != "durability":
            raise ConfigError(f"unknown option {key!r} of a sqlite URL; the only one is 'durability'")
        if value not in _DURABILITY:
            raise ConfigError(f"durability={value!r} is not known; allowed are {', '.join(map(repr, _DURABILITY))}")
        synchronous = _DURABILITY[value]
    return name, synchronous


def _without_password(url: str) -> str:
    return re.sub(r"(//[^/@]*?):[^/]*@", r"\1:***@", url)
