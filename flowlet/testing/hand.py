"""A clock that is moved by hand.

Law: it tells nobody when it is moved; who goes by it looks. It needs no pytest.
"""

from __future__ import annotations

from datetime import timedelta


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
        self.time: float = 1000.0

    def __call__(self) -> float:
        """Return the time, in seconds since the epoch."""
        return self.time

    async def advance(self, units: float | timedelta) -> None:
        """Let so many units pass, or so much time; runs and machines notice within some milliseconds."""
        self.time += units.total_seconds() if isinstance(units, timedelta) else units * self.unit

    def about(self, seconds: float) -> object:
        """Return what a time is compared with that the store took at ``seconds``."""
        return seconds
