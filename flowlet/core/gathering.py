"""`gather`: steps, child runs and waits side by side, in the body of a run.

Law: it takes only what a replay can repeat, and it knows that by the code of the coroutines it is given.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar, cast, overload

from flowlet.core.child import Child
from flowlet.core.current import run_context
from flowlet.core.marks import STEP_CODE
from flowlet.core.program import Program, make_caller
from flowlet.core.run import Run
from flowlet.errors import RunError

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")
T6 = TypeVar("T6")

_GATHERABLE = (
    STEP_CODE,
    make_caller(cast(Any, None), cast(Any, None)).__code__,
    *(wait.__code__ for wait in (Run.sleep, Run.sleep_until, Run.receive, Child.result)),
)


@overload
async def gather(a: Awaitable[T1], /) -> tuple[T1]: ...
@overload
async def gather(a: Awaitable[T1], b: Awaitable[T2], /) -> tuple[T1, T2]: ...
@overload
async def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], /) -> tuple[T1, T2, T3]: ...
@overload
async def gather(
    a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], /
) -> tuple[T1, T2, T3, T4]: ...
@overload
async def gather(
    a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], e: Awaitable[T5], /
) -> tuple[T1, T2, T3, T4, T5]: ...
@overload
async def gather(
    a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], e: Awaitable[T5], f: Awaitable[T6], /
) -> tuple[T1, T2, T3, T4, T5, T6]: ...
@overload
async def gather(*awaitables: Awaitable[T]) -> tuple[T, ...]: ...
async def gather(*awaitables: Awaitable[Any]) -> tuple[Any, ...]:
    """Perform several steps in parallel, or wait for several things, in a way that a replay repeats exactly.

    When one fails, the others are cancelled and awaited, and the failure is raised.

    Args:
        awaitables: step calls, such as ``ship(order)``, child runs, ``run.sleep(...)``, ``run.receive(...)`` and
            ``child.result()``; nothing else.

    Returns:
        The results in the order of the arguments.

    Raises:
        RunError: an argument is none of these, or the code is not the body of a run.

    Example:
        >>> from flowlet import gather, step
        >>> @step
        ... async def ship(order: str) -> str:
        ...     return f"label for {order}"
        >>> @step
        ... async def notify(order: str) -> str:
        ...     return f"mail about {order}"
        >>> async def checkout(order: str) -> str:      # the body of a saga
        ...     label, mail = await gather(ship(order), notify(order))
        ...     return label
    """
    scope = run_context.get()
    program = scope if isinstance(scope, Program) and scope.inside is None else None
    strangers = [a for a in awaitables if not (inspect.iscoroutine(a) and a.cr_code in _GATHERABLE)]
    if program is None or strangers:
        for awaitable in awaitables:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
        if program is None:
            raise RunError("gather works in the body of a run; elsewhere use an anyio task group or asyncio.gather")
        raise RunError(
            "gather takes step calls, child runs, run.sleep(), run.receive() and child.result() only, not "
            f"{strangers[0]!r}: mark the function with @step, or await it before"
        )
    return await program.gather(cast("tuple[Coroutine[Any, Any, Any], ...]", awaitables))
