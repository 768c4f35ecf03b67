"""What every store of flowlet must do, whatever it is made of: the promises of `flowlet.store`.

Each test runs on each store and on each event loop, with a clock that only the test moves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from flowlet.errors import Conflict, FlowletError, LeaseLost, RunFinished, RunNotFound, StoreError
from flowlet.store import New, Signal, Store, Write
from flowlet.stores.memory import MemoryStore
from flowlet.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio

RUN = New("run", "checkout", "1")
MACHINE = New("machine", "Order", "1")
CHECKOUTS = [("run", "checkout", "1")]


class Clock:
    """The store's time, moved by hand."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    made: Store
    made = MemoryStore(clock=clock) if request.param == "memory" else SQLiteStore(tmp_path / "store.db", clock=clock)
    yield made
    await made.close()


async def create(store: Store, *ids: str, new: New = RUN, **facts: Any) -> None:
    await store.append([Write(id=id, expect=0, create=new, records=[b"first"], **facts) for id in ids])


async def outcome_of(call: Awaitable[object]) -> FlowletError | None:
    """Return the error of a call, or None."""
    try:
        await call
    except FlowletError as error:
        return error
    return None


async def together(*calls: Callable[[], Awaitable[object]]) -> list[FlowletError | None]:
    """Make all calls at once; return the error of each, or None."""
    outcomes: list[FlowletError | None] = [None] * len(calls)

    async def one(index: int) -> None:
        outcomes[index] = await outcome_of(calls[index]())

    async with anyio.create_task_group() as group:
        for index in range(len(calls)):
            group.start_soon(one, index)
    return outcomes


async def versions(store: Store, *ids: str) -> list[int | None]:
    found = [await store.load(id) for id in ids]
    return [None if stored is None else stored.head.version for stored in found]


# Records ------------------------------------------------------------------------------------------
async def test_it_is_a_store(store: Store) -> None:
    assert isinstance(store, Store)


async def test_what_was_created_can_be_loaded(store: Store, clock: Clock) -> None:
    await create(store, "a", new=New("machine", "Order", "7"), status="open", state="Draft", wake=1234.5)
    stored = await store.load("a")
    assert stored is not None
    head = stored.head
    assert (head.id, head.kind, head.definition, head.definition_version) == ("a", "machine", "Order", "7")
    assert (head.version, head.status, head.state, head.wake) == (1, "open", "Draft", 1234.5)
    assert (head.owner, head.fence, head.claims, head.inbox) == (None, 0, 0, 0)
    assert (head.created, head.updated, head.closed) == (1000.0, 1000.0, None)
    assert (list(stored.records), stored.snapshot, stored.snapshot_version) == ([b"first"], None, 0)
    assert list(stored.signals) == []


async def test_an_unknown_id_loads_as_none(store: Store) -> None:
    assert await store.load("nobody") is None


async def test_records_are_numbered_without_gap(store: Store) -> None:
    await create(store, "a")
    for version in range(1, 20, 2):
        await store.append([Write(id="a", expect=version, records=[b"%d" % (version + 1), b"%d" % (version + 2)])])
    stored = await store.load("a")
    assert stored is not None
    assert stored.head.version == 21
    assert list(stored.records) == [b"first", *(b"%d" % n for n in range(2, 22))]


async def test_load_from_a_version_on(store: Store) -> None:
    await create(store, "a")
    await store.append([Write(id="a", expect=1, records=[b"%d" % n for n in range(2, 11)])])
    for after, limit, expected in (
        (0, 2, [b"first", b"2"]),
        (8, None, [b"9", b"10"]),
        (3, 3, [b"4", b"5", b"6"]),
        (10, None, []),
        (99, None, []),
        (4, 0, []),
    ):
        stored = await store.load("a", after=after, limit=limit)
        assert stored is not None
        assert list(stored.records) == expected
        assert stored.head.version == 10


async def test_a_stale_version_is_refused_and_nothing_stored(store: Store) -> None:
    await create(store, "a")
    await store.append([Write(id="a", expect=1, records=[b"second"], status="two")])
    with pytest.raises(Conflict) as caught:
        await store.append([Write(id="a", expect=1, records=[b"other"], status="other", signals=[Signal("t", b"")])])
    assert (caught.value.expected, caught.value.actual, caught.value.id) == (1, 2, "a")
    stored = await store.load("a")
    assert stored is not None
    assert (list(stored.records), stored.head.status, list(stored.signals)) == ([b"first", b"second"], "two", [])


