"""Workers: who takes up what, when a lease is lost or left behind, and how a dead peer is noticed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, Retry, Run, provided, step
from flowlet.core.codec import pack
from flowlet.errors import StoreUnavailable
from flowlet.runtime.presence import Presence
from flowlet.store import New, Store, Write

pytestmark = pytest.mark.anyio

Until = Callable[[Callable[[], Any]], Awaitable[None]]


def program(flow: Flowlet, log: list[str], gate: anyio.Event | None = None) -> Any:
    @step
    async def act(n: int) -> int:
        if gate is not None and n == 2:
            log.append("waiting")
            await gate.wait()
        log.append(f"act {n}")
        return n

    @flow.saga
    async def body() -> int:
        return await act(1) + await act(2)

    return body


async def leave_behind(store: Store, worker: str, id: str, lease: float = 60.0) -> None:
    """Do what a process does that is killed right after it has started a run."""
    await store.heartbeat(worker, lease)
    started = pack(("S", "body", "1", pack(()), await store.now(), None))
    await store.append(
        (
            Write(
                id=id,
                expect=0,
                create=New("run", "body"),
                records=(started,),
                status="running",
                wake=0.0,
                owner=worker,
            ),
        )
    )


async def test_what_nobody_owns_is_taken_up_when_a_flowlet_is_entered(new_store: Callable[[], Store]) -> None:
    store = new_store()
    await leave_behind(store, "gone", "r")
    await store.release("gone")
    log: list[str] = []
    flow = Flowlet(store)
    body = program(flow, log)
    async with flow:
        assert await flow.handle("r", body).result() == 3
    assert log == ["act 1", "act 2"]


async def test_more_runs_than_one_claim_takes(new_store: Callable[[], Store]) -> None:
    store = new_store()
    for n in range(230):
        await leave_behind(store, "gone", f"r{n}")
    await store.release("gone")
    log: list[str] = []
    flow = Flowlet(store)
    body = program(flow, log)
    async with flow:
        with anyio.fail_after(20):
            for n in range(230):
                assert await flow.handle(f"r{n}", body).result() == 3
    assert len(log) == 460


async def test_what_a_living_worker_owns_is_left_alone_until_it_lets_go(
    new_store: Callable[[], Store], until: Until
) -> None:
    store = new_store()
    await leave_behind(store, "elsewhere", "r")
    log: list[str] = []
    flow = Flowlet(store)
    body = program(flow, log)
    async with flow:
        assert flow._open_runs.live == {}
        other = await flow.start(body, id="mine")
        assert await other.result() == 3
        assert log == ["act 1", "act 2"]
        await flow.store.release("elsewhere")
        with anyio.fail_after(20):
            assert await flow.handle("r", body).result() == 3


async def test_a_run_whose_owner_stopped_beating_is_taken_over(new_store: Callable[[], Store]) -> None:
    store = new_store()
    await leave_behind(store, "elsewhere", "r", lease=0.05)
    flow = Flowlet(store, lease=0.5)
    body = program(flow, [])
    async with flow:
        with anyio.fail_after(20):
            assert await flow.handle("r", body).result() == 3


async def test_a_dead_worker_of_this_host_is_released_at_once(
    new_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store()
    await leave_behind(store, "dead", "r", lease=3600.0)
    await leave_behind(store, "alive", "s", lease=3600.0)
    monkeypatch.setattr(Presence, "is_dead", lambda self, worker: worker == "dead")
    flow = Flowlet(store)
    body = program(flow, [])
    async with flow:
        with anyio.fail_after(20):
            assert await flow.handle("r", body).result() == 3
        stored = await flow.store.load("s")
        assert stored is not None
        assert stored.head.owner == "alive"


async def test_a_run_that_was_taken_over_is_finished_by_the_other_only(
    new_store: Callable[[], Store], until: Until
) -> None:
    """The first process was believed dead: its step ends, but it can neither write nor go on."""
    store = new_store()
    logs: tuple[list[str], list[str]] = ([], [])
    gates = anyio.Event(), anyio.Event()
    first, second = Flowlet(store), Flowlet(new_store())
    body = program(first, logs[0], gates[0])
    other = program(second, logs[1], gates[1])
    async with first:
        handle = await first.start(body, id="r")
        await until(lambda: "waiting" in logs[0])
        await store.release(first._open_runs.worker.id, ["r"])
        async with second:
            await until(lambda: "waiting" in logs[1])
            gates[0].set()
            await until(lambda: "r" not in first._open_runs.live)
            assert (await second.handle("r").report()).steps.keys() == {"act"}
            gates[1].set()
            assert await second.handle("r", other).result() == 3
            assert await handle.result() == 3  # the first one's handle learns it from the store
    assert logs == (["act 1", "waiting", "act 2"], ["waiting", "act 2"])


async def test_two_flowlets_over_one_store_never_execute_the_same_run(new_store: Callable[[], Store]) -> None:
    store = new_store()
    for n in range(40):
        await leave_behind(store, "gone", f"r{n}")
    await store.release("gone")
    log: list[str] = []
    flows = [Flowlet(store), Flowlet(new_store())]
    bodies = [program(flow, log) for flow in flows]
    async with flows[0], flows[1]:
        with anyio.fail_after(20):
            for n in range(40):
                assert await flows[n % 2].handle(f"r{n}", bodies[n % 2]).result() == 3
    assert len(log) == 80


async def test_the_deadline_lies_before_what_the_store_believes(flow: Flowlet) -> None:
    from time import perf_counter

    async with flow:
        assert perf_counter() < flow._open_runs.deadline <= perf_counter() + 10.0
        before = flow._open_runs.deadline
        await flow._open_runs.worker.beat()
        assert flow._open_runs.deadline > before


async def test_a_run_whose_process_was_held_up_goes_on_if_nobody_took_it(faulty_store: Any) -> None:
    log: list[str] = []
    flow = Flowlet(faulty_store, lease=0.3)

    @step
    async def act(n: int) -> int:
        log.append(f"act {n}")
        if n == 1:
            time.sleep(0.7)  # longer than the lease, and the heartbeat cannot be sent
        return n

    @flow.saga
    async def body() -> int:
        return await act(1) + await act(2)

    async with flow:
        with anyio.fail_after(10):
            assert await flow.execute(body) == 3
    assert log == ["act 1", "act 2"]


async def test_a_run_that_was_taken_while_its_process_was_held_up_is_left(new_store: Callable[[], Store]) -> None:
    # It waits for its second attempt then: nothing is to be written that would tell it, and the lease is renewed.
    store = new_store()
    log: list[int] = []
    flow = Flowlet(store, lease=0.3)

    @step(retry=Retry(attempts=2, wait=1.5))
    async def act(run: Run = provided) -> int:
        log.append(run.attempt)
        raise LookupError

    body = flow.saga("body", act)
    async with flow:
        await flow.start(body, id="r")
        while not log:
            await anyio.sleep(0.01)
        await anyio.sleep(0.05)
        await store.heartbeat("other", 60.0)
        time.sleep(0.5)  # the lease runs out, and no other task runs before the claim is on its way
        assert [head.id for head in (await store.claim("other", ids=["r"])).heads] == ["r"]
        await anyio.sleep(1.5)
    assert log == [1]


async def test_leaving_gives_everything_back(new_store: Callable[[], Store], until: Until) -> None:
    store = new_store()
    log: list[str] = []
    flow = Flowlet(store, grace=0)
    body = program(flow, log, anyio.Event())
    async with flow:
        worker = flow._open_runs.worker.id
        await flow.start(body, id="r")
        await until(lambda: "waiting" in log)
    stored = await store.load("r")
    assert stored is not None
    assert stored.head.owner is None
    assert worker not in await store.heartbeat("w", 10)
    await store.close()


async def test_a_step_that_uses_the_grace_time_keeps_its_lease(new_store: Callable[[], Store]) -> None:
    store = new_store()
    log: list[str] = []
    leaving = Flowlet(store, lease=0.3, grace=5)
    staying = Flowlet(store, lease=0.3, registry=leaving.registry)

    @step
    async def slow() -> str:
        log.append("begins")
        await anyio.sleep(1.0)
        log.append("ends")
        return "done"

    body = leaving.saga("body", slow)
    async with staying:
        async with leaving:
            await leaving.start(body, id="r")
            while not log:
                await anyio.sleep(0.01)
        assert log == ["begins", "ends"]
        assert await staying.handle("r", body).result() == "done"
    assert log == ["begins", "ends"]


async def test_a_worker_goes_on_while_its_store_is_down(faulty_store: Any, until: Until) -> None:
    flow = Flowlet(faulty_store, lease=0.6)
    body = program(flow, [])
    async with flow:
        deadline = flow._open_runs.deadline
        faulty_store.down = True
        await anyio.sleep(0.3)  # it beats in vain meanwhile
        assert flow._open_runs.deadline <= deadline + 0.25
        faulty_store.down = False
        await until(lambda: flow._open_runs.deadline > deadline + 0.25)
        with anyio.fail_after(20):
            assert await flow.execute(body, id="r") == 3


async def test_a_peer_whose_lock_is_not_here_is_looked_for_ten_times_per_lease(new_store: Callable[[], Store]) -> None:
    flow, near = Flowlet(new_store(), lease=20), Flowlet(new_store(), lease=20)
    later = time.perf_counter() + 1000
    async with flow, near:
        assert flow._runs is not None
        worker = flow._runs.worker
        await worker.beat()
        worker._next_beat = later
        assert await worker._patience() > 900  # a heartbeat and a look at its lock are enough
        await flow.store.heartbeat("00000000-elsewhere", 20)
        await worker.beat()
        assert await worker._patience() == 2.0
        seen = await flow.store.watch(-1, 0)
        with anyio.fail_after(15):
            await worker._watch(seen)  # ends after 2 seconds, though it looks at locks more often


async def test_a_heartbeat_counts_for_less_than_the_lease_by_one_look(
    new_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store()
    asked: list[float] = []
    heartbeat = store.heartbeat

    async def note(worker: str, lease: float, /) -> Any:
        asked.append(lease)
        return await heartbeat(worker, lease)

    monkeypatch.setattr(store, "heartbeat", note)
    async with Flowlet(store, lease=20) as flow:
        assert flow._runs is not None
        assert flow._runs.deadline <= time.perf_counter() + 18
    assert set(asked) == {18.0}


async def test_what_was_claimed_without_an_answer_is_found(
    new_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store()
    flow = Flowlet(store, lease=0.6)

    @flow.saga
    async def brief(run: Run = provided) -> int:
        await run.sleep(1.1)  # long enough to be set aside
        return 5

    async with flow:
        handle = await flow.start(brief, id="r")
        with anyio.fail_after(20):
            while await handle.status() != "waiting":
                await anyio.sleep(0.002)
        claim, lost = store.claim, []

        async def claim_and_lose(*args: Any, **kwargs: Any) -> Any:
            claims = await claim(*args, **kwargs)
            if claims.heads and not lost:
                lost.extend(head.id for head in claims.heads)
                raise StoreUnavailable("the answer was lost")
            return claims

        monkeypatch.setattr(store, "claim", claim_and_lose)
        with anyio.fail_after(20):
            assert await handle.result() == 5
        assert lost == ["r"]
