"""Bulk operations with an id: recorded once, resumed, shared, and refused when they are of something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from bulk_evidence import recorded, shard_heads

from flowlet import Flowlet, Retry, Run, current_run, provided, state, step, transition
from flowlet.config import BulkConfig, Config
from flowlet.core.bulk import BulkReport, Outcome
from flowlet.core.bulk_records import shard_size
from flowlet.errors import (
    BulkFailed,
    DecodeError,
    DefinitionError,
    EncodeError,
    FlowletError,
    IdConflict,
    PayloadTooLarge,
    RunError,
    RunFinished,
    RunNotFound,
    StoreUnavailable,
)
from flowlet.runtime import bulk_account
from flowlet.store import Store

pytestmark = pytest.mark.anyio

NewStore = Callable[[], Store]
Until = Callable[[Callable[[], Any]], Any]


ONCE = Config(bulk=BulkConfig(retry_attempts=1))
"""What fails here fails at once, unless a test says otherwise."""


@pytest.fixture
def flow(new_store: Callable[[], Store]) -> Flowlet:
    """Return a Flowlet that tries each item once."""
    return Flowlet(new_store(), config=ONCE)


class Invoice(msgspec.Struct):
    number: int
    total: float = 1.5


class Sender:
    """A function of a bulk operation that remembers its calls."""

    __name__ = "send"

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: list[Any] = []
        self.keys: dict[Any, set[str]] = {}
        self.poison: set[Any] = set()
        self.stop_at = 10**9
        self._seconds = seconds

    async def __call__(self, item: int, run: Run = provided) -> int:
        if len(self.calls) >= self.stop_at:
            await anyio.sleep_forever()
        self.calls.append(item)
        self.keys.setdefault(item, set()).add(run.idempotency_key)
        await (anyio.sleep(self._seconds) if self._seconds else anyio.lowlevel.checkpoint())
        if item in self.poison:
            raise ValueError(f"{item} is bad")
        return item * 2


def facts(report: BulkReport[Any]) -> tuple[Any, ...]:
    errors = [(e.index, e.item, type(e.error).__name__, str(e.error), e.attempts) for e in report.errors]
    return report.status, report.total, report.succeeded, report.failed, errors


async def interrupt(flow: Flowlet, send: Sender, items: Any, after: int, until: Until, **options: Any) -> None:
    """Begin a bulk operation and cancel its caller when so many items were begun."""
    send.stop_at = after
    async with anyio.create_task_group() as group:
        group.start_soon(flow.bulk(send, items, id="june", **options)._finish)
        await until(lambda: len(send.calls) >= after)
        await anyio.sleep(0.02)  # what has ended is recorded when it is cut off, if not before
        group.cancel_scope.cancel()
    send.stop_at = 10**9


# ---------------------------------------------------------------- once
@pytest.mark.parametrize("count", [0, 1, 10, 11, 250])
async def test_each_item_is_recorded_once_and_reported_again_without_a_call(flow: Flowlet, count: int) -> None:
    send = Sender()
    send.poison = {3, 7, 200}
    async with flow:
        first = await flow.bulk(send, range(count), id="june", concurrency=8)
        assert Counter(send.calls) == Counter(range(count))
        assert await recorded(flow.store, "june") == Counter(range(count))
        again = await flow.bulk(send, range(count), id="june", concurrency=3, batch_size=7)
        assert len(send.calls) == count
    assert facts(again) == facts(first)
    assert again.seconds == first.seconds
    assert first.failed == len(send.poison & set(range(count)))
    if count > 10:
        assert first.errors[0].index == first.errors[0].item == 3
        assert again.p50 == first.p50 > 0


async def test_outcomes_of_a_completed_bulk_are_told_once_more(flow: Flowlet) -> None:
    send = Sender()
    send.poison = {5}
    async with flow:
        first = {o.index: o async for o in flow.bulk(send, range(30), id="june")}
        again = [o async for o in flow.bulk(send, range(30), id="june", ordered=True)]
    assert [o.index for o in again] == list(range(30)) == sorted(first)
    assert [o.value for o in again if o.error is None] == [2 * n for n in range(30) if n != 5]
    assert str(again[5].error) == "5 is bad"
    assert len(send.calls) == 30


async def test_commits_are_far_fewer_than_items(faulty_store: Any) -> None:
    async def no_op(n: int) -> int:
        return n

    flow = Flowlet(faulty_store, config=ONCE)
    async with flow:
        await flow.bulk(no_op, range(10_000), id="june", concurrency=64)
    assert len(faulty_store.appended) < 200


async def test_the_key_of_an_item_is_the_same_in_every_call(new_store: NewStore, until: Until) -> None:
    send = Sender()
    async with Flowlet(new_store(), config=ONCE) as flow:
        await interrupt(flow, send, range(40), 15, until, concurrency=4)
    async with Flowlet(new_store(), config=ONCE) as flow:
        await flow.bulk(send, range(40), id="june")
    assert send.keys == {n: {f"june/{n}"} for n in range(40)}


async def test_current_run_is_the_items(flow: Flowlet) -> None:
    async def ask(n: int) -> str:
        await anyio.lowlevel.checkpoint()
        return f"{current_run().idempotency_key} {current_run().attempt} {current_run().uuid()}"

    async with flow:
        first = await flow.bulk(ask, range(3), id="a").values()
        assert [text.split()[:2] for text in first] == [[f"a/{n}", "1"] for n in range(3)]
        assert len(set(first)) == 3


async def test_runs_and_machines_that_an_item_starts_are_its_own(flow: Flowlet, until: Until) -> None:
    @flow.machine
    class Letter:
        @state(initial=True)
        class Draft: ...

        @state(final=True)
        class Sent: ...

        @transition(Draft, Sent)
        async def send(self) -> None: ...

    @step
    async def post(n: int) -> int:
        posted.append(n)
        await (await flow.create(Letter(), id=f"letter-{n}")).send()
        return n

    posted: list[int] = []
    saga = flow.saga("posting", post)
    hang = True

    async def handle(n: int) -> int:
        value: int = await saga(n)
        await (await flow.load(Letter, f"letter-{n}")).send()  # the second time under the item's key: refused
        return value

    async def once(n: int) -> int:
        value: int = await saga(n)
        if hang:
            await anyio.sleep_forever()
        return value

    async with flow:
        report = await flow.bulk(handle, range(2), id="may")
        assert report.failed == 2  # a letter is sent once
        with anyio.move_on_after(0.3):
            await flow.bulk(once, range(10, 13), id="june")
        hang = False
        assert (await flow.bulk(once, range(10, 13), id="june")).succeeded == 3
        assert sorted(posted) == [0, 1, 10, 11, 12], "a saga that an item had begun was begun anew"


# ---------------------------------------------------------------- resuming
@pytest.mark.parametrize("after", [1, 5, 17, 60, 99])
@pytest.mark.parametrize("as_stream", [False, True])
async def test_a_bulk_that_was_cut_off_goes_on_with_the_rest(
    new_store: NewStore, until: Until, after: int, as_stream: bool
) -> None:
    def items() -> Any:
        return iter(range(100)) if as_stream else range(100)

    send = Sender()
    send.poison = set(range(0, 100, 9))
    async with Flowlet(new_store(), config=ONCE) as flow:
        await interrupt(flow, send, items(), after, until, concurrency=4)
        done = await recorded(flow.store, "june")
        assert sum(done.values()) == len(done) >= after - 4
        assert await flow.handle("june").status() == "running"
    before = len(send.calls)
    async with Flowlet(new_store(), config=ONCE) as flow:
        found: list[Outcome[Any, Any]] = [o async for o in flow.bulk(send, items(), id="june")]
        assert await recorded(flow.store, "june") == Counter(range(100))
    assert len(send.calls) - before == 100 - len(done)
    assert sorted(o.index for o in found) == list(range(100))
    assert {o.index for o in found if o.error is not None} == send.poison


async def test_total_timeout_leaves_the_rest_for_the_next_call(flow: Flowlet) -> None:
    send = Sender()
    send.stop_at = 20
    async with flow:
        report = await flow.bulk(send, range(50), id="june", total_timeout=1.0)
        assert (report.status, report.succeeded, report.left) == ("timed_out", 20, 30)
        send.stop_at = 10**9
        assert facts(await flow.bulk(send, range(50), id="june"))[:3] == ("completed", 50, 50)
    assert Counter(send.calls) == Counter(range(50))


async def test_a_bulk_stopped_by_failures_can_go_on(flow: Flowlet) -> None:
    send = Sender()
    send.poison = {4}
    async with flow:
        report = await flow.bulk(send, range(50), id="june", concurrency=1, on_error="stop")
        assert (report.status, report.succeeded, report.failed, report.left) == ("failed", 4, 1, 45)
        assert [run.status async for run in flow.runs()] == ["failed"]
        again = await flow.bulk(send, range(50), id="june", on_error="stop")
        assert again.status == "failed", "what is on record counts, too"
        report = await flow.bulk(send, range(50), id="june")
        assert (report.status, report.succeeded, report.failed) == ("completed", 49, 1)
    assert Counter(send.calls) == Counter(range(50))


async def test_leaving_the_flowlet_lets_items_end_and_keeps_the_rest(new_store: NewStore, until: Until) -> None:
    send = Sender(0.05)
    told: list[str] = []
    flow = Flowlet(new_store(), config=ONCE)

    async def work() -> None:
        try:
            await flow.bulk(send, range(60), id="june", concurrency=3)
        except RunError as error:
            told.append(str(error))

    async with anyio.create_task_group() as group, flow:
        group.start_soon(work)
        await until(lambda: len(send.calls) > 5)
    assert len(told) == 1
    assert "goes on when it is called again" in told[0]
    begun = len(send.calls)
    assert begun < 60
    async with Flowlet(new_store(), config=ONCE) as other:
        assert sum((await recorded(other.store, "june")).values()) == begun, "what was under way did not end"
        assert (await other.bulk(send, range(60), id="june")).succeeded == 60
    assert Counter(send.calls) == Counter(range(60))


async def test_it_needs_an_open_flowlet() -> None:
    with pytest.raises(FlowletError, match="not open"):
        await Flowlet(config=ONCE).bulk(Sender(), range(3), id="june")


# ---------------------------------------------------------------- other items, other functions
def stream(items: Any) -> Iterator[Any]:
    yield from items


async def stream_async(items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item


@pytest.mark.parametrize("make", [list, stream, stream_async])
@pytest.mark.parametrize("completed", [False, True])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda items: [*items[:7], -1, *items[8:]], "item 7 is the first that differs"),
        (lambda items: [*items[:7], *items[8:], 7], "item 7 is the first that differs"),
        (lambda items: items[:12], "item 12 is the first that is"),
        (lambda items: items[:20], "item 20 is the first that is"),
        (lambda items: [], "item 0 is the first that is"),
    ],
)
async def test_other_items_are_refused(
    flow: Flowlet, until: Until, make: Any, completed: bool, change: Any, says: str
) -> None:
    send = Sender()
    items = list(range(30))
    async with flow:
        if completed:
            await flow.bulk(send, make(items), id="june")
        else:
            await interrupt(flow, send, make(items), 27, until, concurrency=1)
        before = len(send.calls)
        with pytest.raises(IdConflict, match=says):
            await flow.bulk(send, make(change(items)), id="june")
        assert len(send.calls) - before == 0 or (make is not list and not completed)
        assert (await flow.bulk(send, make(items), id="june")).succeeded == 30
        assert await recorded(flow.store, "june") == Counter(range(30))


@pytest.mark.parametrize("make", [list, stream, stream_async])
async def test_more_items_are_refused(flow: Flowlet, make: Any) -> None:
    send = Sender()
    async with flow:
        await flow.bulk(send, make(range(30)), id="june")
        with pytest.raises(IdConflict, match="item 30 is the first that is"):
            await flow.bulk(send, make(range(31)), id="june")
    assert len(send.calls) == 30


async def test_changed_items_of_a_list_are_refused_before_any_is_begun(flow: Flowlet, until: Until) -> None:
    send = Sender()
    async with flow:
        await interrupt(flow, send, range(100), 3, until, concurrency=1)
        with pytest.raises(IdConflict, match="item 8 is"):  # of a shard that was begun, but not done
            await flow.bulk(send, [*range(8), -1, *range(9, 100)], id="june")
    assert len(send.calls) == 3


async def test_the_id_belongs_to_one_function(flow: Flowlet) -> None:
    async def other(n: int) -> int:
        return n

    @step
    async def one(n: int) -> int:
        return n

    saga = flow.saga("one", one)
    async with flow:
        await flow.bulk(Sender(), range(3), id="june")
        with pytest.raises(IdConflict, match="'bulk:send', not of 'bulk:other'"):
            await flow.bulk(other, range(3), id="june")
        with pytest.raises(IdConflict):
            await flow.execute(saga, 1, id="june")
        await flow.execute(saga, 1, id="may")
        with pytest.raises(IdConflict, match="belongs to a run of 'one'"):
            await flow.bulk(other, range(3), id="may")


async def test_items_are_told_apart_by_what_they_hold(flow: Flowlet) -> None:
    async def send(invoice: Invoice) -> float:
        return invoice.total

    async with flow:
        await flow.bulk(send, [Invoice(n) for n in range(3)], id="june")
        await flow.bulk(send, [Invoice(n) for n in range(3)], id="june")
        with pytest.raises(IdConflict, match="item 1 is the first that differs, and is now given Invoice"):
            await flow.bulk(send, [Invoice(0), Invoice(1, 2.0), Invoice(2)], id="june")


# ---------------------------------------------------------------- what cannot be stored
async def test_what_cannot_be_stored_is_one_failure(flow: Flowlet) -> None:
    called = []

    async def odd_results(n: Any) -> int:
        called.append(n)
        return {1: 1, 2: object(), 3: "three"}[n]  # type: ignore[return-value]

    thing = object()
    async with flow:
        report = await flow.bulk(odd_results, [1, 2, 3, thing], id="june")
        assert (report.succeeded, report.failed) == (1, 3)
        assert [type(e.error) for e in report.errors] == [EncodeError, DecodeError, EncodeError]
        assert "the result of item 1" in str(report.errors[0].error)
        assert report.errors[2].item is thing
        assert thing not in called
        again = await flow.bulk(odd_results, [1, 2, 3, thing], id="june")
        assert facts(again) == facts(report)
    assert len(called) == 3


async def test_unstorable_items_of_a_shard_that_was_taken_over(new_store: NewStore, until: Until) -> None:
    send, called = Sender(0.01), []
    things = [object(), *range(1, 20), object()]
    reports: list[BulkReport[Any]] = []

    async def slow(item: Any) -> int:
        called.append(item)
        return await send(item, current_run())

    async def work(flow: Flowlet) -> None:
        reports.append(await flow.bulk(slow, things, id="june", concurrency=1))

    async with (
        Flowlet(new_store(), config=ONCE) as flow,
        Flowlet(new_store(), config=ONCE) as second,
        anyio.create_task_group() as group,
    ):
        group.start_soon(work, flow)
        await until(lambda: called)
        group.start_soon(work, second)
        await anyio.sleep(0.05)
        assert flow._runs is not None
        await second.store.release(flow._runs.worker.id, [h.id for h in await shard_heads(second.store, "june")])
    assert [(r.succeeded, [e.index for e in r.errors]) for r in reports] == [(19, [0, 20])] * 2
    assert {type(item) for item in called} == {int}


async def test_results_come_as_a_reader_of_the_record_has_them(flow: Flowlet) -> None:
    async def make(n: int) -> tuple[int, ...]:
        return [n, n]  # type: ignore[return-value]

    async with flow:
        first = await flow.bulk(make, range(3), id="june").values()
        assert first == await flow.bulk(make, range(3), id="june").values() == [(n, n) for n in range(3)]


async def test_too_large_a_result_is_one_failure_and_small_records_do(new_store: NewStore) -> None:
    async def inflate(n: int) -> str:
        if n == 5:
            raise ValueError("y" * 10_000)
        return "x" * (5000 if n == 3 else 1500)

    async with Flowlet(new_store(), max_payload=4096, config=ONCE) as flow:
        report = await flow.bulk(inflate, range(600), id="june", concurrency=50)
        assert (report.errors[0].index, type(report.errors[0].error)) == (3, PayloadTooLarge)
        assert (report.failed, report.errors[1].index) == (2, 5)
        assert await recorded(flow.store, "june") == Counter(range(600))
        assert facts(await flow.bulk(inflate, range(600), id="june"))[:4] == facts(report)[:4]


async def unannotated(n: int):  # type: ignore[no-untyped-def]
    return n


async def any_result(n: int) -> Any:
    return n


async def list_of_any(items: list[int]) -> list:  # type: ignore[type-arg]
    return items


async def lists_with_run(items: list[int], run: Run = provided) -> list[int]:
    return items


@pytest.mark.parametrize(
    ("function", "batch", "says"),
    [
        (unannotated, False, "its result has no annotation"),
        (lambda n: n, False, "its result has no annotation"),
        (any_result, False, "annotated Any"),
        (list_of_any, True, "must be annotated to return a list of results"),
        (lists_with_run, True, "has no idempotency key"),
    ],
)
async def test_results_that_are_recorded_need_a_type(function: Any, batch: bool, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        Flowlet(config=ONCE).bulk(function, range(3), batch=batch, id="june")


# ---------------------------------------------------------------- the same options as without an id
async def test_lists_and_retries_with_an_id(flow: Flowlet) -> None:
    tried: Counter[int] = Counter()

    async def in_lists(numbers: list[int]) -> list[int]:
        if 13 in numbers:
            raise ValueError("thirteen")
        return [n * 2 for n in numbers]

    async def third_time(n: int) -> int:
        tried[n] += 1
        if tried[n] < 3:
            raise ConnectionError
        return current_run().attempt

    async with flow:
        report = await flow.bulk(in_lists, range(50), batch=True, batch_size=8, id="a")
        assert (report.succeeded, [e.index for e in report.errors]) == (49, [13])
        assert await recorded(flow.store, "a") == Counter(range(50))
        assert await flow.bulk(third_time, range(5), retry=Retry(attempts=3, wait=0), id="b").values() == [3] * 5
        with pytest.raises(BulkFailed):
            await flow.bulk(in_lists, range(50), batch=True, id="a").values()


async def test_progress_counts_what_was_done_before(flow: Flowlet, until: Until) -> None:
    send = Sender()
    told: list[Any] = []
    async with flow:
        await interrupt(flow, send, range(100), 50, until, concurrency=1)
        await flow.bulk(send, range(100), id="june", progress=told.append)
    assert (told[-1].done, told[-1].total) == (100, 100)
    assert told[-1].rate == pytest.approx(50 / told[-1].seconds, rel=0.1)


async def test_an_interrupt_passes_and_leaves_the_rest(flow: Flowlet) -> None:
    interrupts = True

    async def send(n: int) -> int:
        await anyio.lowlevel.checkpoint()
        if n == 30 and interrupts:
            raise KeyboardInterrupt
        return n

    async with flow:
        with pytest.raises(KeyboardInterrupt):
            await flow.bulk(send, range(60), id="june")
        assert set((await recorded(flow.store, "june")).values()) == {1}
        interrupts = False
        assert (await flow.bulk(send, range(60), id="june")).succeeded == 60


# ---------------------------------------------------------------- seen and ordered from outside
async def test_it_is_seen_among_the_runs(flow: Flowlet, until: Until) -> None:
    send = Sender()
    send.stop_at = 3
    async with flow:
        async with anyio.create_task_group() as group:
            group.start_soon(flow.bulk(send, range(50), id="june")._finish)
            await until(lambda: len(send.calls) == 3)
            runs = [run async for run in flow.runs()]
            assert [(run.id, run.definition, run.status) for run in runs] == [("june", "bulk:send", "running")]
            group.cancel_scope.cancel()
        send.stop_at = 10**9
        await flow.bulk(send, range(50), id="june")
        assert await flow.handle("june").status() == "completed"
        report = await flow.handle("june").result()
        assert (report.status, report.total, report.succeeded, report.failed) == ("completed", 50, 50, 0)
        assert [record.kind async for record in flow.handle("june").history()] == ["started", "completed"]
        assert await flow.prune(0) == 1 + len(range(0, 50, shard_size(50, None)))
        assert [run async for run in flow.runs()] == []
        await flow.bulk(send, range(7), id="june")
    assert len(send.calls) == 57


async def test_what_has_ended_belongs_to_nobody(faulty_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a shard that another process took when it was complete, just before the operation ended."""
    send, append = Sender(), faulty_store.append

    async def take_first(writes: Any, **options: Any) -> None:
        closing = [w.id for w in writes if w.close and "shard" in w.id]
        if closing:
            await faulty_store.heartbeat("somebody", 10.0)
            assert (await faulty_store.claim("somebody", ids=closing)).heads
        await append(writes, **options)

    monkeypatch.setattr(faulty_store, "append", take_first)
    async with Flowlet(faulty_store, config=ONCE) as flow:
        assert (await flow.bulk(send, range(50), id="june")).succeeded == 50
        heads = await shard_heads(flow.store, "june")
        assert heads
        assert all(head.closed is not None and head.owner is None for head in heads)


