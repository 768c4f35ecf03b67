"""Schedules over stores: fired once, whatever is missed, paused, changed, taken or down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import anyio
import msgspec
import pytest

from flowlet import Flowlet, Registry, Retry, step
from flowlet.errors import (
    ConfigError,
    DecodeError,
    FlowletError,
    IdConflict,
    RunError,
    RunNotFound,
    StoreUnavailable,
)
from flowlet.runtime.schedule_handle import ScheduleInfo
from flowlet.store import Claims, New, Store, Write
from flowlet.stores.memory import MemoryStore
from flowlet.testing import Clock

pytestmark = pytest.mark.anyio

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
Until = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.time = START.timestamp()
    return clock


class Diary:
    """Definitions that note when they were due, in a registry of their own for each process."""

    def __init__(self) -> None:
        self.ticks: list[datetime] = []
        self.under_way = 0
        self.gate: anyio.Event | None = None

    def registry(self, *whens: Any, version: int = 1, **options: Any) -> Registry:
        registry = Registry()

        @registry.saga(version=version)
        async def note(tick: datetime) -> int:
            self.ticks.append(tick)
            self.under_way += 1
            if self.gate is not None:
                await self.gate.wait()
            self.under_way -= 1
            return version

        for n, when in enumerate(whens):
            registry.every(when, name=None if not n else f"note {n}", **options)(note)
        return registry

    @property
    def days(self) -> list[float]:
        """When its runs were due, in days since the beginning."""
        return [(tick - START) / DAY for tick in self.ticks]


@pytest.fixture
def diary() -> Diary:
    return Diary()


async def info(flow: Flowlet, name: str = "note") -> ScheduleInfo:
    return await flow.schedule(name).info()


async def until_fired(flow: Flowlet, when: datetime) -> None:
    """Wait until nothing is due any more at this time."""
    with anyio.fail_after(20):
        while (upcoming := (await info(flow)).next) is not None and upcoming <= when:
            await anyio.sleep(0.002)
        while [run async for run in flow.runs(status=("pending", "running"))]:
            await anyio.sleep(0.002)


# ---------------------------------------------------------------- the usual
async def test_each_day_a_run_is_started(timed_store: Callable[[], Store], clock: Clock, diary: Diary) -> None:
    async with Flowlet(timed_store(), registry=diary.registry(DAY)) as flow:
        for day in range(1, 8):
            await clock.advance(DAY)
            await until_fired(flow, START + day * DAY)
        assert diary.days == [1, 2, 3, 4, 5, 6, 7]
        runs = [run async for run in flow.runs("note")]
        assert [run.id for run in runs] == [f"note@2026-03-0{day}T12:00:00Z" for day in range(2, 9)]
        assert {run.status for run in runs} == {"completed"}
        assert await info(flow) == ScheduleInfo(
            name="note",
            definition="note",
            version="1",
            when="every day",
            next=START + 8 * DAY,
            last=START + 7 * DAY,
            last_run="note@2026-03-08T12:00:00Z",
            paused=False,
            missed="once",
            overlap="allow",
            included=True,
        )


async def test_nothing_is_started_before_its_time(timed_store: Callable[[], Store], clock: Clock, diary: Diary) -> None:
    async with Flowlet(timed_store(), registry=diary.registry(DAY)) as flow:
        await clock.advance(DAY - timedelta(seconds=1))
        await anyio.sleep(0.2)
        assert diary.ticks == []
        await clock.advance(timedelta(seconds=1))
        await until_fired(flow, START + DAY)
        assert diary.days == [1]


async def test_the_clocks_of_berlin(clock: Clock, diary: Diary) -> None:
    clock.time = datetime(2026, 3, 27, 12, tzinfo=UTC).timestamp()
    registry = diary.registry("30 2 * * *", zone="Europe/Berlin")
    async with Flowlet(MemoryStore(clock=clock), registry=registry) as flow:
        for _ in range(4 * 24):
            await clock.advance(HOUR)
            await until_fired(flow, datetime.fromtimestamp(clock.time, UTC))
    assert [tick.strftime("%d %H:%M") for tick in diary.ticks] == ["28 01:30", "29 01:00", "30 00:30", "31 00:30"]


async def test_pipelines_and_graphs_and_inputs(clock: Clock, until: Until) -> None:
    flow = Flowlet(MemoryStore(clock=clock))
    seen: list[object] = []

    class Draft(msgspec.Struct):
        text: str

    @step
    async def fetch(source: str, tick: datetime) -> str:
        return f"{source} {tick:%d}"

    @step
    async def store(fetch: str) -> None:
        seen.append(fetch)

    etl = flow.pipeline("etl", fetch, store)
    review = flow.graph("review", state=Draft)

    @review.node
    async def publish(draft: Draft) -> None:
        seen.append(draft.text)

    review.entry(publish)
    review.final(publish)
    assert flow.every(DAY, args=("web",))(etl) is etl
    flow.every("0 0 * * *", args=(Draft("hello"),))(review)
    async with flow:
        await clock.advance(DAY)
        await until(lambda: len(seen) == 2)
        assert set(seen) == {"web 02", "hello"}


async def test_real_time_without_drift(diary: Diary, until: Until) -> None:
    async with Flowlet(registry=diary.registry(0.05, missed="all")) as flow:
        await until(lambda: len(diary.ticks) >= 10)
        await flow.schedule("note").pause()
    found = sorted(diary.ticks)
    gaps = {b - a for a, b in pairwise(found)}
    assert gaps == {timedelta(milliseconds=50)}


async def test_a_schedule_may_come_while_its_flowlet_is_entered(clock: Clock, diary: Diary, until: Until) -> None:
    registry = diary.registry()
    async with Flowlet(MemoryStore(clock=clock), registry=registry) as flow:
        flow.include(diary_source := diary.registry(DAY, version=2))
        assert diary_source.schedules
        with anyio.fail_after(20):
            while not [schedule async for schedule in flow.schedules()]:
                await clock.advance(1)
                await anyio.sleep(0.01)
        await clock.advance(DAY)
        await until(lambda: diary.ticks)


# ---------------------------------------------------------------- what is missed
@pytest.mark.parametrize(("missed", "expected"), [("skip", [1, 6]), ("once", [1, 5, 6]), ("all", [1, 2, 3, 4, 5, 6])])
async def test_what_was_missed(
    timed_store: Callable[[], Store], clock: Clock, diary: Diary, missed: str, expected: list[int]
) -> None:
    async with Flowlet(timed_store(), registry=diary.registry(DAY, missed=missed)) as flow:
        await clock.advance(DAY)
        await until_fired(flow, START + DAY)
    await clock.advance(4 * DAY + HOUR)
    async with Flowlet(timed_store(), registry=diary.registry(DAY, missed=missed)) as flow:
        await until_fired(flow, START + 5 * DAY)
        await clock.advance(DAY - HOUR)
        await until_fired(flow, START + 6 * DAY)
    assert sorted(diary.days) == expected


async def test_a_thousand_that_were_missed(timed_store: Callable[[], Store], clock: Clock, diary: Diary) -> None:
    async with Flowlet(timed_store(), registry=diary.registry(HOUR, missed="all")):
        pass
    await clock.advance(1000 * HOUR)
    async with Flowlet(timed_store(), registry=diary.registry(HOUR, missed="all")) as flow:
        await until_fired(flow, START + 1000 * HOUR)
    assert sorted(diary.ticks) == [START + n * HOUR for n in range(1, 1001)]


# ---------------------------------------------------------------- runs beside runs
async def test_runs_of_a_schedule_may_overlap(clock: Clock, diary: Diary, until: Until) -> None:
    diary.gate = anyio.Event()
    async with Flowlet(MemoryStore(clock=clock), registry=diary.registry(DAY)):
        for day in (1, 2, 3):
            await clock.advance(DAY)
            await until(lambda day=day: diary.under_way == day)
        diary.gate.set()
        await until(lambda: diary.under_way == 0)


async def test_a_tick_is_left_out_while_an_earlier_run_has_not_ended(
    timed_store: Callable[[], Store], clock: Clock, diary: Diary, until: Until
) -> None:
    diary.gate = anyio.Event()
    registry = diary.registry(DAY, overlap="skip")
    async with Flowlet(timed_store(), registry=registry) as flow:
        await clock.advance(DAY)
        await until(lambda: diary.under_way == 1)
        for day in (2, 3):
            await clock.advance(DAY)
            with anyio.fail_after(10):
                while (await info(flow)).next == START + day * DAY:
                    await anyio.sleep(0.002)
        assert (await info(flow)).last == START + DAY
        diary.gate.set()
        await until(lambda: diary.under_way == 0)
        await clock.advance(DAY)
        await until_fired(flow, START + 4 * DAY)
        assert diary.days == [1, 4]


async def test_a_run_that_was_triggered_counts_as_an_earlier_one(clock: Clock, diary: Diary, until: Until) -> None:
    diary.gate = anyio.Event()
    async with Flowlet(MemoryStore(clock=clock), registry=diary.registry(DAY, overlap="skip")) as flow:
        await flow.schedule("note").trigger()
        await until(lambda: diary.under_way == 1)
        await clock.advance(DAY)
        with anyio.fail_after(10):
            while (await info(flow)).next == START + DAY:
                await anyio.sleep(0.002)
        diary.gate.set()
    assert diary.days == [0]


# ---------------------------------------------------------------- orders
async def test_what_is_paused_fires_nothing_until_it_goes_on(
    timed_store: Callable[[], Store], clock: Clock, diary: Diary
) -> None:
    async with Flowlet(timed_store(), registry=diary.registry(DAY, missed="all")) as flow:
        schedule = flow.schedule("note")
        await schedule.pause()
        await schedule.pause()
        assert await schedule.ticks() == []
        await clock.advance(3 * DAY)
    async with Flowlet(timed_store(), registry=diary.registry(DAY, missed="all")) as flow:
        schedule = flow.schedule("note")
        assert (await schedule.info()).paused
        assert (await schedule.info()).next is None
        await anyio.sleep(0.2)
        await schedule.resume()
        await schedule.resume()
        assert await schedule.ticks(2) == [START + 4 * DAY, START + 5 * DAY]
        await clock.advance(DAY)
        await until_fired(flow, START + 4 * DAY)
    assert diary.days == [4]


async def test_an_order_holds_in_every_process(
    timed_store: Callable[[], Store], clock: Clock, diary: Diary, until: Until
) -> None:
    registry = diary.registry(DAY)
    async with Flowlet(timed_store(), registry=registry), Flowlet(timed_store()) as other:
        await other.schedule("note").pause()
        await clock.advance(3 * DAY)
        await anyio.sleep(0.2)
        assert diary.ticks == []
        await other.schedule("note").resume()
        await clock.advance(DAY)
        await until(lambda: diary.days == [4])


async def test_a_run_is_triggered(timed_store: Callable[[], Store], clock: Clock, diary: Diary) -> None:
    async with Flowlet(timed_store(), registry=diary.registry(DAY)) as flow:
        await clock.advance(HOUR)
        schedule = flow.schedule("note")
        handle = await schedule.trigger()
        assert await handle.result() == 1
        assert diary.ticks == [START + HOUR]
        assert handle.id.startswith("note@")
        assert (await schedule.info()).last_run == handle.id
        assert (await schedule.info()).last is None
        assert (await schedule.info()).next == START + DAY
        named = await schedule.trigger(id="by-hand")
        assert named.id == "by-hand"
        await named.result()
        assert (await schedule.trigger(id="by-hand")).id == "by-hand"
        await schedule.pause()
        await (await schedule.trigger()).result()
        assert (await schedule.info()).paused
        assert len(diary.ticks) == 3


async def test_triggered_twice_under_one_id_it_is_one_run(clock: Clock, diary: Diary) -> None:
    async with Flowlet(MemoryStore(clock=clock), registry=diary.registry(DAY)) as flow:
        await (await flow.schedule("note").trigger(id="by-hand")).result()
        await clock.advance(1)
        assert await (await flow.schedule("note").trigger(id="by-hand")).result() == 1
        assert len(diary.ticks) == 1, "its tick is another time, and it is the same run"
        stored = await flow.store.load("flowlet/schedule/note")
        assert stored is not None
        assert len(stored.records) == 2


async def test_triggered_under_an_id_that_something_else_has(clock: Clock, diary: Diary) -> None:
    registry = diary.registry(DAY)

    @registry.saga
    async def stranger() -> None: ...

    @registry.every(DAY, args=("eu",))
    @registry.saga
    async def report(region: str, tick: datetime) -> None: ...

    async with Flowlet(MemoryStore(clock=clock), registry=registry) as flow:
        await flow.execute(stranger, id="s")
        await flow.execute(report, "us", START, id="us")
        with pytest.raises(IdConflict, match="belongs to a run of 'stranger', not of 'note'"):
            await flow.schedule("note").trigger(id="s")
        with pytest.raises(IdConflict, match="started with another input"):
            await flow.schedule("report").trigger(id="us")
        assert (await info(flow)).last_run is None


async def test_what_was_removed_is_gone_until_it_is_entered_again(
    timed_store: Callable[[], Store], clock: Clock, diary: Diary
) -> None:
    async with Flowlet(timed_store(), registry=diary.registry(DAY)) as flow:
        await flow.schedule("note").remove()
        with pytest.raises(RunNotFound, match="there is no schedule 'note' in this store"):
            await flow.schedule("note").info()
        assert [schedule async for schedule in flow.schedules()] == []
        await clock.advance(2 * DAY)
        await anyio.sleep(0.2)
    assert diary.ticks == []
    async with Flowlet(timed_store(), registry=diary.registry(DAY)) as flow:
        assert (await info(flow)).next == START + 3 * DAY


async def test_ticks_ahead(clock: Clock, diary: Diary) -> None:
    registry = diary.registry("0 2 * * *", zone="America/New_York")
    async with Flowlet(MemoryStore(clock=clock), registry=registry) as flow:
        ahead = await flow.schedule("note").ticks(9)
        assert [tick.strftime("%d %H:%M") for tick in ahead[5:]] == ["07 07:00", "08 07:00", "09 06:00", "10 06:00"]
        assert (await info(flow)).when == "0 2 * * * (America/New_York)"


# ---------------------------------------------------------------- lists
async def test_all_schedules_are_listed(timed_store: Callable[[], Store], clock: Clock, diary: Diary) -> None:
    registry = diary.registry(*[HOUR + timedelta(seconds=n) for n in range(230)])
    async with Flowlet(timed_store(), registry=registry) as flow:
        names = [schedule.name async for schedule in flow.schedules()]
        assert names == ["note", *(f"note {n}" for n in range(1, 230))]


async def test_what_is_no_longer_in_the_code_stays_listed_and_fires_nothing(
    timed_store: Callable[[], Store], clock: Clock, diary: Diary
) -> None:
    async with Flowlet(timed_store(), registry=diary.registry(DAY, HOUR)):
        pass
    await clock.advance(HOUR)
    async with Flowlet(timed_store(), registry=diary.registry(DAY)) as flow:
        await clock.advance(DAY)
        await until_fired(flow, START + DAY)
        listed = {schedule.name: schedule async for schedule in flow.schedules()}
        assert (listed["note"].included, listed["note 1"].included) == (True, False)
        assert listed["note 1"].last is None
        await flow.schedule("note 1").remove()
        assert [schedule.name async for schedule in flow.schedules()] == ["note"]
    assert diary.days == [1]


# ---------------------------------------------------------------- code that changes
async def test_new_times_take_the_place_of_the_old_ones(
    timed_store: Callable[[], Store], clock: Clock, diary: Diary
) -> None:
    async with Flowlet(timed_store(), registry=diary.registry(DAY)):
        pass
    await clock.advance(2 * DAY + HOUR)
    async with Flowlet(timed_store(), registry=diary.registry(12 * HOUR)) as flow:
        assert (await info(flow)).next == START + 2.5 * DAY
        await clock.advance(12 * HOUR)
        await until_fired(flow, START + 2.5 * DAY)
    assert diary.days == [2.5]


async def test_with_the_same_times_what_was_missed_is_made_up_for_by_the_new_code(
    timed_store: Callable[[], Store], clock: Clock, diary: Diary
) -> None:
    async with Flowlet(timed_store(), registry=diary.registry(DAY)):
        pass
    await clock.advance(2 * DAY)
    async with Flowlet(timed_store(), registry=diary.registry(DAY, version=2, missed="all")) as flow:
        await until_fired(flow, START + 2 * DAY)
        assert [run.version async for run in flow.runs()] == ["2", "2"]
    assert sorted(diary.days) == [1, 2]


async def test_older_code_keeps_to_what_the_newer_one_says(
    timed_store: Callable[[], Store], clock: Clock, diary: Diary
) -> None:
    newer = Diary()
    async with Flowlet(timed_store(), registry=diary.registry(DAY)) as old:
        async with Flowlet(timed_store(), registry=newer.registry(2 * DAY)):
            pass
        for day in range(1, 5):
            await clock.advance(DAY)
            await until_fired(old, START + day * DAY)
    assert diary.days == [2, 4]


async def test_what_older_code_does_not_have_it_leaves_to_others(
    timed_store: Callable[[], Store], clock: Clock, diary: Diary, events: list[Any], until: Until
) -> None:
    newer = Diary()
    async with Flowlet(timed_store(), registry=diary.registry(DAY)) as old:
        async with Flowlet(timed_store(), registry=newer.registry(DAY, version=2)):
            pass
        await clock.advance(DAY)
        await until(lambda: [e for e in events if e["event"] == "schedule.not_fired_here"])
        await anyio.sleep(0.3)
        said = [e for e in events if e["event"] == "schedule.not_fired_here"]
        assert [e["reason"] for e in said] == ["its runs are of 'note' version 2, which is not included here"]
        with pytest.raises(FlowletError, match="'note' version 2, which is not included here: trigger it where"):
            await old.schedule("note").trigger()
        async with Flowlet(timed_store(), registry=newer.registry(DAY, version=2)) as new:
            await until_fired(new, START + DAY)
        assert newer.days == [1]
        old.include(diary.registry(version=2))
        await clock.advance(DAY)
        await until(lambda: diary.days == [2])


# ---------------------------------------------------------------- several processes
async def test_two_share_the_ticks_and_fire_none_twice(
    timed_store: Callable[[], Store], clock: Clock, diary: Diary
) -> None:
    registries = [diary.registry(DAY, missed="all") for _ in range(3)]
    async with (
        Flowlet(timed_store(), registry=registries[0]) as flow,
        Flowlet(timed_store(), registry=registries[1]),
        Flowlet(timed_store(), registry=registries[2]),
    ):
        for day in range(1, 61):
            await clock.advance(DAY)
            if day % 7 == 0:
                await until_fired(flow, START + day * DAY)
        await until_fired(flow, START + 60 * DAY)
    assert sorted(diary.days) == list(range(1, 61))


async def test_one_that_is_drained_fires_nothing_and_holds_nothing(
    timed_store: Callable[[], Store], clock: Clock, diary: Diary, until: Until
) -> None:
    other = Diary()
    async with Flowlet(timed_store(), registry=diary.registry(DAY)) as flow:
        await flow.drain()
        with pytest.raises(RunError, match="drained"):
            await flow.schedule("note").trigger()
        await clock.advance(DAY)
        await anyio.sleep(0.2)
        async with Flowlet(timed_store(), registry=other.registry(DAY)):
            await until(lambda: other.days == [1])
    assert diary.ticks == []


class HeldStore:
    """A store in which the writes that fire a schedule wait for a gate, and nothing else is claimed meanwhile."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.gate: anyio.Event | None = None
        self.held = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(self, writes: Sequence[Write], **options: Any) -> None:
        if self.gate is not None and len(writes) > 1:
            self.held += 1
            await self.gate.wait()
            self.held -= 1
        await self._inner.append(writes, **options)

    async def claim(self, worker: str, /, **options: Any) -> Claims:
        return Claims() if self.held else await self._inner.claim(worker, **options)


