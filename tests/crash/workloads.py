"""The definitions that the crash tests kill, and what must have come of each in the end.

Each step leaves one line in an effects file that is only ever appended to: its idempotency key, the
attempt, and what it was given. So it can be counted afterwards what was done, and how often.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from msgspec import Struct

from flowlet import Registry, Retry, compensate, current_run, gather, provided, step

registries: defaultdict[str, Registry] = defaultdict(Registry)
"""One for each workload: opening a store writes the definitions of a registry, which is not the subject here."""

effects_file = ""
"""Where effects go; set by the process that is about to make some."""

ATTEMPTS = 5
PAGES = 24
"""Steps of the long workloads: enough to be left with something after ten kills."""

PIECES = 4
"""Items that a step of a pipeline is done for."""

TURNS = 5
"""Steps of the slow workloads, which then take as many again to go on, or back."""


class Slip(Struct):
    """What a step returns: who it was. A replay has to hand on the recorded one."""

    step: str
    pid: int


class Refused(Exception):
    """What the failing steps raise."""


class Flaky(Exception):
    """What a step raises that will work at a later attempt."""


def effect(given: object = "") -> Slip:
    """Do something to the world, in one system call."""
    run = current_run()
    line = f"{run.idempotency_key}\t{run.attempt}\t{given}\t{os.getpid()}\n"
    descriptor = os.open(effects_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    return Slip(run.idempotency_key.rpartition("/")[2], os.getpid())


def mended(id: str | None = None) -> Path:
    """Return the file that an operator makes, so that what could not be undone of a run can be."""
    return Path(f"{effects_file}.{id or current_run().idempotency_key.partition('/')[0]}.mended")


# ---------------------------------------------------------------- steps
@step
async def reserve(order: int) -> Slip:
    return effect(order)


@compensate(reserve)
async def unreserve(order: int, reserve: Slip) -> None:
    effect(reserve.pid)


@step
async def charge(order: int, reserve: Slip) -> Slip:
    await anyio.lowlevel.checkpoint()
    return effect(reserve.pid)


@compensate(charge)
async def refund(charge: Slip) -> None:
    await anyio.lowlevel.checkpoint()
    effect(charge.pid)


@step
async def pack(order: int, charge: Slip) -> Slip:
    return effect(charge.pid)


@compensate(pack)
async def unpack(order: int, pack: Slip, error: Exception) -> None:
    assert isinstance(error, Refused), error
    effect(pack.pid)


@step
async def ship(order: int, pack: Slip) -> Slip:
    effect(pack.pid)
    raise Refused("parcel too large")


@step
async def notify(order: int, pack: Slip) -> Slip:
    return effect(pack.pid)


@step(retry=Retry(attempts=ATTEMPTS, wait=0))
async def ask(order: int) -> Slip:
    slip = effect(order)
    if current_run().attempt < ATTEMPTS - 1:
        raise Flaky("ask again")
    return slip


@compensate(ask, retry=Retry(attempts=ATTEMPTS, wait=0))
async def forget(ask: Slip) -> None:
    effect(ask.pid)
    if current_run().attempt < 3:
        raise Flaky("forget again")


@step
async def lend(order: int) -> Slip:
    return effect(order)


@compensate(lend, retry=Retry(attempts=2, wait=0))
async def reclaim(lend: Slip) -> None:
    effect(lend.pid)
    if not mended().exists():
        raise Flaky("nobody has mended it")


@step(retry=Retry(attempts=ATTEMPTS, wait=0))
async def insist(order: int) -> Slip:
    effect(order)
    raise Refused("never")


@step
async def stamp(order: int, page: int) -> Slip:
    return effect(page)


@compensate(stamp)
async def unstamp(order: int, stamp: Slip) -> None:
    effect(stamp.pid)


@step
async def linger(order: int, turn: int) -> Slip:
    slip = effect(turn)
    await anyio.sleep(0.1)
    return slip


@compensate(linger)
async def hurry(order: int, linger: Slip) -> None:
    effect(linger.pid)
    await anyio.sleep(0.1)


@step
async def paint(order: int, side: str) -> Slip:
    await anyio.sleep(0.001 if side == "left" else 0)
    return effect(side)


@compensate(paint)
async def scrape(side: str, paint: Slip) -> None:
    effect(paint.pid)


@step(retry=Retry(attempts=ATTEMPTS, wait=0))
async def polish(order: int) -> Slip:
    slip = effect(order)
    if current_run().attempt < 3:
        raise Flaky("not yet")
    return slip


@step
async def wait_long(order: int) -> Slip:
    slip = effect(order)
    await anyio.sleep(60)
    return slip


@step
async def break_down(order: int) -> Slip:
    await anyio.sleep(0.001)
    effect(order)
    raise Refused("broken")


# ---------------------------------------------------------------- definitions
@registries["failing"].saga
async def failing(order: int) -> Slip:
    first = await reserve(order)
    second = await charge(order, first)
    third = await pack(order, second)
    return await ship(order, third)


@registries["working"].saga
async def working(order: int) -> Slip:
    first = await reserve(order)
    second = await charge(order, first)
    third = await pack(order, second)
    return await notify(order, third)


@registries["three"].saga
async def three(order: int) -> Slip:
    first = await reserve(order)
    second = await charge(order, first)
    return await pack(order, second)


@registries["three_failing"].saga
async def three_failing(order: int) -> Slip:
    first = await reserve(order)
    second = await charge(order, first)
    return await ship(order, second)


@registries["long"].saga
async def long(order: int) -> Slip:
    slips = [await stamp(order, page) for page in range(PAGES)]
    return slips[-1]


@registries["long_failing"].saga
async def long_failing(order: int) -> Slip:
    slips = [await stamp(order, page) for page in range(PAGES)]
    return await ship(order, slips[-1])


@registries["slow"].saga
async def slow(order: int) -> Slip:
    slips = [await linger(order, turn) for turn in range(2 * TURNS)]
    return slips[-1]


@registries["slow"].saga
async def slow_failing(order: int) -> Slip:
    slips = [await linger(order, turn) for turn in range(TURNS)]
    return await ship(order, slips[-1])


@registries["stubborn"].saga
async def stubborn(order: int) -> Slip:
    first = await reserve(order)
    await lend(order)
    second = await charge(order, first)
    return await ship(order, second)


@registries["parallel"].saga
async def parallel(order: int) -> Slip:
    first = await reserve(order)
    left, _, _ = await gather(paint(order, "left"), polish(order), paint(order, "right"))
    assert left.step == "paint"
    return await charge(order, first)


@registries["parallel_failing"].saga
async def parallel_failing(order: int) -> Slip:
    await reserve(order)
    await gather(paint(order, "left"), paint(order, "right"))
    slips = await gather(wait_long(order), break_down(order), wait_long(order))
    return slips[0]


@registries["retrying"].saga
async def retrying(order: int) -> Slip:
    await ask(order)
    return await insist(order)


class Workshop:
    """Something that is provided."""

    def work(self, given: object) -> Slip:
        return effect(given)


@registries["class"].saga
class ClassFailing:
    def __init__(self, workshop: Workshop = provided) -> None:
        self.workshop = workshop
        self.seen: list[str] = []

    @step
    async def cut(self, order: int) -> Slip:
        self.seen.append("cut")
        return self.workshop.work(order)

    @compensate(cut)
    async def burn(self, order: int, cut: Slip) -> None:
        self.workshop.work(cut.pid)

    @step
    async def sew(self, order: int, slip: Slip) -> Slip:
        return self.workshop.work(slip.pid)

    @compensate(sew)
    async def rip(self, sew: Slip) -> None:
        self.workshop.work(sew.pid)

    @step
    async def sell(self, order: int) -> Slip:
        self.workshop.work(order)
        raise Refused("too dear")

    async def __call__(self, order: int) -> Slip:
        slip = await self.cut(order)
        slip = await self.sew(order, slip)
        first = await reserve(order)
        assert first.step == "reserve"
        return await self.sell(order)


assembled = registries["assembled"].saga("assembled", reserve, charge, pack, ship)


# ---------------------------------------------------------------- a pipeline
@step
async def extract(order: int) -> Slip:
    return effect(order)


@step
async def clean(extract: Slip) -> Slip:
    await anyio.sleep(0.001)
    return effect(extract.pid)


@step
async def count(extract: Slip) -> Slip:
    return effect(extract.pid)


@step(retry=Retry(attempts=ATTEMPTS, wait=0))
async def enrich(extract: Slip) -> Slip:
    slip = effect(extract.pid)
    if current_run().attempt < 3:
        raise Flaky("not yet")
    return slip


@step
async def archive(extract: Slip) -> Slip:
    return effect(extract.pid)


@step
async def index(archive: Slip) -> Slip:
    return effect(archive.pid)


@step
async def guess(extract: Slip) -> Slip:
    effect(extract.pid)
    raise Refused("no idea")


async def guess_instead(error: Exception) -> Slip:
    assert isinstance(error, Refused), error
    return effect("instead")


@step
async def write(clean: Slip, count: Slip, enrich: Slip, guess: Slip) -> Slip:
    assert guess.step == "guess:guess_instead"
    return effect(f"{clean.pid} {count.pid} {enrich.pid}")


pipeline = registries["pipeline"].pipeline(
    "pipeline",
    extract,
    clean,
    count,
    enrich,
    archive,
    index,
    guess,
    write,
    when={"archive": lambda order: order > 1000},
    on_error={"guess": guess_instead},
)


@step
async def split(order: int) -> list[Slip]:
    slip = effect(order)
    return [slip] * PIECES


@step
async def count_pieces(split: list[Slip]) -> Slip:
    return effect(split[0].pid)


@step(retry=Retry(attempts=ATTEMPTS, wait=0))
async def wash(split: Slip) -> Slip:
    slip = effect(split.pid)
    name, run = slip.step, current_run()
    await anyio.sleep(0.001 if name == "wash[0]" else 0)
    if name == "wash[1]" and run.attempt < 3:
        raise Flaky("not yet")
    if name == "wash[2]":
        raise Refused("too dirty")
    return slip


async def throw_away(error: Exception, split: Slip) -> Slip:
    assert isinstance(error, (Refused, Flaky)), error
    return effect(split.pid)


@step
async def sew_up(order: int, wash: list[Slip]) -> Slip:
    assert [slip.step for slip in wash] == ["wash[0]", "wash[1]", "wash[2]:throw_away", "wash[3]"]
    return effect(" ".join(str(slip.pid) for slip in wash))


@step
async def refuse(sew_up: Slip) -> Slip:
    effect(sew_up.pid)
    raise Refused("nobody wants it")


async def sweep(split: list[Slip] | None, error: Exception | None) -> Slip:
    assert split is not None
    assert error is None or isinstance(error, Refused), error
    await anyio.sleep(0.001)
    return effect(split[0].pid)


@step(retry=Retry(attempts=ATTEMPTS, wait=0))
async def lock_up(order: int) -> Slip:
    slip = effect(order)
    if current_run().attempt < 3:
        raise Flaky("the key sticks")
    return slip


_SEWING = (split, count_pieces, wash, sew_up)
sewing = registries["sewing"].pipeline(
    "sewing",
    *_SEWING,
    each={wash: "split"},
    needs={sew_up: count_pieces},
    on_error={wash: throw_away},
    finally_=[sweep, lock_up],
)
sewing_failing = registries["sewing_failing"].pipeline(
    "sewing_failing",
    *_SEWING,
    refuse,
    wait_long,
    each={wash: "split"},
    needs={sew_up: count_pieces},
    on_error={wash: throw_away},
    finally_=[sweep, lock_up],
    max_concurrency=3,
)


# ---------------------------------------------------------------- what must come of them
@dataclass
class Workload:
    """A definition to be killed.

    Attributes:
        steps: the keys that must be on record, each with its outcome: ``s`` ended, ``e`` failed, ``c`` cancelled.
        undoes: compensation by the key of the step that it undoes.
        failing: the key whose failure is the run's, if it fails.
        attempts: recorded attempts, where they are not one.
        width: so many effects may be under way at once.
        skipped: steps of a pipeline that must be noted as skipped.
        stuck: compensations that fail until an operator has mended something.
        closes: keys of what a pipeline does in any case.
    """

    definition: Callable[..., Any]
    status: str
    steps: dict[str, str]
    undoes: dict[str, str] = field(default_factory=dict)
    failing: str | None = None
    attempts: dict[str, int] = field(default_factory=dict)
    width: int = 1
    skipped: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()


_ORDER = {"reserve": "s", "charge": "s", "pack": "s"}
_UNDO = {"reserve": "reserve~unreserve", "charge": "charge~refund", "pack": "pack~unpack"}

_PAGES = ["stamp", *(f"stamp#{n}" for n in range(2, PAGES + 1))]
_TURNS = ["linger", *(f"linger#{n}" for n in range(2, 2 * TURNS + 1))]

_SEWN = {
    **dict.fromkeys(("split", "count_pieces", "wash[0]", "wash[1]", "wash[3]", "wash[2]:throw_away", "sew_up"), "s"),
    "wash[2]": "e",
    "~sweep": "s",
    "~lock_up": "s",
}

WORKLOADS = {
    "three": Workload(three, "completed", dict(_ORDER)),
    "three_failing": Workload(
        three_failing,
        "compensated",
        {"reserve": "s", "charge": "s", "ship": "e"},
        {key: _UNDO[key] for key in ("reserve", "charge")},
        "ship",
    ),
    "long": Workload(long, "completed", dict.fromkeys(_PAGES, "s")),
    "long_failing": Workload(
        long_failing,
        "compensated",
        {**dict.fromkeys(_PAGES, "s"), "ship": "e"},
        {key: f"{key}~unstamp" for key in _PAGES},
        "ship",
    ),
    "slow": Workload(slow, "completed", dict.fromkeys(_TURNS, "s")),
    "slow_failing": Workload(
        slow_failing,
        "compensated",
        {**dict.fromkeys(_TURNS[:TURNS], "s"), "ship": "e"},
        {key: f"{key}~hurry" for key in _TURNS[:TURNS]},
        "ship",
    ),
    "failing": Workload(failing, "compensated", {**_ORDER, "ship": "e"}, _UNDO, "ship"),
    "assembled": Workload(assembled, "compensated", {**_ORDER, "ship": "e"}, _UNDO, "ship"),
    "working": Workload(working, "completed", {**_ORDER, "notify": "s"}),
    "parallel": Workload(
        parallel,
        "completed",
        {"reserve": "s", "paint": "s", "polish": "s", "paint#2": "s", "charge": "s"},
        attempts={"polish": 3},
        width=3,
    ),
    "parallel_failing": Workload(
        parallel_failing,
        "compensated",
        {"reserve": "s", "paint": "s", "paint#2": "s", "wait_long": "c", "break_down": "e", "wait_long#2": "c"},
        {"reserve": "reserve~unreserve", "paint": "paint~scrape", "paint#2": "paint#2~scrape"},
        "break_down",
        width=3,
    ),
    "retrying": Workload(
        retrying,
        "compensated",
        {"ask": "s", "insist": "e"},
        {"ask": "ask~forget"},
        "insist",
        {"ask": ATTEMPTS - 1, "insist": ATTEMPTS, "ask~forget": 3},
    ),
    "stubborn": Workload(
        stubborn,
        "compensated",
        {"reserve": "s", "lend": "s", "charge": "s", "ship": "e"},
        {"reserve": "reserve~unreserve", "lend": "lend~reclaim", "charge": "charge~refund"},
        "ship",
        {"lend~reclaim": 3},
        stuck=("lend~reclaim",),
    ),
    "class": Workload(
        ClassFailing,
        "compensated",
        {"cut": "s", "sew": "s", "reserve": "s", "sell": "e"},
        {"cut": "cut~burn", "sew": "sew~rip", "reserve": "reserve~unreserve"},
        "sell",
    ),
    "pipeline": Workload(
        pipeline,
        "completed",
        {
            "extract": "s",
            "clean": "s",
            "count": "s",
            "enrich": "s",
            "guess": "e",
            "guess:guess_instead": "s",
            "write": "s",
        },
        attempts={"enrich": 3},
        width=4,
        skipped=("archive", "index"),
    ),
    "sewing": Workload(
        sewing,
        "completed",
        dict(_SEWN),
        attempts={"wash[1]": 3, "wash[2]": ATTEMPTS, "~lock_up": 3},
        width=5,
        closes=("~sweep", "~lock_up"),
    ),
    "sewing_failing": Workload(
        sewing_failing,
        "failed",
        {**_SEWN, "refuse": "e", "wait_long": "c"},
        failing="refuse",
        attempts={"wash[1]": 3, "wash[2]": ATTEMPTS, "~lock_up": 3},
        width=3,
        closes=("~sweep", "~lock_up"),
    ),
}
