"""Runs over a store whose clock is moved by hand, as in tests.

Law: such a clock does not tell when it is moved, so it is read every few milliseconds, and what is due rings then. What
is recorded has its time. A store that goes by real time has no such clock, and nothing here is used.
"""

from __future__ import annotations

import time
from typing import Any

import anyio

from flowlet.runtime.runs import Runs
from flowlet.runtime.tasks import Task, spawn

_EVERY = 0.002
"""Seconds of real time between two readings."""


class HandRuns(Runs):
    """The runs of one `Flowlet` over such a store."""

    _follower: Task | None = None

    def now(self) -> float:
        """Return the time of the store's clock."""
        clock: Any = self._store
        read: float = clock.clock()
        return read

    @property
    def epoch(self) -> float:
        """What is to be added to a reading of ``perf_counter`` that was taken before, at most the clock's time."""
        return self.now() - time.perf_counter()

    @epoch.setter
    def epoch(self, value: float) -> None:
        """Nothing has to be set."""

    async def pause(self, seconds: float) -> None:
        """Wait between two attempts of a step, by the same clock."""
        until = self.now() + seconds
        await super().pause(0.0)
        while self.now() < until and not self.closing:
            await super().pause(_EVERY)

    async def open(self) -> None:
        """Begin, and follow the clock."""
        await super().open()
        self._follower = spawn(self._follow, self._alarms_broke)

    async def close(self, grace: float) -> None:
        """Leave, and follow the clock no longer."""
        try:
            await super().close(grace)
        finally:
            if self._follower is not None:
                self._follower.cancel()
                self._follower = None

    async def _follow(self) -> None:
        seen: float | None = None
        while True:
            reading = self.now()
            if reading != seen:
                seen = reading
                for look in self.clock_moved:
                    look()
                self.worker.nudge(beat=True)
            await anyio.sleep(_EVERY)
