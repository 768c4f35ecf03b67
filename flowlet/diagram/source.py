"""Finding out what is to be drawn, from all that users have in hand.

Law: nothing is called but ``export()``; a live machine is only looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, cast

from flowlet.core.configurations import Configuration
from flowlet.core.definitions import RunDefinition
from flowlet.core.faults import describe, nearest
from flowlet.core.machine import MachineDefinition
from flowlet.core.marks import MACHINE, StateRef
from flowlet.core.registry import definition_of
from flowlet.diagram.exported import TOGETHER, ApprovalExport, Export, GraphExport, MachineExport, read_export
from flowlet.errors import FlowletError

_LIVE = "_flowlet_state"  # where the object of a machine has its configuration


def read_source(thing: object, active: StateRef | Iterable[StateRef] | None) -> tuple[Export, tuple[str, ...]]:
    """Return the export of what was given, and the names of what is active in it.

    Raises:
        FlowletError: nothing of it can be drawn, or ``active`` names what is not in it.
    """
    definition = _find(thing)
    if definition is not None:
        exported = read_export(definition.export())
    elif isinstance(thing, Mapping):
        exported = read_export(cast("Mapping[str, Any]", thing))
    else:
        raise FlowletError(
            f"{describe(thing)} cannot be drawn: give diagram() an assembled class, function or graph, an "
            "object of a machine, a definition, or what its export() returns"
        )
    if active is None:
        return exported, _names_now(thing)
    wanted: Iterable[StateRef]
    if isinstance(active, str):
        wanted = active.split(TOGETHER)
    else:  # an Enum class is iterable, and no state
        wanted = [active] if isinstance(active, (type, Enum)) else active
    return exported, tuple(_name(ref, definition, exported) for ref in wanted)


def _names_now(thing: Any) -> tuple[str, ...]:
    """Return the states that a live machine is in; nothing of anything else."""
    live = getattr(thing, _LIVE, None)
    return live.names if isinstance(live, Configuration) else ()


def _find(thing: object) -> MachineDefinition | RunDefinition | None:
    if isinstance(thing, MachineDefinition | RunDefinition):
        return thing
    found: Any = definition_of(thing)
    cls = thing if isinstance(thing, type) else type(thing)
    found = found or getattr(cls, MACHINE, None) or definition_of(cls)
    return found if isinstance(found, MachineDefinition | RunDefinition) else None


def _name(ref: StateRef, definition: object, exported: Export) -> str:
    if isinstance(definition, MachineDefinition) and not isinstance(ref, str):
        return definition.state(ref).name
    name = str(ref)
    titles = _titles(exported)
    if name in titles:
        return name
    alike = [full for full, title in titles.items() if title == name]
    if len(alike) == 1:
        return alike[0]
    hint = f"; it may be {' or '.join(map(repr, alike))}" if alike else nearest(name, [*titles, *titles.values()])
    raise FlowletError(f"{exported.name}: {name!r} cannot be active, there is no such state or step{hint}")


def _titles(exported: Export) -> dict[str, str]:
    if isinstance(exported, MachineExport):
        return {state.name: state.title for state in exported.states}
    if isinstance(exported, GraphExport):
        return {node.name: node.name for node in exported.nodes}
    if isinstance(exported, ApprovalExport):
        return {level.name: level.name for level in exported.levels}
    names = [name for step in exported.steps for name in (step.name, step.compensation)]
    return {name: name for name in names if name is not None}