async def test_an_append_that_was_stored_is_not_stored_again(store: Store) -> None:
    """The reply was lost, the writer tries again: it learns that somebody, itself, was first."""
    await create(store, "a")
    write = Write(id="a", expect=1, records=[b"second"])
    await store.append([write])
    with pytest.raises(Conflict):
        await store.append([write])
    with pytest.raises(Conflict) as caught:
        await create(store, "a")
    assert (caught.value.expected, caught.value.actual) == (0, 2)
    assert await versions(store, "a") == [2]


async def test_a_write_to_nothing_is_refused(store: Store) -> None:
    for write in (
        Write(id="nobody", expect=1, records=[b""]),
        Write(id="nobody", expect=0, records=[b""]),
        Write(id="nobody", signals=[Signal("t", b"")]),
        Write(id="nobody", owner=None),
    ):
        with pytest.raises(RunNotFound, match="nobody"):
            await store.append([write])
    assert await store.load("nobody") is None


async def test_writes_that_contradict_themselves_are_refused(store: Store) -> None:
    await create(store, "a")
    for writes, reason in (
        ([Write(id="a", expect=1, records=[b""]), Write(id="a", expect=2, records=[b""])], "same id"),
        ([Write(id="a", records=[b""])], "expects no version"),
        ([Write(id="b", expect=1, create=RUN, records=[b""])], "expect 0"),
        ([Write(id="b", create=RUN, records=[b""])], "expect 0"),
    ):
        with pytest.raises(StoreError, match=reason):
            await store.append(writes)
    assert await versions(store, "a", "b") == [1, None]


async def test_facts_that_a_write_does_not_name_stay(store: Store, clock: Clock) -> None:
    await create(store, "a", status="running", state="s", wake=5.0)
    clock.time = 1001.0
    await store.append([Write(id="a", expect=1, records=[b"second"])])
    stored = await store.load("a")
    assert stored is not None
    head = stored.head
    assert (head.status, head.state, head.wake, head.created, head.updated) == ("running", "s", 5.0, 1000.0, 1001.0)
    await store.append([Write(id="a", expect=2, records=[b"third"], status="", wake=None, state="t")])
    stored = await store.load("a")
    assert stored is not None
    assert (stored.head.status, stored.head.state, stored.head.wake) == ("", "t", None)


async def test_several_ids_are_written_together_or_not_at_all(store: Store) -> None:
    await create(store, "a", "b")
    good = [
        Write(id="a", expect=1, records=[b"second"], status="changed"),
        Write(id="new", expect=0, create=RUN, records=[b"first"]),
    ]
    for bad in (
        Write(id="b", expect=7, records=[b"second"]),
        Write(id="nobody", signals=[Signal("t", b"")]),
        Write(id="b", expect=1, fence=3, records=[b"second"]),
    ):
        for writes in ([*good, bad], [bad, *good]):
            assert await outcome_of(store.append(writes)) is not None
            assert await versions(store, "a", "b", "new") == [1, 1, None]
    await store.append([*good, Write(id="b", signals=[Signal("t", b"hello")])])
    assert await versions(store, "a", "b", "new") == [2, 1, 1]
    stored = await store.load("b")
    assert stored is not None
    assert [signal.payload for signal in stored.signals] == [b"hello"]


async def test_an_append_of_nothing_does_nothing(store: Store) -> None:
    await store.append([])
    assert list(await store.scan()) == []


# Races --------------------------------------------------------------------------------------------
async def test_appends_of_different_callers_are_independent(store: Store) -> None:
    ids = [f"id-{n}" for n in range(50)]
    await create(store, *ids)

    def append(n: int) -> Callable[[], Awaitable[None]]:
        expect = 1 if n % 3 else 9
        return lambda: store.append([Write(id=ids[n], expect=expect, records=[b"second"])])

    outcomes = await together(*(append(n) for n in range(50)))
    assert [type(outcome) for outcome in outcomes] == [type(None) if n % 3 else Conflict for n in range(50)]
    assert await versions(store, *ids) == [2 if n % 3 else 1 for n in range(50)]


async def test_a_hundred_create_one_id_and_one_succeeds(store: Store) -> None:
    def creation(n: int) -> Callable[[], Awaitable[None]]:
        return lambda: store.append([Write(id="a", expect=0, create=RUN, records=[b"%d" % n])])

    outcomes = await together(*(creation(n) for n in range(100)))
    winners = [n for n, outcome in enumerate(outcomes) if outcome is None]
    assert len(winners) == 1
    assert all(isinstance(outcome, Conflict) for outcome in outcomes if outcome is not None)
    stored = await store.load("a")
    assert stored is not None
    assert list(stored.records) == [b"%d" % winners[0]]


