"""Every mark, bare and called, keeps the type of what it marks."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import assert_type

from flowlet import Retry, compensate, guard, state, step, transition


class Payment:
    id: str = ""


# ---------------------------------------------------------------- step
@step
async def bare(amount: int, *, note: str = "") -> Payment: ...


@step(retry=Retry(attempts=5, wait=0.2), timeout=10)
async def called(amount: int, *, note: str = "") -> Payment: ...


@step(retry=3)
async def counted(amount: int) -> Payment: ...


@step
def plain(amount: int) -> str: ...


@step(name="other", key=str)
def plain_called(amount: int) -> str: ...


async def steps_keep_their_signatures() -> None:
    assert_type(await bare(1, note="x"), Payment)
    assert_type(await called(1, note="x"), Payment)
    assert_type(await counted(1), Payment)
    assert_type(plain(1), str)
    assert_type(plain_called(1), str)

    await bare("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await called("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await called(1, note=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await bare(1, "x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    wrong: int = plain_called(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    assert_type(wrong, int)


as_function: Callable[[int], Awaitable[Payment]] = bare
as_function = called
as_function = counted

step(attempts=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
step(retry="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------- compensate
@compensate(bare)
async def undo(amount: int, bare: Payment) -> None: ...


@compensate(called, retry=Retry(attempts=3), timeout=5)
async def undo_called(amount: int) -> None: ...


@compensate(plain)
def undo_plain(amount: int, error: Exception) -> int: ...


async def compensations_keep_their_signatures() -> None:
    await undo(1, Payment())
    await undo_called(1)
    assert_type(undo_plain(1, ValueError()), int)
    await undo(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await undo_called("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------- state
class Marked:
    @state
    class Bare:
        limit = 3

    @state(initial=True)
    class Called:
        limit = 4

    @guard
    async def bare_guard(self, by: str) -> bool: ...

    @guard(name="other")
    def called_guard(self, by: str) -> bool: ...

    @transition(Bare, Called)
    async def one(self, by: str) -> int: ...

    @transition((Bare, Called), None, guard="bare_guard", event="other")
    async def several(self, by: str) -> int: ...

    @transition("*", Called)
    @transition(Bare, Bare)
    async def stacked(self, *, by: str) -> int: ...


async def members_keep_their_types(marked: Marked) -> None:
    assert_type(Marked.Bare, type[Marked.Bare])
    assert_type(Marked.Bare().limit, int)
    assert_type(Marked.Called().limit, int)
    assert_type(await marked.bare_guard("ann"), bool)
    assert_type(marked.called_guard("ann"), bool)
    assert_type(await marked.one("ann"), int)
    assert_type(await marked.several(by="ann"), int)
    assert_type(await marked.stacked(by="ann"), int)

    await marked.bare_guard(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    marked.called_guard(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await marked.one(by=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await marked.several()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await marked.stacked("ann")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


state(begin=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


class Light(enum.Enum):
    RED = state(initial=True)
    GREEN = state(final=True)


class Crossing:
    @transition(Light.RED, Light.GREEN)
    async def go(self) -> None: ...

    @transition(Light.RED, Light.GREEN)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType, reportUntypedFunctionDecorator]
    def not_async(self) -> None: ...


red: Light = Light.RED
