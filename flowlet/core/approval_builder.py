"""Building an approval chain: levels are checked, functions become steps, the definition is made.

Law: reads what was written and changes nothing of it. All faults of a chain are raised together; there is nothing left
to be found out about it when a run begins but what depends on the subject.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from flowlet.core.annotations import MISSING, Parameter, Signature, codec_for, read_signature
from flowlet.core.approval import ApprovalInterpretation
from flowlet.core.approval_checks import check_level, check_order, is_count
from flowlet.core.approval_levels import Level, LevelPlan
from flowlet.core.approval_plan import APPROVERS, NOTIFY, ApprovalDefinition, ChainPlan
from flowlet.core.approval_values import ApprovalNotice, ApprovalOutcome
from flowlet.core.codec import Codec
from flowlet.core.compatibility import may_take, type_name
from flowlet.core.definitions import Context
from flowlet.core.faults import Faults, describe
from flowlet.core.retry import seconds
from flowlet.core.steps import StepDefinition, build_step, plain_mark
from flowlet.errors import DefinitionError

Requester = Annotated[str, msgspec.Meta(min_length=1)]


class ApprovalOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What can be said of a chain; see `flowlet.assembler.Assembler.approval`."""

    version: Any = 1
    parallel: Any = False
    distinct: Any = False
    approve_when_empty: Any = False
    self_approval: Any = False
    notify: Any = None
    deadline: Any = None
    timeout: Any = None


def build_approval(
    name: str, levels: Sequence[Any], type: Any, options: ApprovalOptions, namespace: Mapping[str, Any]
) -> ApprovalDefinition:
    """Build a chain.

    Raises:
        DefinitionError: with everything that is wrong with it.
    """
    faults = Faults()
    if not isinstance(name, str) or not name:
        raise DefinitionError([f"an approval chain's name is a text, not {name!r}"])
    limits = _check_options(name, options, faults)
    subject = codec_for(type, name, "type=", faults)
    plans = [_build_level(name, level, type, namespace, faults) for level in levels]
    known = [plan for plan in plans if plan is not None]
    check_order(name, known, parallel=bool(options.parallel), has_notify=options.notify is not None, faults=faults)
    notify, owner = _build_notify(name, options.notify, type, namespace, faults)
    faults.raise_if_any()
    assert subject is not None
    plan = ChainPlan(
        name=name,
        levels=tuple(known),
        subject=subject,
        parallel=options.parallel,
        distinct=options.distinct,
        approve_when_empty=options.approve_when_empty,
        self_approval=options.self_approval,
        notify=notify,
        owner=owner,
    )
    return _define(plan, options, *limits)


def _check_options(name: str, options: ApprovalOptions, faults: Faults) -> tuple[float | None, float | None]:
    """Return the deadline and the timeout in seconds."""
    if not is_count(options.version):
        faults.add(name, f"version must be a whole number of at least 1, not {options.version!r}")
    for what in ("parallel", "distinct", "approve_when_empty", "self_approval"):
        if not isinstance(getattr(options, what), bool):
            faults.add(name, f"{what}= is True or False, not {getattr(options, what)!r}")
    found: list[float | None] = []
    for what in ("deadline", "timeout"):
        try:
            found.append(None if getattr(options, what) is None else seconds(getattr(options, what), what))
        except DefinitionError as error:
            faults.add(name, error.problems[0])
    return (found[0], found[1]) if len(found) == 2 else (None, None)


# ------------------------------------------------------------------ levels
def _build_level(name: str, level: Any, type: Any, namespace: Mapping[str, Any], faults: Faults) -> LevelPlan | None:
    if not isinstance(level, Level):
        faults.add(name, f"takes levels, not {level!r}; make them with level(...)")
        return None
    where = f"{name}: level {level.name!r}"
    plan = check_level(where, level, faults)
    if plan is None or not callable(level.approvers):
        return plan
    step, owner = _build_resolver(where, level, type, namespace, faults)
    return None if step is None else msgspec.structs.replace(plan, resolver=step, owner=owner)


def _build_resolver(
    where: str, level: Level[Any], type: Any, namespace: Mapping[str, Any], faults: Faults
) -> tuple[StepDefinition | None, object]:
    """Make the step that names who is asked on a level."""
    step, owner = _build_side_step(
        where, "approvers=", level.approvers, APPROVERS + level.name, namespace, type, faults
    )
    if step is None:
        return None, None
    if not may_take(step.result.type, Sequence[str]) and not may_take(step.result.type, set[str]):
        faults.add(where, f"approvers= returns {type_name(step.result.type)}; it is to return names, as list[str]")
    return msgspec.structs.replace(step, result=Codec(list[str]), scalar=None), owner


def _build_notify(
    name: str, notify: Any, type: Any, namespace: Mapping[str, Any], faults: Faults
) -> tuple[StepDefinition | None, object]:
    """Make the step that tells people what happens."""
    if notify is None:
        return None, None
    notice = ApprovalNotice[type]
    step, owner = _build_side_step(name, "notify=", notify, NOTIFY, namespace, notice, faults, ApprovalNotice)
    # What it returns is for nobody.
    return None if step is None else msgspec.structs.replace(step, result=Codec(Any), scalar=None), owner