@pytest.mark.parametrize("order", ["pause", "remove"])
async def test_what_is_ordered_while_somebody_is_about_to_fire_it_holds(
    timed_store: Callable[[], Store], clock: Clock, diary: Diary, until: Until, order: str
) -> None:
    store = HeldStore(timed_store())
    async with Flowlet(store, registry=diary.registry(DAY)) as flow, Flowlet(timed_store()) as other:
        store.gate = anyio.Event()
        await clock.advance(DAY)
        await until(lambda: store.held)
        await getattr(other.schedule("note"), order)()
        store.gate.set()
        await until(lambda: not store.held)
        await anyio.sleep(0.2)
        assert [run async for run in flow.runs()] == []
        assert [schedule.paused async for schedule in flow.schedules()] == ([True] if order == "pause" else [])


async def test_who_has_lost_a_schedule_to_another_writes_nothing(
    timed_store: Callable[[], Store], clock: Clock, diary: Diary, until: Until
) -> None:
    store, other = HeldStore(timed_store()), Diary()
    async with Flowlet(store, registry=diary.registry(DAY)) as flow:
        store.gate = anyio.Event()
        await clock.advance(DAY)
        await until(lambda: store.held)
        async with Flowlet(timed_store(), registry=other.registry(DAY)) as heir:
            assert flow._runs is not None
            await heir.store.release(flow._runs.worker.id, ("flowlet/schedule/note",))
            await until_fired(heir, START + DAY)
            await clock.advance(DAY)
            await until_fired(heir, START + 2 * DAY)
            before = await heir.store.load("flowlet/schedule/note")
            store.gate.set()
            await until(lambda: not store.held)
            await anyio.sleep(0.2)
            assert await heir.store.load("flowlet/schedule/note") == before
    assert (other.days, diary.ticks) == ([1, 2], [])


