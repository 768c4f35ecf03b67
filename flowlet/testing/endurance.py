"""Heavy writing: the event loop goes on beside it, and the journals come out whole."""

from __future__ import annotations

import gc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel

from flowlet.store import Store, Write
from flowlet.testing.calls import create, found

__all__ = ["EnduranceChecks"]

_TICK = 0.01
_LONGEST = 0.1
_ATTEMPTS = 6
_WRITERS = 32


class EnduranceChecks:
    """Heavy writing: the event loop goes on beside it, and the journals come out whole."""

    async def test_the_loop_never_stands_still_beside_heavy_writing(self, store: Store) -> None:
        """A tick every 10 ms is never more than 100 ms late, but for what the machine itself does.

        One good measurement of several is enough: a store that blocks the loop blocks it in each of them.
        """
        ids = [f"id-{n}" for n in range(_WRITERS)]
        await create(store, *ids)
        versions = dict.fromkeys(ids, 1)
        seen: list[tuple[float, float]] = []
        for _ in range(_ATTEMPTS):
            async with _ticks() as alone:
                await anyio.sleep(0.3)
            async with _ticks() as beside:
                await _write_for(store, 0.7, versions)
            seen.append((max(alone), max(beside)))
            if max(beside) <= max(_LONGEST, 3 * max(alone)):
                break
        else:
            text = ", ".join(f"{beside:.3f} s (without: {alone:.3f} s)" for alone, beside in seen)
            raise AssertionError(f"the event loop stood still for {text}")
        for id, version in versions.items():
            stored = await found(store, id)
            assert (stored.head.version, len(stored.records)) == (version, version)


async def _write_for(store: Store, seconds: float, versions: dict[str, int]) -> None:
    """Append to all entities, one task for each, now and then something large; count what was stored."""
    end = anyio.current_time() + seconds
    large = b"x" * min(1 << 18, store.capabilities.max_payload or 1 << 18)

    async def write(id: str, n: int) -> None:
        while anyio.current_time() < end:
            version = versions[id]
            record = large if (n + version) % 50 == 0 else b"x" * 1000
            await store.append([Write(id=id, expect=version, records=[record], status=str(version))])
            versions[id] += 1
            await anyio.lowlevel.checkpoint()  # a store that never suspends leaves that to its user

    async with anyio.create_task_group() as group:
        for n, id in enumerate(versions):
            group.start_soon(write, id, n)


@asynccontextmanager
async def _ticks() -> AsyncGenerator[list[float]]:
    """Tick while the body runs; the list it gives has the seconds between two ticks."""
    gaps = [0.0]

    async def tick() -> None:
        last = anyio.current_time()
        while True:
            await anyio.sleep(_TICK)
            now = anyio.current_time()
            gaps.append(now - last)
            last = now

    gc.collect()  # that of the tests is not the store's
    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        yield gaps
        await anyio.sleep(_TICK)
        group.cancel_scope.cancel()
