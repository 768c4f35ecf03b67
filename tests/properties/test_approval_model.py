"""Random approval chains with random people at them, against a model too simple to be wrong.

The model counts time by the second and keeps lists: who has a vote, who has cast it, on which level that is open. It
says of each attempt whether it is allowed, and what the chain has come to.
"""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hearings import Expense, Hearing
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from flowlet import Flowlet, Registry, level
from flowlet.errors import DecisionRefused, QuorumUnreachable, RunFinished
from flowlet.stores.memory import MemoryStore
from flowlet.testing import Clock

REQUESTER = "ann"
PEOPLE = ("ann", "bob", "eve", "lea", "sam")
ROLES = ("x", "y", "z")


class Rung(Struct, frozen=True):
    """A level. It applies to amounts above ``above``."""

    name: str
    role: str | None
    people: tuple[str, ...] | None
    quorum: Any
    above: int
    timeout: int | None
    escalate_to: str | None
    then: Any
    veto: bool
    back: int | None
    delegate: bool

    def write(self) -> Any:
        """Return it as a user writes it."""
        return level(
            self.name,
            role=self.role,
            approvers=None if self.people is None else list(self.people),
            quorum=self.quorum,
            when=lambda e: e.amount > self.above,
            timeout=self.timeout,
            escalate_to=self.escalate_to,
            on_timeout=self.then,
            veto=self.veto,
            send_back_to=None if self.back is None else f"l{self.back}",
            delegate=self.delegate,
        )


class Chain(Struct, frozen=True):
    rungs: list[Rung]
    parallel: bool
    distinct: bool
    empty: bool
    own: bool
    amount: int


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    parallel = draw(st.booleans())
    rungs = []
    for number in range(draw(st.sampled_from([0, 1, 2, 2, 3, 3]))):
        named = draw(st.none() | st.lists(st.sampled_from(PEOPLE), min_size=1, max_size=3, unique=True))
        role = draw(st.sampled_from(ROLES)) if named is None else draw(st.none() | st.sampled_from(ROLES))
        counts = st.integers(1, 2 if named is None else len(named))
        timeout = draw(st.none() | st.integers(1, 4))
        others = [other for other in ROLES if other != role]
        escalate_to = None if timeout is None else draw(st.none() | st.sampled_from(others))
        ends = st.sampled_from(["approve", "reject"])
        then = None if timeout is None else draw(ends if escalate_to is None else ends | st.none())
        rungs.append(
            Rung(
                name=f"l{number}",
                role=role,
                people=None if named is None else tuple(named),
                quorum=draw(counts if named is None else counts | st.sampled_from(["all", "majority"])),
                above=draw(st.sampled_from([0, 0, 5])),
                timeout=timeout,
                escalate_to=escalate_to,
                then=then,
                veto=draw(st.booleans()),
                back=draw(st.none() | st.integers(0, number - 1)) if number and not parallel else None,
                delegate=draw(st.sampled_from([True, True, True, False])),
            )
        )
    booleans = [draw(st.booleans()) for _ in range(3)]
    return Chain(rungs, parallel, *booleans, amount=draw(st.sampled_from([3, 8])))


who = st.sampled_from(PEOPLE)
some_roles = st.lists(st.sampled_from(ROLES), min_size=1, max_size=3, unique=True).map(tuple)
where = st.sampled_from(["", "l0", "l1", "l2"])
nobody = st.none()
votes = st.tuples(st.just("vote"), who, st.just(ROLES), where, nobody, st.sampled_from([True, True, True, False]))
delegations = st.tuples(st.just("delegate"), who, st.just(ROLES), where, nobody, who)
actions = st.one_of(
    votes,
    votes,
    votes,
    delegations,
    delegations,
    st.tuples(st.just("vote"), who, some_roles, where, who, st.booleans()),
    st.tuples(st.just("vote"), who, some_roles, where, nobody, st.booleans()),
    st.tuples(st.just("delegate"), who, some_roles, where, who, who),
    st.tuples(st.just("wait"), st.integers(1, 3)),
    st.tuples(st.just("withdraw"), st.sampled_from(PEOPLE[1:] + PEOPLE)),
    st.tuples(st.just("resubmit"), who, st.sampled_from([3, 8])),
)


