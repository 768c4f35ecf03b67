"""`flowlet.diagram.source` and `flowlet.diagram.exported`: exports that were written by somebody else."""

from __future__ import annotations

from typing import Any

import pytest

from flowlet.diagram import diagram
from flowlet.diagram.exported import MachineExport, RunExport, read_export
from flowlet.errors import FlowletError


def machine(*states: dict[str, Any], transitions: tuple[dict[str, Any], ...] = (), **others: Any) -> dict[str, Any]:
    return {"kind": "machine", "name": "M", "states": list(states), "transitions": list(transitions), **others}


def test_what_is_missing_has_its_default_and_what_is_not_known_is_passed_over() -> None:
    read = read_export(machine({"name": "A", "colour": "red"}, events=["go"], data=[], future=1))
    assert isinstance(read, MachineExport)
    assert (read.initial, read.states[0].type, read.states[0].default) == ("", "atomic", ())
    run = read_export({"kind": "pipeline", "name": "p", "steps": [{"name": "s", "inputs": ["x"]}]})
    assert isinstance(run, RunExport)
    assert (run.inputs, run.steps[0].attempts) == ((), 1)


@pytest.mark.parametrize(
    ("export", "said"),
    [
        ({}, "cannot draw an export of kind None"),
        ({"kind": "novel"}, "cannot draw an export of kind 'novel'"),
        ({"kind": "approval"}, "no exported approval: .*`name`"),
        (
            {"kind": "approval", "name": "a", "levels": [{"name": "l", "send_back_to": "k"}]},
            "a: level 'l' sends back to 'k', which the export does not have",
        ),
        ({"kind": "machine", "name": "M"}, "no exported machine: .*`states`"),
        (machine({"name": "A", "type": "round"}), r"no exported machine: .*\$.states\[0\].type"),
        ({"kind": "saga", "name": "s", "steps": [{}]}, r"no exported saga: .*\$.steps\[0\]"),
        (machine({"name": "A.B", "parent": "A"}), "M: the parent 'A' of 'A.B' is not listed before it"),
        (machine({"name": "A"}, initial="B"), "M: the export has no state 'B'"),
        (
            machine({"name": "A"}, transitions=({"event": "e", "method": "e", "source": "A", "targets": ["X"]},)),
            "M: the export has no state 'X'",
        ),
        (
            {"kind": "pipeline", "name": "p", "steps": [{"name": "s", "needs": ["r"]}]},
            "p: step 's' needs 'r', which the export does not have",
        ),
    ],
)
def test_what_is_wrong_is_an_error_that_says_where(export: dict[str, Any], said: str) -> None:
    with pytest.raises(FlowletError, match=said):
        diagram(export)


def test_the_initial_states_of_the_whole_may_be_deep_inside() -> None:
    inner = {"name": "A.B", "parent": "A"}
    text = diagram(machine({"name": "A", "type": "compound", "default": ["A.B"]}, inner, initial="A.B")).mermaid
    assert "[*] --> entry\n" in text
    assert "entry --> A_B\n" in text


def test_an_empty_machine() -> None:
    assert diagram(machine()).mermaid == "stateDiagram-v2\n"
