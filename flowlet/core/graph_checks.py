"""Everything that can be wrong with how a graph is joined, found before it runs.

Law: a check notes each fault and goes on, so that all are reported at once. It looks at names only: an expanded graph
is one node here, and has been checked by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from flowlet.core.digraph import Digraph
from flowlet.core.faults import Faults
from flowlet.core.graph_nodes import check_when
from flowlet.core.retry import seconds
from flowlet.errors import DefinitionError


class GraphOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What can be said of a graph as a whole. ``deadline`` and ``timeout`` are seconds or a timedelta.

    What is unset is as the `Flowlet` on which it runs is configured.
    """

    version: Any = 1
    max_iterations: Any = msgspec.UNSET
    max_concurrency: Any = msgspec.UNSET
    deadline: Any = None
    timeout: Any = msgspec.UNSET


class Joint(msgspec.Struct, frozen=True, eq=False):
    """An edge, by the names of what it joins."""

    source: str
    target: str
    when: Any = None
    otherwise: bool = False
    label: str | None = None
    limit: Any = None

    @property
    def title(self) -> str:
        return f"the edge from {self.source!r} to {self.target!r}"


def is_count(value: object) -> bool:
    """Tell whether something is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_options(where: str, options: GraphOptions, faults: Faults) -> None:
    """Note options that are out of their bounds."""
    for name in ("version", "max_iterations", "max_concurrency"):
        value = getattr(options, name)
        if not is_count(value) and value is not msgspec.UNSET and not (name == "max_concurrency" and value is None):
            faults.add(where, f"{name} must be a whole number of at least 1, not {value!r}")
    for name in ("deadline", "timeout"):
        value = getattr(options, name)
        if value is not None and value is not msgspec.UNSET:
            try:
                seconds(value, name)
            except DefinitionError as error:
                faults.add(where, error.problems[0])


def check_joints(
    where: str,
    names: Sequence[str],
    joints: Sequence[Joint],
    entries: Sequence[str],
    finals: Sequence[str],
    faults: Faults,
) -> None:
    """Note what is wrong with the edges, the entries and the final nodes.

    Args:
        names: of all nodes. The edges, entries and finals are between those only.
    """
    _check_each(where, joints, faults)
    _check_choices(where, names, joints, faults)
    for name in finals:
        if any(j.source == name for j in joints):
            faults.add(where, f"{name!r} is final, but edges lead on from it; leave these out, or do not call it final")
    for what, given in (("entry", entries), ("final", finals)):
        for name in dict.fromkeys(given):
            if given.count(name) > 1:
                faults.add(where, f"{name!r} is named twice as {what}; leave one out")
    _check_ways(where, names, joints, entries, finals, faults)


def _check_each(where: str, joints: Sequence[Joint], faults: Faults) -> None:
    seen: set[tuple[str, str]] = set()
    for joint in joints:
        if (joint.source, joint.target) in seen:
            faults.add(where, f"{joint.title} is there twice; put both conditions into one when=")
        seen.add((joint.source, joint.target))
        check_when(f"{where}: {joint.title}", joint.when, faults)
        if joint.when is not None and joint.otherwise:
            faults.add(where, f"{joint.title} has when= and otherwise=; leave one out")
        if joint.label is not None and not isinstance(joint.label, str):
            faults.add(where, f"the label of {joint.title} must be a text, not {joint.label!r}")
        if joint.limit is not None and not is_count(joint.limit):
            faults.add(
                where, f"max_iterations of {joint.title} must be a whole number of at least 1, not {joint.limit!r}"
            )


def _check_choices(where: str, names: Sequence[str], joints: Sequence[Joint], faults: Faults) -> None:
    """A node has one default at most, and one only beside conditions."""
    defaults: dict[str, list[str]] = {}
    conditional = {j.source for j in joints if j.when is not None}
    for joint in joints:
        if joint.otherwise:
            defaults.setdefault(joint.source, []).append(joint.target)
    for source, targets in defaults.items():
        if len(targets) > 1:
            found = ", ".join(map(repr, targets))
            faults.add(where, f"{source!r} has {len(targets)} edges with otherwise=True, to {found}; keep one")
        if source not in conditional:
            faults.add(
                where, f"the edge from {source!r} to {targets[0]!r} is taken otherwise, but no edge there has when="
            )


def _check_ways(
    where: str,
    names: Sequence[str],
    joints: Sequence[Joint],
    entries: Sequence[str],
    finals: Sequence[str],
    faults: Faults,
) -> None:
    """Every node is on a way from an entry to a final node."""
    graph = draw(names, joints)
    begun = set(entries).union(*(graph.descendants(name) for name in set(entries)))
    ended = set(finals).union(*(graph.ancestors(name) for name in set(finals)))
    for name in names:
        if entries and name not in begun:
            faults.add(
                where, f"{name!r} cannot be reached from an entry; add an edge that leads to it, or leave it out"
            )
        if finals and name not in ended:
            faults.add(where, f"no path leads from {name!r} to a final node; add an edge that leads on from it")


def check_limits(where: str, names: Sequence[str], joints: Sequence[Joint], faults: Faults) -> None:
    """Note limits of edges that no cycle passes."""
    graph = draw(names, joints)
    for joint in joints:
        if joint.limit is not None and joint.source not in {joint.target, *graph.descendants(joint.target)}:
            faults.add(where, f"{joint.title} has max_iterations=, but lies in no cycle; leave it out")


def draw(names: Sequence[str], joints: Sequence[Joint]) -> Digraph[str]:
    """Return the graph of the names."""
    rows: Mapping[str, list[str]] = {name: [] for name in names}
    for joint in joints:
        rows[joint.source].append(joint.target)
    return Digraph(rows)
