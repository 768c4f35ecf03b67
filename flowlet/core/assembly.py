"""Building run definitions out of marked functions and classes.

Law: assembly reads, checks and freezes; it registers nothing and starts nothing. Everything wrong
with one definition is raised together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from flowlet.core.annotations import Parameter, read_signature
from flowlet.core.bodies import StepBook, find_class_steps, find_function_steps, find_stray_compensations
from flowlet.core.definitions import Context, RunDefinition
from flowlet.core.faults import Faults
from flowlet.core.pipeline import PipelineInterpretation
from flowlet.core.pipeline_failures import Handler, OnError, describe_policy
from flowlet.core.pipeline_plan import Plan, build_plan, check_limit, check_references, result_codec
from flowlet.core.program import Program
from flowlet.core.retry import seconds
from flowlet.core.run import Run
from flowlet.core.saga import SagaInterpretation
from flowlet.core.steps import StepDefinition, build_executable
from flowlet.core.wiring import StepRef, Wired, Wiring, wire
from flowlet.errors import DefinitionError

_UNDOES_NOTHING = "step {!r} has a compensation, but a pipeline undoes nothing; make it a saga"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What can be said of any run definition.

    Attributes:
        deadline: seconds after its start in which a run must have ended, or None.
        timeout: seconds that a process may spend on a run, None for no limit, unset for what the `Flowlet` says.
        together: compensations run in parallel.
    """

    version: int = 1
    deadline: Any = None
    timeout: Any = msgspec.UNSET
    together: bool = False


class PipelineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What can be said of a pipeline that is made of steps; see `Assembler.pipeline`."""

    max_concurrency: int | None = None
    needs: Mapping[StepRef, StepRef | Sequence[StepRef]] = {}
    when: Mapping[StepRef, Callable[..., bool]] = {}
    on_error: OnError | Mapping[StepRef, OnError] = "stop"
    each: Mapping[StepRef, StepRef] = {}
    finally_: Sequence[Callable[..., Any]] | Callable[..., Any] = ()


def build_function(
    kind: str, function: Callable[..., Any], *, name: str | None, options: Options, namespace: Mapping[str, Any]
) -> RunDefinition:
    """Build a definition whose body is an async function.

    Raises:
        DefinitionError: with everything that is wrong with it and the steps it names.
    """
    faults = Faults()
    _check_options(function, options, faults)
    if not inspect.iscoroutinefunction(function):
        faults.add(function, f"the body of a {kind} must be an async def")
        faults.raise_if_any()
    title = name or function.__name__
    book = StepBook(title, namespace)
    for mark in find_function_steps(function, namespace):
        book.learn(mark, faults, method=mark.method)
    find_stray_compensations(function, namespace, faults)
    _check_undo(kind, title, book, faults)
    starter = build_executable(title, function, read_signature(function, namespace, faults), faults, method=False)
    faults.raise_if_any()
    assert starter is not None

    def interpret(context: Context, inputs: tuple[Any, ...]) -> SagaInterpretation:
        async def body(program: Program) -> Any:
            return await starter.call(None, inputs, _provided(starter, context, program))

        return SagaInterpretation(starter, body, book, context, together=options.together)

    return _definition(kind, title, options, function, starter, book, interpret)


def build_class(
    kind: str, cls: type, *, name: str | None, options: Options, namespace: Mapping[str, Any]
) -> RunDefinition:
    """Build a definition whose body is ``async def __call__`` of a class.

    Raises:
        DefinitionError: with everything that is wrong with the class and its steps.
    """
    faults = Faults()
    _check_options(cls, options, faults)
    call = inspect.getattr_static(cls, "__call__", None)
    if not inspect.iscoroutinefunction(call):
        faults.add(cls, f"needs `async def __call__(self, ...)`, the body of the {kind}")
        faults.raise_if_any()
    assert call is not None
    constructor = _read_constructor(cls, namespace, faults)
    title = name or cls.__name__
    book = StepBook(title, namespace)
    for mark in find_class_steps(cls, faults):
        book.learn(mark, faults, method=True)
    for mark in find_function_steps(call, namespace):
        book.learn(mark, faults, method=mark.method)
    _check_undo(kind, title, book, faults)
    starter = build_executable(title, call, read_signature(call, namespace, faults, method=True), faults, method=True)
    faults.raise_if_any()
    assert starter is not None

    def interpret(context: Context, inputs: tuple[Any, ...]) -> SagaInterpretation:
        async def body(program: Program) -> Any:
            return await starter.call(context.instance, inputs, _provided(starter, context, program))

        return SagaInterpretation(starter, body, book, context, together=options.together)

    return _definition(kind, title, options, cls, starter, book, interpret, constructor)


def build_saga(
    name: str, steps: Sequence[Callable[..., Any]], *, options: Options, namespace: Mapping[str, Any]
) -> RunDefinition:
    """Build a saga out of a list of steps, performed in order.

    Raises:
        DefinitionError: with everything that is wrong with the steps and their wiring.
    """
    faults = Faults()
    _check_options(name, options, faults)
    wiring = wire(name, steps, namespace, faults, any_order=False)
    faults.raise_if_any()
    assert wiring is not None
    book = StepBook(name, namespace)

    def interpret(context: Context, inputs: tuple[Any, ...]) -> SagaInterpretation:
        async def body(program: Program) -> Any:
            values: list[Any] = []
            for wired in wiring.steps:
                values.append(await program.perform(wired.step, wired.arguments(inputs, values), wired.owner))
            return values[-1]

        return SagaInterpretation(wiring.starter, body, book, context, together=options.together)

    return _definition("saga", name, options, None, wiring.starter, wiring, interpret)


def build_pipeline(
    name: str,
    steps: Sequence[Callable[..., Any]],
    *,
    options: Options,
    namespace: Mapping[str, Any],
    pipeline: PipelineOptions,
) -> RunDefinition:
    """Build a pipeline out of a list of steps; independent ones run in parallel.

    Raises:
        DefinitionError: with everything that is wrong with the steps and their wiring.
    """
    faults = Faults()
    _check_options(name, options, faults)
    _check_shapes(name, pipeline, faults)
    wiring = wire(name, steps, namespace, faults, any_order=True, needs=pipeline.needs, each=pipeline.each)
    check_limit(name, pipeline.max_concurrency, faults)
    if wiring is None:  # what else there is to say about conditions and failures needs it
        check_references(name, steps, pipeline.when, pipeline.on_error, faults)
    faults.raise_if_any()
    assert wiring is not None
    for wired in wiring.steps:
        _check_undone_by_none(name, wired.step, faults)
    plan = build_plan(
        wiring,
        faults,
        namespace,
        when=pipeline.when,
        on_error=pipeline.on_error,
        finally_=pipeline.finally_,
        limit=pipeline.max_concurrency,
    )
    faults.raise_if_any()
    starter = msgspec.structs.replace(wiring.starter, result=result_codec(plan, wiring.starter))

    def interpret(context: Context, inputs: tuple[Any, ...]) -> PipelineInterpretation:
        return PipelineInterpretation(plan, inputs, context)

    definition = _definition("pipeline", name, options, None, starter, wiring, interpret)
    _export_plan(plan, definition)
    handlers = [policy.step for policy in plan.policies if isinstance(policy, Handler)]
    return msgspec.structs.replace(definition, sides=(*handlers, *(closing.step for closing in plan.closings)))


def _provided(starter: StepDefinition, context: Context, program: Program) -> dict[str, Any]:
    """Return the values of a body's provided parameters; its `Run` is the program's."""
    runs = {p.name: program.run() for p in starter.providers if p.annotation is Run}
    return {**context.provided, **runs} if runs else context.provided


def _check_options(where: Any, options: Options, faults: Faults) -> None:
    version: object = options.version
    for what, limit in (("deadline", options.deadline), ("timeout", options.timeout)):
        if limit is not None and limit is not msgspec.UNSET:
            try:
                seconds(limit, what)
            except DefinitionError as error:
                faults.add(where, error.problems[0])
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        faults.add(where, f"version must be a whole number of at least 1, not {version!r}")


def _check_shapes(name: str, pipeline: PipelineOptions, faults: Faults) -> None:
    """Refuse at once what cannot even be looked through."""
    before = len(faults.problems)
    for what, value in (("needs=", pipeline.needs), ("when=", pipeline.when), ("each=", pipeline.each)):
        if not isinstance(value, Mapping):
            faults.add(name, f"{what} is a mapping by step, not {value!r}")
    if not callable(pipeline.finally_) and not isinstance(pipeline.finally_, (list, tuple)):
        faults.add(name, f"finally_= is a function or a list of functions, not {pipeline.finally_!r}")
    if len(faults.problems) > before:
        faults.raise_if_any()


def _read_constructor(cls: type, namespace: Mapping[str, Any], faults: Faults) -> tuple[Parameter, ...]:
    """flowlet builds the object, on resume as well, so it must know every argument."""
    if cls.__init__ is object.__init__:  # type: ignore[misc]  # comparing, not calling
        return ()
    signature = read_signature(cls.__init__, namespace, faults, method=True)  # type: ignore[misc]
    for parameter in signature.parameters:
        if parameter.required:
            faults.add(cls, f"__init__ parameter {parameter.name!r} is provided by nothing; give it `= provided`")
    return signature.providers


def _check_undo(kind: str, name: str, book: StepBook, faults: Faults) -> None:
    if kind != "pipeline":
        return
    for step in book.by_mark.values():
        _check_undone_by_none(name, step, faults)


def _check_undone_by_none(name: str, step: StepDefinition, faults: Faults) -> None:
    if step.compensation is not None:
        faults.add(name, _UNDOES_NOTHING.format(step.name))
    if step.pivot:
        faults.add(name, f"step {step.name!r} is a pivot, but a pipeline never goes back; make it a saga")


def _definition(
    kind: str,
    name: str,
    options: Options,
    target: Any,
    starter: StepDefinition,
    source: StepBook | Wiring,
    interpret: Any,
    constructor: tuple[Parameter, ...] = (),
) -> RunDefinition:
    if isinstance(source, Wiring):
        steps = {w.step.name: w.step for w in source.steps}
        needs = {w.step.name: [source.steps[n].step.name for n in w.needs] for w in source.steps}
    else:
        steps = {s.name: s for s in source.by_mark.values()}
        needs = {}
    deadline = None if options.deadline is None else seconds(options.deadline, "deadline")
    timeout = options.timeout
    if timeout is not None and timeout is not msgspec.UNSET:
        timeout = seconds(timeout, "timeout")
    exported = {
        "kind": kind,
        "name": name,
        "version": options.version,
        "deadline": deadline,
        "inputs": [p.name for p in starter.inputs],
        "steps": [_export_step(s, needs.get(s.name, [])) for s in steps.values()],
    }
    return RunDefinition(
        kind=kind,
        name=name,
        version=str(options.version),
        deadline=deadline,
        timeout=timeout,
        target=target,
        steps=steps,
        starter=starter,
        interpret=interpret,
        exported=exported,
        homes=[],
        constructor=constructor,
        signals={} if isinstance(source, Wiring) else None,
    )


def _export_plan(plan: Plan, definition: RunDefinition) -> None:
    """Say of a pipeline what goes beyond its steps: conditions, failures, items, and what is done in any case."""
    rows: tuple[Wired, ...] = plan.wiring.steps
    for wired, condition, policy, exported in zip(
        rows, plan.conditions, plan.policies, definition.exported["steps"], strict=True
    ):
        exported["each"] = None if wired.each is None else wired.step.inputs[wired.each].name
        exported["conditional"] = condition is not None
        exported.update(describe_policy(policy, wired))
    definition.exported["max_concurrency"] = plan.limit
    definition.exported["finally"] = [closing.step.name for closing in plan.closings]


def _export_step(step: StepDefinition, needs: list[str]) -> dict[str, Any]:
    return {
        "name": step.name,
        "inputs": [p.name for p in step.inputs],
        "needs": needs,
        "attempts": step.retry.attempts if step.retry else 1,
        "timeout": step.timeout,
        "compensation": step.compensation.step.name if step.compensation else None,
        "pivot": step.pivot,
    }
