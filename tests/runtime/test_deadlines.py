"""Deadlines: absolute, on record, and kept wherever the run is, or whether or not a process runs it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, Retry, compensate, gather, step
from flowlet.core.run_records import Started
from flowlet.errors import ConfigError, DefinitionError, RunFinished, RunParked, RunTimeout
from flowlet.store import Store

pytestmark = pytest.mark.anyio

NewStore = Callable[[], Store]


class Broken(Exception):
    pass


@dataclass
class World:
    """What steps do, and where they and the body wait until ``open`` is set."""

    hang: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)
    here: dict[str, anyio.Event] = field(default_factory=dict)
    open: anyio.Event = field(default_factory=anyio.Event)

    async def act(self, name: str) -> None:
        await self.wait(name)
        self.log.append(name)

    async def wait(self, name: str) -> None:
        if name in self.hang:
            self.here.setdefault(name, anyio.Event()).set()
            await self.open.wait()

    async def reached(self, name: str) -> None:
        with anyio.fail_after(20):
            await self.here.setdefault(name, anyio.Event()).wait()


@pytest.fixture
def world() -> World:
    return World()


def program(flow: Flowlet, world: World, *, fail: bool = False, **options: Any) -> Any:
    @step
    async def take(n: int) -> int:
        await world.act(f"take {n}")
        return n

    @compensate(take)
    async def give(n: int, error: Exception) -> None:
        assert isinstance(error, Broken if fail else RunTimeout)
        await world.act(f"give {n}")

    @flow.saga(**options)
    async def buy() -> str:
        await take(1)
        await world.wait("body")
        await gather(take(2), take(3))
        await take(4)
        if fail:
            raise Broken
        return "bought"

    return buy


def later(store: Store, seconds: float = 7200) -> Store:
    """Return a store whose clock is ahead."""
    now = store.now

    async def ahead() -> float:
        return await now() + seconds

    store.now = ahead  # type: ignore[method-assign]
    return store


async def deadline_of(flow: Flowlet, id: str) -> float | None:
    (first,) = [record async for seq, record in flow._open_runs.stream(id) if seq == 1]
    assert isinstance(first, Started)
    return first.deadline


async def assert_timed_out(flow: Flowlet, id: str = "b") -> None:
    with anyio.fail_after(20), pytest.raises(TimeoutError, match=f"run '{id}' had not ended at its deadline") as caught:
        await flow.handle(id).result()
    assert isinstance(caught.value, RunTimeout)
    records = [r async for r in flow.handle(id).history()]
    done = [r.step for r in records if r.kind == "step_completed" and "~" not in str(r.step)]
    assert [str(r.step).partition("~")[0] for r in records if "~" in str(r.step)] == done[::-1]
    assert [r.kind for r in records].count("interrupted") == 1
    assert await flow.handle(id).status() == ("compensated" if done else "failed")
    with pytest.raises(RunFinished):
        await flow.handle(id).cancel()


# ------------------------------------------------------------------ while it runs
@pytest.mark.parametrize("how", ["start", "execute"])
@pytest.mark.parametrize("place", ["take 1", "body", "take 2", "take 4"])
async def test_it_passes_while_the_run_is_under_way(flow: Flowlet, world: World, place: str, how: str) -> None:
    world.hang = {place}
    buy = program(flow, world)
    async with flow:
        if how == "start":
            await flow.start(buy, id="b", deadline=0.1)
        else:
            with pytest.raises(RunTimeout):
                await flow.execute(buy, id="b", deadline=timedelta(seconds=0.1))
        await assert_timed_out(flow)
    taken = [entry for entry in world.log if "take" in entry]
    assert sorted(e for e in world.log if "give" in e) == sorted(e.replace("take", "give") for e in taken)


@pytest.mark.parametrize("parallel", [False, True])
async def test_it_passes_between_two_attempts(flow: Flowlet, parallel: bool) -> None:
    tried: list[int] = []

    @step(retry=Retry(attempts=5, wait=60))
    async def flaky() -> None:
        tried.append(1)
        raise Broken

    @step
    async def side() -> None: ...

    @flow.saga(deadline=0.1)
    async def buy() -> None:
        await (gather(flaky(), side()) if parallel else flaky())

    async with flow:
        await flow.start(buy, id="b")
        with anyio.fail_after(20), pytest.raises(RunTimeout):
            await flow.handle("b").result()
    assert tried in ([1], [])  # on a very busy machine it passes before the first one


async def test_a_pipeline_has_one_too(flow: Flowlet) -> None:
    async def one() -> int:
        return 1

    async def two(one: int) -> int:
        await anyio.sleep_forever()
        return one

    pipeline = flow.pipeline("pipeline", one, two, deadline=0.1)
    async with flow:
        await flow.start(pipeline, id="b")
        with anyio.fail_after(20), pytest.raises(RunTimeout):
            await flow.handle("b").result()
        assert await flow.handle("b").status() == "failed"
        with anyio.fail_after(20), pytest.raises(RunTimeout):
            await pipeline()


async def test_from_a_plain_script() -> None:
    flow = Flowlet()

    @step
    async def hang() -> None:
        await anyio.sleep_forever()

    @flow.saga
    async def buy() -> None:
        await hang()

    def run() -> None:
        flow.run(buy, deadline=0.05)

    with anyio.fail_after(20), pytest.raises(RunTimeout):
        await anyio.to_thread.run_sync(run)


async def test_a_run_that_ends_in_time_is_left_alone(flow: Flowlet, world: World) -> None:
    buy = program(flow, world, deadline=3600)
    async with flow:
        assert await flow.execute(buy, id="a") == "bought"
        assert await buy() == "bought"
        assert await (await flow.start(buy, id="b", deadline=60)).result() == "bought"
        assert flow._open_runs._alarms._times == {}
        flow._open_runs._expire("a")
        assert await flow.handle("a").status() == "completed"


@pytest.mark.parametrize("how", ["start", "execute"])
@pytest.mark.parametrize("past", [0, datetime(2020, 1, 1, tzinfo=UTC)])
async def test_one_that_has_passed_already_begins_nothing(flow: Flowlet, world: World, past: Any, how: str) -> None:
    buy = program(flow, world)
    async with flow:
        if how == "start":
            await flow.start(buy, id="b", deadline=past)
        else:
            with pytest.raises(RunTimeout):
                await flow.execute(buy, id="b", deadline=past)
        await assert_timed_out(flow)
    assert world.log == []


async def test_while_it_is_being_undone_it_makes_no_difference(flow: Flowlet, world: World) -> None:
    world.hang = {"give 4"}
    async with flow:
        handle = await flow.start(program(flow, world, fail=True), id="b", deadline=3600)
        await world.reached("give 4")
        flow._open_runs._expire("b")
        await anyio.sleep(0.02)
        world.open.set()
        with anyio.fail_after(20), pytest.raises(Broken):
            await handle.result()
        assert await handle.status() == "compensated"


@pytest.mark.parametrize("restarted", [False, True])
async def test_behind_the_pivot_it_is_one_line_in_the_log(
    new_store: NewStore, world: World, capsys: pytest.CaptureFixture[str], restarted: bool
) -> None:
    def make(flow: Flowlet) -> Any:
        @step(pivot=True)
        async def decide() -> None:
            await world.act("decide")

        @step
        async def ship(n: int) -> None:
            await world.act(f"ship {n}")

        @flow.saga
        async def buy() -> str:
            await decide()
            await ship(1)
            await ship(2)
            return "bought"

        return buy

    world.hang = {"ship 1"}
    flow = Flowlet(new_store(), grace=0)
    buy = make(flow)
    async with flow:
        await flow.start(buy, id="b", deadline=3600)
        await world.reached("ship 1")
        if not restarted:
            flow._open_runs._expire("b")
            world.open.set()
            assert await flow.handle("b", buy).result() == "bought"
    if restarted:
        world.hang = set()
        flow = Flowlet(later(new_store()))
        buy = make(flow)
        async with flow:
            with anyio.fail_after(20):
                assert await flow.handle("b", buy).result() == "bought"
    assert world.log == ["decide", "ship 1", "ship 2"]
    assert capsys.readouterr().err.count("run.not_undone") == 1


# ------------------------------------------------------------------ on record
async def test_it_is_absolute_and_stored(flow: Flowlet, world: World) -> None:
    world.hang = {"take 4"}
    buy = program(flow, world, deadline=timedelta(minutes=1))
    at = datetime.now(timezone(timedelta(hours=5))) + timedelta(hours=1)
    async with flow:
        now = await flow.store.now()
        await flow.start(buy, id="own")
        await flow.start(buy, id="seconds", deadline=120)
        await flow.start(buy, id="delta", deadline=timedelta(seconds=180))
        await flow.start(buy, id="time", deadline=at)
        assert await deadline_of(flow, "own") == pytest.approx(now + 60, abs=5)
        assert await deadline_of(flow, "seconds") == pytest.approx(now + 120, abs=5)
        assert await deadline_of(flow, "delta") == pytest.approx(now + 180, abs=5)
        assert await deadline_of(flow, "time") == at.timestamp()


@pytest.mark.parametrize("place", ["take 1", "body", "take 2", "take 4"])
async def test_it_passes_while_no_process_runs_it(new_store: NewStore, world: World, place: str) -> None:
    """At the next start it is undone, before any further step begins."""
    world.hang = {place}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow, world), id="b", deadline=3600)
        await world.reached(place)
        assert await flow.handle("b").status() == "running"
    begun = [e for e in world.log if "take" in e]
    world.hang = {"body"} if place in ("take 1", "body") else set()
    flow = Flowlet(later(new_store()))
    program(flow, world)
    async with flow:
        await assert_timed_out(flow)
    assert [e for e in world.log if "take" in e] == begun


async def test_it_is_kept_by_whoever_takes_the_run_up(new_store: NewStore, world: World) -> None:
    world.hang = {"take 4"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow, world), id="b", deadline=3600)
        await world.reached("take 4")
    world.here.clear()
    flow = Flowlet(later(new_store(), 3599))
    program(flow, world)
    async with flow:
        await assert_timed_out(flow)


async def test_left_in_the_middle_of_undoing_it(new_store: NewStore, world: World) -> None:
    world.hang = {"body", "give 1"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow, world), id="b", deadline=3600)
        await world.reached("body")
        flow._open_runs._expire("b")
        await world.reached("give 1")
    world.hang = {"body"}
    flow = Flowlet(new_store())
    program(flow, world)
    async with flow:
        await assert_timed_out(flow)
    assert world.log == ["take 1", "give 1"]


async def test_the_same_id_with_another_deadline_is_the_same_run(flow: Flowlet, world: World) -> None:
    world.hang = {"take 4"}
    buy = program(flow, world)
    async with flow:
        await flow.start(buy, id="b", deadline=60)
        first = await deadline_of(flow, "b")
        for deadline in (0.01, None, 120):
            await flow.start(buy, id="b", deadline=deadline)
        await anyio.sleep(0.05)
        assert await deadline_of(flow, "b") == first
        assert await flow.handle("b").status() == "running"
        world.open.set()
        assert await flow.handle("b", buy).result() == "bought"


async def test_of_starts_at_once_the_one_that_was_stored_has_the_deadline(flow: Flowlet, world: World) -> None:
    world.hang = {"take 4"}
    buy = program(flow, world)

    async def start(deadline: float | None) -> None:
        await flow.start(buy, id="b", deadline=deadline)

    async with flow:
        async with anyio.create_task_group() as group:
            for deadline in (None, 0.01, 0.02, 0.03):
                group.start_soon(start, deadline)
        stored = await deadline_of(flow, "b")
        if stored is None:
            await anyio.sleep(0.1)
            assert await flow.handle("b").status() == "running"
        else:
            await assert_timed_out(flow)
        world.open.set()


async def test_a_start_that_found_another_run_has_set_no_alarm(new_store: NewStore, world: World) -> None:
    """Somebody else's run, taken over later, does not end at the deadline that was asked for in vain."""
    world.hang = {"take 4"}
    flow, other = Flowlet(new_store(), grace=0), Flowlet(new_store())
    buy, same = program(flow, world), program(other, world)
    async with other:
        async with flow:
            await flow.start(buy, id="b")
            await world.reached("take 4")
            await other.start(same, id="b", deadline=0.3)
            world.here.clear()
        await world.reached("take 4")  # taken over
        await anyio.sleep(0.4)
        assert await other.handle("b").status() == "running"
        world.open.set()
        assert await other.handle("b", same).result() == "bought"