class Seat(Struct):
    """A level that is open, or was approved."""

    rung: Rung
    since: int
    is_open: bool = True
    is_escalated: bool = False
    votes: list[tuple[str, str, bool]] = []  # who has cast it, whose it is, and which
    holders: dict[str, str] = {}


class Model:
    """What a chain has come to."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.time = 0
        self.end: str | None = None
        self.begin(chain.amount)

    def begin(self, amount: int) -> None:
        self.rungs = [rung for rung in self.chain.rungs if amount > rung.above]
        self.seats: dict[str, Seat] = {}
        self.order: list[tuple[str, str]] = []  # decisions that stand
        if not self.rungs:
            self.end = "approved" if self.chain.empty else "rejected"
        self.settle()

    # -------------------------------------------------------------- who counts
    def people(self, rung: Rung) -> list[str] | None:
        if rung.people is None:
            return None
        return [p for p in rung.people if p != REQUESTER or self.chain.own]

    def busy(self, seat: Seat) -> set[str]:
        """Who has decided elsewhere, and so may not here."""
        if not self.chain.distinct:
            return set()
        return {
            name for other in self.seats.values() if other is not seat for b, p, _ in other.votes for name in (b, p)
        }

    def needed(self, seat: Seat) -> int:
        quorum = seat.rung.quorum
        if isinstance(quorum, int):
            return quorum
        count = len(self.electorate(seat))
        return max(1, count if quorum == "all" else count // 2 + 1)

    def electorate(self, seat: Seat) -> list[str]:
        voted = [p for _, p, _ in seat.votes]
        return [p for p in self.people(seat.rung) or [] if p in voted or p not in self.busy(seat)]

    def reachable(self, seat: Seat) -> bool:
        voted = [p for _, p, _ in seat.votes]
        left = [p for p in self.electorate(seat) if p not in voted]
        return sum(v for _, _, v in seat.votes) + len(left) >= self.needed(seat)

    # -------------------------------------------------------------- what follows
    def settle(self) -> None:
        changed = True
        while changed and self.end is None:
            changed = self.open_next()
            for seat in [s for s in self.seats.values() if s.is_open]:
                if self.end is None and seat.is_open and self.seats.get(seat.rung.name) is seat and self.judge(seat):
                    changed = True
                    break
            if self.end is None and self.rungs and all(self.is_passed(rung) for rung in self.rungs):
                self.end = "approved"

    def is_passed(self, rung: Rung) -> bool:
        return rung.name in self.seats and not self.seats[rung.name].is_open

    def open_next(self) -> bool:
        missing = [rung for rung in self.rungs if rung.name not in self.seats]
        if not self.chain.parallel and any(seat.is_open for seat in self.seats.values()):
            missing = []
        for rung in missing if self.chain.parallel else missing[:1]:
            seat = self.seats[rung.name] = Seat(rung, self.time)
            if self.people(rung) is not None and not self.reachable(seat):
                self.end = "stuck"
        return bool(missing)

    def judge(self, seat: Seat) -> bool:
        """Do what the votes say; tell whether that was anything."""
        approvals = sum(v for _, _, v in seat.votes)
        rejections = len(seat.votes) - approvals
        named = self.people(seat.rung) is not None
        if rejections and (
            seat.rung.veto
            or (rejections >= self.needed(seat) if not named or seat.is_escalated else not self.reachable(seat))
        ):
            self.reject(seat, "rejected")
        elif approvals >= self.needed(seat):
            seat.is_open = False
        elif named and seat.rung.escalate_to is None and not self.reachable(seat):
            self.end = "stuck"
        else:
            return False
        return True

    def reject(self, seat: Seat, status: str) -> None:
        if seat.rung.back is None:
            self.end = status
            return
        void = [rung.name for rung in self.chain.rungs[seat.rung.back :]]
        self.seats = {name: kept for name, kept in self.seats.items() if name not in void}
        self.order = [(name, by) for name, by in self.order if name not in void]

    # -------------------------------------------------------------- what people and time do
    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.time += 1
            for seat in list(self.seats.values()):
                if self.end is None and seat.is_open and self.seats.get(seat.rung.name) is seat:
                    self.tick(seat)

    def tick(self, seat: Seat) -> None:
        rung = seat.rung
        if rung.timeout is None:
            return
        if self.time == seat.since + rung.timeout and rung.escalate_to is not None:
            seat.is_escalated = True
        elif self.time == seat.since + rung.timeout * (1 if rung.escalate_to is None else 2) and rung.then is not None:
            if rung.then == "approve":
                seat.is_open = False
            else:
                self.reject(seat, "expired")
            self.settle()

    def whose(self, name: str, by: str, roles: tuple[str, ...], for_: str | None) -> str | None:
        """Return whose vote somebody may cast on a level; None if nobody's."""
        seat = self.seats.get(name)
        if seat is None or not seat.is_open:
            return None
        own = self.has_right(seat, by, roles)
        held = [p for p, holder in seat.holders.items() if holder == by and not self.has_voted(seat, p)]
        if for_ is not None:
            principal: str | None = for_ if for_ in held else None
        elif own:
            principal = None if by in seat.holders else by
        else:
            principal = held[0] if held else None
        if principal is None or any(self.is_out(seat, person) for person in (by, principal)):
            return None
        return principal

    def has_right(self, seat: Seat, by: str, roles: tuple[str, ...]) -> bool:
        rung, people = seat.rung, self.people(seat.rung)
        own = (people is None or by in people) and (rung.role is None or rung.role in roles)
        return own or (seat.is_escalated and rung.escalate_to in roles)

    def is_repeated(self, by: str, roles: tuple[str, ...]) -> bool:
        """Whether what they want may be what they have done already."""
        votes = [(seat, b, p) for seat in self.seats.values() for b, p, _ in seat.votes if by in (b, p)]
        return any(b != p or self.has_right(seat, by, roles) for seat, b, p in votes)

    def is_out(self, seat: Seat, person: str) -> bool:
        own = person == REQUESTER and not self.chain.own
        return own or self.has_voted(seat, person) or person in self.busy(seat)

    def has_voted(self, seat: Seat, person: str) -> bool:
        return any(person in (b, p) for b, p, _ in seat.votes)

    def find(self, by: str, roles: tuple[str, ...], where: str, for_: str | None) -> str | None:
        if where:
            return where
        if self.is_repeated(by, roles):
            return None
        found = [name for name in self.seats if self.whose(name, by, roles, for_) is not None]
        return found[0] if len(found) == 1 else None

    def vote(self, by: str, roles: tuple[str, ...], where: str, for_: str | None, approved: bool) -> bool:
        name = self.find(by, roles, where, for_)
        principal = None if self.end or name is None else self.whose(name, by, roles, for_)
        if name is None or principal is None:
            return False
        self.seats[name].votes.append((by, principal, approved))
        self.order.append((name, by))
        self.settle()
        return True

    def may_delegate(self, name: str, by: str, roles: tuple[str, ...], for_: str | None, to: str) -> str | None:
        """Return whose vote somebody may give to somebody else on a level; None if nobody's."""
        seat = self.seats.get(name)
        if seat is None or not seat.is_open:
            return None
        if to == by and by in seat.holders and for_ is None:
            return None if self.has_voted(seat, by) else by  # taken back
        principal = self.whose(name, by, roles, for_)
        if principal is None or (principal == to and by != to):
            return principal  # given back
        asked = (self.people(seat.rung) or []) + list(seat.holders.values())
        if not seat.rung.delegate or to == by or to in asked or self.is_out(seat, to):
            return None
        return principal

    def delegate(self, by: str, roles: tuple[str, ...], where: str, for_: str | None, to: str) -> bool:
        if self.end:
            return False
        if where:
            names = [where]
        elif self.is_repeated(by, roles):
            return False
        else:
            names = list(self.seats)
        found = [(n, p) for n in names if (p := self.may_delegate(n, by, roles, for_, to)) is not None]
        if len(found) != 1:
            return False
        [(name, principal)] = found
        self.seats[name].holders[principal] = to
        if principal == to:
            del self.seats[name].holders[principal]
        return True

    def withdraw(self, by: str) -> bool:
        if self.end or by != REQUESTER:
            return False
        self.end = "withdrawn"
        return True

    def resubmit(self, by: str, amount: int) -> bool:
        if self.end or by != REQUESTER:
            return False
        self.begin(amount)
        return True