async def test_of_those_who_follow_one_version_one_succeeds(store: Store) -> None:
    await create(store, "a")

    def append(expect: int, n: int) -> Callable[[], Awaitable[None]]:
        return lambda: store.append([Write(id="a", expect=expect, records=[b"%d" % n])])

    winners = []
    for expect in range(1, 6):
        outcomes = await together(*(append(expect, n) for n in range(20)))
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 19
        winners.append(outcomes.index(None))
    stored = await store.load("a")
    assert stored is not None
    assert list(stored.records) == [b"first", *(b"%d" % n for n in winners)]


async def test_a_cancelled_append_is_whole_or_not_there(store: Store) -> None:
    await create(store, "a", "b")
    for version in range(1, 11):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await store.append(
                [Write(id="a", expect=version, records=[b"x"]), Write(id="b", expect=version, records=[b"x"])]
            )
        a, b = await versions(store, "a", "b")
        assert a == b
        assert a in (version, version + 1)
        if a == version:
            await store.append(
                [Write(id="a", expect=version, records=[b"x"]), Write(id="b", expect=version, records=[b"x"])]
            )
    assert await versions(store, "a", "b") == [11, 11]


# Values -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("payload", [b"", b"\x00\xff\xfe'; DROP TABLE heads; --\x00", bytes(range(256)) * 65536])
async def test_payloads_of_all_kinds(store: Store, payload: bytes) -> None:
    await create(store, "a")
    await store.append([Write(id="a", expect=1, records=[payload], snapshot=payload, signals=[Signal("t", payload)])])
    stored = await store.load("a", after=1)
    assert stored is not None
    assert stored.records[0] == payload
    assert stored.snapshot == payload
    assert stored.signals[0].payload == payload


async def test_words_of_all_kinds(store: Store) -> None:
    for id in ("", "o'connor", "a/b c", "\u2603" * 300, "%s ?1", "x\x00y", "--"):
        await create(store, id, new=New("machine", id, id), status=id, state=id)
        stored = await store.load(id)
        assert stored is not None
        head = stored.head
        assert (head.id, head.definition, head.definition_version, head.status, head.state) == (id,) * 5
        if id:
            heads = await store.scan(kind="machine", definition=id, status=[id], state=id)
            assert [head.id for head in heads] == [id]


async def test_a_snapshot_stands_for_the_records_of_its_write(store: Store) -> None:
    await create(store, "a")
    await store.append([Write(id="a", expect=1, records=[b"2", b"3"], snapshot=b"old")])
    await store.append([Write(id="a", expect=3, records=[b"4"])])
    stored = await store.load("a")
    assert stored is not None
    assert (stored.snapshot, stored.snapshot_version, len(stored.records)) == (b"old", 3, 4)
    await store.append([Write(id="a", snapshot=b"new")])
    stored = await store.load("a", after=4)
    assert stored is not None
    assert (stored.snapshot, stored.snapshot_version, list(stored.records)) == (b"new", 4, [])


# Signals ------------------------------------------------------------------------------------------
async def test_signals_are_kept_in_order_and_wake(store: Store) -> None:
    await create(store, "a")
    await store.append([Write(id="a", signals=[Signal("t", b"1"), Signal("u", b"2", "m2")])])
    await store.append([Write(id="a", expect=1, records=[b"second"], signals=[Signal("t", b"3")], wake=9999.0)])
    stored = await store.load("a")
    assert stored is not None
    assert list(stored.signals) == [Signal("t", b"1", None, 1), Signal("u", b"2", "m2", 2), Signal("t", b"3", None, 3)]
    assert (stored.head.inbox, stored.head.wake, stored.head.version) == (3, 0.0, 2)


async def test_a_message_is_received_once(store: Store) -> None:
    await create(store, "a", "b")
    twice = [Signal("t", b"1", "m"), Signal("t", b"2", "m"), Signal("t", b"3")]
    await store.append([Write(id="a", signals=twice)])
    await store.append([Write(id="a", consumed=1, wake=None)])
    await store.append([Write(id="a", signals=[Signal("other", b"4", "m")])])
    stored = await store.load("a")
    assert stored is not None
    assert list(stored.signals) == [Signal("t", b"3", None, 2)]
    assert (stored.head.inbox, stored.head.wake) == (2, None), "what was dropped wakes nobody"
    await store.append([Write(id="b", signals=[Signal("t", b"1", "m")])])
    stored = await store.load("b")
    assert stored is not None
    assert len(stored.signals) == 1, "the same message id to another entity is another message"


