"""Pipelines: steps joined by their parameters, independent ones in parallel, nothing undone.

Law: one task. A step starts when all it needs has ended, in the order of the list; the interpreter
waits in the engine only. A step that is skipped, or that failed and was let go, has no value, and
whatever needs it is skipped too and noted as such.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from flowlet.core.codec import Codec, encode, pack
from flowlet.core.definitions import Context, Undone
from flowlet.core.engine import Pending, StepCall, StepCancelled
from flowlet.core.faults import Faults, describe, nearest
from flowlet.core.marks import step_mark
from flowlet.core.run import encode_call
from flowlet.core.steps import StepDefinition
from flowlet.core.wiring import Wired, Wiring, find_cycles

StepRef: TypeAlias = Callable[..., Any] | str
OnError: TypeAlias = Literal["stop", "skip"] | Callable[..., Any]

_ABSENT = object()
SKIPPED = "skip:"
"""Prefix of the key under which a skipped step is noted; the note's value is the encoded reason."""


class Condition(msgspec.Struct, frozen=True, eq=False):
    """A ``when=`` of a step: a plain function of inputs and earlier results.

    Attributes:
        sources: as in `Wired`.
    """

    function: Callable[..., Any]
    sources: tuple[int, ...]
    needs: tuple[int, ...]


class Plan(msgspec.Struct, frozen=True, eq=False):
    """A pipeline ready to run. The tuples have one item per step.

    Attributes:
        on_error: ``"stop"``, ``"skip"`` or the handler as a step.
        dependents: the indexes of the steps that need this one.
        needs: how many steps this one needs.
        entries: the indexes of the steps that need none.
    """

    wiring: Wiring
    conditions: tuple[Condition | None, ...]
    on_error: tuple[Literal["stop", "skip"] | StepDefinition, ...]
    dependents: tuple[tuple[int, ...], ...]
    needs: tuple[int, ...]
    entries: tuple[int, ...]

    @property
    def may_skip(self) -> bool:
        """Whether a step may end without a value."""
        return any(c is not None for c in self.conditions) or "skip" in self.on_error


def build_plan(
    wiring: Wiring,
    when: Mapping[StepRef, Callable[..., bool]],
    on_error: OnError | Mapping[StepRef, OnError],
    faults: Faults,
) -> Plan:
    """Attach conditions and error handling to a wiring, noting faults."""
    names = [w.step.name for w in wiring.steps]
    conditions: list[Condition | None] = [None] * len(names)
    for ref, function in when.items():
        index = _place(ref, names, wiring.name, "when=", faults)
        if index is not None:
            conditions[index] = _condition(function, index, wiring, faults)
    policies: list[Literal["stop", "skip"] | StepDefinition] = ["stop"] * len(names)
    if isinstance(on_error, Mapping):
        for ref, policy in on_error.items():
            index = _place(ref, names, wiring.name, "on_error=", faults)
            if index is not None:
                policies[index] = _policy(policy, wiring.steps[index], wiring.name, faults)
    else:
        policies = [_policy(on_error, step, wiring.name, faults) for step in wiring.steps]
    if not faults.problems:
        _check_conditions(wiring, conditions, faults)
    return _link(wiring, tuple(conditions), tuple(policies))


def _check_conditions(wiring: Wiring, conditions: list[Condition | None], faults: Faults) -> None:
    """Note a cycle that only the conditions close; without them the wiring has none."""
    joined = [
        msgspec.structs.replace(step, needs=step.needs + (condition.needs if condition else ()))
        for step, condition in zip(wiring.steps, conditions, strict=True)
    ]
    for cycle in find_cycles(joined):
        path = " -> ".join([*cycle, cycle[0]])
        faults.add(wiring.name, f"steps and their when= wait for each other in a cycle: {path}")


