"""Deciding about another attempt, with tenacity's stop, wait and retry objects.

Law: tenacity decides, flowlet sleeps and remembers. This module is imported after a first failure,
so that a run without failures never loads tenacity.
"""

from __future__ import annotations

from typing import Any

import tenacity

from flowlet.core.failures import NEVER_RETRIED
from flowlet.core.retry import Retry


def next_delay(policy: Retry | None, attempt: int, error: Exception, seconds: float) -> float | None:
    """Return the seconds to wait before the next attempt, or None when there is to be none.

    Args:
        attempt: the number of the attempt that has just failed, from 1.
        seconds: how long ago the first attempt began.
    """
    if policy is None or isinstance(error, NEVER_RETRIED):
        return None
    state: Any = tenacity.RetryCallState(None, None, (), {})  # type: ignore[arg-type]  # no retrying object drives it
    state.attempt_number = attempt
    state.set_exception((type(error), error, error.__traceback__))
    state.start_time = state.outcome_timestamp - seconds
    retry = policy.retry if policy.retry is not None else tenacity.retry_if_exception_type(policy.on)
    stop = policy.stop if policy.stop is not None else tenacity.stop_after_attempt(policy.attempts)
    wait = _wait(policy)
    if not retry(state):
        return None
    # stop_before_delay looks at the wait to come, so it is drawn before stop is asked, as tenacity does.
    state.upcoming_sleep = max(0.0, float(wait(state)))
    return None if stop(state) else float(state.upcoming_sleep)


def _wait(policy: Retry) -> Any:
    if callable(policy.wait):
        return policy.wait
    wait: Any = tenacity.wait_exponential(multiplier=policy.wait, exp_base=policy.backoff, max=policy.max_wait)
    if policy.jitter:
        longest = policy.max_wait
        spread = wait + tenacity.wait_random(0, policy.jitter)
        return lambda state: min(float(spread(state)), longest)
    return wait
