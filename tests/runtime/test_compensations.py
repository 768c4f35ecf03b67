"""What is undone, what it is given, and what becomes of compensations that fail: live, on record, elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, Retry, Run, compensate, current_run, gather, provided, step
from flowlet.errors import CompensationFailed, DefinitionError, RunCancelled, RunError, RunFinished, StepTimeout
from flowlet.store import Store

pytestmark = pytest.mark.anyio

NewStore = Callable[[], Store]


class Broken(Exception):
    pass


@dataclass
class World:
    """What outlives a process: effects, what is out of order, and where somebody waits until ``open`` is set."""

    hang: set[str] = field(default_factory=set)
    bad: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)
    keys: list[tuple[str, int]] = field(default_factory=list)
    here: dict[str, anyio.Event] = field(default_factory=dict)
    open: anyio.Event = field(default_factory=anyio.Event)

    async def act(self, name: str) -> None:
        if name in self.hang:
            self.here.setdefault(name, anyio.Event()).set()
            await self.open.wait()
        run = current_run()
        self.keys.append((run.idempotency_key, run.attempt))
        self.log.append(name)
        if name in self.bad:
            raise LookupError(f"{name} is out of order")

    async def reached(self, name: str) -> None:
        with anyio.fail_after(20):
            await self.here.setdefault(name, anyio.Event()).wait()

    def undone(self) -> list[str]:
        return [entry for entry in self.log if entry.startswith("give")]


@pytest.fixture
def world() -> World:
    return World()


def program(flow: Flowlet, world: World, *, retry: Any = None, **options: Any) -> Any:
    @step
    async def take(n: int) -> int:
        await world.act(f"take {n}")
        return n

    @compensate(take, retry=retry)
    async def give(n: int, take: int, error: Exception) -> None:
        assert (n, type(error)) == (take, Broken)
        await world.act(f"give {n}")

    @step
    async def fail() -> None:
        await world.act("fail")
        raise Broken("no")

    @flow.saga(**options)
    async def buy() -> None:
        await take(1)
        await take(2)
        await take(3)
        await fail()

    return buy


async def failed(flow: Flowlet, id: str = "b") -> CompensationFailed:
    """Wait for the run; return what is said of its failed compensations."""
    with anyio.fail_after(20), pytest.raises(Broken, match="no") as caught:
        await flow.handle(id).result()
    end: BaseException = caught.value
    while end.__cause__ is not None:
        end = end.__cause__
    assert isinstance(end, CompensationFailed)
    return end


# ------------------------------------------------------------------ compensations that fail
@pytest.mark.parametrize("together", [False, True])
async def test_one_that_fails_for_good_does_not_stop_the_others(
    new_store: NewStore, world: World, together: bool
) -> None:
    """And is told live as from the record, here and elsewhere, while nobody owns the run."""
    world.bad = {"give 2"}
    flow = Flowlet(new_store())
    buy = program(flow, world, retry=Retry(attempts=3, wait=0), parallel_compensation=together)
    async with flow:
        with anyio.fail_after(20), pytest.raises(Broken, match="no") as caught:
            await flow.execute(buy, id="b")
        live = caught.value.__cause__
        assert isinstance(live, CompensationFailed)
        assert live.failed == ("take#2",)
        assert [str(e) for e in live.exceptions] == ["give 2 is out of order"]
        assert await flow.handle("b").status() == "compensation_failed"
        head = await flow._open_runs.head("b")
        assert (head.owner, head.closed, head.wake) == (None, None, None)
        again = await failed(flow)
    assert Counter(world.undone()) == {"give 1": 1, "give 2": 3, "give 3": 1}
    other = Flowlet(new_store())
    program(other, world)
    async with other:
        recorded = await failed(other)
    for told in (again, recorded):
        assert told.failed == ("take#2",)
        assert [repr(e) for e in told.exceptions] == [repr(e) for e in live.exceptions]
    async with Flowlet(new_store()) as stranger:  # knows neither the definition nor what to do
        assert (await failed(stranger)).failed == ("take#2",)
    assert len(world.undone()) == 5


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_resume_tries_just_the_failed_ones_again(
    new_store: NewStore, world: World, elsewhere: bool, together: bool
) -> None:
    """Under the same key, with attempt numbers that go on and a fresh budget each time."""
    world.bad = {"give 1", "give 3"}
    retry = Retry(attempts=2, wait=0)
    flow = Flowlet(new_store())
    buy = program(flow, world, retry=retry, parallel_compensation=together)
    async with flow:
        with pytest.raises(Broken):
            await flow.execute(buy, id="b")
    rounds = [{"give 1", "give 3"}, {"give 1"}, {"give 1"}, set()]
    expected = Counter({"give 1": 2, "give 2": 1, "give 3": 2})
    for number, bad in enumerate(rounds):
        world.bad = bad
        if elsewhere:
            flow = Flowlet(new_store())
            program(flow, world, retry=retry, parallel_compensation=together)
        async with flow:
            await flow.handle("b").resume()
            if bad:
                told = await failed(flow)
                assert set(told.failed) == {"take" if "1" in name else "take#3" for name in bad}
                assert await flow.handle("b").status() == "compensation_failed"
            else:
                with anyio.fail_after(20), pytest.raises(Broken) as caught:
                    await flow.handle("b").result()
                assert caught.value.__cause__ is None
                assert await flow.handle("b").status() == "compensated"
                with pytest.raises(RunFinished):
                    await flow.handle("b").resume()
        tried = {"give 1", "give 3"} if number < 2 else {"give 1"}
        expected += Counter({name: 2 if name in bad else 1 for name in tried})
        assert Counter(world.undone()) == expected
    for key in ("b/take~give", "b/take#3~give"):
        attempts = [attempt for other, attempt in world.keys if other == key]
        assert attempts == list(range(1, len(attempts) + 1))
    assert Counter(key for key, _ in world.keys)["b/take#2~give"] == 1


@pytest.mark.parametrize("together", [False, True])
async def test_skip_says_that_one_was_undone_by_hand(new_store: NewStore, world: World, together: bool) -> None:
    world.bad = {"give 1", "give 2", "give 3"}
    flow = Flowlet(new_store())
    buy = program(flow, world, parallel_compensation=together)
    async with flow:
        handle = await flow.start(buy, id="b")
        assert (await failed(flow)).failed == ("take#3", "take#2", "take")
        with pytest.raises(RunError, match="not held up by step 'take~give'"):
            await handle.skip("take~give")
        with pytest.raises(RunError, match="not held up by step 'nothing'"):
            await handle.skip("nothing")
        await handle.skip("take#2", "of no meaning")
        assert (await failed(flow)).failed == ("take#3", "take")
        with pytest.raises(RunError, match="not held up by step 'take#2'"):
            await handle.skip("take#2")
        world.bad = {"give 1"}
        await handle.resume()
        assert (await failed(flow)).failed == ("take",)
    flow = Flowlet(new_store())
    program(flow, world, parallel_compensation=together)
    async with flow:
        await flow.handle("b").skip("take")
        with anyio.fail_after(20), pytest.raises(Broken):
            await flow.handle("b").result()
        assert await flow.handle("b").status() == "compensated"
        kinds = [(r.kind, r.step) async for r in flow.handle("b").history() if r.kind in ("step_skipped", "resumed")]
    assert kinds == [("step_skipped", "take#2"), ("resumed", None), ("step_skipped", "take")]
    assert Counter(world.undone()) == {"give 1": 2, "give 2": 1, "give 3": 2}


async def test_two_that_are_skipped_one_right_after_the_other(flow: Flowlet, world: World) -> None:
    """As an operator would write it, without waiting between them."""
    world.bad = {"give 1", "give 2"}
    async with flow:
        handle = await flow.start(program(flow, world), id="b")
        await failed(flow)
        await handle.skip("take")
        await handle.skip("take#2")
        with anyio.fail_after(20), pytest.raises(Broken):
            await handle.result()
        assert await handle.status() == "compensated"


async def test_what_is_being_undone_is_not_compensated_once_more(flow: Flowlet, world: World) -> None:
    world.bad = {"give 1"}
    async with flow:
        handle = await flow.start(program(flow, world), id="b")
        await failed(flow)
        with pytest.raises(RunError, match="being undone already"):
            await handle.compensate()
        with pytest.raises(RunError, match="being undone already"):
            await handle.cancel()


async def test_of_a_cancelled_run(flow: Flowlet, world: World) -> None:
    """The cancellation is the original error, and the run ends as cancelled when all is undone."""
    world.hang, world.bad = {"wait"}, {"give"}

    @step
    async def take() -> None: ...

    @compensate(take)
    async def give() -> None:
        await world.act("give")

    @step
    async def wait() -> None:
        await world.act("wait")

    @flow.saga
    async def buy() -> None:
        await take()
        await wait()

    async with flow:
        handle = await flow.start(buy, id="b")
        await world.reached("wait")
        await handle.cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled) as caught:
            await handle.result()
        assert isinstance(caught.value.__cause__, CompensationFailed)
        assert await handle.status() == "compensation_failed"
        world.bad = set()
        await handle.resume()
        with anyio.fail_after(20), pytest.raises(RunCancelled) as caught:
            await handle.result()
        assert caught.value.__cause__ is None
        assert await handle.status() == "cancelled"
        await handle.cancel()
    assert world.log == ["give", "give"]


@pytest.mark.parametrize("together", [False, True])
async def test_left_in_the_middle_of_trying_again(new_store: NewStore, world: World, together: bool) -> None:
    world.bad, world.hang = {"give 1", "give 3"}, set()
    flow = Flowlet(new_store(), grace=0)
    buy = program(flow, world, parallel_compensation=together)
    async with flow:
        handle = await flow.start(buy, id="b")
        await failed(flow)
        world.bad, world.hang = set(), {"give 1"}
        await handle.resume()
        await world.reached("give 1")
    world.hang = set()
    flow = Flowlet(new_store())
    program(flow, world, parallel_compensation=together)
    async with flow:
        with anyio.fail_after(20), pytest.raises(Broken):
            await flow.handle("b").result()
        assert await flow.handle("b").status() == "compensated"
    assert Counter(world.undone()) == {"give 1": 2, "give 2": 1, "give 3": 2}
    assert ("b/take~give", 2) in world.keys
    assert ("b/take~give", 3) not in world.keys  # what was cut off was no attempt on record


# ------------------------------------------------------------------ all together
async def test_together_all_are_under_way_at_once(flow: Flowlet, world: World) -> None:
    world.hang = {"give 1", "give 2", "give 3"}
    async with flow:
        handle = await flow.start(program(flow, world, parallel_compensation=True), id="b")
        for name in sorted(world.hang):
            await world.reached(name)
        world.open.set()
        with anyio.fail_after(20), pytest.raises(Broken):
            await handle.result()
        assert await handle.status() == "compensated"
    assert sorted(world.undone()) == ["give 1", "give 2", "give 3"]


async def test_one_by_one_each_waits_for_the_one_before(flow: Flowlet, world: World) -> None:
    world.hang = {"give 3"}
    async with flow:
        handle = await flow.start(program(flow, world), id="b")
        await world.reached("give 3")
        await anyio.sleep(0.02)
        assert world.undone() == []
        world.open.set()
        with anyio.fail_after(20), pytest.raises(Broken):
            await handle.result()
    assert world.undone() == ["give 3", "give 2", "give 1"]


@pytest.mark.parametrize("hangs", ["give 1", "give 2", "give 3"])
async def test_together_left_in_the_middle_only_what_has_no_record_is_done_again(
    new_store: NewStore, world: World, hangs: str
) -> None:
    world.hang = {hangs}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(program(flow, world, parallel_compensation=True), id="b")
        await world.reached(hangs)
        with anyio.fail_after(20):
            while len(world.undone()) < 2:
                await anyio.sleep(0.002)
    world.hang = set()
    flow = Flowlet(new_store())
    program(flow, world, parallel_compensation=True)
    async with flow:
        with anyio.fail_after(20), pytest.raises(Broken):
            await flow.handle("b").result()
    assert sorted(world.undone()) == ["give 1", "give 2", "give 3"]


async def test_together_a_cancelled_caller_leaves_them_alone(flow: Flowlet, world: World) -> None:
    world.hang = {"give 1", "give 2", "give 3"}
    buy = program(flow, world, parallel_compensation=True)
    async with flow:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: flow.execute(buy, id="b"))
                for name in sorted(world.hang):
                    await world.reached(name)
                scope.cancel()
        world.open.set()
        with anyio.fail_after(20), pytest.raises(Broken):
            await flow.handle("b").result()
    assert sorted(world.undone()) == ["give 1", "give 2", "give 3"]


# ------------------------------------------------------------------ compensate_unknown
def unsure(flow: Flowlet, world: World, *, unknown: bool = True, **options: Any) -> Any:
    """Assemble a saga with a step whose outcome may be unknown."""

    @step
    async def take() -> int:
        return 1

    @compensate(take)
    async def give() -> None:
        world.log.append("give")

    @step(compensate_unknown=unknown, **options)
    async def send(run: Run = provided) -> int:
        world.log.append(f"send {run.attempt}")
        await world.act("send")
        return 7

    @compensate(send)
    async def recall(send: int | None) -> None:
        world.log.append(f"recall {send}")

    @step
    async def fail() -> None:
        if "fail" in world.hang:
            await world.reached("send")
        raise Broken("no")

    @flow.saga
    async def buy(how: str) -> None:
        await take()
        if how == "gather":
            await gather(send(), fail())
        elif how == "late":
            try:
                await fail()
            except Broken:
                await gather(fail(), send())
        else:
            await send()
            await fail()

    return buy


def calls_of(world: World) -> list[str]:
    return [entry for entry in world.log if entry.split()[0] in ("recall", "give")]


@pytest.mark.parametrize("unknown", [True, False])
async def test_one_that_a_failing_sibling_has_cut_off(flow: Flowlet, world: World, unknown: bool) -> None:
    world.hang = {"send", "fail"}
    async with flow:
        with anyio.fail_after(20), pytest.raises(Broken):
            await flow.execute(unsure(flow, world, unknown=unknown), "gather", id="b")
    assert calls_of(world) == (["recall None", "give"] if unknown else ["give"])


async def test_one_that_a_failing_sibling_has_cut_off_and_that_raises_something_else(
    flow: Flowlet, world: World
) -> None:
    tried: list[int] = []
    here = anyio.Event()

    @step(compensate_unknown=True, retry=Retry(attempts=3, wait=0))
    async def send() -> int:
        tried.append(current_run().attempt)
        here.set()
        try:
            await anyio.sleep_forever()
        except BaseException:
            raise ConnectionError("closed") from None
        return 7

    @compensate(send)
    async def recall(send: int | None) -> None:
        world.log.append(f"recall {send}")

    @step
    async def fail() -> None:
        await here.wait()
        raise Broken("no")

    @flow.saga
    async def buy() -> None:
        await gather(send(), fail())

    async with flow:
        with anyio.fail_after(20), pytest.raises(Broken):
            await flow.execute(buy, id="b")
        assert (await flow.handle("b").report()).steps["send"].status == "cancelled"
    assert tried == [1]
    assert world.log == ["recall None"]


async def test_one_that_surely_never_began(flow: Flowlet, world: World) -> None:
    # `fail` comes first and fails at once, before the task of the other begins.
    async with flow:
        with anyio.fail_after(20), pytest.raises(Broken):
            await flow.execute(unsure(flow, world), "late", id="b")
        records = [(r.kind, r.step) async for r in flow.handle("b").history()]
    begun = any(entry.startswith("send") for entry in world.log)
    assert calls_of(world) == (["give"] if not begun else calls_of(world))
    assert ("step_cancelled", "send") in records or begun


@pytest.mark.parametrize("how", ["gather", "alone"])
async def test_one_that_was_cancelled(flow: Flowlet, world: World, how: str) -> None:
    world.hang = {"send", "fail"} if how == "alone" else {"send"}
    buy = unsure(flow, world)
    async with flow:
        handle = await flow.start(buy, "alone", id="b")
        await world.reached("send")
        await handle.cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await handle.result()
    assert calls_of(world) == ["recall None", "give"]


@pytest.mark.parametrize("attempts", [1, 2])
async def test_one_that_took_too_long(flow: Flowlet, world: World, attempts: int) -> None:
    world.hang = {"send"}
    async with flow:
        buy = unsure(flow, world, timeout=0.02, retry=Retry(attempts=attempts, wait=0))
        with anyio.fail_after(20), pytest.raises(StepTimeout):
            await flow.execute(buy, "alone", id="b")
    assert calls_of(world) == ["recall None", "give"]


async def test_one_that_took_too_long_and_then_failed(new_store: NewStore, world: World) -> None:
    """An earlier attempt may have done it; also when the second one is made elsewhere."""
    world.hang, world.bad = {"send"}, {"send"}
    flow = Flowlet(new_store(), grace=0)
    buy = unsure(flow, world, timeout=0.02, retry=Retry(attempts=2, wait=0.3))
    async with flow:
        handle = await flow.start(buy, "alone", id="b")
        with anyio.fail_after(20):
            while "attempt_failed" not in [r.kind async for r in handle.history()]:
                await anyio.sleep(0.002)
    world.hang = set()
    flow = Flowlet(new_store())
    unsure(flow, world, timeout=20, retry=Retry(attempts=2, wait=0.3))
    async with flow:
        with anyio.fail_after(20), pytest.raises(LookupError):
            await flow.handle("b").result()
    assert calls_of(world) == ["recall None", "give"]


async def test_one_that_simply_failed(flow: Flowlet, world: World) -> None:
    world.bad = {"send"}
    async with flow:
        with anyio.fail_after(20), pytest.raises(LookupError):
            await flow.execute(unsure(flow, world, retry=2), "alone", id="b")
    assert calls_of(world) == ["give"]


async def test_one_that_returned_is_undone_with_its_result(flow: Flowlet, world: World) -> None:
    async with flow:
        with anyio.fail_after(20), pytest.raises(Broken):
            await flow.execute(unsure(flow, world), "alone", id="b")
    assert calls_of(world) == ["recall 7", "give"]


@pytest.mark.parametrize("then", ["cancelled", "fails", "returns"])
async def test_one_that_the_end_of_a_process_has_cut_off(new_store: NewStore, world: World, then: str) -> None:
    world.hang = {"send"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(unsure(flow, world), "alone", id="b")
        await world.reached("send")
    world.hang = set()
    if then == "cancelled":
        async with Flowlet(new_store()) as stranger:
            await stranger.handle("b").cancel()
    elif then == "fails":
        world.bad = {"send"}
    flow = Flowlet(new_store())
    unsure(flow, world)
    async with flow:
        with anyio.fail_after(20), pytest.raises((RunCancelled, LookupError, Broken)):
            await flow.handle("b").result()
    assert calls_of(world) == (["recall 7", "give"] if then == "returns" else ["recall None", "give"])
    if then == "cancelled":
        assert world.log.count("send 1") == 1


async def test_it_is_the_same_when_it_is_repeated(new_store: NewStore, world: World) -> None:
    """Left in the middle of undoing, it is known from the record alone that its outcome was unknown."""
    world.hang = {"send"}
    held = anyio.Event()

    def make(flow: Flowlet, *, hold: bool) -> Any:
        @step
        async def take() -> int:
            return 1

        @compensate(take)
        async def give() -> None:
            world.log.append("give")

        @step(compensate_unknown=True)
        async def send() -> int:
            await world.act("send")
            return 7

        @compensate(send)
        async def recall(send: int | None) -> None:
            if hold:
                held.set()
                await anyio.sleep_forever()
            world.log.append(f"recall {send}")

        @flow.saga
        async def buy() -> None:
            await take()
            await send()

        return buy

    flow = Flowlet(new_store(), grace=0)
    async with flow:
        handle = await flow.start(make(flow, hold=True), id="b")
        await world.reached("send")
        await handle.cancel()
        with anyio.fail_after(20):
            await held.wait()
    flow = Flowlet(new_store())
    make(flow, hold=False)
    async with flow:
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await flow.handle("b").result()
    assert calls_of(world) == ["recall None", "give"]


def test_faults_of_its_definition() -> None:
    @step(compensate_unknown=True)
    async def alone() -> int:
        return 1

    @step(compensate_unknown=True)
    async def send() -> int:
        return 1

    @compensate(send)
    async def recall(send: int) -> None: ...

    for broken, message in ((alone, "needs a @compensate"), (send, "parameter 'send' must take None as well")):
        with pytest.raises(DefinitionError, match=message):
            Flowlet().saga("buy", broken)

    @step(compensate_unknown=True)
    async def fine() -> int:
        return 1

    @compensate(fine)
    async def refine() -> None: ...  # does not ask for the result

    Flowlet().saga("buy", fine)


async def test_that_an_earlier_attempt_is_in_doubt_is_on_record(new_store: NewStore, world: World) -> None:
    """The last one simply failed; left in the middle of undoing, the run still undoes what may have been done."""
    held = anyio.Event()

    def make(flow: Flowlet, *, hold: bool) -> Any:
        @step(compensate_unknown=True, timeout=0.02, retry=Retry(attempts=2, wait=0))
        async def send() -> int:
            if current_run().attempt == 1:
                await anyio.sleep_forever()
            raise Broken("no")

        @compensate(send)
        async def recall(send: int | None, error: Exception) -> None:
            if hold:
                held.set()
                await anyio.sleep_forever()
            world.log.append(f"recall {send} after {error}")

        @flow.saga
        async def buy() -> int:
            return await send()

        return buy

    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(make(flow, hold=True), id="b")
        with anyio.fail_after(20):
            await held.wait()
    flow = Flowlet(new_store())
    make(flow, hold=False)
    async with flow:
        with anyio.fail_after(20), pytest.raises(Broken):
            await flow.handle("b").result()
        assert await flow.handle("b").status() == "compensated"
    assert world.log == ["recall None after no"]


async def test_one_that_was_cut_off_behind_a_wait_of_the_body(new_store: NewStore, world: World) -> None:
    """Cancelled while nobody ran it, the body goes on to the step whose outcome is unknown, and no further."""

    def make(flow: Flowlet) -> Any:
        @step
        async def take() -> int:
            return 1

        @compensate(take)
        async def give() -> None:
            world.log.append("give")

        @step(compensate_unknown=True)
        async def send() -> int:
            await world.act("send")
            return 7

        @compensate(send)
        async def recall(send: int | None) -> None:
            world.log.append(f"recall {send}")

        @flow.saga
        async def buy() -> None:
            await take()
            await anyio.sleep(0.01)
            await send()

        return buy

    world.hang = {"send"}
    flow = Flowlet(new_store(), grace=0)
    async with flow:
        await flow.start(make(flow), id="b")
        await world.reached("send")
    world.hang = set()
    async with Flowlet(new_store()) as stranger:
        await stranger.handle("b").cancel()
    flow = Flowlet(new_store())
    make(flow)
    async with flow:
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await flow.handle("b").result()
    assert world.log == ["recall None", "give"]
