"""Lanes: jobs that wait for nothing share a task, those that wait run side by side, each in its own context."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
import sniffio

from flowlet.runtime.lanes import Lanes
from flowlet.runtime.tasks import Task

pytestmark = pytest.mark.anyio

Until = Callable[[Callable[[], Any]], Any]
mine: ContextVar[str] = ContextVar("mine", default="nobody's")


class Piece:
    """A job that notes where it ran, and may wait, fail, or not begin at all."""

    def __init__(self, name: str, log: list[str], opener: anyio.Event | None = None, *, wanted: bool = True) -> None:
        self.name = name
        self.log = log
        self.opener = opener
        self.wanted = wanted
        self.stopping = False
        self.tasks: set[int] = set()
        self.task: Task | None = None
        self.is_over = False
        self.fails: BaseException | None = None
        self.swallows = False

    def begin(self, task: Task, /) -> Coroutine[Any, Any, None] | None:
        self.task = task
        return self.main() if self.wanted else None

    async def main(self) -> None:
        self.log.append(f"{self.name} {mine.get()}")
        mine.set(self.name)
        self.tasks.add(anyio.get_current_task().id)
        try:
            if self.opener is not None:
                await self.opener.wait()
                await anyio.sleep(0)
        except BaseException:
            if not self.swallows:
                raise
        self.tasks.add(anyio.get_current_task().id)
        assert mine.get() == self.name
        if self.fails is not None:
            raise self.fails
        self.log.append(f"{self.name} done")

    def over(self) -> None:
        self.is_over = True


def lanes_for(*pieces: Piece, errors: list[BaseException] | None = None) -> Lanes:
    lanes = Lanes((errors if errors is not None else []).append)
    lanes.queue.extend(pieces)
    return lanes


async def test_what_waits_for_nothing_shares_a_task(until: Until) -> None:
    log: list[str] = []
    pieces = [Piece(f"p{n}", log, wanted=n != 2) for n in range(5)]
    lanes_for(*pieces).go()
    await until(lambda: len(log) == 8)
    assert log == [f"p{n} {what}" for n in (0, 1, 3, 4) for what in ("nobody's", "done")]
    assert len(set.union(*(p.tasks for p in pieces))) == 1
    assert not any(p.is_over for p in pieces)


async def test_what_waits_runs_beside_the_others(until: Until) -> None:
    log: list[str] = []
    opener = anyio.Event()
    pieces = [Piece("a", log), Piece("b", log, opener), Piece("c", log), Piece("d", log, opener), Piece("e", log)]
    lanes_for(*pieces).go()
    await until(lambda: "e done" in log)
    assert [entry for entry in log if "done" in entry] == ["a done", "c done", "e done"]
    opener.set()
    await until(lambda: {"b done", "d done"} <= {*log})
    assert all(len(p.tasks) == 1 for p in pieces)  # from its beginning to its end
    (a,), (b,), (d,) = pieces[0].tasks, pieces[1].tasks, pieces[3].tasks
    assert a == b != d
    assert [entry for entry in log if "nobody's" not in entry and "done" not in entry] == []


async def test_what_comes_later_is_taken_on_when_somebody_says_so(until: Until) -> None:
    log: list[str] = []
    opener = anyio.Event()
    lanes = lanes_for(Piece("a", log, opener))
    lanes.go()
    await until(lambda: log)
    lanes.queue.append(Piece("b", log))
    lanes.go()
    await until(lambda: "b done" in log)
    opener.set()
    await until(lambda: "a done" in log)
    lanes.go()  # of nothing
    assert not lanes.queue


@pytest.mark.parametrize("swallows", [True, False])
async def test_a_lane_that_was_cancelled_for_one_job_does_no_other(until: Until, swallows: bool) -> None:
    """On trio the cancellation would meet the next job as well."""
    log: list[str] = []
    first, second = Piece("a", log, anyio.Event()), Piece("b", log)
    first.swallows = swallows
    lanes = lanes_for(first)
    lanes.go()
    await until(lambda: log)
    lanes.queue.append(second)
    first.stopping = True
    assert first.task is not None
    first.task.cancel()
    await until(lambda: "b done" in log)
    assert first.is_over is not swallows
    assert first.tasks.isdisjoint(second.tasks)


async def test_what_a_job_raises_is_told_and_ends_no_other(until: Until) -> None:
    log: list[str] = []
    errors: list[BaseException] = []
    broken = Piece("a", log)
    broken.fails = ValueError("a")
    lanes_for(broken, Piece("b", log), errors=errors).go()
    await until(lambda: "b done" in log)
    assert [repr(e) for e in errors] == ["ValueError('a')"]
    assert broken.is_over


async def test_a_job_sees_the_loop_that_it_runs_on(until: Until) -> None:
    """Timeouts and threads work in it as in any task."""
    seen: list[Any] = []

    class Using(Piece):
        async def main(self) -> None:
            seen.append(sniffio.current_async_library())
            with anyio.move_on_after(0.01):
                await anyio.sleep(10)
            seen.append(await anyio.to_thread.run_sync(mine.get))
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 0)
            seen.append("end")

    mine.set("the spawner's")
    lanes_for(Using("a", []), Using("b", [])).go()
    await until(lambda: seen.count("end") == 2)
    assert seen.count("the spawner's") == 2