async def test_a_message_sent_by_many_at_once_is_received_once(store: Store) -> None:
    await create(store, "a")
    signal = Signal("t", b"1", "m")
    outcomes = await together(*[lambda: store.append([Write(id="a", signals=[signal])])] * 20)
    assert outcomes == [None] * 20
    stored = await store.load("a")
    assert stored is not None
    assert (len(stored.signals), stored.head.inbox) == (1, 1)


async def test_consumed_signals_are_gone_and_their_numbers_stay(store: Store) -> None:
    await create(store, "a")
    await store.append([Write(id="a", signals=[Signal("t", b"%d" % n) for n in range(1, 6)])])
    await store.append([Write(id="a", expect=1, records=[b"second"], consumed=3, signals=[Signal("t", b"6")])])
    stored = await store.load("a")
    assert stored is not None
    assert [signal.number for signal in stored.signals] == [4, 5, 6]
    await store.append([Write(id="a", consumed=100)])
    await store.append([Write(id="a", signals=[Signal("t", b"7")])])
    stored = await store.load("a")
    assert stored is not None
    assert [(signal.number, signal.payload) for signal in stored.signals] == [(7, b"7")]


async def test_a_writer_learns_that_a_signal_came_in(store: Store) -> None:
    await create(store, "a")
    await store.append([Write(id="a", signals=[Signal("t", b"1")])])
    with pytest.raises(Conflict) as caught:
        await store.append([Write(id="a", expect=1, inbox=0, records=[b"waiting"], wake=None)])
    assert caught.value.expected == caught.value.actual == 1
    assert any("signal 1" in note for note in caught.value.__notes__)
    assert await versions(store, "a") == [1]
    await store.append([Write(id="a", expect=1, inbox=1, records=[b"waiting"], wake=None)])
    assert await versions(store, "a") == [2]


async def test_no_wake_up_is_lost_between_looking_and_waiting(store: Store) -> None:
    """A waiter that looks, decides to sleep and says so, against a sender, many times."""
    await create(store, "a")
    received: list[bytes] = []

    async def wait() -> None:
        version = 1
        while len(received) < 30:
            stored = await store.load("a")
            assert stored is not None
            received.extend(signal.payload for signal in stored.signals)
            seen, version = stored.head.inbox, stored.head.version
            write = Write(id="a", expect=version, inbox=seen, records=[b"w"], consumed=seen, wake=None)
            if await outcome_of(store.append([write])) is not None:
                del received[len(received) - len(stored.signals) :]
                continue
            head = stored.head
            while head.wake is None and len(received) < 30:
                await anyio.sleep(0.001)
                now = await store.load("a")
                assert now is not None
                head = now.head
                if head.inbox > seen:
                    assert head.wake == 0.0

    async def send() -> None:
        for n in range(30):
            await store.append([Write(id="a", signals=[Signal("t", b"%d" % n)])])

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            group.start_soon(send)
    assert received == [b"%d" % n for n in range(30)]


async def test_what_has_ended_takes_no_signals(store: Store, clock: Clock) -> None:
    await create(store, "a", wake=5.0)
    clock.time = 1007.0
    await store.append([Write(id="a", expect=1, records=[b"end"], close=True, status="done")])
    clock.time = 1009.0
    with pytest.raises(RunFinished, match="a"):
        await store.append([Write(id="a", signals=[Signal("t", b"")])])
    await store.append([Write(id="a", expect=2, records=[b"after"], close=True)])
    stored = await store.load("a")
    assert stored is not None
    assert (stored.head.closed, stored.head.wake, stored.head.version) == (1007.0, None, 3)
    assert list(stored.signals) == []


# Leases -------------------------------------------------------------------------------------------
async def test_an_owner_by_write(store: Store) -> None:
    await create(store, "a", owner="me")
    facts = []
    for version, write in enumerate(
        (
            Write(id="a", expect=1, fence=1, records=[b"2"]),
            Write(id="a", expect=2, fence=1, owner="you", records=[b"3"]),
            Write(id="a", expect=3, fence=2, owner=None, records=[b"4"]),
            Write(id="a", expect=4, fence=3, owner=None, records=[b"5"]),
        ),
        2,
    ):
        await store.append([write])
        stored = await store.load("a")
        assert stored is not None
        assert stored.head.version == version
        facts.append((stored.head.owner, stored.head.fence))
    assert facts == [("me", 1), ("you", 2), (None, 3), (None, 3)]


