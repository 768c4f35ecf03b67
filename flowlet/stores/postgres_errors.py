"""What the errors of PostgreSQL, and of the way to it, mean to a caller: each becomes one of `flowlet.errors`.

Law: no exception of the driver passes this store; it is the ``__cause__`` of what does. No message has a password.
"""

from __future__ import annotations

import ssl

from flowlet.errors import ConfigError, EncodeError, FlowletError, PayloadTooLarge, StoreError, StoreUnavailable
from flowlet.stores.postgres_address import Address
from flowlet.stores.postgres_driver import asyncpg

__all__ = ["DRIVER_ERRORS", "is_cut", "is_passing", "is_starting", "translated"]

DRIVER_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
    UnicodeError,
    OverflowError,
)
"""What the driver raises: the last two for a value that PostgreSQL has no form for."""

_CUT = ("08", "57P01", "57P02", "57P03", "57P04", "58", "F0")
_STARTING = ("57P01", "57P02", "57P03", "53300", "08")
_PASSING = ("40001", "40P01")

_MEANINGS: tuple[tuple[str, type[StoreError], str], ...] = (
    ("40", StoreUnavailable, "other transactions were in the way again and again; try again"),
    ("28P01", StoreError, "the user or the password is wrong; correct the URL, PGPASSWORD or the password file"),
    ("28", StoreError, "the server does not let this user in; see its pg_hba.conf and the user's rights"),
    ("3D000", StoreError, "there is no such database; create it, or name another one in the URL"),
    (
        "42501",
        StoreError,
        "this user lacks a right; let an administrator grant it, or give flowlet a schema of its own",
    ),
    (
        "25006",
        StoreError,
        "the database, or this user, is read-only; connect to the primary server, as a user who writes",
    ),
    ("3F", StoreError, "the schema is gone; restore it, or let the process open the store anew"),
    ("42", StoreError, "tables or functions in the schema are not as flowlet made them; restore the schema"),
    ("53100", StoreUnavailable, "the disk of the server is full; make room and try again, nothing was lost"),
    ("53200", StoreUnavailable, "the server is out of memory; try again when it has some"),
    ("53300", StoreUnavailable, "the server has too many connections; allow more, or lower pool_size"),
    ("53", StoreUnavailable, "the server is out of resources; try again"),
    ("55P03", StoreUnavailable, "somebody holds a lock on flowlet's tables; find it in pg_locks, or try again"),
    ("57014", StoreUnavailable, "the statement was cancelled on the server; try again"),
    ("57", StoreUnavailable, "the server is stopping or starting; try again"),
    ("58", StoreUnavailable, "the server failed to read or write its files; see its log, then try again"),
    ("XX", StoreError, "the server reports damage; see its log, and restore a backup if need be"),
    ("08", StoreUnavailable, "the connection was lost; try again"),
    ("54", PayloadTooLarge, "a value is too large; store it elsewhere and keep a reference"),
    ("22", EncodeError, "PostgreSQL cannot store this; use text without NUL, bytes and 64-bit numbers"),
    ("0A", StoreError, "the server cannot do what flowlet asks for; it must be PostgreSQL 12 or newer"),
)


def is_passing(error: BaseException) -> bool:
    """Return whether it is nobody's fault and may work at once: a deadlock, a failed serialization."""
    return _state(error) in _PASSING


def is_starting(error: BaseException) -> bool:
    """Return whether a server that stops and starts, or is full, was not there for a connection just now."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return False
    return isinstance(error, (OSError, TimeoutError)) or _state(error).startswith(_STARTING)


def is_cut(error: BaseException) -> bool:
    """Return whether a connection that raised this must not be used any more."""
    if isinstance(error, (asyncpg.PostgresError, asyncpg.InterfaceError)):
        state = _state(error)
        # Not to be written to: perhaps another server is the primary one by now.
        return state.startswith(_CUT) or state == "25006"
    return not isinstance(error, (UnicodeError, OverflowError))


def translated(error: BaseException, address: Address) -> FlowletError:
    """Return the error that tells a caller what this one (of `DRIVER_ERRORS`) means."""
    state, what = _state(error), address.clean(str(error)) or type(error).__name__
    for prefix, kind, meaning in _MEANINGS:
        if state.startswith(prefix):
            return kind(f"{address.shown}: {meaning} ({what})")
    if isinstance(error, asyncpg.ClientConfigurationError):
        return ConfigError(f"{address.shown}: the driver does not accept a setting ({what}); correct it")
    if (
        isinstance(error, (asyncpg.DataError, UnicodeError, OverflowError))
        or type(error) is asyncpg.exceptions.DataError
    ):
        return EncodeError(
            f"{address.shown}: PostgreSQL cannot store this; use text without NUL, bytes and 64-bit numbers"
        )
    if isinstance(error, TimeoutError):
        return StoreUnavailable(f"{address.shown}: the server did not answer in time; try again when it does")
    if isinstance(error, ssl.SSLCertVerificationError):
        return StoreError(
            f"{address.shown}: the server's certificate is not trusted ({what}); see sslrootcert and sslmode"
        )
    if isinstance(error, (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        return StoreUnavailable(
            f"{address.shown}: the server cannot be reached ({what}); see that it runs, then try again"
        )
    return StoreError(f"{address.shown}: PostgreSQL refused ({what})")


def _state(error: BaseException) -> str:
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else "?"