@pytest.mark.parametrize("from_elsewhere", [False, True])
async def test_cancelling_it_by_its_handle(new_store: NewStore, until: Until, from_elsewhere: bool) -> None:
    send = Sender()
    send.stop_at = 30
    reports: list[BulkReport[Any]] = []

    async def work() -> None:
        reports.append(await flow.bulk(send, range(100), id="june"))

    async with Flowlet(new_store(), config=ONCE) as flow, Flowlet(new_store(), config=ONCE) as other:
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await until(lambda: len(send.calls) == 30)
            await (other if from_elsewhere else flow).handle("june").cancel()
        assert (reports[0].status, reports[0].succeeded, reports[0].left) == ("cancelled", 30, 70)
        assert await flow.handle("june").status() == "cancelled"
        send.stop_at = 10**9
        again = await flow.bulk(send, range(100), id="june")
        assert (again.status, again.succeeded, len(send.calls)) == ("cancelled", 30, 30)
        await flow.handle("june").cancel()
        await flow.bulk(send, range(3), id="july")
        with pytest.raises(RunFinished):
            await flow.handle("july").cancel()


async def test_cancelled_while_nobody_works_on_it(flow: Flowlet, until: Until) -> None:
    send = Sender()
    async with flow:
        await interrupt(flow, send, range(100), 20, until, concurrency=2)
        begun = len(send.calls)
        await flow.handle("june").cancel()
        report = await flow.bulk(send, range(100), id="june", concurrency=1)
        assert report.status == "cancelled"
        assert len(send.calls) <= begun + 5


