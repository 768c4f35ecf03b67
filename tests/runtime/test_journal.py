"""The writing half of a journal: order, versions, and what an append of unknown outcome means."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from flowlet.core.engine import Suspended
from flowlet.errors import Conflict, LeaseLost, PayloadTooLarge, RunNotFound, StoreUnavailable
from flowlet.runtime.journal import Journal
from flowlet.store import New, Write

pytestmark = pytest.mark.anyio


def new_run(id: str = "r") -> Write:
    return Write(id=id, expect=0, create=New("run", "body"), status="running", wake=0.0, owner="w")


@pytest.fixture
async def journal(faulty_store: Any) -> Any:
    """A journal whose run exists, with one record and the fence 1."""
    await faulty_store.heartbeat("w", 60)
    made = Journal(faulty_store, "r", 0, 1, new_run())
    made.pending.append(b"start")
    await made.commit()
    faulty_store.appended.clear()
    yield made
    await faulty_store.close()


async def records(store: Any, id: str = "r") -> list[bytes]:
    stored = await store.load(id)
    assert stored is not None
    return list(stored.records)


async def test_the_first_append_makes_the_run(journal: Journal, faulty_store: Any) -> None:
    stored = await faulty_store.load("r")
    assert (stored.head.version, stored.head.fence, stored.head.owner) == (1, 1, "w")
    assert (journal.version, journal.pending, journal.create) == (1, [], None)


async def test_records_are_appended_in_order(journal: Journal, faulty_store: Any) -> None:
    journal.pending.extend([b"a", b"b"])
    await journal.commit()
    journal.pending.append(b"c")
    journal.status = "compensating"
    await journal.commit()
    stored = await faulty_store.load("r")
    assert list(stored.records) == [b"start", b"a", b"b", b"c"]
    assert stored.head.status == "compensating"
    assert journal.version == 4
    assert all(w.fence == 1 for w in faulty_store.appended)


async def test_the_end_closes_the_run_and_gives_the_lease_back(journal: Journal, faulty_store: Any) -> None:
    journal.pending.append(b"last step")
    await journal.end("completed", b"end")
    assert await records(faulty_store) == [b"start", b"last step", b"end"]
    head = (await faulty_store.load("r")).head
    assert (head.status, head.owner, head.closed is not None, head.wake) == ("completed", None, True, None)


async def test_parking_keeps_the_run_open_and_gives_the_lease_back(journal: Journal, faulty_store: Any) -> None:
    await journal.park("parked", b"parked")
    head = (await faulty_store.load("r")).head
    assert (head.status, head.owner, head.closed, head.wake) == ("parked", None, None, None)


async def test_a_run_that_ends_with_its_first_append(faulty_store: Any) -> None:
    journal = Journal(faulty_store, "short", 0, 1, new_run("short"))
    journal.pending.append(b"start")
    await journal.end("completed", b"end")
    assert len(faulty_store.appended) == 1
    head = (await faulty_store.load("short")).head
    assert (head.version, head.status, head.closed is not None, head.owner) == (2, "completed", True, None)
    await faulty_store.close()


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("faults", [["lost"], ["reply"], ["lost", "reply"], ["reply", "lost"], ["lost"] * 6])
@pytest.mark.parametrize("close", [False, True])
async def test_an_append_is_repeated_until_it_is_seen_to_be_stored(
    journal: Journal, faulty_store: Any, faults: list[Any], close: bool
) -> None:
    faulty_store.faults.extend(faults)
    if close:
        await journal.end("completed", b"a")
    else:
        journal.pending.append(b"a")
        await journal.commit()
    assert await records(faulty_store) == [b"start", b"a"]
    assert (journal.version, journal.pending, journal.trouble) == (2, [], None)


async def test_a_store_that_stays_down_is_given_up(journal: Journal, faulty_store: Any, no_pauses: int) -> None:
    faulty_store.faults.extend(["lost"] * (no_pauses + 1))
    journal.pending.append(b"a")
    with pytest.raises(Suspended):
        await journal.commit()
    assert isinstance(journal.trouble, StoreUnavailable)
    assert not faulty_store.faults  # it was asked as often as promised
    assert not journal.busy
    assert journal.pending == [b"a"]
    assert await records(faulty_store) == [b"start"]


@pytest.mark.usefixtures("no_pauses")
async def test_a_repeated_append_that_finds_other_records_is_not_ours(journal: Journal, faulty_store: Any) -> None:
    await faulty_store.append((Write(id="r", expect=1, records=(b"theirs",)),))
    faulty_store.faults.append("lost")
    journal.pending.append(b"a")
    with pytest.raises(Suspended):
        await journal.commit()
    assert isinstance(journal.trouble, Conflict)
    assert await records(faulty_store) == [b"start", b"theirs"]


async def test_a_lost_lease_is_no_longer_ours_to_write(journal: Journal, faulty_store: Any) -> None:
    await faulty_store.release("w", ["r"])
    journal.pending.append(b"a")
    with pytest.raises(Suspended):
        await journal.commit()
    assert isinstance(journal.trouble, LeaseLost)


@pytest.mark.parametrize("error", [RunNotFound("gone"), PayloadTooLarge("large"), Conflict(1, 2)])
async def test_refusals_are_not_repeated(
    journal: Journal, faulty_store: Any, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    async def refuse(writes: Any) -> None:
        asked.append(writes)
        raise error

    monkeypatch.setattr(faulty_store, "append", refuse)
    journal.pending.append(b"a")
    with anyio.fail_after(10), pytest.raises(Suspended):
        await journal.commit()
    assert journal.trouble is error
    assert len(asked) == 1
