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

EndStatus: TypeAlias = Literal["completed", "failed", "cancelled", "compensated"]
StuckStatus: TypeAlias = Literal["parked", "needs_attention", "compensation_failed"]
Action: TypeAlias = Literal["retry", "skip", "compensate"]


class Started(msgspec.Struct, frozen=True, array_like=True, tag="S"):
    """The run exists. Times are seconds of the store's clock.

    Attributes:
        input: the encoded tuple of the inputs.
        parent: the id of the run that waits for this one, if any: it is told of the end.
        deadline: when the run is to be undone if it has not ended, or None.
        origins: (run id, n) for each run that this one was forked from, the oldest first: its first n records,
            this one included, stand for what that run had done.
        trace: what an observer had stored, so that those who take the run up know of its trace.
    """

    definition: str
    version: str
    input: bytes
    at: float
    parent: str | None = None
    deadline: float | None = None
    origins: tuple[tuple[str, int], ...] = ()
    trace: str | None = None


class AttemptBegan(msgspec.Struct, frozen=True, array_like=True, tag="b"):
    """An attempt of a step that must not be repeated unawares is about to begin."""

    start: int
    key: str
    digest: bytes
    attempt: int
    at: float


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
    """A step failed for good.

    Attributes:
        doubt: an attempt of it was cut off, by its timeout or the end of a process: what that one did is unknown.
    """

    start: int
    key: str
    digest: bytes
    attempt: int
    at: float
    seconds: float
    error: Failure
    doubt: bool = False


class StepStopped(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """A step was cancelled before it had an outcome.

    Attributes:
        begun: it may have done something; False when it surely never began.
    """

    start: int
    key: str
    digest: bytes
    at: float
    begun: bool = True


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


class SignalTaken(msgspec.Struct, frozen=True, array_like=True, tag="g"):
    """A signal was given to what waited for its topic.

    Attributes:
        number: its place in the run's inbox; 0 in a fork, which has an inbox of its own.
        payload: its encoded content.
    """

    start: int
    key: str
    topic: str
    at: float
    number: int
    payload: bytes


class TimerSet(msgspec.Struct, frozen=True, array_like=True, tag="w"):
    """A wait has begun that ends at a time, if nothing else ends it before; a replay keeps the time.

    Attributes:
        due: seconds of the store's clock.
    """

    start: int
    key: str
    at: float
    due: float


class TimerFired(msgspec.Struct, frozen=True, array_like=True, tag="t"):
    """The time has come that a wait was for, or in which a signal had to come."""

    start: int
    key: str
    at: float


class Published(msgspec.Struct, frozen=True, array_like=True, tag="u"):
    """The run has let others see something of it.

    Attributes:
        number: how many times its body had done so with this time; 0 when a step did.
    """

    key: str
    value: bytes
    at: float
    number: int = 0


class ChildCalled(msgspec.Struct, frozen=True, array_like=True, tag="k"):
    """A step is about to call another run, which is to end when the step is stopped."""

    key: str
    id: str
    at: float


class Noted(msgspec.Struct, frozen=True, array_like=True, tag="n"):
    """A decision of an interpreter, such as to compensate."""

    key: str
    value: bytes
    at: float


class Parked(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    """The run cannot go on with the code there is; an interpreter never sees this record."""

    reason: str
    at: float


class Interrupted(msgspec.Struct, frozen=True, array_like=True, tag="i"):
    """The run was told from outside to undo what it has done: it was cancelled, or its deadline has passed.

    What was under way has its record right behind this one.

    Attributes:
        error: why, as who waits for the run is told.
    """

    at: float
    error: Failure


class Attention(msgspec.Struct, frozen=True, array_like=True, tag="q"):
    """The run has come to a place where an operator must decide.

    Attributes:
        status: what listings say of it meanwhile.
        steps: keys of the steps in question, with ``errors`` beside.
        error: why the run was to be undone, if that is what it was doing.
    """

    status: StuckStatus
    at: float
    reason: str
    steps: tuple[str, ...] = ()
    errors: tuple[Failure, ...] = ()
    error: Failure | None = None


class Resolved(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """What an operator has decided, right behind the `Attention` or `Parked` that it answers.

    Attributes:
        step: the key of the step it is about, None for all of them.
        value: the encoded result of a skipped step.
    """

    action: Action
    at: float
    step: str | None = None
    value: bytes | None = None


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="z"):
    """The run has ended.

    Attributes:
        value: the encoded result of a completed run.
        error: why it did not complete.
    """

    status: EndStatus
    at: float
    value: bytes | None = None
    error: Failure | None = None


RunRecord: TypeAlias = (
    Started
    | AttemptBegan
    | StepEnded
    | StepErred
    | StepStopped
    | AttemptErred
    | SignalTaken
    | TimerSet
    | TimerFired
    | Published
    | ChildCalled
    | Noted
    | Parked
    | Interrupted
    | Attention
    | Resolved
    | Ended
)
Outcome: TypeAlias = StepEnded | StepErred | StepStopped

run_record_codec: Codec[RunRecord] = Codec(RunRecord)
