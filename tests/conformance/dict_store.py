"""The smallest store: a dictionary under a `BasicStore`. The tests of the kit break it in many ways."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from anyio.lowlevel import checkpoint

from flowlet.store import BasicStore, Capabilities, Entity, Head, Stored, Work, Write


class DictStore(BasicStore):
    capabilities = Capabilities()

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock=clock)
        self.entities: dict[str, Entity] = {}
        self.last = 0

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        await checkpoint()
        changed = self.apply(writes, self.entities, last=self.last, work=work)
        self.keep(changed)
        self.notify(writes)

    def keep(self, changed: dict[str, Entity | None]) -> None:
        for id, entity in changed.items():
            if entity is None:
                del self.entities[id]
            else:
                self.entities[id] = entity
                self.last = max(self.last, entity.head.order)

    async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Stored | None:
        return self.view(self.entities.get(id), after=after, limit=limit)

    async def scan(self, **question: Any) -> Sequence[Head]:
        return self.select((entity.head for entity in self.entities.values()), **question)