def _link(wiring: Wiring, conditions: tuple[Condition | None, ...], policies: Any) -> Plan:
    """Count what each step waits for, its condition's sources included."""
    needs = []
    dependents: list[list[int]] = [[] for _ in wiring.steps]
    for index, (step, condition) in enumerate(zip(wiring.steps, conditions, strict=True)):
        wanted = dict.fromkeys(step.needs + (condition.needs if condition else ()))
        needs.append(len(wanted))
        for need in wanted:
            dependents[need].append(index)
    entries = tuple(i for i, n in enumerate(needs) if n == 0)
    return Plan(wiring, conditions, policies, tuple(tuple(d) for d in dependents), tuple(needs), entries)


def _place(ref: StepRef, names: list[str], where: str, what: str, faults: Faults) -> int | None:
    mark = step_mark(ref)
    name = ref if isinstance(ref, str) else mark.name if mark else getattr(ref, "__name__", repr(ref))
    if name not in names:
        faults.add(where, f"{what} names {name!r}, which is no step of it{nearest(name, names)}")
        return None
    return names.index(name)


def _condition(function: Any, index: int, wiring: Wiring, faults: Faults) -> Condition | None:
    where = f"{wiring.name}: when= of {wiring.steps[index].step.name!r}"
    if not callable(function) or inspect.iscoroutinefunction(function):
        faults.add(where, "must be a plain function of inputs and earlier results; do slow work in a step")
        return None
    names = {w.step.name: i for i, w in enumerate(wiring.steps)}
    inputs = {p.name: -1 - i for i, p in enumerate(wiring.inputs)}
    sources = []
    for parameter in inspect.signature(function).parameters.values():
        source = names.get(parameter.name, inputs.get(parameter.name))
        if source is None:
            known = [*inputs, *names]
            faults.add(where, f"parameter {parameter.name!r} is provided by nothing{nearest(parameter.name, known)}")
        elif source == index or (source >= 0 and _leads_to(wiring, index, source)):
            faults.add(where, f"needs the result of {parameter.name!r}, which does not come before it")
        else:
            sources.append(source)
    return Condition(function, tuple(sources), tuple(dict.fromkeys(s for s in sources if s >= 0)))


def _leads_to(wiring: Wiring, start: int, end: int) -> bool:
    """Tell whether ``end`` needs ``start``, directly or through others."""
    stack, seen = [end], set()
    while stack:
        for need in wiring.steps[stack.pop()].needs:
            if need == start:
                return True
            if need not in seen:
                seen.add(need)
                stack.append(need)
    return False


def _policy(policy: Any, wired: Wired, where: str, faults: Faults) -> Literal["stop", "skip"] | StepDefinition:
    if policy == "stop":
        return "stop"
    if policy == "skip":
        return "skip"
    if not callable(policy):
        faults.add(where, f'on_error= must be "stop", "skip" or a function, not {policy!r}')
        return "stop"
    parameters = list(inspect.signature(policy).parameters.values())
    required = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    if len(required) > 1 or not parameters:
        faults.add(where, f"on_error= {describe(policy)} must take one argument, the exception")
    return StepDefinition(
        name=getattr(policy, "__name__", "on_error"),
        function=policy,
        is_async=inspect.iscoroutinefunction(policy),
        method=False,
        inputs=(),
        providers=(),
        result=wired.step.result,
        input=Codec(Any),
        signature=inspect.Signature(),
        arity=1,
        kinds=(),
        scalar=wired.step.scalar,
        positional=1,
        keywords=(),
    )


