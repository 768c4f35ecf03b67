"""Whether and when a failed step is tried again: flowlet's own policy, and tenacity's objects."""

from __future__ import annotations

from typing import Any

import pytest
import tenacity

from flowlet import Retry
from flowlet.errors import DecodeError, EncodeError, PayloadTooLarge
from flowlet.runtime.retrying import next_delay


def delays(policy: Retry, error: Exception | None = None, count: int = 10) -> list[float | None]:
    """Return what follows the first, second ... failed attempt."""
    return [next_delay(policy, n, error or OSError("x"), 0.0) for n in range(1, count + 1)]


def test_no_policy_is_no_further_attempt() -> None:
    assert next_delay(None, 1, OSError("x"), 0.0) is None


def test_attempts_are_counted_in_total() -> None:
    assert delays(Retry(attempts=1), count=2) == [None, None]
    assert [d is not None for d in delays(Retry(attempts=5, wait=1), count=6)] == [True] * 4 + [False] * 2


def test_waits_grow_by_the_backoff_up_to_the_longest() -> None:
    assert delays(Retry(attempts=9, wait=1, backoff=2, max_wait=10), count=6) == [1, 2, 4, 8, 10, 10]
    assert delays(Retry(attempts=9, wait=0.5, backoff=1), count=3) == [0.5, 0.5, 0.5]
    assert delays(Retry(attempts=9, wait=0), count=3) == [0, 0, 0]


def test_a_wait_that_would_be_too_large_for_a_float_is_the_longest() -> None:
    assert next_delay(Retry(attempts=10_000, wait=1, backoff=10), 9_000, OSError(), 0.0) == 60


def test_jitter_is_added_and_never_exceeds_the_longest_wait() -> None:
    drawn = [next_delay(Retry(attempts=9, wait=1, jitter=0.5), 1, OSError(), 0.0) for _ in range(50)]
    assert all(d is not None and 1 <= d <= 1.5 for d in drawn)
    assert len(set(drawn)) > 10
    capped = [next_delay(Retry(attempts=9, wait=1, jitter=5, max_wait=1.2), 1, OSError(), 0.0) for _ in range(50)]
    assert all(d is not None and 1 <= d <= 1.2 for d in capped)


def test_only_the_named_exceptions_are_worth_another_attempt() -> None:
    policy = Retry(wait=1, on=(OSError, KeyError))
    assert next_delay(policy, 1, FileNotFoundError(), 0.0) == 1
    assert next_delay(policy, 1, KeyError(), 0.0) == 1
    assert next_delay(policy, 1, ValueError(), 0.0) is None


@pytest.mark.parametrize("error", [EncodeError("x"), DecodeError("x"), PayloadTooLarge("x")])
def test_errors_of_data_are_never_retried(error: Exception) -> None:
    assert next_delay(Retry(retry=tenacity.retry_always), 1, error, 0.0) is None


def test_a_wait_object_of_tenacity() -> None:
    assert delays(Retry(attempts=4, wait=tenacity.wait_incrementing(1, 3)), count=4) == [1, 4, 7, None]
    chained = tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(5))
    assert delays(Retry(attempts=4, wait=chained), count=3) == [1, 5, 5]


def test_a_stop_object_of_tenacity() -> None:
    assert delays(Retry(wait=1, stop=tenacity.stop_after_attempt(2)), count=3) == [1, None, None]
    both = tenacity.stop_after_attempt(5) | tenacity.stop_after_delay(10)
    assert next_delay(Retry(wait=1, stop=both), 2, OSError(), 9.0) == 2
    assert next_delay(Retry(wait=1, stop=both), 2, OSError(), 11.0) is None
    assert next_delay(Retry(wait=1, stop=tenacity.stop_never), 1000, OSError(), 1e6) == 60


def test_a_stop_that_looks_at_the_wait_to_come() -> None:
    policy = Retry(wait=4, backoff=1, stop=tenacity.stop_before_delay(10))
    assert next_delay(policy, 1, OSError(), 5.0) == 4
    assert next_delay(policy, 1, OSError(), 7.0) is None


def test_a_retry_object_of_tenacity() -> None:
    policy = Retry(wait=1, retry=tenacity.retry_if_exception_message(match="try again"))
    assert next_delay(policy, 1, ValueError("try again"), 0.0) == 1
    assert next_delay(policy, 1, ValueError("no"), 0.0) is None
    assert delays(Retry(retry=tenacity.retry_never), count=1) == [None]


def test_what_tenacitys_objects_are_shown() -> None:
    seen: list[Any] = []

    def decide(state: tenacity.RetryCallState) -> bool:
        assert state.outcome is not None
        seen.append((state.attempt_number, state.outcome.exception(), round(state.seconds_since_start or 0, 6)))
        return True

    error = OSError("x")
    assert next_delay(Retry(wait=1, retry=decide), 2, error, 7.5) == 2
    assert seen == [(2, error, 7.5)]


def test_a_wait_below_zero_is_none_at_all() -> None:
    assert next_delay(Retry(wait=lambda state: -3.0), 1, OSError(), 0.0) == 0.0  # type: ignore[arg-type]
