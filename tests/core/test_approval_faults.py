"""Everything that is wrong with an approval chain is found when it is assembled, and all of it is told."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from msgspec import Struct

from flowlet import Registry, describe, level
from flowlet.approval import ApprovalNotice
from flowlet.errors import DefinitionError


class Expense(Struct):
    amount: int


async def tell(notice: ApprovalNotice[Expense]) -> None: ...


def faults(*levels: Any, type: Any = Expense, **options: Any) -> tuple[str, ...]:
    with pytest.raises(DefinitionError) as caught:
        Registry().approval("expense", *levels, type=type, **options)
    return caught.value.problems


def two(expense: Expense, more: int) -> list[str]:
    return []


def number(expense: Expense) -> int:
    return 1


async def slow(expense: Expense) -> bool:
    return True


def other(notice: ApprovalNotice[int]) -> None: ...


A: dict[str, Any] = {"role": "a"}

LEVELS: list[tuple[Any, str]] = [
    (level("a"), "nobody may decide on it; give it a role=, or approvers="),
    (level("", role="a"), "a level's name is a text"),
    (level("a#1", role="a"), "a level's name is a text"),
    (level("a", role=""), "role= is the name of a role"),
    (level("a", approvers=[]), "approvers= names nobody"),
    (level("a", approvers="bob"), "approvers= is a list of names, or a function that returns one, not 'bob'"),
    (level("a", approvers=["bob", 1]), "these are not all names"),  # type: ignore[list-item]
    (level("a", role="a", quorum=0), 'quorum= is a whole number of at least 1, "all" or "majority", not 0'),
    (level("a", role="a", quorum=True), "quorum= is a whole number"),
    (level("a", role="a", quorum="most"), "quorum= is a whole number"),  # type: ignore[call-overload]
    (level("a", role="a", quorum="all"), "quorum='all' needs to know of whom"),
    (level("a", role="a", quorum="majority"), "quorum='majority' needs to know of whom"),
    (level("a", approvers=["bob", "bob"], quorum=2), "quorum=2 is more than the approvers there are: 1"),
    (level("a", approvers=two), "approvers= approvers function must take one argument"),  # type: ignore[call-overload]
    (level("a", approvers=number), "it is to return names, as list[str]"),  # type: ignore[call-overload]
    (level("a", when=slow, **A), "when= must be a plain function of the subject"),
    (level("a", when=two, **A), "when= two must take one argument, the subject"),
    (level("a", timeout=-1, on_timeout="reject", **A), "timeout: must be finite and not negative, not -1"),
    (level("a", timeout=0, on_timeout="reject", **A), "timeout: must be more than 0"),
    (level("a", timeout="3d", on_timeout="reject", **A), "timeout: must be seconds or a timedelta"),
    (level("a", timeout=5, **A), 'give it escalate_to=, or on_timeout="approve" or "reject"'),
    (level("a", timeout=5, on_timeout="escalate", **A), 'on_timeout="escalate" needs escalate_to='),
    (level("a", timeout=5, on_timeout="cancel", **A), 'on_timeout= is "escalate", "approve" or "reject"'),
    (level("a", escalate_to="b", **A), "escalate_to= is for after the timeout, and there is none"),
    (level("a", timeout=5, escalate_to="a", **A), "escalate_to='a' is the role that may decide anyway"),
    (level("a", on_timeout="reject", **A), "on_timeout= is for after the timeout, and there is none"),
    (level("a", remind=-1, **A), "remind: must be finite and not negative"),
    (level("a", remind=[1, timedelta(0)], **A), "remind: must be more than 0"),
    (level("a", remind=6, timeout=5, on_timeout="reject", **A), "remind= is after the timeout of 5 s"),
    (level("a", veto="yes", **A), "veto= is True or False"),
    (level("a", delegate=None, **A), "delegate= is True or False"),
    (level("a", send_back_to="b", **A), "send_back_to= names 'b', which is no level of it"),
    (level("a", send_back_to="a", **A), "send_back_to= names 'a', which does not come before it"),
    ("a", "takes levels, not 'a'; make them with level(...)"),
]


@pytest.mark.parametrize(("bad", "problem"), LEVELS)
def test_a_level_is_checked(bad: Any, problem: str) -> None:
    assert any(problem in found for found in faults(bad, notify=tell))


CHAINS: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((level("a", **A), level("a", **A)), {}, "has two levels named 'a'"),
    ((level("a", remind=5, **A),), {}, "remind= calls the notify= of the chain, which has none"),
    (
        (level("a", **A), level("b", send_back_to="a", **A)),
        {"parallel": True},
        "send_back_to= goes with levels in order",
    ),
    ((level("first", **A), level("b", send_back_to="frist", **A)), {}, "did you mean 'first'?"),
    ((), {"type": Any}, "type= is annotated Any"),
    ((), {"type": object()}, "type="),
    ((), {"version": 0}, "version must be a whole number"),
    ((), {"deadline": -1}, "deadline: must be finite and not negative"),
    ((), {"timeout": "x"}, "timeout: must be seconds"),
    ((), {"distinct": 1}, "distinct= is True or False"),
    ((), {"parallel": "yes"}, "parallel= is True or False"),
    ((), {"notify": "mail"}, "notify= takes a function"),
    ((), {"notify": two}, "notify= notify function must take one argument"),
    ((), {"notify": other}, "notify= takes ApprovalNotice[int]"),
]


@pytest.mark.parametrize(("levels", "options", "problem"), CHAINS)
def test_a_chain_is_checked(levels: tuple[Any, ...], options: dict[str, Any], problem: str) -> None:
    assert any(problem in found for found in faults(*levels, **options))


def test_all_of_it_is_told_together() -> None:
    found = faults(level("a"), level("b", role="b", quorum=0), level("c", role="c", timeout=-1), version=0)
    assert len(found) == 5
    assert all(problem.startswith("expense") for problem in found)


def test_a_name_is_taken_once() -> None:
    registry = Registry()
    registry.approval("expense", type=Expense)
    with pytest.raises(DefinitionError, match="the name is taken"):
        registry.approval("expense", type=Expense)
    registry.approval("expense", type=Expense, version=2)


def test_it_is_exported_as_plain_data() -> None:
    def heads(expense: Expense) -> list[str]:
        return ["eve"]

    chain = Registry().approval(
        "expense",
        level("manager", role="manager", timeout=timedelta(days=3), escalate_to="director", remind=60),
        level("finance", approvers={"sam", "bob"}, quorum="all", when=lambda e: e.amount > 5),
        level("head", approvers=heads),
        type=Expense,
        notify=tell,
    )
    exported = describe(chain)
    assert exported["kind"] == "approval"
    assert exported["notify"] == "tell"
    manager, finance, head = exported["levels"]
    assert (manager["timeout"], manager["escalate_to"], manager["on_timeout"]) == (259200.0, "director", "wait")
    assert (finance["approvers"], finance["quorum"], finance["when"]) == (["bob", "sam"], "all", "<lambda>")
    assert "heads" in head["resolver"]
