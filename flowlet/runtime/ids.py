"""Ids for runs and machines that were not given one.

Law: ids of one process rise, so that their rows are neighbours on a page, and differ from those of
every other process.
"""

from __future__ import annotations

import itertools
import os
import time


class Ids:
    """Makes ids: the process's start in milliseconds, four random letters, a counter."""

    __slots__ = ("_count", "_prefix")

    def __init__(self) -> None:
        self._prefix = f"{int(time.time() * 1000):011x}{os.urandom(4).hex()}"
        self._count = itertools.count(1)

    def next(self) -> str:
        """Return an id that nobody has used."""
        return f"{self._prefix}-{next(self._count):08x}"
