"""What is peculiar to `BasicStore`: what it asks of three methods, and what it makes of races between them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import msgspec
import pytest
from dict_store import DictStore

import flowlet.store
from flowlet.errors import Conflict, LeaseLost, RunFinished, StoreError
from flowlet.store import BasicStore, Capabilities, Change, Entity, New, Signal, Store, Work, Write

pytestmark = pytest.mark.anyio

RUN = New("run", "test")
TESTS = [("run", "test", "1")]


async def create(store: Store, *ids: str, **facts: Any) -> None:
    await store.append([Write(id=id, expect=0, create=RUN, records=[b"1"], **facts) for id in ids])


class Interrupted(DictStore):
    """Somebody else does something just before an append."""

    before: Callable[[], None] | None = None
    appends = 0

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        self.appends += 1
        before, self.before = self.before, None
        if before is not None:
            before()
        await super().append(writes, work=work)

    def write(self, *writes: Write) -> None:
        self.keep(self.apply(writes, self.entities, last=self.last))


def test_it_is_a_store_and_names_what_is_missing() -> None:
    assert isinstance(DictStore(), Store)

    class Half(BasicStore):
        async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None: ...

    with pytest.raises(TypeError, match=r"load.*scan"):
        Half()  # type: ignore[abstract]


def test_it_is_imported_when_it_is_asked_for() -> None:
    program = "import flowlet, sys; print('flowlet.stores.basic' in sys.modules, 'flowlet.testing' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False False\n"
    with pytest.raises(AttributeError, match="BasicStor"):
        flowlet.store.BasicStor  # noqa: B018


def test_apply_changes_nothing_in_place() -> None:
    store = DictStore(clock=lambda: 7.0)
    entities = store.apply([Write(id="a", expect=0, create=RUN, records=[b"1"])], {}, last=41)
    a = entities["a"]
    assert a is not None
    assert (a.head.order, a.head.version, a.head.created) == (42, 1, 7.0)
    write = Write(id="a", expect=1, records=[b"2"], signals=[Signal("t", b"", "m")], status="s")
    b = store.apply([write], {"a": a}, last=42, now=9.0)["a"]
    assert b is not None
    assert (a.head.version, a.head.status, a.records, a.signals, a.message_ids) == (1, "", (b"1",), (), frozenset())
    assert (b.head.version, b.head.status, b.records, b.head.updated) == (2, "s", (b"1", b"2"), 9.0)
    assert (b.message_ids, b.head.order, b.head.wake) == (frozenset({"m"}), 42, 0.0)


def test_apply_judges_all_before_it_changes_one() -> None:
    store = DictStore()
    store.keep(store.apply([Write(id=id, expect=0, create=RUN, records=[b"1"]) for id in "ab"], {}, last=0))
    with pytest.raises(Conflict):
        store.apply([Write(id="a", status="s"), Write(id="b", expect=7)], store.entities, last=2)


def test_entities_and_changes_survive_being_written_down() -> None:
    store = DictStore(clock=lambda: 7.0)
    signals = [Signal("t", b"\xff", "m")]
    creation = Write(id="a", expect=0, create=RUN, records=[b"\x00"], signals=signals, snapshot=b"")
    changed: dict[str, Any] = store.apply([creation], {}, last=0)
    write = Write(id="a", expect=1, records=[b"\xff"], signals=signals, status="s")
    for module in (msgspec.json, msgspec.msgpack):
        entity = module.decode(module.encode(changed["a"]), type=Entity)
        assert (entity.head, entity.message_ids) == (changed["a"].head, {"m"})
        after = store.apply([module.decode(module.encode(write), type=Change)], {"a": entity}, last=1, now=8.0)
        assert module.encode(after) == module.encode(store.apply([write], changed, last=1, now=8.0))
        change = Change(id="a", wake=None, owner=None, deletes=3)
        assert module.encode(module.decode(module.encode(change), type=Change)) == module.encode(change)


async def test_who_is_alive_is_kept_where_no_listing_finds_it() -> None:
    store = DictStore()
    await store.heartbeat("w", 10)
    assert [entity.head.order for entity in store.entities.values()] == [0]
    await create(store, "a")
    assert [head.order for head in await store.scan()] == [1]


async def test_two_heartbeats_at_once_are_both_heard() -> None:
    store = DictStore()
    async with anyio.create_task_group() as group:
        for n in range(20):
            group.start_soon(store.heartbeat, f"w{n}", 100)
    assert len(await store.heartbeat("w", 100)) == 20


async def test_a_claim_gets_what_is_left_when_somebody_takes_one_of_many() -> None:
    store = Interrupted()
    await create(store, "a", "b", "c", wake=0.0)
    await store.heartbeat("w", 100)
    await store.heartbeat("other", 100)
    store.before = lambda: store.write(Write(id="b", owner="other"))
    assert [head.id for head in (await store.claim("w", definitions=TESTS)).heads] == ["a", "c"]
    assert store.entities["b"].head.owner == "other"


async def test_a_claim_looks_again_when_all_were_taken() -> None:
    store = Interrupted()
    await create(store, "a", "b", wake=0.0)
    await store.heartbeat("w", 100)
    await store.heartbeat("other", 100)
    store.before = lambda: store.write(Write(id="a", owner="other"))
    assert [head.id for head in (await store.claim("w", definitions=TESTS, limit=1)).heads] == ["b"]


async def test_a_claim_ends_when_others_are_always_faster() -> None:
    class Slow(Interrupted):
        async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
            if isinstance(writes[0], Change):
                raise LeaseLost("somebody was faster", writes[0].id)
            await super().append(writes, work=work)

    store = Slow()
    await create(store, "a", wake=0.0)
    await store.heartbeat("w", 100)
    assert not (await store.claim("w", definitions=TESTS)).heads


async def test_what_ends_while_it_is_claimed_is_not_owned() -> None:
    store = Interrupted()
    await create(store, "a", wake=0.0)
    await store.heartbeat("w", 100)
    store.before = lambda: store.write(Write(id="a", close=True))
    assert not (await store.claim("w", ids=["a"])).heads
    assert store.entities["a"].head.owner is None
    with pytest.raises(RunFinished):
        store.write(Change(id="a", owner="w", lease=True))


async def test_what_is_pruned_and_made_anew_is_not_pruned_again() -> None:
    store = Interrupted(clock=lambda: 7.0)
    await create(store, "a", close=True)

    def anew() -> None:
        store.write(Change(id="a", deletes=1))
        store.write(Write(id="a", expect=0, create=RUN, records=[b"anew"], close=True))

    store.before = anew
    assert await store.prune(closed_before=8.0) == 0
    assert [head.order for head in await store.scan()] == [2]


async def test_many_are_written_in_few_appends() -> None:
    store = Interrupted()
    await create(store, *(f"id-{n}" for n in range(250)), owner="w")
    store.appends = 0
    await store.release("w")
    assert store.appends == 3


async def test_a_store_of_several_processes_looks_now_and_then() -> None:
    store = DictStore()
    store.poll = 0.01
    seen = await store.watch(-1, 60)
    assert await store.watch(seen, 0.05) == seen, "one process hears of everything"
    store.capabilities = Capabilities(multi_process=True)
    with anyio.fail_after(5):
        assert await store.watch(seen, 60) != seen


async def test_a_record_of_its_own_wakes_nobody() -> None:
    store = DictStore()
    await create(store, "a")
    seen = await store.watch(-1, 60)
    await store.append([Write(id="a", expect=1, records=[b"2"], status="s")])
    await store.heartbeat("w", 10)
    assert await store.watch(seen, 0) == seen


async def test_flags_that_are_false_are_named() -> None:
    store = DictStore()
    store.capabilities = Capabilities(leases=False, signals=False)
    await create(store, "a")
    for call, flag in (
        (lambda: store.claim("w", ids=["a"]), "leases=False"),
        (lambda: store.append([Write(id="a", signals=[Signal("t", b"")])]), "signals=False"),
        (lambda: store.append([], work=lambda connection: []), "transactional=False"),
    ):
        with pytest.raises(StoreError, match=f"DictStore cannot .*{flag}"):
            await call()


@pytest.mark.anyio
async def test_a_worker_that_comes_while_another_looks_is_not_taken_for_dead() -> None:
    class Late(DictStore):
        """Lets a worker come and claim between the two looks of another one's claim."""

        first = True

        async def scan(self, **question: Any) -> Any:
            if self.first and question.get("kind") == "run":
                self.first = False
                await self.heartbeat("late", 100)
                assert [head.id for head in (await self.claim("late", definitions=[("run", "d", "1")])).heads] == ["a"]
            return await super().scan(**question)

    store = Late()
    await store.append([Write(id="a", expect=0, create=New("run", "d"), records=(b"",), wake=0.0)])
    await store.heartbeat("early", 100)
    assert (await store.claim("early", definitions=[("run", "d", "1")])).heads == []
