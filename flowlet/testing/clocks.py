"""The time of the stores under test: moved by hand, or waited for.

Law: the checks count time in units and never in seconds, so that a store with a clock of its own (a
server's) passes the same checks, only later.
"""

from __future__ import annotations

import time
from datetime import timedelta

import anyio
import pytest

__all__ = ["Clock", "ServerClock"]


class Clock:
    """A store's time, in seconds, moved by hand: `Flowlet` goes by it as well, so that days pass in milliseconds.

    Attributes:
        unit: seconds; the checks use leases of 10 units and waits of whole ones.

    Example:
        >>> import anyio
        >>> from datetime import timedelta
        >>> from flowlet import Flowlet, Run, provided
        >>> from flowlet.stores.memory import MemoryStore
        >>> from flowlet.testing import Clock
        >>> clock = Clock()
        >>> flow = Flowlet(MemoryStore(clock=clock))
        >>> @flow.saga
        ... async def remind(run: Run = provided) -> str:
        ...     await run.sleep(timedelta(days=30))
        ...     return "a month later"
        >>> async def main() -> None:
        ...     async with flow:
        ...         handle = await flow.start(remind)
        ...         while await handle.status() != "waiting":
        ...             await anyio.sleep(0.001)
        ...         await clock.advance(timedelta(days=30))
        ...         print(await handle.result())
        >>> anyio.run(main)
        a month later
    """

    unit: float = 1.0

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        """Return the time, in seconds since the epoch."""
        return self.time

    async def advance(self, units: float | timedelta) -> None:
        """Let so many units pass, or so much time; runs and machines notice within some milliseconds."""
        self.time += units.total_seconds() if isinstance(units, timedelta) else units * self.unit

    def about(self, seconds: float) -> object:
        """Return what a time is compared with that the store took at ``seconds``."""
        return seconds


class ServerClock(Clock):
    """The time of a store that has a clock of its own: it passes by itself."""

    unit = 0.3  # short, and yet long against the delays of a loaded machine

    def __call__(self) -> float:
        """Return this host's time, for stores that ask for one all the same."""
        return time.time()

    async def advance(self, units: float | timedelta) -> None:
        """Wait until so many units have passed, or so much time."""
        await anyio.sleep(units.total_seconds() if isinstance(units, timedelta) else units * self.unit)

    def about(self, seconds: float) -> object:
        """Return what a time is compared with that the store took at about ``seconds``."""
        return pytest.approx(seconds, rel=0, abs=10)
