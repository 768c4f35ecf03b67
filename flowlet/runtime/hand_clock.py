"""Runs over a store whose clock is moved by hand, as in tests.

Law: such a clock does not tell when it is moved, so it is read every few milliseconds, and what is due rings then. What
is recorded has its time. A store that goes by real time has no such clock, and nothing here is used.
"""

from __future__ import annotations

import math
import time
from typing import Any

import anyio

from flowlet.runtime.runs import Runs
from flowlet.runtime.tasks import Task, spawn
from flowlet.store import Head

_EVERY = 0.002
"""Seconds of real time between two readings."""


class HandRuns(Runs):
    """The runs of one `Flowlet` over such a store."""

    _follower: Task | None = None
    _pauses: tuple[float, ...] = ()  # until when steps wait for their next attempts

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
    def epoch(self, value: float) -> None:  # pyright: ignore[reportIncompatibleVariableOverride] - as good as it
        """Nothing has to be set."""

    async def pause(self, seconds: float) -> None:
        """Wait between two attempts of a step, by the same clock."""
        until = self.now() + seconds
        await super().pause(0.0)
        self._pauses = (*self._pauses, until)
        try:
            while self.now() < until and not self.closing:
                await super().pause(_EVERY)
        finally:
            left = list(self._pauses)
            left.remove(until)
            self._pauses = tuple(left)

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
                self.notice()
            await anyio.sleep(_EVERY)

    def notice(self) -> None:
        """See what is due now that the clock has been moved."""
        for look in self.clock_moved:
            look()
        self.worker.nudge(beat=True)

    def busy(self) -> list[str]:
        """Return the ids of the runs that are executed here, and wait for no time of the clock."""
        ids = [id for id in self.live if id not in self._dozes.times()]
        waiting = sum(until > self.now() for until in self._pauses)  # whose they are is not known
        return ids[waiting:]

    def is_looking(self) -> bool:
        """Tell whether the worker is about to look for work, or something that rings is about to."""
        if not self.worker.is_idle:
            return True
        now = self.now()
        return any(at <= now for at in self._times())

    async def next_due(self, after: float, until: float) -> float | None:
        """Return the first time at which something falls due, behind one time and not behind another."""
        stored = [head.wake for head in await self._heads(until) if head.wake is not None]
        return min((at for at in (*self._times(), *stored) if after < at <= until), default=None)

    async def has_due(self) -> bool:
        """Tell whether there is something in the store whose time has come."""
        return bool(await self._heads(self.now()))

    def _times(self) -> list[float]:
        own = (*self._alarms.times().values(), *self._dozes.times().values(), *self._pauses)
        return [*own, *(at for times in self.further_times for at in times().values())]

    async def _heads(self, until: float) -> list[Head]:
        """Return what has not ended and falls due up to a time."""
        found: list[Head] = []
        after = 0
        while heads := await self._store.scan(wake_before=math.nextafter(until, math.inf), after=after):
            found += [head for head in heads if head.closed is None]
            after = heads[-1].order
        return found
