"""An approval chain knows the type of what is decided on: its rules, its functions and its outcome do."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from datetime import timedelta
from typing import Any, assert_type

from flowlet import Decision, Flowlet, Registry, level, step
from flowlet.approval import Approval, ApprovalNotice, ApprovalOutcome, AuditEntry, InboxItem, Level
from flowlet.runtime.handle import Handle


class Expense:
    amount: int = 0


class Other:
    text: str = ""


def heads(expense: Expense) -> list[str]: ...
async def lawyers(other: Other) -> list[str]: ...
async def tell(notice: ApprovalNotice[Expense]) -> None: ...
async def roles_of(person: str) -> list[str] | None: ...


flow = Flowlet(authorize=roles_of)
Flowlet(authorize={"bob": {"manager"}}.get)
Flowlet(authorize="bob")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# ---------------------------------------------------------------- levels
assert_type(level("manager", role="manager", timeout=timedelta(days=3), escalate_to="director"), Level[object])
assert_type(level("head", approvers=heads), Level[Expense])
assert_type(level("legal", approvers=["lea", "lou"], quorum="all", veto=False, remind=[1, timedelta(1)]), Level[object])
level("manager", role="manager", quorum="most")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
level("manager", role="manager", on_timeout="wait")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]

# ---------------------------------------------------------------- chains
expense = flow.approval(
    "expense",
    level("manager", role="manager"),
    level("head", approvers=heads, when=lambda e: e.amount > 100),
    level("finance", role="finance", quorum=2, when=lambda e: e.amount > 10_000),
    type=Expense,
    parallel=True,
    notify=tell,
)
assert_type(expense, Approval[Expense])
assert_type(Registry().approval("empty", type=Expense, approve_when_empty=True), Approval[Expense])
flow.approval("wrong", level("legal", approvers=lawyers), type=Expense)  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
flow.approval("wrong", level("manager", role="manager"))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


@step
async def pay(amount: int) -> str: ...


@flow.saga
async def buy(wanted: Expense) -> str:
    outcome = await expense(wanted, requester="ann")
    assert_type(outcome, ApprovalOutcome[Expense])
    assert_type(outcome.decisions, tuple[Decision, ...])
    return await pay(outcome.subject.amount)


# ---------------------------------------------------------------- a Flowlet
async def main() -> None:
    handle = await flow.start(expense, Expense(), id="e-7", requester="ann")
    assert_type(handle, Handle[ApprovalOutcome[Expense]])
    assert_type(await handle.result(raise_on_reject=True), ApprovalOutcome[Expense])
    assert_type(await flow.execute(expense, Expense(), requester="ann"), ApprovalOutcome[Expense])
    await flow.start(expense, Other(), requester="ann")  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    await flow.start(expense, Expense())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert_type(await flow.approve("e-7", by="bob", roles={"manager"}, comment="ok"), Decision)
    assert_type(await flow.reject("e-7", by="bob", roles=["manager"], level="manager", on_behalf_of="eve"), Decision)
    await flow.approve("e-7")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await flow.delegate("e-7", by="bob", to="eve", roles=("manager",))
    await flow.withdraw("e-7", by="ann")
    await flow.resubmit("e-7", Expense(), by="ann")
    async for item in flow.inbox(role="manager", person="bob"):
        assert_type(item, InboxItem)
        assert_type(item.subject, Any)
    async for entry in flow.audit("e-7"):
        assert_type(entry, AuditEntry)
