"""Child runs: awaited or not, waiting or not, undone with their parent or on their own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import msgspec
import pytest

from flowlet import Flowlet, Retry, Run, compensate, gather, provided, step
from flowlet.core.run_records import Started
from flowlet.errors import IdConflict, RunCancelled, RunError, RunTimeout, SignalTimeout, StepTimeout
from flowlet.store import Store
from flowlet.stores.memory import MemoryStore
from flowlet.testing import Clock

pytestmark = pytest.mark.anyio


async def reaches(flow: Flowlet, id: str, status: str) -> None:
    """Wait until a run stands at a status."""
    with anyio.fail_after(20):
        while [run.status async for run in flow.runs() if run.id == id] != [status]:
            await anyio.sleep(0.001)


async def statuses(flow: Flowlet) -> dict[str, str]:
    return {run.id: run.status async for run in flow.runs()}


class Word(msgspec.Struct):
    name: str
    text: str = ""


class Shop:
    """A parent and the child that it has, in ways of several kinds."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.lives: list[str] = []

    def build(self, flow: Flowlet) -> None:
        """Assemble it, as each process would."""

        @step
        async def act(what: str) -> str:
            self.log.append(what)
            return what

        @compensate(act)
        async def undo(what: str) -> None:
            self.log.append(f"no {what}")

        @flow.saga
        async def child(name: str, run: Run = provided) -> str:
            self.lives.append(run.id)
            await act(f"{name} begins")
            word = await run.receive("word", type=str)
            if word == "fail":
                raise ValueError(name)
            return f"{name}: {word}"

        @flow.saga
        async def waits(run: Run = provided) -> str:
            self.lives.append(run.id)
            await act("parent begins")
            return await child("a")

        @flow.saga
        async def both(run: Run = provided) -> list[str]:
            return list(await gather(child("a"), act("beside"), child("b")))

        @flow.saga
        async def begins(detached: bool, run: Run = provided) -> str:
            made = await run.start(child, "a", detached=detached)
            await run.receive("go", type=bool)
            return made.id if detached else await made.result()

        self.act, self.child, self.waits, self.both, self.begins = act, child, waits, both, begins


@pytest.fixture
def shop() -> Shop:
    return Shop()


async def test_a_parent_costs_nothing_while_its_child_waits(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)
    async with flow:
        handle = await flow.start(shop.waits, id="p")
        await reaches(flow, "p", "waiting")
        await reaches(flow, "p/child", "waiting")
        with anyio.fail_after(20):
            while flow._open_runs.live:
                await anyio.sleep(0.001)
        head = await flow._open_runs.head("p")
        assert (head.owner, head.wake) == (None, None)
        started = (await flow._open_runs.records("p/child"))[0]
        assert isinstance(started, Started)
        assert started.parent == "p"
        await flow.handle("p/child").send("word", "hello")
        with anyio.fail_after(20):
            assert await handle.result() == "a: hello"
        kinds = [record.kind async for record in handle.history()]
        assert kinds == ["started", "step_completed", "step_completed", "completed"]
    assert shop.log == ["parent begins", "a begins"]
    assert shop.lives.count("p") <= 3  # when it began, and when it was told


async def test_a_child_that_fails_fails_its_parent_though_that_was_away(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)
    async with flow:
        handle = await flow.start(shop.waits, id="p")
        await reaches(flow, "p", "waiting")
        await flow.handle("p/child").send("word", "fail")
        with anyio.fail_after(20), pytest.raises(ValueError, match="a"):
            await handle.result()
        assert await statuses(flow) == {"p": "compensated", "p/child": "compensated"}
    assert shop.log == ["parent begins", "a begins", "no a begins", "no parent begins"]


async def test_two_children_side_by_side(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)
    async with flow:
        handle = await flow.start(shop.both, id="p")
        await reaches(flow, "p", "waiting")
        await flow.handle("p/child#2").send("word", "two")
        await reaches(flow, "p/child#2", "completed")
        await reaches(flow, "p", "waiting")
        await flow.handle("p/child").send("word", "one")
        with anyio.fail_after(20):
            assert await handle.result() == ["a: one", "beside", "b: two"]
    assert sorted(shop.log) == ["a begins", "b begins", "beside"]