# ---------------------------------------------------------------- trouble
@asynccontextmanager
async def entered(store: Any, registry: Registry) -> AsyncIterator[Flowlet]:
    async with Flowlet(store, registry=registry, lease=0.5) as flow:
        yield flow


@pytest.mark.parametrize("faults", [["lost"], ["reply"], ["lost", "reply"], ["lost", "lost", "reply", "reply"]])
async def test_a_write_or_a_reply_that_is_lost(
    faulty_store: Any, faults: list[str], diary: Diary, until: Until
) -> None:
    async with entered(faulty_store, diary.registry(0.3, missed="all")) as flow:
        faulty_store.faults.extend(faults)
        await until(lambda: len(set(diary.ticks)) >= 4)
        await flow.schedule("note").pause()
        with anyio.fail_after(10):
            while [run async for run in flow.runs(status=("pending", "running"))]:
                await anyio.sleep(0.01)
        runs = [run async for run in flow.runs()]
        assert len(runs) == len(set(diary.ticks))
        assert {run.status for run in runs} == {"completed"}
        gaps = {b - a for a, b in pairwise(sorted(set(diary.ticks)))}
        assert gaps == {timedelta(milliseconds=300)}


async def test_a_store_that_is_down_for_a_while(faulty_store: Any, diary: Diary, until: Until) -> None:
    async with entered(faulty_store, diary.registry(0.1, missed="all")) as flow:
        await until(lambda: len(diary.ticks) >= 2)
        faulty_store.down = True
        with pytest.raises(StoreUnavailable):
            await flow.schedule("note").pause()
        await anyio.sleep(0.6)
        faulty_store.down = False
        before = len(diary.ticks)
        await until(lambda: len(diary.ticks) >= before + 8)
    found = sorted(diary.ticks)
    assert {b - a for a, b in pairwise(found)} == {timedelta(milliseconds=100)}


