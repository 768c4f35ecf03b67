"""Bulk operations against a loop: whatever items fail, hang or are cut off, the account is that of the loop."""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
import msgspec
import pytest
from bulk_evidence import recorded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowlet import Flowlet, Retry
from flowlet.config import BulkConfig, Config
from flowlet.core.bulk import BulkReport, Outcome
from flowlet.errors import IdConflict
from flowlet.stores import open_store

ONCE = Config(bulk=BulkConfig(retry_attempts=1))
"""What fails here fails at once, unless a test says otherwise."""


class Item(msgspec.Struct):
    """An item, and how it behaves.

    Attributes:
        fails: so many of its attempts fail.
        turns: of the event loop that an attempt takes.
    """

    number: int
    fails: int = 0
    turns: int = 0


class World:
    """Does items, and counts."""

    def __init__(self) -> None:
        self.attempts: Counter[int] = Counter()
        self.under_way = self.most = self.calls = 0
        self.hang_at = -1

    async def do(self, item: Item) -> int:
        self.calls += 1
        if self.calls == self.hang_at:
            await anyio.sleep_forever()
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            self.attempts[item.number] += 1
            for _ in range(item.turns):
                await anyio.sleep(0)
            if self.attempts[item.number] <= item.fails:
                raise ValueError(item.number)
            return item.number * 3
        finally:
            self.under_way -= 1


@st.composite
def items_of(draw: st.DrawFn, most: int = 40) -> list[Item]:
    behaviour = draw(st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 2, 9]), st.integers(0, 3)), max_size=most))
    return [Item(n, *b) for n, b in enumerate(behaviour)]


def fails_for_good(items: list[Item], attempts: int) -> list[int]:
    return [item.number for item in items if item.fails >= attempts]


class Asked(msgspec.Struct):
    """How a bulk operation is done."""

    concurrency: int
    attempts: int
    ordered: bool
    as_stream: bool
    backend: str


asked = st.builds(
    Asked,
    st.integers(1, 12),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["asyncio", "trio"]),
)
examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def begin(flow: Flowlet, world: World, items: list[Item], how: Asked, **options: Any) -> Any:
    async def stream() -> Any:
        for item in items:
            yield item

    return flow.bulk(
        world.do,
        stream() if how.as_stream else items,
        concurrency=how.concurrency,
        retry=Retry(attempts=how.attempts, wait=0),
        ordered=how.ordered,
        **options,
    )


def judge_report(report: BulkReport[Item], items: list[Item], attempts: int) -> None:
    failed = fails_for_good(items, attempts)
    assert (report.status, report.total, report.left) == ("completed", len(items), 0)
    assert (report.succeeded, report.failed) == (len(items) - len(failed), len(failed))
    assert [(e.index, e.item.number) for e in report.errors] == [(n, n) for n in failed]


def judge_outcomes(found: list[Outcome[Item, int]], items: list[Item], how: Asked) -> None:
    failed = fails_for_good(items, how.attempts)
    assert sorted(o.index for o in found) == list(range(len(items)))
    if how.ordered:
        assert [o.index for o in found] == list(range(len(items)))
    assert {o.index: o.value for o in found if o.error is None} == {
        n: 3 * n for n in range(len(items)) if n not in failed
    }
    assert sorted(o.index for o in found if o.error is not None) == failed


@examples
@given(items_of(), asked)
def test_without_an_id(items: list[Item], how: Asked) -> None:
    async def main() -> None:
        flow, world = Flowlet(config=ONCE), World()
        judge_report(await begin(flow, world, items, how), items, how.attempts)
        assert world.most <= how.concurrency
        assert world.attempts == Counter({i.number: min(i.fails + 1, how.attempts) for i in items})
        judge_outcomes([o async for o in begin(flow, World(), items, how)], items, how)

    anyio.run(main, backend=how.backend)


@examples
@given(items_of(), asked, st.integers(1, 10))
def test_stopping_after_failures(items: list[Item], how: Asked, most: int) -> None:
    async def main() -> None:
        world = World()
        report = await begin(Flowlet(config=ONCE), world, items, how, on_error=most)
        failed = len(fails_for_good(items, how.attempts))
        assert report.failed <= failed
        if failed < most:
            judge_report(report, items, how.attempts)
        else:
            assert report.status == "failed"
            assert most <= report.failed < most + how.concurrency
        assert world.under_way == 0

    anyio.run(main, backend=how.backend)


@examples
@given(items_of(), asked, st.lists(st.integers(1, 30), max_size=3), st.integers(1, 20))
def test_with_an_id_and_cut_off_again_and_again(
    items: list[Item], how: Asked, cuts: list[int], batch_size: int
) -> None:
    for item in items:
        item.fails = 9 if item.fails > 0 else 0  # attempts begin anew with each call

    async def main() -> None:
        store, world = open_store("memory://"), World()
        for cut in cuts:
            world.hang_at = world.calls + cut
            async with Flowlet(store, config=ONCE) as flow:
                with anyio.move_on_after(0.02):
                    await begin(flow, world, items, how, id="june", batch_size=batch_size)
            assert world.under_way == 0
            once = await recorded(store, "june")
            assert set(once.values()) <= {1}
        world.hang_at = -1
        before, done = Counter(world.attempts), await recorded(store, "june")
        async with Flowlet(store, config=ONCE) as flow:
            judge_outcomes([o async for o in begin(flow, world, items, how, id="june")], items, how)
            assert not set(world.attempts - before) & set(done), "an item on record was done again"
            assert await recorded(store, "june") == Counter(range(len(items)))
            calls = world.calls
            judge_report(await begin(flow, world, items, how, id="june"), items, how.attempts)
            assert world.calls == calls

    anyio.run(main, backend=how.backend)


@examples
@given(items_of(), asked, st.integers(2, 4))
def test_several_at_once(items: list[Item], how: Asked, processes: int) -> None:
    for item in items:
        item.fails = 9 if item.fails > 0 else 0

    async def main() -> None:
        store, world, reports = open_store("memory://"), World(), []

        async def work() -> None:
            async with Flowlet(store, config=ONCE) as flow:
                reports.append(await begin(flow, world, items, how, id="june"))

        async with anyio.create_task_group() as group:
            for _ in range(processes):
                group.start_soon(work)
        assert len(reports) == processes
        for report in reports:
            judge_report(report, items, how.attempts)
        assert world.attempts == Counter({i.number: how.attempts if i.fails else 1 for i in items})
        assert await recorded(store, "june") == Counter(range(len(items)))

    anyio.run(main, backend=how.backend)


@examples
@given(items_of(), asked, st.integers(0, 40), st.sampled_from(["changed", "left out", "added"]), st.booleans())
def test_other_items_are_refused(items: list[Item], how: Asked, place: int, change: str, complete: bool) -> None:
    for item in items:
        item.fails = 0
    place = min(place, len(items))
    if place == len(items) and change != "added":
        change = "added"
    tail = items[place:] if change == "added" else items[place + 1 :]
    others = [*items[:place], *([] if change == "left out" else [Item(1000)]), *tail]

    async def main() -> None:
        store, world = open_store("memory://"), World()
        async with Flowlet(store, config=ONCE) as flow:
            await begin(flow, world, items, how, id="june")
            calls = world.calls
            sized = not how.as_stream and len(items) != len(others)
            first = min(len(items), len(others)) if sized else place
            with pytest.raises(IdConflict, match=f"item {first} is the first"):
                await begin(flow, world, others, how, id="june")
            assert world.calls == calls
            judge_report(await begin(flow, world, items, how, id="june"), items, how.attempts)

    anyio.run(main, backend=how.backend)