async def test_a_stale_fence_is_refused_before_the_version(store: Store) -> None:
    await create(store, "a", owner="me")
    await store.append([Write(id="a", expect=1, fence=1, owner="you", records=[b"2"])])
    with pytest.raises(LeaseLost, match="a"):
        await store.append([Write(id="a", expect=1, fence=1, records=[b"late"])])
    assert await versions(store, "a") == [2]


async def test_only_a_live_worker_may_claim(store: Store, clock: Clock) -> None:
    await create(store, "a", wake=0.0)
    with pytest.raises(LeaseLost, match="w1"):
        await store.claim("w1", definitions=CHECKOUTS)
    await store.heartbeat("w1", 10)
    clock.time += 10
    with pytest.raises(LeaseLost):
        await store.claim("w1", definitions=CHECKOUTS)
    with pytest.raises(LeaseLost):
        await store.claim("w1", ids=["a"])
    await store.heartbeat("w1", 10)
    assert [head.id for head in (await store.claim("w1", definitions=CHECKOUTS)).heads] == ["a"]


async def test_a_claim_takes_what_is_due(store: Store, clock: Clock) -> None:
    await create(store, "later", wake=1010.0)
    await create(store, "due", wake=1000.0)
    await create(store, "sleeping")
    await create(store, "at once", wake=0.0)
    await create(store, "closed", wake=0.0, close=True)
    await create(store, "other", new=New("run", "other", "1"), wake=0.0)
    await create(store, "version 2", new=New("run", "checkout", "2"), wake=0.0)
    await create(store, "machine", new=New("machine", "checkout", "1"), wake=0.0)
    await store.heartbeat("w", 100)
    claims = await store.claim("w", definitions=CHECKOUTS)
    assert [(head.id, head.owner, head.fence, head.claims) for head in claims.heads] == [
        ("at once", "w", 1, 1),
        ("due", "w", 1, 1),
    ]
    assert claims.wake == 1010.0
    claims = await store.claim("w", definitions=CHECKOUTS)
    assert (list(claims.heads), claims.wake) == ([], 1010.0)
    clock.time = 1010.0
    claims = await store.claim("w", definitions=[("run", "other", "1"), *CHECKOUTS, ("no", "such", "thing")])
    assert ([head.id for head in claims.heads], claims.wake) == (["other", "later"], None)
    assert (await store.claim("w")).heads == []


async def test_a_claim_takes_no_more_than_asked(store: Store) -> None:
    await create(store, "c", wake=3.0)
    await create(store, "a", wake=1.0)
    await create(store, "b", wake=2.0)
    await store.heartbeat("w", 100)
    claims = await store.claim("w", definitions=CHECKOUTS, limit=2)
    assert ([head.id for head in claims.heads], claims.wake) == (["a", "b"], 3.0)


async def test_a_claim_of_ids_does_not_ask_for_the_time(store: Store) -> None:
    await create(store, "sleeping", "closed", "mine", "theirs")
    await create(store, "later", new=MACHINE, wake=9999.0)
    await store.append([Write(id="closed", close=True)])
    await store.heartbeat("w", 100)
    await store.heartbeat("other", 100)
    assert len((await store.claim("other", ids=["theirs"])).heads) == 1
    assert len((await store.claim("w", ids=["mine"])).heads) == 1
    ids = ["sleeping", "closed", "mine", "theirs", "nobody", "later", "later"]
    claims = await store.claim("w", ids=ids)
    assert sorted(head.id for head in claims.heads) == ["later", "sleeping"]
    assert all((head.owner, head.fence) == ("w", 1) for head in claims.heads)


async def test_entities_of_a_worker_that_fell_silent_can_be_claimed(store: Store, clock: Clock) -> None:
    await create(store, "a", wake=0.0)
    await store.heartbeat("w1", 10)
    await store.heartbeat("w2", 100)
    assert [head.fence for head in (await store.claim("w1", definitions=CHECKOUTS)).heads] == [1]
    clock.time += 9
    assert (await store.claim("w2", definitions=CHECKOUTS)).heads == []
    assert (await store.claim("w2", ids=["a"])).heads == []
    await store.heartbeat("w1", 10)
    clock.time += 9
    assert (await store.claim("w2", definitions=CHECKOUTS)).heads == [], "the second heartbeat prolonged the lease"
    clock.time += 1
    claimed = (await store.claim("w2", definitions=CHECKOUTS)).heads
    assert [(head.owner, head.fence, head.claims) for head in claimed] == [("w2", 2, 2)]
    with pytest.raises(LeaseLost):
        await store.append([Write(id="a", expect=1, fence=1, records=[b"late"])])


