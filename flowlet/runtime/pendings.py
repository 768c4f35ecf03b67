"""Work that the local engine has started: what it knows of a step until its outcome is in the journal.

Law: plain data. A step's task posts notices; only the interpreter's task reads them and ends pendings.
"""

from __future__ import annotations

from flowlet.core.engine import Pending, StepCall, StepWaits
from flowlet.core.steps import digest
from flowlet.runtime.journal import Perform
from flowlet.runtime.tasks import Latch, Task


class LocalPending(Pending):
    """A step that was started.

    Attributes:
        ended: its outcome is in the journal (and may be read).
        launched: its effect may have begun.
        stopping: the interpreter has asked for it to be cancelled.
        told: its task has posted its outcome.
        rest: nothing is done for it here now, and why; set aside when that is over.
    """

    __slots__ = ("call", "digest", "error", "launched", "rest", "stopping", "task", "told", "value")

    def __init__(self, start: int, call: StepCall) -> None:
        super().__init__(call.key, start)
        self.call: StepCall = call
        self.digest: bytes = digest(call.input)
        self.launched: bool = False
        self.stopping: bool = False
        self.told: bool = False
        self.rest: StepWaits | None = None
        self.task: Task | None = None
        self.value: bytes = b""
        self.error: Exception | None = None

    @property
    def is_running(self) -> bool:
        """Whether its task is at it; behind that, the task may be at another step."""
        return self.task is not None and not self.told

    def cancel(self) -> None:
        """Cancel its effect, if that is under way."""
        if self.task is not None and not self.told:
            self.task.cancel()


class Wait(Pending):
    """A wait for a signal, for a time, or for the one until the other.

    Attributes:
        ended: it was given one, its time has come, or it was stopped; that is in the journal.
        topic: of the signal, None if it is for a time alone.
        delay: seconds, from when the run first waits, or None.
        due: the time, in seconds of the store's clock, or None; while there is a delay, that is not known yet.
        is_set: that is on record.
        stopping: the interpreter has asked for it to be cancelled.
    """

    __slots__ = ("delay", "due", "error", "is_set", "stopping", "topic", "value")

    def __init__(
        self, start: int, key: str, topic: str | None, delay: float | None = None, due: float | None = None
    ) -> None:
        super().__init__(key, start)
        self.topic: str | None = topic
        self.delay: float | None = delay
        self.due: float | None = due
        self.is_set: bool = False
        self.stopping: bool = False
        self.value: bytes = b""
        self.error: Exception | None = None

    def name(self) -> str:
        """Say what is waited for, for the reason of a mismatch."""
        return f"a time, {self.key!r}" if self.topic is None else f"a signal for {self.key!r}"


class Notice:
    """What a step's task posts to the inbox: a record, if there is one to be added, and for its end the outcome.

    Attributes:
        seen: the task waits for it to be set, after the record is durable or ``perform`` has been committed;
            then ``error`` says what came of that.
        suspended: the step cannot go on here, so the run cannot.
        rest: nothing is to be done for the step now, and why.
        at: the time of the record.
    """

    __slots__ = ("at", "error", "pending", "perform", "record", "rest", "seen", "suspended", "value")

    def __init__(
        self, pending: LocalPending, record: bytes, value: bytes | None = None, error: Exception | None = None
    ) -> None:
        self.pending: LocalPending = pending
        self.record: bytes = record
        self.value: bytes | None = value
        self.error: Exception | None = error
        self.at: float = 0.0
        self.seen: Latch | None = None
        self.perform: Perform | None = None
        self.suspended: bool = False
        self.rest: StepWaits | None = None