async def test_a_step_beside_a_waiting_child_goes_on(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)
    go = anyio.Event()

    @step
    async def slow() -> str:
        await go.wait()
        return "slow"

    @flow.saga
    async def mixed() -> list[str]:
        return list(await gather(shop.child("a"), slow()))

    async with flow:
        handle = await flow.start(mixed, id="p")
        await reaches(flow, "p/child", "waiting")
        await flow.handle("p/child").send("word", "quick")
        await reaches(flow, "p/child", "completed")
        with anyio.fail_after(20):
            while len([r async for r in handle.history()]) < 2:  # it is told, and does not wait for the other
                await anyio.sleep(0.002)
        go.set()
        with anyio.fail_after(20):
            assert await handle.result() == ["a: quick", "slow"]


async def test_restarts_in_between(new_store: Callable[[], Store], shop: Shop) -> None:
    flow = Flowlet(new_store())
    shop.build(flow)
    async with flow:
        await flow.start(shop.waits, id="p")
        await reaches(flow, "p", "waiting")
    flow = Flowlet(new_store())  # one that knows nothing
    async with flow:
        await flow.handle("p/child").send("word", "hello")
    flow = Flowlet(new_store())
    shop.build(flow)
    async with flow:
        with anyio.fail_after(20):
            assert await flow.handle("p", shop.waits).result() == "a: hello"
    assert shop.log == ["parent begins", "a begins"]


async def test_the_child_ends_in_another_process_than_its_parent_waits_in(
    new_store: Callable[[], Store], shop: Shop
) -> None:
    flow, other = Flowlet(new_store()), Flowlet(new_store())
    shop.build(flow)
    child = shop.child
    there = Shop()
    there.build(other)
    async with other:
        held = await other.start(there.child, "a", id="c")
        await reaches(other, "c", "waiting")
        async with flow:

            @flow.saga
            async def asks(run: Run = provided) -> str:
                made = await run.start(child, "a", id="c")
                return await made.result()

            # Another one has started it: nobody tells this parent of its end, so it waits here.
            handle = await flow.start(asks, id="p")
            await anyio.sleep(0.1)
            assert await handle.status() == "running"
            await held.send("word", "hello")
            with anyio.fail_after(20):
                assert await handle.result() == "a: hello"


async def test_cancelled_with_its_parent(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)
    async with flow:
        handle = await flow.start(shop.waits, id="p")
        await reaches(flow, "p", "waiting")
        await handle.cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await handle.result()
        assert await statuses(flow) == {"p": "cancelled", "p/child": "cancelled"}
    assert shop.log == ["parent begins", "a begins", "no a begins", "no parent begins"]


async def test_a_deadline_of_the_parent_ends_both() -> None:
    clock, shop = Clock(), Shop()
    flow = Flowlet(MemoryStore(clock=clock))
    shop.build(flow)
    async with flow:
        handle = await flow.start(shop.waits, id="p", deadline=timedelta(days=2))
        await reaches(flow, "p", "waiting")
        await clock.advance(timedelta(days=2))
        with anyio.fail_after(20), pytest.raises(RunTimeout):
            await handle.result()
        assert await statuses(flow) == {"p": "compensated", "p/child": "cancelled"}


async def test_one_of_several_fails_and_the_waiting_ones_are_cancelled(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)

    @flow.saga
    async def several(run: Run = provided) -> None:
        await gather(shop.child("a"), shop.child("b"), run.receive("x", type=int, timeout=30))

    async with flow:
        handle = await flow.start(several, id="p")
        await reaches(flow, "p", "waiting")
        await flow.handle("p/child#2").send("word", "fail")
        with anyio.fail_after(20), pytest.raises(ValueError, match="b"):
            await handle.result()
        assert (await statuses(flow))["p/child"] == "cancelled"


async def test_started_and_awaited_later(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)
    async with flow:
        handle = await flow.start(shop.begins, False, id="p")
        await reaches(flow, "p", "waiting")
        await handle.send("go", True)
        await anyio.sleep(0.05)
        await reaches(flow, "p", "waiting")
        await flow.handle("p/child:start").send("word", "hello")
        with anyio.fail_after(20):
            assert await handle.result() == "a: hello"
        assert shop.log == ["a begins"]


async def test_what_belongs_to_a_parent_is_undone_before_it(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)
    async with flow:
        handle = await flow.start(shop.begins, False, id="p")
        await reaches(flow, "p", "waiting")
        await reaches(flow, "p/child:start", "waiting")
        await handle.cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await handle.result()
        assert await statuses(flow) == {"p": "cancelled", "p/child:start": "cancelled"}
    assert shop.log == ["a begins", "no a begins"]