async def test_claims_are_counted_until_there_is_progress(store: Store) -> None:
    await create(store, "a", wake=0.0)
    await store.heartbeat("w", 100)
    for count in (1, 2, 3):
        assert [head.claims for head in (await store.claim("w", ids=["a"])).heads] == [count]
        await store.release("w", ["a"])
    await store.append([Write(id="a", signals=[Signal("t", b"")])])
    assert [head.claims for head in (await store.claim("w", ids=["a"])).heads] == [4]
    await store.append([Write(id="a", expect=1, records=[b"progress"], owner=None)])
    assert [head.claims for head in (await store.claim("w", ids=["a"])).heads] == [1]


async def test_release_gives_back_and_fences_off(store: Store) -> None:
    await create(store, "a", "b", "c", wake=0.0)
    await store.heartbeat("w", 100)
    await store.heartbeat("other", 100)
    await store.claim("w", ids=["a", "b"])
    await store.claim("other", ids=["c"])
    await store.release("w", ["a", "c", "nobody"])
    with pytest.raises(LeaseLost):
        await store.append([Write(id="a", expect=1, fence=1, records=[b"late"])])
    await store.append([Write(id="b", expect=1, fence=1, records=[b"2"])])
    await store.append([Write(id="c", expect=1, fence=1, records=[b"2"])])
    claimed = (await store.claim("other", definitions=CHECKOUTS)).heads
    assert [(head.id, head.fence) for head in claimed] == [("a", 3)]


async def test_workers_are_on_record_until_they_are_released(store: Store, clock: Clock) -> None:
    await create(store, "a", "b", wake=0.0)
    assert list(await store.heartbeat("w1", 10)) == []
    assert list(await store.heartbeat("w2", 100)) == ["w1"]
    await store.claim("w1", ids=["a", "b"])
    clock.time += 50
    assert list(await store.heartbeat("w2", 100)) == ["w1"], "also when its lease ran out"
    await store.release("w1")
    assert list(await store.heartbeat("w2", 100)) == []
    assert sorted(head.id for head in (await store.claim("w2", definitions=CHECKOUTS)).heads) == ["a", "b"]
    await store.release("w1")


async def test_release_of_a_dead_worker_frees_before_its_lease_ends(store: Store) -> None:
    await create(store, "a", wake=0.0)
    await store.heartbeat("dead", 1000)
    await store.heartbeat("w", 1000)
    await store.claim("dead", definitions=CHECKOUTS)
    assert (await store.claim("w", definitions=CHECKOUTS)).heads == []
    await store.release("dead")
    assert [head.fence for head in (await store.claim("w", definitions=CHECKOUTS)).heads] == [3]


async def test_no_two_workers_claim_the_same(store: Store) -> None:
    ids = [f"id-{n:03}" for n in range(100)]
    await create(store, *ids, wake=0.0)
    workers = [f"w{n}" for n in range(10)]
    claimed: list[tuple[str, str]] = []

    async def claim(worker: str) -> None:
        await store.heartbeat(worker, 100)
        while heads := (await store.claim(worker, definitions=CHECKOUTS, limit=3)).heads:
            claimed.extend((head.id, worker) for head in heads)

    async with anyio.create_task_group() as group:
        for worker in workers:
            group.start_soon(claim, worker)
    assert sorted(id for id, _ in claimed) == ids
    for id, worker in claimed:
        stored = await store.load(id)
        assert stored is not None
        assert stored.head.owner == worker