async def test_a_machine_that_has_slept(faulty_store: Any, clock: Clock, diary: Diary, until: Until) -> None:
    # The store's time leaps, and this process's idea of it, which knows nothing of its clock, comes after.
    store = type(faulty_store)(MemoryStore(clock=clock))
    async with entered(store, diary.registry(DAY)):
        await clock.advance(5 * DAY)
        await until(lambda: diary.ticks)
        await anyio.sleep(0.5)
    assert diary.days == [5]


async def test_a_run_that_is_there_already_counts_as_fired(
    timed_store: Callable[[], Store], clock: Clock, diary: Diary, events: list[Any]
) -> None:
    registry = diary.registry(DAY)
    note = registry.definitions["note", "1"].target
    async with Flowlet(timed_store(), registry=registry) as flow:
        other = Registry()

        @other.saga
        async def stranger() -> None: ...

        flow.include(other)
        await flow.start(stranger, id="note@2026-03-03T12:00:00Z")
        for day in (1, 2, 3):
            await clock.advance(DAY)
            await until_fired(flow, START + day * DAY)
    assert note is not None
    assert diary.days == [1, 3]
    said = [e for e in events if e["event"] == "schedule.id_taken"]
    assert [(e["log_level"], e["run_id"]) for e in said] == [("warning", "note@2026-03-03T12:00:00Z")]