async def test_what_is_detached_goes_on(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)
    async with flow:
        handle = await flow.start(shop.begins, True, id="p")
        await reaches(flow, "p", "waiting")
        await reaches(flow, "p/child:start", "waiting")
        await handle.cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await handle.result()
        child = flow.handle("p/child:start")
        await child.send("word", "alone")
        with anyio.fail_after(20):
            assert await child.result() == "a: alone"
        records = await flow._open_runs.records(child.id)
        assert isinstance(records[0], Started)
        assert records[0].parent is None


async def test_nobody_waits_for_what_is_detached(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)

    @flow.saga
    async def wrong(run: Run = provided) -> str:
        made = await run.start(shop.child, "a", detached=True)
        assert repr(made) == "<Child 'p/child:start'>"
        return await made.result()

    async with flow:
        with pytest.raises(RunError, match="started with detached=True"):
            await flow.execute(wrong, id="p")
        await flow.handle("p/child:start").cancel()


async def test_cancelled_by_its_parent(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)

    @flow.saga
    async def stops(run: Run = provided) -> str:
        made = await run.start(shop.child, "a")
        await run.receive("go", type=bool)
        await made.cancel()
        await made.cancel()
        try:
            return await made.result()
        except RunCancelled:
            return "stopped"

    async with flow:
        handle = await flow.start(stops, id="p")
        await reaches(flow, "p/child:start", "waiting")
        await handle.send("go", True)
        with anyio.fail_after(20):
            assert await handle.result() == "stopped"


async def test_a_replay_starts_nothing_twice_though_the_child_was_pruned(
    new_store: Callable[[], Store], shop: Shop
) -> None:
    def build(flow: Flowlet) -> Any:
        @step
        async def act(what: str) -> str:
            shop.log.append(what)
            return what

        @flow.saga
        async def quick(what: str) -> str:
            return await act(what)

        @flow.saga
        async def parent(run: Run = provided) -> str:
            await run.start(quick, "once", detached=True)
            await run.receive("go", type=bool)
            return "done"

        return parent

    flow = Flowlet(new_store())
    async with flow:
        await flow.start(build(flow), id="p")
        await reaches(flow, "p", "waiting")
        await reaches(flow, "p/quick:start", "completed")
        assert await flow.prune(older_than=0) == 1
    flow = Flowlet(new_store())
    build(flow)
    async with flow:
        handle = flow.handle("p")
        await handle.send("go", True)
        with anyio.fail_after(20):
            assert await handle.result() == "done"
    assert shop.log == ["once"]


async def test_gathered_results_of_started_children(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)

    @flow.saga
    async def many(run: Run = provided) -> list[str]:
        made = [await run.start(shop.child, name) for name in "abc"]
        return list(await gather(*(child.result() for child in made)))

    async with flow:
        handle = await flow.start(many, id="p")
        await reaches(flow, "p", "waiting")
        for n, suffix in enumerate(("#3", "#2", "")):
            await flow.handle(f"p/child:start{suffix}").send("word", str(n))
        with anyio.fail_after(20):
            assert await handle.result() == ["a: 2", "b: 1", "c: 0"]


async def test_a_wait_with_a_timeout_beside_a_child(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)

    @flow.saga
    async def hasty(run: Run = provided) -> None:
        await gather(shop.child("a"), run.receive("x", type=int, timeout=1.3))

    async with flow:
        handles = [await flow.start(hasty, id=f"p{n}") for n in range(8)]
        for handle in handles:
            with anyio.fail_after(20), pytest.raises(SignalTimeout):
                await handle.result()
        found = await statuses(flow)
        assert [found[f"{handle.id}/child"] for handle in handles] == ["cancelled"] * 8


async def test_what_cannot_be_started(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)

    @flow.saga
    async def wrong(what: int, run: Run = provided) -> None:
        if what == 0:
            await run.start(shop.act, "a")
        elif what == 1:
            await run.start(shop.child, "a", id="definition/x")
        elif what == 2:
            await run.start(shop.child)  # type: ignore[call-arg]
        else:
            await run.start(shop.child, "other", id="taken")

    async with flow:
        with pytest.raises(RunError, match=r"start\(\) takes an assembled saga"):
            await flow.execute(wrong, 0)
        with pytest.raises(IdConflict, match="are kept for definitions"):
            await flow.execute(wrong, 1)
        with pytest.raises(TypeError, match="missing a required argument"):
            await flow.execute(wrong, 2)
        taken = await flow.start(shop.child, "a", id="taken")
        with pytest.raises(IdConflict, match="started with another input"):
            await flow.execute(wrong, 3)
        await taken.cancel()


