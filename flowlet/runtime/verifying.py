"""Judging all histories of a store: whether they can be read, and whether they are what flowlet writes.

Law: it reads, and goes on after a fault: each is a sentence that names the entity and the record. What can be judged
without code is judged without it; with the definitions, machines are folded and recorded values decoded as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, TypeAlias

import msgspec

from flowlet.core.bulk_records import BULK, facts_codec, shard_codec, sums_codec
from flowlet.core.codec import Codec
from flowlet.core.definitions import RunDefinition
from flowlet.core.ids import RESERVED
from flowlet.core.machine import MachineDefinition
from flowlet.core.machine_records import Created, Moved, Record, read_record
from flowlet.core.run_records import (
    Attention,
    Ended,
    Resolved,
    RunRecord,
    Started,
    StepEnded,
    StepErred,
    StepStopped,
    run_record_codec,
)
from flowlet.core.schedule import ScheduleEvent, state_codec
from flowlet.errors import DecodeError, FlowletError
from flowlet.runtime.exports import Exports, read_export
from flowlet.runtime.machine_verify import judge_machine
from flowlet.runtime.orders import STUCK
from flowlet.runtime.report import build_report
from flowlet.store import Head, Store, Stored

FindMachine: TypeAlias = Callable[[str], MachineDefinition | None]
FindRun: TypeAlias = Callable[[str, str], RunDefinition | None]

_PAGE = 200
_RECORDS = 500

_anything: Codec[Any] = Codec(Any)
_data: Codec[dict[str, Any]] = Codec(dict[str, Any])
_event: Codec[ScheduleEvent] = Codec(ScheduleEvent)
_OUTCOMES = (StepEnded, StepErred, StepStopped)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out about an entity.

    Attributes:
        problems: sentences, none if all is well.
        records: how many there are.
        is_coded: the definition was there to judge it by.
    """

    head: Head
    problems: Sequence[str]
    records: int
    is_coded: bool


