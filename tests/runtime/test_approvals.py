"""Approval chains in runs: decisions, time, messages to people, and who may see what."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from msgspec import Struct

from flowlet import Flowlet, Registry, Retry, level, step
from flowlet.approval import Approval, ApprovalNotice, ApprovalOutcome
from flowlet.errors import (
    AlreadyDecided,
    ApprovalError,
    ApprovalRejected,
    DecisionRefused,
    DecodeError,
    FlowletError,
    HistoryMismatch,
    PayloadTooLarge,
    QuorumUnreachable,
    RuleFailed,
    RunCancelled,
    RunError,
    RunFinished,
    RunNotFound,
    RunParked,
    RunTimeout,
)
from flowlet.runtime.orders import CANCEL
from flowlet.store import Signal, Store, Write
from flowlet.stores.memory import MemoryStore
from flowlet.stores.sqlite import SQLiteStore
from flowlet.testing import Clock

pytestmark = pytest.mark.anyio

DAY = timedelta(days=1)


class Expense(Struct):
    amount: int
    purpose: str = "chairs"


class Office:
    """A store with a clock that is moved by hand, and Flowlets on it, each as if it were a process."""

    def __init__(self, make_store: Callable[[Clock], Store]) -> None:
        self.clock = Clock()
        self._make_store = functools.partial(make_store, self.clock)
        self.told: list[ApprovalNotice[Expense]] = []
        self.asked: list[str] = []
        self.registry = Registry()

    def flowlet(self, **options: Any) -> Flowlet:
        return Flowlet(self._make_store(), registry=self.registry, **options)

    def chain(self, *levels: Any, name: str = "expense", **options: Any) -> Approval[Expense]:
        return self.registry.approval(name, *levels, type=Expense, **options)

    async def tell(self, notice: ApprovalNotice) -> None:  # type: ignore[type-arg]
        self.told.append(notice)

    def words(self) -> list[str]:
        return [notice.what if notice.level is None else f"{notice.what} {notice.level}" for notice in self.told]


@pytest.fixture(params=["memory", "sqlite"])
def office(request: pytest.FixtureRequest, tmp_path: Path) -> Office:
    if request.param == "sqlite":
        return Office(lambda clock: SQLiteStore(str(tmp_path / "flow.db"), clock=clock))
    kept: list[Store] = []

    def make(clock: Clock) -> Store:
        kept[:] = kept or [MemoryStore(clock=clock)]
        return kept[0]

    return Office(make)


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for something that is about to happen."""
    with anyio.fail_after(20):
        while True:
            is_so = condition()
            if is_so if isinstance(is_so, bool) else await is_so:
                return
            await anyio.sleep(0.002)


async def waiting(flow: Flowlet, id: str) -> None:
    """Wait until nothing is done for a run any more, but waiting."""

    async def is_waiting() -> bool:
        return await flow.handle(id).status() == "waiting"

    await until(is_waiting)


async def levels_open(flow: Flowlet, **who: str) -> list[tuple[str, str]]:
    return [(item.id, item.level) async for item in flow.inbox(**who)]


async def audit(flow: Flowlet, id: str) -> list[str]:
    """Return the audit in short words."""
    entries = [entry async for entry in flow.audit(id)]
    return [" ".join(filter(None, (entry.what, entry.level, entry.by))) for entry in entries]


MANAGER = level("manager", role="manager")
FINANCE = level("finance", role="finance", quorum=2, when=lambda e: e.amount > 10_000)


# ---------------------------------------------------------------- the way through
async def test_levels_decide_in_order_and_rules_leave_some_out(office: Office) -> None:
    expense = office.chain(MANAGER, FINANCE)
    async with office.flowlet() as flow:
        small = await flow.start(expense, Expense(250), id="small", requester="ann")
        decision = await flow.approve("small", by="bob", roles={"manager"}, comment="fine")
        assert (decision.level, decision.by, decision.role, decision.comment) == ("manager", "bob", "manager", "fine")
        outcome = await small.result(raise_on_reject=True)
        assert outcome.approved
        assert outcome.decisions == (decision,)
        large = await flow.start(expense, Expense(25_000), id="large", requester="ann")
        await flow.approve("large", by="bob", roles={"manager"})
        await flow.approve("large", by="eve", roles={"finance"})
        assert await levels_open(flow) == [("large", "finance")]
        await flow.approve("large", by="sam", roles={"finance"})
        outcome = await large.result()
    assert [(d.level, d.by) for d in outcome.decisions] == [("manager", "bob"), ("finance", "eve"), ("finance", "sam")]
    assert (outcome.status, outcome.subject, outcome.requester) == ("approved", Expense(25_000), "ann")


