"""What the URL of a Redis store says.

Law: no I/O, and no password in any message: what is shown of a URL is put together from its other parts.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from flowlet.errors import ConfigError

__all__ = ["DURABILITIES", "Place"]

DURABILITIES = ("power", "second", "none")
"""What may be asked of a server, the most first; see `flowlet.stores.redis.RedisStore`."""

_OWN = ("prefix", "durability")
_TEXTS = (
    "username",
    "password",
    "client_name",
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_ca_data",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
)
_SECONDS = ("socket_timeout", "socket_connect_timeout")
_FLAGS = ("socket_keepalive", "ssl_check_hostname")
_NO = ("", "0", "f", "false", "n", "no")
_QUOTE = "; write '/', '?', '#', '@' and '%' of a password, or of an option, as %2F, %3F, %23, %40 and %25"
_FORMS = "'redis://host:port/0?prefix=flowlet', 'rediss://...' with TLS and 'unix:///path/of/socket?db=0'"


class Place:
    """A server, a database of it and a prefix of keys.

    Args:
        url: as `flowlet.stores.open_store` takes it.

    Attributes:
        scheme: ``"redis"``, ``"rediss"`` or ``"unix"``.
        options: the arguments of redis-py's connection, the password among them.
        prefix: of all keys.
        durability: one of `DURABILITIES`, or None when nothing is asked for.
        timeout: seconds after which a server that does not answer counts as gone.
        name: the server and the database as they may be shown.

    Raises:
        ConfigError: the URL has another form; the message names the part and what is allowed.
    """

    __slots__ = ("durability", "name", "options", "prefix", "scheme", "timeout")

    name: str
    scheme: str

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {"socket_connect_timeout": 5.0, "socket_keepalive": True}
        try:
            parts = urlsplit(url)
            self.scheme, port = parts.scheme, parts.port
        except ValueError:  # its text may have a piece of the password
            raise ConfigError(
                f"the URL of the Redis store cannot be read{_QUOTE}; the known forms are {_FORMS}"
            ) from None
        if self.scheme not in ("redis", "rediss", "unix"):
            raise ConfigError(f"no Redis store has a URL with the scheme {self.scheme!r}; the known forms are {_FORMS}")
        if parts.fragment or "@" in parts.path + parts.query:  # what follows the host may be a piece of it, too
            raise ConfigError(f"the URL of the Redis store has a '#', or an '@' behind the host{_QUOTE}")
        self.prefix: str = "flowlet"
        self.durability: str | None = None
        self._take_options(parts.query, options)
        if parts.username:
            options["username"] = unquote(parts.username)
        if parts.password:
            options["password"] = unquote(parts.password)
        if self.scheme == "unix":
            self._take_path(unquote(parts.path), options)
        else:
            self._take_host(unquote(parts.hostname or "localhost"), port or 6379, parts.path, options)
        self.timeout: float = options.pop("socket_timeout", 10.0)
        self.options: dict[str, Any] = options

    def __repr__(self) -> str:
        return f"Place({self.name!r}, prefix={self.prefix!r})"

    def _take_path(self, path: str, options: dict[str, Any]) -> None:
        if not path:
            raise ConfigError(f"a 'unix://' URL must name a socket; the known forms are {_FORMS}")
        options["path"] = path
        options.pop("socket_keepalive")
        self.name = f"unix://{path}?db={options.setdefault('db', 0)}"

    def _take_host(self, host: str, port: int, path: str, options: dict[str, Any]) -> None:
        number = path.removeprefix("/")
        if not re.fullmatch(r"[0-9]*", number, re.ASCII):
            raise ConfigError(f"{number!r} is no database of a Redis server; write its number, 0 as a rule")
        options |= {"host": host, "port": port, "db": options.get("db", int(number or 0))}
        shown = f"[{host}]" if ":" in host else host
        self.name = f"{self.scheme}://{shown}:{port}/{options['db']}"

    def _take_options(self, query: str, options: dict[str, Any]) -> None:
        for key, value in parse_qsl(query, keep_blank_values=True):
            if key == "prefix":
                self.prefix = _prefix(value)
            elif key == "durability":
                self.durability = _durability(value)
            elif key == "db":
                options[key] = int(_number(key, value, r"[0-9]{1,9}"))
            elif key in _SECONDS:
                options[key] = float(_number(key, value, r"[0-9]{1,6}(\.[0-9]*)?"))
            elif key in _FLAGS:
                options[key] = value.lower() not in _NO
            elif key in _TEXTS:
                options[key] = value
            else:
                known = ", ".join((*_OWN, "db", *_SECONDS, *_FLAGS, *_TEXTS))
                raise ConfigError(f"unknown option {key!r} of a Redis URL; there are {known}")
        if self.scheme != "rediss" and (misplaced := [key for key in options if key.startswith("ssl_")]):
            raise ConfigError(f"the option {misplaced[0]!r} needs TLS; write 'rediss://'")


def _prefix(value: str) -> str:
    # Without a colon, so that no prefix can reach into the keys of another one.
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        raise ConfigError(f"prefix={value!r} is not allowed; use up to 64 letters, digits, '_', '-' and '.'")
    return value


def _durability(value: str) -> str:
    if value not in DURABILITIES:
        raise ConfigError(f"durability={value!r} is not known; allowed are {', '.join(map(repr, DURABILITIES))}")
    return value


def _number(key: str, value: str, form: str) -> str:
    if not re.fullmatch(form, value, re.ASCII) or (key != "db" and float(value) == 0):
        raise ConfigError(f"{key}={value!r} is no number that is allowed there")
    return value
