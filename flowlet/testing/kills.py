"""Processes that are killed in the middle of an append: what was acknowledged is there, and nothing by halves."""

from __future__ import annotations

import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from flowlet.testing.calls import needs
from flowlet.testing.children import SCRIPT_LENGTH
from flowlet.testing.processes import ProcessChecks

__all__ = ["KillChecks"]


class KillChecks(ProcessChecks):
    """Processes that are killed in the middle of an append: what was acknowledged is there, and nothing by halves.

    Attributes:
        kills: at most so many processes are killed, at points spread evenly over all there are.
    """

    kills: ClassVar[int] = 24

    def test_a_process_killed_at_any_write_leaves_whole_appends(self, place: Path) -> None:
        """The points are the calls of built-in functions that write, before and after each; see `children`."""
        needs(self.open_store(place, time.time).capabilities, "durable")
        with self.processes() as processes:
            with self._apart(place, "whole") as whole:
                told = processes.do_well("script", whole, states=True)[0]
            states, again = told[: SCRIPT_LENGTH + 1], told[-1]
            assert len({str(state) for state in states}) == SCRIPT_LENGTH + 1
            assert again == {"again": "Conflict"}, "the last append, made again, is refused"
            with self._apart(place, "counted") as counted:
                points: int = processes.do_well("script", counted)[0][-2]["points"]
            stride = max(1, points // self.kills)
            died = 0
            for kill in range(1, points + 1, stride):
                with self._apart(place, f"kill{kill}") as apart:
                    (killed,) = processes.do("script", apart, kill=kill)
                    assert killed["code"] in (-signal.SIGKILL, 0), killed
                    died += killed["code"] != 0
                    acknowledged = sum(fact is None for fact in killed["told"][1:])
                    resumed = processes.do_well("script", apart, states=True)[0]
                    at_least = f"killed at point {kill} of {points}, when {acknowledged} appends were acknowledged"
                    assert resumed[0] in states[acknowledged : acknowledged + 2], at_least
                    assert resumed[: len(states) - states.index(resumed[0])] == states[states.index(resumed[0]) :]
            assert died, "no process could be killed at a write"

    @contextmanager
    def _apart(self, place: Path, name: str) -> Generator[Path]:
        """Make a place of its own, and remove what is kept there."""
        apart = place / name
        apart.mkdir()
        yield apart
        self.remove_store(apart)
