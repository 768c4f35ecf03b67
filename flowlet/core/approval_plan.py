"""An approval chain ready to run: what is left of it when all of it has been checked.

Law: immutable, and plain data but for the functions that users gave. Which levels apply is asked of those functions and
nobody else, and the answer depends on the subject alone.
"""

from __future__ import annotations

import inspect
from typing import Any, Final

import msgspec

from flowlet.core.approval_levels import LevelPlan
from flowlet.core.codec import Codec
from flowlet.core.definitions import RunDefinition
from flowlet.core.steps import StepDefinition
from flowlet.errors import RuleFailed

RULES: Final = "levels#"
"""Prefix of the key under which it is noted which levels apply to a submission; see `ChainPlan.rules_key`."""

APPROVERS: Final = "approvers of "
"""Prefix of the name of the step that names those who are asked on a level."""

OPENED: Final = "opened#"
"""Prefix of the key under which it is noted when a level was opened of which it had to be found out who is asked.
A number follows, as in the key of the step."""

NOTIFY: Final = "notify"
"""The name of the step that tells people."""


class ChainPlan(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """An approval chain ready to run; see `flowlet.assembler.Assembler.approval`.

    Attributes:
        subject: the type of what is decided on.
        notify: the step that is told what happens, with the object that it is a method of.
    """

    name: str
    levels: tuple[LevelPlan, ...]
    subject: Codec[Any]
    parallel: bool = False
    distinct: bool = False
    approve_when_empty: bool = False
    self_approval: bool = False
    notify: StepDefinition | None = None
    owner: object = None

    def rules_key(self, submission: int) -> str:
        """Return the key under which it is noted which levels apply.

        The levels are named in it, so that a run whose levels were changed under it is set aside, and not misread.
        """
        return self.rules_prefix(submission) + ", ".join(level.name for level in self.levels)

    def rules_prefix(self, submission: int) -> str:
        """Return how that key begins, whatever the levels are."""
        return f"{RULES}{submission} of "

    def choose(self, subject: bytes) -> list[str]:
        """Return the names of the levels that apply to a subject.

        Raises:
            RuleFailed: a rule has.
        """
        return [level.name for level in self.levels if level.when is None or self._applies(level, subject)]

    def _applies(self, level: LevelPlan, subject: bytes) -> bool:
        assert level.when is not None
        value = self.subject.decode(subject, f"the subject of {self.name!r}")  # its own, which it may change
        try:
            answer = level.when(value)
            if not inspect.isawaitable(answer):
                return bool(answer)
        except Exception as error:
            raise RuleFailed(
                f"when= of level {level.name!r} failed with {type(error).__name__}: {error}", level.name
            ) from error
        if inspect.iscoroutine(answer):
            answer.close()
        raise RuleFailed(
            f"when= of level {level.name!r} returned an awaitable; do slow work before, and put what it found into the "
            "subject",
            level.name,
        )


class ApprovalDefinition(RunDefinition, frozen=True, eq=False, kw_only=True):
    """A definition that is an approval chain."""

    plan: ChainPlan