async def test_a_pipeline_and_a_graph_wait_for_children_as_well(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)

    async def name(title: str) -> str:
        return title

    async def shout(child: str) -> str:
        return child.upper()

    lines = flow.pipeline("lines", name, shop.child, shout)
    review = flow.graph("review", state=Word)
    review.node(shop.child, merge=lambda state, value: {"text": value})
    review.entry(shop.child)
    review.final(shop.child)
    async with flow:
        for definition, given, expected in (
            (lines, ("a",), "A: HELLO"),
            (review, (Word("a"),), Word("a", "a: hello")),
        ):
            handle = await flow.start(definition, *given)
            await reaches(flow, handle.id, "waiting")
            with anyio.fail_after(20):
                while flow._open_runs.live:
                    await anyio.sleep(0.001)
            await flow.handle(f"{handle.id}/child").send("word", "hello")
            with anyio.fail_after(20):
                assert await handle.result() == expected


async def test_who_cannot_run_it_waits_for_a_waiting_run_all_the_same(
    new_store: Callable[[], Store], shop: Shop
) -> None:
    flow, reader = Flowlet(new_store()), Flowlet(new_store(), lease=0.3)
    shop.build(flow)
    async with flow, reader:
        handle = await flow.start(shop.child, "a", id="r")
        await reaches(flow, "r", "waiting")
        with anyio.move_on_after(1.0) as scope:
            await reader.handle("r").result()
        assert scope.cancelled_caught
        await handle.cancel()


async def test_what_somebody_else_has_started_is_not_undone_with_a_parent(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)

    @flow.saga
    async def shares(run: Run = provided) -> None:
        await run.start(shop.child, "a", id="shared")
        await run.receive("go", type=bool)

    async with flow:
        shared = await flow.start(shop.child, "a", id="shared")
        await reaches(flow, "shared", "waiting")
        handle = await flow.start(shares, id="p")
        await reaches(flow, "p", "waiting")
        await handle.cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await handle.result()
        await shared.send("word", "hello")
        with anyio.fail_after(20):
            assert await shared.result() == "a: hello"


async def test_a_fork_leaves_the_children_of_its_origin_alone(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)

    @flow.saga
    async def origin(run: Run = provided) -> str:
        made = await run.start(shop.child, "a")
        await shop.act("mid")
        return await made.result()

    async with flow:
        handle = await flow.start(origin, id="p")
        await reaches(flow, "p", "waiting")
        fork = await handle.fork(from_step="act", id="f")
        with anyio.fail_after(20):
            while shop.log.count("mid") < 2:
                await anyio.sleep(0.002)
        await fork.cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await fork.result()
        await flow.handle("p/child:start").send("word", "hello")
        with anyio.fail_after(20):
            assert await handle.result() == "a: hello"


async def test_a_run_does_not_start_itself_or_what_has_started_it(flow: Flowlet) -> None:
    @flow.saga
    async def inner(run: Run = provided) -> None:
        await run.start(inner, id=run.id.partition("/")[0])

    @flow.saga
    async def outer(run: Run = provided) -> None:
        await inner()

    async with flow:
        for n, definition in enumerate((inner, outer)):
            with anyio.fail_after(20), pytest.raises(IdConflict, match="is itself or has started it"):
                await flow.execute(definition, id=f"r{n}")


@pytest.mark.parametrize("word", [None, "alive"])
async def test_a_child_that_a_step_calls_ends_with_its_step(flow: Flowlet, shop: Shop, word: str | None) -> None:
    shop.build(flow)

    @step
    async def calls() -> str:
        return await shop.child("a")

    @flow.saga
    async def parent() -> str:
        await shop.act("parent")
        return await calls()

    async with flow:
        handle = await flow.start(parent, id="p")
        await reaches(flow, "p/calls/child", "waiting")
        if word is not None:
            await flow.handle("p/calls/child").send("word", word)
            with anyio.fail_after(20):
                assert await handle.result() == "a: alive"
            return
        await handle.cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await handle.result()
        assert await statuses(flow) == {"p": "cancelled", "p/calls/child": "cancelled"}
    assert shop.log == ["parent", "a begins", "no a begins", "no parent"]


