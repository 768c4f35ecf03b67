"""What states invoke: the work that is done while a state is active.

Law: found and judged at assembly. Its parameters are filled by name from the machine's data, as it is when the state
is entered; nothing is guessed at run time.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from flowlet.core.annotations import MISSING, read_signature
from flowlet.core.definitions import ASSEMBLED, RunDefinition
from flowlet.core.faults import Faults, describe, nearest
from flowlet.core.machine_members import Members
from flowlet.core.marks import step_mark
from flowlet.core.needs import Need
from flowlet.core.states import State


class Work(msgspec.Struct, frozen=True, eq=False):
    """What one state invokes.

    Attributes:
        function: the user's function, or the caller of an assembled definition.
        method: it is one of the machine's own, and takes it.
        inputs: names of the data it is given.
        annotations: the types of these, by name.
        result: the type of what it returns.
        in_run: it is a step, a saga or the like, that a run can call.
        provided: the parameters that flowlet fills when it calls it.
    """

    state: str
    function: Any
    method: bool
    inputs: tuple[str, ...]
    annotations: Mapping[str, Any]
    result: Any
    in_run: bool
    provided: tuple[Need, ...] = ()

    def given(self, machine: Any) -> dict[str, Any]:
        """Read what it is given."""
        return {name: getattr(machine, name) for name in self.inputs}

    @property
    def done(self) -> str:
        """The event that its result is."""
        return f"done.invoke.{self.state}"

    @property
    def failed(self) -> str:
        """The event that its error is."""
        return f"error.invoke.{self.state}"


def read_works(
    cls: type,
    states: Mapping[str, State],
    members: Members,
    data: Sequence[str],
    namespace: Mapping[str, Any],
    faults: Faults,
) -> dict[str, Work]:
    """Find what states invoke, noting what cannot be."""
    found: dict[str, Work] = {}
    for name, state in states.items():
        if state.mark.invoke is not None:
            work = _read(cls, state, members, data, namespace, faults)
            if work is not None:
                found[name] = work
    return found


def _read(
    cls: type, state: State, members: Members, data: Sequence[str], namespace: Mapping[str, Any], faults: Faults
) -> Work | None:
    given = state.mark.invoke
    function, method = given, False
    if isinstance(given, str):
        function, method = members.all.get(given), True
        if function is None:
            near = nearest(given, [n for n in members.all if not n.startswith("_")])
            faults.add(state.ref, f"invoke={given!r} names no method of {describe(cls)}{near}")
            return None
    assembled = getattr(function, ASSEMBLED, None)
    if isinstance(assembled, RunDefinition):
        return _of_definition(state, function, assembled, data, faults)
    if not inspect.iscoroutinefunction(function):
        faults.add(state.ref, f"invoke={given!r} must be an async function, a method's name, or a saga")
        return None
    signature = read_signature(function, namespace, faults, method=method)
    if signature.result is MISSING:
        faults.add(state.ref, f"annotate what {describe(function)} returns: it is recorded")
    names: list[str] = []
    for parameter in signature.inputs:
        if parameter.name in data:
            names.append(parameter.name)
        elif parameter.required:
            _miss(state, parameter.name, data, faults)
    return Work(
        state=state.name,
        function=function,
        method=method,
        inputs=tuple(names),
        annotations={p.name: p.annotation for p in signature.inputs},
        result=signature.result,
        in_run=step_mark(function) is not None,
        provided=tuple(Need(describe(function), p.name, p.annotation, in_run=True) for p in signature.providers),
    )


def _of_definition(
    state: State, function: Any, definition: RunDefinition, data: Sequence[str], faults: Faults
) -> Work | None:
    if inspect.isclass(function):
        faults.add(state.ref, f"invoke={describe(function)}: give an async function that calls it")
        return None
    names: list[str] = []
    for parameter in definition.starter.inputs:
        if parameter.name in data:
            names.append(parameter.name)
        elif parameter.required:
            _miss(state, parameter.name, data, faults)
    annotations = {p.name: p.annotation for p in definition.starter.inputs}
    result = definition.starter.result.type
    return Work(state.name, function, False, tuple(names), annotations, result, in_run=True)


def _miss(state: State, name: str, data: Sequence[str], faults: Faults) -> None:
    faults.add(
        state.ref, f"what it invokes takes {name!r}, which is no data of the machine{nearest(name, data)}; annotate it"
    )
