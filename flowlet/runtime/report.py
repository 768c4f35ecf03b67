"""Reports: what became of each step of a run, folded from its journal.

Law: a report says what is on record and nothing else. It is data, and it can be made without the definition: then
values are plain data, and steps that nothing was recorded of are missing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from flowlet.core.codec import Codec
from flowlet.core.definitions import RunDefinition
from flowlet.core.failures import Failure
from flowlet.core.pipeline import SKIPPED, closing_name
from flowlet.core.run_records import (
    AttemptErred,
    Noted,
    Resolved,
    RunRecord,
    SignalTaken,
    Started,
    StepEnded,
    StepErred,
    StepStopped,
)
from flowlet.core.secrets import redact
from flowlet.errors import DecodeError
from flowlet.store import Head

if TYPE_CHECKING:
    from flowlet.runtime.handle import Status

_anything: Codec[Any] = Codec(Any)
_ITEM = re.compile(r"(\w+)\[(\d+)\]")
_HANDLER = re.compile(r"(\w+(?:\[\d+\])?):.+")


class StepReport(msgspec.Struct, frozen=True):
    """What became of one step.

    Attributes:
        name: its key: the step's name, with an ordinal from the second call on; ``name[0]`` for an item of
            a step that is done for each, whose own report, ``name``, is that of all of them together.
        value: its result, or what stands in for it where it failed; None if there is neither.
        status: ``"completed"``, ``"failed"``, ``"cancelled"``, ``"retrying"``, ``"skipped"`` or, of items together
            that have not all ended, ``"running"``.
        attempts: how often it was tried, as far as recorded.
        seconds: how long its attempts took together.
        error: type and message of its (last) error, or why it was skipped.
        secrets: where in ``value`` there is what the text of this must not show; see `flowlet.Secret`.
    """

    name: str
    value: Any
    status: str
    attempts: int
    seconds: float
    error: str | None = None
    secrets: Any = None

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__ if name != "secrets"}
        shown["value"] = redact(self.value, self.secrets)
        return f"StepReport({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class RunReport(msgspec.Struct, frozen=True):
    """What became of a run so far; ``steps`` are in the order of their records."""

    status: Status
    steps: Mapping[str, StepReport]


def build_report(head: Head, records: Sequence[RunRecord], definition: RunDefinition | None) -> RunReport:
    """Fold a journal into what became of each step."""
    steps: dict[str, StepReport] = {}
    for record in records:
        found = _read(record, steps, definition)
        if found is not None:
            steps[found.name] = found
    exported = {} if definition is None else {s["name"]: s for s in definition.exported.get("steps", ())}
    _stand_in(steps, exported, definition)
    joined = _join_items(steps, records, exported, definition)
    return RunReport(cast("Status", head.status), joined if definition is None else _with_secrets(joined, definition))


def _with_secrets(steps: dict[str, StepReport], definition: RunDefinition) -> dict[str, StepReport]:
    """Say of each step where the secrets in its result are."""
    found = definition.secrets()
    trees = {**found.get("signals", {}), **{name: call.get("result") for name, call in found.get("steps", {}).items()}}
    for key, step in steps.items() if trees else ():
        tree = trees.get(re.split(r"[#:[]", key, maxsplit=1)[0])
        if tree is not None:
            is_joined = f"{key}[0]" in steps
            steps[key] = msgspec.structs.replace(step, secrets={"*": tree} if is_joined else tree)
    return steps


def name_failure(failure: Failure) -> str:
    """Return type and message of a recorded error."""
    return f"{failure.type.partition(':')[2]}: {failure.message}"


def _read(record: RunRecord, steps: Mapping[str, StepReport], definition: RunDefinition | None) -> StepReport | None:
    """Return what is known of a step after a record, if the record is about one."""
    if isinstance(record, (AttemptErred, StepEnded, StepErred)):
        name = closing_name(record.key) or record.key
        past = steps.get(name)
        seconds = record.seconds + (past.seconds if past else 0.0)
        if isinstance(record, StepEnded):
            return _ended(
                StepReport(name, None, "completed", record.attempt, seconds), record.key, record.value, definition
            )
        status = "retrying" if isinstance(record, AttemptErred) else "failed"
        return StepReport(name, None, status, record.attempt, seconds, name_failure(record.error))
    if (
        isinstance(record, Resolved)
        and record.action == "skip"
        and record.value is not None
        and record.step is not None
    ):
        past = steps.get(record.step)  # an operator has said what it returned
        ended = StepReport(record.step, None, "completed", past.attempts if past else 0, past.seconds if past else 0.0)
        return _ended(ended, record.step, record.value, definition)
    if isinstance(record, SignalTaken) and definition is not None and definition.kind == "graph":
        codec = (definition.signals or {}).get(record.topic, _anything)  # of a pause, what was sent to it
        return StepReport(record.key, codec.decode(record.payload, record.key), "completed", 1, 0.0)
    if isinstance(record, StepStopped):
        return StepReport(closing_name(record.key) or record.key, None, "cancelled", 1, 0.0)
    if isinstance(record, Noted) and record.key.startswith(SKIPPED):
        reason = _anything.decode(record.value, "a note")
        return StepReport(record.key[len(SKIPPED) :], None, "skipped", 0, 0.0, str(reason))
    return None


def _ended(step: StepReport, key: str, data: bytes, definition: RunDefinition | None) -> StepReport:
    """Say with what a step has ended: its result, or one of another type, which the run takes for a failure."""
    try:
        value = _value(key, data, definition)
    except DecodeError as error:
        plain = _anything.decode(data, key)  # to see what is wrong with it
        return msgspec.structs.replace(step, value=plain, status="failed", error=f"DecodeError: {error}")
    return msgspec.structs.replace(step, value=value)


def _value(key: str, value: bytes, definition: RunDefinition | None) -> Any:
    """Decode a step's result as its definition says, or to plain data when that is not known here.

    Raises:
        DecodeError: it is of another type than annotated.
    """
    name = re.split(r"[#:[]", key, maxsplit=1)[0]
    step = None if definition is None or "~" in key else definition.steps.get(name)
    if step is not None:
        return step.decode(value)
    return _anything.decode(value, key)


# ---------------------------------------------------------------- pipelines
def _stand_in(
    steps: dict[str, StepReport], exported: Mapping[str, Mapping[str, Any]], definition: RunDefinition | None
) -> None:
    """Give failed steps the value that stands in for their results: a given one, or that of a handler."""
    for key, step in list(steps.items()):
        name = re.split(r"[:[]", key, maxsplit=1)[0]
        plan = exported.get(name, {})
        handled = _HANDLER.fullmatch(key)
        of = steps.get(handled[1]) if handled is not None else None  # a step with keys of its own has none but these
        if of is not None and of.status == "failed" and step.status == "completed":
            steps[of.name] = msgspec.structs.replace(of, value=step.value)
        if step.status == "failed" and "stand_in" in plan and definition is not None:
            value = plan["stand_in"]
            with contextlib.suppress(msgspec.ValidationError):
                value = msgspec.convert(value, definition.steps[name].result.type, str_keys=True)
            steps[key] = msgspec.structs.replace(step, value=value)


def _join_items(
    steps: Mapping[str, StepReport],
    records: Sequence[RunRecord],
    exported: Mapping[str, Mapping[str, Any]],
    definition: RunDefinition | None,
) -> dict[str, StepReport]:
    """Put before the items of a step what became of them together, also of a step that had none."""
    items: dict[str, dict[int, StepReport]] = {}
    for key, step in steps.items():
        match = _ITEM.fullmatch(key)
        if match is not None:
            items.setdefault(match[1], {})[int(match[2])] = step
    found: dict[str, StepReport] = {}
    for key, step in steps.items():
        name = key.partition("[")[0]
        if name in items and name not in found:
            plan = exported.get(name, {})
            found[name] = _join(name, items[name], _count_items(plan, found, records, definition), plan)
        found[key] = step
    for name, plan in exported.items():
        if plan.get("each") and name not in found and _count_items(plan, found, records, definition) == 0:
            found[name] = StepReport(name, [], "completed", 0, 0.0)
    return found


def _join(name: str, items: Mapping[int, StepReport], total: int | None, plan: Mapping[str, Any]) -> StepReport:
    several = [items[number] for number in sorted(items)]
    has_value = [s.status == "completed" or s.value is not None or "stand_in" in plan for s in several]
    lost = [s for s, good in zip(several, has_value, strict=True) if not good and s.status != "skipped"]
    worst = next((s for status in ("failed", "cancelled", "retrying") for s in lost if s.status == status), None)
    status = "completed" if total is None or len(several) >= total else "running"
    if worst is not None and not (worst.status == "failed" and plan.get("on_error") == "skip"):
        status = worst.status
    return StepReport(
        name,
        [s.value for s, good in zip(several, has_value, strict=True) if good],
        status,
        sum(s.attempts for s in several),
        sum(s.seconds for s in several),
        next((f"{s.name}: {s.error}" for s in several if s.error), None),
    )


def _count_items(
    plan: Mapping[str, Any],
    steps: Mapping[str, StepReport],
    records: Sequence[RunRecord],
    definition: RunDefinition | None,
) -> int | None:
    """Return how many items a step is done for, as far as what it takes them of is on record."""
    parameter = plan.get("each")
    if parameter is None or definition is None:
        return None
    needs = [steps.get(need) for need in plan["needs"]]
    if any(need is None or need.status in ("skipped", "running", "retrying") for need in needs):
        return None
    several = steps.get(parameter) if parameter in plan["needs"] else None
    source = _read_input(parameter, records, definition) if several is None else several.value
    return len(source) if isinstance(source, (list, tuple)) else None


def _read_input(name: str, records: Sequence[RunRecord], definition: RunDefinition) -> Any:
    started, starter = records[0], definition.starter
    assert isinstance(started, Started)
    names = [p.name for p in starter.inputs]
    with contextlib.suppress(DecodeError):
        return starter.input.decode(started.input, "the input")[names.index(name)]
    return None