async def test_a_rejection_ends_it_and_is_raised_when_asked_for(office: Office) -> None:
    expense = office.chain(MANAGER)
    async with office.flowlet() as flow:
        handle = await flow.start(expense, Expense(1), id="e", requester="ann")
        await flow.reject("e", by="bob", roles=["manager"], comment="too much")
        assert (await handle.result()).status == "rejected"
        with pytest.raises(ApprovalRejected) as caught:
            await handle.result(raise_on_reject=True)
        outcome = caught.value.outcome
        assert [(d.approved, d.comment) for d in outcome.decisions] == [(False, "too much")]
        assert "bob" in outcome.reason


async def test_it_can_be_decided_before_and_while_nobody_runs_it(office: Office) -> None:
    """What one process has accepted, the next one counts, and nothing of it is kept in between but the store."""
    expense = office.chain(MANAGER, level("director", role="director"))
    async with office.flowlet() as flow:
        await flow.start(expense, Expense(1), id="e", requester="ann")
        await waiting(flow, "e")
        await until(lambda: not flow._open_runs.live)
    async with office.flowlet() as flow:
        assert await levels_open(flow, role="manager") == [("e", "manager")]
        await flow.approve("e", by="bob", roles={"manager"})
    async with office.flowlet() as flow:
        assert await levels_open(flow) == [("e", "director")]
        await flow.approve("e", by="dan", roles={"director"})
        assert (await flow.handle("e", expense).result()).approved


async def test_nobody_has_approved_an_empty_chain(office: Office) -> None:
    nothing = office.chain(name="nothing")
    skipped = office.chain(level("board", role="board", when=lambda e: e.amount > 100), name="skipped")
    lenient = office.chain(
        level("board", role="board", when=lambda e: e.amount > 100), name="lenient", approve_when_empty=True
    )
    async with office.flowlet() as flow:
        for chain in (nothing, skipped):
            outcome = await chain(Expense(1), requester="ann")
            assert (outcome.approved, outcome.status, outcome.decisions) == (False, "rejected", ())
            assert "nobody could approve" in outcome.reason
        outcome = await lenient(Expense(1), requester="ann")
        assert outcome.approved
        assert "approve_when_empty" in outcome.reason
        handle = await flow.start(lenient, Expense(500), id="e", requester="ann")
        await flow.reject("e", by="bob", roles={"board"})
        assert not (await handle.result()).approved


async def test_parallel_levels_are_open_at_once(office: Office) -> None:
    expense = office.chain(MANAGER, level("legal", approvers=["lea"]), parallel=True)
    async with office.flowlet() as flow:
        handle = await flow.start(expense, Expense(1), id="e", requester="ann")
        assert await levels_open(flow) == [("e", "manager"), ("e", "legal")]
        await flow.approve("e", by="lea")
        assert await levels_open(flow) == [("e", "manager")]
        await flow.approve("e", by="bob", roles={"manager"})
        assert (await handle.result()).approved