def check(model: Model, hearing: Hearing) -> None:
    status = hearing.status if hearing.case.failure is None else "stuck"
    assert status == model.end
    if model.end is None:
        assert hearing.open == [seat.rung.name for seat in model.seats.values() if seat.is_open]
    if model.end != "stuck":
        assert hearing.decided == model.order


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(chains(), st.lists(actions, min_size=5, max_size=20))
def test_people_and_time_do_what_the_model_says(chain: Chain, deeds: list[tuple[Any, ...]]) -> None:
    model = Model(chain)
    hearing = Hearing(
        *(rung.write() for rung in chain.rungs), amount=chain.amount, requester=REQUESTER, **options(chain)
    )
    check(model, hearing)
    allowed = 0
    for name, *rest in deeds:
        if name == "wait":
            model.wait(*rest)
            hearing.wait(*rest)
        else:
            may = getattr(model, name)(*rest)
            assert (perform(hearing, name, *rest) == "ok") is may
            allowed += may
        check(model, hearing)
    event(f"end: {model.end}")
    event(f"allowed: {min(allowed, 5)}")


def perform(hearing: Hearing, name: str, *rest: Any) -> str:
    if name == "vote":
        by, roles, where, for_, approved = rest
        return hearing.approve(by, *roles, level=where, for_=for_, approved=approved)
    if name == "delegate":
        by, roles, where, for_, to = rest
        return hearing.delegate(by, to, *roles, level=where, for_=for_)
    found: str = getattr(hearing, name)(*rest)
    return found


