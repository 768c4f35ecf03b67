"""`Flowlet.blocking`: threads without an event loop use a Flowlet, wait, stop waiting, and get the very errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, Run, level, provided, state, step, transition
from flowlet.app.blocking import Blocking
from flowlet.errors import Disabled, FlowletError, RunNotFound, TransitionNotAllowed


class Refused(Exception):
    """An error of the user's own."""


@step
async def double(n: int) -> int:
    return 2 * n


@step
async def refuse(n: int) -> int:
    raise Refused(n)


def make() -> Flowlet:
    flow = Flowlet()
    flow.saga("twice", double)
    flow.saga("refused", refuse)
    return flow


@pytest.fixture(params=["asyncio", "trio"])
def flow(request: pytest.FixtureRequest) -> Iterator[tuple[Flowlet, Blocking]]:
    made = Flowlet()
    with made.blocking(backend=request.param) as b:
        yield made, b


def test_runs(flow: tuple[Flowlet, Blocking]) -> None:
    made, b = flow
    twice, refused = made.saga("twice", double), made.saga("refused", refuse)
    assert b.execute(twice, 4, id="r-1") == 8
    handle = b.start(twice, 5, id="r-2")
    assert (handle.id, handle.result(timeout=5), handle.status()) == ("r-2", 10, "completed")
    assert handle.report().steps["double"].value == 10
    kinds = [record.kind for record in handle.history()]
    assert kinds[0] == "started"
    with pytest.raises(Refused):
        b.execute(refused, 1, id="r-3")
    assert [run.id for run in b.runs()] == ["r-1", "r-2", "r-3"]
    assert [run.id for run in b.runs(status="completed", limit=1)] == ["r-1"]
    assert b.handle("r-1", twice).result() == 8
    with pytest.raises(RunNotFound):
        b.handle("nobody").status()
    assert b.bulk(double, range(4), retry=1).succeeded == 4
    for _ in b.runs():  # left early
        break


def test_signals_and_giving_up_waiting(flow: tuple[Flowlet, Blocking]) -> None:
    made, b = flow

    @made.saga
    async def wait(run: Run = provided) -> int:
        await run.publish("asked", 1)
        return await run.receive("answer", type=int)

    handle = b.start(wait, id="r-1")
    with pytest.raises(TimeoutError, match="run 'r-1' has not ended within"):
        handle.result(timeout=0.05)
    assert handle.read("asked", type=int) == 1
    handle.send("answer", 42)
    assert handle.result(timeout=5) == 42
    other = b.start(wait, id="r-2")
    other.cancel()
    assert other.status() == "cancelled"


def test_machines_and_whatever_else_is_async(flow: tuple[Flowlet, Blocking]) -> None:
    made, b = flow

    @made.machine
    class Order:
        total: int = 0

        @state(initial=True)
        class Open: ...

        @state(final=True)
        class Paid: ...

        @transition(Open, Paid)
        async def pay(self, by: str) -> str:
            return f"paid by {by}"

    order = b.create(Order(), id="o-1")
    assert b.call(order.pay, by="ann") == "paid by ann"
    with pytest.raises(TransitionNotAllowed):
        b.call(order.pay, by="bob")
    assert b.load(Order, "o-1") is order
    assert [t.event for t in b.history("o-1")] == ["pay"]
    assert list(b.machines(Order, state=Order.Paid)) == ["o-1"]
    chain = made.approval("holiday", level("lead", role="lead"), type=int)
    asked = b.start(chain, 3, requester="ann", id="h-1")
    assert [item.id for item in b.iterate(made.inbox(role="lead"))] == ["h-1"]
    b.call(made.approve, "h-1", by="eve", roles={"lead"})
    assert asked.result(timeout=5).approved


def test_many_threads(flow: tuple[Flowlet, Blocking]) -> None:
    made, b = flow
    twice = made.saga("twice", double)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: b.execute(twice, n, id=f"r-{n}"), range(60))) == [2 * n for n in range(60)]


def test_where_it_is_refused() -> None:
    made = make()
    b = made.blocking()
    with pytest.raises(FlowletError, match="this is not open"):
        b.call(anyio.sleep, 0)
    with b:
        with pytest.raises(FlowletError, match="open already"):
            b.open()
        with pytest.raises(FlowletError, match="live on another event loop"), made.blocking():
            pass

        async def inside() -> None:
            with pytest.raises(FlowletError, match="an event loop runs in this thread"):
                b.call(anyio.sleep, 0)
            with pytest.raises(FlowletError, match="live on another event loop"):
                await made.__aenter__()

        anyio.run(inside)
        with pytest.raises(FlowletError, match="an event loop runs in this thread"):
            b.call(inside_of(b))
        assert b.call(anyio.sleep, 0) is None
    with pytest.raises(FlowletError, match="this is not open"):
        b.call(anyio.sleep, 0)
    with b:  # and again, on another loop
        assert b.call(anyio.sleep, 0) is None


