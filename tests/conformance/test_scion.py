"""Replays SCION's public statechart cases, which `FLOWLET_CONFORMANCE_DIR` names the folder of.

Each case runs three times: in memory, durably with the machine loaded anew between any two events, and on the
model that the properties of charts compare flowlet with.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from scxml_chart import Chart, read_chart
from scxml_loader import PROBE, Machine, build_machine, build_model

from flowlet import Flowlet, fire, states_of
from flowlet.errors import TransitionNotAllowed
from flowlet.stores import open_store

FOLDER = os.environ.get("FLOWLET_CONFORMANCE_DIR", "")
SUITES = {"no-datamodel": 92, "variables": 31}

# The folder has the cases without the scripts that four of them name.
SCRIPTS = {
    "script-0-0.js": "x = 100;",
    "script-1-0.js": "i = 0;",
    "script-1-1.js": "i = i + 1;",
    "script-2-0.js": "i = 0;",
    "script-2-1.js": "i = i + 1;",
    "script-2-2.js": "i = i + 1;",
    "script-2-3.js": "i = i * 2;",
    "script-3-0.js": "function foo() { x = 100; }",
}


class Step(NamedTuple):
    """One event of a case; ``after`` is in seconds."""

    event: str
    after: float
    expected: set[str]


class Case(NamedTuple):
    chart: Chart
    initial: set[str]
    steps: list[Step]


def paths() -> list[Path]:
    """List the files of all cases, or a stand-in that says why there are none."""
    return [path for suite in SUITES for path in sorted(Path(FOLDER, suite).rglob("*.scxml"))] if FOLDER else []


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER).with_suffix(""))


CASES = [pytest.param(path, id=name_of(path)) for path in paths()] or [
    pytest.param(None, id="none", marks=pytest.mark.skip("set FLOWLET_CONFORMANCE_DIR to the folder of SCION's cases"))
]
every_case = pytest.mark.parametrize("path", CASES)


def read_case(path: Path) -> Case:
    told = json.loads(path.with_suffix(".json").read_text())
    steps = [
        Step(told["event"]["name"], told.get("after", 0) / 1000, set(told["nextConfiguration"]))
        for told in told["events"]
    ]
    return Case(read_chart(path, [step.event for step in steps], SCRIPTS), set(told["initialConfiguration"]), steps)


@every_case
def test_the_model_agrees(path: Path) -> None:
    case = read_case(path)
    model = build_model(case.chart)
    model.start()
    assert set(model.atomic) == case.initial
    for step in case.steps:
        model.advance(step.after)
        model.send_now(step.event, {"name": step.event, "data": None})
        assert set(model.atomic) == step.expected, step.event


async def send(machine: Machine, it: Any, event: str) -> None:
    """Send an event from outside; SCXML discards what finds no transition."""
    if event in machine.events:
        with suppress(TransitionNotAllowed):
            await fire(it, event, **({} if event == PROBE else {"event": {"name": event, "data": None}}))


async def play(case: Case) -> None:
    """Replay a case in memory."""
    machine = build_machine(case.chart)
    it = machine.cls()
    await send(machine, it, PROBE)
    assert machine.configuration(states_of(it)) == case.initial
    for step in case.steps:
        await anyio.sleep(step.after)
        await send(machine, it, step.event)
        assert machine.configuration(states_of(it)) == step.expected, step.event


async def play_with_reloads(case: Case) -> None:
    """Replay a case in a store; each event finds the machine as another Flowlet has loaded it."""
    machine = build_machine(case.chart)
    store = open_store("memory://")
    async with Flowlet(store, registry=machine.registry) as flow:
        it = await flow.create(machine.cls(), id="case")
        assert machine.configuration(states_of(it)) == case.initial
        before = states_of(it)
    for step in case.steps:
        async with Flowlet(store, registry=machine.registry) as flow:
            it = await flow.load(machine.cls, "case")
            assert step.after or states_of(it) == before
            await anyio.sleep(step.after)
            await send(machine, it, step.event)
            assert machine.configuration(states_of(it)) == step.expected, step.event
            before = states_of(it)


@every_case
def test_in_memory(path: Path) -> None:
    anyio.run(play, read_case(path))


@every_case
def test_durably(path: Path) -> None:
    anyio.run(play_with_reloads, read_case(path))


@pytest.mark.parametrize("path", CASES[::10])
def test_on_trio(path: Path) -> None:
    anyio.run(play, read_case(path), backend="trio")
    anyio.run(play_with_reloads, read_case(path), backend="trio")


@pytest.mark.skipif(not FOLDER, reason="set FLOWLET_CONFORMANCE_DIR to the folder of SCION's cases")
@pytest.mark.parametrize(("suite", "count"), SUITES.items())
def test_no_case_is_missing(suite: str, count: int) -> None:
    assert sum(name_of(path).startswith(f"{suite}/") for path in paths()) == count
