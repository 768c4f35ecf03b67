"""``max_payload``: what is too large is refused where it comes in, and nothing is lost or retried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flowlet import Flowlet, Retry, compensate, gather, provided, state, step, transition
from flowlet.errors import ConfigError, HookFailed, PayloadTooLarge, RunNotFound, RunParked, StepFailed
from flowlet.store import Store
from flowlet.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

LIMIT = 8192
seen: list[str] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


@pytest.fixture
def flow(new_store: Callable[[], Store]) -> Flowlet:
    return Flowlet(new_store(), max_payload=LIMIT)


@step(retry=5)
async def make(size: int) -> bytes:
    seen.append(f"make {size}")
    return bytes(size)


@compensate(make)
async def unmake(size: int) -> None:
    seen.append(f"unmake {size}")


@step(retry=Retry(attempts=3, wait=0))
async def take(data: bytes) -> int:
    seen.append("take")
    return len(data)


@step(retry=Retry(attempts=3, wait=0))
async def keep(data: bytes) -> int:
    seen.append("keep")
    return len(data)


@compensate(keep)
async def unkeep(data: bytes) -> None:
    seen.append("unkeep")


class Gateway: ...


def make_gateway() -> Gateway:
    raise ValueError("x" * 10 * LIMIT)


async def largest_record(flow: Flowlet, id: str) -> int:
    stored = await flow.store.load(id)
    assert stored is not None
    return max(map(len, stored.records))


# ------------------------------------------------------------------ the limit itself
@pytest.mark.parametrize("limit", [0, -1, 4095, True, 5000.0, "5000"])
def test_limits_that_are_none(limit: Any) -> None:
    with pytest.raises(ConfigError, match="max_payload: must be a whole number of at least 4096 bytes"):
        Flowlet(max_payload=limit)


async def test_the_smaller_of_the_two_counts() -> None:
    class Small(MemoryStore):
        capabilities = MemoryStore.capabilities.__class__(max_payload=5000)

    for given, size in ((None, 4000), (9000, 4000), (4500, 4000)):
        flow = Flowlet(Small(), max_payload=given)
        body = flow.saga("body", make)
        async with flow:
            assert len(await flow.execute(body, size)) == size
            with pytest.raises(PayloadTooLarge) as caught:
                await flow.execute(body, 6000)
        assert caught.value.limit == min(given or 5000, 5000)


async def test_without_a_limit_there_is_none() -> None:
    flow = Flowlet()
    body = flow.saga("body", make)
    async with flow:
        assert len(await flow.execute(body, 3_000_000)) == 3_000_000


# ------------------------------------------------------------------ runs
async def test_the_input_of_a_run(flow: Flowlet) -> None:
    body = flow.saga("body", take)
    async with flow:
        for begin in (flow.start, flow.execute):
            with pytest.raises(PayloadTooLarge, match=r"^the input of run 'r' takes 8,[0-9]{3} bytes.* 8,192 are al"):
                await begin(body, bytes(LIMIT), id="r")
        with pytest.raises(PayloadTooLarge, match="the input of run"):
            await body(bytes(LIMIT))
        with pytest.raises(RunNotFound):
            await flow.handle("r").status()
        assert [run async for run in flow.runs()] == []
        assert await flow.execute(body, bytes(LIMIT - 200), id="r") == LIMIT - 200
    assert seen == ["take"]


async def test_the_result_of_a_step_counts_with_its_record(flow: Flowlet) -> None:
    @flow.saga
    async def body(size: int) -> int:
        await make(1)
        return len(await make(size))

    async with flow:
        size, problem = LIMIT - 120, None
        while problem is None:
            size += 1
            try:
                await flow.execute(body, size, id=f"r-{size}")
            except PayloadTooLarge as error:
                problem = error
        assert str(problem).startswith("the result of step 'make#2', with its input, which is kept")
        assert problem.size == LIMIT + 1
        assert LIMIT - 120 < size < LIMIT  # the value alone would have fitted
        assert await flow.handle(f"r-{size}").status() == "compensated"
        assert await largest_record(flow, f"r-{size - 1}") == LIMIT
    assert seen[-3:] == ["make 1", f"make {size}", "unmake 1"]  # once: it is not retried


async def test_what_is_kept_for_a_compensation_is_judged_before_the_effect(flow: Flowlet) -> None:
    @flow.saga
    async def body(size: int, together: bool) -> int:
        await make(7)
        data = bytes(size)
        if together:
            return (await gather(keep(data), keep(b"")))[0]
        return await keep(data)

    async with flow:
        for together in (False, True):
            seen.clear()
            message = r"^the input of step 'keep', which is kept for its compensation, takes [89],[0-9]{3} bytes"
            with pytest.raises(PayloadTooLarge, match=message):
                await flow.execute(body, LIMIT - 50, together, id=f"r-{together}")
            assert [s for s in seen if s != "unkeep"] == ["make 7", *(["keep"] if together else []), "unmake 7"]
            report = await flow.handle(f"r-{together}").report()
            assert report.steps["keep"].status == "failed"
        seen.clear()
        assert await flow.execute(body, LIMIT - 600, False) == LIMIT - 600


async def test_an_input_that_is_not_kept_may_be_large(flow: Flowlet) -> None:
    @flow.saga
    async def body(size: int) -> int:
        return await take(bytes(size))

    async with flow:
        assert await flow.execute(body, 10 * LIMIT, id="r") == 10 * LIMIT
        assert await largest_record(flow, "r") < 200


@pytest.mark.parametrize("direct", [False, True])
async def test_the_result_of_a_run(flow: Flowlet, direct: bool) -> None:
    @flow.saga
    async def body(size: int) -> bytes:
        await make(5)
        return bytes(size)

    @flow.saga
    async def bare(size: int) -> bytes:
        return bytes(size)

    async with flow:
        for saga, status, undone in ((body, "compensated", ["make 5", "unmake 5"]), (bare, "failed", [])):
            seen.clear()
            if not direct:
                await flow.start(saga, LIMIT, id=f"r-{status}")
            with pytest.raises(PayloadTooLarge, match=r"^the result of run 'r[^']*' takes 8,[0-9]{3} bytes"):
                await flow.execute(saga, LIMIT, id=f"r-{status}")
            assert await flow.handle(f"r-{status}").status() == status
            assert seen == undone
        assert len(await flow.execute(body, LIMIT - 300)) == LIMIT - 300


async def test_a_failure_always_fits(flow: Flowlet) -> None:
    class Refused(Exception):
        pass

    @step(retry=Retry(attempts=3, wait=0))
    async def refuse(size: int) -> None:
        seen.append("refuse")
        raise Refused("x" * size)

    @flow.saga
    async def body(size: int) -> None:
        await make(5)
        await refuse(size)

    async with flow:
        handle = await flow.start(body, 10 * LIMIT, id="r")
        with pytest.raises((Refused, StepFailed), match=r"xxxx"):
            await handle.result()
        assert await handle.status() == "compensated"
        assert await largest_record(flow, "r") <= LIMIT
        kinds = [record.kind async for record in handle.history()]
        assert kinds.count("attempt_failed") == 2
        with pytest.raises(StepFailed, match=r"'refuse' failed with .*Refused: xxx.*x\.\.\. \(shortened, it had 81,9"):
            await flow.handle("r").result()
    assert seen == ["make 5", "refuse", "refuse", "refuse", "unmake 5"]


async def test_what_an_operator_is_asked_always_fits(flow: Flowlet) -> None:
    @step
    async def reserve(n: int) -> int:
        return n

    @compensate(reserve)
    async def release(n: int) -> None:
        raise ValueError(f"{n}" + "x" * 10 * LIMIT)

    @flow.saga
    async def body() -> None:
        for n in range(5):
            await reserve(n)
        raise ValueError("y" * 10 * LIMIT)

    async with flow:
        handle = await flow.start(body, id="r")
        with pytest.raises(ValueError, match="yyy"):
            await handle.result()
        assert await handle.status() == "compensation_failed"
        assert await largest_record(flow, "r") <= LIMIT


async def test_why_a_run_is_parked_always_fits(flow: Flowlet) -> None:
    flow.provide(make_gateway)

    @flow.saga
    class Body:
        def __init__(self, gateway: Gateway = provided) -> None: ...

        async def __call__(self) -> None: ...

    async with flow:
        handle = await flow.start(Body, id="r")
        with pytest.raises(RunParked, match="cannot begin here"):
            await handle.result()
        assert await handle.status() == "parked"
        assert await largest_record(flow, "r") <= LIMIT
        with pytest.raises(RunParked, match=r"cannot begin here.*xxx\.\.\.$"):
            await flow.handle("r").result()


async def test_what_a_compensation_returns_is_nobodys_concern(flow: Flowlet) -> None:
    @step
    async def reserve() -> None: ...

    @compensate(reserve)
    async def release() -> bytes:  # type: ignore[misc]
        seen.append("release")
        return bytes(2 * LIMIT)

    @flow.saga
    async def body() -> None:
        await reserve()
        raise ValueError("no")

    async with flow:
        handle = await flow.start(body, id="r")
        with pytest.raises(ValueError, match="no"):
            await handle.result()
        assert await handle.status() == "compensated"
    assert seen == ["release"]


# ------------------------------------------------------------------ machines
def make_note(flow: Flowlet) -> Any:
    @flow.machine(allow={"dead_end"})
    class Note:
        text: str = ""

        @state(initial=True)
        class Open: ...

        @state
        class Read: ...

        @state(final=True)
        class Closed: ...

        @transition(Open, Open)
        async def write(self, size: int) -> None:
            self.text = "x" * size

        @transition(Open, Read)
        async def read(self, size: int) -> None: ...

        async def on_enter_read(self) -> None:
            self.text = "y" * 2 * LIMIT

        @transition(Open, Closed)
        async def close(self, size: int) -> None:
            self.text = "x" * size

    return Note


async def test_the_data_of_a_machine(flow: Flowlet) -> None:
    Note = make_note(flow)
    async with flow:
        big = Note()
        big.text = "x" * LIMIT
        with pytest.raises(PayloadTooLarge, match=r"^the creation of Note 'n', with the machine's data, takes 8,"):
            await flow.create(big, id="n")
        with pytest.raises(RunNotFound):
            await flow.load(Note, "n")
        note = await flow.create(Note(), id="n")
        await note.write(LIMIT - 300)
        for event in (note.write, note.close):
            with pytest.raises(PayloadTooLarge, match=r"^event '(write|close)' of Note 'n', with the machine's data,"):
                await event(LIMIT)
            assert len(note.text) == LIMIT - 300  # as it was before the event
        assert [t.event async for t in flow.history("n")] == ["write"]
        await note.write(3)
        await note.close(3)
        assert [t.event async for t in flow.history("n")] == ["write", "write", "close"]


async def test_what_a_hook_assigns(flow: Flowlet) -> None:
    Note = make_note(flow)
    async with flow:
        note = await flow.create(Note(), id="n")
        with pytest.raises(HookFailed, match=r"be recorded \(what its hooks have assigned of Note 'n'") as caught:
            await note.read(1)
        assert caught.value.committed
        assert isinstance(caught.value.__cause__, PayloadTooLarge)
        assert [t.event async for t in flow.history("n")] == ["read"]
        assert await largest_record(flow, "n") < 200
