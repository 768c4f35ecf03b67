"""Outcomes are given out in order if asked, and hold workers up when nobody takes them."""

from __future__ import annotations

import anyio
import pytest

from flowlet.core.bulk import Outcome
from flowlet.runtime.outlet import Outlet

pytestmark = pytest.mark.anyio


def outcome(index: int) -> Outcome[int, int]:
    return Outcome(index, index, index)


async def take_all(outlet: Outlet) -> list[int]:
    found = []
    while (one := await outlet.take()) is not None:
        found.append(one.index)
    return found


@pytest.mark.parametrize(("ordered", "expected"), [(False, [2, 0, 1]), (True, [0, 1, 2])])
async def test_order(ordered: bool, expected: list[int]) -> None:
    outlet = Outlet(10, ordered)
    for index in (2, 0, 1):
        outlet.put(outcome(index))
    outlet.end()
    assert await take_all(outlet) == expected


async def test_what_is_behind_a_gap_is_given_out_at_the_end() -> None:
    outlet = Outlet(10, True)
    for index in (3, 1):
        outlet.put(outcome(index))
    outlet.end()
    assert await take_all(outlet) == [1, 3]


@pytest.mark.parametrize("ordered", [False, True])
async def test_who_puts_in_waits_for_room(ordered: bool) -> None:
    outlet = Outlet(2, ordered)
    outlet.put(outcome(0))
    assert not outlet.is_full
    outlet.put(outcome(1))
    assert outlet.is_full
    passed = []

    async def wait() -> None:
        await outlet.wait_for_room()
        passed.append(True)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert passed == []
        await outlet.take()
        await anyio.wait_all_tasks_blocked()
        assert passed == [True]


async def test_the_end_lets_everybody_go_on() -> None:
    outlet = Outlet(1, False)
    outlet.put(outcome(0))
    async with anyio.create_task_group() as group:
        group.start_soon(outlet.wait_for_room)
        await anyio.wait_all_tasks_blocked()
        outlet.end()
    assert await take_all(outlet) == [0]


async def test_who_takes_waits_for_the_next_one() -> None:
    outlet = Outlet(1, False)
    found: list[int] = []

    async def take() -> None:
        found.extend(await take_all(outlet))

    async with anyio.create_task_group() as group:
        group.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        outlet.put(outcome(0))
        await anyio.wait_all_tasks_blocked()
        outlet.put(outcome(1))
        outlet.end()
    assert found == [0, 1]
