"""Every error flowlet raises, in one tree with the root `FlowletError`.

Law: an error carries what happened as attributes, and its message says what to do next. Drivers' and
libraries' own exceptions never pass a flowlet boundary; they are the ``__cause__`` of one of these.
This module imports nothing of flowlet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

__all__ = [
    "AlreadyDecided",
    "ApprovalError",
    "ApprovalRejected",
    "BulkFailed",
    "CompensationFailed",
    "ConfigError",
    "Conflict",
    "CopyMismatch",
    "CycleError",
    "DecisionRefused",
    "DecodeError",
    "DefinitionError",
    "Disabled",
    "EdgeFailed",
    "EncodeError",
    "FlowletError",
    "GraphError",
    "GraphStuck",
    "HistoryMismatch",
    "HookFailed",
    "IdConflict",
    "IterationLimit",
    "LeaseLost",
    "MachineError",
    "MissingExtra",
    "PayloadTooLarge",
    "ProviderFailed",
    "QuorumUnreachable",
    "RuleFailed",
    "RunCancelled",
    "RunError",
    "RunFinished",
    "RunNotFound",
    "RunParked",
    "RunTimeout",
    "SignalTimeout",
    "StepFailed",
    "StepTimeout",
    "StoreError",
    "StoreInUse",
    "StoreNotFound",
    "StoreUnavailable",
    "TransitionNotAllowed",
    "UpdateError",
    "WriteConflict",
]


class FlowletError(Exception):
    """Root of all errors that flowlet raises."""


# ------------------------------------------------------------------ definitions
class DefinitionError(FlowletError):
    """A definition has faults; all of them are listed at once.

    Attributes:
        problems: one sentence per fault, naming the class or function and what to change.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        many = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{many} in the definition:\n" + "\n".join(f"  - {p}" for p in self.problems))

    def __reduce__(self) -> tuple[type[DefinitionError], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class CycleError(FlowletError):
    """What was to be put in order has a cycle.

    Attributes:
        cycle: its nodes, the first one once.
    """

    cycle: tuple[str, ...]

    def __init__(self, cycle: Sequence[str]) -> None:
        self.cycle = tuple(cycle)
        super().__init__(f"there is a cycle: {' -> '.join([*self.cycle, *self.cycle[:1]])}")

    def __reduce__(self) -> tuple[type[CycleError], tuple[tuple[str, ...]]]:
        return type(self), (self.cycle,)


# ------------------------------------------------------------------ machines
class MachineError(FlowletError):
    """A machine was used in a way that it does not allow."""


class TransitionNotAllowed(MachineError):
    """The event cannot fire now; the machine is as it was.

    Attributes:
        event: the event's name.
        state: the state the machine is in.
        reason: ``"no_transition"`` when no transition for this event leaves the state,
            ``"guard"`` when one does and its guard refused.
        guard: the name of the guard that refused, or None.
    """

    event: str
    state: str
    reason: Literal["no_transition", "guard"]
    guard: str | None

    def __init__(
        self,
        event: str,
        state: str,
        reason: Literal["no_transition", "guard"],
        guard: str | None = None,
        hint: str = "",
    ) -> None:
        self.event, self.state, self.reason, self.guard = event, state, reason, guard
        self._hint = hint
        # The message is built when somebody reads it: a refusal is an answer, often a frequent one.
        super().__init__(event, state, reason, guard, hint)

    def __str__(self) -> str:
        if self.reason == "guard":
            text = f"event {self.event!r} was refused in state {self.state!r} by guard {self.guard!r}"
        else:
            text = f"no transition for event {self.event!r} leaves state {self.state!r}"
        return f"{text}; {self._hint}" if self._hint else text


class HookFailed(MachineError):
    """A hook raised; its own exception is the ``__cause__``.

    Attributes:
        committed: True when the transition had been committed before the hook ran, so that the
            machine *is* in its new state.
    """

    committed: bool

    def __init__(self, message: str, committed: bool = False) -> None:
        self.committed = committed
        super().__init__(message)

    def __reduce__(self) -> tuple[type[HookFailed], tuple[str, bool]]:
        return type(self), (str(self), self.committed)


# ------------------------------------------------------------------ runs
class RunError(FlowletError):
    """A run did not do what was asked of it."""


class RunNotFound(RunError):
    """No run (or machine) has this id in the store.

    Attributes:
        id: the id that was looked for, ``""`` where it is not known.
    """

    id: str

    def __init__(self, message: str = "", id: str = "") -> None:
        self.id = id
        super().__init__(message)

    def __reduce__(self) -> tuple[type[RunNotFound], tuple[str, str]]:
        return type(self), (str(self), self.id)


class IdConflict(RunError):
    """The id is taken by another definition or by another input."""


class RunFinished(RunError):
    """The run has ended, so it can no longer be changed.

    Attributes:
        id: the run, ``""`` where it is not known.
    """

    id: str

    def __init__(self, message: str = "", id: str = "") -> None:
        self.id = id
        super().__init__(message)

    def __reduce__(self) -> tuple[type[RunFinished], tuple[str, str]]:
        return type(self), (str(self), self.id)


class RunParked(RunError):
    """The run needs an operator before it can go on; nothing of it is lost.

    Attributes:
        reason: why it was parked, with the step, what was expected and what was found.
    """

    reason: str

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class RunCancelled(RunError):
    """The run was cancelled; what has a compensation was undone."""


class StepFailed(RunError):
    """A step failed for good and its exception could not be rebuilt in this process.

    Attributes:
        step: the step's key.
        attempts: how often it was tried.
        type: the qualified name of the original exception's class.
    """

    step: str
    attempts: int
    type: str

    def __init__(self, message: str, step: str = "", attempts: int = 1, type: str = "") -> None:
        self.step, self.attempts, self.type = step, attempts, type
        super().__init__(message)

    def __reduce__(self) -> tuple[object, tuple[str, str, int, str]]:
        return StepFailed, (str(self), self.step, self.attempts, self.type)


class RunTimeout(RunError, TimeoutError):
    """The run had not ended at its deadline; what has a compensation was undone."""


class StepTimeout(RunError, TimeoutError):
    """A step did not end within its ``timeout=`` seconds and was cancelled."""


class SignalTimeout(RunError, TimeoutError):
    """No signal of the topic came within the ``timeout=`` seconds of `Run.receive`."""


class CompensationFailed(RunError, ExceptionGroup[Exception]):
    """One or more compensations failed for good; the others have run.

    It is itself the group of their exceptions (``.exceptions``), and the ``__cause__`` of the
    error that started the rollback.

    Attributes:
        failed: the keys of the steps whose effects still stand.
    """

    failed: tuple[str, ...]

    def __new__(cls, failed: Sequence[str], errors: Sequence[Exception]) -> CompensationFailed:
        what = ", ".join(failed)
        text = f"compensation failed for {what}: what these steps did still stands and must be undone by hand"
        self = super().__new__(cls, text, list(errors))
        self.failed = tuple(failed)
        return self

    def __init__(self, failed: Sequence[str], errors: Sequence[Exception]) -> None:
        """Accept what `__new__` took; the group has been built there."""

    def __reduce__(self) -> tuple[type[CompensationFailed], tuple[tuple[str, ...], tuple[Exception, ...]]]:
        return type(self), (self.failed, self.exceptions)


class BulkFailed(RunError, ExceptionGroup[Exception]):
    """Items of a bulk operation failed whose values were asked for all together.

    It is itself the group of their exceptions (``.exceptions``), each of which has a note that names its item.

    Attributes:
        failed: the places of these items among all, from 0, in the same order.
    """

    failed: tuple[int, ...]

    def __new__(cls, failed: Sequence[int], errors: Sequence[Exception]) -> BulkFailed:
        some = ", ".join(map(str, failed[:10])) + (", ..." if len(failed) > 10 else "")
        count = "1 item has" if len(failed) == 1 else f"{len(failed):,} items have"
        self = super().__new__(cls, f"{count} failed ({some}); await the bulk for a report of all items", list(errors))
        self.failed = tuple(failed)
        return self

    def __init__(self, failed: Sequence[int], errors: Sequence[Exception]) -> None:
        """Accept what `__new__` took; the group has been built there."""

    def __reduce__(self) -> tuple[type[BulkFailed], tuple[tuple[int, ...], tuple[Exception, ...]]]:
        return type(self), (self.failed, self.exceptions)


class HistoryMismatch(RunError):
    """What is recorded does not fit the definition that reads it."""


# ------------------------------------------------------------------ approval chains
class ApprovalError(RunError):
    """An approval chain cannot go on, or does not do what was asked of it."""


class ApprovalRejected(ApprovalError):
    """The approval chain ended without approval.

    Attributes:
        outcome: the `ApprovalOutcome`.
    """

    outcome: Any

    def __init__(self, message: str, outcome: Any = None) -> None:
        self.outcome = outcome
        super().__init__(message)

    def __reduce__(self) -> tuple[type[ApprovalRejected], tuple[str, Any]]:
        return type(self), (str(self), self.outcome)


class DecisionRefused(ApprovalError):
    """Somebody has tried what they may not do, or not now; nothing has changed but the chain's audit.

    Attributes:
        reason: ``"unknown_level"``, ``"not_open"``, ``"ambiguous"`` (say which ``level=``), ``"no_roles"`` (none were
            given), ``"role_not_held"``, ``"not_asked"`` (others are named), ``"self_approval"``, ``"distinct"`` (they
            have decided on another level), ``"delegated"`` (their vote is somebody else's to cast),
            ``"not_delegable"``, ``"not_requester"``, ``"expired"`` (the run's deadline), ``"already_decided"`` or
            ``"ended"``.
        by: who.
        level: the level, ``""`` if there is none in particular.
    """

    reason: str
    by: str
    level: str

    def __init__(self, message: str, reason: str = "", by: str = "", level: str = "") -> None:
        self.reason, self.by, self.level = reason, by, level
        super().__init__(message)

    def __reduce__(self) -> tuple[type[DecisionRefused], tuple[str, str, str, str]]:
        return type(self), (str(self), self.reason, self.by, self.level)


class AlreadyDecided(DecisionRefused):
    """This has been decided: by this person on this level, by others who were faster, or the chain has ended."""


class QuorumUnreachable(ApprovalError):
    """A level can never be decided: too few of those who are named for it may decide.

    Attributes:
        level: the level.
    """

    level: str

    def __init__(self, message: str, level: str = "") -> None:
        self.level = level
        super().__init__(message)


class RuleFailed(ApprovalError):
    """The ``when=`` of a level has raised, or has answered with an awaitable.

    Attributes:
        level: the level.
    """

    level: str

    def __init__(self, message: str, level: str = "") -> None:
        self.level = level
        super().__init__(message)


# ------------------------------------------------------------------ graphs
class GraphError(RunError):
    """The run of a graph cannot go on, because of how the graph is made or what its nodes have returned."""


class GraphStuck(GraphError):
    """Every branch of a graph's run has ended, and none of them at a final node.

    Attributes:
        died: the nodes after which no edge was taken.
    """

    def __init__(self, message: str, died: Sequence[str] = ()) -> None:
        self._died = list(died)
        super().__init__(message)

    @property
    def died(self) -> tuple[str, ...]:
        return tuple(self._died)


class WriteConflict(GraphError):
    """Two nodes, neither of which came before the other, have changed the same field, which has no reducer.

    Attributes:
        field: the field.
        writers: the keys of the two.
    """

    field: str

    def __init__(self, message: str, field: str = "", writers: Sequence[str] = ()) -> None:
        self.field, self._writers = field, list(writers)
        super().__init__(message)

    @property
    def writers(self) -> tuple[str, ...]:
        return tuple(self._writers)


class UpdateError(GraphError):
    """What a node has returned, or a ``merge=`` made of a payload, is no change of the graph's state.

    Attributes:
        node: the node or pause.
        field: the field in question, ``""`` if there is none.
    """

    node: str
    field: str

    def __init__(self, message: str, node: str = "", field: str = "") -> None:
        self.node, self.field = node, field
        super().__init__(message)


class EdgeFailed(GraphError):
    """The ``when=`` of an edge has raised, or has answered with a coroutine.

    Attributes:
        source, target: the nodes that the edge joins.
    """

    source: str
    target: str

    def __init__(self, message: str, source: str = "", target: str = "") -> None:
        self.source, self.target = source, target
        super().__init__(message)


class IterationLimit(GraphError):
    """A node or an edge of a cycle has come up more often than its ``max_iterations`` allows.

    Attributes:
        node: the node, or the one that the edge leads to.
        limit: how often it may.
        cycle: the nodes of a cycle that it lies in, the first one once.
    """

    node: str
    limit: int

    def __init__(self, message: str, node: str = "", limit: int = 0, cycle: Sequence[str] = ()) -> None:
        self.node, self.limit, self._cycle = node, limit, list(cycle)
        super().__init__(message)

    @property
    def cycle(self) -> tuple[str, ...]:
        return tuple(self._cycle)


# ------------------------------------------------------------------ stores
class StoreError(FlowletError):
    """The store refused or could not do what was asked."""


class Conflict(StoreError):
    """Somebody else wrote first; nothing of this write was stored.

    Attributes:
        expected: the version the writer had seen.
        actual: the version that is there.
        id: the run or machine.
    """

    expected: int
    actual: int
    id: str

    def __init__(self, expected: int, actual: int, id: str = "") -> None:
        self.expected, self.actual, self.id = expected, actual, id
        super().__init__(expected, actual, id)

    def __str__(self) -> str:
        name = repr(self.id) if self.id else "it"
        return f"{name} is at version {self.actual}, not {self.expected}: somebody else wrote first; load it again"


class LeaseLost(StoreError):
    """The writer no longer owns the run: its lease ran out and somebody else may have taken it.

    Attributes:
        id: the run or machine, ``""`` when a worker has lost its place and with it all it owned.
    """

    id: str

    def __init__(self, message: str = "", id: str = "") -> None:
        self.id = id
        super().__init__(message)

    def __reduce__(self) -> tuple[type[LeaseLost], tuple[str, str]]:
        return type(self), (str(self), self.id)


class EncodeError(StoreError):
    """A value cannot be stored; make it a msgspec type (Struct, dataclass, datetime, UUID, ...)."""


class DecodeError(StoreError):
    """A value is not of the annotated type, or stored bytes are damaged."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or opened now; nothing was lost, try again when it is back."""


class StoreNotFound(StoreError):
    """There is nothing of flowlet's where a store was to be looked at; nothing was created."""


class StoreInUse(StoreError):
    """A store that must be left alone meanwhile, to be copied, is being worked on.

    Attributes:
        owned: how many runs and machines a living worker owns; 0 when something else showed that it is in use.
        id: one that is owned, or that was changed meanwhile; ``""`` where it is not known.
    """

    owned: int
    id: str

    def __init__(self, message: str = "", owned: int = 0, id: str = "") -> None:
        self.owned, self.id = owned, id
        super().__init__(message)

    def __reduce__(self) -> tuple[type[StoreInUse], tuple[str, int, str]]:
        return type(self), (str(self), self.owned, self.id)


class CopyMismatch(StoreError):
    """The other store has something else under an id than what is to be copied; it was left as it is.

    Attributes:
        id: the run, machine or definition.
    """

    id: str

    def __init__(self, message: str = "", id: str = "") -> None:
        self.id = id
        super().__init__(message)

    def __reduce__(self) -> tuple[type[CopyMismatch], tuple[str, str]]:
        return type(self), (str(self), self.id)


class PayloadTooLarge(StoreError):
    """A value is larger than may be stored; keep it elsewhere and pass a reference.

    Attributes:
        size: of what was to be stored, in bytes; 0 where it is not known.
        limit: what is allowed, in bytes; 0 where it is not known.
    """

    size: int
    limit: int

    def __init__(self, message: str = "", size: int = 0, limit: int = 0) -> None:
        self.size, self.limit = size, limit
        super().__init__(message)

    def __reduce__(self) -> tuple[type[PayloadTooLarge], tuple[str, int, int]]:
        return type(self), (str(self), self.size, self.limit)


# ------------------------------------------------------------------ configuration
class ConfigError(FlowletError):
    """A setting is wrong; the message names it, its value and what is allowed.

    Attributes:
        problems: a sentence for each thing that is wrong.
    """

    problems: tuple[str, ...]

    def __init__(self, text: str, problems: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.problems = tuple(problems) or (text,)


class Disabled(FlowletError):
    """Nothing is started, recovered or stored, since flowlet is switched off.

    Attributes:
        by: what says so, such as ``"FLOWLET_ENABLED"``.
    """

    by: str

    def __init__(self, by: str) -> None:
        super().__init__(
            f"flowlet is disabled by {by}: nothing is started and nothing is stored; set it to true to use it"
        )
        self.by = by

    def __reduce__(self) -> tuple[type[Disabled], tuple[str]]:
        return type(self), (self.by,)


class ProviderFailed(FlowletError):
    """A value for parameters ``= provided`` could not be made or closed; the cause says why.

    For a step it is the failure of an attempt, as if the step had raised it: ``retry=`` tries again, and has the value
    made anew. A run whose body or class lacks the value is parked, and can be resumed.
    """


class MissingExtra(FlowletError, ImportError):
    """An optional dependency is not installed; the message has the exact ``pip install`` line."""
