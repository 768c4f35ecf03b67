"""What a run has left behind, in the store and in the world, and whether that is as it must be."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from workloads import Workload

from flowlet.core.engine import COMPENSATING
from flowlet.core.pipeline import SKIPPED
from flowlet.core.run_records import (
    AttemptErred,
    Ended,
    Noted,
    RunRecord,
    Started,
    StepEnded,
    StepErred,
    StepStopped,
    run_record_codec,
)
from flowlet.store import Stored

OUTCOMES = (StepEnded, StepErred, StepStopped)
TAGS = {StepEnded: "s", StepErred: "e", StepStopped: "c"}


class Effect(NamedTuple):
    """A line of the effects file."""

    run: str
    key: str
    attempt: int
    given: str
    pid: int


def read_effects(path: Path) -> list[Effect]:
    """Return the lines of an effects file in the order they were written."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        key, attempt, given, pid = line.split("\t")
        run, _, name = key.rpartition("/")
        found.append(Effect(run, name, int(attempt), given, int(pid)))
    return found


def read_journal(stored: Stored) -> list[RunRecord]:
    """Decode a journal; it is numbered without gap, begins once and ends once."""
    assert len(stored.records) == stored.head.version, "the journal has a gap"
    records = [run_record_codec.decode(data, f"record {n}") for n, data in enumerate(stored.records, 1)]
    assert [type(r) for r in records].count(Started) == 1
    assert isinstance(records[0], Started)
    assert [type(r) for r in records].count(Ended) == 1, "not one terminal record"
    assert isinstance(records[-1], Ended)
    assert records[-1].status == stored.head.status
    assert stored.head.closed is not None
    assert stored.head.owner is None
    times = [r.at for r in records]
    assert times == sorted(times), "a record is older than the one before it"
    return records


def check(workload: Workload, stored: Stored, effects: Sequence[Effect], crashes: int) -> None:
    """Hold a run's journal and its effects against what must have come of it.

    Raises:
        AssertionError: it is not so.
    """
    records = read_journal(stored)
    assert stored.head.status == workload.status
    outcomes = _outcomes(records)
    undone = [key for key in outcomes if "~" in key and key in workload.undoes.values()]
    assert {key: TAGS[type(r)] for key, r in outcomes.items() if key not in undone} == workload.steps
    _check_undone(workload, records, undone)
    _check_attempts(workload, records)
    _check_effects(workload, records, effects, crashes)
    skipped = [r.key.removeprefix(SKIPPED) for r in records if isinstance(r, Noted) and r.key.startswith(SKIPPED)]
    assert skipped == list(workload.skipped)


def _outcomes(records: Sequence[RunRecord]) -> dict[str, StepEnded | StepErred | StepStopped]:
    found = [r for r in records if isinstance(r, OUTCOMES)]
    assert len({r.key for r in found}) == len(found), "a step has two outcomes"
    assert sorted(r.start for r in found) == list(range(1, len(found) + 1)), "starts are not 1..n"
    return {r.key: r for r in found}


def _check_undone(workload: Workload, records: Sequence[RunRecord], undone: Sequence[str]) -> None:
    """Each completed step is undone once, in reverse, after the decision was noted, which was after the failure."""
    completed = [r.key for r in records if isinstance(r, StepEnded) and r.key in workload.undoes]
    if workload.status == "completed":
        completed = []
    assert list(undone) == [workload.undoes[key] for key in reversed(completed)]
    decisions = [n for n, r in enumerate(records) if isinstance(r, Noted) and r.key == COMPENSATING]
    assert len(decisions) == bool(undone)
    if undone:
        by_key = {r.key: n for n, r in enumerate(records) if isinstance(r, OUTCOMES)}
        assert workload.failing is not None
        assert by_key[workload.failing] < decisions[0] < by_key[undone[0]]
        assert all(isinstance(records[by_key[key]], StepEnded) for key in undone)


def _check_attempts(workload: Workload, records: Sequence[RunRecord]) -> None:
    attempts: dict[str, list[int]] = defaultdict(list)
    for record in records:
        if isinstance(record, (AttemptErred, StepEnded, StepErred)):
            attempts[record.key].append(record.attempt)
    for key, numbers in attempts.items():
        assert numbers == list(range(1, workload.attempts.get(key, 1) + 1)), f"attempts of {key}: {numbers}"


def _check_effects(workload: Workload, records: Sequence[RunRecord], effects: Sequence[Effect], crashes: int) -> None:
    done = Counter(e.key for e in effects)
    recorded = Counter(r.key for r in records if isinstance(r, (AttemptErred, StepEnded, StepErred)))
    stopped = {r.key for r in records if isinstance(r, StepStopped)}
    assert set(done) - stopped == set(recorded), "effects and records speak of different steps"
    for key, count in recorded.items():
        assert count <= done[key] <= count + crashes, f"{key}: {done[key]} effects, {count} recorded"
    for key in stopped:
        assert done[key] <= 1 + crashes
    assert sum((done - recorded).values()) <= crashes * workload.width + len(stopped)
    for (key, attempt), count in Counter((e.key, e.attempt) for e in effects).items():
        assert count <= 1 + crashes
        assert attempt <= recorded[key] or key in stopped, f"{key} was attempted for the {attempt}th time"
    _check_given(workload, records, effects)


def _check_given(workload: Workload, records: Sequence[RunRecord], effects: Sequence[Effect]) -> None:
    """What is undone is what is on record: every repeat of a compensation was given the recorded result."""
    makers: dict[str, set[int]] = defaultdict(set)
    given: dict[str, set[str]] = defaultdict(set)
    for effect in effects:
        makers[effect.key].add(effect.pid)
        given[effect.key].add(effect.given)
    for record in records:
        if isinstance(record, StepEnded) and record.key not in workload.undoes.values():
            step, pid = msgspec.msgpack.decode(record.value).values()
            assert step == record.key.partition("#")[0] or "~" in step or step == record.key
            assert pid in makers[record.key], "the recorded result is of a process that did not do it"
            if workload.undoes.get(record.key) in given:
                assert given[workload.undoes[record.key]] == {str(pid)}
    for key, values in given.items():
        assert len(values) == 1, f"{key} was given {values}"
