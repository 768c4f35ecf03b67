"""Two processes that want to be the last to decide, at the same moment, again and again.

As ``FOLDER BACKEND TRIALS``: each run needs two to approve and has one; both processes approve it at once. Just one of
them may, and the other one must be told that it is too late.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import anyio
from killing import fork, fork_aside

from flowlet import Flowlet, Registry, level
from flowlet.errors import AlreadyDecided
from flowlet.stores.sqlite import SQLiteStore

registry = Registry()
order = registry.approval("order", level("finance", role="finance", quorum=2), type=int)
ROLES = {"finance"}
SIDES = ("left", "right")


def open_flow(folder: Path) -> Flowlet:
    return Flowlet(SQLiteStore(folder / "race.db"), registry=registry)


async def prepare(folder: Path, trials: int) -> None:
    """Start the runs, and have somebody approve each."""
    async with open_flow(folder) as flow:
        for number in range(trials):
            await flow.start(order, number, id=f"o-{number}", requester="ann")
            await flow.approve(f"o-{number}", by="first", roles=ROLES)


async def decide(folder: Path, trials: int, side: str) -> None:
    """Approve each run at the moment at which the other process does."""
    other = SIDES[1 - SIDES.index(side)]
    ends: list[str] = []
    async with open_flow(folder) as flow:
        for number in range(trials):
            (folder / f"{number}.{side}").touch()
            while not (folder / f"{number}.{other}").exists():
                await anyio.sleep(0)
            try:
                await flow.approve(f"o-{number}", by=side, roles=ROLES)
            except AlreadyDecided:
                ends.append("too late")
            else:
                ends.append(side)
    (folder / f"{side}.json").write_text(json.dumps(ends))


async def judge(folder: Path, trials: int) -> None:
    """One of the two has decided, and is who the outcome names."""
    left, right = (json.loads((folder / f"{side}.json").read_text()) for side in SIDES)
    async with open_flow(folder) as flow:
        for number in range(trials):
            outcome = await flow.handle(f"o-{number}", order).result()
            last = outcome.decisions[1].by
            assert sorted([left[number], right[number]]) == sorted([last, "too late"]), (number, outcome)
            assert [d.by for d in outcome.decisions] == ["first", last]
    counts = Counter(left + right)
    print(
        json.dumps(
            {
                "decided": sum(counts[side] for side in SIDES),
                "too_late": counts["too late"],
                "by_both": sum(counts[side] > 0 for side in SIDES),
            }
        ),
        flush=True,
    )


def main(folder: str, backend: str, trials: str) -> None:
    place, count = Path(folder), int(trials)
    assert fork(prepare, place, count, backend=backend) == 0
    pids = [fork_aside(decide, place, count, side, backend=backend, stuck_after=150) for side in SIDES]
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert fork(judge, place, count, backend=backend) == 0


if __name__ == "__main__":
    import asyncio  # noqa: F401 - imported before the first fork, as is this, so that a child starts at once

    import trio  # noqa: F401

    main(*sys.argv[1:])
