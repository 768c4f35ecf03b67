"""What a run has left behind, in the store and in the world, and whether that is as it must be."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
from workloads import Workload

from flowlet.core.engine import COMPENSATING
from flowlet.core.pipeline import SKIPPED
from flowlet.core.run_records import (
    AttemptErred,
    Attention,
    Ended,
    Noted,
    Outcome,
    Resolved,
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


def effects_by_run(path: Path) -> dict[str, list[Effect]]:
    """Return the lines of an effects file, for each run in the order they were written."""
    found: dict[str, list[Effect]] = defaultdict(list)
    for effect in read_effects(path):
        found[effect.run].append(effect)
    return found


def owners(effects: Sequence[Effect]) -> list[int]:
    """Return the processes that worked on a run, in turn."""
    return [e.pid for n, e in enumerate(effects) if n == 0 or effects[n - 1].pid != e.pid]


def check_owners(effects: Sequence[Effect], killed: set[int]) -> None:
    """One process at a time works on a run, and another one only after it has died."""
    turns = owners(effects)
    assert all(pid in killed for pid in turns[:-1]), f"{turns} worked on it, but only {killed.intersection(turns)} died"
    assert len(set(turns)) == len(turns), f"{turns} worked on it by turns"


def read_journal(stored: Stored) -> list[RunRecord]:
    """Decode a journal; it is numbered without gap, begins once and ends once, or waits for its operator."""
    assert len(stored.records) == stored.head.version, "the journal has a gap"
    records = [run_record_codec.decode(data, f"record {n}") for n, data in enumerate(stored.records, 1)]
    assert [type(r) for r in records].count(Started) == 1
    assert isinstance(records[0], Started)
    is_stuck = stored.head.status == "compensation_failed"
    assert [type(r) for r in records].count(Ended) == int(not is_stuck), "not one terminal record"
    last = records[-1]
    assert isinstance(last, Attention if is_stuck else Ended)
    assert last.status == stored.head.status
    assert (stored.head.closed is None) == is_stuck
    assert stored.head.owner is None
    assert stored.head.wake is None
    for question, answer in pairwise(records):
        assert isinstance(question, Attention) == isinstance(answer, Resolved), "not a question and its answer"
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


def _outcomes(records: Sequence[RunRecord]) -> dict[str, Outcome]:
    """Return the outcomes by key; only what an operator had tried again has two, and the last one counts."""
    found: dict[str, Outcome] = {}
    starts: list[int] = []
    again: tuple[str, ...] = ()
    for record in records:
        if isinstance(record, Attention):
            again = record.steps
        elif isinstance(record, OUTCOMES):
            starts.append(record.start)
            if record.key in found:
                assert isinstance(found.pop(record.key), StepErred), "a step has two outcomes"
                assert record.key.partition("~")[0] in again, "a step has failed for good, and was tried again"
            found[record.key] = record
    assert sorted(starts) == list(range(1, len(starts) + 1)), "starts are not 1..n"
    return found


def _check_undone(workload: Workload, records: Sequence[RunRecord], undone: Sequence[str]) -> None:
    """Each completed step is undone once, in reverse, after the decision was noted, which was after the failure.

    What could not be undone at first comes last.
    """
    completed = [r.key for r in records if isinstance(r, StepEnded) and r.key in workload.undoes]
    if workload.status == "completed":
        completed = []
    assert list(undone) == sorted(
        (workload.undoes[key] for key in reversed(completed)), key=workload.stuck.__contains__
    )
    decisions = [n for n, r in enumerate(records) if isinstance(r, Noted) and r.key == COMPENSATING]
    assert len(decisions) == bool(undone or (workload.closes and workload.failing))
    if undone:
        by_key = {r.key: n for n, r in reversed(list(enumerate(records))) if isinstance(r, OUTCOMES)}
        assert workload.failing is not None
        assert by_key[workload.failing] < decisions[0] < by_key[undone[0]]
        assert {key for key in undone if isinstance(records[by_key[key]], StepErred)} == set(workload.stuck)
        assert all(isinstance(record, StepEnded) for key, record in _outcomes(records).items() if key in undone)
    questions = [r.steps for r in records if isinstance(r, Attention)]
    assert questions == ([tuple(key.partition("~")[0] for key in workload.stuck)] if workload.stuck else [])


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
    _check_closed(workload, records)


def _check_closed(workload: Workload, records: Sequence[RunRecord]) -> None:
    """What a pipeline does in any case comes in its order behind everything else."""
    keys = [r.key for r in records if isinstance(r, OUTCOMES)]
    assert tuple(keys[len(keys) - len(workload.closes) :]) == workload.closes


def _check_given(workload: Workload, records: Sequence[RunRecord], effects: Sequence[Effect]) -> None:
    """What is undone is what is on record: every repeat of a compensation was given the recorded result."""
    makers: dict[str, set[int]] = defaultdict(set)
    given: dict[str, set[str]] = defaultdict(set)
    for effect in effects:
        makers[effect.key].add(effect.pid)
        given[effect.key].add(effect.given)
    for record in records:
        if isinstance(record, StepEnded) and record.key not in workload.undoes.values():
            value = msgspec.msgpack.decode(record.value)
            for step, pid in (slip.values() for slip in (value if isinstance(value, list) else [value])):
                assert step == record.key.partition("#")[0] or "~" in step or step == record.key
                assert pid in makers[record.key], "the recorded result is of a process that did not do it"
            if workload.undoes.get(record.key) in given:
                assert given[workload.undoes[record.key]] == {str(pid)}
    for key, values in given.items():
        assert len(values) == 1, f"{key} was given {values}"
