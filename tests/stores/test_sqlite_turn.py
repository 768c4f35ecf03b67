"""What a turn of the loop gathers goes to one place together, and the writer's thread gets its share of the GIL."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import pytest

from flowlet.stores.bell import Bell
from flowlet.stores.port import Ticket
from flowlet.stores.sqlite_pace import Pace
from flowlet.stores.sqlite_turn import Turn
from flowlet.stores.sqlite_work import Append, Request


class Loop:
    """A port whose loop is turned by hand."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.timers: list[Callable[[], None]] = []
        self.woken: list[Ticket] = []

    def is_here(self) -> bool:
        return True

    def soon(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    post = soon

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        assert seconds == pytest.approx(0.005)
        self.timers.append(call)

    async def wait(self, ticket: Ticket) -> None:
        raise AssertionError("not here")

    def wake(self, tickets: Iterable[Ticket]) -> None:
        self.woken += tickets

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()

    def tick(self) -> None:
        timers, self.timers = self.timers, []
        for call in timers:
            call()


class Writer:
    """Takes what it is given and does nothing."""

    def __init__(self, *, in_the_way: bool = False, interrupted: bool = False) -> None:
        self.pace = Pace()
        self.served = 0
        self.handed: list[Sequence[Request]] = []
        self.here: list[Sequence[Request]] = []
        self._in_the_way, self._interrupted = in_the_way, interrupted

    def hand(self, requests: Sequence[Request]) -> None:
        self.handed.append(requests)

    def commit_here(self, requests: Sequence[Request]) -> bool | None:
        if self._interrupted:
            raise KeyboardInterrupt
        if self._in_the_way:
            return None
        self.here.append(requests)
        return True


def gather(writer: Writer, count: int = 1, size: int = 0, *, work: bool = False) -> tuple[Loop, Turn, Bell]:
    loop, bell = Loop(), Bell()
    turn = Turn(loop, cast("Any", writer), bell)
    for _ in range(count):
        request = Append([], (lambda connection: []) if work else None)
        request.size = size
        turn._accept(request)
    return loop, turn, bell


def test_a_turns_requests_are_committed_together_at_its_end() -> None:
    writer = Writer()
    loop, turn, bell = gather(writer, 5)
    assert writer.here == []
    loop.turn()
    assert [len(requests) for requests in writer.here] == [5]
    assert len(loop.woken) == 5
    assert (writer.handed, turn.inline, bell.count) == ([], 1, 1)


@pytest.mark.parametrize(
    ("writer", "arguments"),
    [
        (Writer(in_the_way=True), {}),
        (Writer(), {"work": True}),
        (Writer(), {"count": 257}),
        (Writer(), {"count": 2, "size": 600_000}),
    ],
)
def test_what_does_not_fit_is_handed_over(writer: Writer, arguments: dict[str, Any]) -> None:
    loop, turn, bell = gather(writer, **arguments)
    loop.turn()
    assert [len(requests) for requests in writer.handed] == [arguments.get("count", 1)]
    assert (writer.here, loop.woken, turn.inline) == ([], [], 0)
    turn.finished(writer.handed[0], True)
    assert (loop.woken, bell.count) == ([], 0), "the writer's thread only posts"
    loop.turn()
    assert (len(loop.woken), bell.count) == (arguments.get("count", 1), 1)


def test_what_comes_while_the_writer_works_joins_its_queue() -> None:
    writer = Writer()
    loop, turn, _ = gather(writer, 1, work=True)
    loop.turn()
    turn._accept(Append([], None))
    loop.turn()
    assert len(writer.handed) == 2
    turn.finished(writer.handed[0], False)
    turn.finished(writer.handed[1], False)
    loop.turn()
    turn._accept(Append([], None))
    loop.turn()
    assert len(writer.here) == 1


def test_an_interrupt_from_the_keyboard_loses_no_request() -> None:
    writer = Writer(interrupted=True)
    loop, _, _ = gather(writer, 3)
    with pytest.raises(KeyboardInterrupt):
        loop.turn()
    assert [len(requests) for requests in writer.handed] == [3]


def test_the_loop_steps_aside_for_the_writers_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[float] = []
    writer = Writer(in_the_way=True)
    loop, turn, _ = gather(writer)
    monkeypatch.setattr(time, "sleep", steps.append)
    loop.turn()
    counts = []
    for _ in range(5):
        loop.tick()
        counts.append(len(steps))
        steps.clear()
    assert counts == [8, 4, 2, 1, 1], "less and less when it is of no use"

    def serve(seconds: float) -> None:
        steps.append(seconds)
        writer.served += 1

    monkeypatch.setattr(time, "sleep", serve)
    loop.tick()
    assert len(steps) == 1, "no more than it needs"
    monkeypatch.setattr(time, "sleep", steps.append)
    steps.clear()
    loop.tick()
    assert len(steps) == 8, "and as often as before when it helped"
    turn.finished(writer.handed[0], False)
    loop.turn()
    steps.clear()
    loop.tick()
    assert (steps, loop.timers) == ([], []), "nothing is under way, so nobody watches"
    turn._accept(Append([], None))
    loop.turn()
    assert len(loop.timers) == 1
