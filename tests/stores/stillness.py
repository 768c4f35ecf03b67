"""Tell the standstills of an event loop from those of the machine it runs on.

A process of its own ticks beside the loop. Where it stood still at the same time, nobody but the machine is to blame.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

TICK = 0.01
_PEER = f"""
import time
last = time.monotonic()
print("ticks", flush=True)
while True:
    time.sleep({TICK})
    now = time.monotonic()
    if now - last > {2 * TICK}:
        print(last, now, flush=True)
    last = now
"""


class Spans:
    """Spans of time in which something was waited for, as (begin, end) on the machine's clock in seconds.

    Attributes:
        all: those of the loop.
        machine: those in which the machine stood still; known when the watch is over.
    """

    def __init__(self) -> None:
        self.all: list[tuple[float, float]] = []
        self.machine: list[tuple[float, float]] = []

    def longest(self) -> float:
        """Return the seconds of the longest span that the machine does not explain."""
        return max(self.lengths())

    def lengths(self) -> list[float]:
        """Return the seconds of each span, less those in which the machine stood still."""
        return [end - begin - self._excused(begin, end) for begin, end in self.all]

    def _excused(self, begin: float, end: float) -> float:
        return sum(max(0.0, min(end, upto) - max(begin, since)) for since, upto in self.machine)


@asynccontextmanager
async def watched(*, tick: bool = True) -> AsyncIterator[Spans]:
    """Tick every 10 ms while the body runs, here and in another process.

    Args:
        tick: False leaves it to the body to note spans of its own.
    """
    spans = Spans()
    peer = subprocess.Popen([sys.executable, "-S", "-c", _PEER], stdout=subprocess.PIPE, text=True)
    assert peer.stdout is not None
    try:
        assert peer.stdout.readline() == "ticks\n"
        async with anyio.create_task_group() as group:
            if tick:
                group.start_soon(_tick, spans)
            yield spans
            group.cancel_scope.cancel()
        time.sleep(2 * TICK)  # for the peer to notice what has just been
    finally:
        peer.kill()
        said, _ = peer.communicate()
    for line in said.splitlines():
        if line.count(" ") == 1 and line.count(".") == 2:  # the last may be cut off
            since, upto = line.split()
            spans.machine.append((float(since) + TICK, float(upto)))


async def _tick(spans: Spans) -> None:
    last = time.monotonic()
    while True:
        await anyio.sleep(TICK)
        now = time.monotonic()
        spans.all.append((last, now))
        last = now
