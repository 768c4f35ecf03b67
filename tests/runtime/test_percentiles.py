"""Percentiles within their bounds, in constant memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowlet.runtime.percentiles import Durations


@given(st.lists(st.floats(1e-8, 1e6), min_size=1, max_size=200), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_within_five_percent(seconds: list[float], share: float) -> None:
    durations = Durations()
    for each in seconds:
        durations.note(each)
    ordered = sorted(seconds)
    true = next(s for n, s in enumerate(ordered, 1) if n >= share * len(ordered))
    # Beside the bucket's width, the nanosecond that keeps the logarithm finite.
    assert durations.percentile(share) == pytest.approx(true, rel=0.05, abs=1e-9)
    assert durations.total == len(seconds)


def test_extremes_have_a_bucket() -> None:
    durations = Durations()
    for seconds in (0.0, -1.0, 1e-12, 2.0**31):
        durations.note(seconds)
    assert durations.total == 4
    assert durations.percentile(1.0) == pytest.approx(2.0**31, rel=0.05)
    assert durations.percentile(0.1) < 2e-9


def test_of_nothing_there_are_none() -> None:
    assert Durations().percentile(0.5) == 0.0
