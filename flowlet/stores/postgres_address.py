"""Which database, and which schema in it: the URL of a PostgreSQL store, taken apart.

Law: a password that is in the URL leaves this module only towards the driver. What people get to see,
messages and ``repr``, is `Address.shown`, and `Address.clean` takes the password out of other people's texts.
An option is known or refused, and the schema's name is an identifier before it is part of any SQL.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from flowlet.errors import ConfigError

__all__ = ["Address"]

_FORM = "postgresql://user:password@host:5432/database?schema=flowlet"
_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_HOSTS = re.compile(r"(\[[0-9A-Fa-f:.%]*\]|[^:\[\]@,]*)(:\d*)?(,(\[[0-9A-Fa-f:.%]*\]|[^:\[\]@,]*)(:\d*)?)*")
_DRIVER_OPTIONS = frozenset(
    (
        *("application_name", "database", "dbname", "gsslib", "host", "krbsrvname", "passfile", "password", "port"),
        *("service", "ssl_max_protocol_version", "ssl_min_protocol_version", "sslcert", "sslcrl", "sslkey"),
        *("sslmode", "sslnegotiation", "sslpassword", "sslrootcert", "target_session_attrs", "user"),
    )
)
_OWN_OPTIONS = ("schema", "pool_size", "connect_timeout")
_MOST_CONNECTIONS = 1000


class Address:
    """A database, a schema in it, and how to get there.

    Args:
        url: see `flowlet.stores.postgres.PostgresStore`.
        schema: instead of the URL's.
        pool_size: instead of the URL's.

    Attributes:
        dsn: for the driver; has the password.
        schema: the name of the schema.
        pool_size: connections for reading, and as many for transactional steps.
        connect_timeout: seconds for one attempt to connect.
        shown: the URL as people may see it.

    Raises:
        ConfigError: the URL or one of its options is wrong; no message has the password.
    """

    __slots__ = ("_secrets", "connect_timeout", "dsn", "pool_size", "schema", "shown")

    def __init__(self, url: str, *, schema: str | None = None, pool_size: int | None = None) -> None:
        user, secret, hosts, database, query = _parts(url)
        options = _options(query)
        self.schema: str = _checked_schema(options.pop("schema", "flowlet") if schema is None else schema)
        options.pop("schema", None)
        self.pool_size: int = _whole(
            "pool_size", options.pop("pool_size", "4") if pool_size is None else str(pool_size)
        )
        options.pop("pool_size", None)
        self.connect_timeout: float = float(_whole("connect_timeout", options.pop("connect_timeout", "10")))
        secrets = [secret, *(options[key] for key in ("password", "sslpassword") if key in options)]
        self._secrets = tuple(secret for secret in secrets if secret)
        place = hosts + (f"/{quote(database, safe='')}" if database else "")
        at = f"{quote(user, safe='')}@" if user else ""
        self.shown: str = f"postgresql://{at}{place}?schema={self.schema}"
        login = f"{quote(user, safe='')}:{quote(secret, safe='')}@" if secret else at
        self.dsn: str = f"postgresql://{login}{place}" + (f"?{urlencode(options)}" if options else "")

    def __repr__(self) -> str:
        return f"<{self.shown}>"

    def clean(self, text: str) -> str:
        """Return the text without the password, should it be in it."""
        for secret in self._secrets:
            text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
        return text


def _parts(url: str) -> tuple[str, str, str, str, str]:
    """Return user, password, hosts, database and query of a URL."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        raise ConfigError(f"the URL of a PostgreSQL store has the form {_FORM}")
    try:
        split = urlsplit(f"postgresql://{rest}")
    except ValueError:
        raise _unreadable() from None
    login, at, hosts = split.netloc.rpartition("@")
    user, _, secret = login.partition(":")
    # An unescaped character of a password would end up in another part, and in somebody's error message.
    if "@" in login or "@" in split.path or split.fragment or not _HOSTS.fullmatch(hosts) or (at and not login):
        raise _unreadable()
    return unquote(user), unquote(secret), hosts, unquote(split.path[1:]), split.query


def _unreadable() -> ConfigError:
    text = "in the user, the password and the database write @ as %40, : as %3A, / as %2F, ? as %3F, # as %23, % as %25"
    return ConfigError(f"this is not a URL of the form {_FORM}; {text}")


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, separator, _ = pair.partition("=")
        if not separator or not re.fullmatch(r"\w+", key):
            raise _unreadable()
        if key not in _DRIVER_OPTIONS and key not in _OWN_OPTIONS:
            known = ", ".join((*_OWN_OPTIONS, *sorted(_DRIVER_OPTIONS)))
            raise ConfigError(f"unknown option {key!r} of a postgresql URL; the options are {known}")
    options.update(parse_qsl(query, keep_blank_values=True))
    return options


def _checked_schema(name: str) -> str:
    if not _SCHEMA.fullmatch(name) or name.lower().startswith("pg_") or name.lower() == "information_schema":
        allowed = "letters, digits and underscores, at most 63, no digit first, and not PostgreSQL's own"
        raise ConfigError(f"schema={name!r} is no name for a schema; allowed are {allowed}")
    return name


def _whole(option: str, value: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,3}", value) or int(value) > _MOST_CONNECTIONS:
        raise ConfigError(f"{option}={value!r} is not allowed; give a whole number from 1 to {_MOST_CONNECTIONS}")
    return int(value)
