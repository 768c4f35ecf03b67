"""`stub`: days pass in milliseconds, in order, and nothing is left to do when `advance` returns."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, Registry, Retry, Run, compensate, level, provided, state, step, transition
from flowlet.errors import FlowletError, SignalTimeout
from flowlet.testing import Stub, stub

pytestmark = pytest.mark.anyio


class Mailer:
    """What the program has."""

    async def send(self, text: str) -> None:
        raise AssertionError("not in a test")


class FakeMailer:
    """Looks like it."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def send(self, text: str) -> None:
        self.sent.append(text)


registry = Registry()


@step
async def mail(text: str, mailer: Mailer = provided) -> None:
    await mailer.send(text)


@registry.saga
async def remind(to: str, after: float, run: Run = provided) -> str:
    for number in range(3):
        await run.sleep(timedelta(days=after))
        await mail(f"{to} {number} {run.now():%d}")
    return to


async def test_what_falls_due_happens_in_order_and_at_its_time() -> None:
    fake = FakeMailer()
    async with stub(registry, provide={Mailer: fake}) as flow:
        began = flow.clock.time
        ann = await flow.start(remind, "ann", 2.0)
        bob = await flow.start(remind, "bob", 3.0)
        await flow.clock.advance(days=1, hours=23)
        assert fake.sent == []
        await flow.clock.advance(days=100)
        assert flow.clock.time == began + timedelta(days=101, hours=23).total_seconds()
        days = [(datetime.fromtimestamp(began, UTC) + timedelta(days=n)).day for n in (2, 3, 4, 6, 6, 9)]
        assert [text.split()[0] for text in fake.sent[:3]] == ["ann", "bob", "ann"]
        assert sorted(text.split()[0] for text in fake.sent[3:5]) == ["ann", "bob"]
        assert [int(text.split()[2]) for text in fake.sent] == days
        assert (await ann.status(), await bob.status()) == ("completed", "completed")
        assert flow.ran == ["mail"] * 6


async def test_advancing_by_nothing_waits_for_rest() -> None:
    async with stub() as flow:

        @step
        async def slow(n: int) -> int:
            await anyio.sleep(0.03)
            return n

        @flow.saga
        async def three(n: int) -> int:
            return sum([await slow(n), await slow(n), await slow(n)])

        handle = await flow.start(three, 2)
        await flow.clock.advance()
        assert await handle.status() == "completed"


async def test_retries_wait_by_its_clock_and_compensations_are_on_record() -> None:
    tried: list[float] = []
    async with stub() as flow:

        @step
        async def reserve(n: int) -> int:
            return n

        @compensate(reserve)
        async def release(n: int) -> None: ...

        @step(retry=Retry(attempts=4, wait=2, backoff=10, max_wait=9999))
        async def charge(n: int) -> int:
            tried.append(flow.clock.time)
            raise OSError("no")

        @flow.saga
        async def buy(n: int) -> None:
            await reserve(n)
            await charge(n)

        began = flow.clock.time
        handle = await flow.start(buy, 1)
        await flow.clock.advance(hours=1)
        assert [at - began for at in tried] == [0, 2, 22, 222]
        assert await handle.status() == "compensated"
        assert list(dict.fromkeys(flow.ran)) == ["reserve", "charge", "release"]


async def test_timeouts_signals_deadlines_and_children() -> None:
    async with stub() as flow:

        @flow.saga
        async def child(run: Run = provided) -> str:
            await run.sleep(timedelta(days=5))
            return "child"

        @flow.saga
        async def parent(run: Run = provided) -> list[str]:
            found = []
            try:
                await run.receive("go", type=str, timeout=timedelta(days=2))
            except SignalTimeout:
                found.append(f"{run.now().timestamp():.0f}")
            found.append(await child())
            return found

        @flow.saga
        async def forever(run: Run = provided) -> None:
            await run.receive("never", type=str)

        began = flow.clock.time
        handle = await flow.start(parent)
        other = await flow.start(forever, deadline=timedelta(days=4))
        await flow.clock.advance(timedelta(days=6, hours=23))
        assert await handle.status() == "waiting"
        assert await other.status() in ("failed", "compensated")
        await flow.clock.advance(hours=2)
        assert await handle.result() == [f"{began + 2 * 86400:.0f}", "child"]


async def test_machines_schedules_and_approvals() -> None:
    async with stub() as flow:

        @flow.machine
        class Parcel:
            @state(initial=True)
            class Sent: ...

            @state
            class Late: ...

            @state(final=True)
            class Lost: ...

            @transition(Sent, Late, after=timedelta(days=7))
            async def delay(self) -> None: ...

            @transition(Late, Lost, after=timedelta(days=7))
            async def lose(self) -> None: ...

        chain = flow.approval(
            "holiday", level("lead", role="lead", timeout=timedelta(days=3), escalate_to="boss"), type=int
        )

        await flow.create(Parcel(), id="p-1")
        asked = await flow.start(chain, 3, requester="ann")
        await flow.clock.advance(days=13)
        assert [t.event async for t in flow.history("p-1")] == ["delay"]
        await flow.approve(asked.id, by="eve", roles={"boss"})
        await flow.clock.advance(days=1)
        assert [t.event async for t in flow.history("p-1")] == ["delay", "lose"]
        assert (await asked.result()).approved


async def test_a_step_that_waits_for_the_test_is_named() -> None:
    gate = anyio.Event()
    async with stub() as flow:
        flow.clock.patience = 0.1

        @step
        async def wait() -> None:
            await gate.wait()

        held = flow.saga("held", wait)
        await flow.start(held, id="r-1")
        with pytest.raises(FlowletError, match="'r-1' did not come to rest within"):
            await flow.clock.advance(days=1)
        gate.set()
        await flow.clock.advance()
        assert await flow.handle("r-1").status() == "completed"


async def test_time_does_not_go_back_and_passes_without_a_flowlet() -> None:
    flow = stub()
    before = flow.clock.time
    with pytest.raises(ValueError, match="does not go back"):
        await flow.clock.advance(-1)
    await flow.clock.advance(minutes=1, seconds=1)
    assert flow.clock.time == before + 61


@pytest.mark.parametrize("time", [float("nan"), float("inf")])
async def test_time_passes_by_numbers_only(time: float) -> None:
    async with stub() as flow:
        before = flow.clock.time
        with pytest.raises(ValueError, match="not by"):
            await flow.clock.advance(time)
        assert flow.clock.time == before


async def test_two_who_advance_at_once_do_not_turn_time_back() -> None:
    async with stub() as flow:
        before, refused = flow.clock.time, 0

        async def advance(days: int) -> None:
            nonlocal refused
            try:
                await flow.clock.advance(days=days)
            except FlowletError as error:
                refused += "already" in str(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(advance, 1)
            tasks.start_soon(advance, 1)
        assert (flow.clock.time - before, refused) == (86400, 1)
        await flow.clock.advance(days=1)
        assert flow.clock.time - before == 2 * 86400


async def test_nothing_is_read_and_no_handler_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    monkeypatch.setenv("FLOWLET_STORE", "sqlite:///nowhere/x.db")
    monkeypatch.setenv("FLOWLET_ENABLED", "false")
    async with stub() as flow:
        assert isinstance(flow, Stub)
        assert isinstance(flow, Flowlet)
        assert flow.config.enabled
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_it_is_let_go_when_nobody_holds_it() -> None:
    import weakref

    ref: Any = weakref.ref(stub(registry))
    assert ref() is None


def test_pytest_is_not_needed() -> None:
    program = "import flowlet.testing as t, sys; t.stub(); t.Clock; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
