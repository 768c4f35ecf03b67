"""What a registry keeps of a saga, a pipeline or any other definition that runs are made of.

Law: a definition is immutable and knows how to interpret itself over an `Engine`; it does not know
where it runs, and a registry, a `Flowlet` or a store can be added without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Protocol
from weakref import ReferenceType

import msgspec

from flowlet.core.annotations import Parameter
from flowlet.core.codec import Codec
from flowlet.core.engine import CurrentTask, Engine
from flowlet.core.secrets import Tree, Walk, secret_tree, secrets_of_fields, secrets_of_items
from flowlet.core.steps import StepDefinition

ASSEMBLED = "__flowlet_definition__"
"""The attribute of what takes the place of an assembled function or class that holds its definition."""


CHILD = "__flowlet_child__"
"""The attribute of the same that holds the `StepDefinition` by which it is a step, a child run, of another one."""


class Interpretation(Protocol):
    """One run of a definition, in the two phases that a runtime may put into different tasks."""

    @property
    def undoes(self) -> bool:
        """Whether ``backward`` has anything to do."""
        ...

    def forward(self) -> Coroutine[Any, Any, bytes]:
        """Do what the definition says; return the encoded result, or raise why it failed."""
        ...

    def backward(self, error: Exception) -> Coroutine[Any, Any, Undone]:
        """Undo what was done, after ``forward`` has failed; return what came of it."""
        ...


class Undone(msgspec.Struct, frozen=True):
    """What `Interpretation.backward` did.

    Attributes:
        steps: keys of the steps that were undone.
    """

    steps: tuple[str, ...] = ()


class RunDefinition(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A definition that runs are made of.

    Attributes:
        kind: ``"saga"``, ``"pipeline"`` or ``"graph"``.
        version: the definition version that new runs are pinned to.
        target: the user's function or class, by which it is found again; None when assembled from steps.
        steps: the steps known at assembly, by name.
        starter: the definition seen as a call, which binds and encodes the inputs.
        interpret: makes an `Interpretation` of one run.
        exported: the definition as plain data.
        constructor: the provided parameters with which the object of a class is built.
        sides: what is executed beside the steps, such as what handles a failure.
        deadline: seconds after its start in which a run must have ended, or None.
        timeout: seconds that a process may spend on a run, from taking it up; None for no limit, unset for the
            limit that a `Flowlet` has for the kind.
        signals: the types of the signals that a run takes, by topic; None if that is not known at assembly.
        homes: weak references to the registries that keep it, for finding where a direct call runs.
    """

    kind: str
    name: str
    version: str
    target: Any
    steps: dict[str, StepDefinition]
    starter: StepDefinition
    interpret: Callable[[Context, tuple[Any, ...]], Interpretation]
    exported: dict[str, Any]
    homes: list[ReferenceType[Any]]
    constructor: tuple[Parameter, ...] = ()
    sides: tuple[StepDefinition, ...] = ()
    deadline: float | None = None
    timeout: float | msgspec.UnsetType | None = None
    signals: dict[str, Codec[Any]] | None = None

    @property
    def takes_provided(self) -> bool:
        """Whether its body or its class has parameters that flowlet fills."""
        return bool(self.constructor or self.starter.providers)

    def export(self) -> dict[str, Any]:
        """Return the definition as plain data, as it is stored beside its runs.

        The key ``"secrets"`` is there if a type of it is marked `Secret`: trees by ``"input"``, ``"result"``,
        ``"steps"`` (with ``"input"`` and ``"result"`` for each by its name) and ``"signals"`` (by topic), each as
        the value is stored: inputs as a list, in the order of ``"inputs"``.
        """
        secrets = self.secrets()
        return {**self.exported, "secrets": secrets} if secrets else self.exported

    def secrets(self) -> dict[str, Any]:
        """Return where secrets are in what is stored of its runs; see `flowlet.core.secrets`."""
        walk = Walk()
        steps = {name: _call_secrets(step, walk) for name, step in self.steps.items()}
        signals = secrets_of_fields({topic: c.type for topic, c in (self.signals or {}).items()}, walk)
        found = {
            **_call_secrets(self.starter, walk),
            "steps": {name: trees for name, trees in steps.items() if trees},
            "signals": signals,
        }
        return {key: tree for key, tree in found.items() if tree}


def _call_secrets(call: StepDefinition, walk: Walk) -> dict[str, Tree]:
    trees = {
        "input": secrets_of_items((p.annotation for p in call.inputs), walk),
        "result": secret_tree(call.result.type, walk),
    }
    return {key: tree for key, tree in trees.items() if tree is not None}


class GraphLimits(msgspec.Struct, frozen=True):
    """What goes for graphs whose definition says nothing of it.

    Attributes:
        iterations: how often a node of a cycle may be executed.
        concurrency: so many nodes execute at once; None for all that can.
        node_timeout: seconds that an attempt of a node may take, or None.
    """

    iterations: int = 100
    concurrency: int | None = None
    node_timeout: float | None = None


class Context(msgspec.Struct, frozen=True, eq=False):
    """What an interpretation is given of the world.

    Attributes:
        engine: the run's engine.
        current_task: tells the task that runs now.
        instance: the object of a class definition, built through its providers.
        provided: the values of the body's provided parameters, by name.
        limits: those of this process for graphs.
    """

    engine: Engine
    current_task: CurrentTask
    instance: Any = None
    provided: dict[str, Any] = {}
    limits: GraphLimits = GraphLimits()


class Draft(ABC):
    """A definition that is still being written: it is built when somebody needs it, and stays as it is then.

    Attributes:
        name, version: those of the definition.
        built: the definition, once there is one.
        keepers: weak references to the registries that are given it then.
    """

    def __init__(self, name: str, version: str) -> None:
        self.name: str = name
        self.version: str = version
        self.built: RunDefinition | None = None
        self.keepers: list[ReferenceType[Any]] = []

    def publish(self, definition: RunDefinition) -> None:
        """Let a definition be what was written, and give it to the registries."""
        self.built = definition
        for keeper in [keeper for ref in self.keepers if (keeper := ref()) is not None]:
            keeper.add(definition)

    @abstractmethod
    def definition(self) -> RunDefinition:
        """Return the definition, which is built if that has not been done yet.

        Raises:
            DefinitionError: with everything that is wrong with it.
        """
