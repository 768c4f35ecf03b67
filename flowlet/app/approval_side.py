"""What a `Flowlet` does for the people who decide: their decisions, what waits for them, and what has happened.

Law: what it is done with is imported when somebody does it, so that programs without approval chains need not wait.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import TYPE_CHECKING, Any

from flowlet.app.life import Life
from flowlet.core.approval_values import AuditEntry, Decision
from flowlet.errors import ApprovalError, DecisionRefused
from flowlet.runtime.iterating import readable

if TYPE_CHECKING:
    from flowlet.core.approval_messages import Request
    from flowlet.core.approval_plan import ApprovalDefinition
    from flowlet.runtime.approvals import Approvals, InboxItem


class ApprovalSide(Life):
    """What a `Flowlet` does with approval chains."""

    async def approve(
        self,
        id: str,
        /,
        *,
        by: str,
        roles: Iterable[str] | None = None,
        level: str | None = None,
        comment: str = "",
        on_behalf_of: str | None = None,
    ) -> Decision:
        """Approve a level of an approval chain; return when that is durable.

        Who somebody is and which roles they have is for the application to know: it says so here, or with
        ``Flowlet(authorize=...)``. With both, the roles given here must be among those that ``authorize`` tells, and
        only they count.

        Args:
            id: the run's id.
            by: who decides.
            roles: the roles they have. Not needed for who is asked by name, or decides for somebody else.
            level: the level; not needed if there is just one on which they may decide, unless they have decided on
                another one that they may with these roles: what is sent twice decides once.
            comment: kept with the decision.
            on_behalf_of: whose vote it is, if they have one of their own as well.

        Raises:
            AlreadyDecided: they have decided on this level, others were faster, or the chain has ended.
            DecisionRefused: they may not; ``.reason`` says why in a word. If the application knows them, the attempt is
                in the audit.
            RunFinished: the run was cancelled or has failed.
            RunNotFound: there is no such run.
            ApprovalError: it is no run of an approval chain.
            PayloadTooLarge: the comment is too long.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, level
            >>> flow = Flowlet()
            >>> order = flow.approval("order", level("manager", role="manager"), type=str)
            >>> async def main() -> None:
            ...     async with flow:
            ...         handle = await flow.start(order, "two chairs", id="o-1", requester="ann")
            ...         decision = await flow.approve("o-1", by="bob", roles={"manager"})
            ...         print(decision.level, decision.approved, (await handle.result()).approved)
            >>> anyio.run(main)
            manager True True
        """
        return await self._decide(id, True, by, roles, level, comment, on_behalf_of)

    async def reject(
        self,
        id: str,
        /,
        *,
        by: str,
        roles: Iterable[str] | None = None,
        level: str | None = None,
        comment: str = "",
        on_behalf_of: str | None = None,
    ) -> Decision:
        """Reject a level of an approval chain; return when that is durable.

        It ends the chain, or sends it back, unless the level says ``veto=False`` and others can still approve it.

        Args, raises: as of `approve`.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, level
            >>> flow = Flowlet()
            >>> order = flow.approval("order", level("manager", role="manager"), type=str)
            >>> async def main() -> None:
            ...     async with flow:
            ...         handle = await flow.start(order, "two chairs", id="o-1", requester="ann")
            ...         await flow.reject("o-1", by="bob", roles={"manager"}, comment="which ones?")
            ...         print((await handle.result()).status)
            >>> anyio.run(main)
            rejected
        """
        return await self._decide(id, False, by, roles, level, comment, on_behalf_of)

    async def delegate(
        self,
        id: str,
        /,
        *,
        by: str,
        to: str,
        roles: Iterable[str] | None = None,
        level: str | None = None,
        comment: str = "",
        on_behalf_of: str | None = None,
    ) -> None:
        """Have somebody else cast a vote on a level; return when that is durable.

        Who casts it needs none of the roles: it stays the vote of who has delegated it, and counts as theirs. It can be
        delegated further, and whose vote it is can take it back by delegating it to themselves. A delegation is void
        when the level is opened anew.

        Args:
            by: whose vote it is, or who was to cast it.
            to: who is to decide.
            roles, level, comment, on_behalf_of: as of `approve`.

        Raises:
            AlreadyDecided, DecisionRefused: as of `approve`; also if ``to`` is the requester, is asked on this level
                anyway, or has decided.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, level
            >>> flow = Flowlet()
            >>> order = flow.approval("order", level("manager", role="manager"), type=str)
            >>> async def main() -> None:
            ...     async with flow:
            ...         handle = await flow.start(order, "two chairs", id="o-1", requester="ann")
            ...         await flow.delegate("o-1", by="bob", to="eve", roles={"manager"})
            ...         await flow.approve("o-1", by="eve", roles=())
            ...         print((await handle.result()).approved)
            >>> anyio.run(main)
            True
        """
        from flowlet.core.approval_messages import Delegated

        _check_text("to", to)
        told, refusal = await self._roles(by, roles)
        options = _check_options(level, comment, on_behalf_of)

        def make(definition: ApprovalDefinition, at: float) -> Request:
            return Delegated(at=at, by=by, roles=told, to=to, **options)

        await self._request(id, make, told is not None, refusal)

    async def withdraw(self, id: str, /, *, by: str, comment: str = "") -> None:
        """Take a request back, which ends its chain; only the requester can.

        Raises:
            DecisionRefused: ``by`` is not the requester.
            AlreadyDecided: the chain has ended.
            RunNotFound: there is no such run.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, level
            >>> flow = Flowlet()
            >>> order = flow.approval("order", level("manager", role="manager"), type=str)
            >>> async def main() -> None:
            ...     async with flow:
            ...         handle = await flow.start(order, "two chairs", id="o-1", requester="ann")
            ...         await flow.withdraw("o-1", by="ann")
            ...         print((await handle.result()).status)
            >>> anyio.run(main)
            withdrawn
        """
        from flowlet.core.approval_messages import Withdrawn

        _check_text("by", by)
        _check_comment(comment)
        await self._request(id, lambda _, at: Withdrawn(at, by, comment), False, None)

    async def resubmit(self, id: str, subject: object, /, *, by: str, comment: str = "") -> None:
        """Change what is to be decided on; only the requester can.

        The chain begins anew: earlier decisions and delegations are void, and the rules are asked about what is new.

        Args:
            subject: of the type of the chain.

        Raises:
            DecisionRefused: ``by`` is not the requester.
            AlreadyDecided: the chain has ended.
            EncodeError, DecodeError, PayloadTooLarge: the subject is of another type, or cannot be stored.
            RuleFailed: the ``when=`` of a level has.
            RunNotFound: there is no such run.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, level
            >>> flow = Flowlet()
            >>> order = flow.approval("order", level("manager", role="manager"), type=str)
            >>> async def main() -> None:
            ...     async with flow:
            ...         handle = await flow.start(order, "two chairs", id="o-1", requester="ann")
            ...         await flow.resubmit("o-1", "one chair", by="ann")
            ...         await flow.approve("o-1", by="bob", roles={"manager"})
            ...         print((await handle.result()).subject)
            >>> anyio.run(main)
            one chair
        """
        from flowlet.core.approval_messages import Resubmitted
        from flowlet.runtime.approvals import encode_subject

        _check_text("by", by)
        _check_comment(comment)

        def make(definition: ApprovalDefinition, at: float) -> Request:
            data = encode_subject(definition, subject, self._open_runs.max_payload)
            return Resubmitted(at, by, data, comment)

        await self._request(id, make, False, None)

    @readable
    async def inbox(self, *, role: str | None = None, person: str | None = None) -> AsyncGenerator[InboxItem, None]:
        """Yield what waits for decisions, in all runs of the approval chains that are included here.

        Args:
            role: only what those with this role may decide.
            person: only what this person can decide now: what they have requested or decided themselves is left out.
                They are taken to have ``role``, or the roles that ``Flowlet(authorize=...)`` tells.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, level
            >>> flow = Flowlet()
            >>> order = flow.approval("order", level("manager", role="manager"), type=str)
            >>> async def main() -> None:
            ...     async with flow:
            ...         await flow.start(order, "two chairs", id="o-1", requester="ann")
            ...         print([(item.id, item.level, item.subject) async for item in flow.inbox(role="manager")])
            ...         print([item.id async for item in flow.inbox(role="manager", person="ann")])
            >>> anyio.run(main)
            [('o-1', 'manager', 'two chairs')]
            []
        """
        from flowlet.core.approval_plan import ApprovalDefinition

        definitions = [d for d in self._registry.definitions.values() if isinstance(d, ApprovalDefinition)]
        names = list(dict.fromkeys(d.name for d in definitions))
        roles = None
        if person is not None:
            _check_text("person", person)
            roles = await self._ask(person)
            if self._authorize is not None and roles is None:
                return
        async for item in self._approvals.inbox(names, role, person, roles):
            yield item

    @readable
    async def audit(self, id: str, /) -> AsyncGenerator[AuditEntry, None]:
        """Yield what has happened in an approval chain, in order: also what was refused, and what is void by now.

        Raises:
            RunNotFound: there is no such run.
            ApprovalError: it is no run of an approval chain.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, level
            >>> flow = Flowlet()
            >>> order = flow.approval("order", level("manager", role="manager"), type=str)
            >>> async def main() -> None:
            ...     async with flow:
            ...         handle = await flow.start(order, "two chairs", id="o-1", requester="ann")
            ...         await flow.approve("o-1", by="bob", roles={"manager"})
            ...         await handle.result()
            ...         print([(entry.what, entry.by) async for entry in flow.audit("o-1")][-2:])
            >>> anyio.run(main)
            [('approved', 'bob'), ('ended', None)]
        """
        async for entry in self._approvals.audit(id):
            yield entry

    # -------------------------------------------------------------- how
    @property
    def _approvals(self) -> Approvals:
        from flowlet.runtime.approvals import Approvals

        return Approvals(self._open_store, self._open_runs)

    async def _decide(
        self,
        id: str,
        approved: bool,
        by: str,
        roles: Iterable[str] | None,
        level: str | None,
        comment: str,
        on_behalf_of: str | None,
    ) -> Decision:
        from flowlet.core.approval_case import show_decision
        from flowlet.core.approval_messages import Decided

        told, refusal = await self._roles(by, roles)
        options = _check_options(level, comment, on_behalf_of)

        def make(definition: ApprovalDefinition, at: float) -> Request:
            return Decided(at=at, by=by, roles=told, approved=approved, **options)

        judged = await self._request(id, make, told is not None, refusal)
        assert isinstance(judged, Decided)
        return show_decision(judged)

    async def _request(
        self,
        id: str,
        make: Callable[[ApprovalDefinition, float], Request],
        is_known: bool,
        refusal: DecisionRefused | None,
    ) -> Request:
        return await self._approvals.request(id, make, is_known=is_known, refusal=refusal)

    async def _roles(
        self, by: str, roles: Iterable[str] | None
    ) -> tuple[tuple[str, ...] | None, DecisionRefused | None]:
        """Return the roles that somebody has, None if nobody says; and why they may do nothing, if that is so."""
        _check_text("by", by)
        given = None if roles is None else _check_roles("roles=", roles)
        if self._authorize is None:
            return given, None
        held = await self._ask(by)
        if held is None:
            raise DecisionRefused(f"authorize= does not know {by!r}, who can decide nothing", "no_roles", by)
        if given is None:
            return held, None
        more = [role for role in given if role not in held]
        if not more:
            return given, None
        text = f"authorize= does not say that {by} has {', '.join(map(repr, more))}"
        return held, DecisionRefused(text, "role_not_held", by)

    async def _ask(self, person: str) -> tuple[str, ...] | None:
        """Ask the application which roles somebody has."""
        if self._authorize is None:
            return None
        held: Any = self._authorize(person)
        if inspect.isawaitable(held):
            held = await held
        return None if held is None else _check_roles("what authorize= returns", held)


def _check_roles(what: str, roles: Any) -> tuple[str, ...]:
    if isinstance(roles, (str, bytes)) or not isinstance(roles, Iterable):
        raise ApprovalError(f"{what} takes the names of roles, such as {{'manager'}}, not {roles!r}")
    found = tuple(roles)
    if not all(isinstance(role, str) and role for role in found):
        raise ApprovalError(f"{what} takes the names of roles, and these are not all names: {found!r}")
    return tuple(sorted(set(found)))


def _check_options(level: Any, comment: Any, on_behalf_of: Any) -> dict[str, Any]:
    """Return the optional parts of a request."""
    if level is not None:
        _check_text("level", level)
    if on_behalf_of is not None:
        _check_text("on_behalf_of", on_behalf_of)
    _check_comment(comment)
    return {"level": level or "", "comment": comment, "on_behalf_of": on_behalf_of}


def _check_comment(comment: Any) -> None:
    if not isinstance(comment, str):
        raise ApprovalError(f"comment= takes a text, not {comment!r}")


def _check_text(what: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ApprovalError(f"{what}= takes a name, not {value!r}")
