"""The messages that people send to an approval chain, as they are encoded in signals.

Law: the wire shape is an array whose first item is a one-letter tag; fields are only added at the end, with a default.
A message has been judged before it was sent: it says for which level it is, and when it was judged.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from flowlet.core.codec import Codec

TOPIC: Final = "flowlet/approval"
"""The topic of all of them."""

Attempt: TypeAlias = Literal["approve", "reject", "delegate", "withdraw", "resubmit"]


class Decided(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    """Somebody approves or rejects a level. ``at`` is seconds of the store's clock, here as in all messages.

    Attributes:
        roles: those they are said to have; None if nothing is said of them.
        level: ``""`` as long as it is not known, which it is when the message is sent.
        on_behalf_of: whose vote it is, None for their own.
        role: the role by which they may, None if they were asked by name.
    """

    at: float
    by: str
    roles: tuple[str, ...] | None
    approved: bool
    level: str = ""
    comment: str = ""
    on_behalf_of: str | None = None
    role: str | None = None

    @property
    def attempt(self) -> Attempt:
        return "approve" if self.approved else "reject"

    @property
    def principal(self) -> str:
        """Whose vote it is."""
        return self.by if self.on_behalf_of is None else self.on_behalf_of


class Delegated(msgspec.Struct, frozen=True, array_like=True, tag="g"):
    """Somebody has another one cast a vote: their own, or one that they were given."""

    at: float
    by: str
    roles: tuple[str, ...] | None
    to: str
    level: str = ""
    comment: str = ""
    on_behalf_of: str | None = None
    role: str | None = None

    @property
    def attempt(self) -> Attempt:
        return "delegate"

    @property
    def principal(self) -> str:
        """Whose vote it is."""
        return self.by if self.on_behalf_of is None else self.on_behalf_of


class Withdrawn(msgspec.Struct, frozen=True, array_like=True, tag="w"):
    """The requester takes the request back."""

    at: float
    by: str
    comment: str = ""
    level: str = ""

    @property
    def attempt(self) -> Attempt:
        return "withdraw"


class Resubmitted(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """The requester has changed what is to be decided on."""

    at: float
    by: str
    subject: bytes
    comment: str = ""
    level: str = ""

    @property
    def attempt(self) -> Attempt:
        return "resubmit"


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="x"):
    """Somebody has tried what they may not; it changes nothing."""

    at: float
    by: str
    attempt: Attempt
    reason: str
    level: str = ""
    roles: tuple[str, ...] | None = None
    comment: str = ""


Vote: TypeAlias = Decided | Delegated
Request: TypeAlias = Decided | Delegated | Withdrawn | Resubmitted
Message: TypeAlias = Request | Refused

message_codec: Codec[Message] = Codec(Message)
