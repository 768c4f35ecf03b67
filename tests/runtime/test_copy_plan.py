"""Whatever a store may hold, the writes of its copy make the same of another one, cut off anywhere and begun again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import anyio
from dict_store import DictStore
from hypothesis import given, settings
from hypothesis import strategies as st

from flowlet.errors import FlowletError, StoreUnavailable
from flowlet.runtime.copy_plan import facts, new_entity, size_of
from flowlet.runtime.copying import copy
from flowlet.store import UNCHANGED, New, Signal, Store, Stored, Work, Write
from flowlet.stores.memory import MemoryStore

IDS = st.sampled_from(["a", "b", "c"])
WORDS = st.sampled_from(["", "s", "t"])
BYTES = st.binary(max_size=3)
SIGNALS = st.lists(st.builds(Signal, WORDS, BYTES, st.sampled_from([None, "m1", "m2"])), max_size=3)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(UNCHANGED), strategy)


CHANGES = st.fixed_dictionaries(
    {
        "status": maybe(WORDS),
        "state": maybe(WORDS),
        "wake": maybe(st.sampled_from([None, 0.0, 5.0, 1e9])),
        "close": st.sampled_from([False, False, False, True]),
        "snapshot": maybe(BYTES),
        "signals": SIGNALS,
        "consumed": st.integers(0, 4),
    }
)
STEPS = st.lists(st.tuples(IDS, st.lists(BYTES, max_size=12), CHANGES), min_size=1, max_size=12)


class Fickle(DictStore):
    """Does not answer to one of its appends."""

    fails_at, appends = -1, 0

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        self.appends += 1
        if self.appends == self.fails_at:
            raise StoreUnavailable("gone")
        await super().append(writes, work=work)


async def fill(store: Store, steps: list[Any]) -> None:
    for id, records, changes in steps:
        stored = await store.load(id, limit=0)
        if stored is None:
            new = New("machine" if id == "c" else "run", "x")
            write = Write(id=id, expect=0, create=new, records=[b"first", *records], **changes)
        else:
            write = Write(id=id, expect=stored.head.version if records else None, records=records, **changes)
        with suppress(FlowletError):
            await store.append([write])


async def everything(store: Store) -> list[Any]:
    found = []
    for head in await store.scan():
        stored = await store.load(head.id)
        assert stored is not None
        inbox = (list(stored.signals), stored.snapshot, stored.snapshot_version)
        found.append((head.id, *facts(head), head.wake, list(stored.records), *inbox))
    return found


async def check(steps: list[Any], fails_at: int) -> None:
    source, target = MemoryStore(), Fickle()
    await fill(source, steps)
    target.fails_at = fails_at
    with suppress(StoreUnavailable):
        await copy(source, target)
    report = await copy(source, target)
    assert await everything(target) == await everything(source)
    again = await copy(source, target)
    assert (again.copied, again.continued, again.digest) == (0, 0, report.digest)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(STEPS, st.integers(0, 8))
def test_a_copy_is_the_same(steps: list[Any], fails_at: int) -> None:
    anyio.run(check, steps, fails_at)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(STEPS)
def test_each_entity_is_written_in_order_and_told_at_its_end_how_it_stands(steps: list[Any]) -> None:
    async def plans() -> list[tuple[Stored, list[Write]]]:
        store = MemoryStore()
        await fill(store, steps)
        found = [await store.load(head.id) for head in await store.scan()]
        return [(stored, new_entity(stored)) for stored in found if stored is not None]

    for stored, writes in anyio.run(plans):
        *others, last = writes
        assert [record for write in writes for record in write.records] == list(stored.records)
        assert writes[0].create is not None
        assert (last.status, last.state, last.close) == (
            stored.head.status,
            stored.head.state,
            stored.head.closed is not None,
        )
        assert not last.signals, "they would have it fall due"
        assert all((write.status, write.close) == (UNCHANGED, False) for write in others)
        assert all(write.fence == 0 for write in writes if write.create is None)
        assert all(write.wake in (None, UNCHANGED) for write in writes)
        sizes = sum(map(len, stored.records)) + sum(len(signal.payload) for signal in stored.signals)
        assert sum(map(size_of, writes)) == sizes + len(stored.snapshot or b"")
