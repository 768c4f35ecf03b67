"""Help for the tests of the runtime: a store that fails when told to, and no waiting between retries of an append."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partialmethod
from pathlib import Path
from typing import Any, Literal

import anyio
import msgspec
import pytest

from flowlet.errors import StoreUnavailable
from flowlet.runtime import journal
from flowlet.store import Store, Work, Write
from flowlet.stores.memory import MemoryStore
from flowlet.stores.sqlite import SQLiteStore
from flowlet.testing import Clock


class FaultyStore:
    """A store that delegates to another, and can be down, lose writes, or lose the replies to writes.

    Attributes:
        down: everything raises `StoreUnavailable`.
        faults: what happens to the next appends of runs: nothing (None), the write gets ``"lost"``, or its
            ``"reply"`` does.
        appended: the run appends that reached the store.
    """

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        # Like a server elsewhere, whatever is behind it: what was recorded is durable before the next effect.
        self.capabilities = msgspec.structs.replace(inner.capabilities, durable=True)
        self.down = False
        self.faults: deque[Literal["lost", "reply"] | None] = deque()
        self.appended: list[Write] = []

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        self._check()
        fault = self.faults.popleft() if self.faults else None
        if fault == "lost":
            raise StoreUnavailable("the write was lost")
        await self._inner.append(writes, work=work)
        self.appended.extend(writes)
        if fault == "reply":
            raise StoreUnavailable("the reply was lost")

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailable("the store is down")

    async def _ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self._check()
        return await getattr(self._inner, name)(*args, **kwargs)

    load = partialmethod(_ask, "load")
    scan = partialmethod(_ask, "scan")
    claim = partialmethod(_ask, "claim")
    heartbeat = partialmethod(_ask, "heartbeat")
    release = partialmethod(_ask, "release")
    now = partialmethod(_ask, "now")
    watch = partialmethod(_ask, "watch")
    prune = partialmethod(_ask, "prune")

    async def close(self) -> None:
        await self._inner.close()


@pytest.fixture
def faulty_store(new_store: Callable[[], Store]) -> FaultyStore:
    """Return a store that fails when told to."""
    return FaultyStore(new_store())


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let an append be repeated at once; return how often it is."""
    pauses = tuple(0.0 for _ in journal._PAUSES)
    monkeypatch.setattr(journal, "_PAUSES", pauses)
    return len(pauses)


async def _until(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.002)


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """Wait until something is so that has no event to wait for."""
    return _until


@pytest.fixture
def clock() -> Clock:
    """Return a clock that is moved by hand."""
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
def timed_store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Callable[[], Store]:
    """Make stores over the same data that go by the clock."""
    if request.param == "memory":
        memory = MemoryStore(clock=clock)
        return lambda: memory
    return lambda: SQLiteStore(tmp_path / "flow.db", synchronous="NORMAL", clock=clock)