# ---------------------------------------------------------------- time
async def test_days_pass_and_it_is_escalated_reminded_and_decided(office: Office) -> None:
    expense = office.chain(
        level("manager", role="manager", timeout=3 * DAY, escalate_to="director", remind=[DAY, 2 * DAY]),
        notify=office.tell,
    )
    async with office.flowlet() as flow:
        handle = await flow.start(expense, Expense(7), id="e", requester="ann")
        await until(lambda: office.words() == ["opened manager"])
        await waiting(flow, "e")
        with pytest.raises(DecisionRefused, match="needs the role 'manager'"):
            await flow.approve("e", by="dan", roles={"director"})
        for words in (["reminded manager"], ["reminded manager"], ["escalated manager"]):
            before = len(office.told)
            await office.clock.advance(DAY)
            await until(lambda before=before, words=words: office.words()[before:] == words)  # type: ignore[misc]
            await waiting(flow, "e")
        assert office.told[-1].roles == ("manager", "director")
        assert [(i.escalated, i.due) async for i in flow.inbox(role="director")] == [(True, None)]
        await office.clock.advance(100 * DAY)
        decision = await flow.approve("e", by="dan", roles={"director"})
        assert decision.role == "director"
        assert (await handle.result()).approved
    assert office.words()[-2:] == ["approved manager", "ended"]
    assert all(notice.subject == Expense(7) and notice.id == "e" for notice in office.told)


@pytest.mark.parametrize(("then", "status"), [("approve", "approved"), ("reject", "expired")])
async def test_a_timeout_decides_when_it_says_how(office: Office, then: str, status: str) -> None:
    expense = office.chain(
        level("manager", role="manager", timeout=DAY, escalate_to="director", on_timeout=then),
    )
    async with office.flowlet() as flow:
        handle = await flow.start(expense, Expense(7), id="e", requester="ann")
        await waiting(flow, "e")
        await office.clock.advance(DAY)
        await until(lambda: flow._open_runs.live == {})
        assert await handle.status() == "waiting"  # escalated
        await office.clock.advance(DAY)
        outcome = await handle.result()
        assert (outcome.status, outcome.approved, outcome.decisions) == (status, then == "approve", ())
        with pytest.raises(AlreadyDecided, match="ended"):
            await flow.approve("e", by="bob", roles={"manager"})


async def test_no_decision_counts_after_the_timeout_even_if_nobody_has_noticed_it(office: Office) -> None:
    expense = office.chain(level("manager", role="manager", timeout=DAY, on_timeout="reject"))
    async with office.flowlet() as flow:
        await flow.start(expense, Expense(7), id="e", requester="ann")
        await waiting(flow, "e")
    office.clock.time += DAY.total_seconds() + 1  # while no process was there
    async with office.flowlet() as flow:
        with pytest.raises(AlreadyDecided, match="not decided in time"):
            await flow.approve("e", by="bob", roles={"manager"})
        assert (await flow.handle("e", expense).result()).status == "expired"


async def test_the_clock_set_back_brings_no_timeout_forward(office: Office) -> None:
    expense = office.chain(level("manager", role="manager", timeout=DAY, on_timeout="reject"))
    async with office.flowlet() as flow:
        handle = await flow.start(expense, Expense(7), id="e", requester="ann")
        await waiting(flow, "e")
        await office.clock.advance(-0.9 * DAY)
        await office.clock.advance(1.8 * DAY)
        await anyio.sleep(0.05)
        assert await handle.status() == "waiting"
        await flow.approve("e", by="bob", roles={"manager"})
        assert (await handle.result()).approved


async def test_the_run_can_have_a_deadline(office: Office) -> None:
    expense = office.chain(MANAGER, deadline=7 * DAY)
    async with office.flowlet() as flow:
        handle = await flow.start(expense, Expense(7), id="e", requester="ann")
        await waiting(flow, "e")
        await office.clock.advance(7 * DAY)
        with pytest.raises((DecisionRefused, RunFinished)):
            await flow.approve("e", by="bob", roles={"manager"})
        with pytest.raises(RunTimeout):
            await handle.result()
        assert (await audit(flow, "e"))[-1] == "ended"


# ---------------------------------------------------------------- who
async def test_a_decision_needs_roles_from_somebody(office: Office) -> None:
    expense = office.chain(MANAGER)
    async with office.flowlet() as flow:
        await flow.start(expense, Expense(7), id="e", requester="ann")
        with pytest.raises(DecisionRefused, match="authorize=") as caught:
            await flow.approve("e", by="bob")
        assert caught.value.reason == "no_roles"
        assert await audit(flow, "e") == ["submitted ann", "opened manager"]  # nobody knows this bob
        with pytest.raises(ApprovalError, match="takes the names of roles"):
            await flow.approve("e", by="bob", roles="manager")
        with pytest.raises(ApprovalError, match="takes a name"):
            await flow.approve("e", by="", roles={"manager"})


