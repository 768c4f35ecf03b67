"""Approval chains without a run: people who ask, decide and wait, on a clock that is a number."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from flowlet import Registry
from flowlet.core.approval_case import Case
from flowlet.core.approval_messages import Decided, Delegated, Refused, Request, Resubmitted, Withdrawn, message_codec
from flowlet.core.approval_plan import ApprovalDefinition, ChainPlan
from flowlet.core.codec import pack
from flowlet.core.registry import definition_of
from flowlet.errors import DecisionRefused


class Expense(Struct):
    amount: int


def plan_of(*levels: Any, **options: Any) -> ChainPlan:
    definition = definition_of(Registry().approval("chain", *levels, type=Expense, **options))
    assert isinstance(definition, ApprovalDefinition)
    return definition.plan


class Hearing:
    """A chain on which people decide.

    Every request is judged and taken as by a run, and as by somebody who reads its messages later: the two must agree.

    Attributes:
        now: seconds.
        refused: the reasons of all that was refused.
    """

    def __init__(self, *levels: Any, amount: int = 50, requester: str = "ann", **options: Any) -> None:
        self.plan = plan_of(*levels, **options)
        self.now = 0.0
        self.amount = amount
        self.requester = requester
        self.messages: list[bytes] = []
        self.names: list[tuple[int, int, list[str], float]] = []
        self.refused: list[str] = []
        self.case = self._new_case()

    def _new_case(self) -> Case:
        return Case(self.plan, pack(Expense(self.amount)), self.requester, 0.0, lambda _, data: self.plan.choose(data))

    def wait(self, seconds: float) -> Hearing:
        self.now += seconds
        self.case.advance(self.now)
        return self

    def name(self, *people: str) -> Hearing:
        """Say who is asked on the level that waits for it."""
        [stage] = self.case.unresolved()
        self.names.append((len(self.messages), stage.number, list(people), self.now))
        self.case.resolve(stage.number, list(people), self.now)
        return self

    def approve(self, by: str, *roles: str, level: str = "", for_: str | None = None, approved: bool = True) -> str:
        given = roles or None
        return self.ask(Decided(self.now, by, given, approved, level, "", for_))

    def reject(self, by: str, *roles: str, level: str = "", for_: str | None = None) -> str:
        return self.approve(by, *roles, level=level, for_=for_, approved=False)

    def delegate(self, by: str, to: str, *roles: str, level: str = "", for_: str | None = None) -> str:
        return self.ask(Delegated(self.now, by, roles or None, to, level, "", for_))

    def withdraw(self, by: str) -> str:
        return self.ask(Withdrawn(self.now, by))

    def resubmit(self, by: str, amount: int) -> str:
        return self.ask(Resubmitted(self.now, by, pack(Expense(amount))))

    def ask(self, request: Request) -> str:
        """Return why somebody may not, ``"ok"`` if they may; that is seen to by a case that is made anew, too."""
        self.case.advance(request.at)
        before = len(self.case.log)
        try:
            message: Any = self.case.judge(request)
        except DecisionRefused as error:
            assert len(self.case.log) == before  # it has changed nothing
            self.refused.append(error.reason)
            message = Refused(request.at, request.by, request.attempt, error.reason)
            found = error.reason
        else:
            found = "ok"
        data = pack(message)
        self.messages.append(data)
        self.case.take(message_codec.decode(data, "a message"))
        assert (self.case.log[-1].what == "refused") is (found != "ok")
        self._check_replay()
        return found

    def _check_replay(self) -> None:
        again = self._new_case()
        names = list(self.names)
        for place, data in enumerate(self.messages):
            while names and names[0][0] == place:
                _, number, people, at = names.pop(0)
                again.resolve(number, people, at)
            again.take(message_codec.decode(data, "a message"))
        for _, number, people, at in names:
            again.resolve(number, people, at)
        assert again.log == self.case.log
        assert (again.status, again.reason, again.decisions) == (
            self.case.status,
            self.case.reason,
            self.case.decisions,
        )

    @property
    def open(self) -> list[str]:
        return [stage.plan.name for stage in self.case.stages.values() if stage.since is not None]

    @property
    def status(self) -> str | None:
        return self.case.status

    @property
    def decided(self) -> list[tuple[str, str]]:
        return [(d.level, d.by) for d in self.case.decisions]