async def test_what_is_left_of_a_pruned_one_is_not_taken_for_the_new_one(flow: Flowlet) -> None:
    send = Sender()
    async with flow:
        await flow.bulk(send, range(50), id="june")
        assert await flow.prune(0, limit=3) == 3
        with pytest.raises(RunNotFound):
            await flow.handle("june").status()
        assert len(await shard_heads(flow.store, "june")) > 0
        assert (await flow.bulk(send, range(50), id="june")).succeeded == 50
    assert len(send.calls) == 100


async def test_what_has_not_ended_is_never_pruned(flow: Flowlet, until: Until) -> None:
    send = Sender()
    async with flow:
        await interrupt(flow, send, range(100), 30, until)
        assert await flow.prune(0) == 0
        await flow.bulk(send, range(100), id="june")
        count = len(await shard_heads(flow.store, "june"))
        assert await flow.prune(0) == 1 + count
        assert await shard_heads(flow.store, "june") == []


@pytest.mark.parametrize("completed", [False, True])
async def test_it_moves_to_another_store(flow: Flowlet, tmp_path: Path, until: Until, completed: bool) -> None:
    send = Sender()
    send.poison = {7}
    async with flow:
        await interrupt(flow, send, range(60), 20, until, concurrency=1)
        if completed:
            await flow.bulk(send, range(60), id="june")
    await flow.copy_to(f"sqlite:///{tmp_path}/other.db")
    calls = len(send.calls)
    async with Flowlet(f"sqlite:///{tmp_path}/other.db", config=ONCE) as other:
        done = await recorded(other.store, "june")
        report = await other.bulk(send, range(60), id="june")
        assert facts(report)[:4] == ("completed", 60, 59, 1)
        assert len(send.calls) - calls == 60 - len(done)
        assert [run.id async for run in other.runs()] == ["june"]