async def test_a_deadline_of_a_child_is_its_own(flow: Flowlet, world: World) -> None:
    world.hang = {"take 2"}
    child = program(flow, world, deadline=0.1)

    @flow.saga
    async def parent() -> str:
        try:
            return await child()  # type: ignore[no-any-return]
        except RunTimeout:
            return "without"

    async with flow:
        with anyio.fail_after(20):
            assert await flow.execute(parent, id="p") == "without"
        await assert_timed_out(flow, "p/buy")


# ------------------------------------------------------------------ what is no deadline
@pytest.mark.parametrize(
    "value",
    [
        -1,
        math.nan,
        math.inf,
        -math.inf,
        True,
        False,
        "1",
        timedelta(seconds=-1),
        date(2030, 1, 1),
        datetime(2030, 1, 1),  # noqa: DTZ001 - that is what is refused
    ],
)
async def test_bad_values(flow: Flowlet, world: World, value: Any) -> None:
    buy = program(flow, world)
    async with flow:
        for call in (flow.start, flow.execute):
            with pytest.raises(ConfigError, match="deadline: "):
                await call(buy, id="b", deadline=value)
    with pytest.raises(DefinitionError, match="deadline: must be"):
        program(Flowlet(), world, deadline=value)
    with pytest.raises(DefinitionError, match="deadline: must be"):
        Flowlet().pipeline("p", step(world.act), deadline=value)
    assert world.log == []


async def test_a_parked_run_is_undone_when_its_operator_has_answered(new_store: NewStore, world: World) -> None:
    world.hang = {"take 4"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow, world), id="b", deadline=3600)
        await world.reached("take 4")

    def changed(flow: Flowlet) -> None:
        @step
        async def take(n: int) -> int:
            raise AssertionError

        @compensate(take)
        async def give(n: int) -> None:
            world.log.append(f"give {n}")

        @flow.saga
        async def buy() -> str:
            await take(7)
            return "bought"

    flow = Flowlet(new_store())
    changed(flow)
    async with flow:
        with anyio.fail_after(20), pytest.raises(RunParked):
            await flow.handle("b").result()
    flow = Flowlet(later(new_store()))
    changed(flow)
    async with flow:
        assert await flow.handle("b").status() == "parked"
        await flow.handle("b").resume()
        await assert_timed_out(flow)
    assert sorted(world.log) == ["give 1", "give 2", "give 3", "take 1", "take 2", "take 3"]
