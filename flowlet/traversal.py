"""Looking at how things follow each other: order, generations, paths, cycles, the critical path, of any definition.

Law: a definition is read from what it exports and nothing else, so that one that another process has exported can be
looked at as well. The answers are `Digraph`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from flowlet.core.definitions import RunDefinition
from flowlet.core.digraph import CriticalPath, Digraph
from flowlet.core.faults import describe
from flowlet.core.machine import MachineDefinition
from flowlet.core.registry import definition_of
from flowlet.errors import FlowletError

__all__ = ["CriticalPath", "Digraph", "digraph"]


def digraph(thing: object, /) -> Digraph[str]:
    """Return the steps, nodes, levels or states of a definition as a graph.

    In a pipeline a step follows those that it needs, in a saga the one before it (as its body names them, if it is a
    function), in a graph what its edges lead from; in a machine a state follows those whose transitions lead to it, and
    the parent that begins with it.

    Args:
        thing: an assembled class, function or graph, or the dict that its ``export()`` has returned.

    Raises:
        FlowletError: it is nothing of that.

    Example:
        >>> from flowlet import Registry, step
        >>> from flowlet.traversal import digraph
        >>> @step
        ... async def extract(path: str) -> list[int]:
        ...     return [1, 2]
        >>> @step
        ... async def count(extract: list[int]) -> int:
        ...     return len(extract)
        >>> @step
        ... async def total(extract: list[int]) -> int:
        ...     return sum(extract)
        >>> @step
        ... async def mean(count: int, total: int) -> float:
        ...     return total / count
        >>> steps = digraph(Registry().pipeline("etl", extract, count, total, mean))
        >>> steps.generations()
        [('extract',), ('count', 'total'), ('mean',)]
        >>> sorted(steps.ancestors("total"))
        ['extract']
    """
    definition = _find(thing)
    exported = definition.export() if definition is not None else thing
    if not isinstance(exported, Mapping):
        raise FlowletError(f"{describe(thing)} has no steps or states: give an assembled definition, or its export()")
    read = _READERS.get(exported.get("kind", ""))
    if read is None:
        raise FlowletError(f"an export of kind {exported.get('kind')!r} cannot be read; give what export() returns")
    try:
        return Digraph(read(cast("Mapping[str, Any]", exported)))
    except (KeyError, TypeError, AttributeError) as error:
        raise FlowletError(f"this is no export: {error!r} is not as it must be; give what export() returns") from error


def _find(thing: object) -> MachineDefinition | RunDefinition | None:
    if isinstance(thing, MachineDefinition | RunDefinition):
        return thing
    found: Any = definition_of(thing) or definition_of(type(thing))
    return found if isinstance(found, MachineDefinition | RunDefinition) else None


def _read_pipeline(exported: Mapping[str, Any]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {step["name"]: [] for step in exported["steps"]}
    for step in exported["steps"]:
        for need in step["needs"]:
            rows[need].append(step["name"])
    return rows


def _read_saga(exported: Mapping[str, Any]) -> dict[str, list[str]]:
    names = [step["name"] for step in exported["steps"]]
    return {name: names[place + 1 : place + 2] for place, name in enumerate(names)}


def _read_graph(exported: Mapping[str, Any]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {node["name"]: [] for node in exported["nodes"]}
    for edge in exported["edges"]:
        rows[edge["source"]].append(edge["target"])
    return rows


def _read_approval(exported: Mapping[str, Any]) -> dict[str, list[str]]:
    names = [level["name"] for level in exported["levels"]]
    if exported["parallel"]:
        return {name: [] for name in names}
    rows = {name: names[place + 1 : place + 2] for place, name in enumerate(names)}
    for level in exported["levels"]:
        if level["send_back_to"] is not None:
            rows[level["name"]].append(level["send_back_to"])
    return rows


def _read_machine(exported: Mapping[str, Any]) -> dict[str, list[str]]:
    states: dict[str, Mapping[str, Any]] = {state["name"]: state for state in exported["states"]}
    rows: dict[str, list[str]] = {name: [] for name in states}
    for name, state in states.items():
        parent = state.get("parent")
        if parent is not None and (state.get("initial") or states[parent].get("type") == "parallel"):
            rows[parent].append(name)
    for transition in exported["transitions"]:
        source, failed = transition["source"], transition.get("on_error")
        targets = [*transition["targets"], *([failed] if failed is not None else [])]
        for name, row in rows.items():
            # What a state does, it does for all that are inside of it.
            if source in _line(name, states) or (source == "*" and states[name].get("type") != "final"):
                row.extend(t for t in targets if t not in row)
    return rows


def _line(name: str | None, states: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a state and those that it is in."""
    line: list[str] = []
    while name is not None:
        line.append(name)
        name = states[name].get("parent")
    return line


_READERS = {
    "approval": _read_approval,
    "pipeline": _read_pipeline,
    "saga": _read_saga,
    "graph": _read_graph,
    "machine": _read_machine,
}
