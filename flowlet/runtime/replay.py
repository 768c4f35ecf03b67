"""What a run's journal says, sorted for an engine that repeats it.

Law: pure reading. What an interpreter must meet again, in order, is in ``items``; attempts are looked up
by the start they belong to; what only people need (a run was parked, and somebody had it go on) is left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from flowlet.core.run_records import (
    AttemptBegan,
    AttemptErred,
    Attention,
    ChildCalled,
    Ended,
    Interrupted,
    Noted,
    Outcome,
    Parked,
    Published,
    Resolved,
    RunRecord,
    SignalTaken,
    Started,
    TimerFired,
    TimerSet,
)
from flowlet.errors import RunCancelled

Item: TypeAlias = Outcome | SignalTaken | TimerFired | Noted | Interrupted | Attention | Resolved


class Replay:
    """A journal to be repeated.

    Attributes:
        items: what the interpreter meets again, in order.
        attempts: the failed attempts of steps, by start.
        begun: the steps that must not be repeated unawares and have begun, by start, with their keys.
        intents: how often each of them has begun, whatever came of it, by start.
        order: somebody has a parked run undone, and that has not begun.
        taken: the numbers of the signals that were given to waits.
        timers: when waits end, by start.
        published: how many times the body has let others see something.
        called: the ids of the runs that steps have called, by the key of the step.
        origins: (n, run id): while more than n items are left, the run repeats what that one has done.
    """

    __slots__ = ("attempts", "begun", "called", "intents", "items", "order", "origins", "published", "taken", "timers")

    def __init__(self, records: Sequence[RunRecord]) -> None:
        self.items: deque[Item] = deque()
        self.attempts: dict[int, list[AttemptErred]] = {}
        self.begun: dict[int, str] = {}
        self.intents: dict[int, int] = {}
        self.taken: set[int] = set()
        self.timers: dict[int, TimerSet] = {}
        self.published: int = 0
        self.called: dict[str, tuple[str, ...]] = {}
        self.order: Exception | None = None
        started = records[0]
        assert isinstance(started, Started)
        before: RunRecord = started
        counts = [0]  # of items in the first n records
        for record in records:
            self._sort(record, before)
            before = record
            counts.append(len(self.items))
        self.origins: tuple[tuple[int, str], ...] = tuple(
            (len(self.items) - counts[n], origin) for origin, n in started.origins
        )

    def _sort(self, record: RunRecord, before: RunRecord) -> None:
        if isinstance(record, AttemptErred):
            self.attempts.setdefault(record.start, []).append(record)
        elif isinstance(record, AttemptBegan):
            self.begun[record.start] = record.key
            self.intents[record.start] = self.intents.get(record.start, 0) + 1
        elif isinstance(record, TimerSet):
            self.timers[record.start] = record
        elif isinstance(record, ChildCalled):
            self.called[record.key] = (*self.called.get(record.key, ()), record.id)
        elif isinstance(record, Published):
            self.published = max(self.published, record.number)
        elif isinstance(record, Resolved) and isinstance(before, Parked):
            if record.action == "compensate":
                self.order = RunCancelled(f"an operator had the run undone; it was parked: {before.reason}")
        elif not isinstance(record, (Started, Parked, Ended)):
            if isinstance(record, Interrupted):
                self.order = None  # it has begun
            if isinstance(record, SignalTaken):
                self.taken.add(record.number)
            if isinstance(record, Resolved) and isinstance(before, Attention):
                self.begun = {start: key for start, key in self.begun.items() if key not in before.steps}
            self.items.append(record)


def name_item(record: Item) -> str:
    """Say what a record is, for the reason of a mismatch."""
    if isinstance(record, Noted):
        return f"decision {record.key!r}"
    if isinstance(record, Interrupted):
        return "the end of the way forward: the run was told to undo what it has done"
    if isinstance(record, Attention):
        return f"a question about step {', '.join(map(repr, record.steps))}"
    if isinstance(record, Resolved):
        return f"an operator's answer, {record.action!r}"
    if isinstance(record, SignalTaken):
        return f"signal {record.topic!r}"
    if isinstance(record, TimerFired):
        return f"a time, {record.key!r}"
    return f"step {record.key!r}"
