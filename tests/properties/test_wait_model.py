"""Random programs that wait, with signals, the passing of time and restarts at random, against a model of three rules.

The rules: a signal that is in the inbox is taken before a time that is over; signals of one topic are taken in order;
the time of a wait counts from when the run first waits, whatever becomes of the process that set it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import anyio
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interrupted import Silent, drop_event
from msgspec import Struct

from flowlet import Flowlet, Registry, Run, gather, provided, step
from flowlet.core.codec import encode
from flowlet.core.run_records import RunRecord, SignalTaken, TimerFired, TimerSet, run_record_codec
from flowlet.errors import SignalTimeout
from flowlet.runtime import hand_clock, worker
from flowlet.runtime.orders import ORDERED
from flowlet.store import Signal, Stored, Write
from flowlet.stores.memory import MemoryStore
from flowlet.testing import Clock

TOPICS = ("x", "y")
LEASE = 10.0
OVER = -1
"""What a body notes for a time that was over before a signal came."""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    structlog.configure(processors=[drop_event])
    monkeypatch.setattr(worker, "_LEAST_PAUSE", 0.0)
    monkeypatch.setattr(hand_clock, "_EVERY", 0.0005)
    yield
    structlog.reset_defaults()


# ---------------------------------------------------------------- random programs
class Wait(Struct, frozen=True, tag="wait"):
    """A wait for a signal, for a time, or for the one until the other."""

    topic: str | None
    delay: float | None


class Act(Struct, frozen=True, tag="act"):
    """A step."""


class Gather(Struct, frozen=True, tag="gather"):
    """Several of them side by side."""

    items: tuple[Wait | Act, ...]


Item: TypeAlias = Wait | Act | Gather

delays = st.sampled_from([0.0, 0.5, 1.0, 3.0, 10.0, 30.0])
waits = st.one_of(
    st.builds(Wait, st.none(), delays),
    st.builds(Wait, st.sampled_from(TOPICS), st.none()),
    st.builds(Wait, st.sampled_from(TOPICS), delays),
)
singles = st.one_of(waits, waits, waits, st.builds(Act))
programs = st.lists(
    st.one_of(singles, singles, st.builds(Gather, st.lists(singles, min_size=1, max_size=4).map(tuple))),
    min_size=1,
    max_size=6,
)


@step
async def act(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    return number


def assemble() -> tuple[Registry, Any]:
    registry = Registry()

    @registry.saga
    async def program(items: list[Item], run: Run = provided) -> list[int]:
        got: list[int] = []

        async def one(item: Item) -> list[int]:
            if isinstance(item, Gather):
                return list(await gather(*(call(i) for i in item.items)))
            return [await call(item)]

        def call(item: Wait | Act) -> Any:
            if isinstance(item, Act):
                return act(0)
            if item.topic is None:
                assert item.delay is not None
                return run.sleep(item.delay)
            return run.receive(item.topic, type=int, timeout=item.delay)

        for item in items:
            try:
                got += [0 if value is None else value for value in await one(item)]
            except SignalTimeout:
                got.append(OVER)
        return got

    return registry, program


# ---------------------------------------------------------------- random worlds
class Send(NamedTuple):
    topic: str
    through: bool  # a handle, and not past flowlet


class Pass(NamedTuple):
    seconds: float


class Restart(NamedTuple):
    """Leave the Flowlet; let others do something while nobody is there; enter another one."""

    meanwhile: tuple[Send | Pass, ...]


class Lose(NamedTuple):
    """The process dies at the next append of a run, before it is stored or after, if there is one."""

    before: bool
    then: Send | Pass
    meanwhile: tuple[Send | Pass, ...]


Event: TypeAlias = Send | Pass | Restart | Lose

sends = st.builds(Send, st.sampled_from(TOPICS), st.booleans())
passes = st.builds(Pass, st.sampled_from([0.5, 1.0, 3.0, 10.0, 40.0]))
few = st.lists(st.one_of(sends, passes), max_size=3).map(tuple)
events = st.lists(
    st.one_of(
        sends, sends, passes, passes, st.builds(Restart, few), st.builds(Lose, st.booleans(), sends | passes, few)
    ),
    max_size=10,
)


# ---------------------------------------------------------------- the model
class End(NamedTuple):
    """A wait has ended, with a signal or (0) because its time was over."""

    start: int
    number: int


class Model:
    """What must have come of a program, a time and an inbox.

    Attributes:
        ends: of waits, in order.
        dues: when waits end by themselves, by start.
    """

    def __init__(self, program: Sequence[Item]) -> None:
        self.program = program
        self.ends: list[End] = []
        self.dues: dict[int, float] = {}
        self.inbox: list[tuple[str, int]] = []  # topics and values, in the order in which they came

    def go_on(self, time: float) -> list[int] | None:
        """Let everything end that can; return what the body returns, if it does."""
        while True:
            got, opened = self._interpret()
            end = self._signal(opened)
            if end is None:
                for start, wait in opened.items():
                    if wait.delay is not None:
                        self.dues.setdefault(start, time + wait.delay)
                end = self._time(opened, time)
            if end is None:
                return None if opened else got
            self.ends.append(end)

    def _signal(self, opened: dict[int, Wait]) -> End | None:
        taken = {end.number for end in self.ends}
        for number, (topic, _) in enumerate(self.inbox, 1):
            starts = [start for start, wait in opened.items() if wait.topic == topic]
            if number not in taken and starts:
                return End(starts[0], number)
        return None

    def _time(self, opened: dict[int, Wait], time: float) -> End | None:
        over = [(self.dues[start], start) for start in opened if self.dues.get(start, time + 1) <= time]
        return End(min(over)[1], 0) if over else None

    def _interpret(self) -> tuple[list[int], dict[int, Wait]]:
        """Run the program as far as its waits have ended; return its notes and the waits it is at."""
        ended = dict(self.ends)
        got: list[int] = []
        start = 0
        for item in self.program:
            items = item.items if isinstance(item, Gather) else (item,)
            opened = {start + n: i for n, i in enumerate(items, 1) if isinstance(i, Wait)}
            values = [self._value(i, ended.get(start + n)) for n, i in enumerate(items, 1)]
            start += len(items)
            if OVER in values:
                got.append(OVER)
            elif None in values:
                return got, {number: wait for number, wait in opened.items() if number not in ended}
            else:
                got += [value for value in values if value is not None]
        return got, {}

    def _value(self, item: Wait | Act, number: int | None) -> int | None:
        if isinstance(item, Act):
            return 0
        if number == 0:
            return 0 if item.topic is None else OVER
        return None if number is None else self.inbox[number - 1][1]

    def rewind(self, ends: list[End], dues: dict[int, float]) -> None:
        """Go back to what is on record, which must be the beginning of what has happened."""
        assert ends == self.ends[: len(ends)]
        assert dues.items() <= self.dues.items()
        self.ends, self.dues = ends, dues


# ---------------------------------------------------------------- the world
class ClockedSilent(Silent):
    """A store that may fall silent and goes by a clock."""

    def __init__(self, store: MemoryStore, clock: Clock) -> None:
        super().__init__(store, None)
        self.clock = clock


class World:
    """One run in a store, and what happens around it."""

    def __init__(self, program: list[Item]) -> None:
        self.clock = Clock()
        self.store = MemoryStore(clock=self.clock)
        self.registry, self.definition = assemble()
        self.program = program
        self.model = Model(program)
        self.expected: list[int] | None = None
        self.counts: Counter[str] = Counter()

    async def live(self, events: Sequence[Event]) -> None:
        """Let all of it happen, in as many lives as it takes, and hold the run against the model all the time."""
        left = list(events)
        while await self._live_once(left):
            pass

    async def _live_once(self, left: list[Event]) -> bool:
        """Enter a Flowlet and go on with the events; tell whether another one has to follow."""
        store = ClockedSilent(self.store, self.clock)
        async with Flowlet(store, registry=self.registry, lease=LEASE, grace=0) as flow:
            if await self.store.load("r", limit=0) is None:
                await flow.start(self.definition, self.program, id="r")
            await self._settle(flow, store)
            while left:
                event = left.pop(0)
                self.counts[type(event).__name__] += 1
                if isinstance(event, Restart):
                    break
                if isinstance(event, Lose):
                    store.lose_next(before=event.before)
                    await self._do(event.then, None)
                    await self._settle(flow, store)
                    if store.lost.is_set():
                        self.counts["lost"] += 1
                        break
                    store._crash = None
                else:
                    await self._do(event, flow)
                    await self._settle(flow, store)
            else:
                await self._finish(flow, store)
                return False
        if store.lost.is_set():
            self.clock.time += 2 * LEASE  # after which it counts as dead
            self.model.rewind(*self._recorded(await self._stored()))
        for action in event.meanwhile:
            await self._do(action, None)
        return True

    async def _do(self, action: Send | Pass, flow: Flowlet | None) -> None:
        if isinstance(action, Pass):
            self.clock.time += action.seconds
            return
        if (await self._stored()).head.closed is not None:
            return
        value = len(self.model.inbox) + 1
        if flow is not None and action.through:
            await flow.handle("r").send(action.topic, value)
        else:
            signal = Signal(action.topic, encode(value, "a value"))
            await self.store.append((Write(id="r", signals=(signal,), state=ORDERED),))
        self.model.inbox.append((action.topic, value))

    async def _settle(self, flow: Flowlet, store: ClockedSilent) -> None:
        """Wait until nothing more happens by itself, or the store is lost; then hold the journal against the model."""
        with anyio.fail_after(20):
            while not store.lost.is_set() and not await self._is_still(flow):
                await anyio.sleep(0)
        self.expected = self.model.go_on(self.clock.time)
        if not store.lost.is_set():
            stored = await self._stored()
            ends, dues = self._recorded(stored)
            assert ends == self.model.ends
            assert dues == self.model.dues
            assert (stored.head.closed is not None) == (self.expected is not None)

    async def _is_still(self, flow: Flowlet) -> bool:
        stored = await self._stored()
        head, time = stored.head, self.clock.time
        if head.closed is not None:
            return True
        runs = flow._open_runs
        execution = runs.live.get("r")
        if execution is None:
            return head.status == "waiting" and head.owner is None and (head.wake is None or head.wake > time)
        engine = execution._engine  # it stays for a moment, since its next time is near
        doze = runs._dozes._times.get("r", 0.0)
        is_seen = execution.journal.inbox == head.inbox and engine is not None and not engine._has_news
        if engine is None or not engine._waits:  # a step is under way, and the next time is that of a wait before it
            return False
        return doze > time and is_seen and not (engine._inbox or engine.journal.pending)

    async def _stored(self) -> Stored:
        stored = await self.store.load("r")
        assert stored is not None
        return stored

    def _recorded(self, stored: Stored) -> tuple[list[End], dict[int, float]]:
        records: list[RunRecord] = [run_record_codec.decode(data, "a record") for data in stored.records]
        ends = [
            End(r.start, r.number if isinstance(r, SignalTaken) else 0)
            for r in records
            if isinstance(r, (SignalTaken, TimerFired))
        ]
        timers = [r for r in records if isinstance(r, TimerSet)]
        assert len({r.start for r in timers}) == len(timers), "a time was set twice"
        due = {r.start: r.due for r in timers}
        assert all(r.at >= due[r.start] for r in records if isinstance(r, TimerFired)), "a time was over early"
        self.counts["signals"] += sum(end.number > 0 for end in ends)
        self.counts["times"] += sum(end.number == 0 for end in ends)
        return ends, due

    async def _finish(self, flow: Flowlet, store: ClockedSilent) -> None:
        """Give it what it waits for, until it has ended."""
        for _ in range(60):
            if self.expected is not None:
                break
            for action in (*(Send(topic, True) for topic in TOPICS), Pass(40.0)):
                await self._do(action, flow)
                await self._settle(flow, store)
        with anyio.fail_after(20):
            assert await flow.handle("r", self.definition).result() == self.expected


Backend: TypeAlias = Literal["asyncio", "trio"]


@pytest.mark.parametrize(("backend", "examples"), [("asyncio", 150), ("trio", 50)])
def test_random_programs_receive_what_the_model_says(backend: Backend, examples: int) -> None:
    counts: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(program=programs, events=events)
    def check(program: list[Item], events: list[Event]) -> None:
        world = World(program)
        anyio.run(world.live, events, backend=backend)
        counts.update(world.counts)
        counts["over"] += OVER in (world.expected or ())

    check()
    assert all(counts[kind] > examples / 10 for kind in ("Restart", "lost", "signals", "times", "over")), counts
