"""Memory, SQLite and `BasicStore` give the same answers to the same questions: each is the others' specification."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import anyio
from dict_store import DictStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowlet.errors import FlowletError
from flowlet.store import UNCHANGED, New, Signal, Store, Write
from flowlet.stores.memory import MemoryStore
from flowlet.stores.sqlite import SQLiteStore

IDS = st.sampled_from(["a", "b", "c", "d"])
WORKERS = st.sampled_from(["w1", "w2"])
NEWS = st.sampled_from([New("run", "x"), New("run", "y"), New("machine", "x", "2")])
WAKES = st.sampled_from([0.0, 1000.0, 1004.0, 1e9])
WORDS = st.sampled_from(["", "s", "t"])
SIGNALS = st.builds(Signal, WORDS, st.binary(max_size=3), st.sampled_from([None, "m1", "m2"]))
SMALL = st.integers(0, 4)


def maybe(strategy: st.SearchStrategy[Any], otherwise: Any = UNCHANGED) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(otherwise), st.just(otherwise), strategy)


CHANGES = st.fixed_dictionaries(
    {
        "status": maybe(WORDS),
        "state": maybe(WORDS),
        "wake": maybe(st.one_of(st.none(), WAKES)),
        "close": st.sampled_from([False, False, False, True]),
        "owner": maybe(st.one_of(st.none(), WORKERS)),
        "snapshot": maybe(st.binary(max_size=3)),
        "signals": st.lists(SIGNALS, max_size=3),
        "consumed": SMALL,
        "fence": maybe(SMALL, None),
        "inbox": maybe(SMALL, None),
    }
)
RECORDS = st.lists(st.binary(max_size=3), min_size=1, max_size=2)
APPENDS = st.lists(
    st.tuples(IDS, st.sampled_from(["create", "follow", "stale", "change"]), RECORDS, NEWS, CHANGES),
    min_size=1,
    max_size=3,
)
STEPS = st.one_of(
    st.tuples(st.just("append"), APPENDS),
    st.tuples(st.just("append"), APPENDS),
    st.tuples(st.just("heartbeat"), WORKERS, st.sampled_from([1.0, 5.0])),
    st.tuples(st.just("claim"), WORKERS, st.booleans(), st.lists(IDS, max_size=2), st.integers(1, 3)),
    st.tuples(st.just("release"), WORKERS, maybe(st.lists(IDS, max_size=2), None)),
    st.tuples(st.just("prune"), st.sampled_from([1.0, 1003.0, 1e6]), st.integers(1, 2)),
    st.tuples(st.just("pass"), st.sampled_from([0.5, 3.0])),
)


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


async def writes_of(store: Store, parts: Any) -> list[Write]:
    writes = []
    for id, how, records, new, changes in parts:
        stored = await store.load(id)
        version = 0 if stored is None else stored.head.version
        if how == "create":
            writes.append(Write(id=id, expect=0, create=new, records=records, **changes))
        elif how == "change":
            writes.append(Write(id=id, **changes))
        else:
            expect = version + (how == "stale")
            writes.append(Write(id=id, expect=expect, records=records, **changes))
    return writes


async def answer(store: Store, step: Any) -> object:
    match step:
        case "append", parts:
            await store.append(await writes_of(store, parts))
        case "heartbeat", worker, lease:
            return list(await store.heartbeat(worker, lease))
        case "claim", worker, by_ids, ids, limit:
            if by_ids:
                claims = await store.claim(worker, ids=ids, limit=limit)
            else:
                definitions = [("run", "x", "1"), ("run", "y", "1"), ("machine", "x", "2")]
                claims = await store.claim(worker, definitions=definitions, limit=limit)
            return (list(claims.heads), claims.wake)
        case "release", worker, ids:
            await store.release(worker, ids)
        case "prune", before, limit:
            return await store.prune(closed_before=before, limit=limit)
    return None


async def everything(store: Store) -> list[object]:
    seen: list[object] = [list(await store.scan())]
    for id in "abcd":
        stored = await store.load(id)
        seen.append(
            stored
            and (stored.head, list(stored.records), stored.snapshot, stored.snapshot_version, list(stored.signals))
        )
    for question in (
        {"kind": "run"},
        {"definition": "x"},
        {"status": ["s", ""]},
        {"state": "t"},
        {"wake_before": 1004.0},
        {"after": 2},
    ):
        seen.append(list(await store.scan(**question)))
    return seen


async def compare(path: Path, steps: list[Any]) -> None:
    clock = Clock()
    sqlite = SQLiteStore(path, synchronous="NORMAL", clock=clock)
    stores: list[Store] = [MemoryStore(clock=clock), sqlite, DictStore(clock=clock)]
    try:
        for step in steps:
            if step[0] == "pass":
                clock.time += step[1]
                continue
            outcomes: list[object] = []
            for store in stores:
                try:
                    outcomes.append(await answer(store, step))
                except FlowletError as error:
                    outcomes.append((type(error), str(error)))
            assert outcomes[0] == outcomes[1] == outcomes[2], step
        seen = [await everything(store) for store in stores]
        assert seen[0] == seen[1] == seen[2]
    finally:
        await sqlite.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(STEPS, min_size=8, max_size=30))
def test_stores_agree(steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(compare, Path(folder, "s.db"), steps)
