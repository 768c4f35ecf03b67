"""`Flowlet.copy_to`: all of it, in any store; refused, cut off and begun again at any place."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from functools import partialmethod
from pathlib import Path
from typing import Any

import anyio
import pytest
from dict_store import DictStore
from msgspec.structs import replace

import flowlet
from flowlet import Flowlet, current_run, state, step, transition
from flowlet.errors import ConfigError, CopyMismatch, DecodeError, PayloadTooLarge, StoreInUse, StoreUnavailable
from flowlet.runtime import copying
from flowlet.runtime.copying import CopyProgress, copy
from flowlet.store import Capabilities, New, Signal, Store, Work, Write
from flowlet.stores import open_store
from flowlet.stores.coded import CodedStore
from flowlet.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

RUN, MACHINE = New("run", "trip", "3"), New("machine", "Order")
MakeStore = Callable[[], Store]


class Salted:
    """Gives other bytes each time, and refuses those of another key."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    def encode(self, data: bytes) -> bytes:
        return self.key + os.urandom(4) + zlib.compress(data, 1)

    def decode(self, data: bytes) -> bytes:
        if not data.startswith(self.key):
            raise ValueError("another key")
        return zlib.decompress(data[len(self.key) + 4 :])


class Proxy:
    """A store that does something else at times.

    Attributes:
        before: called with the name of each call and its first argument.
        lose: after so many appends, the next is stored or lost, as this says, and unknown to the caller.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.capabilities = inner.capabilities
        self.before: Callable[[str, Any], Any] | None = None
        self.appends = 0
        self.fail_at: tuple[int, str] | None = None

    async def _ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if self.before is not None:
            await self.before(name, args[0] if args else None)
        return await getattr(self.inner, name)(*args, **kwargs)

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        self.appends += 1
        if self.fail_at is not None and self.appends == self.fail_at[0]:
            if self.fail_at[1] == "reply":
                await self.inner.append(writes, work=work)
            raise StoreUnavailable("it is gone")
        await self._ask("append", writes, work=work)

    load = partialmethod(_ask, "load")
    scan = partialmethod(_ask, "scan")
    claim = partialmethod(_ask, "claim")
    heartbeat = partialmethod(_ask, "heartbeat")
    release = partialmethod(_ask, "release")
    now = partialmethod(_ask, "now")
    watch = partialmethod(_ask, "watch")
    prune = partialmethod(_ask, "prune")
    close = partialmethod(_ask, "close")


async def populate(store: Store, *, many: int = 30) -> None:
    """Put something of every kind into a store."""

    async def put(id: str, *writes: dict[str, Any], new: New = RUN) -> None:
        version = 0
        for facts in writes:
            records = facts.get("records", ())
            expect = version if records else None
            create = None if version else new
            await store.append([Write(id=id, **{"expect": expect, "create": create, **facts})])
            version += len(records)

    def numbered(first: int, last: int) -> list[bytes]:
        return [b"%d" % n for n in range(first, last + 1)]

    await put("definition/run/trip/3", {"records": [b"{}"], "snapshot": b"{}"}, new=New("definition", "trip", "3"))
    for n in range(many):
        await put(f"done-{n}", {"records": numbered(1, 5), "status": "completed", "close": True})
    await put("due", {"records": [b""], "status": "running", "wake": 0.0})
    await put("later", {"records": [b"\xff\x00"], "status": "waiting", "wake": 4e9})
    await put("parked", {"records": numbered(1, 3), "status": "parked"})
    await put("long", {"records": numbered(1, 60)}, {"records": numbered(61, 117), "status": "running", "wake": 7.5})
    await put("order", {"records": [b"1"], "state": "Draft", "status": "active"}, new=MACHINE)
    middle = {"records": numbered(3, 70), "state": "Sent", "status": "final", "close": True}
    await put("photo", {"records": numbered(1, 2), "snapshot": b"as of 2"}, middle, new=MACHINE)
    await put("photo-late", {"records": numbered(1, 50)}, {"records": [b"51"], "snapshot": b""}, new=MACHINE)
    messages = [Signal("paid", b"%d" % n, None if n % 2 else f"m{n}") for n in range(1, 8)]
    await put("inbox", {"records": [b"1"], "signals": messages, "status": "waiting"}, {"consumed": 4, "wake": None})
    await put("inbox-long", {"records": numbered(1, 40), "signals": messages}, {"consumed": 2, "status": "waiting"})
    await put("inbox-full", {"records": [b"1"], "signals": messages, "status": "waiting"})
    await put("inbox-read", {"records": [b"1"], "signals": messages}, {"consumed": 7, "wake": 12.0, "state": "x"})
    await put("inbox-done", {"records": [b"1"], "signals": messages[:2]}, {"status": "cancelled", "close": True})
    await put("last", {"records": [b"1"], "status": "running", "wake": 0.0})


async def contents(store: Store) -> list[tuple[Any, ...]]:
    """Return all that a copy must have."""
    found: list[tuple[Any, ...]] = []
    after = 0
    while heads := await store.scan(after=after, limit=100):
        for head in heads:
            stored = await store.load(head.id)
            assert stored is not None
            assert stored.head == head
            what = (head.id, head.kind, head.definition, head.definition_version, head.version, head.status, head.state)
            when = (head.wake, head.closed is None, head.inbox, head.owner)
            snapshot = (stored.snapshot_version, stored.snapshot)
            found.append((*what, *when, snapshot, list(stored.records), list(stored.signals)))
        after = heads[-1].order
    return found


numbers = itertools.count()


def stores(kind: str, folder: Path) -> Store:
    if kind == "sqlite":
        return open_store(f"sqlite:///{folder}/{next(numbers)}.db?durability=process")
    if kind == "coded":
        return CodedStore(MemoryStore(), Salted(b"old"))
    return DictStore() if kind == "custom" else MemoryStore()


# ------------------------------------------------------------------ all of it, in any store
@pytest.mark.parametrize("first", ["memory", "sqlite", "custom", "coded"])
@pytest.mark.parametrize("second", ["memory", "sqlite", "custom", "coded"])
async def test_everything_arrives(tmp_path: Path, first: str, second: str) -> None:
    source, target = stores(first, tmp_path), stores(second, tmp_path)
    await populate(source)
    before = await contents(source)
    report = await copy(source, target)
    assert await contents(target) == before
    assert await contents(source) == before
    assert (report.runs, report.machines, report.definitions) == (40, 3, 1)
    assert (report.copied, report.continued, report.present) == (44, 0, 0)
    assert report.records == sum(facts[4] for facts in before)
    again = await copy(source, target)
    assert (again.copied, again.continued, again.present) == (0, 0, 44)
    assert again.digest == report.digest
    back = MemoryStore()
    assert (await copy(target, back)).digest == report.digest
    assert await contents(back) == before
    for store in (source, target):
        await store.close()


async def test_signals_keep_their_numbers_and_are_not_received_twice() -> None:
    source, target = MemoryStore(), MemoryStore()
    await populate(source, many=0)
    await copy(source, target)
    await target.append([Write(id="inbox-full", signals=[Signal("paid", b"again", "m4")])])
    await target.append([Write(id="inbox", consumed=5)])
    await target.append([Write(id="inbox", signals=[Signal("paid", b"new")])])
    full, read = await target.load("inbox-full"), await target.load("inbox")
    assert full is not None
    assert read is not None
    assert full.head.inbox == 7
    assert [signal.number for signal in read.signals] == [6, 7, 8]


async def test_an_inbox_that_has_received_thousands() -> None:
    source, target = MemoryStore(), MemoryStore()
    signals = [Signal("n", b"%d" % n) for n in range(4500)]
    await source.append([Write(id="a", expect=0, create=RUN, records=[b"1"], signals=signals)])
    await source.append([Write(id="a", consumed=2100, wake=3.0)])
    await copy(source, target)
    assert await contents(target) == await contents(source)


async def test_an_empty_store() -> None:
    report = await copy(MemoryStore(), target := MemoryStore())
    assert (report.runs, report.records, report.copied, report.present) == (0, 0, 0, 0)
    assert await target.scan() == []


async def test_progress_goes_to_the_end_twice() -> None:
    source = MemoryStore()
    await populate(source, many=1200)
    seen: list[CopyProgress] = []
    await copy(source, MemoryStore(), seen.append)
    for phase in ("copying", "verifying"):
        done = [progress.done for progress in seen if progress.phase == phase]
        assert done == sorted(done)
        assert len(done) >= 3
        assert done[-1] == 1214
    assert {progress.total for progress in seen} == {1214}


class Generated(Proxy):
    """A store of large records, which are made when they are read, and thrown away when they are written."""

    size = 4 << 20

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        self.appends = max(self.appends, sum(len(record) for write in writes for record in write.records))
        small = [replace(w, records=[r[:1] for r in w.records]) for w in writes]
        await self.inner.append(small)

    async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Any:
        stored = await self.inner.load(id, after=after, limit=limit)
        if stored is None or id.startswith("small"):
            return stored
        return replace(stored, records=[record * self.size for record in stored.records])


async def test_what_is_held_at_a_time_is_bounded() -> None:
    source, target = Generated(MemoryStore()), Generated(MemoryStore())
    for n in range(200):
        await source.append([Write(id=f"small-{n}", expect=0, create=RUN, records=[b"x"] * 6)])
    for id in ("a", "b", "c"):
        await source.append([Write(id=id, expect=0, create=RUN, records=[bytes([n]) for n in range(64)])])
    for n in range(10):
        await source.append([Write(id=f"one-{n}", expect=0, create=RUN, records=[b"1"])])
    tracemalloc.start()
    try:
        report = await copy(source, target)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.size > 200 * source.size
    # Eight of unknown size are read before anything is known of them, and there are two stores to be compared.
    assert peak < 18 * source.size
    assert target.appends <= 8 * source.size


async def test_a_target_that_takes_less_says_so_and_of_what() -> None:
    source, target = MemoryStore(), DictStore()
    target.capabilities = Capabilities(max_payload=1000)
    await source.append([Write(id="a", expect=0, create=RUN, records=[bytes(1001)])])
    with pytest.raises(PayloadTooLarge, match="'a'"):
        await copy(source, target)


async def test_a_damaged_source_is_not_copied_as_if_it_were_whole() -> None:
    source = MemoryStore()
    await source.append([Write(id="a", expect=0, create=RUN, records=[b"1", b"2"])])

    class Holed(Proxy):
        async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Any:
            stored = await self.inner.load(id, after=after, limit=limit)
            assert stored is not None
            return type(stored)(head=stored.head, records=stored.records[1:])

    with pytest.raises(DecodeError, match="'a' has 2 records, but 1 where 2"):
        await copy(Holed(source), target := MemoryStore())
    assert await target.scan() == []


# ------------------------------------------------------------------ cut off, and again
@pytest.mark.parametrize("fault", ["lost", "reply"])
async def test_cut_off_at_each_append_and_asked_for_again(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(copying, "_WRITES", 7)
    monkeypatch.setattr(copying, "_BYTES", 60)  # what has more is copied piece by piece
    source = MemoryStore()
    await populate(source)
    before = await contents(source)
    whole = Proxy(MemoryStore())
    digest = (await copy(source, whole)).digest
    assert whole.appends > 15
    for at in range(1, whole.appends + 1):
        target = Proxy(MemoryStore())
        target.fail_at = (at, fault)
        with pytest.raises(StoreUnavailable):
            await copy(source, target)
        if at < whole.appends:
            half = {facts[0]: facts for facts in await contents(target)}
            # Nothing is due while something is missing, and nothing that is there is more than the truth.
            assert all(facts[7] in (None, 0.0) for facts in half.values())
            due = [head.id for head in await target.scan(wake_before=1e18) if not head.inbox]
            assert due == []
        report = await copy(source, target)
        assert await contents(target) == before
        assert report.digest == digest
        assert report.copied + report.continued + report.present == len(before)


async def test_cancelled_in_the_middle_and_again(tmp_path: Path) -> None:
    source, target = MemoryStore(), stores("sqlite", tmp_path)
    await populate(source, many=3000)
    for limit in (0.02, 0.05, 0.1, 0.2):
        with anyio.move_on_after(limit):
            await copy(source, target)
    await copy(source, target)
    assert await contents(target) == await contents(source)
    await target.close()


KILLED = """
import sys, anyio
from flowlet import Flowlet
from flowlet.stores.sqlite import SQLiteStore

