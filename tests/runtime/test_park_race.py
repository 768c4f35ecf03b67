"""A signal that is sent at the very moment a run sets itself aside: ten thousand times, and none is lost.

Law of these tests: each signal is received once and in order, and nothing here waits for a worker's heartbeat, which
would find what was forgotten: leases are so long that the next one comes when the test has failed.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, Run, provided
from flowlet.core.codec import encode
from flowlet.core.current import run_context
from flowlet.core.run_records import SignalTaken, TimerFired, run_record_codec
from flowlet.errors import Conflict, RunFinished, SignalTimeout
from flowlet.runtime.orders import ORDERED
from flowlet.store import Signal, Store, Work, Write
from flowlet.stores.memory import MemoryStore
from flowlet.stores.sqlite import SQLiteStore
from flowlet.testing import Clock

pytestmark = pytest.mark.anyio

NewStore = Callable[[], Store]

LEASE = 3600.0
"""Seconds: no heartbeat, with the look for work that comes with it, until a test is over."""

PATIENCE = 60.0
"""Seconds after which something was lost."""

TIMER_FIRED, WAITING = b"\xa1t", "waiting"


@pytest.fixture(params=["memory", "sqlite"])
def new_clocked(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Clock], Store]:
    """Make stores that go by a clock."""
    if request.param == "memory":
        return lambda clock: MemoryStore(clock=clock)
    return lambda clock: SQLiteStore(tmp_path / "flow.db", clock=clock)


class Meddling:
    """Delegates to a store; lets somebody send something around each write by which a run sets itself aside.

    Attributes:
        meddle: called with the id and the append, which it has to make.
        parks: how many such writes there were.
    """

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.meddle: Callable[[str, Callable[[], Awaitable[None]]], Awaitable[None]] | None = None
        self.parks = 0
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        write = writes[0] if writes else None
        if self.meddle is None or write is None or not self._is_leaving(write):
            await self._inner.append(writes, work=work)
            return
        self.parks += 1
        try:
            await self.meddle(write.id, lambda: self._inner.append(writes, work=work))
        except Conflict:
            self.refused += 1
            raise

    def _is_leaving(self, write: Write) -> bool:
        """Tell whether a run is not going to look into its inbox after this write, or says that a time is over."""
        return write.status == WAITING or bool(write.records and write.records[-1][1:3] == TIMER_FIRED)


class Senders:
    """Sends the numbers from 0 on to each run, one whenever it is about to leave.

    Args:
        count: so many to each run.
    """

    def __init__(self, flow: Flowlet, other: Flowlet, store: Store, count: int, dice: random.Random) -> None:
        self._flow, self._other, self._store, self._count, self._dice = flow, other, store, count, dice
        self._sent: dict[str, int] = {}
        self._locks: dict[str, anyio.Lock] = {}
        self.group: Any = None
        self.moments = dict.fromkeys(("before", "after", "beside"), 0)

    async def meddle(self, id: str, append: Callable[[], Awaitable[None]]) -> None:
        """Make an append, and send the next number before it, behind it, or at the same time."""
        moment = self._dice.choice(list(self.moments))
        self.moments[moment] += 1
        if moment == "before":
            await self.send(id)
        elif moment == "beside":
            self.group.start_soon(self._send_soon, id)
        await append()
        if moment == "after":
            await self.send(id)
            if self._dice.random() < 0.3:  # let a worker take the run before who left it has heard of that
                self._flow._open_runs.worker.nudge()
                await anyio.sleep(0.002)

    async def _send_soon(self, id: str) -> None:
        for _ in range(self._dice.randrange(8)):
            await anyio.lowlevel.checkpoint()
        await self.send(id)

    async def send(self, id: str) -> None:
        """Send the next number: from here, from another Flowlet, or past both of them."""
        token = run_context.set(None)  # it is none of the run in whose task it may be
        try:
            async with self._locks.setdefault(id, anyio.Lock()):
                await self._send_next(id)
        finally:
            run_context.reset(token)

    async def _send_next(self, id: str) -> None:
        number = self._sent.get(id, 0)
        if number == self._count:
            return
        self._sent[id] = number + 1
        way = self._dice.randrange(3)
        if way == 2:
            await self._store.append((stranger(id, number),))
        else:
            await (self._flow, self._other)[way].handle(id).send("n", number)


def stranger(id: str, number: int) -> Write:
    """Return what a process sends that has no part in this test."""
    return Write(id=id, signals=(Signal("n", encode(number, "a number")),), state=ORDERED)


def assemble(flow: Flowlet) -> tuple[Any, Any]:
    """Assemble what receives, as each process would."""

    @flow.saga
    async def collect(count: int, run: Run = provided) -> list[int]:
        return [await run.receive("n", type=int) for _ in range(count)]

    @flow.saga
    async def collect_in_time(count: int, run: Run = provided) -> list[int]:
        got: list[int] = []
        while len([n for n in got if n >= 0]) < count:
            try:
                got.append(await run.receive("n", type=int, timeout=100))
            except SignalTimeout:
                got.append(-1)
        return got

    return collect, collect_in_time


async def results(flow: Flowlet, ids: Sequence[str]) -> list[Any]:
    """Return what the runs have received, once they have all ended."""
    with anyio.fail_after(PATIENCE):
        return [await flow.handle(id).result() for id in ids]


@pytest.mark.parametrize("peer_knows", [True, False])
async def test_sent_as_it_sets_itself_aside(new_store: NewStore, peer_knows: bool) -> None:
    """By whomever: before the write, behind it, or at that time; a peer may know the definition, and take it over."""
    inner = new_store()
    is_memory = isinstance(inner, MemoryStore)
    runs, count = (250, 20) if is_memory else (40, 10)  # twice in memory, on each loop: ten thousand
    store, peers_store = Meddling(inner), Meddling(new_store())
    flow, other = Flowlet(store, lease=LEASE), Flowlet(peers_store, lease=LEASE)
    collect, _ = assemble(flow)
    if peer_knows:
        assemble(other)
    senders = Senders(flow, other, inner, count, random.Random(3))
    async with flow, other, anyio.create_task_group() as group:
        senders.group = group
        store.meddle = peers_store.meddle = senders.meddle
        ids = [(await flow.start(collect, count, id=f"r-{n}")).id for n in range(runs)]
        received = await results(flow, ids)
        store.meddle = peers_store.meddle = None
        assert [values for values in received if values != list(range(count))] == []
        for id in ids:
            await check_journal(inner, id, count)
    parks = store.parks + peers_store.parks
    assert parks >= runs * count * 0.9, "the signals were not sent when the runs left"
    assert min(senders.moments.values()) > parks / 5
    assert store.refused > runs  # a signal had come in


async def check_journal(store: Store, id: str, count: int) -> None:
    """Each signal was taken once, in the order of the inbox, and nothing is left there."""
    stored = await store.load(id)
    assert stored is not None
    records = [run_record_codec.decode(data, "a record") for data in stored.records]
    assert [r.number for r in records if isinstance(r, SignalTaken)] == list(range(1, count + 1))
    assert stored.head.inbox == count


@pytest.mark.parametrize("peer_knows", [True, False])
async def test_sent_whenever(new_store: NewStore, peer_knows: bool) -> None:
    """Senders that know nothing of when a run leaves, here and in another Flowlet."""
    is_memory = isinstance(new_store(), MemoryStore)
    runs, count = (100, 50) if is_memory else (20, 15)
    flow, other = Flowlet(new_store(), lease=LEASE), Flowlet(new_store(), lease=LEASE)
    collect, _ = assemble(flow)
    if peer_knows:
        assemble(other)
    dice = random.Random(5)
    async with flow, other, anyio.create_task_group() as group:
        ids = [(await flow.start(collect, count, id=f"r-{n}")).id for n in range(runs)]

        async def send_all(id: str) -> None:
            for number in range(count):
                delay = dice.choice((0.0, 0.0, 0.0, 0.001, 0.003, 0.01))
                await anyio.sleep(delay * dice.random())
                await dice.choice((flow, other)).handle(id).send("n", number)

        for id in ids:
            group.start_soon(send_all, id)
        received = await results(flow, ids)
    assert [values for values in received if values != list(range(count))] == []


async def test_sent_while_it_stays_for_a_moment(new_store: NewStore) -> None:
    """A run whose next time is near does not leave, and hears of a signal from elsewhere even so."""
    flow, other = Flowlet(new_store(), lease=LEASE), Flowlet(new_store(), lease=LEASE)
    rounds = 20

    @flow.saga
    async def collect(run: Run = provided) -> list[int]:
        got: list[int] = []
        while len(got) < rounds:
            await run.publish("got", len(got))
            with contextlib.suppress(SignalTimeout):
                got.append(await run.receive("n", type=int, timeout=0.9))
        return got

    async with flow, other:
        handle = await flow.start(collect, id="r")
        with anyio.fail_after(rounds * 0.6):
            for number in range(rounds):
                while await handle.read("got") != number:
                    await anyio.sleep(0.002)
                await (other if number % 2 else flow).handle("r").send("n", number)
            assert await handle.result() == list(range(rounds))
        assert WAITING not in [run.status async for run in flow.runs()]


async def test_sent_as_the_time_is_over() -> None:
    """Each wait ends once: with the signal, if that was stored before the end of the wait, or by its time."""
    clock = Clock()
    inner = MemoryStore(clock=clock)
    runs, count = 60, 20
    store = Meddling(inner)
    flow, other = Flowlet(store, lease=1e9), Flowlet(inner, lease=1e9)
    _, collect = assemble(flow)
    senders = Senders(flow, other, inner, count, random.Random(11))
    waiting = 0

    async def meddle(id: str, append: Callable[[], Awaitable[None]]) -> None:
        """Send around the end of a time; where a run just leaves, let the time pass soon."""
        nonlocal waiting
        waiting += 1
        if waiting % 3:
            await senders.meddle(id, append)
        else:
            await append()

    async with flow, other, anyio.create_task_group() as group:
        senders.group, store.meddle = group, meddle
        ids = [(await flow.start(collect, count, id=f"r-{n}")).id for n in range(runs)]

        async def let_time_pass() -> None:
            while True:
                await anyio.sleep(0.005)
                await clock.advance(60)

        group.start_soon(let_time_pass)
        received = await results(flow, ids)
        group.cancel_scope.cancel()
    assert [v for v in ([n for n in values if n >= 0] for values in received) if v != list(range(count))] == []
    assert sum(values.count(-1) for values in received) > runs, "no time was over"
    for id in ids:
        await check_journal(inner, id, count)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_signal_that_is_stored_first_is_taken_first(new_clocked: Callable[[Clock], Store], moment: str) -> None:
    """The time of a wait has come, and a signal comes between that and its record, from a process elsewhere."""
    clock = Clock()
    inner = new_clocked(clock)
    store = Meddling(inner)
    flow = Flowlet(store, lease=1e9)
    _, collect = assemble(flow)
    moments: list[str] = []

    async def meddle(id: str, append: Callable[[], Awaitable[None]]) -> None:
        if clock.time < 2000.0 or moments:  # it only leaves
            await append()
            return
        moments.append(moment)
        if moment == "before":
            await inner.append((stranger(id, 0),))
        await append()
        if moment == "after":
            await inner.append((stranger(id, 0),))

    store.meddle = meddle
    async with flow:
        handle = await flow.start(collect, 1, id="r")
        with anyio.fail_after(20):
            while await handle.status() != WAITING:
                await anyio.sleep(0.002)
        clock.time = 2000.0
        with anyio.fail_after(20):
            assert await handle.result() == ([0] if moment == "before" else [-1, 0])
        stored = await inner.load("r")
    assert stored is not None
    assert moments == [moment]
    records = [run_record_codec.decode(data, "a record") for data in stored.records]
    assert sum(isinstance(r, TimerFired) for r in records) == (moment == "after")


async def test_sent_as_it_ends(new_store: NewStore) -> None:
    """A signal that comes with the end is refused or harmless; who sends it is told which."""
    inner = new_store()
    store = Meddling(inner)
    flow = Flowlet(store, lease=LEASE)
    told: list[str] = []

    @flow.saga
    async def short(run: Run = provided) -> int:
        return await run.receive("n", type=int)

    async with flow, anyio.create_task_group() as group:

        async def send_twice(id: str) -> None:
            await flow.handle(id).send("n", 0)
            try:
                await flow.handle(id).send("n", 1)
            except RunFinished:
                told.append("refused")
            else:
                told.append("stored")

        ids = [(await flow.start(short, id=f"r-{n}")).id for n in range(50)]
        for id in ids:
            group.start_soon(send_twice, id)
        assert await results(flow, ids) == [0] * 50
    assert len(told) == 50


async def test_the_caller_is_cancelled_as_it_sets_itself_aside(new_store: NewStore) -> None:
    """In whose task the run has come so far: it is nobody's then, and goes on when its signal comes."""
    inner = new_store()
    store = Meddling(inner)
    flow = Flowlet(store, lease=LEASE)
    collect, _ = assemble(flow)
    runs = 20
    scopes: dict[str, anyio.CancelScope] = {}
    dice = random.Random(1)

    async def meddle(id: str, append: Callable[[], Awaitable[None]]) -> None:
        if id not in scopes:  # the caller has gone
            await append()
            return
        moment = dice.choice(("before", "beside", "after"))
        if moment == "before":
            scopes.pop(id).cancel()
            await anyio.lowlevel.checkpoint()
        await append()
        if moment != "before":
            scopes.pop(id).cancel()
        if moment == "after":
            await anyio.lowlevel.checkpoint()

    async def call(id: str) -> None:
        with anyio.CancelScope() as scopes[id]:
            await flow.execute(collect, 2, id=id)

    ids = [f"r-{n}" for n in range(runs)]
    async with flow:
        store.meddle = meddle
        async with anyio.create_task_group() as group:
            for id in ids:
                group.start_soon(call, id)
        assert scopes == {}
        for number in range(2):
            for id in ids:
                await flow.handle(id).send("n", number)
        with anyio.fail_after(20):
            assert [await flow.handle(id).result() for id in ids] == [[0, 1]] * runs
        assert not flow._open_runs.live