async def test_an_id_that_something_else_has(timed_store: Callable[[], Store], clock: Clock, diary: Diary) -> None:
    registry = diary.registry()
    store = timed_store()
    async with Flowlet(store, registry=registry) as flow:
        other = Registry()

        @other.saga
        async def stranger() -> None: ...

        flow.include(other)
        with pytest.raises(IdConflict, match="are kept for schedules"):
            await flow.execute(stranger, id="flowlet/schedule/note")
        new = New("run", "stranger", "1")
        await store.append((Write(id="flowlet/schedule/note", expect=0, create=new, records=(b"\x90",)),))
    with pytest.raises(IdConflict, match="belongs to a run, so that no schedule can have it"):
        async with Flowlet(timed_store(), registry=diary.registry(DAY)):
            pass


async def test_a_state_that_is_damaged(clock: Clock, diary: Diary) -> None:
    store = MemoryStore(clock=clock)
    async with Flowlet(store, registry=diary.registry(DAY)):
        pass
    stored = await store.load("flowlet/schedule/note")
    assert stored is not None
    await store.append((Write(id=stored.head.id, expect=stored.head.version, snapshot=b"\x93"),))
    with pytest.raises(DecodeError, match="the state of schedule 'note'"):
        async with Flowlet(store, registry=diary.registry(DAY)):
            pass


