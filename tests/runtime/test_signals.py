"""SIGTERM is flowlet's only where nobody else handles it; the process ends by it once all Flowlets are drained."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import flowlet
from flowlet import Flowlet
from flowlet.runtime.signals import Termination

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGTERM cannot be caught there")

PREFACE = """
import os, signal, sys, threading, time
import anyio
from flowlet import Flowlet, step, compensate
from flowlet.errors import RunError

flow = Flowlet("sqlite:///" + sys.argv[1], grace=float(sys.argv[3]))

began = []

@step
async def act(n: int, signals: bool) -> int:
    print("begins", flush=True)
    began.append(n)
    if signals and not flow._runs.closing:
        term()
    while n and not flow._runs.closing:
        await anyio.sleep(0.001)
    await anyio.sleep(n / 1000)
    print("ends", flush=True)
    return n

async def until_begun(count=1) -> None:
    while len(began) < count:
        await anyio.sleep(0.001)

@step
async def after(n: int) -> int:
    print("after", flush=True)
    return n

@compensate(after)
@compensate(act)
async def undo() -> None:
    print("undo", flush=True)

@flow.saga
async def body(n: int, signals: bool) -> int:
    await act(n, signals)
    return await after(n)

def term() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
"""


def run(folder: Path, code: str, *, backend: str = "asyncio", grace: float = 5.0) -> tuple[int, list[str], str]:
    """Run a program; return its exit code, its lines, and what it says on stderr."""
    environment = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}
    program = PREFACE + textwrap.dedent(code) + "\nanyio.run(main, backend=sys.argv[2])\nprint('over')\n"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder / "s.db"), backend, str(grace)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    return done.returncode, done.stdout.split("\n")[:-1], done.stderr


@pytest.fixture(autouse=True)
def default() -> Iterator[None]:
    """Begin each test with the default disposition, and see that it is back at the end."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, before)


# ------------------------------------------------------------------ the handler comes and goes
@pytest.mark.anyio
async def test_the_handler_is_there_while_a_flowlet_is_entered() -> None:
    one, two = Flowlet(), Flowlet()
    async with one:
        handler = signal.getsignal(signal.SIGTERM)
        assert isinstance(handler, Termination)
        async with two, one:
            assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    async with two:
        assert isinstance(signal.getsignal(signal.SIGTERM), Termination)


@pytest.mark.anyio
async def test_it_can_be_switched_off() -> None:
    async with Flowlet(drain_on_sigterm=False):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.anyio
@pytest.mark.parametrize("theirs", [signal.SIG_IGN, lambda number, frame: None])
async def test_a_handler_of_the_programs_own_is_left_alone(theirs: Any) -> None:
    signal.signal(signal.SIGTERM, theirs)
    async with Flowlet():
        assert signal.getsignal(signal.SIGTERM) is theirs
    assert signal.getsignal(signal.SIGTERM) is theirs
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.anyio
async def test_a_handler_that_came_later_is_left_alone() -> None:
    def theirs(number: int, frame: object) -> None: ...

    async with Flowlet():
        signal.signal(signal.SIGTERM, theirs)
    assert signal.getsignal(signal.SIGTERM) is theirs
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_another_thread_leaves_it_alone() -> None:
    seen: list[Any] = []

    async def main() -> None:
        async with Flowlet():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=anyio.run, args=(main,))
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_a_flowlet_that_was_never_left_holds_up_nothing(tmp_path: Path) -> None:
    code, lines, _ = run(
        tmp_path,
        """
        async def main():
            await flow.__aenter__()
        anyio.run(main, backend=sys.argv[2])
        print("goes on", flush=True)
        term()
        """,
    )
    assert (code, lines) == (-signal.SIGTERM, ["goes on"])


def test_a_loop_that_is_not_run_any_more_holds_up_nothing(tmp_path: Path) -> None:
    code, lines, _ = run(
        tmp_path,
        """
        import asyncio
        loop = asyncio.new_event_loop()
        loop.run_until_complete(flow.__aenter__())
        print("goes on", flush=True)
        term()
        """,
    )
    assert (code, lines) == (-signal.SIGTERM, ["goes on"])


# ------------------------------------------------------------------ SIGTERM
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@BACKENDS
def test_the_running_step_ends_and_the_next_does_not_begin(tmp_path: Path, backend: str) -> None:
    code, lines, errors = run(
        tmp_path,
        """
        async def main():
            async with flow:
                await flow.start(body, 300, True, id="a")
                await anyio.sleep_forever()
        """,
        backend=backend,
    )
    assert (code, lines, errors) == (-signal.SIGTERM, ["begins", "ends"], "")