class PipelineInterpretation:
    """One run of an assembled pipeline."""

    __slots__ = ("_engine", "_left", "_plan", "_ready", "_values")

    def __init__(self, plan: Plan, inputs: tuple[Any, ...], context: Context) -> None:
        self._plan = plan
        self._engine = context.engine
        # The inputs stand behind the steps' values, the last one first: source -1 is the first input; see `Wired`.
        self._values: list[Any] = [*([_ABSENT] * len(plan.needs)), *reversed(inputs)]
        self._left = list(plan.needs)
        self._ready = deque(plan.entries)

    @property
    def undoes(self) -> bool:
        """Nothing: a pipeline has no compensation."""
        return False

    async def forward(self) -> bytes:
        """Run every step whose needs are met; return the last step's encoded value."""
        waiting: dict[Pending, int] = {}
        ready = self._ready
        try:
            while ready or waiting:
                if waiting or len(ready) > 1:
                    await self._go_on(waiting)
                    continue
                index = ready.popleft()
                call = self._call(index)
                if call is not None:
                    await self._perform_alone(index, call)
        except Exception:
            await self._stop(waiting)
            raise
        last = self._values[len(self._left) - 1]
        return encode(None if last is _ABSENT else last, f"the result of {self._plan.wiring.name!r}")

    async def backward(self, error: Exception) -> Undone:
        """Undo nothing: a pipeline has no compensation."""
        return Undone()

    async def _go_on(self, waiting: dict[Pending, int]) -> None:
        """Start what is ready, then wait for the first to end."""
        while self._ready:
            index = self._ready.popleft()
            call = self._call(index)
            if call is not None:
                waiting[self._engine.step(call)] = index
        if waiting:
            await self._collect(waiting)

    async def _perform_alone(self, index: int, call: StepCall) -> None:
        try:
            value = await self._engine.perform(call)
        except Exception as error:
            await self._failed(index, error)
        else:
            is_known = type(call.result) is call.definition.scalar  # an int, a str ... is what its encoding decodes to
            self._done(index, call.result if is_known else call.definition.decode(value))

    async def _collect(self, waiting: dict[Pending, int]) -> None:
        for pending in await self._engine.first(list(waiting)):
            index = waiting.pop(pending)
            try:
                value = await self._engine.value(pending)
                decoded = self._plan.wiring.steps[index].step.decode(value)
            except Exception as error:
                await self._failed(index, error)
            else:
                self._done(index, decoded)

    async def _stop(self, waiting: dict[Pending, int]) -> None:
        """Cancel what still runs and see it end, so that nothing of the run outlives it."""
        for pending in waiting:
            self._engine.cancel(pending)
        while waiting:
            for pending in await self._engine.first(list(waiting)):
                del waiting[pending]
                try:
                    await self._engine.value(pending)
                except (StepCancelled, Exception):  # the first failure is the one that counts
                    continue

    async def _failed(self, index: int, error: Exception) -> None:
        policy = self._plan.on_error[index]
        name = self._plan.wiring.steps[index].step.name
        if policy == "stop":
            raise error
        if policy == "skip":
            self._skip_dependents(index, f"{name} failed")
            return
        call = StepCall(self._engine, policy, f"{name}~{policy.name}", (error,), pack(name))
        value = await self._engine.perform(call)
        self._done(index, policy.decode(value))

    def _call(self, index: int) -> StepCall | None:
        """Make the call of a step that is ready, or skip it if its condition says so."""
        plan, value_of = self._plan, self._values.__getitem__
        wired, condition = plan.wiring.steps[index], plan.conditions[index]
        if condition is not None and not condition.function(*map(value_of, condition.sources)):
            self._engine.note(SKIPPED + wired.step.name, pack("its condition was false"))
            self._skip_dependents(index, f"{wired.step.name} was skipped")
            return None
        step, args = wired.step, tuple(map(value_of, wired.sources))
        return StepCall(self._engine, step, step.name, args, encode_call(step, args), wired.owner)

    def _done(self, index: int, value: Any) -> None:
        self._values[index] = value
        left = self._left
        for dependent in self._plan.dependents[index]:
            if left[dependent] > 0:
                left[dependent] -= 1
                if left[dependent] == 0:
                    self._ready.append(dependent)

    def _skip_dependents(self, index: int, reason: str) -> None:
        for dependent in self._plan.dependents[index]:
            if self._left[dependent] > 0:
                self._left[dependent] = -1
                name = self._plan.wiring.steps[dependent].step.name
                self._engine.note(SKIPPED + name, pack(reason))
                self._skip_dependents(dependent, f"{name} was skipped")
