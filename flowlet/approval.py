"""`Approval`: a chain of levels on which people decide.

Law: here are the names that users type, with their types; what they mean is in `flowlet.core`. A chain does not change
once it is made.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from flowlet.core.approval_levels import Level, level
from flowlet.core.approval_plan import ApprovalDefinition
from flowlet.core.approval_values import ApprovalNotice, ApprovalOutcome, AuditEntry, Decision
from flowlet.core.definitions import Draft, RunDefinition
from flowlet.runtime.approvals import InboxItem

__all__ = [
    "Approval",
    "ApprovalNotice",
    "ApprovalOutcome",
    "AuditEntry",
    "Decision",
    "InboxItem",
    "Level",
    "level",
]

S = TypeVar("S")


class Approval(Draft, Generic[S]):
    """A chain of levels on which people decide, made by ``flow.approval(name, *levels, type=...)``.

    Calling it runs it and waits for the outcome, which may take days: in the body of a saga that is one ``await``, and
    the run that waits costs nothing meanwhile. ``flow.start(chain, subject, requester="ann", id="e-7")`` does not wait.

    Example:
        >>> import anyio
        >>> from msgspec import Struct
        >>> from flowlet import Flowlet, level
        >>> class Expense(Struct):
        ...     amount: int
        >>> flow = Flowlet()
        >>> expense = flow.approval(
        ...     "expense",
        ...     level("manager", role="manager"),
        ...     level("finance", role="finance", quorum=2, when=lambda e: e.amount > 10_000),
        ...     type=Expense,
        ... )
        >>> async def main() -> None:
        ...     async with flow:
        ...         handle = await flow.start(expense, Expense(250), id="e-7", requester="ann")
        ...         await flow.approve("e-7", by="bob", roles={"manager"}, comment="fine")
        ...         outcome = await handle.result()
        ...         print(outcome.approved, [(d.level, d.by) for d in outcome.decisions])
        >>> anyio.run(main)
        True [('manager', 'bob')]
    """

    def __init__(self, definition: ApprovalDefinition, caller: Any) -> None:
        super().__init__(definition.name, definition.version)
        self.built: RunDefinition | None = definition
        self.__name__: str = definition.name  # as functions have one: what it is called as a node of a graph
        self._caller = caller

    def definition(self) -> RunDefinition:
        """Return the definition."""
        assert self.built is not None
        return self.built

    def __call__(self, subject: S, /, *, requester: str) -> Coroutine[Any, Any, ApprovalOutcome[S]]:
        """Run the chain and return its outcome; in a body it is a child run.

        Args:
            subject: what is to be decided on.
            requester: who asks for it, and cannot decide on it.

        Raises:
            QuorumUnreachable: a level can never be decided.
            RuleFailed: the ``when=`` of a level has.
            Exception: what an ``approvers=`` function has failed with.
        """
        call: Coroutine[Any, Any, ApprovalOutcome[S]] = self._caller(subject, requester)
        return call

    def __repr__(self) -> str:
        return f"<Approval {self.name!r}>"

    def __getattr__(self, name: str) -> Any:
        # As of every assembled function: what it is, and what it is as a step of something else.
        if name.startswith("__flowlet_"):
            return getattr(self._caller, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
