"""Deleting what ended long ago, beside work that goes on.

Law: it deletes through `Store.prune` alone, in batches that are short and as far apart as they were
long, so that whoever writes meanwhile waits for a moment and never for the whole. Between two batches it
holds nothing: cut off there, it has deleted a little less.
"""

from __future__ import annotations

from time import perf_counter

import anyio

from flowlet.store import Store

_AIM = 0.02
"""Seconds that a batch is meant to take."""

_FIRST, _LARGEST = 20, 10_000
"""Entities of a batch: the first one, before anything is known of the store, and the most."""


async def prune(store: Store, age: float, limit: int | None) -> int:
    """Delete what was closed more than ``age`` seconds ago by the store's clock; return how many entities.

    Args:
        limit: at most so many, or None.
    """
    closed_before = await store.now() - age
    pruned, size = 0, _FIRST
    while limit is None or pruned < limit:
        wanted = size if limit is None else min(size, limit - pruned)
        began = perf_counter()
        count = await store.prune(closed_before=closed_before, limit=wanted)
        took = perf_counter() - began
        pruned += count
        # A store may delete less than it was asked for, to keep a batch short: only none means that none is left.
        if not count:
            break
        size = _next_size(count, took)
        await anyio.sleep(took)
    return pruned


def _next_size(count: int, took: float) -> int:
    """Return the size that the next batch should have to take about `_AIM` seconds, by what this one took.

    It shrinks at once and grows by half at most: a short batch may have been luck, a long one is a writer
    that waited.
    """
    if took > _AIM:
        return max(1, int(count * _AIM / took))
    return min(_LARGEST, count + max(1, count // 2))