async def test_a_schedule_whose_state_is_damaged_while_it_is_up(
    clock: Clock, diary: Diary, events: list[Any], until: Until
) -> None:
    store = MemoryStore(clock=clock)
    async with Flowlet(store, registry=diary.registry(DAY, HOUR)):
        stored = await store.load("flowlet/schedule/note")
        assert stored is not None
        await store.append((Write(id=stored.head.id, expect=stored.head.version, snapshot=b"\x93"),))
        await clock.advance(DAY)
        await until(lambda: [e for e in events if e["event"] == "schedule.not_fired_here"])
        await until(lambda: diary.days == [1])  # the other one
        await anyio.sleep(0.2)
    assert len([e for e in events if e["event"] == "schedule.not_fired_here"]) == 1


async def test_a_step_that_fails_is_the_runs_own_affair(clock: Clock, until: Until) -> None:
    flow = Flowlet(MemoryStore(clock=clock))
    attempts: list[int] = []

    @step(retry=Retry(attempts=2, wait=0))
    async def fail() -> None:
        attempts.append(1)
        raise ValueError("no")

    @flow.every(DAY)
    @flow.saga
    async def failing() -> None:
        await fail()

    async with flow:
        for _ in range(2):
            await clock.advance(DAY)
            before = len(attempts)
            await until(lambda before=before: len(attempts) == before + 2)
        await until_fired_named(flow, "failing")
        assert [run.status async for run in flow.runs()] == ["failed", "failed"]