# ---------------------------------------------------------------- several at once
@pytest.mark.parametrize("as_stream", [False, True])
async def test_two_processes_share_the_items(new_store: NewStore, as_stream: bool) -> None:
    senders = [Sender(0.002), Sender(0.002)]
    reports: list[BulkReport[Any]] = []

    async def work(send: Sender) -> None:
        send.poison = {33}
        items: Any = stream(range(300)) if as_stream else range(300)
        async with Flowlet(new_store(), config=ONCE) as flow:
            reports.append(await flow.bulk(send, items, id="june", concurrency=3))

    async with anyio.create_task_group() as group:
        for send in senders:
            group.start_soon(work, send)
    assert Counter(senders[0].calls + senders[1].calls) == Counter(range(300))
    if not as_stream:  # otherwise there are two shards, and the first to come may have both
        assert min(len(send.calls) for send in senders) > 50, "one did nearly everything"
    assert facts(reports[0]) == facts(reports[1])
    assert reports[0].failed == 1
    store = new_store()
    assert await recorded(store, "june") == Counter(range(300))
    await store.close()


async def test_two_calls_in_one_process_share_the_items_in_order(flow: Flowlet) -> None:
    send = Sender(0.001)
    found: list[list[int]] = [[], []]

    async def work(which: int) -> None:
        async for outcome in flow.bulk(send, range(100), id="june", ordered=True):
            found[which].append(outcome.index)

    async with flow, anyio.create_task_group() as group:
        group.start_soon(work, 0)
        group.start_soon(work, 1)
    assert found == [list(range(100))] * 2
    assert Counter(send.calls) == Counter(range(100))


