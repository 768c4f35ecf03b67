"""The registry: assembles marks into definitions and keeps them by name.

Law: a registry holds definitions and knows nothing of stores or event loops. There is no default one.
What is put in the place of the user's function or class comes from a subclass (see `flowlet.app`),
through `_bind_run` and `_bind_machine`.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flowlet.core.assembly import (
    Options,
    PipelineOptions,
    build_class,
    build_function,
    build_pipeline,
    build_saga,
)
from flowlet.core.definitions import ASSEMBLED, Draft, RunDefinition
from flowlet.core.faults import Faults, describe
from flowlet.core.machine_builder import build_machine
from flowlet.errors import DefinitionError

if TYPE_CHECKING:
    from flowlet.core.schedule import ScheduleDefinition


class BaseRegistry(ABC):
    """What is common to all registries: assembling, keeping and merging definitions.

    Attributes:
        definitions: by (name, version).
        schedules: by name.
    """

    def __init__(self) -> None:
        self.definitions: dict[tuple[str, str], Any] = {}
        self.schedules: dict[str, ScheduleDefinition] = {}
        self._drafts: dict[tuple[str, str], Draft] = {}

    # -------------------------------------------------------------- assembling
    def assemble_machine(
        self,
        cls: type,
        *,
        name: str | None,
        version: int,
        on_conflict: str,
        allow: Collection[str],
        migrate: Mapping[int, Callable[..., Any]] | None,
        namespace: Mapping[str, Any],
    ) -> type:
        """Build a machine's definition, keep it, and return what takes the place of the class.

        Raises:
            DefinitionError: with everything that is wrong with the class.
        """
        faults = Faults()
        definition = build_machine(
            cls,
            name=name or str(getattr(cls, "__name__", cls)),
            version=version,
            on_conflict=on_conflict,
            allow=frozenset(allow),
            migrate=migrate,
            namespace=namespace,
            faults=faults,
        )
        faults.raise_if_any()
        self.add(definition)
        return self._bind_machine(definition)

    def assemble_body(
        self, kind: str, target: Any, *, name: str | None, options: Options, namespace: Mapping[str, Any]
    ) -> Any:
        """Build a saga or pipeline from an async function or a class, keep it, return its caller.

        Raises:
            DefinitionError: with everything that is wrong with it.
        """
        if definition_of(target) is not None:
            raise DefinitionError([f"{describe(target)}: is assembled already; include its registry instead"])
        if isinstance(target, type):
            definition = build_class(kind, target, name=name, options=options, namespace=namespace)
        elif callable(target):
            definition = build_function(kind, target, name=name, options=options, namespace=namespace)
        else:
            raise DefinitionError(
                [f"{target!r} cannot be a {kind}: give an async function, a class, or a name and steps"]
            )
        self.add(definition)
        return self._bind_run(definition)

    def assemble_saga(self, name: str, steps: Sequence[Any], *, options: Options, namespace: Mapping[str, Any]) -> Any:
        """Build a saga from a list of steps, keep it, return its caller.

        Raises:
            DefinitionError: with everything that is wrong with it.
        """
        definition = build_saga(name, steps, options=options, namespace=namespace)
        self.add(definition)
        return self._bind_run(definition)

    def assemble_pipeline(
        self,
        name: str,
        steps: Sequence[Any],
        *,
        options: Options,
        namespace: Mapping[str, Any],
        pipeline: PipelineOptions,
    ) -> Any:
        """Build a pipeline from a list of steps, keep it, return its caller.

        Raises:
            DefinitionError: with everything that is wrong with it.
        """
        definition = build_pipeline(name, steps, options=options, namespace=namespace, pipeline=pipeline)
        self.add(definition)
        return self._bind_run(definition)

    # -------------------------------------------------------------- keeping
    def add(self, definition: Any) -> None:
        """Keep a definition. What is defined again in a notebook or at a prompt takes the place of what it was.

        Raises:
            DefinitionError: another definition has its name and version.
        """
        key = (definition.name, str(definition.version))
        present = self.definitions.get(key)
        if present is not None and present is not definition and not _is_typed_again(present, definition):
            raise _taken(definition.name, key[1])
        draft = self._drafts.get(key)
        if draft is not None and draft.built is not definition:
            raise _taken(definition.name, key[1])
        self._drafts.pop(key, None)
        self.definitions[key] = definition
        self._added(definition)

    def add_draft(self, draft: Draft) -> None:
        """Keep a definition that is still being written.

        Raises:
            DefinitionError: another definition has its name and version.
        """
        if draft.built is not None:
            self.add(draft.built)
            return
        key = (draft.name, draft.version)
        if not _is_prompt() and (key in self.definitions or self._drafts.get(key, draft) is not draft):
            raise _taken(*key)
        self.definitions.pop(key, None)
        self._drafts[key] = draft
        draft.keepers.append(weakref.ref(self))

    def add_schedule(self, schedule: ScheduleDefinition) -> None:
        """Keep a schedule, and what its runs are of.

        Raises:
            DefinitionError: another schedule has its name, or another definition that of its runs.
        """
        if not _is_prompt() and self.schedules.get(schedule.name, schedule) is not schedule:
            raise DefinitionError([f"schedule {schedule.name!r}: the name is taken by another schedule; give name="])
        self.add(schedule.run)
        self.schedules[schedule.name] = schedule

    def build_drafts(self) -> None:
        """Build what is still being written.

        Raises:
            DefinitionError: with everything that is wrong with all of it.
        """
        problems: list[str] = []
        for draft in list(self._drafts.values()):
            try:
                draft.definition()
            except DefinitionError as error:
                problems.extend(p for p in error.problems if p not in problems)
        if problems:
            raise DefinitionError(problems)

    def merge(self, *sources: ModuleType | BaseRegistry) -> None:
        """Merge the definitions of registries, and of the registries and assembled objects in modules.

        Raises:
            DefinitionError: a name is taken by another definition, or a source is neither.
        """
        problems: list[str] = []
        for source in sources:
            for definition in _definitions_of(source):
                try:
                    self.add_draft(definition) if isinstance(definition, Draft) else self.add(definition)
                except DefinitionError as error:
                    problems.extend(error.problems)
            for schedule in _schedules_of(source):
                try:
                    self.add_schedule(schedule)
                except DefinitionError as error:
                    problems.extend(error.problems)
        if problems:
            raise DefinitionError(problems)

    # -------------------------------------------------------------- for the subclass
    @abstractmethod
    def _added(self, definition: Any) -> None:
        """Tell the subclass that this registry now holds the definition."""

    @abstractmethod
    def _bind_run(self, definition: RunDefinition) -> Any:
        """Return what takes the place of the user's function or class."""

    @abstractmethod
    def _bind_machine(self, definition: Any) -> type:
        """Return what takes the place of the user's class."""


