"""Whether something is known to be short enough to be done in the event loop's own thread.

Law: a pure bookkeeper; seconds and the time come in as arguments.
"""

from __future__ import annotations

__all__ = ["Pace"]

_SHORT = 0.001
"""An average under this many seconds is short: a hop to a thread and back costs a tenth of it or more."""

_OUTLIER = 4 * _SHORT
"""A single longer duration counts as this one: a checkpoint now and then does not make a disk slow."""

_WEIGHT = 0.125
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0


class Pace:
    """A running average of durations, and whether the next may be awaited on the spot.

    It begins with nothing known, which counts as not short. When the average gets too long there is a
    pause; then one more is tried, and the pause doubles for as long as that one, too, is long.
    """

    __slots__ = ("_average", "_pause", "_retry_at")

    def __init__(self) -> None:
        self._average = 2 * _SHORT
        self._pause = _FIRST_PAUSE
        self._retry_at = float("-inf")

    def is_short(self, now: float) -> bool:
        """Return whether to do the next on the spot."""
        return self._average < _SHORT or now >= self._retry_at

    def note_here(self, seconds: float, now: float) -> None:
        """Count one that was done on the spot."""
        if self._average >= _SHORT:
            self._judge_trial(seconds, now)
            return
        self._average += _WEIGHT * (min(seconds, _OUTLIER) - self._average)
        if self._average >= _SHORT:
            self._pause = _FIRST_PAUSE
            self._retry_at = now + self._pause

    def note_elsewhere(self, seconds: float) -> None:
        """Count one that a thread did: a short one was short, a long one may have waited for its turn."""
        if seconds < _SHORT <= self._average:
            self._average = seconds

    def _judge_trial(self, seconds: float, now: float) -> None:
        if seconds < _SHORT:
            self._average = seconds
        else:
            self._retry_at = now + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
