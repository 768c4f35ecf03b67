"""Knowing at once that a worker process of this host has died.

Law: a worker holds a lock of the operating system on a file of its own while it lives; the kernel
drops the lock with the process, however it dies. Another process concludes "dead" only from a file
that exists and can be locked; no file, no rights or no such locks mean "unknown", and then the lease
in the store decides.
"""

from __future__ import annotations

import contextlib
import os
import stat
import string
import zlib
from typing import TYPE_CHECKING, Any

from flowlet.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock; the lease alone decides there
    fcntl = None  # type: ignore[assignment]

_IN_NAMES = frozenset(string.ascii_letters + string.digits + "._-")
_LONGEST_NAME = 64


def new_worker_id(name: str | None = None) -> str:
    """Return an identity for this start of this process; its first part tells the host.

    Args:
        name: a part of it, for people: processes of one name are as different as any.
    """
    return "-".join(filter(None, (_host(), name, f"{os.getpid():x}", os.urandom(6).hex())))


def check_name(name: str | None) -> str | None:
    """Refuse a name that does not fit into an identity, which is also the name of a file.

    Raises:
        ConfigError: it does not.
    """
    if name is None or (isinstance(name, str) and len(name) <= _LONGEST_NAME and name and set(name) <= _IN_NAMES):
        return name
    raise ConfigError(
        f"name: a worker's name is 1 to {_LONGEST_NAME} of the letters a-z and A-Z, digits, '.', '_' and '-', "
        f"not {name!r}"
    )


def _host() -> str:
    import socket
    from pathlib import Path

    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        boot = ""
    return f"{zlib.crc32(f'{socket.gethostname()} {boot}'.encode()):08x}"


def _directory() -> Path | None:
    """Return a folder that only this user can write to, made if need be."""
    import tempfile
    from pathlib import Path

    owner = os.getuid() if hasattr(os, "getuid") else 0
    path = Path(tempfile.gettempdir()) / f"flowlet-workers-{owner}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        info = path.lstat()
    except OSError:
        return None
    safe = stat.S_ISDIR(info.st_mode) and info.st_uid == owner and not info.st_mode & 0o022
    return path if safe else None


class Presence:
    """The lock that says "this worker lives"."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self._file: Any = None
        self._folder = _directory() if fcntl is not None else None

    def hold(self) -> None:
        """Take the lock; without a place for it, do nothing."""
        if self._folder is None:
            return
        try:
            self._file = open(self._folder / self.worker, "wb")  # noqa: SIM115 - held while the worker lives
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # pyright: ignore[reportOptionalMemberAccess]
        except OSError:
            self._file = None

    def drop(self) -> None:
        """Give the lock back and remove its file."""
        if self._file is not None and self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / self.worker).unlink()
            self._file.close()
            self._file = None

    def sees(self, worker: str) -> bool:
        """Tell whether the death of another worker would be seen here: it has a lock on this host."""
        return self._is_near(worker) and self._folder is not None and (self._folder / worker).exists()

    def _is_near(self, worker: str) -> bool:
        return worker.partition("-")[0] == self.worker.partition("-")[0]

    def is_dead(self, worker: str) -> bool:
        """Tell whether another worker is known to have died on this host; see `forget`."""
        if self._folder is None or worker == self.worker or not self._is_near(worker):
            return False
        path = self._folder / worker
        try:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # pyright: ignore[reportOptionalMemberAccess]
        except OSError:
            return False
        return True

    def forget(self, worker: str) -> None:
        """Remove what a dead worker has left, once nothing is its own any more: until then others must see it."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / worker).unlink()
