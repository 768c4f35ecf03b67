"""Calling back at times of the store's clock: one task for all of them, which ends when there are none left.

Law: an alarm is a hint that a time has come; what follows from that is on record or is worked out anew.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

import anyio

from flowlet.runtime.tasks import Task, spawn

_LONGEST = 60.0
"""Seconds after which the clock is asked again: it is corrected now and then, and a machine may have slept."""

_FEW = 64
"""So many alarms that were dropped may stay in the heap."""


class Alarms:
    """Alarms by id, at most one for each.

    Args:
        now: returns the time, in seconds of the store's clock.
        ring: is called with the id when an alarm's time has come.
        broke: hears of what ``ring`` raises.
    """

    def __init__(
        self, now: Callable[[], float], ring: Callable[[str], None], broke: Callable[[BaseException], None]
    ) -> None:
        self._now = now
        self._ring = ring
        self._broke = broke
        self._times: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._task: Task | None = None
        self._sooner: anyio.Event | None = None

    def set(self, id: str, at: float) -> None:
        """Ring at a time, in place of the one that was set before."""
        self._times[id] = at
        if len(self._heap) > 2 * len(self._times) + _FEW:
            self._heap = [(time, other) for other, time in self._times.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (at, id))
        if self._task is None:
            self._task = spawn(self._main, self._broke)
        elif self._heap[0] == (at, id) and self._sooner is not None:
            self._sooner.set()

    def set_sooner(self, id: str, at: float) -> None:
        """Ring at a time, unless it is to ring before that anyway."""
        if at < self._times.get(id, float("inf")):
            self.set(id, at)

    def look(self) -> None:
        """See what is due: the clock has been moved."""
        if self._sooner is not None:
            self._sooner.set()

    def times(self) -> Mapping[str, float]:
        """Return when they are to ring, by id."""
        return self._times

    def drop(self, id: str) -> None:
        """Ring no more for this id."""
        self._times.pop(id, None)

    def stop(self) -> None:
        """Drop all of them."""
        self._times.clear()
        self._heap.clear()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _main(self) -> None:
        while self._times:
            at, id = self._heap[0]
            if self._times.get(id) != at:
                heapq.heappop(self._heap)
            elif (left := at - self._now()) > 0:
                self._sooner = anyio.Event()
                with anyio.move_on_after(min(left, _LONGEST)):
                    await self._sooner.wait()
            else:
                heapq.heappop(self._heap)
                del self._times[id]
                try:
                    self._ring(id)
                except Exception as error:  # the others are to ring even so
                    self._broke(error)
        self._heap.clear()
        self._task = None
