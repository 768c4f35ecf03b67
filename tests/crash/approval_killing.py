"""Sweeps over an approval chain: each process is killed at a chosen write or effect, and others go on.

As ``SCENE FOLDER BACKEND SWEEP`` it lets a process see a chain of three levels to its end, as its requester and all who
decide: one level is escalated by time, of one it is found out who is asked. It is killed behind its n-th write, before
it, or behind its n-th effect, for every n there is; another one finishes. The clock is a file, so that days pass.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import cast

import anyio
from evidence import read_journal
from killing import Kill, KillingStore, When
from msgspec import Struct
from once import RUN, Place, Sweep, effect, read_effects

from flowlet import Flowlet, Registry, level
from flowlet.approval import ApprovalNotice, ApprovalOutcome
from flowlet.core.approval_messages import TOPIC
from flowlet.core.codec import Codec
from flowlet.core.run_records import Ended, SignalTaken, StepEnded, TimerFired
from flowlet.runtime.approvals import InboxItem
from flowlet.stores.sqlite import SQLiteStore

registry = Registry()
BEGIN = 1_000_000.0
DAYS = timedelta(days=3).total_seconds()

PEOPLE = {
    "manager": [("dan", {"director"})],
    "legal": [("lea", set()), ("lou", set())],
    "finance": [("fay", {"finance"}), ("fin", {"finance"})],
}


class Expense(Struct):
    amount: int


async def tell(notice: ApprovalNotice[Expense]) -> None:
    effect(f"{notice.what} {notice.level}")


async def lawyers(expense: Expense) -> list[str]:
    effect("who is asked")
    return ["lea", "lou", "ann"]


expense = registry.approval(
    "expense",
    level("manager", role="manager", timeout=DAYS, escalate_to="director", remind=DAYS / 2),
    level("legal", approvers=lawyers, quorum="all"),
    level("finance", role="finance", quorum=2),
    type=Expense,
    notify=tell,
    distinct=True,
)


class FileClock:
    """A clock that several processes share, and that is as it was when one of them has died."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> float:
        return float(self._path.read_text()) if self._path.exists() else BEGIN

    def move_to(self, at: float) -> None:
        draft = self._path.with_suffix(".draft")
        draft.write_text(repr(at))
        draft.replace(self._path)


class ClockedStore(KillingStore):
    """A store that kills its process, and has a clock that is moved by hand."""

    def __init__(self, database: Path, kill: Kill | None) -> None:
        self.clock = FileClock(database.with_suffix(".clock"))
        super().__init__(SQLiteStore(database, clock=self.clock), kill)


async def work_on(name: str, database: Path, kill: Kill | None, last: int) -> None:
    """Enter a Flowlet, start the run or find it, and do for everybody what there is to do, until it has ended."""
    Place.last = last
    store = ClockedStore(database, kill)
    async with Flowlet(store, registry=registry) as flow:
        handle = await flow.start(expense, Expense(5), id=RUN, requester="ann")
        while await handle.status() != "completed":
            async for item in flow.inbox():
                await act(flow, store.clock, item)
            await anyio.sleep(0.002)
        assert (await handle.result(raise_on_reject=True)).approved


async def act(flow: Flowlet, clock: FileClock, item: InboxItem) -> None:
    """Let time pass if it must, or let somebody decide who has not."""
    if item.level == "manager" and not item.escalated:
        half = BEGIN + DAYS / 2
        clock.move_to(half if clock() < half else BEGIN + DAYS)
        return
    while item.level == "manager" and await count_timers(flow) < 2:  # the run is to see it as well
        await anyio.sleep(0.002)
    decided = [decision.by for decision in item.decisions]
    by, roles = next((by, roles) for by, roles in PEOPLE[item.level] if by not in decided)
    await flow.approve(item.id, by=by, roles=roles, level=item.level)


async def count_timers(flow: Flowlet) -> int:
    return sum(isinstance(record, TimerFired) for record in await flow._open_runs.records(RUN))


async def look_at(name: str, database: Path, kills: int) -> None:
    """Judge what the processes have left behind: all has been decided once, and told, in order."""
    store = ClockedStore(database, None)
    try:
        stored = await store.load(RUN)
    finally:
        await store.close()
    assert stored is not None
    records = read_journal(stored)
    last = records[-1]
    assert isinstance(last, Ended)
    outcome = Codec(ApprovalOutcome[Expense]).decode(last.value or b"", "the outcome")
    expected = [(name, by) for name, people in PEOPLE.items() for by, _ in people]
    assert [(d.level, d.by) for d in outcome.decisions] == expected, outcome
    assert outcome.decisions[0].role == "director"
    assert outcome.approved
    messages = [r for r in records if isinstance(r, SignalTaken) and r.topic == TOPIC]
    assert len(messages) == len(expected)
    assert sum(isinstance(r, TimerFired) for r in records) == 2
    check_told([r.key for r in records if isinstance(r, StepEnded)], kills)
    async with Flowlet(ClockedStore(database, None), registry=registry) as flow:
        whats = [entry.what async for entry in flow.audit(RUN)]
        assert [item async for item in flow.inbox()] == []
    assert Counter(whats) == {
        "submitted": 1,
        "opened": 3,
        "reminded": 1,
        "escalated": 1,
        "approved": 5,
        "ended": 1,
    }, whats


def check_told(keys: list[str], kills: int) -> None:
    """Each thing was told once, and again only if a process died before that was on record."""
    assert len(set(keys)) == len(keys) == 12, keys  # eleven things told, and one asked
    done: dict[str, list[str]] = {}
    for key, attempt, note in read_effects():
        assert attempt == 1
        done.setdefault(key, []).append(note)
    assert sorted(done) == sorted(keys)
    assert all(len(set(notes)) == 1 for notes in done.values()), done
    assert max(len(notes) for notes in done.values()) <= 1 + kills
    assert sum(len(notes) - 1 for notes in done.values()) <= 3 * kills, done


class ApprovalSweep(Sweep):
    """Trials of the chain."""

    work_on = staticmethod(work_on)
    look_at = staticmethod(look_at)

    def kill_at(self, kind: str) -> None:
        """Kill a process at every place of a kind: how many there are depends on what comes together by chance."""
        survived = n = 0
        while survived < 5:
            n += 1
            plan: tuple[Kill | None, int] = (None, n) if kind == "effect" else (Kill(n, cast("When", kind)), 0)
            survived = 0 if self.run([plan])[0] else survived + 1


def main(name: str, folder: str, backend: str, kind: str) -> None:
    sweep = ApprovalSweep(name, Path(folder), backend)
    sweep.kill_at(kind)
    print(json.dumps({"trials": sweep.trials, "kills": sweep.kills}))


if __name__ == "__main__":
    import asyncio  # noqa: F401 - imported before the first fork, as are these, so that a child starts at once

    import tenacity  # noqa: F401
    import trio  # noqa: F401

    main(*sys.argv[1:])