def _is_prompt() -> bool:
    """Tell whether somebody types the program: then a cell, or a line, is often executed again."""
    return hasattr(sys, "ps1")


def _is_typed_again(present: Any, definition: Any) -> bool:
    return _is_prompt() and type(present) is type(definition) and _home_of(present) == _home_of(definition)


def _home_of(definition: Any) -> tuple[str, str] | None:
    """Return where a definition was written, or None if it was assembled from a list of steps."""
    target = definition.target if isinstance(definition, RunDefinition) else definition.cls
    return None if target is None else (target.__module__, target.__qualname__)


def _taken(name: str, version: str) -> DefinitionError:
    return DefinitionError(
        [f"{name}: the name is taken by another definition of version {version}; give name= or version="]
    )


def _definitions_of(source: Any) -> Iterator[Any]:
    if isinstance(source, BaseRegistry):
        yield from [*source.definitions.values(), *source._drafts.values()]
    elif inspect.ismodule(source):
        for thing in list(vars(source).values()):
            if isinstance(thing, BaseRegistry):
                yield from _definitions_of(thing)
            elif isinstance(thing, Draft):
                yield thing
            else:
                definition = definition_of(thing)
                if definition is not None:
                    yield definition
    else:
        raise DefinitionError([f"include: takes modules and registries, not {describe(source)}"])


def _schedules_of(source: Any) -> list[ScheduleDefinition]:
    things = [source] if isinstance(source, BaseRegistry) else list(vars(source).values())
    return [s for thing in things if isinstance(thing, BaseRegistry) for s in thing.schedules.values()]


def definition_of(thing: Any) -> Any:
    """Return the definition of an assembled function, class or graph, or None.

    Raises:
        DefinitionError: it is a graph that was not built yet and cannot be.
    """
    if isinstance(thing, type):
        return thing.__dict__.get(ASSEMBLED)
    if isinstance(thing, Draft):
        return thing.definition()
    return getattr(thing, ASSEMBLED, None) if inspect.isfunction(thing) else None
