"""The shape of what definitions export, as far as pictures need it.

Law: an export may have been written by another version or by another tool: what is missing has its default where
there is an obvious one, what is not known is passed over, what is wrong is an error that says where.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from flowlet.errors import FlowletError

StateKind: TypeAlias = Literal["atomic", "compound", "parallel", "final", "shallow", "deep"]
ANYWHERE = "*"
"""The source of a transition of the whole machine."""
TOGETHER = " + "
"""Between the names of atomic states that are active together."""


class StateExport(msgspec.Struct, frozen=True):
    """One state.

    Attributes:
        name: its path below the machine.
        initial: its parent is entered here.
        default: where entering it leads; of a history, when it remembers nothing.
    """

    name: str
    parent: str | None = None
    type: StateKind = "atomic"
    initial: bool = False
    default: tuple[str, ...] = ()
    invoke: str | None = None

    @property
    def title(self) -> str:
        """The name without its parent's."""
        return self.name if self.parent is None else self.name.removeprefix(f"{self.parent}.")


class TransitionExport(msgspec.Struct, frozen=True):
    """One transition from one source.

    Attributes:
        targets: none for a transition that stays where it is.
        after: seconds, for the kind of that name.
    """

    event: str
    method: str
    source: str
    targets: tuple[str, ...]
    guards: tuple[str, ...] = ()
    internal: bool = False
    kind: Literal["event", "eventless", "after"] = "event"
    after: float | None = None
    exclusive: bool = False
    on_error: str | None = None


class MachineExport(msgspec.Struct, frozen=True):
    """A machine. Parents are listed before their children, as in the class."""

    name: str
    states: tuple[StateExport, ...]
    transitions: tuple[TransitionExport, ...]
    initial: str = ""


class StepExport(msgspec.Struct, frozen=True):
    """One step of a run.

    Attributes:
        needs: the steps whose results it takes.
        timeout: seconds that one attempt may take.
    """

    name: str
    needs: tuple[str, ...] = ()
    attempts: int = 1
    timeout: float | None = None
    compensation: str | None = None
    pivot: bool = False


class RunExport(msgspec.Struct, frozen=True):
    """A saga or a pipeline. ``deadline`` is in seconds."""

    kind: Literal["saga", "pipeline"]
    name: str
    steps: tuple[StepExport, ...]
    inputs: tuple[str, ...] = ()
    deadline: float | None = None


class NodeExport(msgspec.Struct, frozen=True):
    """One node of a graph.

    Attributes:
        kind: what it does: execute a function, have another run made, or wait for a signal.
        timeout: seconds that one attempt may take.
    """

    name: str
    kind: Literal["step", "run", "pause"] = "step"
    attempts: int = 1
    timeout: float | None = None
    join: Literal["all", "any"] | int = "all"
    entry: bool = False
    final: bool = False


class EdgeExport(msgspec.Struct, frozen=True):
    """One edge of a graph. ``when`` is the name of its condition."""

    source: str
    target: str
    when: str | None = None
    otherwise: bool = False
    label: str | None = None
    max_iterations: int | None = None


class GraphExport(msgspec.Struct, frozen=True):
    """A graph. ``deadline`` is in seconds."""

    name: str
    nodes: tuple[NodeExport, ...]
    edges: tuple[EdgeExport, ...]
    state: str = ""
    deadline: float | None = None


class LevelExport(msgspec.Struct, frozen=True):
    """One level of an approval chain.

    Attributes:
        resolver: the name of the function that names who is asked.
        when: the name of the rule.
        timeout: seconds, after which it comes to ``escalate_to``, or to what ``on_timeout`` says.
    """

    name: str
    role: str | None = None
    approvers: tuple[str, ...] | None = None
    resolver: str | None = None
    quorum: int | str = 1
    when: str | None = None
    timeout: float | None = None
    escalate_to: str | None = None
    on_timeout: str | None = None
    send_back_to: str | None = None


class ApprovalExport(msgspec.Struct, frozen=True):
    """An approval chain. ``deadline`` is in seconds."""

    name: str
    levels: tuple[LevelExport, ...]
    subject: str = ""
    parallel: bool = False
    deadline: float | None = None


Export: TypeAlias = MachineExport | RunExport | GraphExport | ApprovalExport


def read_export(data: Mapping[str, Any]) -> Export:
    """Read an exported definition.

    Raises:
        FlowletError: it is none, or one of a kind that is not drawn.
    """
    kind = data.get("kind")
    try:
        if kind == "machine":
            return msgspec.convert(data, MachineExport)
        if kind in ("saga", "pipeline"):
            return msgspec.convert(data, RunExport)
        if kind == "graph":
            return msgspec.convert(data, GraphExport)
        if kind == "approval":
            return msgspec.convert(data, ApprovalExport)
    except msgspec.ValidationError as error:
        raise FlowletError(f"this is no exported {kind}: {error}; give diagram() what export() returns") from error
    raise FlowletError(
        f"cannot draw an export of kind {kind!r}; machines, sagas, pipelines, graphs and approval chains can be drawn"
    )
