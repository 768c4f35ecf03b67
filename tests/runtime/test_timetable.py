"""What fires schedules is loaded with the first of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import anyio
from flowlet import Flowlet

async def main():
    flow = Flowlet()
    @flow.saga
    async def clean() -> None: ...
    async with flow:
        await clean()
        print("flowlet.runtime.schedules" in sys.modules)
        flow.every(60)(clean)
        with anyio.fail_after(10):
            while not [s async for s in flow.schedules()]:
                await anyio.sleep(0.01)
        print("flowlet.runtime.schedules" in sys.modules, "cronsim" in sys.modules)

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_programs_without_a_schedule_load_nothing_of_it(backend: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, backend], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "True", "False"], done.stderr[-2000:]
