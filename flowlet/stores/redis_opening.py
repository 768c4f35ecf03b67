"""A connection to a Redis server, and what the server must be before anything is entrusted to it.

Law: every connection asks again, since a server may come back from a restart as another one. What the
server does not let this user ask is taken from the URL, or taken to be the worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowlet.errors import MissingExtra, StoreError
from flowlet.stores.redis_errors import broken, meaning, refused, unreachable
from flowlet.stores.redis_scripts import SCRIPTS, VERSION, name_of
from flowlet.stores.redis_url import DURABILITIES, Place

__all__ = ["Command", "Link", "connect", "import_driver", "link_to", "schema_at"]

Command = Sequence[Any]
"""A command and its arguments: bytes, str or int."""


def import_driver() -> Any:
    """Import redis-py's part for asyncio.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import redis.asyncio as driver
    except ImportError as error:
        text = "the Redis store needs redis-py 5 or newer; install it: pip install 'flowlet[redis]'"
        raise MissingExtra(text) from error
    return driver


class Link:
    """An open connection.

    Attributes:
        durability: what the server gives; see `DURABILITIES`.
    """

    __slots__ = ("_connection", "durability")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.durability: str = DURABILITIES[-1]

    async def talk(self, commands: Sequence[Command]) -> list[Any]:
        """Send all commands at once; return the reply of each, which may be an exception of the driver.

        Raises:
            redis.ConnectionError, OSError: the server is gone; which commands it has done is not known.
        """
        import redis.exceptions as driver

        connection = self._connection
        replies: list[Any] = []
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        for _ in commands:
            try:
                replies.append(await connection.read_response(disable_decoding=True))
            except driver.ResponseError as error:
                replies.append(error)
        return replies

    async def hear(self) -> Any:
        """Wait for the next thing that the server says unasked."""
        return await self._connection.read_response(disable_decoding=True)

    def is_there(self) -> bool:
        """Return whether the server has not hung up, as far as this host has heard."""
        if not self._connection.is_connected:
            return False  # or the driver would connect again by itself, and nobody would judge the server
        # There is no public way to ask for the rest. Without this one, a call fails that need not.
        reader = getattr(self._connection, "_reader", None)
        return reader is None or not (reader.at_eof() or reader.exception())

    async def close(self) -> None:
        """Hang up, without a word."""
        await self._connection.disconnect(nowait=True)


async def connect(place: Place) -> Link:
    """Connect, log in and choose the database."""
    driver = import_driver()
    kinds = {"redis": "Connection", "rediss": "SSLConnection", "unix": "UnixDomainSocketConnection"}
    connection = getattr(driver, kinds[place.scheme])(**place.options, socket_timeout=None, protocol=2)
    try:
        await connection.connect()
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return Link(connection)


async def schema_at(place: Place) -> str | None:
    """Return the version of the keys that are there, None for none; writes nothing.

    Raises:
        FlowletError: the server cannot be reached, or does not say.
    """
    import redis.exceptions as driver

    try:
        link = await connect(place)
    except (driver.RedisError, OSError) as error:
        raise unreachable(error, place.name) from error
    try:
        (found,) = await link.talk([("GET", f"{place.prefix}:schema")])
    except (driver.RedisError, OSError) as error:
        raise broken(error, place.name) from error
    finally:
        await link.close()
    if isinstance(found, Exception):
        raise refused(found, place.name) from found
    return None if found is None else found.decode(errors="replace")


async def link_to(place: Place) -> Link:
    """Connect to a server that keeps what is entrusted to it; give it the scripts.

    Raises:
        StoreError: the server is a cluster, a replica, or would lose history; the message says what to set.
        redis.RedisError, OSError: as the driver finds it.
    """
    link = await connect(place)
    try:
        await _judge(link, place)
        await _teach(link, place)
    except BaseException:
        await link.close()
        raise
    return link


async def _judge(link: Link, place: Place) -> None:
    info, config = await link.talk([("INFO",), ("CONFIG", "GET", "*append*")])
    facts = {} if isinstance(info, Exception) else dict(_pairs(info))
    if facts.get("loading", "0") != "0":  # what it says of its files is not true before
        raise meaning("LOADING", place.name)
    if facts.get("redis_mode", "standalone") != "standalone":
        text = f"is a {facts['redis_mode']}, whose keys lie on several servers; use a server that stands alone"
        raise StoreError(f"{place.name} {text}")
    if facts.get("role", "master") != "master":
        raise StoreError(f"{place.name} is a replica, to which nobody else may write; give the address of its primary")
    if facts.get("maxmemory", "0") != "0" and facts.get("maxmemory_policy", "noeviction") != "noeviction":
        text = f"would throw away history when it is full (maxmemory-policy {facts['maxmemory_policy']})"
        raise StoreError(f"{place.name} {text}; set `maxmemory-policy noeviction` there, or `maxmemory 0`")
    link.durability = _durability(facts, {} if isinstance(config, Exception) else _settings(config), place)
    asked = place.durability
    if asked is not None and DURABILITIES.index(link.durability) > DURABILITIES.index(asked):
        raise StoreError(f"{place.name} does not give durability={asked!r}: {_ADVICE[asked]}")


_ADVICE = {
    "power": "set `appendonly yes`, `appendfsync always` and `no-appendfsync-on-rewrite no` there, or ask for less",
    "second": "set `appendonly yes` there, or ask for durability='none'",
}


def _durability(facts: dict[str, str], settings: dict[str, str], place: Place) -> str:
    """Return what the server gives, as far as it says; what it does not say is what the URL states."""
    if facts.get("aof_enabled") == "0" or settings.get("appendonly") == "no":
        return "none"
    if "appendfsync" not in settings:
        return place.durability or "none"
    # Then an fsync is left out while the server rewrites its files, whatever `appendfsync` says.
    if settings["appendfsync"] == "always" and settings.get("no-appendfsync-on-rewrite", "no") == "no":
        return "power"
    return "none" if settings["appendfsync"] == "no" else "second"


def _pairs(info: bytes) -> list[tuple[str, str]]:
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines() if ":" in line)
    return [(key, value.strip()) for key, _, value in lines]


def _settings(config: Sequence[bytes]) -> dict[str, str]:
    words = [word.decode(errors="replace") for word in config]
    return dict(zip(words[::2], words[1::2], strict=True))


async def _teach(link: Link, place: Place) -> None:
    commands: list[Command] = [("SCRIPT", "LOAD", text) for text in SCRIPTS.values()]
    commands.append(("EVALSHA", name_of("open"), 1, f"{place.prefix}:", "", VERSION))
    replies = await link.talk(commands)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    found = replies[-1].decode(errors="replace")
    if found != str(VERSION):
        text = f"keys of version {found!r}; this flowlet knows version {VERSION}. Update flowlet or choose another"
        raise StoreError(f"{place.name} has under the prefix {place.prefix!r} {text} ?prefix=")
