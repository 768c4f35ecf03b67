"""What a body may not do with its steps, because a replay could not repeat it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, Registry, compensate, current_run, gather, step
from flowlet.errors import RunError

pytestmark = pytest.mark.anyio

registry = Registry()
log: list[str] = []


@pytest.fixture(autouse=True)
def _clean() -> None:
    log.clear()


@step
async def take(n: int) -> int:
    log.append(f"take {n}")
    return n


@compensate(take)
async def give_back(n: int) -> None:
    log.append(f"give back {n}")


@step
async def dawdle(n: int) -> int:
    log.append(f"dawdle {n} as {current_run().idempotency_key}")
    await anyio.sleep(30)
    return n


@step
async def fork(n: int) -> int:
    """A step that calls another one in a task of its own, where it is a plain function."""
    got: list[int] = []

    async def call() -> None:
        got.append(await take(n))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await anyio.sleep(0)
    return got[0]


@registry.saga
async def goes_on_after_a_cut(n: int) -> int:
    await take(1)
    with anyio.move_on_after(0.01):
        await dawdle(n)
    return await take(2)


@registry.saga
async def ends_after_a_cut(n: int) -> int:
    await take(1)
    with anyio.move_on_after(0.01):
        await dawdle(n)
    return 0


@registry.saga
async def cuts_off_a_gather(n: int) -> int:
    await take(1)
    with anyio.move_on_after(0.01):
        await gather(dawdle(n), dawdle(n))
    return 0


@registry.saga
async def fails_after_a_cut(n: int) -> int:
    await take(1)
    with anyio.fail_after(0.01):
        await dawdle(n)
    return 0


@registry.saga
async def starts_a_task(n: int) -> int:
    async def call() -> None:
        await take(2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await dawdle(n)
    return 0


@registry.saga
async def forks(n: int) -> int:
    return await fork(n)


async def outline(flow: Flowlet, id: str) -> list[tuple[str, str | None]]:
    return [(r.kind, r.step) async for r in flow.handle(id).history()]


@pytest.mark.parametrize("saga", [goes_on_after_a_cut, ends_after_a_cut, cuts_off_a_gather])
async def test_a_step_cut_off_by_the_body_fails_the_run_and_is_on_record(
    saga: Callable[[int], Awaitable[Any]],
) -> None:
    async with Flowlet(registry=registry) as flow:
        with pytest.raises(RunError, match=r"cut off step 'dawdle'.*@step\(timeout=\.\.\.\)"):
            await flow.execute(saga, 5, id="r")
        assert await flow.handle("r").status() == "compensated"
        cut = [s for kind, s in await outline(flow, "r") if kind == "step_cancelled"]
        assert cut == (["dawdle", "dawdle#2"] if saga is cuts_off_a_gather else ["dawdle"])
    assert log[0] == "take 1"
    assert log[-1] == "give back 1"
    assert "take 2" not in log


async def test_a_timeout_of_the_body_reaches_the_caller_and_the_step_is_on_record() -> None:
    async with Flowlet(registry=registry) as flow:
        with pytest.raises(TimeoutError):
            await flow.execute(fails_after_a_cut, 5, id="r")
        assert ("step_cancelled", "dawdle") in await outline(flow, "r")
    assert log[-1] == "give back 1"


@pytest.mark.parametrize("saga", [goes_on_after_a_cut, cuts_off_a_gather, fails_after_a_cut])
async def test_a_replay_after_a_cut_comes_to_the_same_end(saga: Callable[[int], Awaitable[Any]]) -> None:
    flow = Flowlet(registry=registry)
    async with flow:
        with contextlib.suppress(RunError, TimeoutError):
            await flow.execute(saga, 5, id="r")
        before = await outline(flow, "r")
    # As if the process had died before the last two records: the compensation and the end.
    entity = flow.store._entities["r"]  # type: ignore[attr-defined]
    del entity.records[-2:]
    entity.closed, entity.wake, entity.owner = None, 0.0, None
    flow.store._wait_for(entity)  # type: ignore[attr-defined]
    log.clear()
    async with flow:
        with pytest.raises((RunError, TimeoutError)):
            await flow.handle("r", saga).result()
        assert await outline(flow, "r") == before
    assert log == ["give back 1"]


async def test_a_step_called_from_a_task_of_the_body_is_refused_while_another_runs() -> None:
    async with Flowlet(registry=registry) as flow:
        with pytest.raises(BaseException) as caught:
            await flow.execute(starts_a_task, 5, id="r")
        assert isinstance(caught.value, ExceptionGroup)
        [error] = caught.value.exceptions
        assert isinstance(error, RunError)
        assert "gather" in str(error)
    assert "take 2" not in log


async def test_a_step_called_from_a_task_of_a_step_is_a_plain_function() -> None:
    async with Flowlet(registry=registry) as flow:
        assert await flow.execute(forks, 5, id="r") == 5
        assert [s for kind, s in await outline(flow, "r") if s] == ["fork"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_native_cancellation_of_the_caller_is_no_cut() -> None:
    async with Flowlet(registry=registry) as flow:
        task = asyncio.create_task(flow.execute(forks, 7, id="r"))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert await flow.handle("r", forks).result() == 7
        assert await flow.handle("r").status() == "completed"
