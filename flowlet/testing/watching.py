"""Watching: whoever waits for a change hears of it, also of one that came before the wait."""

from __future__ import annotations

import anyio
import pytest

from flowlet.store import Signal, Store, Write
from flowlet.testing.calls import RUN, create, needs
from flowlet.testing.fixtures import StoreFixtures

__all__ = ["WatchChecks"]

_NEEDS = {"signal": ("signals",), "released": ("leases",)}


class WatchChecks(StoreFixtures):
    """Watching: whoever waits for a change hears of it, also of one that came before the wait."""

    async def test_the_first_look_returns_at_once(self, store: Store) -> None:
        with anyio.fail_after(self.patience):
            seen = await store.watch(-1, 60)
        assert seen >= 0

    async def test_a_watch_ends_when_nothing_happens(self, store: Store) -> None:
        with anyio.fail_after(self.patience):
            seen = await _rest(store, await store.watch(-1, 60))
            assert await store.watch(seen, 0) == seen

    @pytest.mark.parametrize("event", ["due", "due later", "signal", "end", "given back", "released", "several"])
    async def test_a_watch_sees(self, store: Store, event: str) -> None:
        needs(store.capabilities, *_NEEDS.get(event, ()))
        await create(store, "a", wake=0.0, owner="w")
        write = {
            "due": Write(id="b", expect=0, create=RUN, records=[b""], wake=0.0),
            "due later": Write(id="b", expect=0, create=RUN, records=[b""], wake=9999.0),
            "signal": Write(id="a", signals=[Signal("t", b"")]),
            "end": Write(id="a", close=True),
            "given back": Write(id="a", owner=None),
            "several": Write(id="a", expect=1, records=[b"2"], close=True, owner=None),
        }.get(event)
        with anyio.fail_after(self.patience):
            seen = await _rest(store, await store.watch(-1, 60))
        if write is None:
            await store.release("w")
        else:
            await store.append([write])
        with anyio.fail_after(self.patience):
            now = await store.watch(seen, 60)  # it happened before the watch began, and is not lost
            assert now != seen
            now = await _rest(store, now)
            woken: list[int] = []

            async def watch() -> None:
                woken.append(await store.watch(now, 60))

            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(watch)
                await anyio.sleep(0.02)
                await create(store, "c", wake=0.0)
        assert len(woken) == 3
        assert all(count != now for count in woken)


async def _rest(store: Store, seen: int) -> int:
    """Wait until the counter stands still for a moment: it may move for no reason, but not all the time."""
    while (count := await store.watch(seen, 0.05)) != seen:
        seen = count
    return seen
