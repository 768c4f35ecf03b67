"""Listing runs: which there are, where they stand, page by page."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, state, step
from flowlet.errors import ConfigError, FlowletError
from flowlet.runtime import listing
from flowlet.runtime.listing import RunSummary
from flowlet.store import New, Store, Write

pytestmark = pytest.mark.anyio


@step
async def double(n: int) -> int:
    if n < 0:
        raise ValueError("no")
    return 2 * n


async def ids(runs: Any) -> list[str]:
    return [run.id async for run in runs]


@pytest.fixture
async def stocked(flow: Flowlet) -> Any:
    """Two definitions with runs that stand at different places, and what is no run."""
    twice = flow.saga("twice", double)

    @flow.saga
    class Sum:
        async def __call__(self, a: int, b: int) -> int:
            await release.wait()
            return a + b

    @flow.machine(allow={"dead_end"})
    class Lamp:
        @state(initial=True)
        class Off: ...

    release = anyio.Event()
    async with flow:
        for n in range(3):
            await flow.execute(twice, n, id=f"t-{n}")
        with pytest.raises(ValueError, match="no"):
            await flow.execute(twice, -1, id="t-bad")
        await flow.create(Lamp(), id="lamp")
        handle = await flow.start(Sum, 1, 2, id="s-0")
        yield flow, twice, Sum, Lamp
        release.set()
        await handle.result()


async def test_all_runs_in_the_order_of_their_start_and_nothing_else(stocked: Any) -> None:
    flow, *_ = stocked
    assert await ids(flow.runs()) == ["t-0", "t-1", "t-2", "t-bad", "s-0"]


async def test_what_a_summary_tells(stocked: Any) -> None:
    flow, *_ = stocked
    before = datetime.now(UTC) - timedelta(minutes=5)
    ended, open_ = [run async for run in flow.runs() if run.id in ("t-1", "s-0")]
    assert isinstance(ended, RunSummary)
    assert (ended.definition, ended.version, ended.status, ended.owner) == ("twice", "1", "completed", None)
    assert before < ended.created <= ended.updated <= ended.closed < datetime.now(UTC) + timedelta(seconds=1)
    assert ended.created.utcoffset() == timedelta(0)
    assert (open_.definition, open_.status, open_.closed) == ("Sum", "running", None)
    assert open_.owner is not None
    assert open_.order > ended.order


async def test_by_definition(stocked: Any) -> None:
    flow, twice, total, _ = stocked
    for definition in ("twice", twice):
        assert await ids(flow.runs(definition)) == ["t-0", "t-1", "t-2", "t-bad"]
        assert await ids(flow.runs(definition=definition)) == ["t-0", "t-1", "t-2", "t-bad"]
    for definition in ("Sum", total):
        assert await ids(flow.runs(definition)) == ["s-0"]
    assert await ids(flow.runs("nobody")) == []
    assert await ids(flow.runs("Lamp")) == []


async def test_by_status(stocked: Any) -> None:
    flow, twice, *_ = stocked
    assert await ids(flow.runs(status="failed")) == ["t-bad"]
    assert await ids(flow.runs(status=["running", "failed"])) == ["t-bad", "s-0"]
    assert await ids(flow.runs(twice, status=("running", "failed", "failed"))) == ["t-bad"]
    assert await ids(flow.runs(status={"running"})) == ["s-0"]
    assert await ids(flow.runs(status="parked")) == []
    assert await ids(flow.runs(status=())) == []


async def test_pages_by_hand(stocked: Any) -> None:
    flow, *_ = stocked
    seen: list[str] = []
    after = 0
    while page := [run async for run in flow.runs(after=after, limit=2)]:
        assert len(page) <= 2
        seen += [run.id for run in page]
        after = page[-1].order
    assert seen == ["t-0", "t-1", "t-2", "t-bad", "s-0"]
    assert await ids(flow.runs(limit=0)) == []


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 7])
async def test_pages_of_the_store_do_not_show(
    new_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(listing, "_PAGE", 3)
    store = new_store()
    new = New("run", "r")
    facts: Any = {"expect": 0, "create": new, "records": [b"x"], "status": "completed", "close": True}
    await store.append([Write(id=f"r{n}", **facts) for n in range(count)])
    flow = Flowlet(store)
    async with flow:
        expected = [f"r{n}" for n in range(count)]
        assert await ids(flow.runs()) == expected
        for limit in range(count + 2):
            assert await ids(flow.runs(limit=limit)) == expected[:limit]


async def test_a_list_may_be_left_before_its_end(stocked: Any) -> None:
    flow, *_ = stocked
    async for run in flow.runs():
        assert run.id == "t-0"
        break
    assert len(await ids(flow.runs())) == 5


async def test_runs_of_another_version_and_of_code_that_is_not_here(new_store: Callable[[], Store]) -> None:
    old, new = Flowlet(new_store()), Flowlet(new_store())
    first = old.saga("twice", double)
    second = new.saga("twice", double, version=2)
    async with old:
        await old.execute(first, 1, id="one")
    async with new:
        await new.execute(second, 1, id="two")
        assert [(run.id, run.version) async for run in new.runs(second)] == [("one", "1"), ("two", "2")]
    stranger = Flowlet(new_store())
    async with stranger:
        assert await ids(stranger.runs()) == ["one", "two"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"status": "complete"}, r"no run has the status 'complete'; did you mean 'completed'\?; allowed are 'pen"),
        ({"status": ["running", "gone"]}, "no run has the status 'gone'; allowed are 'pending', "),
        ({"status": [3]}, "no run has the status 3; allowed are"),
        ({"status": 3}, "status= takes a status or several, not 3; allowed are"),
        ({"status": b"failed"}, "status= takes a status or several, not b'failed'"),
        ({"definition": 3}, "definition= takes an assembled saga, pipeline or graph, or the name of one, not 3"),
        ({"definition": double}, "definition= takes an assembled saga, pipeline or graph"),
        ({"after": -1}, "after= takes a whole number of at least 0, not -1"),
        ({"after": "r-1"}, "after= takes a whole number of at least 0, not 'r-1'"),
        ({"after": None}, "after= takes a whole number"),
        ({"limit": 1.5}, "limit= takes a whole number of at least 0, not 1.5"),
        ({"limit": True}, "limit= takes a whole number"),
    ],
)
async def test_what_cannot_be_asked_for(flow: Flowlet, arguments: dict[str, Any], message: str) -> None:
    async with flow:
        with pytest.raises(ConfigError, match=message):
            flow.runs(**arguments)  # when it is asked, not when the first run is read


async def test_a_machine_has_no_runs(stocked: Any) -> None:
    flow, _, _, lamp = stocked
    with pytest.raises(ConfigError, match=r"'Lamp' is a machine and has no runs; list its machines with flow\.m"):
        flow.runs(lamp)


async def test_a_flowlet_that_is_not_open(flow: Flowlet) -> None:
    with pytest.raises(FlowletError, match="not open"):
        flow.runs()
    with pytest.raises(FlowletError, match="not open"):
        await flow.prune(older_than=0)