append = SQLiteStore.append
async def told(self, writes, **more):
    await append(self, writes, **more)
    print("appended", flush=True)
SQLiteStore.append = told
from flowlet.runtime import copying
copying._WRITES, copying._BYTES = 20, 60
anyio.run(Flowlet(sys.argv[1]).copy_to, sys.argv[2])
"""


def test_killed_in_the_middle_and_again(tmp_path: Path) -> None:
    first, second = (f"sqlite:///{tmp_path}/{name}.db?durability=process" for name in ("first", "second"))

    async def prepare() -> list[tuple[Any, ...]]:
        store = open_store(first)
        await populate(store, many=300)
        found = await contents(store)
        await store.close()
        return found

    before = anyio.run(prepare)
    environment = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}
    for appends in (1, 6, 13, 17, 22):
        command = [sys.executable, "-c", KILLED, first, second]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        for _ in range(appends):
            process.stdout.readline()
        process.kill()
        process.communicate()

    async def finish() -> None:
        report = await Flowlet(first).copy_to(second)
        assert report.present > 50
        store = open_store(second)
        assert await contents(store) == before
        await store.close()

    anyio.run(finish)


async def test_a_source_that_went_on_is_copied_from_where_it_was() -> None:
    source, target = MemoryStore(), MemoryStore()
    await populate(source)
    await copy(source, target)
    await source.append([Write(id="due", expect=1, records=[b"2", b"3"], status="completed", close=True)])
    await source.append([Write(id="parked", expect=3, records=[b"4"], status="running", snapshot=b"4", wake=0.0)])
    await source.append([Write(id="inbox-full", signals=[Signal("paid", b"more", "m99")])])
    await source.append([Write(id="new", expect=0, create=RUN, records=[b"1"])])
    report = await copy(source, target)
    assert (report.copied, report.continued) == (1, 3)
    assert await contents(target) == await contents(source)


# ------------------------------------------------------------------ a target with something else
CHANGES: dict[str, Write] = {
    "another record": Write(id="parked", expect=0, create=RUN, records=[b"1", b"two", b"3"], status="parked"),
    "another record before": Write(id="parked", expect=0, create=RUN, records=[b"one"]),
    "another record far behind": Write(
        id="long", expect=0, create=RUN, records=[*(b"%d" % n for n in range(1, 99)), b"x"]
    ),
    "more records": Write(id="due", expect=0, create=RUN, records=[b"", b"2"]),
    "another kind": Write(id="parked", expect=0, create=MACHINE, records=[b"1", b"2", b"3"], status="parked"),
    "another definition": Write(id="parked", expect=0, create=New("run", "x"), records=[b"1"]),
    "another status": Write(id="parked", expect=0, create=RUN, records=[b"1", b"2", b"3"], status="needs_attention"),
    "ended": Write(id="parked", expect=0, create=RUN, records=[b"1", b"2", b"3"], status="parked", close=True),
    "another state": Write(id="order", expect=0, create=MACHINE, records=[b"1"], state="Sent", status="active"),
    "another time": Write(id="later", expect=0, create=RUN, records=[b"\xff\x00"], status="waiting", wake=5e9),
    "owned": Write(id="later", expect=0, create=RUN, records=[b"\xff\x00"], owner="somebody"),
    "another snapshot": Write(id="photo", expect=0, create=MACHINE, records=[b"1", b"2"], snapshot=b"other"),
    "other signals": Write(id="inbox-full", expect=0, create=RUN, records=[b"1"], signals=[Signal("paid", b"x")]),
    "signals where consumed ones were": Write(
        id="inbox", expect=0, create=RUN, records=[b"1"], signals=[Signal("paid", b"1")]
    ),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_differs_is_named_and_left(new_store: MakeStore, change: str) -> None:
    source, target = MemoryStore(), new_store()
    await populate(source)
    write = CHANGES[change]
    await target.append([write])
    before = await target.load(write.id)
    with pytest.raises(CopyMismatch, match=f"'{write.id}'") as caught:
        await copy(source, target)
    assert caught.value.id == write.id
    assert await target.load(write.id) == before
    await target.close()


async def test_what_else_the_target_has_stays() -> None:
    source, target = MemoryStore(), MemoryStore()
    await populate(source)
    await target.append([Write(id="mine", expect=0, create=RUN, records=[b"mine"], wake=0.0)])
    report = await copy(source, target)
    assert report.present == 0
    assert await contents(target) == [*(await contents(target))[:1], *(await contents(source))]


async def test_a_definition_that_a_flowlet_has_stored_there_stays(new_store: MakeStore) -> None:
    flow, other = Flowlet(), Flowlet(new_store())
    trip = flow.saga("trip", hop, rest)
    other.saga("trip", hop)
    for owner in (flow, other):
        owner.saga("other", hop)
        owner.saga("same", hop)
        async with owner:
            pass
    # The code of one of them was changed here under its old version, some time after it was stored there.
    await flow.store.append([Write(id="definition/saga/other/1", expect=1, records=[b"{}"], snapshot=b"{}")])
    ids = [f"definition/saga/{name}/1" for name in ("trip", "same")]
    before = [await other.store.load(id) for id in ids]
    async with flow:
        await flow.execute(trip, 1, id="r")
    report = await flow.copy_to(other.store)
    assert (report.copied, report.continued, report.present) == (1, 1, 2)
    assert [await other.store.load(id) for id in ids] == before
    longer = await other.store.load("definition/saga/other/1")
    assert longer is not None
    assert longer.records[1] == b"{}"
    assert longer.head.version == 3, "this code has stored its own again when it was entered"
    await other.store.close()


async def test_a_copy_that_was_damaged_meanwhile_is_noticed() -> None:
    """The comparison reads both stores again, and does not believe what was sent."""

    class Lying(Proxy):
        async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
            records = {
                id(write): [*write.records[:-1], b"!"] if write.id == "done-3" else write.records for write in writes
            }
            changed = [
                Write(**{**{f: getattr(w, f) for f in w.__struct_fields__}, "records": records[id(w)]}) for w in writes
            ]
            await self.inner.append(changed)

    source = MemoryStore()
    await populate(source)
    with pytest.raises(CopyMismatch) as caught:
        await copy(source, Lying(MemoryStore()))
    assert caught.value.id == "done-3"


async def test_somebody_who_writes_to_the_target_meanwhile_is_not_overwritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copying, "_BYTES", 60)
    source, target = MemoryStore(), Proxy(MemoryStore())
    await populate(source)

    async def meddle(name: str, writes: Any) -> None:
        if name == "append" and any(write.id == "long" and write.expect for write in writes):
            target.before = None
            (write,) = writes
            await target.inner.append([Write(id="long", expect=write.expect, records=[b"theirs"])])

    target.before = meddle
    with pytest.raises(CopyMismatch) as caught:
        await copy(source, target)
    assert caught.value.id == "long"


# ------------------------------------------------------------------ a source that is not left alone
async def test_what_a_living_worker_owns_is_refused_and_counted(new_store: MakeStore) -> None:
    source, target = new_store(), MemoryStore()
    await populate(source)
    for worker, ids in (("alive", ("due", "last")), ("dead", ("later",))):
        await source.heartbeat(worker, 60 if worker == "alive" else 0.001)
        await source.claim(worker, ids=ids)
    await anyio.sleep(0.01)
    with pytest.raises(StoreInUse, match="2 of the runs") as caught:
        await copy(source, target)
    assert (caught.value.owned, caught.value.id) == (2, "due")
    assert await target.scan() == []
    await source.release("alive")
    await copy(source, target)
    copied = {head.id: head for head in await target.scan(limit=1000)}
    # Nobody owns a copy, and nothing is held against it.
    assert {(head.owner, head.fence, head.claims) for head in copied.values()} == {(None, 0, 0)}
    assert copied["later"].wake == 4e9
    assert not [head for head in await source.scan(limit=1000) if head.owner == "dead"]
    assert await source.heartbeat("me", 1.0) == []
    await source.close()


@pytest.mark.parametrize(
    ("moment", "change"),
    [
        *itertools.product(["copied", "compared"], ["record", "signal", "claim", "pruned", "end"]),
        ("compared", "new"),  # before that, it is copied like everything
        ("compared", "new later"),
    ],
)
async def test_a_source_that_changes_meanwhile_is_refused(new_store: MakeStore, change: str, moment: str) -> None:
    source = Proxy(new_store())
    await populate(source)
    phase: list[str] = []

    async def meddle(name: str, id: Any) -> None:
        # "later" is dealt with by now, and much else is not.
        now = "compared" if "copying" in phase else "copied"
        if (name, id, now) != ("load", "photo", moment):
            return
        source.before = None
        writes = {
            "record": Write(id="later", expect=1, records=[b"2"]),
            "signal": Write(id="later", signals=[Signal("t", b"")]),
            "new": Write(id="new", expect=0, create=RUN, records=[b"1"]),
            "end": Write(id="later", close=True),
        }
        if change in writes:
            await source.inner.append([writes[change]])
        elif change == "claim":
            await source.inner.heartbeat("worker", 60)
            await source.inner.claim("worker", ids=["later"])
        elif change == "pruned":
            await source.inner.append([Write(id="later", close=True)])
            await source.inner.prune(closed_before=1e18)
        else:
            phase.append("then")

    def note(progress: CopyProgress) -> None:
        phase.append(progress.phase)

    async def last_look(name: str, _: Any) -> None:
        if name == "scan" and "verifying" in phase:
            source.before = None
            await source.inner.append([Write(id="new", expect=0, create=RUN, records=[b"1"])])

    source.before = last_look if change == "new later" else meddle
    with pytest.raises(StoreInUse) as caught:
        await copy(source, target := MemoryStore(), note)
    assert source.before is None
    assert caught.value.owned == 0
    assert not [head for head in await target.scan(wake_before=1e18) if not head.inbox]
    await source.inner.close()


# ------------------------------------------------------------------ flowlets
reached: list[str] = []


@step
async def hop(n: int) -> int:
    reached.append(current_run().idempotency_key)
    if n < 0 and not awake:
        await anyio.sleep_forever()
    return n + 1


@step
async def rest(hop: int) -> int:
    reached.append(current_run().idempotency_key)
    return hop + 1


awake: list[bool] = []


@pytest.fixture(autouse=True)
def nothing_reached() -> None:
    reached.clear()
    awake.clear()


def assemble(flow: Flowlet) -> tuple[Any, Any]:
    trip = flow.saga("trip", hop, rest)

    @flow.machine
    class Order:
        total: int = 0

        def __init__(self, total: int = 0) -> None:
            self.total = total

        @state(initial=True)
        class Draft: ...

        @state
        class Confirmed: ...

        @transition(Draft, Confirmed)
        async def confirm(self, by: str) -> None:
            self.total += 1

        @transition(Confirmed, Draft)
        async def revise(self) -> None: ...

    return trip, Order


async def everything(flow: Flowlet, order: Any) -> list[Any]:
    """Return what listings and histories tell, but for the times at which it was stored."""
    runs = [(run.id, run.definition, run.version, run.status, run.closed is None) async for run in flow.runs()]
    ended = [run.id async for run in flow.runs(status="completed")]
    orders = [id async for id in flow.machines(order)]
    drafts = [id async for id in flow.machines(order, state=order.Draft)]
    histories = [[record async for record in flow.history(id)] for id in orders]
    return [runs, ended, orders, drafts, histories, [(await flow.load(order, id)).total for id in orders]]


async def test_moving_house(tmp_path: Path) -> None:
    """From memory to a file, to another file that is encrypted, to memory."""
    flow = Flowlet(grace=0)
    trip, order = assemble(flow)
    async with flow:
        for n in range(5):
            await flow.execute(trip, n, id=f"t-{n}")
        for n in range(-3, 0):
            await flow.start(trip, n, id=f"left{n}")
        for n in range(4):
            made = await flow.create(order(total=n), id=f"o-{n}")
            for _ in range(n):
                await made.confirm(by="ann")
                await made.revise()
        await (await flow.load(order, "o-3")).confirm(by="bob")
        while len(reached) < 13:
            await anyio.sleep(0.001)
        with pytest.raises(StoreInUse) as caught:
            await flow.copy_to(f"sqlite:///{tmp_path}/refused.db")
        assert caught.value.owned == 3
        assert not list(tmp_path.iterdir()), "nothing is made before it is sure to be needed"
        seen = await everything(flow, order)
    await_last: list[Any] = [
        (f"sqlite:///{tmp_path}/plain.db?durability=process", None),
        (f"sqlite:///{tmp_path}/coded.db?durability=process", Salted(b"key")),
        (MemoryStore(), None),
    ]
    digests = set()
    for store, codec in await_last:
        report = await flow.copy_to(store, codec=codec)
        digests.add(report.digest)
        assert (report.runs, report.machines) == (8, 4)
        flow = Flowlet(store, codec=codec, grace=0)
        trip, order = assemble(flow)
    assert len(digests) == 1
    secret = (tmp_path / "coded.db").read_bytes()
    assert b"ann" not in secret
    assert b"ann" in (tmp_path / "plain.db").read_bytes()
    awake.append(True)
    reached.clear()
    async with flow:
        for n in range(-3, 0):
            with anyio.fail_after(20):
                assert await flow.handle(f"left{n}", trip).result() == n + 2
        assert len(reached) == 6, "steps that were recorded before the move were not executed again"
        now = await everything(flow, order)
        assert [run[:3] for run in now[0]] == [run[:3] for run in seen[0]]
        assert {run[3] for run in now[0]} == {"completed"}
        assert now[2:] == seen[2:]
        await (await flow.load(order, "o-3")).revise()


async def test_after_drain_it_may_be_called_inside(tmp_path: Path) -> None:
    flow = Flowlet(grace=0)
    trip, _ = assemble(flow)
    async with flow:
        await flow.start(trip, -1, id="t")
        while not reached:
            await anyio.sleep(0.001)
        await flow.drain()
        report = await flow.copy_to(f"sqlite:///{tmp_path}/s.db")
        assert await flow.handle("t").status() == "running", "the store is still open"
    assert report.runs == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s.db"], "what was opened is closed"


async def test_it_closes_what_it_has_opened_and_nothing_else() -> None:
    source, target = Proxy(MemoryStore()), Proxy(MemoryStore())
    closed: list[str] = []

    async def note(name: str, _: Any) -> None:
        if name == "close":
            closed.append(name)

    source.before = target.before = note
    flow = Flowlet(source)
    async with flow:
        await flow.copy_to(target)
        assert closed == []
    assert len(closed) == 1
    await flow.copy_to(target)
    assert len(closed) == 2, "the Flowlet's own, which nobody has entered"


async def test_the_same_codec_needs_no_key_and_another_one_does(tmp_path: Path) -> None:
    flow = Flowlet(f"sqlite:///{tmp_path}/first.db", codec=Salted(b"key"))
    await populate(flow.store)
    copied = open_store(f"sqlite:///{tmp_path}/second.db")
    await flow.copy_to(copied)
    assert await contents(CodedStore(copied, Salted(b"key"))) == await contents(flow.store)
    lost = Flowlet(f"sqlite:///{tmp_path}/first.db", codec=Salted(b"lost"))
    await lost.copy_to(again := MemoryStore())
    assert await contents(again) == await contents(copied)
    with pytest.raises(DecodeError):
        await lost.copy_to(MemoryStore(), codec=None)
    given = CodedStore(MemoryStore(), Salted(b"given"))
    await flow.copy_to(given)
    assert await contents(given) == await contents(flow.store)
    await flow.store.close()
    await copied.close()


async def test_what_cannot_be_copied_to() -> None:
    flow = Flowlet()
    for other in (flow.store, CodedStore(flow.store, Salted(b"x")), 3, "mysql://x", MemoryStore):
        with pytest.raises(ConfigError):
            await flow.copy_to(other)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="codec="):
        await flow.copy_to("memory://", codec=object())  # type: ignore[arg-type]


WORKER = """
import sys, anyio
from flowlet import Flowlet, step

flow = Flowlet(sys.argv[1])
@step
async def hop(n: int) -> int:
    print("in the step", flush=True)
    await anyio.sleep_forever()
@step
async def rest(hop: int) -> int:
    return hop
trip = flow.saga("trip", hop, rest)
async def main():
    async with flow:
        for n in range(3):
            await flow.start(trip, n, id=f"r{n}")
        await anyio.sleep_forever()
anyio.run(main)
"""


async def test_another_process_that_works_on_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    environment = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}
    process = subprocess.Popen([sys.executable, "-c", WORKER, url], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        for _ in range(3):
            assert process.stdout.readline() == "in the step\n"
        with pytest.raises(StoreInUse) as caught:
            await Flowlet(url).copy_to(MemoryStore())
        assert caught.value.owned == 3
    finally:
        process.kill()
        process.communicate()
    # Killed, it is known at once to be dead, long before its lease has run out.
    flow = Flowlet(url)
    await flow.copy_to(target := MemoryStore())
    flow = Flowlet(target)
    trip, _ = assemble(flow)
    async with flow:
        with anyio.fail_after(20):
            assert [await flow.handle(f"r{n}", trip).result() for n in range(3)] == [2, 3, 4]