async def test_who_has_other_items_breaks_nothing(new_store: NewStore) -> None:
    send, other = Sender(0.002), Sender(0.002)
    async with Flowlet(new_store(), config=ONCE) as flow, Flowlet(new_store(), config=ONCE) as second:

        async def intrude() -> None:
            await anyio.sleep(0.05)
            with pytest.raises(IdConflict, match="one of the items 90 to 99 is the first that differs"):
                await second.bulk(other, [*range(99), -1], id="june")

        async with anyio.create_task_group() as group:
            group.start_soon(intrude)
            report = await flow.bulk(send, range(100), id="june", concurrency=2)
        assert report.succeeded == 100
        assert await recorded(flow.store, "june") == Counter(range(100))


# ---------------------------------------------------------------- trouble with the store
async def test_lost_writes_and_lost_replies_are_made_good(faulty_store: Any, no_pauses: int) -> None:
    send = Sender()
    flow = Flowlet(faulty_store, config=ONCE)
    async with flow:
        faulty_store.faults.extend(["lost", "reply", None, "reply", "lost", "reply", "reply", "lost"] * 3)
        report = await flow.bulk(send, range(100), id="june")
        assert report.succeeded == 100
        assert await recorded(faulty_store, "june") == Counter(range(100))
    assert Counter(send.calls) == Counter(range(100))


