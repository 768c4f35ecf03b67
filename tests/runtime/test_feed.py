"""Items from an async iterator: for who waits, one at a time, by one task; no list waits for what will not come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from flowlet.runtime.feed import LULL, Feed, in_lists, in_lists_async, number

pytestmark = pytest.mark.anyio


async def letters() -> AsyncIterator[str]:
    for letter in "abcde":
        yield letter


async def test_each_item_goes_to_one_who_waits() -> None:
    feed = Feed(number(letters()))
    found: list[Any] = []

    async def take() -> None:
        while (pair := await feed.take()) is not None:
            found.append(pair)

    async with anyio.create_task_group() as group:
        group.start_soon(feed.main)
        for _ in range(3):
            group.start_soon(take)
    assert sorted(found) == list(enumerate("abcde"))
    assert await feed.take() is None


async def test_stopping_dismisses_who_waits_and_closes_the_items() -> None:
    closed = []

    async def slow() -> AsyncIterator[str]:
        try:
            await anyio.sleep_forever()
            yield "never"
        finally:
            closed.append(True)

    feed = Feed(number(slow()))
    async with anyio.create_task_group() as group:
        group.start_soon(feed.main)
        group.start_soon(feed.take)
        await anyio.wait_all_tasks_blocked()
        feed.stop()
    assert closed == [True]


def test_lists() -> None:
    assert list(in_lists(enumerate("abc"), 2)) == [(0, [(0, "a"), (1, "b")]), (2, [(2, "c")])]


async def test_a_lull_lets_a_list_go() -> None:
    async def pairs() -> AsyncIterator[Any]:
        yield (0, "a")
        yield LULL
        yield LULL
        yield (4, "b")
        yield (5, "c")
        yield (6, "d")

    found = [batch async for batch in in_lists_async(pairs(), 2)]
    assert found == [(0, [(0, "a")]), (4, [(4, "b"), (5, "c")]), (6, [(6, "d")])]