async def test_a_child_ends_with_a_step_that_fails_for_good(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)

    @step(timeout=0.3)
    async def calls() -> str:
        return await shop.child("a")

    @flow.saga
    async def parent() -> str:
        await shop.act("parent")
        return await calls()

    async with flow:
        handle = await flow.start(parent, id="p")
        with anyio.fail_after(20), pytest.raises(StepTimeout):
            await handle.result()
        assert (await statuses(flow))["p/calls/child"] == "cancelled"
    assert shop.log == ["parent", "a begins", "no a begins", "no parent"]


async def test_another_attempt_finds_the_child_of_the_one_before(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)

    @step(timeout=0.3, retry=Retry(attempts=20, wait=0.01))
    async def calls() -> str:
        return await shop.child("a")

    @flow.saga
    async def parent() -> str:
        return await calls()

    async with flow:
        handle = await flow.start(parent, id="p")
        await reaches(flow, "p/calls/child", "waiting")
        await anyio.sleep(0.4)
        await flow.handle("p/calls/child").send("word", "late")
        with anyio.fail_after(20):
            assert await handle.result() == "a: late"
        assert (await handle.report()).steps["calls"].attempts > 1
    assert shop.log == ["a begins"]


async def test_a_child_that_was_pruned_before_its_result_was_asked_for(flow: Flowlet) -> None:
    @step
    async def act() -> int:
        return 5

    quick = flow.saga("quick", act)

    @flow.saga
    async def late(run: Run = provided) -> int:
        made = await run.start(quick)
        await run.receive("go", type=bool)
        return await made.result()

    async with flow:
        handle = await flow.start(late, id="p")
        await reaches(flow, "p/quick:start", "completed")
        await reaches(flow, "p", "waiting")
        assert await flow.prune(older_than=0) == 1
        await handle.send("go", True)
        with anyio.fail_after(20), pytest.raises(RunError, match="was pruned before its result was asked for"):
            await handle.result()


async def test_a_child_that_a_step_calls_is_known_to_the_next_process(
    new_store: Callable[[], Store], shop: Shop
) -> None:
    def build(flow: Flowlet) -> Any:
        shop.build(flow)

        @step
        async def calls() -> str:
            return await shop.child("a")

        @flow.saga
        async def parent() -> str:
            await shop.act("parent")
            return await calls()

        return parent

    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(build(flow), id="p")
        await reaches(flow, "p/calls/child", "waiting")
    nobody = Flowlet(new_store())
    async with nobody:
        await nobody.handle("p").cancel()
    flow = Flowlet(new_store())
    build(flow)
    async with flow:
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await flow.handle("p").result()
        assert await statuses(flow) == {"p": "cancelled", "p/calls/child": "cancelled"}
    assert shop.log == ["parent", "a begins", "no a begins", "no parent"]


async def test_ids_that_look_like_those_of_ancestors_are_none(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)

    @flow.saga
    async def november(run: Run = provided) -> str:
        made = await run.start(shop.child, "a", id="2026")
        return await made.result()

    async with flow:
        handle = await flow.start(november, id="2026/nov")
        await reaches(flow, "2026", "waiting")
        await flow.handle("2026").send("word", "cold")
        with anyio.fail_after(20):
            assert await handle.result() == "a: cold"


async def test_runs_do_not_wait_for_each_other(flow: Flowlet) -> None:
    @flow.saga
    async def second(run: Run = provided) -> None:
        await (await run.start(first, id="one")).result()

    @flow.saga
    async def first(run: Run = provided) -> None:
        await (await run.start(second, id="two")).result()

    async with flow:
        with anyio.fail_after(20), pytest.raises(IdConflict, match="is itself or has started it"):
            await flow.execute(first, id="one")


async def test_what_has_started_a_run_may_be_gone(flow: Flowlet, shop: Shop) -> None:
    shop.build(flow)

    @flow.saga
    async def second(run: Run = provided) -> str:
        await run.receive("go", type=bool)
        return (await run.start(shop.child, "a", id="third")).id

    @flow.saga
    async def first(run: Run = provided) -> None:
        await run.start(second, id="second")

    async with flow:
        await flow.execute(first, id="first")
        await reaches(flow, "second", "waiting")
        assert await flow.prune(older_than=0) == 1
        handle = flow.handle("second")
        await handle.send("go", True)
        with anyio.fail_after(20):
            assert await handle.result() == "third"
