"""What an approval chain tells of itself: decisions, the outcome, the audit, and what ``notify=`` is given.

Law: values, as users see and store them. Times are datetimes in UTC, of the store's clock.
"""

from __future__ import annotations

from datetime import datetime
from typing import Generic, Literal, TypeAlias, TypeVar

import msgspec

S = TypeVar("S")

ApprovalStatus: TypeAlias = Literal["approved", "rejected", "withdrawn", "expired"]
"""``"expired"``: a level was rejected by its timeout."""

What: TypeAlias = Literal[
    "submitted",
    "skipped",
    "opened",
    "approved",
    "rejected",
    "delegated",
    "reminded",
    "escalated",
    "timed_out",
    "sent_back",
    "withdrawn",
    "resubmitted",
    "refused",
    "ended",
]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody has decided on one level.

    Attributes:
        by: who has decided.
        role: the level's role by which they may; after an escalation perhaps the one it was escalated to. None if they
            were asked by name.
        roles: all roles that they were said to have.
        on_behalf_of: whose vote it is, if that one has had it cast by somebody else.
        at: when, in UTC, by the store's clock.

    Example:
        >>> from datetime import UTC, datetime
        >>> from flowlet import Decision
        >>> Decision(level="manager", by="bob", approved=True, at=datetime.now(UTC)).approved
        True
    """

    level: str
    by: str
    approved: bool
    at: datetime
    role: str | None = None
    roles: frozenset[str] = frozenset()
    comment: str = ""
    on_behalf_of: str | None = None


class ApprovalOutcome(msgspec.Struct, Generic[S], frozen=True, kw_only=True):
    """How an approval chain has ended.

    Attributes:
        approved: whether it was; the one thing to ask.
        status: how it came to that.
        decisions: those that stand, in their order, without what was void after a resubmission or when the chain was
            sent back: all that happened is in ``flow.audit(id)``.
        reason: the same in words.
        subject: what was decided on: after a resubmission, the last.
    """

    approved: bool
    status: ApprovalStatus
    decisions: tuple[Decision, ...]
    reason: str
    subject: S
    requester: str


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of what happened in an approval chain.

    Attributes:
        what: ``"refused"`` is something that somebody has tried and may not; then ``attempt`` says what, ``reason``
            why.
        by: who did it; None for what time did.
        to: to whom a vote was delegated.
        reason: in words, where there is one.
        attempt: ``"approve"``, ``"reject"``, ``"delegate"``, ``"withdraw"`` or ``"resubmit"``.
    """

    at: datetime
    what: What
    level: str | None = None
    by: str | None = None
    role: str | None = None
    roles: frozenset[str] = frozenset()
    comment: str = ""
    on_behalf_of: str | None = None
    to: str | None = None
    reason: str | None = None
    attempt: str | None = None


class ApprovalNotice(msgspec.Struct, Generic[S], frozen=True, kw_only=True):
    """What the ``notify=`` of an approval chain is given.

    Attributes:
        what: as in `AuditEntry`: ``"opened"``, ``"approved"``, ``"rejected"``, ``"delegated"``, ``"reminded"``,
            ``"escalated"``, ``"timed_out"``, ``"sent_back"`` or ``"ended"``.
        id: the run's id.
        by: who did it; None for what time did.
        to: to whom a vote was delegated.
        roles: the level's role and, when it was escalated, that one as well; none if only names count.
        people: those who are asked by name, delegates included, and have not decided.
        due: when the level's timeout comes, None if it has none.
        reason: how the chain has ended, when it has.
    """

    what: What
    id: str
    definition: str
    requester: str
    subject: S
    at: datetime
    level: str | None = None
    by: str | None = None
    to: str | None = None
    roles: tuple[str, ...] = ()
    people: tuple[str, ...] = ()
    due: datetime | None = None
    reason: str | None = None
