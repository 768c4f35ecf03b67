"""A case: what an approval chain has come to, folded from its messages and the passing of time.

Law: pure and deterministic. The same messages in the same order make the same case, in the run itself, live or on
replay, and for anybody who looks at it from outside; a message brings the time at which it was judged, and whatever
falls due until then happens before it. So it makes no difference whether a timer or a message is seen first.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from flowlet.core.approval_judge import judge
from flowlet.core.approval_levels import LevelPlan
from flowlet.core.approval_messages import Decided, Delegated, Message, Refused, Request, Resubmitted, Withdrawn
from flowlet.core.approval_plan import ChainPlan
from flowlet.core.approval_stage import Stage, name_people
from flowlet.core.approval_values import ApprovalStatus, AuditEntry, Decision, What
from flowlet.errors import DecisionRefused, QuorumUnreachable

Choose = Callable[[int, bytes], list[str]]
"""Tells the names of the levels that apply, given which submission it is, from 1, and the encoded subject."""


class Announcement(msgspec.Struct, frozen=True, eq=False):
    """Something that people may want to know of, as it was at that moment."""

    entry: AuditEntry
    roles: tuple[str, ...] = ()
    people: tuple[str, ...] = ()
    due: float | None = None


class Case:
    """One run of a chain, as far as it is known.

    Args:
        choose: tells which levels apply.
        at: when it was submitted, in seconds of the store's clock.
        deadline: when the run must have ended, or None.

    Attributes:
        at: the time up to which it is known.
        subject: the encoded subject.
        applying: the levels that apply.
        stages: the open levels, by name.
        passed: those that were approved, by name.
        status: how it has ended, None as long as it has not.
        reason: the same in words.
        failure: why it can never end, if that is so.
        log: what has happened, in order.
        announcements: what of it is not announced yet.
    """

    def __init__(
        self, plan: ChainPlan, subject: bytes, requester: str, at: float, choose: Choose, deadline: float | None = None
    ) -> None:
        self.plan = plan
        self.subject: bytes = subject
        self.requester = requester
        self.at: float = at
        self.deadline = deadline
        self.applying: list[LevelPlan] = []
        self.stages: dict[str, Stage] = {}
        self.passed: dict[str, Stage] = {}
        self.status: ApprovalStatus | None = None
        self.reason: str = ""
        self.failure: QuorumUnreachable | None = None
        self.log: list[AuditEntry] = []
        self.announcements: list[Announcement] = []
        self._choose = choose
        self._round = 0
        self._openings = 0
        self._standing: list[Decided] = []
        self._note("submitted", by=requester)
        self._submit()

    # -------------------------------------------------------------- looking
    @property
    def is_over(self) -> bool:
        """Whether nothing more can happen."""
        return self.status is not None or self.failure is not None

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The decisions that stand, in their order."""
        return tuple(show_decision(vote) for vote in self._standing)

    def excluded(self, name: str) -> set[str]:
        """Return who may not decide on a level, since they have on another one."""
        if not self.plan.distinct:
            return set()
        others = [*self.stages.values(), *self.passed.values()]
        return {voter for stage in others if stage.plan.name != name for voter in stage.voters}

    def unresolved(self) -> list[Stage]:
        """Return the levels of which it is not known yet who is asked."""
        return [stage for stage in self.stages.values() if stage.since is None]

    def next_due(self) -> float | None:
        """Return when time changes something next."""
        found = [due[0] for stage in self.stages.values() if (due := stage.next_due()) is not None]
        return None if self.is_over or not found else min(found)

    # -------------------------------------------------------------- what happens
    def advance(self, at: float) -> None:
        """Let time pass: what falls due until then happens, in order."""
        while (due := self.next_due()) is not None and due <= at:
            self.at = max(self.at, due)
            stage = next(s for s in self.stages.values() if (d := s.next_due()) is not None and d[0] == due)
            self._fall_due(stage)
        self.at = max(self.at, at)

    def judge(self, request: Request) -> Request:
        """Let time pass, and return a request as it is to be sent.

        Raises:
            DecisionRefused: it may not be.
        """
        self.advance(request.at)
        return judge(self, request)

    def take(self, message: Message) -> None:
        """Let a message have its effect; one that may not have any is only noted."""
        self.advance(message.at)
        if isinstance(message, Refused):
            self._note_refused(message, message.reason)
            return
        try:
            judged = judge(self, message)
        except DecisionRefused as error:
            self._note_refused(message, str(error))
            return
        if isinstance(judged, Decided):
            self._decide(judged)
        elif isinstance(judged, Delegated):
            self._delegate(judged)
        elif isinstance(judged, Withdrawn):
            self._note("withdrawn", by=judged.by, comment=judged.comment)
            self._end("withdrawn", f"{judged.by} has withdrawn the request")
        else:
            self._resubmit(judged)

    def resolve(self, number: int, names: list[str], at: float) -> None:
        """Take note of who is asked on a level that was about to open."""
        self.advance(at)
        for stage in self.unresolved():
            if stage.number == number and not self.is_over:
                self._open(stage, names)
                self._settle()

    # -------------------------------------------------------------- submitting
    def _submit(self) -> None:
        self._round += 1
        names = self._choose(self._round, self.subject)
        self.applying = [level for level in self.plan.levels if level.name in names]
        for level in self.plan.levels:
            if level.name not in names:
                self._note("skipped", level.name, reason="its rule says that it does not apply")
        if not self.applying:
            self._end_empty()
            return
        self._go_on()

    def _end_empty(self) -> None:
        if self.plan.approve_when_empty:
            self._end("approved", "no level applied, and the chain says approve_when_empty")
        else:
            self._end("rejected", "no level applied, so that nobody could approve it")

    def _resubmit(self, message: Resubmitted) -> None:
        self._note("resubmitted", by=message.by, comment=message.comment)
        self.subject = message.subject
        self.stages, self.passed, self._standing = {}, {}, []
        self._submit()

    # -------------------------------------------------------------- opening
    def _go_on(self) -> None:
        """Open the next level, or all of them; end the chain behind the last."""
        waiting = [level for level in self.applying if level.name not in self.passed and level.name not in self.stages]
        if self.plan.parallel or not self.stages:
            for level in waiting if self.plan.parallel else waiting[:1]:
                self._openings += 1
                stage = self.stages[level.name] = Stage(level, self._openings)
                if level.resolver is None:
                    self._open(stage, level.approvers)
        self._settle()

    def _open(self, stage: Stage, names: Any) -> None:
        """Let people decide on a level."""
        if names is not None:
            is_allowed = self.plan.self_approval
            stage.people = tuple(n for n in dict.fromkeys(names) if is_allowed or n != self.requester)
        stage.since = self.at
        self._announce("opened", stage)
        excluded = self.excluded(stage.plan.name)
        if stage.is_stuck(excluded, opening=True):
            self._fail(stage, excluded)

    def _fail(self, stage: Stage, excluded: set[str]) -> None:
        names = [p for p in stage.people or () if p not in excluded]
        level = stage.plan.name
        self.failure = self.failure or QuorumUnreachable(
            f"level {level!r} needs {stage.required(excluded)} to approve, and of those named for it can decide: "
            f"{name_people(names)}; the requester cannot, nor who has decided on another level of a chain with "
            "distinct=True",
            level,
        )

    # -------------------------------------------------------------- deciding
    def _decide(self, vote: Decided) -> None:
        stage = self.stages[vote.level]
        stage.votes[vote.principal] = vote
        self._standing.append(vote)
        self._announce(
            "approved" if vote.approved else "rejected",
            stage,
            by=vote.by,
            role=vote.role,
            roles=frozenset(vote.roles or ()),
            comment=vote.comment,
            on_behalf_of=vote.on_behalf_of,
        )
        self._settle()

    def _delegate(self, message: Delegated) -> None:
        stage = self.stages[message.level]
        if message.to == message.principal:
            del stage.delegations[message.principal]
        else:
            stage.delegations[message.principal] = message.to
        self._announce(
            "delegated",
            stage,
            by=message.by,
            role=message.role,
            roles=frozenset(message.roles or ()),
            comment=message.comment,
            on_behalf_of=message.on_behalf_of,
            to=message.to,
        )

    def _settle(self) -> None:
        """See what the votes have made of the open levels."""
        for name, stage in list(self.stages.items()):
            if self.is_over or stage.since is None or self.stages.get(name) is not stage:
                continue
            excluded = self.excluded(name)
            if stage.is_rejected(excluded):
                self._reject(stage, "rejected", f"level {name!r} was rejected by {self._rejecters(stage)}")
            elif stage.is_approved(excluded):
                self._pass(stage)
            elif stage.is_stuck(excluded):
                self._fail(stage, excluded)

    def _rejecters(self, stage: Stage) -> str:
        return ", ".join(vote.by for vote in stage.votes.values() if not vote.approved)

    def _pass(self, stage: Stage) -> None:
        self.passed[stage.plan.name] = self.stages.pop(stage.plan.name)
        if len(self.passed) == len(self.applying):
            self._end("approved", "all levels have approved it")
        else:
            self._go_on()

    def _reject(self, stage: Stage, status: ApprovalStatus, reason: str) -> None:
        target = stage.plan.send_back_to
        if target is None:
            self._end(status, reason)
            return
        names = [level.name for level in self.plan.levels]
        void = set(names[names.index(target) :])
        self._announce("sent_back", stage, reason=f"{reason}; the chain goes on from level {target!r}")
        for name in void:
            self.stages.pop(name, None)
            self.passed.pop(name, None)
        self._standing = [vote for vote in self._standing if vote.level not in void]
        self._go_on()

    # -------------------------------------------------------------- time
    def _fall_due(self, stage: Stage) -> None:
        found = stage.next_due()
        assert found is not None
        plan = stage.plan
        if found[1] == "remind":
            stage.reminded += 1
            self._announce("reminded", stage)
        elif plan.escalate_to is not None and stage.escalated is None:
            stage.escalated = self.at
            reason = f"undecided for {plan.timeout:g} s, so that {plan.escalate_to!r} may decide as well"
            self._announce("escalated", stage, reason=reason)
        else:
            stage.is_timed_out = True
            self._announce("timed_out", stage, reason=f"undecided until its timeout: on_timeout={plan.on_timeout!r}")
            if plan.on_timeout == "approve":
                self._pass(stage)
            else:
                self._reject(stage, "expired", f"level {plan.name!r} was not decided in time")

    # -------------------------------------------------------------- ends and notes
    def _end(self, status: ApprovalStatus, reason: str) -> None:
        self.status, self.reason = status, reason
        self.stages = {}
        entry = self._note("ended", reason=reason)
        self.announcements.append(Announcement(entry))

    def _note_refused(self, message: Message, reason: str) -> None:
        self._note(
            "refused",
            message.level or None,
            by=message.by,
            roles=frozenset(getattr(message, "roles", None) or ()),
            comment=message.comment,
            attempt=message.attempt,
            reason=reason,
        )

    def _announce(self, what: What, stage: Stage, **more: Any) -> None:
        entry = self._note(what, stage.plan.name, **more)
        people = stage.asked(self.excluded(stage.plan.name))
        self.announcements.append(Announcement(entry, stage.roles, people, stage.deadline))

    def _note(self, what: What, level: str | None = None, **more: Any) -> AuditEntry:
        entry = AuditEntry(at=as_datetime(self.at), what=what, level=level, **more)
        self.log.append(entry)
        return entry


def as_datetime(at: float) -> datetime:
    """Return a time of the store's clock as users see it."""
    return datetime.fromtimestamp(at, UTC)


def show_decision(vote: Decided) -> Decision:
    """Return a vote as users see it."""
    return Decision(
        level=vote.level,
        by=vote.by,
        approved=vote.approved,
        at=as_datetime(vote.at),
        role=vote.role,
        roles=frozenset(vote.roles or ()),
        comment=vote.comment,
        on_behalf_of=vote.on_behalf_of,
    )
