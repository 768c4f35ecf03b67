"""The store has done what it was asked, and the answer is lost: a run knows its own records again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
import structlog
import workloads
from evidence import check, read_effects
from workloads import WORKLOADS, Refused, Slip, registries

from flowlet import Flowlet
from flowlet.errors import StoreUnavailable
from flowlet.runtime import journal
from flowlet.store import Capabilities, Stored, Work, Write
from flowlet.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

Fault = Literal["reply", "write"]
AGAIN = 6  # times that an append is asked for again before it is given up

FAULTS: dict[str, list[Fault]] = {
    "once": ["reply"],
    "and it cannot be asked": ["reply", "write", "write"],
    "after a lost write, and again": ["write", "reply", "reply"],
    "until it is given up": ["reply"] + ["write"] * AGAIN,
}


class LosingStore(MemoryStore):
    """Loses, from the n-th append of a run on, some writes and replies.

    Attributes:
        appends: so many of runs were asked for.
    """

    def __init__(self, at: int, faults: Sequence[Fault]) -> None:
        super().__init__()
        self.capabilities = Capabilities(durable=True)  # like a server elsewhere
        self.appends = self.lost = 0
        self._at = at
        self._faults = list(faults)

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        if any(write.create is not None and write.create.kind == "definition" for write in writes):
            await super().append(writes, work=work)
            return
        self.appends += 1
        fault = self._faults.pop(0) if self.appends >= self._at and self._faults else None
        self.lost += fault is not None
        if fault == "write":
            raise StoreUnavailable("the write was lost")
        await super().append(writes, work=work)
        if fault == "reply":
            raise StoreUnavailable("the reply was lost")


@pytest.fixture(autouse=True)
def _at_once_and_quietly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(journal, "_PAUSES", (0.0,) * AGAIN)
    structlog.configure(processors=[drop])
    yield
    structlog.reset_defaults()


def drop(logger: Any, method: str, event: Any) -> Any:
    raise structlog.DropEvent


async def live(name: str, effects: Path, at: int, faults: Sequence[Fault], way: str) -> tuple[Stored, LosingStore]:
    """See a run to its end; return what the store has of it, and the store."""
    effects.unlink(missing_ok=True)
    workloads.effects_file = str(effects)
    workload = WORKLOADS[name]
    store = LosingStore(at, faults)
    flow = Flowlet(store, registry=registries[name], lease=0.5)
    flow.provide(workloads.Workshop, workloads.Workshop())
    value: Any = None
    with anyio.fail_after(20):
        async with flow:
            while value is None:
                try:
                    if way == "execute":
                        value = await flow.execute(workload.definition, 7, id="o-1")
                    else:
                        value = await (await flow.start(workload.definition, 7, id="o-1")).result()
                except Refused as error:
                    value = error
                except StoreUnavailable:
                    await anyio.sleep(0.01)  # it was given up: the user asks again
    assert isinstance(value, Slip if workload.failing is None else Refused)
    stored = await store.load("o-1")
    assert stored is not None
    return stored, store


@pytest.mark.parametrize(("faults", "way"), [(f, "execute") for f in FAULTS] + [("once", "start")])
@pytest.mark.parametrize("name", ["three", "three_failing", "retrying", "class", "parallel", "parallel_failing"])
async def test_a_lost_reply_changes_nothing(tmp_path: Path, name: str, faults: str, way: str) -> None:
    effects = tmp_path / "effects"
    undisturbed, store = await live(name, effects, 1, [], way)
    check(WORKLOADS[name], undisturbed, read_effects(effects), crashes=0)
    for at in range(1, store.appends + 1):
        stored, losing = await live(name, effects, at, FAULTS[faults], way)
        # What ends at the same time is one append, so that there may be one or two less of them.
        assert losing.lost or (WORKLOADS[name].width > 1 and at > store.appends - 3), "nothing was lost"
        assert stored.head.version == undisturbed.head.version
        # A run that is given up stops its parallel steps, and does those again that had not ended.
        given_up = faults == "until it is given up" and WORKLOADS[name].width > 1
        check(WORKLOADS[name], stored, read_effects(effects), crashes=int(given_up))