def _build_side_step(
    where: str,
    what: str,
    function: Any,
    name: str,
    namespace: Mapping[str, Any],
    given: Any,
    faults: Faults,
    stands_for: Any = None,
) -> tuple[StepDefinition | None, object]:
    """Make a step of a function of one argument, beside those ``= provided``.

    Args:
        given: the type of the argument.
        stands_for: a type that means the same in an annotation, such as the generic without its parameter.
    """
    if not callable(function) or inspect.isclass(function):
        faults.add(where, f"{what} takes a function, not {function!r}")
        return None, None
    mark = plain_mark(function)
    owner = getattr(function, "__self__", None) if mark.method else None
    if mark.method and owner is None:
        faults.add(where, f"{what} is a method; give that of an object, `thing.{mark.name}`")
        return None, None
    read = read_signature(mark.function, namespace, faults, method=owner is not None)
    signature = _complete(where, what, read, given, stands_for, faults)
    if signature is None:
        return None, None
    named = msgspec.structs.replace(mark, name=name)
    return build_step(named, namespace, faults, method=owner is not None, signature=signature), owner


def _complete(where: str, what: str, read: Signature, given: Any, stands_for: Any, faults: Faults) -> Signature | None:
    """Add what need not be said: the type of the one argument, and of what is returned."""
    required = [p for p in read.inputs if p.required] or list(read.inputs[:1])
    if len(required) != 1 or read.variadic:
        faults.add(where, f"{what} {what.rstrip('=')} function must take one argument, beside those `= provided`")
        return None
    parameter = required[0]
    annotation = parameter.annotation
    if annotation in (MISSING, Any) or annotation is stands_for:
        annotation = given
    elif not (may_take(given, annotation) if stands_for is None else annotation == given):
        faults.add(where, f"{what} takes {type_name(annotation)}, but it is given {type_name(given)}")
    shown = msgspec.structs.replace(parameter, annotation=annotation)
    kept = tuple(shown if p.name == shown.name else p for p in read.parameters if p.provided or p.name == shown.name)
    default = list[str] if stands_for is None else type(None)
    result = default if read.result is MISSING else read.result
    return Signature(kept, result, read.variadic)


# ------------------------------------------------------------------ the definition
def _define(
    plan: ChainPlan, options: ApprovalOptions, deadline: float | None, timeout: float | None
) -> ApprovalDefinition:
    def interpret(context: Context, inputs: tuple[Any, ...]) -> ApprovalInterpretation:
        return ApprovalInterpretation(plan, inputs, context)

    steps = [level.resolver for level in plan.levels if level.resolver is not None]
    if plan.notify is not None:
        steps.append(plan.notify)
    return ApprovalDefinition(
        kind="approval",
        name=plan.name,
        version=str(options.version),
        deadline=deadline,
        timeout=timeout,
        target=None,
        steps={step.name: step for step in steps},
        starter=_starter(plan),
        interpret=interpret,
        exported=_export(plan, options, deadline, timeout),
        homes=[],
        signals={},
        plan=plan,
    )


def _starter(plan: ChainPlan) -> StepDefinition:
    """Describe how a chain is called: with a subject and its requester, for an outcome."""
    type = plan.subject.type

    async def approval(subject: Any, requester: str) -> Any:
        raise NotImplementedError  # only its signature is used

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    inputs = [("subject", type), ("requester", Requester)]
    result = ApprovalOutcome[type]  # type: ignore[valid-type]  # made at run time
    return StepDefinition(
        name=plan.name,
        function=approval,
        is_async=True,
        method=False,
        inputs=tuple(Parameter(n, t, kind, required=True, provided=False) for n, t in inputs),
        providers=(),
        result=Codec(result),
        input=Codec(tuple[type, Requester]),  # type: ignore[valid-type]  # made at run time
        signature=inspect.Signature(
            [inspect.Parameter("subject", kind, annotation=type), inspect.Parameter("requester", kind, annotation=str)],
            return_annotation=result,
        ),
        arity=2,
        kinds=(None, None),
        scalar=None,
        positional=2,
        keywords=(),
    )


def _export(plan: ChainPlan, options: ApprovalOptions, deadline: float | None, timeout: float | None) -> dict[str, Any]:
    """Return a chain as plain data."""
    return {
        "kind": "approval",
        "name": plan.name,
        "version": options.version,
        "deadline": deadline,
        "timeout": timeout,
        "subject": describe(plan.subject.type),
        "inputs": ["subject", "requester"],
        "parallel": plan.parallel,
        "distinct": plan.distinct,
        "approve_when_empty": plan.approve_when_empty,
        "self_approval": plan.self_approval,
        "notify": None if plan.notify is None else describe(plan.notify.function),
        "levels": [_export_level(level) for level in plan.levels],
    }


def _export_level(level: LevelPlan) -> dict[str, Any]:
    return {
        "name": level.name,
        "role": level.role,
        "approvers": None if level.approvers is None else list(level.approvers),
        "resolver": None if level.resolver is None else describe(level.resolver.function),
        "quorum": level.quorum,
        "when": None if level.when is None else getattr(level.when, "__name__", "when"),
        "timeout": level.timeout,
        "escalate_to": level.escalate_to,
        "on_timeout": None if level.timeout is None else level.on_timeout,
        "remind": list(level.remind),
        "veto": level.veto,
        "send_back_to": level.send_back_to,
        "delegate": level.delegate,
    }
