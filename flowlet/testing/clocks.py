"""The time of the stores under test: moved by hand, or waited for.

Law: the checks count time in units and never in seconds, so that a store with a clock of its own (a
server's) passes the same checks, only later.
"""

from __future__ import annotations

import time
from datetime import timedelta

import anyio
import pytest

from flowlet.testing.hand import Clock

__all__ = ["Clock", "ServerClock"]


class ServerClock(Clock):
    """The time of a store that has a clock of its own: it passes by itself."""

    unit: float = 0.3  # short, and yet long against the delays of a loaded machine

    def __call__(self) -> float:
        """Return this host's time, for stores that ask for one all the same."""
        return time.time()

    async def advance(self, units: float | timedelta) -> None:
        """Wait until so many units have passed, or so much time."""
        await anyio.sleep(units.total_seconds() if isinstance(units, timedelta) else units * self.unit)

    def about(self, seconds: float) -> object:
        """Return what a time is compared with that the store took at about ``seconds``."""
        return pytest.approx(seconds, rel=0, abs=10)
