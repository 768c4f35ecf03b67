"""Tasks of flowlet's own, on both loops: they outlive their spawner's scopes and never let an error escape."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from flowlet.core.current import machine_context, run_context
from flowlet.runtime.tasks import Latch, Task, current_task_function, is_loop_running, loop_token, spawn

pytestmark = pytest.mark.anyio


def fail(error: BaseException) -> None:
    raise AssertionError(f"unexpected: {error!r}")


async def test_a_latch_lets_present_and_future_waiters_go_on() -> None:
    latch = Latch()
    passed: list[int] = []

    async def wait(n: int) -> None:
        await latch.wait()
        passed.append(n)

    async with anyio.create_task_group() as group:
        group.start_soon(wait, 1)
        group.start_soon(wait, 2)
        await anyio.wait_all_tasks_blocked()
        assert passed == []
        assert not latch.is_set
        latch.set()
        latch.set()
    await latch.wait()
    assert sorted(passed) == [1, 2]


async def test_a_task_runs_and_says_when_it_is_done() -> None:
    done: list[Task] = []
    ran: list[int] = []

    async def main() -> None:
        await anyio.lowlevel.checkpoint()
        ran.append(1)

    task = spawn(main, fail, done.append)
    assert not task.done.is_set
    await task.done.wait()
    assert ran == [1]
    assert done == [task]


@pytest.mark.parametrize("kind", [ValueError, BaseExceptionGroup, GeneratorExit])
async def test_an_error_goes_to_its_listener_and_nowhere_else(kind: Any) -> None:
    heard: list[BaseException] = []
    error = kind("x", [ValueError()]) if kind is BaseExceptionGroup else kind("x")

    async def main() -> None:
        raise error

    task = spawn(main, heard.append)
    await task.done.wait()
    assert heard == [error]


async def test_a_cancelled_task_is_done_and_no_error() -> None:
    began = anyio.Event()
    cleaned: list[int] = []

    async def main() -> None:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append(1)

    task = spawn(main, fail)
    await began.wait()
    task.cancel()
    await task.done.wait()
    assert cleaned == [1]
    task.cancel()  # too late: nothing happens


async def test_a_task_that_is_cancelled_before_it_began_is_done_too() -> None:
    done: list[Task] = []

    async def main() -> None:
        await anyio.sleep_forever()

    task = spawn(main, fail, done.append)
    task.cancel()
    with anyio.fail_after(10):
        await task.done.wait()
    assert done == [task]


async def test_a_task_outlives_the_scope_that_it_was_spawned_in() -> None:
    go_on = anyio.Event()
    ran: list[int] = []

    async def main() -> None:
        await go_on.wait()
        ran.append(1)

    with anyio.CancelScope() as scope:
        task = spawn(main, fail)
        await anyio.lowlevel.checkpoint()
        scope.cancel()
    async with anyio.create_task_group() as group:
        group.cancel_scope.cancel()
        second = spawn(main, fail)
    go_on.set()
    await task.done.wait()
    await second.done.wait()
    assert ran == [1, 1]


async def test_a_task_belongs_to_no_run_or_machine_of_its_spawner() -> None:
    seen: list[Any] = []
    first: Any = object()
    token, other = run_context.set(first), machine_context.set(first)

    async def main() -> None:
        seen.extend([run_context.get(), machine_context.get()])

    try:
        await spawn(main, fail).done.wait()
        assert run_context.get() is first
    finally:
        run_context.reset(token)
        machine_context.reset(other)
    assert seen == [None, None]


async def test_the_current_task_and_the_loop_can_be_told_apart() -> None:
    current = current_task_function()
    mine, token = current(), loop_token()
    seen: list[Any] = []

    async def other() -> None:
        seen.extend([current(), loop_token()])

    await spawn(other, fail).done.wait()
    assert mine is current()
    assert seen[0] is not mine
    assert seen[0] is not None
    assert seen[1] is token


async def test_whether_a_loop_runs_is_told_for_this_thread() -> None:
    assert is_loop_running()
    elsewhere: list[bool] = []
    thread = threading.Thread(target=lambda: elsewhere.append(is_loop_running()))
    thread.start()
    thread.join()
    assert elsewhere == [False]
    assert await anyio.to_thread.run_sync(is_loop_running) is False


def test_no_loop_runs_here() -> None:
    assert not is_loop_running()
