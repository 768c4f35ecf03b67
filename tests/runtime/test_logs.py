"""Log events have stable names and fields; flowlet configures nothing and is silent while all goes well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

import flowlet
from flowlet import Flowlet, Retry, Run, compensate, provided, step

pytestmark = pytest.mark.anyio


class Broken(Exception):
    pass


def program(flow: Flowlet, *, refundable: bool = True) -> tuple[Any, Any]:
    @step(retry=Retry(attempts=3, wait=0))
    async def charge(n: int, run: Run = provided) -> int:
        if run.attempt == 1:
            raise Broken("busy")
        return n

    @compensate(charge)
    async def refund() -> None:
        if not refundable:
            raise Broken("no refund")

    @flow.saga
    async def good(n: int) -> int:
        return await charge(n)

    @flow.saga
    async def bad(n: int) -> int:
        await charge(n)
        raise Broken("no stock")

    return good, bad


def names(events: list[Any]) -> list[str]:
    return [e["event"] for e in events]


async def test_the_life_of_a_run(flow: Flowlet, events: list[Any]) -> None:
    good, _ = program(flow)
    async with flow:
        await flow.execute(good, 1, id="g")
    assert names(events) == ["run.started", "step.retried", "run.completed"]
    assert all((e["run_id"], e["definition"], e["log_level"]) == ("g", "good", "info") for e in events)
    retried = events[1]
    assert (retried["step"], retried["attempt"], retried["delay"]) == ("charge", 1, 0.0)
    assert retried["error"] == "Broken('busy')"


async def test_a_run_that_is_undone(flow: Flowlet, events: list[Any]) -> None:
    _, bad = program(flow)
    async with flow:
        with pytest.raises(Broken):
            await flow.execute(bad, 1, id="b")
    assert names(events) == ["run.started", "step.retried", "run.compensating", "run.compensated"]
    assert all((e["run_id"], e["definition"]) == ("b", "bad") for e in events)


async def test_a_run_that_fails_or_cannot_be_undone(flow: Flowlet, events: list[Any]) -> None:
    @flow.saga
    async def failing() -> None:
        raise Broken

    _, bad = program(flow, refundable=False)
    async with flow:
        with pytest.raises(Broken):
            await flow.execute(failing, id="f")
        assert names(events) == ["run.started", "run.failed"]
        events.clear()
        with pytest.raises(Broken):
            await flow.execute(bad, 1, id="b")
    assert "run.compensation_failed" in names(events)
    (error,) = [e for e in events if e["log_level"] == "error"]
    assert (error["event"], error["run_id"], error["steps"]) == ("run.compensation_failed", "b", ("charge",))


async def test_a_run_that_is_parked_and_resumed(flow: Flowlet, events: list[Any]) -> None:
    class Gateway: ...

    async with flow:

        @flow.saga
        async def body(gateway: Gateway = provided) -> int:
            return 1

        with pytest.raises(flowlet.errors.RunParked):
            await flow.execute(body, id="b")
        parked = events[-1]
        assert (parked["event"], parked["log_level"], parked["run_id"]) == ("run.parked", "error", "b")
        assert "nothing provides" in parked["reason"]
        flow.provide(Gateway, Gateway())
        await flow.handle("b").resume()
        await flow.handle("b", body).result()
    assert names(events)[-2:] == ["run.resumed", "run.completed"]


async def test_a_level_that_is_filtered_costs_no_event(flow: Flowlet) -> None:
    import logging

    capture = LogCapture()
    structlog.configure(processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    try:
        good, _ = program(flow)
        async with flow:
            await flow.execute(good, 1)
    finally:
        structlog.reset_defaults()
    assert capture.entries == []


SCRIPT = """
import sys
{before}
from flowlet import Flowlet, Retry, Run, Registry, compensate, provided, step

flow = Flowlet({url!r})

@step(retry=Retry(attempts=3, wait=0))
async def charge(n: int, run: Run = provided) -> int:
    if {retried} and run.attempt == 1:
        raise OSError("busy")
    return n

@compensate(charge)
async def refund() -> None:
    if {broken}:
        raise OSError("no refund")

@flow.saga
async def buy(n: int) -> int:
    await charge(n)
    if {failing}:
        raise ValueError("no stock")
    return n

try:
    assert flow.run(buy, 1, id="b") == 1
except ValueError:
    assert {failing}
assert ("tenacity" in sys.modules) == {retried}, "tenacity"
assert ("structlog" in sys.modules) == {structlog}, "structlog"
"""


def run_script(**options: Any) -> subprocess.CompletedProcess[str]:
    settings: dict[str, Any] = {
        "before": "", "url": "memory://", "retried": False, "failing": False, "broken": False, "structlog": False
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT.format(**{**settings, **options})],
        capture_output=True,
        text=True,
        cwd=Path(flowlet.__file__).parent.parent,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"retried": True},
        {"failing": True},
        {"before": "import structlog", "structlog": True, "retried": True, "failing": True},
    ],
    ids=["plain", "retried", "undone", "structlog imported"],
)
def test_nothing_is_printed_while_all_goes_well(options: dict[str, Any], tmp_path: Path) -> None:
    for url in ("memory://", f"sqlite:///{tmp_path}/a.db?durability=process"):
        done = run_script(**{**options, "url": url})
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_what_needs_somebody_goes_to_stderr() -> None:
    done = run_script(failing=True, broken=True, structlog=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "run.compensation_failed" in done.stderr
    assert "run_id=b" in done.stderr
    assert "\x1b[" not in done.stderr
