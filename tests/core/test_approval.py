"""Approval chains on an engine that suspends at every wait: what they start is the same every time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hearings import Expense
from strict_engine import StrictPending, StrictRun

from flowlet import Registry, Retry, level, step
from flowlet.approval import ApprovalNotice
from flowlet.core.approval_messages import TOPIC, Decided, Delegated, Message, Resubmitted, Withdrawn
from flowlet.core.approval_plan import APPROVERS
from flowlet.core.codec import pack
from flowlet.errors import QuorumUnreachable, RuleFailed

pytestmark = pytest.mark.anyio

SEEDS = range(25)
BEGIN = 1e9  # where the clock of the strict engine begins

told: list[str] = []
registry = Registry()


class PatientRun(StrictRun):
    """One in which people wait until it is known who is asked, as they do."""

    async def _end_one(self, asked: Sequence[StrictPending]) -> None:
        is_asking = any(p.key.startswith(APPROVERS) for p in asked)
        await super()._end_one([p for p in asked if p.call or p.stopping] if is_asking else asked)


@pytest.fixture(autouse=True)
def _nothing_told() -> None:
    told.clear()


@step(retry=Retry(2, wait=0))
async def tell(notice: ApprovalNotice[Expense]) -> None:
    told.append(notice.what)
    if len(told) % 3 == 0:
        raise OSError("no mail")


async def heads(expense: Expense) -> list[str]:
    return ["hal", "hed"] if expense.amount > 10 else ["hal"]


expense = registry.approval(
    "expense",
    level("manager", role="manager", timeout=10, escalate_to="director", remind=[2, 4]),
    level("head", approvers=heads, quorum="all", send_back_to="manager"),
    level("board", role="board", when=lambda e: e.amount > 10),
    type=Expense,
    notify=tell,
)
both = registry.approval(
    "both",
    level("manager", role="manager", timeout=10, on_timeout="approve"),
    level("head", approvers=heads),
    type=Expense,
    parallel=True,
    notify=tell,
)


def vote(by: str, name: str, role: str | None = None, approved: bool = True, at: float = 0.0) -> Decided:
    return Decided(BEGIN + at, by, None if role is None else (role,), approved, name)


async def decide(chain: Any, seed: int, amount: int, *messages: Message) -> Any:
    sent = {TOPIC: [pack(message) for message in messages]}
    run = PatientRun(chain, Expense(amount), "ann", dice=random.Random(seed), signals=sent)
    return await run.result()


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_chain_that_is_approved(seed: int) -> None:
    outcome = await decide(
        expense,
        seed,
        50,
        vote("bob", "manager", "manager"),
        Delegated(BEGIN, "hed", None, "eve", "head"),
        vote("hal", "head"),
        vote("eve", "head"),
        vote("bea", "board", "board"),
    )
    assert outcome.status == "approved"
    assert [(d.level, d.by) for d in outcome.decisions] == [
        ("manager", "bob"),
        ("head", "hal"),
        ("head", "eve"),
        ("board", "bea"),
    ]
    assert told.count("ended") >= 1


@pytest.mark.parametrize("seed", SEEDS)
async def test_sent_back_resubmitted_and_withdrawn(seed: int) -> None:
    outcome = await decide(
        expense,
        seed,
        5,
        vote("bob", "manager", "manager"),
        vote("hal", "head", approved=False),
        vote("dan", "manager", "director", at=20),
        vote("bob", "manager", "manager", at=21),
        Resubmitted(BEGIN + 22, "ann", pack(Expense(50))),
        vote("bob", "manager", "manager", at=23),
        Withdrawn(BEGIN + 24, "ann"),
    )
    assert outcome.status == "withdrawn"
    assert outcome.subject == Expense(50)
    assert [d.by for d in outcome.decisions] == ["bob"]


@pytest.mark.parametrize("seed", SEEDS)
async def test_levels_beside_each_other(seed: int) -> None:
    outcome = await decide(both, seed, 5, vote("hal", "head"), vote("bob", "manager", "manager"))
    assert outcome.status == "approved"
    assert "hal" in [d.by for d in outcome.decisions]


async def test_what_cannot_be_decided_fails() -> None:
    def nobody(expense: Expense) -> list[str]:
        return []

    others = Registry()
    stuck = others.approval("stuck", level("head", approvers=nobody), type=Expense, notify=tell)
    broken = others.approval("broken", level("head", role="head", when=lambda e: 1 / 0 > 1), type=Expense)
    with pytest.raises(QuorumUnreachable):
        await decide(stuck, 1, 5)
    with pytest.raises(RuleFailed):
        await decide(broken, 1, 5)
