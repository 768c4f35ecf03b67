"""Histories of every format there has been are still read, judged and gone on with.

A file that is here stays as it is; see ``make.py``. Each test works on a copy.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
import warehouse
from warehouse import Item, Parcel, Verdict, effects

from flowlet import Flowlet, in_state
from flowlet.core.formats import FORMAT
from flowlet.errors import StepFailed
from flowlet.stores import open_store

pytestmark = pytest.mark.anyio

FILES = sorted(Path(__file__).parent.glob("*.db"))

ENDED = {
    "cancelled": "cancelled",
    "expense-rejected": "completed",
    "letters": "failed",
    "measured": "completed",
    "order-done": "completed",
    "order-half-undone": "compensation_failed",
    "order-retried": "compensated",
    "order-undone": "compensated",
    "review-done": "completed",
    "expense-open": "waiting",
    "parent": "waiting",
    "review-open": "waiting",
    "waiting": "waiting",
}
"""Where each run stands in each file."""

Open = Callable[[], Flowlet]


@pytest.fixture(params=FILES, ids=lambda path: f"format-{path.stem}")
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copy(request.param, tmp_path))


@pytest.fixture
def open_file(file: Path) -> Iterator[Open]:
    """Return what opens the file as another process would; the definitions know no other Flowlet meanwhile."""
    effects.clear()
    yield lambda: Flowlet(f"sqlite:///{file}?durability=process", registry=warehouse.registry)
    effects.clear()


async def test_there_is_a_file_of_the_format_that_is_written_now() -> None:
    assert [path.stem for path in FILES] == [str(n) for n in range(1, FORMAT + 1)]


async def test_every_run_stands_where_it_stood(open_file: Open) -> None:
    async with open_file() as flow:
        found = {run.id: run.status async for run in flow.runs() if "/" not in run.id and "@" not in run.id}
    assert found == ENDED
    assert effects == []


async def test_results_and_reports_are_what_they_were(open_file: Open) -> None:
    async with open_file() as flow:
        assert await flow.handle("order-done", warehouse.order).result() == "shipped from place of hat for 20.0"
        assert await flow.handle("measured", warehouse.measured).result() == 4
        steps = (await flow.handle("measured").report()).steps
        assert {name: (step.status, step.attempts) for name, step in steps.items()} == {
            "split": ("completed", 1),
            "measure": ("completed", 3),
            "measure[0]": ("completed", 1),
            "measure[1]": ("failed", 1),
            "measure[2]": ("completed", 1),
            "add": ("completed", 1),
        }
        draft = await flow.handle("review-done", warehouse.review).result()
        assert (draft.text, draft.remarks, draft.good) == ("version 1", ["shorter", ""], True)
        assert not (await flow.handle("expense-rejected", warehouse.expense).result()).approved
        undone = (await flow.handle("order-undone").report()).steps
        assert [undone[key].status for key in ("ship", "charge~refund", "reserve~free")] == [
            "failed",
            "completed",
            "completed",
        ]
        with pytest.raises(RuntimeError, match="ship from place of tie is broken"):
            await flow.handle("order-undone").result()
        assert await flow.handle("waiting").read("place") == "place of hat"
    assert effects == []


async def test_what_waited_goes_on_and_repeats_nothing(open_file: Open) -> None:
    async with open_file() as flow:
        await flow.handle("waiting").send("payment", 25.0)
        await flow.handle("parent/wait_for_payment").send("payment", 9.5)
        await flow.handle("review-open").send("editor", Verdict(True, "good"))
        for person in ("fay", "fin"):
            await flow.approve("expense-open", by=person, roles={"finance"})
        with anyio.fail_after(30):
            assert await flow.handle("waiting", warehouse.wait_for_payment).result() == (
                "shipped from place of hat for 25.0"
            )
            assert await flow.handle("parent", warehouse.wait_for_child).result() == (
                "child: shipped from place of tie for 9.5"
            )
            assert (await flow.handle("review-open", warehouse.review).result()).remarks == ["good"]
            assert (await flow.handle("expense-open", warehouse.expense).result()).approved
    assert sorted(effects) == ["publish version 0", "ship from place of hat", "ship from place of tie"]


async def test_what_had_failed_can_be_resumed(open_file: Open) -> None:
    async with open_file() as flow:
        handle = flow.handle("order-half-undone")
        await handle.resume()
        with anyio.fail_after(30):
            while await handle.status() != "compensated":
                await anyio.sleep(0.01)
        report = await flow.bulk(warehouse.letter, range(10), id="letters", retry=1)
        assert (report.succeeded, report.failed) == (9, 1)  # what failed is on record, and is not tried again
    assert effects[0] == "free place of tie"
    assert sorted(effects[1:]) == ["letter 8", "letter 9"]


async def test_machines_are_loaded_judged_and_fired(open_file: Open) -> None:
    async with open_file() as flow:
        assert [await flow.verify(Parcel, id) for id in ("parcel-lost", "parcel-found", "parcel-new")] == [5, 4, 1]
        done = await flow.load(Parcel, "parcel-lost")
        assert in_state(done, Parcel.Delivered)
        assert (done.weight, done.remarks) == (2, None)
        found = await flow.load(Parcel, "parcel-found")
        assert (found.weight, found.remarks) == (13, ["lost"])
        await found.find()
        assert in_state(found, Parcel.Travelling.Goods.Moving)
        new = await flow.load(Parcel, "parcel-new")
        assert await new.send(by="cat") == "sent by cat"


async def test_the_same_input_is_the_same_run(open_file: Open) -> None:
    async with open_file() as flow:
        assert await flow.execute(warehouse.order, Item("hat", 20.0), id="order-done") == (
            "shipped from place of hat for 20.0"
        )
        with pytest.raises((RuntimeError, StepFailed)):
            await flow.execute(warehouse.order, Item("tie", 9.5), id="order-undone")
    assert effects == []


async def test_schedules_have_their_ticks(open_file: Open) -> None:
    async with open_file() as flow:
        [schedule] = [schedule async for schedule in flow.schedules()]
        assert schedule.name == "clean"
        assert len(await flow.schedule("clean").ticks(3)) == 3
        assert [run.status async for run in flow.runs(warehouse.clean)] == ["completed"]


async def test_all_of_it_can_be_copied(open_file: Open) -> None:
    report = await open_file().copy_to(open_store("memory://"))
    assert report.runs > len(ENDED)
    assert report.machines == 3
