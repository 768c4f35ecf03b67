"""The account of a bulk operation: how many items are done, which of them failed, how long they took.

Law: its size grows with the failures and with nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from flowlet.core.bulk import BulkError, BulkReport, BulkStatus, Outcome, Progress
from flowlet.runtime.percentiles import Durations

_TRACEBACKS = 1000
"""Errors whose tracebacks are kept: each holds the frames, and so the values, of the code that failed."""


class Tally:
    """What has been done of a bulk operation.

    Args:
        total: how many items there are, or None if they do not tell.
        secrets: where in an item there is what is not shown.

    Attributes:
        durations: one for each item that is done.
        failed: how many of them failed.
        earlier: how many of them were done before this call, or elsewhere.
        began: the time of ``perf_counter`` at which this call began.
    """

    failed: int

    def __init__(self, total: int | None, secrets: Any = None) -> None:
        self.total: int | None = total
        self._secrets = secrets
        self.durations: Durations = Durations()
        self.failed = self.earlier = 0
        self.began: float = perf_counter()
        self._errors: list[BulkError[Any]] = []

    @property
    def done(self) -> int:
        return self.durations.total

    def note(self, outcome: Outcome[Any, Any]) -> None:
        """Count an item that is done."""
        self.durations.note(outcome.seconds)
        if outcome.error is not None:
            self.fail(outcome.index, outcome.item, outcome.error, outcome.attempts)

    def fail(self, index: int, item: Any, error: Exception, attempts: int = 1) -> None:
        """Count a failure of an item that is, or will be, counted as done by whoever calls this."""
        self.failed += 1
        if self.failed > _TRACEBACKS:
            error.__traceback__ = None
        self._errors.append(BulkError(index, item, error, attempts, self._secrets))

    def progress(self) -> Progress:
        """Say how far it is."""
        done, seconds = self.done, perf_counter() - self.began
        rate = (done - self.earlier) / seconds if seconds > 0 else 0.0
        left = None if self.total is None else self.total - done
        return Progress(
            done=done,
            failed=self.failed,
            total=self.total,
            seconds=seconds,
            rate=rate,
            eta=left / rate if left is not None and rate > 0 else None,
        )

    def report(self, status: BulkStatus, seconds: float | None = None) -> BulkReport[Any]:
        """Sum it up.

        Args:
            seconds: how long it took, if that is not the time since this call began.
        """
        done, percentile = self.done, self.durations.percentile
        return BulkReport(
            status=status,
            total=done if self.total is None else self.total,
            succeeded=done - self.failed,
            failed=self.failed,
            errors=tuple(sorted(self._errors, key=lambda e: e.index)),
            seconds=perf_counter() - self.began if seconds is None else seconds,
            p50=percentile(0.5),
            p90=percentile(0.9),
            p99=percentile(0.99),
        )


def judge(limit: str | float) -> Callable[[int, int], bool]:
    """Return what tells whether a bulk operation has failed so often that it stops; see ``on_error=`` of `bulk`.

    It is asked with the numbers of items that have failed, and of those that are done, these included.
    """
    if limit == "collect":
        return lambda failed, done: False
    if isinstance(limit, float):
        return lambda failed, done: failed > limit * max(done, _SAMPLE)
    most = 1 if isinstance(limit, str) else limit
    return lambda failed, done: failed >= most


_SAMPLE = 20
"""Items that a share of failures is counted of at least: the first item is not all of them."""
