"""A run as plain data, read without its code: for tools.

Law: it says what is on record and nothing else. Secrets that the definition names are masked, and where the store has
no definition to ask, so is every value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from flowlet.core.bulk_records import BULK, facts_codec, sums_codec
from flowlet.core.codec import Codec
from flowlet.core.run_records import Attention, Ended, Interrupted, Parked, Resolved, RunRecord, Started
from flowlet.core.secrets import MASK, Tree, redact
from flowlet.runtime.opaque import hide_bytes
from flowlet.runtime.report import StepReport, build_report, name_failure
from flowlet.store import Head, Stored

_anything: Codec[Any] = Codec(Any)


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a run; see `flowlet.runtime.report.StepReport`."""

    name: str
    status: str
    attempts: int
    seconds: float
    value: Any
    error: str | None


class SignalView(msgspec.Struct, frozen=True, kw_only=True):
    """A signal that a run has not taken yet; its payload is not shown, since nothing tells what is secret in it."""

    number: int
    topic: str
    message_id: str | None
    bytes: int


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Times are seconds of the store's clock.

    Attributes:
        wake: when it is to be looked at next, if it waits for a time; 0.0 for at once.
        parent: the run that waits for it.
        forked_from: the runs that it goes on from, the oldest first.
        input: by the names of the parameters, if they are known.
        result: of a completed run.
        error: why it failed, or is being undone.
        reason: why it needs somebody, and ``asked`` the keys of the steps that it is about.
        is_known: the store has its definition, without which no value is shown.
    """

    head: Head
    parent: str | None
    deadline: float | None
    forked_from: Sequence[str]
    input: Any
    result: Any
    error: str | None
    reason: str | None
    asked: Sequence[str]
    steps: Sequence[StepView]
    signals: Sequence[SignalView]
    is_known: bool


def view_run(stored: Stored, records: Sequence[RunRecord], exported: dict[str, Any] | None) -> RunView:
    """Return what is on record of a run.

    Args:
        records: all of them.
        exported: its definition.

    Raises:
        DecodeError: a value is damaged.
    """
    head, started, last = stored.head, records[0], records[-1]
    assert isinstance(started, Started)
    names = [] if exported is None else list(exported.get("inputs", ()))
    bulk = head.definition.startswith(BULK)
    eyes = _Eyes(exported, everything=exported is None and not bulk)
    report = build_report(head, records, None)
    return RunView(
        head=head,
        parent=started.parent,
        deadline=started.deadline,
        forked_from=[id for id, _ in started.origins],
        input=_bulk_input(started) if bulk else _named(eyes.see(started.input, "input"), names),
        result=_result(last, eyes, bulk),
        error=_error(records),
        reason=last.reason if isinstance(last, (Attention, Parked)) and head.closed is None else None,
        asked=last.steps if isinstance(last, Attention) else (),
        steps=[_step(step, eyes) for step in report.steps.values()],
        signals=[
            SignalView(number=s.number, topic=s.topic, message_id=s.message_id, bytes=len(s.payload))
            for s in stored.signals
        ],
        is_known=exported is not None or bulk,
    )


class _Eyes:
    """What may be seen of a run's values.

    Args:
        exported: the definition, which names the secrets; without it everything is one.
        everything: is secret.
    """

    def __init__(self, exported: dict[str, Any] | None, everything: bool) -> None:
        exported = exported or {}
        self._trees: dict[str, Any] = exported.get("secrets") or {}
        self._everything = everything
        parts = [part for key in ("steps", "nodes", "levels", "finally") for part in exported.get(key) or ()]
        self._steps = {part["name"] for part in parts if isinstance(part, dict) and "name" in part}

    def see(self, data: bytes, part: str) -> Any:
        """Return an encoded value."""
        return self._redact(_anything.decode(data, f"the {part}"), self._trees.get(part))

    def see_step(self, name: str, value: Any) -> Any:
        """Return the value of a step, or of several items of one together.

        What a definition does not know by name (a step that was not there at assembly, the way back, what flowlet does
        in between) may return anything, so it is masked.
        """
        plain = re.split(r"[#\[]", name, maxsplit=1)[0]
        if plain not in self._steps and plain not in (self._trees.get("steps") or {}):
            return MASK
        tree = (self._trees.get("steps") or {}).get(plain, {}).get("result")
        if tree is not None and "[" not in name and isinstance(value, list):
            tree = _of_one_or_all(tree)
        return self._redact(value, tree)

    def _redact(self, value: Any, tree: Tree | None) -> Any:
        return MASK if self._everything and value is not None else hide_bytes(redact(value, tree))


def _of_one_or_all(tree: Tree) -> Tree:
    """Return the tree of a value that may be a step's, or a list with those of its items."""
    return True if tree is True else {"*": True} if not isinstance(tree, dict) or "*" in tree else {**tree, "*": tree}


def _named(values: Any, names: Sequence[str]) -> Any:
    if not isinstance(values, list) or len(values) != len(names):
        return values
    return dict(zip(names, values, strict=True))


def _bulk_input(started: Started) -> dict[str, Any]:
    facts = facts_codec.decode(started.input, "the input of a bulk operation")
    return {"items": facts.total, "in_parts_of": facts.size}


def _result(last: RunRecord, eyes: _Eyes, bulk: bool) -> Any:
    if not isinstance(last, Ended) or last.value is None:
        return None
    if bulk:
        return msgspec.structs.asdict(sums_codec.decode(last.value, "the result of a bulk operation"))
    return eyes.see(last.value, "result")


def _error(records: Sequence[RunRecord]) -> str | None:
    for record in reversed(records):
        if isinstance(record, (Ended, Attention, Interrupted)) and record.error is not None:
            return name_failure(record.error)
        if isinstance(record, Resolved) and record.action == "retry":
            return None
    return None


def _step(step: StepReport, eyes: _Eyes) -> StepView:
    return StepView(
        name=step.name,
        status=step.status,
        attempts=step.attempts,
        seconds=step.seconds,
        value=None if step.value is None else eyes.see_step(step.name, step.value),
        error=step.error,
    )
