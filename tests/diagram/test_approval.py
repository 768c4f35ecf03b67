"""An approval chain's picture: who is asked, in which order, and what time and rejections do."""

from __future__ import annotations

from datetime import timedelta

import pytest
from msgspec import Struct

from flowlet import Registry, level
from flowlet.diagram import diagram
from flowlet.errors import FlowletError
from flowlet.traversal import digraph


class Expense(Struct):
    amount: int


def heads(expense: Expense) -> list[str]:
    return ["eve"]


def is_large(expense: Expense) -> bool:
    return expense.amount > 100


LEVELS = (
    level("manager", role="manager", timeout=timedelta(days=3), escalate_to="director", on_timeout="reject"),
    level("legal", approvers=["lea", "lou"], quorum="all", when=is_large),
    level("head", role="head", approvers=heads, quorum=2, when=lambda e: e.amount > 5, send_back_to="manager"),
)


def test_levels_in_order() -> None:
    chain = Registry().approval("expense", *LEVELS, type=Expense, deadline=timedelta(days=30))
    assert diagram(chain, active="legal").mermaid == (
        "flowchart TB\n"
        '    begin(["expense(Expense)<br/>deadline 30 d"])\n'
        '    manager{{"manager<br/>role manager<br/>after 3 d#58; director, then reject"}}\n'
        '    legal{{"legal<br/>all of lea, lou<br/>[is_large]"}}\n'
        '    head{{"head<br/>2 of heads(), role head<br/>[condition]"}}\n'
        '    approved[["approved"]]\n'
        "    begin --> manager\n"
        "    manager --> legal\n"
        "    legal --> head\n"
        "    head --> approved\n"
        '    head -.->|"rejected"| manager\n'
        "    classDef active fill:#fde68a,stroke:#b45309,stroke-width:3px\n"
        "    class legal active\n"
    )
    assert digraph(chain).cycle_of("manager") == ("manager", "legal", "head")


def test_levels_beside_each_other() -> None:
    chain = Registry().approval("expense", *LEVELS[:2], type=Expense, parallel=True)
    drawn = diagram(chain).mermaid
    for line in ("begin --> manager", "begin --> legal", "manager --> approved", "legal --> approved"):
        assert line in drawn
    assert digraph(chain).generations() == [("manager", "legal")]


def test_a_chain_without_levels_and_what_is_not_in_one() -> None:
    chain = Registry().approval("nothing", type=Expense)
    assert "begin --> approved" in diagram(chain).mermaid
    with pytest.raises(FlowletError, match="cannot be active"):
        diagram(chain, active="manager")