async def until_fired_named(flow: Flowlet, name: str) -> None:
    with anyio.fail_after(10):
        while [run async for run in flow.runs(name, status=("pending", "running"))]:
            await anyio.sleep(0.002)


# ---------------------------------------------------------------- what cannot be meant
async def test_what_cannot_be_meant(diary: Diary) -> None:
    flow = Flowlet(registry=diary.registry(DAY))
    with pytest.raises(FlowletError, match="not open"):
        flow.schedule("note")
    with pytest.raises(FlowletError, match="not open"):
        flow.schedules()
    async with flow:
        for ask in ("info", "pause", "resume", "remove", "trigger", "ticks"):
            with pytest.raises(RunNotFound, match="there is no schedule 'typo'"):
                await getattr(flow.schedule("typo"), ask)()
        with pytest.raises(ConfigError, match="takes the name of a schedule, not 3"):
            flow.schedule(3)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="at least 0, not -1"):
            await flow.schedule("note").ticks(-1)
        with pytest.raises(IdConflict, match="an id is a text"):
            await flow.schedule("note").trigger(id="")
        assert repr(flow.schedule("note")) == "<Schedule 'note'>"


# ---------------------------------------------------------------- what is logged and kept
async def test_what_is_logged(clock: Clock, diary: Diary, events: list[Any]) -> None:
    store = MemoryStore(clock=clock)
    async with Flowlet(store, registry=diary.registry(DAY)):
        pass
    await clock.advance(3 * DAY)
    async with Flowlet(store, registry=diary.registry(DAY)) as flow:
        await until_fired(flow, START + 3 * DAY)
    told = [{k: v for k, v in e.items() if k != "log_level"} for e in events if e["event"].startswith("schedule.")]
    assert told == [
        {"event": "schedule.missed", "schedule": "note", "since": "2026-03-02T12:00:00Z", "fired": 1},
        {
            "event": "schedule.fired",
            "schedule": "note",
            "tick": "2026-03-04T12:00:00Z",
            "run_id": "note@2026-03-04T12:00:00Z",
        },
    ]