async def test_a_child_ends_as_its_parent_sets_itself_aside(new_store: NewStore) -> None:
    """Children that wait themselves: what they wait for comes as they leave, or as who waits for them does."""
    inner = new_store()
    parents, count = (50, 10) if isinstance(inner, MemoryStore) else (15, 5)
    store, peers_store = Meddling(inner), Meddling(new_store())
    flow, other = Flowlet(store, lease=LEASE), Flowlet(peers_store, lease=LEASE)

    def build(flow: Flowlet) -> Any:
        @flow.saga
        async def child(number: int, run: Run = provided) -> int:
            return number + await run.receive("n", type=int)

        @flow.saga
        async def parent(run: Run = provided) -> list[int]:
            return [await child(number) for number in range(count)]

        return parent

    parent = build(flow)
    build(other)
    dice = random.Random(13)
    senders = Senders(flow, other, inner, 1, dice)
    left: dict[str, str] = {}  # by parent: the child that has left, and was sent nothing
    ended = 0

    async def meddle(id: str, append: Callable[[], Awaitable[None]]) -> None:
        nonlocal ended
        above, _, is_child = id.partition("/")
        if is_child and dice.random() < 0.3:
            await senders.meddle(id, append)
        elif is_child:
            await append()
            left[above] = id
        elif id in left:
            child = left.pop(id)
            await senders.meddle(child, append)
            if dice.random() < 0.5:  # until it has ended, or waits in vain
                with anyio.move_on_after(0.2):  # long for a loaded machine, too
                    while (await inner.load(child, limit=0)).head.closed is None:  # type: ignore[union-attr]
                        await anyio.lowlevel.checkpoint()
                    ended += 1
        else:
            await append()

    async with flow, other, anyio.create_task_group() as group:
        senders.group = group
        store.meddle = peers_store.meddle = meddle
        ids = [(await flow.start(parent, id=f"p-{n}")).id for n in range(parents)]

        async def send_to_the_rest() -> None:
            """Send to children whose parents have not left: they may have been looked at by somebody else."""
            while True:
                await anyio.sleep(0.1)
                for id, child in list(left.items()):
                    await anyio.sleep(0.01)
                    if left.get(id) == child:
                        del left[id]
                        await senders.send(child)

        group.start_soon(send_to_the_rest)
        assert await results(flow, ids) == [list(range(count))] * parents
        group.cancel_scope.cancel()
    assert ended > parents
