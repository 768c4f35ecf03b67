"""What a Redis server's errors mean to a caller: each becomes one of `flowlet.errors`, with advice.

Law: no exception of the driver passes this store; it is the ``__cause__`` of what does. Nothing here is
told more of a server than its name, which has no password.
"""

from __future__ import annotations

from typing import Final

from flowlet.errors import FlowletError, StoreError, StoreUnavailable

__all__ = ["broken", "is_script_unknown", "meaning", "refused", "unreachable"]

_REFUSED: Final = (
    ("WRONGPASS", "it does not take this user name or password; correct the URL"),
    ("invalid username-password", "it does not take this user name or password; correct the URL"),
    ("invalid password", "it does not take this password; correct the URL"),
    ("without any password configured", "it has no password, but the URL gives one; leave it out"),
    ("no password is set", "it has no password, but the URL gives one; leave it out"),
    ("NOAUTH", "it asks for a password; give it in the URL, as in redis://:password@host"),
    ("Authentication required", "it asks for a password; give it in the URL, as in redis://:password@host"),
    ("NOPERM", "the user may not do what a store needs; allow it all commands but @admin, and ~PREFIX:* &PREFIX:*"),
    ("can't run this command", "the user may not do what a store needs; allow it all commands but @admin"),
    ("No permissions", "the user may not use the keys or channels of this prefix; allow ~PREFIX:* &PREFIX:*"),
    ("can't access at least one", "the user may not use the keys of this prefix; allow ~PREFIX:*"),
    ("unknown command", "it lacks a command that a store needs; use Redis 6 or newer"),
    ("Unknown Redis command", "it lacks a command that a store needs; use Redis 6 or newer"),
    ("DB index is out of range", "it has no database of this number; correct the URL"),
    ("MOVED", "it is part of a cluster; use one that stands alone"),
    ("WRONGTYPE", "somebody else uses keys of this prefix; choose another one: ?prefix=..."),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not trusted; name the authority: ?ssl_ca_certs=file"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS on this port; correct the port, or write redis://"),
)
"""Words of a server or of the driver, and what to do; trying again would not help."""

_NOT_NOW: Final = (
    ("OOM", "it has reached its `maxmemory`; raise it or prune"),
    ("used memory > 'maxmemory'", "it has reached its `maxmemory`; raise it or prune"),
    ("MISCONF", "it cannot write to its disk; make room there"),
    ("READONLY", "it has become a replica; connect to the primary"),
    ("read only replica", "it has become a replica; connect to the primary"),
    ("NOREPLICAS", "it lacks the replicas that it was told to ask for"),
    ("LOADING", "it still reads its data from the disk after a start"),
    ("loading the dataset", "it still reads its data from the disk after a start"),
    ("BUSY", "it is busy with somebody's script"),
    ("max number of clients", "it has too many clients; raise its `maxclients`"),
)
"""The same for what may pass; nothing was stored."""


def meaning(words: str, name: str) -> FlowletError:
    """Return the error that tells a caller what these words of a server mean."""
    for known, text in _NOT_NOW:
        if known in words:
            return StoreUnavailable(f"the server {name} refused: {text}. Nothing was stored; try again")
    for known, text in _REFUSED:
        if known in words:
            return StoreError(f"the server {name} refused: {text}")
    return StoreError(f"the server {name} refused: {words}")


def refused(error: BaseException, name: str) -> FlowletError:
    """Return the error that tells a caller what this reply of the server means."""
    import redis.exceptions as driver

    # The driver takes the first word off these.
    for kind, word in (
        (driver.OutOfMemoryError, "OOM"),
        (driver.ReadOnlyError, "READONLY"),
        (driver.NoPermissionError, "NOPERM"),
        (driver.AuthenticationError, "WRONGPASS"),
        (driver.BusyLoadingError, "LOADING"),
    ):
        if isinstance(error, kind) and not _known(str(error)):
            return meaning(word, name)
    return meaning(str(error), name)


def unreachable(error: Exception, name: str) -> FlowletError:
    """Return the error of a connection that did not come about; nothing was asked of the server."""
    import redis.exceptions as driver

    if isinstance(error, FlowletError):
        return error
    if isinstance(error, driver.ResponseError | driver.AuthenticationError | driver.BusyLoadingError):
        return refused(error, name)
    if found := _known(str(error)):
        return meaning(found, name)
    text = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    return StoreUnavailable(f"the server {name} cannot be reached ({text}); nothing was stored, try again")


def broken(error: Exception | None, name: str) -> FlowletError:
    """Return the error of a connection that broke, or was given up, before the server had answered."""
    import redis.exceptions as driver

    if isinstance(error, driver.BusyLoadingError):
        return refused(error, name)
    if error is None:
        text = "was no longer listened to, as the event loop ended"
    elif isinstance(error, TimeoutError):
        text = "did not answer in time"
    else:
        text = f"hung up ({str(error) or type(error).__name__})"
    return StoreUnavailable(f"the server {name} {text}; whether this was stored is not known, try again")


def _known(words: str) -> str | None:
    return next((known for known, _ in (*_NOT_NOW, *_REFUSED) if known in words), None)


def is_script_unknown(error: object) -> bool:
    """Return whether the server was not, or is no longer, given the script that it was asked to run."""
    import redis.exceptions as driver

    return isinstance(error, driver.NoScriptError)
