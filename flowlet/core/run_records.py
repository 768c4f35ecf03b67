"""The records of a run's journal, as they are encoded.

Law: the wire shape of a record is an array whose first item is its one-letter tag; fields are only
ever added at the end, with a default. The hot path encodes plain tuples of the same shape.

Every started piece of work (step, timer, child) has a *start*: its place in the order in which the
run started them, from 1. A replay compares the starts it makes with those on record.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from flowlet.core.codec import Codec
from flowlet.core.failures import Failure

EndStatus: TypeAlias = Literal["completed", "failed", "cancelled", "compensated", "compensation_failed"]


class Started(msgspec.Struct, frozen=True, array_like=True, tag="S"):
    """The run exists. Times are seconds of the store's clock.

    Attributes:
        input: the encoded tuple of the inputs.
        parent: the id of the run that started this one, if any.
    """

    definition: str
    version: str
    input: bytes
    at: float
    parent: str | None = None


class StepEnded(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """A step returned.

    Attributes:
        digest: that by which a replay recognises the input; see `flowlet.core.steps.digest`.
        attempt: which attempt it was, from 1.
        seconds: how long that attempt took.
        value: the encoded result.
        input: the encoded input, kept when the step has a compensation.
    """

    start: int
    key: str
    digest: bytes
    attempt: int
    at: float
    seconds: float
    value: bytes
    input: bytes | None = None


class StepErred(msgspec.Struct, frozen=True, array_like=True, tag="e"):
    """A step failed for good."""

    start: int
    key: str
    digest: bytes
    attempt: int
    at: float
    seconds: float
    error: Failure


class StepStopped(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """A step was cancelled before it had an outcome; what it did is unknown."""

    start: int
    key: str
    digest: bytes
    at: float


class AttemptErred(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    """An attempt failed and another follows after ``delay`` seconds."""

    start: int
    key: str
    digest: bytes
    attempt: int
    at: float
    seconds: float
    delay: float
    error: Failure


class Noted(msgspec.Struct, frozen=True, array_like=True, tag="n"):
    """A decision of an interpreter, such as to compensate."""

    key: str
    value: bytes
    at: float


class Parked(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    """The run needs an operator."""

    reason: str
    at: float


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="z"):
    """The run has ended.

    Attributes:
        value: the encoded result of a completed run.
        error: why it did not complete.
        failed: keys of the steps whose compensation failed, with ``errors`` beside.
    """

    status: EndStatus
    at: float
    value: bytes | None = None
    error: Failure | None = None
    failed: tuple[str, ...] = ()
    errors: tuple[Failure, ...] = ()


RunRecord: TypeAlias = Started | StepEnded | StepErred | StepStopped | AttemptErred | Noted | Parked | Ended
Outcome: TypeAlias = StepEnded | StepErred | StepStopped

run_record_codec: Codec[RunRecord] = Codec(RunRecord)