async def test_a_store_that_goes_down_breaks_it_and_loses_nothing(
    faulty_store: Any, no_pauses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_account, "_PAUSES", (0.0,))
    send = Sender(0.001)
    flow = Flowlet(faulty_store, lease=60, config=ONCE)

    async def send_and_break(item: int) -> int:
        faulty_store.down = len(send.calls) == 60 or faulty_store.down
        return await send(item, current_run())

    send_and_break.__name__ = "send"
    async with flow:
        with pytest.raises(StoreUnavailable):
            await flow.bulk(send_and_break, range(200), id="june", batch_size=10)
        assert len(send.calls) < 200
        faulty_store.down = False
        report = await flow.bulk(send, range(200), id="june")
        assert report.succeeded == 200
        assert await recorded(faulty_store, "june") == Counter(range(200))


async def test_shards_that_were_taken_away_are_left_to_who_has_them(new_store: NewStore, until: Until) -> None:
    send, other = Sender(0.005), Sender()
    reports: list[BulkReport[Any]] = []
    async with Flowlet(new_store(), config=ONCE) as flow, Flowlet(new_store(), config=ONCE) as second:

        async def work() -> None:
            reports.append(await flow.bulk(send, range(100), id="june", concurrency=4))

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await until(lambda: len(send.calls) > 20)
            assert flow._runs is not None
            # As if its lease had run out while it was held up.
            ids = [head.id for head in await shard_heads(second.store, "june")]
            await second.store.release(flow._runs.worker.id, ids)
            reports.append(await second.bulk(other, range(100), id="june", concurrency=4))
        assert [facts(report)[:3] for report in reports] == [("completed", 100, 100)] * 2
        assert await recorded(flow.store, "june") == Counter(range(100))
        assert other.calls, "it was given nothing"


async def test_an_orphan_of_this_process_is_taken_again(flow: Flowlet) -> None:
    send = Sender()
    async with flow:
        send.stop_at = 0
        with anyio.move_on_after(0.1):
            await flow.bulk(send, range(20), id="june")
        assert flow._runs is not None
        # As if the answer to a claim had been lost with a cancelled caller.
        ids = [head.id for head in await shard_heads(flow.store, "june")]
        await flow.store.claim(flow._runs.worker.id, ids=ids)
        send.stop_at = 10**9
        assert (await flow.bulk(send, range(20), id="june")).succeeded == 20


async def test_a_file_from_one_event_loop_is_gone_on_with_on_the_other(tmp_path: Path) -> None:
    send = Sender()
    async with Flowlet(f"sqlite:///{tmp_path}/a.db", config=ONCE) as flow:
        assert (await flow.bulk(send, range(5), id="june")).succeeded == 5
    async with Flowlet(f"sqlite:///{tmp_path}/a.db", config=ONCE) as flow:
        assert (await flow.bulk(send, range(5), id="june")).succeeded == 5
    assert len(send.calls) == 5