async def test_a_schedule_does_not_grow_with_its_ticks(clock: Clock, diary: Diary) -> None:
    store = MemoryStore(clock=clock)
    async with Flowlet(store, registry=diary.registry(DAY)) as flow:
        sizes = []
        for day in range(1, 12):
            await clock.advance(DAY)
            await until_fired(flow, START + day * DAY)
            stored = await store.load("flowlet/schedule/note")
            assert stored is not None
            sizes.append((len(stored.records), len(stored.snapshot or b"")))
        assert len(set(sizes[1:])) == 1
        assert stored.head.owner is None


class Reversed:
    """A codec whose bytes are those of nothing else."""

    def encode(self, data: bytes, /) -> bytes:
        return b"!" + data[::-1]

    def decode(self, data: bytes, /) -> bytes:
        assert data[:1] == b"!"
        return data[:0:-1]


async def test_what_it_keeps_passes_through_the_codec(clock: Clock, diary: Diary) -> None:
    store = MemoryStore(clock=clock)
    async with Flowlet(store, registry=diary.registry(DAY), codec=Reversed()) as flow:
        await clock.advance(DAY)
        await until_fired(flow, START + DAY)
        assert diary.days == [1]
    stored = await store.load("flowlet/schedule/note")
    assert stored is not None
    assert stored.snapshot is not None
    assert stored.snapshot.startswith(b"!")


async def test_it_moves_to_another_store(timed_store: Callable[[], Store], clock: Clock, diary: Diary) -> None:
    flow, target = Flowlet(timed_store(), registry=diary.registry(DAY, HOUR)), MemoryStore(clock=clock)
    async with flow:
        await clock.advance(DAY)
        await until_fired(flow, START + DAY)
        await flow.schedule("note 1").pause()
        with anyio.fail_after(10):
            while [run async for run in flow.runs(status=("pending", "running"))]:
                await anyio.sleep(0.002)
    await flow.copy_to(target)
    await clock.advance(DAY)
    async with Flowlet(target, registry=diary.registry(DAY, HOUR)) as moved:
        await until_fired(moved, START + 2 * DAY)
        assert (await info(moved, "note 1")).paused
        assert (await info(moved)).last_run == "note@2026-03-03T12:00:00Z"


async def test_pruning_leaves_it_alone(clock: Clock, diary: Diary) -> None:
    async with Flowlet(MemoryStore(clock=clock), registry=diary.registry(DAY, overlap="skip")) as flow:
        await clock.advance(DAY)
        await until_fired(flow, START + DAY)
        await clock.advance(1)
        assert await flow.prune(0) == 1
        await clock.advance(DAY)
        await until_fired(flow, START + 2 * DAY)
        assert [run.id async for run in flow.runs()] == ["note@2026-03-03T12:00:00Z"]
