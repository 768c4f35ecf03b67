"""Outcomes on their way from the workers to who iterates over them.

Law: putting one in never waits; taking the next item does, while `room` outcomes have not been taken. So a slow
consumer holds the workers up, and nothing piles up. In order, a gap is waited for, and what is behind it counts.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import anyio

from flowlet.core.bulk import Outcome


class Outlet:
    """Outcomes that nobody has taken yet.

    Args:
        room: so many of them hold the workers up.
        ordered: they are given out in the order of the items.
    """

    def __init__(self, room: int, ordered: bool) -> None:
        self._room = room
        self._ordered = ordered
        self._ready: deque[Outcome[Any, Any]] = deque()
        self._early: dict[int, Outcome[Any, Any]] = {}
        self._next = 0
        self._is_over = False
        self._arrived: anyio.Event | None = None
        self._left: anyio.Event | None = None

    @property
    def is_full(self) -> bool:
        """Whether whoever puts outcomes in is to wait for `left` before the next item."""
        return len(self._ready) + len(self._early) >= self._room and not self._is_over

    def put(self, outcome: Outcome[Any, Any]) -> None:
        """Add one."""
        if self._ordered:
            self._early[outcome.index] = outcome
            while (following := self._early.pop(self._next, None)) is not None:
                self._ready.append(following)
                self._next += 1
        else:
            self._ready.append(outcome)
        if self._ready:
            self._notify()

    def end(self) -> None:
        """Say that none follows; what waits behind a gap is given out, too."""
        self._is_over = True
        self._ready.extend(self._early.pop(index) for index in sorted(self._early))
        self._notify()
        self._make_way()

    async def wait_for_room(self) -> None:
        """Wait until an item may be begun."""
        while self.is_full:
            if self._left is None:
                self._left = anyio.Event()
            await self._left.wait()

    async def take(self) -> Outcome[Any, Any] | None:
        """Wait for the next one; None when there is none any more."""
        while not self._ready:
            if self._is_over:
                return None
            if self._arrived is None:
                self._arrived = anyio.Event()
            await self._arrived.wait()
        outcome = self._ready.popleft()
        if self._left is not None and not self.is_full:
            self._make_way()
        return outcome

    def _notify(self) -> None:
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None

    def _make_way(self) -> None:
        if self._left is not None:
            self._left.set()
            self._left = None
