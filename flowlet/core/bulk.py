"""What a bulk operation tells: an outcome for each item, progress, and a report at the end.

Law: values, and what follows from them alone. An outcome's value raises the item's own error, so that a failed
item cannot be mistaken for one that returned None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import msgspec

from flowlet.core.secrets import redact
from flowlet.errors import BulkFailed, RunCancelled, RunTimeout

T_co = TypeVar("T_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)

BulkStatus: TypeAlias = Literal["completed", "failed", "timed_out", "cancelled"]

_SHOWN = 10
"""Errors that the text of a report has in full."""


class Outcome(msgspec.Struct, Generic[T_co, R_co], frozen=True, eq=False):
    """What became of one item.

    Attributes:
        index: its place among the items, from 0.
        item: the item.
        error: why it failed, or None.
        seconds: how long it took, all attempts and the waits between them included.
        attempts: how often it was tried.
    """

    index: int
    item: T_co
    _value: Any
    error: Exception | None = None
    seconds: float = 0.0
    attempts: int = 1

    @property
    def value(self) -> R_co:
        """What the function returned for the item; the item's error is raised if it failed."""
        if self.error is not None:
            raise self.error
        value: R_co = self._value
        return value


class BulkError(msgspec.Struct, Generic[T_co], frozen=True, eq=False):
    """An item that failed.

    Attributes:
        index: its place among the items, from 0.
        item: the item.
        error: what it failed with, at its last attempt.
        attempts: how often it was tried.
        secrets: where in the item there is what its text must not show; see `flowlet.Secret`.
    """

    index: int
    item: T_co
    error: Exception
    attempts: int = 1
    secrets: Any = None

    def __str__(self) -> str:
        return f"item {self.index} ({self.shown}): {type(self.error).__name__}: {self.error}"

    def __repr__(self) -> str:
        item = redact(self.item, self.secrets)
        return f"BulkError(index={self.index}, item={item!r}, error={self.error!r}, attempts={self.attempts})"

    @property
    def shown(self) -> str:
        """The item as it may be shown, shortened."""
        return f"{redact(self.item, self.secrets)!r:.80}"


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a bulk operation is.

    Attributes:
        done: items that have succeeded or failed, those of earlier calls and other processes included.
        failed: how many of these have failed.
        total: how many there are, or None when the items do not tell.
        seconds: since this call began.
        rate: items per second in this call.
        eta: seconds that the rest takes at this rate, or None.
    """

    done: int
    failed: int
    total: int | None
    seconds: float
    rate: float
    eta: float | None


class BulkReport(msgspec.Struct, Generic[T_co], frozen=True, kw_only=True, eq=False):
    """What became of a bulk operation.

    Attributes:
        status: ``"completed"`` when every item was tried, even if some failed; ``"failed"`` when it was stopped
            because of ``on_error=``; ``"timed_out"`` or ``"cancelled"`` when it was cut off.
        total: how many items there are. Of items that do not tell their number, those that are done.
        succeeded, failed: how many have.
        errors: the failed items, in the order of the items.
        seconds: how long it took; with an id, since it was first called, by the store's clock.
        p50, p90, p99: seconds within which half of the items ended, 9 of 10, and 99 of 100, within 5 percent.
    """

    status: BulkStatus
    total: int
    succeeded: int
    failed: int
    errors: Sequence[BulkError[T_co]] = ()
    seconds: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0

    @property
    def left(self) -> int:
        """How many items have neither succeeded nor failed."""
        return self.total - self.succeeded - self.failed

    @property
    def rate(self) -> float:
        """Items per second."""
        return (self.succeeded + self.failed) / self.seconds if self.seconds > 0 else 0.0

    def raise_errors(self) -> None:
        """Raise unless every item has succeeded.

        Raises:
            BulkFailed: some have failed; it is the group of their exceptions.
            RunTimeout: none has, but time ran out.
            RunCancelled: none has, but it was cancelled.
        """
        if self.failed:
            raise BulkFailed([e.index for e in self.errors], [_noted(e) for e in self.errors])
        if self.status == "timed_out":
            raise RunTimeout(f"{self.left} of {self.total} items were not done within total_timeout=")
        if self.status == "cancelled":
            raise RunCancelled(f"the bulk operation was cancelled; {self.succeeded} items were done")

    def __str__(self) -> str:
        done = self.succeeded + self.failed
        lines = [
            f"{self.status.replace('_', ' ')}: {done:,} of {self.total:,} items in {show_seconds(self.seconds)} "
            f"({self.rate:,.0f}/s), {self.failed:,} failed"
        ]
        if done:
            times = ", ".join(f"{n} {show_seconds(getattr(self, n))}" for n in ("p50", "p90", "p99"))
            lines.append(f"time of an item: {times}")
        lines += [f"  {error}" for error in self.errors[:_SHOWN]]
        if len(self.errors) > _SHOWN:
            lines.append(f"  ... and {len(self.errors) - _SHOWN:,} more")
        return "\n".join(lines)


def _noted(failed: BulkError[Any]) -> Exception:
    """Have an exception say of which item it is, where a traceback shows it."""
    note = f"item {failed.index}: {failed.shown}"
    if note not in getattr(failed.error, "__notes__", ()):
        failed.error.add_note(note)
    return failed.error


def show_seconds(seconds: float) -> str:
    """Write a duration for people: ``"350 µs"``, ``"1.2 s"``, ``"2 h 5 min"``."""
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