# Listing ------------------------------------------------------------------------------------------
async def test_scan_by_everything(store: Store) -> None:
    await create(store, "r1", status="running", wake=5.0)
    await create(store, "m1", new=MACHINE, state="Draft", status="open")
    await create(store, "r2", status="failed")
    await create(store, "m2", new=MACHINE, state="Sent", status="open")
    await create(store, "r3", new=New("run", "etl", "1"), status="running", wake=50.0)
    await create(store, "m3", new=New("machine", "Order", "2"), state="Draft", status="held")
    await store.append([Write(id="r2", close=True, wake=1.0)])

    async def ids(**question: Any) -> list[str]:
        return [head.id for head in await store.scan(**question)]

    assert await ids() == ["r1", "m1", "r2", "m2", "r3", "m3"]
    assert await ids(kind="run") == ["r1", "r2", "r3"]
    assert await ids(definition="Order") == ["m1", "m2", "m3"]
    assert await ids(kind="run", definition="checkout") == ["r1", "r2"]
    assert await ids(status=["running"]) == ["r1", "r3"]
    assert await ids(status=["failed", "running", "failed"]) == ["r1", "r2", "r3"]
    assert await ids(status=[]) == []
    assert await ids(state="Draft") == ["m1", "m3"]
    assert await ids(state="") == ["r1", "r2", "r3"]
    assert await ids(state="", status=["running"]) == ["r1", "r3"]
    assert await ids(kind="machine", definition="Order", state="Draft", status=["open"]) == ["m1"]
    assert await ids(wake_before=10.0) == ["r1"]
    assert await ids(wake_before=5.0) == []
    assert await ids(wake_before=51.0, kind="run", status=["running", "open"]) == ["r1", "r3"]
    assert await ids(wake_before=51.0, definition="etl", state="") == ["r3"]
    assert await ids(kind="nothing") == []
    assert await ids(limit=2) == ["r1", "m1"]
    assert await ids(status=["running", "open"], limit=3) == ["r1", "m1", "m2"]
    cursor = (await store.scan(status=["running", "open"], limit=3))[-1].order
    assert await ids(status=["running", "open"], after=cursor) == ["r3"]
    assert await ids(wake_before=51.0, limit=1) == ["r1"]


async def test_pages_are_stable_while_others_write(store: Store, clock: Clock) -> None:
    await create(store, *(f"id-{n:03}" for n in range(100)), status="s")
    seen: list[str] = []
    cursor, created = 0, 0
    while page := await store.scan(kind="run", status=["s"], after=cursor, limit=7):
        assert len(page) <= 7
        seen += [head.id for head in page]
        cursor = page[-1].order
        if created < 5:
            await create(store, f"new-{created}", status="s")
            await store.append([Write(id=page[0].id, expect=1, records=[b"2"])])
            created += 1
    assert seen == [f"id-{n:03}" for n in range(100)] + [f"new-{n}" for n in range(5)]


async def test_a_cursor_stays_valid_when_the_last_was_pruned(store: Store, clock: Clock) -> None:
    await create(store, "a", "b", close=True)
    cursor = (await store.scan())[-1].order
    clock.time += 1
    assert await store.prune(closed_before=clock.time) == 2
    await create(store, "c")
    assert [head.id for head in await store.scan(after=cursor)] == ["c"]


async def test_prune_deletes_the_oldest_and_no_more_than_asked(store: Store, clock: Clock) -> None:
    for n in (3, 1, 4, 2, 5):
        await create(store, f"id-{n}")
    await create(store, "open", wake=0.0)
    for n in range(1, 6):
        clock.time = 2000.0 + n
        await store.append([Write(id=f"id-{n}", expect=1, records=[b"end"], close=True)])
    assert await store.prune(closed_before=2001.0) == 0
    assert await store.prune(closed_before=2005.0, limit=3) == 3
    assert sorted(head.id for head in await store.scan()) == ["id-4", "id-5", "open"]
    assert await store.prune(closed_before=2005.0, limit=3) == 1
    assert await store.prune(closed_before=2005.0, limit=3) == 0
    assert sorted(head.id for head in await store.scan()) == ["id-5", "open"]


async def test_prune_in_many_steps(store: Store, clock: Clock) -> None:
    await create(store, *(f"id-{n}" for n in range(350)), close=True)
    clock.time += 1
    assert await store.prune(closed_before=clock.time, limit=320) == 320
    assert len(await store.scan(limit=1000)) == 30


async def test_a_pruned_id_starts_anew(store: Store, clock: Clock) -> None:
    await create(store, "a", signals=[Signal("t", b"1", "m")], snapshot=b"old", owner="w")
    await store.append([Write(id="a", expect=1, records=[b"end"], close=True)])
    clock.time += 1
    assert await store.prune(closed_before=clock.time) == 1
    assert await store.load("a") is None
    with pytest.raises(RunNotFound):
        await store.append([Write(id="a", expect=2, records=[b"late"])])
    await store.append([Write(id="a", expect=0, create=MACHINE, records=[b"anew"])])
    await store.append([Write(id="a", signals=[Signal("t", b"2", "m")])])
    stored = await store.load("a")
    assert stored is not None
    head = stored.head
    assert (head.kind, head.version, head.owner, head.fence, head.closed, head.inbox) == (
        "machine",
        1,
        None,
        0,
        None,
        1,
    )
    assert (list(stored.records), stored.snapshot, [s.payload for s in stored.signals]) == ([b"anew"], None, [b"2"])


