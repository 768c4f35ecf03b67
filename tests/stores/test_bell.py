"""The bell wakes who waits, loses no ring and outlives its loop."""

from __future__ import annotations

import anyio
import pytest

from flowlet.stores.bell import Bell


@pytest.mark.anyio
async def test_a_ring_between_two_waits_is_not_lost() -> None:
    bell = Bell()
    seen = await bell.wait(-1, 60)
    bell.ring()
    with anyio.fail_after(5):
        assert await bell.wait(seen, 60) == seen + 1


@pytest.mark.anyio
async def test_all_who_wait_are_woken() -> None:
    bell, woken = Bell(), []

    async def wait() -> None:
        woken.append(await bell.wait(0, 60))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert bell.waiting == 3
            bell.ring()
    assert woken == [1, 1, 1]
    assert bell.waiting == 0


@pytest.mark.anyio
async def test_nobody_rings() -> None:
    assert await Bell().wait(0, 0.01) == 0


@pytest.mark.anyio
async def test_who_is_cancelled_waits_no_more() -> None:
    bell = Bell()
    with anyio.move_on_after(0.01) as scope:
        await bell.wait(0, 60)
    assert scope.cancelled_caught
    assert bell.waiting == 0


def test_another_loop_may_wait_after_the_first() -> None:
    bell = Bell()
    for backend in ("asyncio", "trio", "asyncio"):
        assert anyio.run(bell.wait, bell.count, 0.01, backend=backend) == bell.count
        bell.ring()
