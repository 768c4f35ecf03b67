"""Building run definitions out of marked functions and classes.

Law: assembly reads, checks and freezes; it registers nothing and starts nothing. Everything wrong
with one definition is raised together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import msgspec

from flowlet.core.annotations import Parameter, read_signature
from flowlet.core.bodies import StepBook, find_class_steps, find_function_steps, find_stray_compensations
from flowlet.core.codec import Codec
from flowlet.core.definitions import Context, RunDefinition
from flowlet.core.faults import Faults
from flowlet.core.pipeline import OnError, PipelineInterpretation, StepRef, build_plan
from flowlet.core.retry import seconds
from flowlet.core.run import Program, Run
from flowlet.core.saga import SagaInterpretation
from flowlet.core.steps import StepDefinition, build_executable
from flowlet.core.wiring import Wiring, wire
from flowlet.errors import DefinitionError

_UNDOES_NOTHING = "step {!r} has a compensation, but a pipeline undoes nothing; make it a saga"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What can be said of any run definition.

    Attributes:
        deadline: seconds after its start in which a run must have ended, or None.
        together: compensations run in parallel.
    """

    version: int = 1
    deadline: Any = None
    together: bool = False


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
    when: Mapping[StepRef, Callable[..., bool]],
    on_error: OnError | Mapping[StepRef, OnError],
) -> RunDefinition:
    """Build a pipeline out of a list of steps; independent ones run in parallel.

    Raises:
        DefinitionError: with everything that is wrong with the steps and their wiring.
    """
    faults = Faults()
    _check_options(name, options, faults)
    wiring = wire(name, steps, namespace, faults, any_order=True)
    faults.raise_if_any()
    assert wiring is not None
    for wired in wiring.steps:
        _check_undone_by_none(name, wired.step, faults)
    plan = build_plan(wiring, when, on_error, faults)
    faults.raise_if_any()
    starter = wiring.starter
    if plan.may_skip:
        absent: Any = Optional[starter.result.type]  # noqa: UP045 - not every type has `|`
        starter = msgspec.structs.replace(starter, result=Codec(absent))

    def interpret(context: Context, inputs: tuple[Any, ...]) -> PipelineInterpretation:
        return PipelineInterpretation(plan, inputs, context)

    return _definition("pipeline", name, options, None, starter, wiring, interpret)


def _provided(starter: StepDefinition, context: Context, program: Program) -> dict[str, Any]:
    """Return the values of a body's provided parameters; its `Run` is the program's."""
    runs = {p.name: program.run() for p in starter.providers if p.annotation is Run}
    return {**context.provided, **runs} if runs else context.provided


def _check_options(where: Any, options: Options, faults: Faults) -> None:
    version: object = options.version
    if options.deadline is not None:
        try:
            seconds(options.deadline, "deadline")
        except DefinitionError as error:
            faults.add(where, error.problems[0])
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        faults.add(where, f"version must be a whole number of at least 1, not {version!r}")


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
        target=target,
        steps=steps,
        starter=starter,
        interpret=interpret,
        exported=exported,
        homes=[],
        constructor=constructor,
    )


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
