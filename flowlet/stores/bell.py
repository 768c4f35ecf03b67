"""The wake-up of those who watch a store.

Law: ringing costs next to nothing when nobody watches, and no ring is lost between two waits: who
waits says which ring it has seen. One loop at a time; it may be another one after all have left.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

__all__ = ["Bell", "CommitTeller"]


class Bell:
    """A counter of rings that can be waited for.

    Attributes:
        count: how often it has rung.
        waiting: how many wait now.
        on_commit: called after a commit with the number of appends in it, if somebody wants to know.
    """

    __slots__ = ("_event", "count", "on_commit", "waiting")

    on_commit: Callable[[int], None] | None

    def __init__(self) -> None:
        self.on_commit = None
        self.count: int = 0
        self.waiting: int = 0
        self._event: anyio.Event | None = None

    def ring(self) -> None:
        """Raise the counter and wake everybody who waits."""
        self.count += 1
        event = self._event
        if event is not None:
            self._event = None
            event.set()

    async def wait(self, seen: int, timeout: float) -> int:
        """Wait until the counter differs from ``seen`` or ``timeout`` seconds have passed; return it."""
        if self.count != seen or timeout <= 0:
            return self.count
        event = self._event
        if event is None:
            event = self._event = anyio.Event()
        self.waiting += 1
        try:
            with anyio.move_on_after(timeout):
                await event.wait()
        finally:
            self.waiting -= 1
            if not self.waiting:
                # An event belongs to the loop it was waited for on; the next one may run on another.
                self._event = None
        return self.count


class CommitTeller:
    """A store that commits in groups, and tells how large they are."""

    _bell: Bell

    @property
    def on_commit(self) -> Callable[[int], None] | None:
        """Is called on the event loop after a commit, with the number of appends in it; see `flowlet.observing`."""
        return self._bell.on_commit

    @on_commit.setter
    def on_commit(self, tell: Callable[[int], None] | None) -> None:
        self._bell.on_commit = tell
