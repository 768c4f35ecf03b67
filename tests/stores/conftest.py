"""Help for the tests of the stores: other processes, and a loop that notices when it is held up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest

import flowlet

Start: TypeAlias = Callable[..., "subprocess.Popen[str]"]
Ticker: TypeAlias = Callable[[], AbstractAsyncContextManager[list[float]]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `other_process.py` with these arguments; what still runs at the end of the test is killed."""
    script = Path(__file__).with_name("other_process.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}
    started: list[subprocess.Popen[str]] = []

    def start_one(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def ticker() -> Ticker:
    """Tick every 10 ms while the body runs; the list it gives has the seconds between two ticks."""

    @asynccontextmanager
    async def tick() -> AsyncIterator[list[float]]:
        gaps: list[float] = []

        async def go_on() -> None:
            last = anyio.current_time()
            while True:
                await anyio.sleep(0.01)
                now = anyio.current_time()
                gaps.append(now - last)
                last = now

        async with anyio.create_task_group() as group:
            group.start_soon(go_on)
            yield gaps
            group.cancel_scope.cancel()

    return tick
