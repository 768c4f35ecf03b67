"""One tree of errors; each carries its data, says it, and survives being copied and sent elsewhere."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from flowlet import errors
from flowlet.errors import (
    BulkFailed,
    CompensationFailed,
    Conflict,
    CopyMismatch,
    CycleError,
    DefinitionError,
    EdgeFailed,
    FlowletError,
    GraphStuck,
    HookFailed,
    IterationLimit,
    LeaseLost,
    MachineError,
    MissingExtra,
    RunError,
    RunFinished,
    RunNotFound,
    RunParked,
    StepFailed,
    StepTimeout,
    StoreError,
    StoreInUse,
    TransitionNotAllowed,
    UpdateError,
    WriteConflict,
)

SAMPLES: list[FlowletError] = [
    DefinitionError(["a: is wrong", "b: too"]),
    TransitionNotAllowed("pay", "Draft", "guard", "can_pay", "ask ann"),
    TransitionNotAllowed("pay", "Draft", "no_transition"),
    HookFailed("on_enter failed", committed=True),
    RunParked("no such step"),
    StepFailed("it failed", "charge", 3, "shop:Declined"),
    StepTimeout("too long"),
    CompensationFailed(["charge"], [ValueError("no")]),
    BulkFailed([3, 7], [ValueError("no"), KeyError("a")]),
    Conflict(3, 4, "o-1"),
    LeaseLost("taken over", "o-1"),
    RunFinished("it has ended", "o-1"),
    RunNotFound("there is none", "o-1"),
    MissingExtra("pip install 'flowlet[redis]'"),
    StoreInUse("three are owned", 3, "o-1"),
    CopyMismatch("it differs", "o-1"),
    CycleError(["a", "b"]),
    GraphStuck("no edge was taken", ["a", "b"]),
    WriteConflict("both have changed it", "note", ["a", "b"]),
    UpdateError("no such field", "a", "nte"),
    EdgeFailed("when= failed", "a", "b"),
    IterationLimit("too often", "a", 100, ["a", "b"]),
    errors.ApprovalRejected("it was not approved", "the outcome"),
    errors.DecisionRefused("they may not", "role_not_held", "bob", "manager"),
    errors.AlreadyDecided("they have", "already_decided", "bob", "manager"),
    errors.QuorumUnreachable("too few", "manager"),
    errors.RuleFailed("when= failed", "manager"),
]


def test_all_names_are_there_and_derive_from_the_root() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), FlowletError), name
    classes = {v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)}
    assert {c.__name__ for c in classes if c.__module__ == errors.__name__} == set(errors.__all__)


TREE = {
    "DefinitionError": FlowletError,
    "MachineError": FlowletError,
    "TransitionNotAllowed": MachineError,
    "HookFailed": MachineError,
    "RunError": FlowletError,
    "RunNotFound": RunError,
    "IdConflict": RunError,
    "RunFinished": RunError,
    "RunParked": RunError,
    "RunCancelled": RunError,
    "RunTimeout": RunError,  # not in the design: the deadline of a run
    "StepFailed": RunError,
    "SignalTimeout": RunError,  # not in the design: a signal that had to come within some time
    "StepTimeout": RunError,
    "CompensationFailed": RunError,
    "BulkFailed": RunError,  # not in the design: the values of all items were asked for, and some failed
    "ApprovalError": RunError,  # not in the design, which has two of those below it right below RunError
    "ApprovalRejected": errors.ApprovalError,
    "DecisionRefused": errors.ApprovalError,
    "AlreadyDecided": errors.DecisionRefused,
    "QuorumUnreachable": errors.ApprovalError,
    "RuleFailed": errors.ApprovalError,
    "HistoryMismatch": RunError,
    "GraphError": RunError,  # not in the design, nor those below it: what a graph's run may fail with
    "GraphStuck": errors.GraphError,
    "WriteConflict": errors.GraphError,
    "UpdateError": errors.GraphError,
    "EdgeFailed": errors.GraphError,
    "IterationLimit": errors.GraphError,
    "CycleError": FlowletError,
    "StoreError": FlowletError,
    "Conflict": StoreError,
    "LeaseLost": StoreError,
    "EncodeError": StoreError,
    "DecodeError": StoreError,
    "StoreUnavailable": StoreError,
    "PayloadTooLarge": StoreError,
    "StoreNotFound": StoreError,  # not in the design: what a tool that only reads is told
    "StoreInUse": StoreError,  # not in the design, nor the next: what copying a store may be refused for
    "CopyMismatch": StoreError,
    "ConfigError": FlowletError,
    "Disabled": FlowletError,  # not in the design, nor the next: switched off by its configuration
    "ProviderFailed": FlowletError,  # what steps are given could not be made
    "MissingExtra": FlowletError,
    "FlowletError": Exception,
}


def test_the_tree_is_the_designs() -> None:
    assert {name: getattr(errors, name).__bases__[0] for name in errors.__all__} == TREE


def test_errors_that_are_something_else_as_well() -> None:
    assert issubclass(StepTimeout, TimeoutError)
    assert issubclass(errors.RunTimeout, TimeoutError)
    assert issubclass(MissingExtra, ImportError)
    assert issubclass(CompensationFailed, ExceptionGroup)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("travel", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))], ids=["copy", "pickle"])  # noqa: S301
def test_they_travel(error: FlowletError, travel: Any) -> None:
    back = travel(error)
    assert type(back) is type(error)
    assert str(back) == str(error)
    fields = [n for n in type(error).__annotations__ if not n.startswith("_")]
    assert [getattr(back, n) for n in fields] == [getattr(error, n) for n in fields]


def test_a_definition_error_lists_its_problems() -> None:
    assert str(DefinitionError(["a: is wrong"])) == "1 problem in the definition:\n  - a: is wrong"
    error = DefinitionError(["a: is wrong", "b: too"])
    assert str(error) == "2 problems in the definition:\n  - a: is wrong\n  - b: too"
    assert error.problems == ("a: is wrong", "b: too")


def test_a_refused_event_says_which_of_the_two_it_was() -> None:
    assert (
        str(TransitionNotAllowed("pay", "Draft", "guard", "can_pay"))
        == "event 'pay' was refused in state 'Draft' by guard 'can_pay'"
    )
    assert (
        str(TransitionNotAllowed("pay", "Paid", "no_transition", hint="it is paid"))
        == "no transition for event 'pay' leaves state 'Paid'; it is paid"
    )


def test_a_conflict_says_what_was_expected_and_found() -> None:
    assert (Conflict(3, 4, "o-1").expected, Conflict(3, 4, "o-1").actual) == (3, 4)
    assert "'o-1' is at version 4, not 3" in str(Conflict(3, 4, "o-1"))
    assert str(Conflict(3, 4)).startswith("it is at version 4")


def test_failed_compensations_are_a_group_that_names_the_steps() -> None:
    error = CompensationFailed(["ship", "charge"], [ValueError("a"), KeyError("b")])
    assert error.failed == ("ship", "charge")
    assert "ship" in str(error)
    assert "charge" in str(error)
    kept, rest = error.split(ValueError)
    assert kept is not None
    assert rest is not None
    assert isinstance(kept, ExceptionGroup)
    assert [type(e) for e in rest.exceptions] == [KeyError]
    with pytest.raises(ExceptionGroup):
        raise error