class Verifier:
    """Judges what a store keeps.

    Args:
        store: where it is.
        find_run, find_machine: look definitions up, where there is code.
    """

    def __init__(self, store: Store, find_run: FindRun | None = None, find_machine: FindMachine | None = None) -> None:
        self._store, self._find_run, self._find_machine = store, find_run, find_machine
        self._exports = Exports(store)
        self._judges = {
            "run": self._judge_run,
            "machine": self._judge_machine,
            "definition": self._judge_definition,
            "schedule": self._judge_schedule,
            "shard": self._judge_shard,
        }

    async def judge_all(self) -> AsyncIterator[Verdict]:
        """Yield a verdict on each entity, in the order of creation."""
        after = 0
        while heads := await self._store.scan(after=after, limit=_PAGE):
            for head in heads:
                yield await self.judge(head)
            after = heads[-1].order

    async def judge(self, head: Head) -> Verdict:
        """Judge one entity."""
        judge = self._judges.get(head.kind)
        problems: list[str] = []
        if judge is None:
            problems.append(f"its kind {head.kind!r} is not known to this version of flowlet")
        coded = False
        try:
            stored, records = await self._read(head, problems)
            if judge is not None and stored is not None:
                coded = await judge(stored, records, problems)
                head = stored.head
        except FlowletError as error:
            problems.append(str(error))
        named = [f"{head.kind} {head.id!r}: {problem}" for problem in problems]
        return Verdict(head=head, problems=named, records=head.version, is_coded=coded)

    async def _read(self, head: Head, problems: list[str]) -> tuple[Stored | None, list[bytes]]:
        """Read an entity whole, at one moment if nobody writes meanwhile; note what is missing."""
        records: list[bytes] = []
        while True:
            stored = await self._store.load(head.id, after=len(records), limit=_RECORDS)
            if stored is None:
                return None, []  # pruned since it was listed
            expected = min(_RECORDS, stored.head.version - len(records))
            records += stored.records
            if len(stored.records) != expected or len(records) == stored.head.version:
                break
        if len(records) != stored.head.version:
            problems.append(f"it has {len(records)} records where {stored.head.version} should be: one is missing")
        if stored.snapshot_version > stored.head.version:
            problems.append(f"its snapshot stands for {stored.snapshot_version} records; it has {stored.head.version}")
        numbers = [signal.number for signal in stored.signals]
        if numbers != sorted(set(numbers)) or (numbers and numbers[-1] > stored.head.inbox):
            problems.append(f"the signals in its inbox are numbered {numbers}, and the last was {stored.head.inbox}")
        return stored, records

    # -------------------------------------------------------------- runs
    async def _judge_run(self, stored: Stored, data: list[bytes], problems: list[str]) -> bool:
        head = stored.head
        records = list(_decoded(data, head, run_record_codec.decode, "run", problems))
        if len(records) != len(data) or not records:
            return False
        _judge_ends(head, records, problems)
        _judge_starts(records, problems)
        self._try(problems, lambda: build_report(head, records, None))
        if head.definition.startswith(BULK):
            self._try(problems, lambda: _judge_bulk(records))
            return False
        definition = None if self._find_run is None else self._find_run(head.definition, head.definition_version)
        self._try(problems, lambda: _judge_values(records, definition))
        return definition is not None

    def _try(self, problems: list[str], judge: Callable[[], object]) -> None:
        try:
            judge()
        except FlowletError as error:
            problems.append(str(error))

    # -------------------------------------------------------------- machines
    async def _judge_machine(self, stored: Stored, data: list[bytes], problems: list[str]) -> bool:
        head = stored.head
        records = list(_decoded(data, head, _read_machine_record, "machine", problems))
        if len(records) != len(data) or not records:
            return False
        exported = await self._exports.find(head.definition, head.definition_version)
        state = _fold_states(records, exported, problems)
        if state is not None and state != head.state:
            problems.append(f"it is listed in state {head.state!r}, and its records add up to {state!r}")
        definition = None if self._find_machine is None else self._find_machine(head.definition)
        if definition is None:
            return False
        fold = await judge_machine(self._store, definition, stored)
        if fold.configuration.state != head.state and not problems:
            problems.append(f"it is listed in state {head.state!r}, and folds to {fold.configuration.state!r}")
        return True

    # -------------------------------------------------------------- the rest
    async def _judge_definition(self, stored: Stored, data: list[bytes], problems: list[str]) -> bool:
        head = stored.head
        exports = [read_export(each, head.id) for each in data]
        if stored.snapshot is not None and data and stored.snapshot != data[-1]:
            problems.append("its snapshot is not its last record")
        last = exports[-1] if exports else {}
        expected = f"{RESERVED}{last.get('kind', 'machine')}/{last.get('name')}/{last.get('version')}"
        if expected != head.id:
            problems.append(f"it describes {expected!r}")
        return False

    async def _judge_schedule(self, stored: Stored, data: list[bytes], problems: list[str]) -> bool:
        state = state_codec.decode(stored.snapshot or b"", "its state")
        for number, each in enumerate(data, 1):
            _event.decode(each, f"record {number}")
        if state.status != stored.head.status:
            problems.append(f"it is listed as {stored.head.status!r}, and its state says {state.status!r}")
        return False

    async def _judge_shard(self, stored: Stored, data: list[bytes], problems: list[str]) -> bool:
        places: set[int] = set()
        count = 0
        for number, each in enumerate(data, 1):
            record = shard_codec.decode(each, f"record {number}")
            count += len(record.digests) // 8
            for item in record.ended:
                if item.place in places:
                    problems.append(f"item {item.place} has ended twice, again in record {number}")
                if item.place >= count:
                    problems.append(f"item {item.place} has ended in record {number}, and there are {count}")
                places.add(item.place)
        return False


def _read_machine_record(data: bytes, what: str) -> Record:
    return read_record(data, int(what.split()[1]), what.rpartition(" ")[2].strip("'"))


def _decoded(
    data: Iterable[bytes], head: Head, decode: Callable[[bytes, str], Any], kind: str, problems: list[str]
) -> Iterable[Any]:
    for number, each in enumerate(data, 1):
        try:
            yield decode(each, f"record {number} of {kind} {head.id!r}")
        except DecodeError as error:
            problems.append(str(error))