@BACKENDS
def test_who_waits_for_a_run_leaves_and_the_process_ends_by_the_signal(tmp_path: Path, backend: str) -> None:
    code, lines, errors = run(
        tmp_path,
        """
        other = Flowlet()

        async def main():
            async with other, flow:
                handle = await flow.start(body, 300, True, id="a")
                try:
                    await handle.result()
                except RunError as error:
                    print(error, flush=True)
        """,
        backend=backend,
    )
    assert code == -signal.SIGTERM, errors
    assert lines == ["begins", "ends", "run 'a' goes on when its Flowlet is entered again"]


@BACKENDS
def test_all_flowlets_are_drained_first(tmp_path: Path, backend: str) -> None:
    code, lines, errors = run(
        tmp_path,
        """
        second = Flowlet("sqlite:///" + sys.argv[1] + "2", registry=flow.registry)

        async def main():
            async with flow, second:
                await flow.start(body, 100, False, id="a")
                await second.start(body, 500, False, id="b")
                await until_begun(2)
                term()
                await anyio.sleep_forever()
        """,
        backend=backend,
    )
    assert (code, lines, errors) == (-signal.SIGTERM, ["begins", "begins", "ends", "ends"], "")


@BACKENDS
def test_a_second_one_ends_the_process_at_once(tmp_path: Path, backend: str) -> None:
    code, lines, _ = run(
        tmp_path,
        """
        async def main():
            async with flow:
                await flow.start(body, 60_000, True, id="a")
                await until_begun()
                while not flow._runs.closing:
                    await anyio.sleep(0.01)
                term()
                await anyio.sleep_forever()
        """,
        backend=backend,
        grace=30,
    )
    assert (code, lines) == (-signal.SIGTERM, ["begins"])


@BACKENDS
def test_a_signal_while_it_is_left_ends_the_process_after_that(tmp_path: Path, backend: str) -> None:
    code, lines, _ = run(
        tmp_path,
        """
        async def signal_it():
            while not flow._runs.closing:
                await anyio.sleep(0.001)
            term()

        async def main():
            async with anyio.create_task_group() as group, flow:
                await flow.start(body, 300, False, id="a")
                await until_begun()
                group.start_soon(signal_it)
        """,
        backend=backend,
    )
    assert (code, lines) == (-signal.SIGTERM, ["begins", "ends"])


@BACKENDS
def test_a_signal_to_a_process_that_has_nothing_to_do(tmp_path: Path, backend: str) -> None:
    code, lines, errors = run(
        tmp_path,
        """
        async def main():
            async with flow:
                threading.Timer(0.2, term).start()  # while the loop waits for something to happen
                await anyio.sleep_forever()
        """,
        backend=backend,
        grace=30,
    )
    assert (code, lines, errors) == (-signal.SIGTERM, [], "")


def test_after_the_last_is_left_the_process_ends_at_once_as_ever(tmp_path: Path) -> None:
    code, lines, _ = run(
        tmp_path,
        """
        async def main():
            async with flow:
                print(await flow.execute(body, 0, False), flush=True)
            term()
            await anyio.sleep_forever()
        """,
    )
    assert (code, lines) == (-signal.SIGTERM, ["begins", "ends", "after", "0"])


def test_a_program_that_handles_it_drains_by_itself(tmp_path: Path) -> None:
    code, lines, errors = run(
        tmp_path,
        """
        async def main():
            with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                async with flow:
                    await flow.start(body, 300, False, id="a")
                    await until_begun()
                    term()
                    async for number in signals:
                        await flow.drain()
                        print("drained", flush=True)
                        break
        """,
    )
    assert (code, lines, errors) == (0, ["begins", "ends", "drained", "over"], "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_ends_as_ever(tmp_path: Path) -> None:
    code, lines, _ = run(
        tmp_path,
        """
        async def main():
            async with flow:
                child = os.fork()
                if child == 0:
                    term()
                    time.sleep(10)
                    os._exit(0)
                _, status = os.waitpid(child, 0)
                print(os.waitstatus_to_exitcode(status), flush=True)
        """,
    )
    assert (code, lines) == (0, ["-15", "over"])


def test_a_plain_script(tmp_path: Path) -> None:
    code, lines, _ = run(
        tmp_path,
        """
        flow.run(body, 300, True)
        """,
    )
    assert (code, lines) == (-signal.SIGTERM, ["begins", "ends"])
