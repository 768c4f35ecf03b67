"""Looking at a chain from outside: its case, made of what is stored of the run.

Law: pure. The journal comes first, then what is in the inbox and the run has not taken, in the order in which it came:
so the run will see it as well. Nothing is asked again that is on record.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowlet.core.approval_case import Case, as_datetime
from flowlet.core.approval_messages import TOPIC, Message, message_codec
from flowlet.core.approval_plan import APPROVERS, OPENED, ApprovalDefinition
from flowlet.core.approval_values import AuditEntry
from flowlet.core.codec import Codec, encode
from flowlet.core.run_records import Ended, Noted, RunRecord, SignalTaken, Started, StepEnded, TimerFired, TimerSet
from flowlet.errors import HistoryMismatch

_names: Codec[list[str]] = Codec(list[str])
_time: Codec[float] = Codec(float)


def read_case(definition: ApprovalDefinition, records: Sequence[RunRecord], inbox: Sequence[tuple[int, bytes]]) -> Case:
    """Return the case of a run as far as anything has happened.

    Args:
        records: the whole journal.
        inbox: the messages that are in it, by their numbers; those that the run has taken may be among them.

    Raises:
        HistoryMismatch: the run was begun with other levels.
        RuleFailed: a rule that was not asked yet has.
    """
    started = records[0]
    assert isinstance(started, Started)
    plan = definition.plan
    subject, requester = definition.starter.input.decode(started.input, "the input of an approval chain")
    notes = {record.key: record.value for record in records if isinstance(record, Noted)}

    def choose(submission: int, data: bytes) -> list[str]:
        noted = notes.get(key := plan.rules_key(submission))
        other = next((k for k in notes if k != key and k.startswith(plan.rules_prefix(submission))), None)
        if other is not None:
            raise HistoryMismatch(
                f"the levels of {definition.name!r} were changed under a run: {other!r} is now {key!r}"
            )
        return plan.choose(data) if noted is None else _names.decode(noted, "the levels that apply")

    data = encode(subject, "the subject")
    case = Case(plan, data, requester, started.at, choose, started.deadline)
    reader = _Reader(case)
    for record in records:
        reader.take(record)
    taken = {record.number for record in records if isinstance(record, SignalTaken)}
    for number, message in inbox:
        if number not in taken:
            case.take(read_message(message))
    last = records[-1]
    if isinstance(last, Ended) and last.status != "completed" and last.error is not None:
        reason = f"{last.status}: {last.error.message}"
        case.log.append(AuditEntry(at=as_datetime(last.at), what="ended", reason=reason))
    return case


def read_message(data: bytes) -> Message:
    """Decode a message."""
    return message_codec.decode(data, "a message to an approval chain")


class _Reader:
    """Lets the records of a journal have their effect."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._dues: dict[int, float] = {}
        self._found: dict[int, list[str]] = {}  # who is asked, by the number of the level's opening

    def take(self, record: RunRecord) -> None:
        if isinstance(record, SignalTaken):
            if record.topic == TOPIC:
                self._case.take(read_message(record.payload))
        elif isinstance(record, TimerSet):
            self._dues[record.start] = record.due
        elif isinstance(record, TimerFired):
            self._case.advance(self._dues[record.start])
        elif isinstance(record, StepEnded) and record.key.startswith(APPROVERS):
            names = _names.decode(record.value, f"the result of step {record.key!r}")
            self._found[_number(record.key)] = names
        elif isinstance(record, Noted) and record.key.startswith(OPENED):
            number = _number(record.key)
            self._case.resolve(number, self._found[number], _time.decode(record.value, "when a level opened"))


def _number(key: str) -> int:
    return int(key.rpartition("#")[2])