def _judge_ends(head: Head, records: Sequence[RunRecord], problems: list[str]) -> None:
    """Judge the first and the last record, and what listings say of them."""
    first, last = records[0], records[-1]
    if not isinstance(first, Started):
        problems.append(f"its first record is {type(first).__name__}, not Started")
    elif (first.definition, first.version) != (head.definition, head.definition_version):
        problems.append(f"it was started as {first.definition!r} version {first.version}, and is listed as another")
    for number, record in enumerate(records, 1):
        if isinstance(record, Started) and number > 1:
            problems.append(f"record {number} starts it again")
        if isinstance(record, Ended) and number < len(records):
            problems.append(f"record {number} ends it, and more follow")
    if isinstance(last, Ended) and (head.closed is None or head.status != last.status):
        problems.append(f"it has ended as {last.status!r}, and is listed as {head.status!r}")
    if not isinstance(last, Ended) and head.closed is not None:
        problems.append(f"it is listed as ended ({head.status!r}), and no record says so")
    if isinstance(last, Attention) and head.status in STUCK and head.status != last.status:
        problems.append(f"it asks as {last.status!r}, and is listed as {head.status!r}")


def _judge_starts(records: Sequence[RunRecord], problems: list[str]) -> None:
    """Judge that what was started is one thing, and has one outcome unless somebody had it tried again."""
    keys: dict[int, str] = {}
    ended: set[tuple[int, str]] = set()
    for number, record in enumerate(records, 1):
        if isinstance(record, Resolved):
            ended.clear()
        start, key = getattr(record, "start", None), getattr(record, "key", "")
        if start is None:
            continue
        if start < 1:
            problems.append(f"record {number} is of start {start}; starts count from 1")
        if keys.setdefault(start, key) != key:
            problems.append(f"record {number} says that start {start} is {key!r}; before it was {keys[start]!r}")
        if isinstance(record, _OUTCOMES):
            if (start, key) in ended:
                problems.append(f"record {number} is a second outcome of {key!r}")
            ended.add((start, key))


def _judge_bulk(records: Sequence[RunRecord]) -> None:
    first, last = records[0], records[-1]
    if isinstance(first, Started):
        facts_codec.decode(first.input, "its input")
    if isinstance(last, Ended) and last.value is not None:
        sums_codec.decode(last.value, "its result")


def _judge_values(records: Sequence[RunRecord], definition: RunDefinition | None) -> None:
    """Decode input, results and what steps have returned: as the definition says, or to anything."""
    for record in records:
        if isinstance(record, Started):
            codec = _anything if definition is None else definition.starter.input
            codec.decode(record.input, "its input")
        elif isinstance(record, Ended) and record.value is not None:
            if definition is None:
                _anything.decode(record.value, "its result")
            else:
                definition.starter.decode(record.value)
        elif isinstance(record, StepEnded):
            _anything.decode(record.value, f"the result of step {record.key!r}")


def _fold_states(records: Sequence[Record], exported: dict[str, Any] | None, problems: list[str]) -> str | None:
    """Follow a machine from state to state; return the last one."""
    events = None if exported is None else set(exported.get("events", ()))
    state: str | None = None
    version = 0
    for number, record in enumerate(records, 1):
        if record.definition_version != version:
            version, state = record.definition_version, None  # its states may have other names, see `migrate=`
        if isinstance(record, Created) != (number == 1):
            problems.append(f"record {number} is {type(record).__name__}")
        if record.data is not None:
            try:
                _data.decode(record.data, f"the data of record {number}")
            except DecodeError as error:
                problems.append(str(error))
        if isinstance(record, Moved):
            if state is not None and record.source != state:
                problems.append(f"record {number} leads from {record.source!r}, and it was in {state!r}")
            is_latest = exported is not None and str(record.definition_version) == str(exported.get("version"))
            if events is not None and is_latest and not _is_event(record.event, events, exported):
                problems.append(f"record {number} is of event {record.event!r}, which its definition does not have")
            state = record.target
        elif state is not None and record.state != state:
            problems.append(f"record {number} speaks of state {record.state!r}, and it was in {state!r}")
        else:
            state = record.state
    return state


def _is_event(event: str, events: set[str], exported: dict[str, Any] | None) -> bool:
    """Tell whether a definition has an event; transitions without one are recorded by their methods."""
    transitions = (exported or {}).get("transitions", ())
    return event in events or any(event in (t.get("event"), t.get("method")) for t in transitions)
