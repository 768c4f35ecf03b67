"""What a bulk operation has left behind in a store."""

from __future__ import annotations

from collections import Counter

from flowlet.core.bulk_records import KIND, WIDTH, shard_codec
from flowlet.store import Head, Store


async def shard_heads(store: Store, id: str) -> list[Head]:
    """Return the heads of its shards, in the order of the items."""
    heads, after = list[Head](), 0
    while page := await store.scan(kind=KIND, after=after):
        heads += [head for head in page if head.id.startswith(f"{id}/shard-")]
        after = page[-1].order
    return sorted(heads, key=lambda head: int(head.id.rpartition("-")[2]))


async def recorded(store: Store, id: str) -> Counter[int]:
    """Return how often each item is on record, by index; no outcome may be there before its item's digest is."""
    found: Counter[int] = Counter()
    start = 0
    for head in await shard_heads(store, id):
        stored = await store.load(head.id)
        assert stored is not None
        count = 0
        for data in stored.records:
            record = shard_codec.decode(data, "a record")
            count += len(record.digests) // WIDTH
            assert all(ended.place < count for ended in record.ended)
            found.update(start + ended.place for ended in record.ended)
        start += count
    return found
