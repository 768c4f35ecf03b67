"""A time that several processes share, in a file beside the database, and a store that goes by it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from killing import Kill, KillingStore

from flowlet.stores.sqlite import SQLiteStore


class FileClock:
    """A time, in seconds, that several processes share."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if not os.pread(self._file, 8, 0):
            self.set(1000.0)

    def __call__(self) -> float:
        (time,) = struct.unpack("d", os.pread(self._file, 8, 0))
        return float(time)

    def set(self, time: float) -> None:
        os.pwrite(self._file, struct.pack("d", time), 0)


class ClockedStore(KillingStore):
    """A killing store that goes by a clock in a file beside it."""

    def __init__(self, database: Path, kill: Kill | None) -> None:
        self.clock = FileClock(database.with_suffix(".clock"))
        super().__init__(SQLiteStore(database, clock=self.clock), kill)
