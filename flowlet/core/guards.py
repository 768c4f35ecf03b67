"""The guard algebra: `all_of`, `any_of`, `not_`.

Law: a guard expression is an immutable value; it evaluates as Python's ``and``, ``or`` and ``not``
do, from left to right, stopping as soon as the answer is known. Names in it are looked up on the
machine at assembly, never at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from flowlet.core.hooks import Callback, Moment, refuse_awaitable
from flowlet.errors import HookFailed


class Guard(msgspec.Struct, frozen=True):
    """A combination of guards, as `all_of`, `any_of` and `not_` make them.

    Attributes:
        kind: how the operands are combined.
        operands: functions, names of guard methods, or further combinations.
    """

    kind: Literal["all_of", "any_of", "not_"]
    operands: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(guard_name(o) for o in self.operands)})"


class GuardFn(Protocol):
    """A function that judges a machine; it may also take the event's arguments."""

    def __call__(self, machine: Any, /, *args: Any, **kwargs: Any) -> bool | Coroutine[Any, Any, bool]: ...


# The one-argument form comes first, so that checkers infer a lambda's parameter as Any.
GuardLike: TypeAlias = Callable[[Any], bool | Coroutine[Any, Any, bool]] | GuardFn | Guard | str


def guard_name(guard: Any) -> str:
    """Return the name under which a guard is reported."""
    if isinstance(guard, str):
        return guard
    if isinstance(guard, Guard):
        return str(guard)
    return str(getattr(guard, "__name__", guard))


def all_of(*guards: GuardLike) -> Guard:
    """Combine guards so that all must agree; the first that refuses ends the evaluation.

    Example:
        >>> from flowlet import all_of, not_
        >>> print(all_of("is_paid", not_("is_frozen")))
        all_of(is_paid, not_(is_frozen))
    """
    return Guard("all_of", guards)


def any_of(*guards: GuardLike) -> Guard:
    """Combine guards so that one must agree; the first that does ends the evaluation.

    Example:
        >>> from flowlet import any_of
        >>> print(any_of("is_vip", "is_paid"))
        any_of(is_vip, is_paid)
    """
    return Guard("any_of", guards)


def not_(guard: GuardLike, /) -> Guard:
    """Turn a guard's answer round.

    Example:
        >>> from flowlet import not_
        >>> print(not_("is_frozen"))
        not_(is_frozen)
    """
    return Guard("not_", (guard,))


class Check(msgspec.Struct, frozen=True, eq=False):
    """A guard in its place before one transition, with its names looked up and its parameters bound.

    Attributes:
        name: what `TransitionNotAllowed.guard` says when a single guard refuses.
        leaf: the callback, when it is a single guard.
        kind: how the operands are combined, when it is a combination.
    """

    name: str
    leaf: Callback | None = None
    kind: Literal["all_of", "any_of", "not_"] | None = None
    operands: tuple[Check, ...] = ()

    @property
    def awaits(self) -> bool:
        """It may wait for something."""
        return self.leaf.awaits if self.leaf is not None else any(o.awaits for o in self.operands)

    @property
    def takes(self) -> bool:
        """It takes more than the machine."""
        return not self.leaf.alone if self.leaf is not None else any(o.takes for o in self.operands)

    async def refusal(
        self, machine: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], moment: Moment
    ) -> str | None:
        """Evaluate; return None when it agrees, else the name of what refused."""
        leaf = self.leaf
        if leaf is not None:
            if not leaf.passes:
                args, kwargs = leaf.pick(args, kwargs, moment)
            try:
                answer = leaf.function(machine, *args, **kwargs)
                if leaf.is_async:
                    answer = await answer
            except Exception as error:
                raise guard_failure(machine, self.name, error) from error
            if answer is not True and answer is not False and not leaf.is_async:
                refuse_awaitable(answer, f"guard {self.name!r}")
            return None if answer else self.name
        if self.kind == "all_of":
            for operand in self.operands:
                refused = await operand.refusal(machine, args, kwargs, moment)
                if refused is not None:
                    return refused
            return None
        for operand in self.operands:
            if await operand.refusal(machine, args, kwargs, moment) is None:
                return None if self.kind == "any_of" else self.name
        return self.name if self.kind == "any_of" else None


def guard_failure(machine: Any, guard: str, error: Exception) -> HookFailed:
    """Build what the exception of a guard surfaces as."""
    text = f"guard {guard!r} of {type(machine).__name__} failed ({error!r}); the transition was not made"
    return HookFailed(text, committed=False)


def guard_leaves(guard: Any) -> list[Any]:
    """List the functions and names that a guard expression is made of."""
    if isinstance(guard, Guard):
        return [leaf for operand in guard.operands for leaf in guard_leaves(operand)]
    return [guard]
