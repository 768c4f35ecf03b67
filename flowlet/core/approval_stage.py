"""A level while it is open, and after it was decided: who may decide, who has, and what that makes of it.

Law: pure, and nothing of other levels is known here but whom they exclude. A person decides once on a level, whether
for themselves or for somebody else, and nobody's vote counts twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

import msgspec

from flowlet.core.approval_levels import LevelPlan
from flowlet.core.approval_messages import Decided

Due: TypeAlias = Literal["timeout", "remind"]


class Stage(msgspec.Struct, eq=False):
    """One opening of one level. Times are seconds of the store's clock.

    Attributes:
        number: which opening it is in the run, from 1.
        people: those who are named and may decide: neither the requester, unless self-approval is allowed, nor anybody
            twice. None if nobody is named, or as long as it is not known who is.
        since: when it opened; None as long as it is not known who is asked.
        votes: by whose vote it is.
        delegations: who casts whose vote, by whose it is.
        escalated: when it was.
        reminded: how many reminders there were.
        is_timed_out: the last timeout has come.
    """

    plan: LevelPlan
    number: int
    people: tuple[str, ...] | None = None
    since: float | None = None
    votes: dict[str, Decided] = {}
    delegations: dict[str, str] = {}
    escalated: float | None = None
    reminded: int = 0
    is_timed_out: bool = False

    @property
    def voters(self) -> set[str]:
        """Those who had a part in a vote: whose it is, and who has cast it."""
        return {name for vote in self.votes.values() for name in (vote.by, vote.principal)}

    @property
    def roles(self) -> tuple[str, ...]:
        """The level's role and, when it was escalated, that one as well; none where names alone count."""
        own = () if self.plan.role is None else (self.plan.role,)
        return (*own, self.plan.escalate_to) if self.escalated is not None and self.plan.escalate_to else own

    def role_of(self, person: str, roles: Collection[str]) -> tuple[bool, str | None]:
        """Tell whether a person may decide by themselves, and by which of their roles."""
        plan = self.plan
        is_named = self.people is None or person in self.people
        if is_named and (plan.role is None or plan.role in roles):
            return True, plan.role
        if self.escalated is not None and plan.escalate_to in roles:
            return True, plan.escalate_to
        return False, None

    def asked(self, excluded: Collection[str] = ()) -> tuple[str, ...]:
        """Return those who are named, or have a vote delegated to them, and can still decide."""
        voters = self.voters
        named = [p for p in self.people or () if p not in self.delegations]
        names = dict.fromkeys([*named, *self.delegations.values()])
        waiting = [p for p, to in self.delegations.items() if p not in self.votes and to not in voters]
        own = [p for p in named if p not in voters]
        wanted = {*own, *(self.delegations[p] for p in waiting)}
        return tuple(name for name in names if name in wanted and name not in excluded)

    # -------------------------------------------------------------- counting
    def required(self, excluded: Collection[str]) -> int:
        """Return how many must approve.

        Args:
            excluded: who may not, since they have decided on another level.
        """
        quorum = self.plan.quorum
        if isinstance(quorum, int):
            return quorum
        count = len(self._eligible(excluded))
        return max(1, count if quorum == "all" else count // 2 + 1)

    def _eligible(self, excluded: Collection[str]) -> list[str]:
        """Return those named whose vote counts, or has been counted."""
        return [p for p in self.people or () if p in self.votes or p not in excluded]

    def is_approved(self, excluded: Collection[str]) -> bool:
        """Tell whether enough have approved."""
        return self._approvals >= self.required(excluded)

    def is_rejected(self, excluded: Collection[str]) -> bool:
        """Tell whether it can only be rejected."""
        rejections = len(self.votes) - self._approvals
        if not rejections:
            return False
        required = self.required(excluded)
        if self.plan.veto:
            return True
        if self.people is None or self.escalated is not None:
            return rejections >= required
        return self._most(excluded) < required

    def is_stuck(self, excluded: Collection[str], *, opening: bool = False) -> bool:
        """Tell whether nobody can bring it to an end: too few of those named may decide.

        Args:
            opening: an escalation that is to come does not help, since nobody is asked until then.
        """
        if self.people is None or (self.plan.escalate_to is not None and not opening):
            return False
        return self._most(excluded) < self.required(excluded)

    @property
    def _approvals(self) -> int:
        return sum(vote.approved for vote in self.votes.values())

    def _most(self, excluded: Collection[str]) -> int:
        """Return how many can have approved in the end."""
        open_ones = [p for p in self._eligible(excluded) if p not in self.votes]
        return self._approvals + len(open_ones)

    # -------------------------------------------------------------- time
    @property
    def deadline(self) -> float | None:
        """When the timeout comes that makes a difference next."""
        plan = self.plan
        if self.since is None or plan.timeout is None or self.is_timed_out:
            return None
        if plan.escalate_to is None or self.escalated is None:
            return self.since + plan.timeout
        return None if plan.on_timeout == "wait" else self.escalated + plan.timeout

    def next_due(self) -> tuple[float, Due] | None:
        """Return what time does next: a timeout comes before a reminder of the same moment."""
        found: list[tuple[float, int, Due]] = []
        deadline = self.deadline
        if deadline is not None:
            found.append((deadline, 0, "timeout"))
        if self.since is not None and self.reminded < len(self.plan.remind):
            found.append((self.since + self.plan.remind[self.reminded], 1, "remind"))
        if not found:
            return None
        at, _, what = min(found)
        return at, what


def name_people(names: Sequence[str]) -> str:
    """Write names for an error."""
    return ", ".join(map(repr, names)) if names else "nobody"
