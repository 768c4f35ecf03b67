"""The retry policy of a step.

Law: a policy is a value. tenacity's stop, wait and retry objects decide; nothing here sleeps, draws
a random number or imports tenacity, which is loaded by the runtime after a first failure.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from flowlet.errors import DefinitionError, RunError

if TYPE_CHECKING:
    from tenacity.retry import RetryBaseT
    from tenacity.stop import StopBaseT
    from tenacity.wait import WaitBaseT

Seconds: TypeAlias = float | timedelta


def seconds(value: Any, what: str) -> float:
    """Return a duration as seconds; ``what`` names it in the error.

    Raises:
        DefinitionError: it is no number or timedelta, or is negative or not finite.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DefinitionError([f"{what}: must be seconds or a timedelta, not {value!r}"])
    if not math.isfinite(value) or value < 0:
        raise DefinitionError([f"{what}: must be finite and not negative, not {value!r}"])
    return float(value)


def span(value: Any, what: str) -> float:
    """Do the same for code that runs.

    Raises:
        RunError: it is no number or timedelta, or is negative or not finite.
    """
    try:
        return seconds(value, what)
    except DefinitionError as error:
        raise RunError(error.problems[0]) from None


class Retry:
    """When and how a failed step is tried again.

    Args:
        attempts: how often in total, the first included; at least 1.
        wait: seconds (or a timedelta) before the second attempt, or a tenacity wait object.
        backoff: each further wait is this many times the one before.
        jitter: up to so many random seconds are added to each wait.
        max_wait: no wait is longer than this.
        on: the exceptions worth another attempt; others fail the step at once.
        stop: a tenacity stop object, used instead of ``attempts``.
        retry: a tenacity retry object, used instead of ``on``.

    Raises:
        DefinitionError: an argument is out of its bounds.

    Example:
        >>> from flowlet import Retry
        >>> Retry(attempts=5, wait=0.2, on=TimeoutError)
        Retry(attempts=5, wait=0.2, backoff=2.0, jitter=0.0, max_wait=60.0)
    """

    __slots__ = ("attempts", "backoff", "jitter", "max_wait", "on", "retry", "stop", "wait")

    def __init__(
        self,
        attempts: int = 3,
        wait: Seconds | WaitBaseT = 0.1,
        *,
        backoff: float = 2.0,
        jitter: Seconds = 0.0,
        max_wait: Seconds = 60.0,
        on: type[Exception] | tuple[type[Exception], ...] = Exception,
        stop: StopBaseT | None = None,
        retry: RetryBaseT | None = None,
    ) -> None:
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
            raise DefinitionError([f"Retry: attempts must be a whole number of at least 1, not {attempts!r}"])
        if not isinstance(backoff, (int, float)) or not math.isfinite(backoff) or backoff < 1:
            raise DefinitionError([f"Retry: backoff must be a number of at least 1, not {backoff!r}"])
        kinds = on if isinstance(on, tuple) else (on,)
        if not kinds or not all(isinstance(k, type) and issubclass(k, Exception) for k in kinds):
            raise DefinitionError([f"Retry: on must be an exception class or a tuple of them, not {on!r}"])
        for name, decider in (("stop", stop), ("retry", retry)):
            if decider is not None and (isinstance(decider, type) or not callable(decider)):
                raise DefinitionError([f"Retry: {name} must be a tenacity {name} object, not {decider!r}"])
        self.attempts: int = attempts
        self.wait: Any = wait if callable(wait) else seconds(wait, "Retry: wait")
        self.backoff: float = float(backoff)
        self.jitter: float = seconds(jitter, "Retry: jitter")
        self.max_wait: float = seconds(max_wait, "Retry: max_wait")
        self.on: tuple[type[Exception], ...] | tuple[type[Exception]] = kinds
        self.stop: Any = stop
        self.retry: Any = retry

    def __repr__(self) -> str:
        return (
            f"Retry(attempts={self.attempts}, wait={self.wait!r}, backoff={self.backoff}, "
            f"jitter={self.jitter}, max_wait={self.max_wait})"
        )


def policy_for(retry: Retry | int | None) -> Retry | None:
    """Return what ``retry=`` of a mark stands for; a number is that many attempts in total.

    Raises:
        DefinitionError: it is neither a policy nor a whole number of at least 1.
    """
    if retry is None or isinstance(retry, Retry):
        return retry
    if not isinstance(retry, int):
        raise DefinitionError([f"retry= takes a Retry or a number of attempts, not {retry!r}"])
    return Retry(attempts=retry)
