"""How long many things took, in bounded memory: a histogram with buckets of equal ratio.

Law: constant size whatever was noted; a percentile is within 5 percent of the true one. `Crew` notes into
`Durations.counts` itself, since a call for each item would cost more than the item.
"""

from __future__ import annotations

from math import log2

PER_DOUBLING = 16
"""Buckets between a duration and its double."""

LEAST = 1e-9
"""Seconds added to each duration before its logarithm is taken: a clock may not have moved."""

_SIZE = 1024  # from 1 ns, bucket -479, to 2^31 s, bucket 496; negative ones count from the end, as list indexes do


class Durations:
    """How often which duration was noted.

    Attributes:
        counts: by bucket; a duration belongs to ``int(log2(seconds + LEAST) * PER_DOUBLING)``.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: list[int] = [0] * _SIZE

    def note(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[int(log2(max(seconds, 0.0) + LEAST) * PER_DOUBLING)] += 1

    @property
    def total(self) -> int:
        """How many were noted."""
        return sum(self.counts)

    def percentile(self, share: float) -> float:
        """Return the seconds within which this share of all ended; 0.0 when there are none.

        Args:
            share: from 0 to 1.
        """
        left = share * self.total
        for bucket in range(-_SIZE // 2, _SIZE // 2):
            left -= self.counts[bucket]
            if left <= 0 and self.counts[bucket]:
                return _middle(bucket)
        return 0.0


def _middle(bucket: int) -> float:
    """Return the middle of a bucket: `int` rounds towards zero, so the one at one second is of double width."""
    offset = 0.5 if bucket > 0 else -0.5 if bucket < 0 else 0.0
    return float(2 ** ((bucket + offset) / PER_DOUBLING))
