"""Definitions written as plain Python: an async function, or a class with ``__call__``.

Law: the body is the user's own code; what is learned of it at assembly is its signature and the steps
it can be seen to call. Steps that cannot be seen are resolved when they are first called.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import Any

from flowlet.core.faults import Faults, describe
from flowlet.core.marks import COMPENSATES, CompensationMark, StepMark, step_mark
from flowlet.core.steps import StepDefinition, build_step

_NAME_LOADS = ("LOAD_GLOBAL", "LOAD_NAME")


class StepBook:
    """The steps of one definition, by mark. Those seen at assembly are checked there.

    Attributes:
        by_mark: grows when the body calls a step that assembly could not see.
    """

    def __init__(self, name: str, namespace: Mapping[str, Any]) -> None:
        self._name = name
        self._namespace = namespace
        self.by_mark: dict[StepMark, StepDefinition] = {}

    def learn(self, mark: StepMark, faults: Faults, *, method: bool) -> None:
        """Resolve a step at assembly, noting its faults."""
        if not mark.is_async:
            faults.add(
                mark.function,
                "is a plain def, which a body cannot await; make it async, or assemble steps under a name",
            )
        if any(mark.name == other.name for other in self.by_mark):
            faults.add(self._name, f"has two steps named {mark.name!r}; rename one with @step(name=...)")
        definition = build_step(mark, self._namespace, faults, method=method)
        if definition is not None:
            self.by_mark[mark] = definition

    def define(self, mark: StepMark, method: bool) -> StepDefinition:
        """Return the definition of a step that the body calls.

        Raises:
            DefinitionError: it could not be seen at assembly, and has faults.
        """
        known = self.by_mark.get(mark)
        if known is not None and known.method == method:
            return known
        faults = Faults()
        definition = build_step(mark, self._namespace, faults, method=method)
        faults.raise_if_any()
        assert definition is not None
        self.by_mark[mark] = definition
        return definition


def find_function_steps(function: Callable[..., Any], namespace: Mapping[str, Any]) -> Iterator[StepMark]:
    """Find the marked functions that a body names, in its globals, closure or the caller's locals."""
    raw = inspect.unwrap(function)
    places: dict[str, Any] = {**namespace, **getattr(raw, "__globals__", {})}
    code = getattr(raw, "__code__", None)
    if code is None:
        return
    for name, cell in zip(code.co_freevars, raw.__closure__ or (), strict=False):
        places[name] = _content(cell)
    seen: set[int] = set()
    for name in _names(code):
        mark = step_mark(places.get(name))
        if mark is not None and id(mark) not in seen:
            seen.add(id(mark))
            yield mark


def find_stray_compensations(function: Callable[..., Any], namespace: Mapping[str, Any], faults: Faults) -> None:
    """Note compensations in the body's module or the caller's locals whose step is no step."""
    own = getattr(inspect.unwrap(function), "__globals__", {})
    called = set(_names(inspect.unwrap(function).__code__))
    for thing in {id(v): v for v in [*own.values(), *namespace.values()] if inspect.isfunction(v)}.values():
        mark: CompensationMark | None = getattr(thing, COMPENSATES, None)
        if mark is not None and step_mark(mark.step) is None and getattr(mark.step, "__name__", "") in called:
            faults.add(thing, f"compensates {describe(mark.step)}, which is no step; mark it with @step")


def find_class_steps(cls: type, faults: Faults) -> Iterator[StepMark]:
    """Find the marked methods of a class, and check that its compensations belong to them."""
    members = {name: inspect.getattr_static(cls, name, None) for name in dir(cls)}
    marks = [m for m in (step_mark(v) for v in members.values()) if m is not None]
    for name, member in members.items():
        if step_mark(member) is None and any(step_mark(vars(base).get(name)) for base in cls.__mro__):
            faults.add(f"{describe(cls)}.{name}", "overrides a step without @step, so it would not be recorded")
        mark: CompensationMark | None = getattr(member, COMPENSATES, None)
        if mark is not None and step_mark(mark.step) not in marks:
            faults.add(f"{describe(cls)}.{name}", f"compensates {describe(mark.step)}, which is no step of the class")
    yield from marks


def _names(code: CodeType) -> Iterator[str]:
    # Not `co_names`, which has the names of attributes too: `self.charge` is no use of a global `charge`.
    yield from (str(i.argval) for i in dis.get_instructions(code) if i.opname in _NAME_LOADS)
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is assigned after the function was made
        return None
