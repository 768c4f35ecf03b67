"""Running something over a store that is lost in the middle, again and again, until it has ended.

An *incarnation* is a `Flowlet` of its own on an event loop of its own over the same data. It ends when the
store falls silent at a chosen append, before or after having stored it; then nothing that it still does
reaches the store, as if its process had died.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import anyio
import structlog

from flowlet import Flowlet, Registry
from flowlet.errors import Conflict, StoreUnavailable
from flowlet.store import Capabilities, Claims, Head, Stored, Work, Write
from flowlet.stores.memory import MemoryStore

T = TypeVar("T")
Way = Literal["execute", "start"]


class Crash(NamedTuple):
    """The store is lost at the n-th append of a run: ``before`` it is stored, or after."""

    n: int
    before: bool


class Silent:
    """A store that may fall silent; delegates to another one."""

    def __init__(self, store: MemoryStore, crash: Crash | None) -> None:
        self._store = store
        self._crash = crash
        self._appends = 0
        self.lost = anyio.Event()
        # What outlives an incarnation is what the store has acknowledged, nothing else.
        self.capabilities = Capabilities(durable=True)

    def lose_next(self, *, before: bool) -> None:
        """Fall silent at the next append of a run."""
        self._crash = Crash(self._appends + 1, before)

    async def _reach(self) -> None:
        if self.lost.is_set():
            await anyio.sleep_forever()

    def _check(self) -> None:
        if self.lost.is_set():
            raise StoreUnavailable("it has fallen silent")

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        await self._reach()
        self._appends += any(write.create is None or write.create.kind == "run" for write in writes)
        last = self._crash is not None and self._appends == self._crash.n
        if last and self._crash is not None and self._crash.before:
            self.lost.set()
            await self._reach()
        try:
            await self._store.append(writes, work=work)
        except Conflict:
            if last:  # it was not stored: a signal came in, and the run looks at that first
                self.lose_next(before=False)
            raise
        if last:
            self.lost.set()
        await self._reach()

    async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Stored | None:
        await self._reach()
        return await self._store.load(id, after=after, limit=limit)

    async def scan(self, **options: Any) -> Sequence[Head]:
        await self._reach()
        return await self._store.scan(**options)

    async def claim(self, worker: str, /, **options: Any) -> Claims:
        self._check()  # a claim under way is waited for
        return await self._store.claim(worker, **options)

    async def heartbeat(self, worker: str, lease: float, /) -> Sequence[str]:
        await self._reach()
        return await self._store.heartbeat(worker, lease)

    async def release(self, worker: str, /, ids: Sequence[str] | None = None) -> None:
        self._check()
        await self._store.release(worker, ids)

    async def now(self) -> float:
        return await self._store.now()

    async def watch(self, seen: int, timeout: float, /) -> int:
        await self._reach()
        return await self._store.watch(seen, timeout)

    async def prune(self, *, closed_before: float, limit: int = 1000) -> int:
        return await self._store.prune(closed_before=closed_before, limit=limit)

    async def close(self) -> None:
        await self._store.close()


class Lives:
    """The incarnations of one run.

    Attributes:
        number: of the one that lives, from 1.
        effects: what the steps did: the incarnation, the idempotency key's end, the attempt.
        crashes: how many incarnations have ended early.
    """

    def __init__(self, backend: str) -> None:
        self.number = 0
        self.crashes = 0
        self.effects: list[tuple[int, str, int]] = []
        self._backend = backend
        self._store = MemoryStore(clock=self._clock)

    def _clock(self) -> float:
        # Between two incarnations a minute passes, so that the leases of the former have run out.
        return time.time() + 60 * self.number

    def run(
        self, registry: Registry, definition: Any, inputs: Sequence[Any], crashes: Sequence[Crash], way: Way
    ) -> tuple[Any, Stored]:
        """Run to the end; return the outcome (a value or an exception) and what the store has of it."""
        for crash in (*crashes, None):
            self.number += 1
            outcome: list[Any] = []
            anyio.run(self._live, registry, definition, inputs, crash, way, outcome, backend=self._backend)
            if outcome:
                break
            self.crashes += 1
        stored = anyio.run(self._store.load, "r")
        assert stored is not None
        return outcome[0], stored

    async def _live(
        self, registry: Registry, definition: Any, inputs: Sequence[Any], crash: Crash | None, way: Way, out: list[Any]
    ) -> None:
        store = Silent(self._store, crash)
        async with Flowlet(store, registry=registry, grace=0) as flow, anyio.create_task_group() as group:

            async def see_it_end() -> None:
                if way == "execute":
                    value = await outcome_of(lambda: flow.execute(definition, *inputs, id="r"))
                else:
                    value = await outcome_of(lambda: result_of(flow, definition, inputs))
                if not store.lost.is_set():
                    out.append(value)
                store.lost.set()

            group.start_soon(see_it_end)
            with anyio.fail_after(20):
                await store.lost.wait()
            group.cancel_scope.cancel()


async def result_of(flow: Flowlet, definition: Any, inputs: Sequence[Any]) -> Any:
    return await (await flow.start(definition, *inputs, id="r")).result()


async def outcome_of(main: Callable[[], Awaitable[T]]) -> T | Exception:
    try:
        return await main()
    except Exception as error:
        return error


def drop_event(logger: Any, method: str, event: Any) -> Any:
    """Keep the log of what is expected here out of the output."""
    raise structlog.DropEvent