def options(chain: Chain) -> dict[str, Any]:
    return {
        "parallel": chain.parallel,
        "distinct": chain.distinct,
        "approve_when_empty": chain.empty,
        "self_approval": chain.own,
    }


# ---------------------------------------------------------------- the same in runs
class Office:
    """A chain that runs, in one Flowlet after the other."""

    def __init__(self, chain: Chain) -> None:
        self.clock = Clock()
        self.store = MemoryStore(clock=self.clock)
        self.registry = Registry()
        levels = [rung.write() for rung in chain.rungs]
        self.chain = self.registry.approval("chain", *levels, type=Expense, **options(chain))

    def enter(self) -> Flowlet:
        return Flowlet(self.store, registry=self.registry)

    async def perform(self, flow: Flowlet, name: str, *rest: Any) -> bool:
        """Tell whether somebody may."""
        try:
            if name == "vote":
                by, roles, where, for_, approved = rest
                act = flow.approve if approved else flow.reject
                await act("r", by=by, roles=roles, level=where or None, on_behalf_of=for_)
            elif name == "delegate":
                by, roles, where, for_, to = rest
                await flow.delegate("r", by=by, to=to, roles=roles, level=where or None, on_behalf_of=for_)
            elif name == "withdraw":
                await flow.withdraw("r", by=rest[0])
            else:
                await flow.resubmit("r", Expense(rest[1]), by=rest[0])
        except (DecisionRefused, RunFinished):
            return False
        return True

    async def check(self, flow: Flowlet, model: Model) -> None:
        handle = flow.handle("r", self.chain)
        if model.end is None:
            found = [item.level async for item in flow.inbox()]
            assert found == [seat.rung.name for seat in model.seats.values() if seat.is_open]
        elif model.end == "stuck":
            with pytest.raises(QuorumUnreachable):
                await handle.result()
        else:
            outcome = await handle.result()
            assert outcome.status == model.end
            assert [(d.level, d.by) for d in outcome.decisions] == model.order


steps = st.lists(st.one_of(actions, actions, actions, st.just(("restart",))), min_size=5, max_size=16)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(chains(), steps)
def test_runs_do_what_the_model_says(chain: Chain, deeds: list[tuple[Any, ...]]) -> None:
    async def main() -> None:
        office, model = Office(chain), Model(chain)
        async with office.enter() as flow:
            await flow.start(office.chain, Expense(chain.amount), id="r", requester=REQUESTER)
        left = list(deeds)
        while left:
            async with office.enter() as flow:
                while left and (deed := left.pop(0)) != ("restart",):
                    name, *rest = deed
                    if name == "wait":
                        model.wait(*rest)
                        await office.clock.advance(*rest)
                    else:
                        assert await office.perform(flow, name, *rest) is getattr(model, name)(*rest)
        async with office.enter() as flow:
            await office.check(flow, model)

    anyio.run(main)