async def test_authorize_tells_the_roles(office: Office) -> None:
    expense = office.chain(MANAGER, level("director", role="director"))
    people = {"bob": ["manager"], "dan": ["manager", "director"]}

    async def authorize(by: str) -> list[str] | None:
        return people.get(by)

    async with office.flowlet(authorize=authorize) as flow:
        handle = await flow.start(expense, Expense(7), id="e", requester="ann")
        with pytest.raises(DecisionRefused, match="does not know 'mallory'"):
            await flow.approve("e", by="mallory", roles={"manager"})
        with pytest.raises(DecisionRefused, match="does not say that bob has 'director'") as caught:
            await flow.approve("e", by="bob", roles={"manager", "director"})
        assert caught.value.reason == "role_not_held"
        assert await levels_open(flow, person="bob") == [("e", "manager")]
        assert await levels_open(flow, person="mallory") == []
        await flow.approve("e", by="bob")
        assert await levels_open(flow, person="bob") == []
        assert await levels_open(flow, person="dan") == [("e", "director")]
        await flow.approve("e", by="dan", roles={"director"})
        assert (await handle.result()).approved
        assert "refused bob" in await audit(flow, "e")

    def wrong(by: str) -> str:
        return "manager"

    async with office.flowlet(authorize=wrong) as flow:
        with pytest.raises(ApprovalError, match="what authorize= returns"):
            await flow.approve("e", by="bob")


async def test_what_was_refused_is_in_the_audit(office: Office) -> None:
    expense = office.chain(MANAGER, level("director", role="director"))
    async with office.flowlet() as flow:
        handle = await flow.start(expense, Expense(7), id="e", requester="ann")
        refused = [
            ("self_approval", flow.approve("e", by="ann", roles={"manager"})),
            ("unknown_level", flow.approve("e", by="bob", roles={"manager"}, level="mangaer")),
            ("not_open", flow.approve("e", by="dan", roles={"director"}, level="director")),
            ("role_not_held", flow.reject("e", by="eve", roles={"cook"})),
            ("not_requester", flow.withdraw("e", by="ann2")),
        ]
        for reason, attempt in refused:
            with pytest.raises(DecisionRefused) as caught:
                await attempt
            assert caught.value.reason == reason
        await flow.approve("e", by="bob", roles={"manager"})
        for level_, reason in (("manager", "already_decided"), (None, "already_decided")):
            with pytest.raises(AlreadyDecided) as found:
                await flow.approve("e", by="bob", roles={"manager"}, level=level_)
            assert found.value.reason == reason
        await flow.approve("e", by="dan", roles={"director"})
        assert (await handle.result()).approved
        with pytest.raises(AlreadyDecided):
            await flow.approve("e", by="eve", roles={"director"})
        entries = [entry async for entry in flow.audit("e") if entry.what == "refused"]
    assert [(entry.by, entry.attempt) for entry in entries] == [
        ("ann", "approve"),
        ("bob", "approve"),
        ("dan", "approve"),
        ("eve", "reject"),
        ("bob", "approve"),
        ("bob", "approve"),
    ]
    assert "did you mean 'manager'" in str(entries[1].reason)


