"""The records of a machine's history, and their fold: a machine's state is what its records add up to.

Law: every record is judged against the definition before it counts; one that does not fit is an error
that says which, what was expected and what was found. Records are arrays with a tag, data a map inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec

from flowlet.core.codec import Codec, encode
from flowlet.core.configurations import Configuration
from flowlet.core.hooks import Transition
from flowlet.core.machine import MachineDefinition
from flowlet.core.machine_data import NO_DATA
from flowlet.errors import DecodeError, HistoryMismatch

__all__ = [
    "Created",
    "Fold",
    "Moved",
    "Pending",
    "Record",
    "Settled",
    "Summary",
    "Timer",
    "check_complete",
    "read_record",
    "transition_of",
]


class Pending(msgspec.Struct, frozen=True, array_like=True):
    """An event that was raised inside a transition and has not been handled yet.

    Attributes:
        method: the trigger it was raised by, None when it was raised by the event's name.
        arguments: the encoded pair of positional and keyword arguments.
    """

    event: str
    method: str | None
    arguments: bytes


class Timer(msgspec.Struct, frozen=True, array_like=True):
    """Something that is to happen at a time.

    Attributes:
        key: what made it.
        due: seconds of the store's clock.
        event: what was raised with a delay; None for a transition marked ``after=``.
    """

    key: str
    due: float
    event: Pending | None = None


class Created(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """Record 1: the machine exists, in its initial state. ``at`` is in seconds of the store's clock.

    Attributes:
        token: the writer's, by which it knows its own record again.
        definition_version: of the code that wrote it.
    """

    state: str
    at: float
    token: int
    definition_version: int
    data: bytes
    raised: tuple[Pending, ...] = ()
    timers: tuple[Timer, ...] | None = None


class Moved(msgspec.Struct, frozen=True, array_like=True, tag="m"):
    """One committed transition.

    Attributes:
        data: the machine's data after it, None when it is what it was.
        actor: see `Transition.actor`.
        key: the idempotency key of the run that fired it, the trigger and its encoded result.
        raised: what has been raised and is still to be handled.
        timers: all that run after it, None when they are what they were.
        memory: what histories remember after it, by their names; None when it is what it was.
    """

    event: str
    source: str
    target: str
    at: float
    token: int
    definition_version: int
    data: bytes | None = None
    actor: str | None = None
    key: tuple[str, str, bytes] | None = None
    raised: tuple[Pending, ...] = ()
    timers: tuple[Timer, ...] | None = None
    memory: dict[str, tuple[str, ...]] | None = None


class Settled(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """What the enter hooks of the last transition assigned or delayed, when no further one has recorded it."""

    state: str
    at: float
    token: int
    definition_version: int
    data: bytes | None = None
    timers: tuple[Timer, ...] | None = None


class Summary(msgspec.Struct, frozen=True, array_like=True):
    """What the records up to a version add up to, without the keys of runs: a snapshot.

    Attributes:
        definition_version: of the code that wrote it; other code folds the records themselves.
    """

    definition_version: int
    state: str
    at: float
    data: bytes
    raised: tuple[Pending, ...]
    timers: tuple[Timer, ...]
    memory: dict[str, tuple[str, ...]]


Record: TypeAlias = Created | Moved | Settled

_codec: Codec[Record] = Codec(Record)
_summaries: Codec[Summary] = Codec(Summary)


def read_record(data: bytes, number: int, id: str) -> Record:
    """Decode one record.

    Raises:
        DecodeError: the bytes are damaged or of something else.
    """
    return _codec.decode(data, f"record {number} of machine {id!r}")


def check_complete(id: str, after: int, found: int, upto: int) -> None:
    """Judge whether all records behind a version are there.

    Raises:
        DecodeError: one is missing.
    """
    if found != upto - after:
        raise DecodeError(
            f"the history of machine {id!r} has a gap: records {after + 1} to {upto} should be {upto - after}, "
            f"and {found} are there; restore what was deleted from the store"
        )


def transition_of(record: Moved, version: int) -> Transition:
    """Show a record as hooks and histories do."""
    at = datetime.fromtimestamp(record.at, UTC)
    return Transition(record.event, record.source, record.target, version, at, record.actor)


class Fold:
    """What the records of one machine add up to so far.

    Attributes:
        version: how many records were folded.
        data: the encoded data after them.
        raised: what is still to be handled.
        keys: trigger and result of what runs have fired, by their key.
        at: the time of the last record, in seconds of the store's clock.
        timers: those that run.
        keys_after: ``keys`` has those of records behind this version.
    """

    __slots__ = ("at", "configuration", "data", "definition", "id", "keys", "keys_after", "raised", "timers", "version")

    definition: MachineDefinition
    id: str
    keys_after: int
    version: int

    def __init__(self, definition: MachineDefinition, id: str) -> None:
        self.definition, self.id = definition, id
        self.version = self.keys_after = 0
        self.at: float = 0.0
        self.configuration: Configuration = definition.start.target
        self.timers: tuple[Timer, ...] = ()
        self.data: bytes = NO_DATA
        self.raised: tuple[Pending, ...] = ()
        self.keys: dict[str, tuple[str, bytes]] = {}

    def add(self, records: Sequence[bytes], upto: int) -> None:
        """Fold further records, judging each.

        Args:
            upto: the number of the last one, as the store's head says.

        Raises:
            HistoryMismatch: a record does not fit the definition, even after its migrations.
            DecodeError: a record is damaged or missing.
        """
        check_complete(self.id, self.version, len(records), upto)
        for data in records:
            number = self.version + 1
            record = read_record(data, number, self.id)
            self._apply(self._migrated(record), number)
            self.version, self.at = number, record.at

    def resume(self, data: bytes, version: int) -> bool:
        """Begin with a snapshot; tell whether it can be used, since the records are there as well."""
        try:
            summary = _summaries.decode(data, f"the snapshot of machine {self.id!r}")
            configurations = self.definition.configurations
            memory = configurations.memory(summary.memory)
            configuration = configurations.remembering(summary.state, memory)
        except (DecodeError, KeyError):
            return False
        if summary.definition_version != self.definition.version:
            return False
        self.version = self.keys_after = version
        self.at, self.data, self.configuration = summary.at, summary.data, configuration
        self.raised, self.timers = summary.raised, summary.timers
        return True

    def equals(self, other: Fold) -> bool:
        """Say whether two folds say the same of a machine, the keys of runs aside."""
        mine = (self.version, self.configuration, self.data, self.raised, self.timers)
        return mine == (other.version, other.configuration, other.data, other.raised, other.timers)

    def values(self) -> tuple[Any, ...]:
        """Decode the data to the values of the attributes.

        Raises:
            HistoryMismatch: the data has not the attributes, or not the types, of the definition.
            DecodeError: the bytes are damaged.
        """
        try:
            return self.definition.data.decode(self.data, f"the data of machine {self.id!r}")
        except DecodeError as error:
            if not isinstance(error.__cause__, msgspec.ValidationError):
                raise
            raise HistoryMismatch(f"{error}; {self._advice()}") from error

    # Judging ------------------------------------------------------------------------------------
    def _apply(self, record: Record, number: int) -> None:
        if (number == 1) != isinstance(record, Created):
            self._refuse(number, "the creation" if number == 1 else "a transition", type(record).__name__)
        if isinstance(record, Moved):
            self._judge(record, number)
            self.raised = record.raised
            if record.key is not None:
                self.keys[record.key[0]] = record.key[1:]
            self._move(record, number)
        else:
            self._settle(record, number)
        if record.timers is not None:
            self.timers = record.timers
        if record.data is not None:
            self.data = record.data

    def _judge(self, record: Moved, number: int) -> None:
        here = self.configuration.state
        if record.source != here:
            self._refuse(number, f"a transition from {here!r}", f"one from {record.source!r}")
        if not self.definition.knows(record.event):
            self._refuse(number, f"one of the events {list(self.definition.events)}", repr(record.event))
        if not self.definition.may(record.event, self.configuration, record.target):
            targets = (
                () if self.definition.chart is not None else self.definition.targets(record.event, self.configuration)
            )
            allowed = f"to {sorted(targets)}" if targets else "nowhere: no such transition"
            self._refuse(number, f"event {record.event!r} to lead from {here!r} {allowed}", f"to {record.target!r}")

    def _move(self, record: Moved, number: int) -> None:
        memory = self.configuration.memory
        try:
            if record.memory is not None:
                memory = self.definition.configurations.memory(record.memory)
            self.configuration = self.definition.configurations.remembering(record.target, memory)
        except KeyError as error:
            self._refuse(number, f"one of the states {list(self.definition.configurations)}", str(error))

    def _settle(self, record: Created | Settled, number: int) -> None:
        if record.state not in self.definition.configurations:
            self._refuse(number, f"one of the states {list(self.definition.configurations)}", repr(record.state))
        if number > 1 and record.state != self.configuration.state:
            self._refuse(number, f"state {self.configuration.state!r}", repr(record.state))
        memory = self.configuration.memory
        self.configuration = self.definition.configurations.remembering(record.state, memory)
        self.raised = record.raised if isinstance(record, Created) else ()

    def _refuse(self, number: int, expected: str, found: str) -> None:
        raise HistoryMismatch(
            f"record {number} of machine {self.id!r} does not fit {self.definition.name!r}: "
            f"expected {expected}, found {found}; {self._advice()}"
        )

    def _advice(self) -> str:
        return "raise version= of the definition and give it migrate={...} for its older records"

    # Older versions -----------------------------------------------------------------------------
    def _migrated(self, record: Record) -> Record:
        current = self.definition.version
        if record.definition_version > current:
            raise HistoryMismatch(
                f"machine {self.id!r} was written by version {record.definition_version} of "
                f"{self.definition.name!r}, and this is version {current}; run the newer code"
            )
        if record.definition_version == current or not self.definition.migrations:
            return record
        plain = _as_dict(record)
        for version in range(record.definition_version, current):
            migrate = self.definition.migrations.get(version)
            if migrate is not None:
                plain = migrate(plain)
        return self._from_dict(record, plain)

    def _from_dict(self, record: Record, plain: Mapping[str, Any]) -> Record:
        what = f"what migrate= made of record {self.version + 1} of machine {self.id!r}"
        try:
            given = plain["data"]
            data = None if given is None else encode(given, what)
            timers = record.timers
            if timers is not None:
                timers = tuple(
                    msgspec.structs.replace(t, key=key) for t, key in zip(timers, plain["timers"], strict=True)
                )
            if isinstance(record, Moved):
                return msgspec.structs.replace(
                    record,
                    event=plain["event"],
                    source=plain["source"],
                    target=plain["target"],
                    data=data,
                    timers=timers,
                    memory=plain["memory"],
                )
            if isinstance(record, Created):
                return msgspec.structs.replace(record, state=plain["target"], data=data or NO_DATA, timers=timers)
            return msgspec.structs.replace(record, state=plain["target"], data=data, timers=timers)
        except (KeyError, TypeError, ValueError) as error:
            raise HistoryMismatch(f"{what} is no record: {error!r}; return the dict it was given, changed") from error


def _as_dict(record: Record) -> dict[str, Any]:
    data = None if record.data is None else msgspec.msgpack.decode(record.data)
    timers = None if record.timers is None else [t.key for t in record.timers]
    if isinstance(record, Moved):
        plain: dict[str, Any] = {"event": record.event, "source": record.source, "target": record.target}
        return {**plain, "data": data, "timers": timers, "memory": record.memory}
    return {"event": None, "source": None, "target": record.state, "data": data, "timers": timers, "memory": None}