# Watching -----------------------------------------------------------------------------------------
async def test_the_first_look_returns_at_once(store: Store) -> None:
    with anyio.fail_after(5):
        seen = await store.watch(-1, 60)
    assert seen >= 0


async def test_a_watch_ends_when_nothing_happens(store: Store) -> None:
    seen = await store.watch(-1, 60)
    with anyio.fail_after(5):
        assert await store.watch(seen, 0.05) == seen
        assert await store.watch(seen, 0) == seen


@pytest.mark.parametrize("event", ["due", "due later", "signal", "end", "given back", "released", "several"])
async def test_a_watch_sees(store: Store, event: str) -> None:
    await create(store, "a", wake=0.0, owner="w")
    write = {
        "due": Write(id="b", expect=0, create=RUN, records=[b""], wake=0.0),
        "due later": Write(id="b", expect=0, create=RUN, records=[b""], wake=9999.0),
        "signal": Write(id="a", signals=[Signal("t", b"")]),
        "end": Write(id="a", close=True),
        "given back": Write(id="a", owner=None),
        "several": Write(id="a", expect=1, records=[b"2"], close=True, owner=None),
    }.get(event)
    seen = await store.watch(-1, 60)
    if write is None:
        await store.release("w")
    else:
        await store.append([write])
    with anyio.fail_after(5):
        now = await store.watch(seen, 60)  # it happened before the watch began, and is not lost
        assert now != seen
        woken = []

        async def watch() -> None:
            woken.append(await store.watch(now, 60))

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(watch)
            await anyio.sleep(0.02)
            assert woken == []
            await create(store, "c", wake=0.0)
    assert len(woken) == 3
    assert all(count != now for count in woken)


# Work ---------------------------------------------------------------------------------------------
async def test_work_adds_writes_to_the_same_append(store: Store) -> None:
    await create(store, "a")

    def work(connection: object) -> list[Write]:
        assert connection is not None
        return [Write(id="b", expect=0, create=RUN, records=[b"from work"])]

    await store.append([Write(id="a", expect=1, records=[b"2"])], work=work)
    await store.append([], work=lambda connection: [Write(id="b", expect=1, records=[b"2"])])
    assert await versions(store, "a", "b") == [2, 2]


async def test_an_exception_in_work_reaches_the_caller_and_nothing_is_stored(store: Store) -> None:
    await create(store, "a")
    problem = ZeroDivisionError("mine")

    def work(connection: object) -> list[Write]:
        raise problem

    with pytest.raises(ZeroDivisionError) as caught:
        await store.append([Write(id="a", expect=1, records=[b"2"])], work=work)
    assert caught.value is problem
    assert await versions(store, "a") == [1]


def hand_over(writes: list[Write], connection: object) -> list[Write]:
    return writes


async def test_writes_of_work_are_judged_like_others(store: Store) -> None:
    await create(store, "a", "b")
    first = Write(id="a", expect=1, records=[b"2"])
    for write, error in (
        (Write(id="b", expect=7, records=[b""]), Conflict),
        (Write(id="a", expect=1, records=[b""]), StoreError),
        (Write(id="nobody", expect=1, records=[b""]), RunNotFound),
    ):
        with pytest.raises(error):
            await store.append([first], work=partial(hand_over, [write]))
    assert await versions(store, "a", "b") == [1, 1]


async def test_work_is_not_done_for_an_append_that_is_refused(store: Store) -> None:
    await create(store, "a")
    done = []

    def work(connection: object) -> list[Write]:
        done.append(1)
        return []

    with pytest.raises(Conflict):
        await store.append([Write(id="a", expect=2, records=[b""])], work=work)
    assert done == []


# Opening and closing ------------------------------------------------------------------------------
async def test_it_opens_again_after_close(store: Store) -> None:
    await store.close()
    await create(store, "a")
    await store.close()
    await store.close()
    assert await versions(store, "a") == [1]
    await store.append([Write(id="a", expect=1, records=[b"2"])])
    await store.close()
    assert await versions(store, "a") == [2]


async def test_its_time_is_its_clocks(store: Store, clock: Clock) -> None:
    assert await store.now() == 1000.0
    clock.time = 1001.5
    assert await store.now() == 1001.5
