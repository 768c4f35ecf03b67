"""`flowlet.diagram.wording`: what is written at arrows and under names."""

from __future__ import annotations

from typing import Any

import pytest

from flowlet.diagram.exported import StepExport, TransitionExport
from flowlet.diagram.wording import duration, error_label, step_details, transition_label


def label(**given: Any) -> str:
    return transition_label(
        TransitionExport(**{"event": "pay", "method": "pay", "source": "A", "targets": ("B",)} | given)
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0005, "0.5 ms"),
        (0.25, "250 ms"),
        (1, "1 s"),
        (3.5, "3.5 s"),
        (60, "1 min"),
        (90.0, "1 min 30 s"),
        (3600, "1 h"),
        (5400.5, "1 h 30 min 0.5 s"),
        (259200.0, "3 d"),
        (86400 * 400 + 1, "400 d 1 s"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "pay"),
        ({"method": "pay_late"}, "pay / pay_late"),
        ({"guards": ("can_pay", "rich")}, "pay [can_pay, rich]"),
        ({"kind": "eventless", "guards": ("full",), "method": "spill"}, "[full] / spill"),
        ({"kind": "after", "after": 3.0, "method": "expire"}, "after 3 s / expire"),
        ({"event": "done.state.A", "method": "finish"}, "done / finish"),
        ({"event": "done.invoke.A", "method": "finish"}, "done / finish"),
        ({"event": "error.invoke.A", "method": "broke"}, "failed / broke"),
        ({"event": "done.state.Other", "method": "finish"}, "done.state.Other / finish"),
        ({"internal": True}, "pay (internal)"),
        ({"targets": ()}, "pay (internal)"),
        ({"exclusive": True}, "pay (exclusive)"),
    ],
)
def test_transition_label(given: dict[str, Any], text: str) -> None:
    assert label(**given) == text


def test_error_label() -> None:
    assert error_label(TransitionExport("pay", "pay_late", "A", ("B",))) == "pay on error"
    assert error_label(TransitionExport("x", "spill", "A", ("B",), kind="eventless")) == "spill on error"


def test_step_details() -> None:
    assert step_details(StepExport("s")) == ""
    assert step_details(StepExport("s", attempts=5, timeout=10, pivot=True)) == "5 attempts, timeout 10 s, pivot"
