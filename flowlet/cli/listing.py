"""Listing what a store has of a kind: page by page, or again and again.

Law: it reads heads and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from flowlet.cli.output import Column, Output, Table
from flowlet.cli.place import Place
from flowlet.cli.watching import Picture
from flowlet.cli.watching import watch as watch_it
from flowlet.store import Head, Store

_PAGE = 200


async def pages(store: Store, limit: int | None, **condition: Any) -> AsyncIterator[Sequence[Head]]:
    """Yield heads page by page, at most so many of them all together."""
    after = 0
    while limit is None or limit > 0:
        size = _PAGE if limit is None else min(limit, _PAGE)
        heads = await store.scan(after=after, limit=size, **condition)
        if heads:
            yield heads
            after = heads[-1].order
        if len(heads) < size:
            return
        limit = None if limit is None else limit - len(heads)


def list_heads(
    place: Place,
    output: Output,
    condition: dict[str, Any],
    *,
    limit: int | None,
    watch: float | None,
    columns: Sequence[Column],
    row_of: Callable[[Head], dict[str, Any]],
    why_none: Callable[[Store], Awaitable[str]],
) -> None:
    """Show what fits a condition.

    Args:
        condition: of `flowlet.store.Store.scan`; its ``kind`` names what is listed.
        watch: seconds between two looks at most, or None for one look.
        row_of: makes a row of a head.
        why_none: says why there is nothing, and what to do.
    """

    async def look(store: Store) -> Picture:
        rows = [row_of(head) async for page in pages(store, limit, **condition) for head in page]
        lines = Table(output, columns).lines(rows) if rows else [f"no {condition['kind']}s"]
        return Picture({row["id"]: row for row in rows}, lines)

    async def show(store: Store) -> None:
        if watch is not None:
            await watch_it(store, output, watch, lambda: look(store))
            return
        count, table = 0, Table(output, columns)
        async for heads in pages(store, limit, **condition):
            count += len(heads)
            rows = [row_of(head) for head in heads]
            if output.json:
                for row in rows:
                    output.line(row)
            else:
                table.add(rows)
        if not count and not output.json:
            output.note(await why_none(store))

    place.read(show)