def inside_of(b: Blocking) -> Callable[[], Any]:
    async def main() -> None:
        b.call(anyio.sleep, 0)

    return main


def test_errors_on_entering_keep_their_type(tmp_path: Path) -> None:
    made = Flowlet(f"sqlite:///{tmp_path}/none/x.db")
    with pytest.raises(FlowletError), made.blocking():
        pass
    with make().blocking() as b, pytest.raises(RunNotFound):
        b.handle("r").status()
    disabled = Flowlet(enabled=False)
    with disabled.blocking() as b, pytest.raises(Disabled):
        b.execute(disabled.saga("twice", double), 1)


def test_an_interrupt_leaves_nothing_broken() -> None:
    made = Flowlet()

    @made.saga
    async def wait(run: Run = provided) -> int:
        return await run.receive("answer", type=int)

    with made.blocking() as b:
        handle = b.start(wait, id="r-1")
        timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            handle.result()
        timer.join()
        handle.send("answer", 1)
        assert handle.result(timeout=5) == 1


def test_who_waits_when_it_is_closed_is_told() -> None:
    made = Flowlet()
    told: list[BaseException] = []

    @made.saga
    async def wait(run: Run = provided) -> int:
        return await run.receive("answer", type=int)

    b = made.blocking().open()
    handle = b.start(wait, id="r-1")

    def ask() -> None:
        try:
            handle.result()
        except BaseException as error:
            told.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.1)
    b.close()
    thread.join(5)
    assert not thread.is_alive()
    assert isinstance(told[0], FlowletError)
    b.close()  # again


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_what_ends_a_program_is_for_who_called_and_ends_no_loop(
    flow: tuple[Flowlet, Blocking], error: BaseException
) -> None:
    made, b = flow
    twice = made.saga("twice", double)

    async def leave() -> None:
        raise error

    with pytest.raises(type(error)):
        b.call(leave)
    assert b.execute(twice, 21) == 42


def test_its_own_loop_cannot_close_it(flow: tuple[Flowlet, Blocking]) -> None:
    made, b = flow
    twice = made.saga("twice", double)

    async def close() -> None:
        b.close()

    with pytest.raises(FlowletError, match="from another thread"):
        b.call(close)
    assert b.execute(twice, 21) == 42


DEAD = """
from flowlet import Flowlet, step
from flowlet.errors import FlowletError
made = Flowlet()
@step
async def leave() -> None:
    raise SystemExit(3)
left = made.saga("left", leave)
with made.blocking() as b:
    try:
        b.execute(left)
    except (SystemExit, FlowletError):
        print("told")
    b._thread.join(10)
    try:
        b.execute(left)
    except FlowletError:
        print("refused")
print("closed")
"""


def test_it_can_be_closed_when_its_loop_is_dead() -> None:
    """In a process of its own: asyncio lets nothing survive a SystemExit, which would meet the next test as well."""
    done = subprocess.run([sys.executable, "-c", DEAD], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["told", "refused", "closed"]), done.stderr


def test_how_long_to_wait_may_be_a_timedelta(flow: tuple[Flowlet, Blocking]) -> None:
    made, b = flow

    @made.saga
    async def wait(run: Run = provided) -> int:
        return await run.receive("answer", type=int)

    handle = b.start(wait)
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        handle.result(timedelta(seconds=0.01))
    handle.cancel()


PROGRAM = """
import os, sys
from flowlet import Flowlet, step
flow = Flowlet(sys.argv[1])
@step
async def double(n: int) -> int:
    return 2 * n
twice = flow.saga("twice", double)
b = flow.blocking().open()
print(b.execute(twice, 21, id="r-1"), flush=True)
if not os.fork():
    try:
        b.execute(twice, 1)
    except Exception as error:
        print(error, flush=True)
    b.close()
    os._exit(0)
os.wait()
"""


def test_a_program_that_never_closes_it_ends_and_a_fork_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM, f"sqlite:///{tmp_path}/x.db"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "42",
        "this was opened before a fork, and its thread is in the parent: open one in each process",
    ]
    assert done.stderr == ""
