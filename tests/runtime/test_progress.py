"""Progress is told at intervals, to whom it matters, and a bar that cannot be shown says what to install."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from flowlet import Flowlet
from flowlet.core.bulk import Progress, show_seconds
from flowlet.errors import MissingExtra
from flowlet.runtime.logs import Log
from flowlet.runtime.progress import Reporter
from flowlet.runtime.tally import Tally


def test_a_function_is_told_ten_times_a_second() -> None:
    told: list[Progress] = []
    reporter = Reporter(Tally(10), Log(), "send", None, told.append)
    reporter.begin()
    for milliseconds in range(0, 1000, 5):
        reporter.glance(1000 + milliseconds / 1000)
    assert 9 <= len(told) <= 11
    reporter.end("completed")
    assert told[-1].total == 10


def test_the_log_is_told_now_and_then(events: list[Any]) -> None:
    reporter = Reporter(Tally(10), Log(), "send", "june", None)
    reporter.begin()
    now = reporter._next_log
    for seconds in range(-5, 25):
        reporter.glance(now + seconds)
    reporter.end("completed")
    assert [e["event"] for e in events] == ["bulk.started", *["bulk.progress"] * 3, "bulk.ended"]
    assert {e["run_id"] for e in events} == {"june"}


@pytest.mark.anyio
async def test_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")

    async def double(n: int) -> int:
        if n == 3:
            raise ValueError
        return 2 * n

    report = await Flowlet().bulk(double, range(1000), progress=True)
    shown = capsys.readouterr()
    assert report.failed == 1
    assert shown.out == ""
    assert "double" in shown.err
    assert "1000/1000" in shown.err
    assert "1 failed" in shown.err


@pytest.mark.anyio
async def test_a_bar_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)

    async def double(n: int) -> int:
        return 2 * n

    with pytest.raises(MissingExtra, match=r"pip install 'flowlet\[cli\]'"):
        await Flowlet().bulk(double, range(3), progress=True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 µs"),
        (3.5e-7, "0.35 µs"),
        (0.00035, "350 µs"),
        (0.0012, "1.2 ms"),
        (1.5, "1.5 s"),
        (61, "1 min 1 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text