async def test_refused_attempts_cannot_fill_the_store(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowlet.runtime.approvals._MOST_REFUSALS", 3)
    expense = office.chain(MANAGER)
    async with office.flowlet() as flow:
        await flow.start(expense, Expense(7), id="e", requester="ann")
        for _ in range(6):
            with pytest.raises(DecisionRefused):
                await flow.approve("e", by="ann", roles={"manager"})
        assert (await audit(flow, "e")).count("refused manager ann") == 3


async def test_delegates_decide_for_others(office: Office) -> None:
    expense = office.chain(level("legal", approvers=["lea", "lou"], quorum="all"), notify=office.tell)
    async with office.flowlet() as flow:
        handle = await flow.start(expense, Expense(7), id="e", requester="ann")
        await flow.delegate("e", by="lea", to="eve", comment="on holiday")
        assert await levels_open(flow, person="eve") == [("e", "legal")]
        assert await levels_open(flow, person="lea") == []
        decision = await flow.approve("e", by="eve")
        assert (decision.by, decision.on_behalf_of, decision.role) == ("eve", "lea", None)
        await flow.approve("e", by="lou")
        assert (await handle.result()).approved
        await until(lambda: "ended" in office.words())
        assert "delegated legal lea" in await audit(flow, "e")
    delegated = next(notice for notice in office.told if notice.what == "delegated")
    assert (delegated.by, delegated.to, delegated.people) == ("lea", "eve", ("lou", "eve"))


# ---------------------------------------------------------------- functions of users
async def test_a_function_names_who_is_asked_and_is_called_once(office: Office) -> None:
    async def heads(expense: Expense) -> list[str]:
        office.asked.append(expense.purpose)
        return ["bob", "ann"] if expense.amount > 100 else ["eve"]

    expense = office.chain(level("head", approvers=heads, quorum="all"))
    async with office.flowlet() as flow:
        await flow.start(expense, Expense(700), id="e", requester="ann")
        with pytest.raises(DecisionRefused, match="eve is not asked on level 'head'; 'bob' can decide"):
            await flow.approve("e", by="eve")
    async with office.flowlet() as flow:
        assert [item.people async for item in flow.inbox(person="bob")] == [("bob",)]  # not ann, who has requested it
        await flow.approve("e", by="bob")
        assert (await flow.handle("e", expense).result()).approved
    assert office.asked == ["chairs"]


async def test_a_level_that_nobody_can_decide_fails_the_run_and_is_named(office: Office) -> None:
    def nobody(expense: Expense) -> list[str]:
        return ["ann"]

    expense = office.chain(MANAGER, level("head", approvers=nobody))
    async with office.flowlet() as flow:
        handle = await flow.start(expense, Expense(700), id="e", requester="ann")
        await flow.approve("e", by="bob", roles={"manager"})
        with pytest.raises(QuorumUnreachable, match="level 'head'") as caught:
            await handle.result()
        assert caught.value.level == "head"
        with pytest.raises(RunFinished):
            await flow.approve("e", by="eve")
        assert (await audit(flow, "e"))[-1] == "ended"


async def test_rules_and_functions_that_fail_fail_the_run(office: Office) -> None:
    def broken(expense: Expense) -> list[str]:
        raise LookupError("no such department")

    rule = office.chain(level("board", role="board", when=lambda e: e.amount / 0 > 1), name="rule")
    people = office.chain(level("board", approvers=broken), name="people")
    async with office.flowlet() as flow:
        with pytest.raises(RuleFailed, match="level 'board' failed with ZeroDivisionError"):
            await rule(Expense(1), requester="ann")
        with pytest.raises(LookupError, match="no such department"):
            await people(Expense(1), requester="ann")
        assert await levels_open(flow) == []


async def test_what_notify_fails_with_holds_nobody_up(office: Office) -> None:
    calls: list[str] = []

    @step(retry=Retry(2, wait=0))
    def tell(notice: ApprovalNotice[Expense]) -> None:
        calls.append(notice.what)
        raise OSError("no mail today")

    expense = office.chain(MANAGER, notify=tell)
    async with office.flowlet() as flow:
        handle = await flow.start(expense, Expense(1), id="e", requester="ann")
        await flow.approve("e", by="bob", roles={"manager"})
        assert (await handle.result()).approved
        steps = (await handle.report()).steps
    assert sorted(calls) == sorted(2 * ["opened", "approved", "ended"])
    assert [s.status for name, s in steps.items() if name.startswith("notify")] == 3 * ["failed"]


# ---------------------------------------------------------------- withdrawing, resubmitting, sending back
async def test_only_the_requester_withdraws(office: Office) -> None:
    expense = office.chain(MANAGER)
    async with office.flowlet() as flow:
        handle = await flow.start(expense, Expense(1), id="e", requester="ann")
        with pytest.raises(DecisionRefused):
            await flow.withdraw("e", by="bob")
        await flow.withdraw("e", by="ann", comment="not needed")
        outcome = await handle.result()
        assert (outcome.approved, outcome.status) == (False, "withdrawn")
        assert await levels_open(flow) == []


async def test_what_is_resubmitted_is_judged_anew(office: Office) -> None:
    expense = office.chain(MANAGER, FINANCE)
    async with office.flowlet() as flow:
        handle = await flow.start(expense, Expense(20_000), id="e", requester="ann")
        await flow.approve("e", by="bob", roles={"manager"})
        with pytest.raises(DecisionRefused):
            await flow.resubmit("e", Expense(5), by="bob")
        with pytest.raises(FlowletError, match="does not decode"):
            await flow.resubmit("e", {"amount": "five"}, by="ann")
        await flow.resubmit("e", Expense(5), by="ann")
        assert await levels_open(flow) == [("e", "manager")]
        await flow.approve("e", by="bob", roles={"manager"}, comment="again")
        outcome = await handle.result()
    assert outcome.subject == Expense(5)
    assert [(d.level, d.comment) for d in outcome.decisions] == [("manager", "again")]


async def test_a_rejection_sends_back(office: Office) -> None:
    expense = office.chain(MANAGER, level("director", role="director", send_back_to="manager"))
    async with office.flowlet() as flow:
        handle = await flow.start(expense, Expense(1), id="e", requester="ann")
        for comment in ("first", "second"):
            await flow.approve("e", by="bob", roles={"manager"}, level="manager", comment=comment)
            if comment == "first":
                await flow.reject("e", by="dan", roles={"director"}, level="director")
        await flow.approve("e", by="dan", roles={"director"}, level="director")
        outcome = await handle.result()
        assert [(d.level, d.by, d.comment) for d in outcome.decisions] == [
            ("manager", "bob", "second"),
            ("director", "dan", ""),
        ]
        assert "sent_back director" in await audit(flow, "e")


# ---------------------------------------------------------------- an ordinary run
async def test_a_saga_waits_for_one_with_a_single_await(office: Office) -> None:
    expense = office.chain(MANAGER)

    @step
    async def pay(amount: int) -> str:
        return f"paid {amount}"

    @office.registry.saga
    async def buy(amount: int) -> str:
        outcome = await expense(Expense(amount), requester="ann")
        return await pay(outcome.subject.amount) if outcome.approved else outcome.reason

    async with office.flowlet() as flow:
        handle = await flow.start(buy, 30, id="b")
        await until(lambda: _has_inbox(flow))
        await waiting(flow, "b")
    async with office.flowlet() as flow:
        [(id, _)] = await levels_open(flow)
        assert id == "b/expense"
        await flow.approve(id, by="bob", roles={"manager"})
        assert await flow.handle("b", buy).result() == "paid 30"
    assert handle.id == "b"


async def _has_inbox(flow: Flowlet) -> bool:
    return await levels_open(flow) != []


async def test_a_pipeline_and_a_graph_wait_for_one(office: Office) -> None:
    expense = office.chain(MANAGER)

    @step
    async def pay(expense: ApprovalOutcome[Expense]) -> str:
        return f"{expense.status} {expense.subject.amount}"

    buying = office.registry.pipeline("buying", expense, pay)

    class Order(Struct):
        subject: Expense
        requester: str = "ann"
        status: str = ""

    graph = office.registry.graph("ordering", state=Order)
    graph.node(expense, merge=lambda order, outcome: {"status": outcome.status})
    graph.entry(expense)
    graph.final(expense)
    async with office.flowlet() as flow:
        pipe = await flow.start(buying, Expense(5), "ann", id="p")
        drawn = await flow.start(graph, Order(Expense(6)), id="g")

        async def are_open() -> bool:
            return len(await levels_open(flow)) == 2

        await until(are_open)
        for id in ("p/expense", "g/expense"):
            await flow.approve(id, by="bob", roles={"manager"})
        assert await pipe.result() == "approved 5"
        assert (await drawn.result()).status == "approved"


async def test_it_can_be_cancelled(office: Office) -> None:
    expense = office.chain(level("manager", role="manager", timeout=DAY, on_timeout="reject"), notify=office.tell)
    async with office.flowlet() as flow:
        handle = await flow.start(expense, Expense(1), id="e", requester="ann")
        await waiting(flow, "e")
        await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result()
        with pytest.raises(RunFinished):
            await flow.approve("e", by="bob", roles={"manager"})
        assert await levels_open(flow) == []
        assert [r.kind async for r in handle.history()][-1] == "cancelled"


async def test_a_decision_does_not_come_in_between_a_cancellation_and_the_end(office: Office) -> None:
    """Whoever is told that they have decided can rely on that: not in a run that was told to end."""
    expense = office.chain(MANAGER)
    async with office.flowlet() as flow:
        await flow.start(expense, Expense(1), id="e", requester="ann")
        await waiting(flow, "e")
    store = office._make_store()
    await store.append((Write(id="e", signals=(Signal(CANCEL, b"", CANCEL),)),))  # as by a process that dies then
    other = Flowlet(store, registry=Registry())  # one that does not execute it
    other.include(office.registry)
    async with other as flow:
        with pytest.raises(RunFinished):
            await flow.approve("e", by="bob", roles={"manager"})
        assert await levels_open(flow) == []
        with pytest.raises(RunCancelled):
            await flow.handle("e", expense).result()


async def test_levels_that_were_changed_under_a_run_are_not_taken_for_the_old_ones(office: Office) -> None:
    expense = office.chain(MANAGER, level("director", role="director"))
    async with office.flowlet() as flow:
        await flow.start(expense, Expense(1), id="e", requester="ann")
        await waiting(flow, "e")
    changed = Registry()
    changed.approval("expense", level("boss", role="manager"), type=Expense)
    async with Flowlet(office._make_store(), registry=changed) as flow:
        with pytest.raises(HistoryMismatch, match="were changed under a run"):
            await flow.approve("e", by="bob", roles={"manager"})
        assert await levels_open(flow) == []
        await flow.handle("e").resume()
        await flow._open_runs.take_up("e")
        with pytest.raises(RunParked, match="boss"):
            await flow.handle("e").result()
    async with office.flowlet() as flow:
        with pytest.raises(RunParked, match="operator"):
            await flow.approve("e", by="bob", roles={"manager"})
        await flow.handle("e").resume()
        await waiting(flow, "e")
        await flow.approve("e", by="bob", roles={"manager"})
        await flow.approve("e", by="dan", roles={"director"})
        assert (await flow.handle("e", expense).result()).approved


async def test_anything_that_can_be_stored_can_be_decided_on(office: Office) -> None:
    several = office.registry.approval(
        "several", level("a", role="a", when=lambda s: True), type=cast("Any", int | str)
    )
    mapping = office.registry.approval("mapping", level("a", role="a", when=lambda s: s["x"] > 1), type=dict[str, int])
    async with office.flowlet() as flow:
        for chain, subject in ((several, 5), (several, "five"), (mapping, {"x": 2})):
            handle = await flow.start(chain, subject, requester="ann")
            await flow.approve(handle.id, by="bob", roles=(role for role in ["a"]))
            assert (await handle.result()).subject == subject
        with pytest.raises(DecodeError, match="'subject'"):
            await flow.start(several, 5.5, requester="ann")


async def test_it_can_be_forked_reported_and_listed(office: Office) -> None:
    def bob(expense: Expense) -> list[str]:
        return ["bob"]

    expense = office.chain(level("manager", approvers=bob), notify=office.tell)
    async with office.flowlet() as flow:
        handle = await flow.start(expense, Expense(1), id="e", requester="ann")
        await flow.approve("e", by="bob")
        outcome = await handle.result()
        assert [run.id async for run in flow.runs(expense)] == ["e"]
        steps = (await handle.report()).steps
        assert steps["approvers of manager#1"].value == ["bob"]
        told = [name for name in steps if name.startswith("notify")]
        assert told == ["notify:opened/manager#1", "notify:approved/manager#2", "notify:ended#3"]
        fork = await handle.fork(from_step="notify:approved/manager#2", id="f")
        assert await fork.result() == outcome
        assert [entry async for entry in flow.audit("f")] == [entry async for entry in flow.audit("e")]
    assert [(n.what, n.id) for n in office.told] == [
        ("opened", "e"),
        ("approved", "e"),
        ("ended", "e"),
        ("approved", "f"),
        ("ended", "f"),
    ]


async def test_ids_make_it_idempotent_and_bad_input_is_told(office: Office) -> None:
    expense = office.chain(MANAGER)

    @office.registry.saga
    async def other(n: int) -> int:
        return n

    async with office.flowlet() as flow:
        first = await flow.start(expense, Expense(1), id="e", requester="ann")
        again = await flow.start(expense, Expense(1), id="e", requester="ann")
        assert first.id == again.id
        with pytest.raises(FlowletError, match="another input"):
            await flow.start(expense, Expense(1), id="e", requester="bob")
        with pytest.raises(FlowletError, match="requester"):
            await flow.start(expense, Expense(1), id="f", requester="")
        with pytest.raises(TypeError, match="requester"):
            await flow.start(expense, Expense(1), id="f")
        with pytest.raises(RunNotFound):
            await flow.approve("nowhere", by="bob", roles={"manager"})
        await flow.execute(other, 1, id="o")
        with pytest.raises(ApprovalError, match="on which nobody decides"):
            await flow.approve("o", by="bob", roles={"manager"})
        with pytest.raises(RunError, match="does not begin with 'flowlet/'"):
            await first.send("flowlet/approval", {"a": 1})
        with pytest.raises(RunError, match="takes no signal"):
            await first.send("approve", True)
    async with Flowlet(office._make_store(), max_payload=4096) as flow:
        with pytest.raises(FlowletError, match="include"):
            await flow.approve("e", by="bob", roles={"manager"})
        flow.include(office.registry)
        with pytest.raises(PayloadTooLarge):
            await flow.approve("e", by="bob", roles={"manager"}, comment="x" * 5000)


async def test_two_at_once_cannot_both_be_the_last(office: Office) -> None:
    expense = office.chain(MANAGER)
    async with office.flowlet() as one, office.flowlet() as other:
        for number in range(20):
            handle = await one.start(expense, Expense(number), id=f"e-{number}", requester="ann")
            ends: list[str] = []

            async def decide(flow: Flowlet, by: str, id: str = handle.id, ends: list[str] = ends) -> None:
                try:
                    ends.append((await flow.approve(id, by=by, roles={"manager"})).by)
                except AlreadyDecided:
                    ends.append("too late")

            async with anyio.create_task_group() as group:
                for person, flow in (("bob", one), ("eve", other), ("sam", one), ("lou", other)):
                    group.start_soon(decide, flow, person)
            outcome = await handle.result()
            assert ends.count("too late") == 3
            assert outcome.decisions[0].by in ends


async def test_what_was_accepted_counts_however_close_the_timeout_is(tmp_path: Path) -> None:
    """Somebody decides in one process as the timeout falls due in another: both see the same of the two come first."""
    registry = Registry()
    chain = registry.approval("quick", level("manager", role="manager", timeout=0.05, on_timeout="reject"), type=int)
    url = f"sqlite:///{tmp_path}/flow.db?durability=process"
    ends: list[str] = []

    async def decide(flow: Flowlet, number: int) -> None:
        handle = await flow.start(chain, number, id=f"q-{number}", requester="ann")
        await anyio.sleep(0.035 + number * 0.0006)
        try:
            await other.approve(handle.id, by="bob", roles={"manager"})
        except AlreadyDecided:
            accepted = False
        else:
            accepted = True
        outcome = await handle.result()
        assert outcome.approved is accepted, (number, outcome)
        ends.append(outcome.status)

    async with Flowlet(url, registry=registry) as flow, Flowlet(url, registry=registry) as other:
        for start in range(0, 40, 10):
            async with anyio.create_task_group() as group:
                for number in range(start, start + 10):
                    group.start_soon(decide, flow, number)
    assert len(ends) == 40
