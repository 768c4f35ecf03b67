"""`level`: one level of an approval chain, as users write it, and as it is once it has been checked.

Law: what is written is kept as it is and judged when a chain is assembled, all of it together. A checked level is
immutable, its times are seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Literal, TypeAlias, TypeVar, overload

import msgspec

from flowlet.core.retry import Seconds
from flowlet.core.steps import StepDefinition

S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)

Quorum: TypeAlias = int | Literal["all", "majority"]
"""How many must approve: a number, or all or more than half of those who are named."""

OnTimeout: TypeAlias = Literal["escalate", "approve", "reject"]

Resolver: TypeAlias = Callable[[S], Sequence[str] | Awaitable[Sequence[str]]]
"""Names those who may decide on a subject."""


class Level(msgspec.Struct, Generic[S_contra], frozen=True, eq=False, kw_only=True):
    """One level of an approval chain, made by `level`; the chain that it is given to checks it."""

    name: Any
    role: Any
    approvers: Any
    quorum: Any
    when: Callable[[S_contra], bool] | None
    timeout: Any
    escalate_to: Any
    on_timeout: Any
    remind: Any
    veto: Any
    send_back_to: Any
    delegate: Any


@overload
def level(
    name: str,
    /,
    *,
    role: str | None = None,
    approvers: Sequence[str] | None = None,
    quorum: Quorum = 1,
    timeout: Seconds | None = None,
    escalate_to: str | None = None,
    on_timeout: OnTimeout | None = None,
    remind: Seconds | Sequence[Seconds] | None = None,
    veto: bool = True,
    send_back_to: str | None = None,
    delegate: bool = True,
) -> Level[object]: ...
@overload
def level(
    name: str,
    /,
    *,
    when: Callable[[S], bool],
    role: str | None = None,
    approvers: Sequence[str] | Resolver[S] | None = None,
    quorum: Quorum = 1,
    timeout: Seconds | None = None,
    escalate_to: str | None = None,
    on_timeout: OnTimeout | None = None,
    remind: Seconds | Sequence[Seconds] | None = None,
    veto: bool = True,
    send_back_to: str | None = None,
    delegate: bool = True,
) -> Level[S]: ...
@overload
def level(
    name: str,
    /,
    *,
    approvers: Resolver[S],
    role: str | None = None,
    quorum: Quorum = 1,
    timeout: Seconds | None = None,
    escalate_to: str | None = None,
    on_timeout: OnTimeout | None = None,
    remind: Seconds | Sequence[Seconds] | None = None,
    veto: bool = True,
    send_back_to: str | None = None,
    delegate: bool = True,
) -> Level[S]: ...
def level(
    name: str,
    /,
    *,
    role: str | None = None,
    approvers: Any = None,
    quorum: Quorum = 1,
    when: Callable[[Any], bool] | None = None,
    timeout: Seconds | None = None,
    escalate_to: str | None = None,
    on_timeout: OnTimeout | None = None,
    remind: Seconds | Sequence[Seconds] | None = None,
    veto: bool = True,
    send_back_to: str | None = None,
    delegate: bool = True,
) -> Level[Any]:
    """Describe one level of an approval chain: who is asked, how many must agree, and what happens if they do not.

    It needs a ``role``, ``approvers`` or both: then those may decide who are named and have the role.

    Args:
        name: unique in its chain.
        role: who has it may decide. Who has it is said with each decision, or by ``Flowlet(authorize=...)``.
        approvers: those who may decide, by name; or a function of the subject that names them. The function is a step:
            it is called when the level opens, may be slow, retry and fail, and what it returns is on record.
        quorum: how many must approve: a number, or ``"all"`` or ``"majority"`` (more than half) of the approvers. The
            requester and, in a chain with ``distinct=True``, who has decided on another level do not count among those.
        when: a plain function of the subject: whether the level applies. It is asked once for each (re)submission,
            and its answer is on record. A level that does not apply is skipped.
        timeout: seconds (or a timedelta) that the level may be open, before ``escalate_to`` or ``on_timeout`` goes.
        escalate_to: after the timeout, those with this role may decide as well. The quorum stays what it is, and the
            level's own approvers may still decide; a `Decision` says by which role it was made.
        on_timeout: ``"approve"`` or ``"reject"``: what becomes of the level after the timeout; with ``escalate_to``,
            after a second one of the same length. Without it an escalated level goes on waiting (``"escalate"``).
        remind: so long after the level opened, once or several times, the chain's ``notify=`` is called if it is
            still open.
        veto: one rejection rejects the level. If False, only when the quorum cannot be reached any more: too few of
            the named approvers are left; where anybody with a role may decide, as many have rejected as would have
            to approve.
        send_back_to: an earlier level, from which the chain begins anew when this one is rejected: decisions on it and
            on those behind it are void. By default a rejection ends the chain.
        delegate: whether who may decide may have somebody else do so.

    Example:
        >>> from datetime import timedelta
        >>> from flowlet import level
        >>> manager = level("manager", role="manager", timeout=timedelta(days=3), escalate_to="director")
        >>> finance = level("finance", approvers=["bob", "eve", "sam"], quorum="majority")
    """
    return Level(
        name=name,
        role=role,
        approvers=approvers,
        quorum=quorum,
        when=when,
        timeout=timeout,
        escalate_to=escalate_to,
        on_timeout=on_timeout,
        remind=remind,
        veto=veto,
        send_back_to=send_back_to,
        delegate=delegate,
    )


class LevelPlan(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A level that has been checked; see `level`.

    Attributes:
        approvers: those who are named in the code, None if nobody is.
        resolver: the step that names them, with the object that it is a method of.
        timeout: seconds.
        remind: seconds after the level opened, in order.
    """

    name: str
    role: str | None = None
    approvers: tuple[str, ...] | None = None
    resolver: StepDefinition | None = None
    owner: object = None
    quorum: Quorum = 1
    when: Callable[[Any], Any] | None = None
    timeout: float | None = None
    escalate_to: str | None = None
    on_timeout: Literal["wait", "approve", "reject"] = "wait"
    remind: tuple[float, ...] = ()
    veto: bool = True
    send_back_to: str | None = None
    delegate: bool = True

    @property
    def is_named(self) -> bool:
        """Whether those who may decide are named, in the code or by a function."""
        return self.approvers is not None or self.resolver is not None
