"""The command line as a process: pipes, interruptions, watching, files that cannot be written to."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import cli_shop
import pytest

from flowlet import Flowlet

if TYPE_CHECKING:
    from conftest import Cli, Spawn

WAIT = 60.0


def lines_of(process: subprocess.Popen[str], count: int) -> list[Any]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def test_nobody_reads_to_the_end(spawn: Spawn, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/many.db?durability=process"

    async def fill() -> None:
        flow = Flowlet(url, registry=cli_shop.registry, drain_on_sigterm=False)
        async with flow, anyio.create_task_group() as group:
            for number in range(1500):
                group.start_soon(_create, flow, number)

    anyio.run(fill)
    process = spawn("machines", "list", "--store", url)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ID")
    process.stdout.close()
    assert process.wait(WAIT) == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""


async def _create(flow: Flowlet, number: int) -> None:
    await flow.create(cli_shop.Order(), id=f"machine-number-{number:06d}-with-a-long-name-that-fills-pipes")


def test_watching_tells_what_changes_until_it_is_over(cli: Cli, spawn: Spawn, url: str) -> None:
    watcher = spawn("runs", "show", "wait-1", "--watch", "--every", "0.2", "--json", "--store", url)
    (first,) = lines_of(watcher, 1)
    assert (first["status"], first["signals"]) == ("waiting", [])
    assert cli("runs", "cancel", "wait-1", "-y", "--store", url).code == 0
    (second,) = lines_of(watcher, 1)
    assert second["signals"][0]["topic"] == "flowlet/cancel"

    async def execute() -> None:
        async with Flowlet(url, registry=cli_shop.registry, drain_on_sigterm=False) as flow:
            async for _ in flow.handle("wait-1").events():
                pass

    anyio.run(execute)
    out, _ = watcher.communicate(timeout=WAIT)
    assert json.loads(out.splitlines()[-1])["status"] == "cancelled"
    assert watcher.returncode == 0


@pytest.mark.parametrize("command", [["runs", "list", "--watch"], ["runs", "history", "wait-1", "--watch"]])
def test_an_interruption_ends_it_quietly(spawn: Spawn, url: str, command: list[str]) -> None:
    process = spawn(*command, "--json", "--store", url)
    lines_of(process, 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=WAIT)
    assert (process.returncode, err) == (130, "")


@contextmanager
def at_a_terminal(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a command at a terminal of its own; yield the process, and what its user sees and types at."""
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "flowlet.cli", *arguments],
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
        env=os.environ | environment,
    )
    os.close(other)
    try:
        yield process, main
    finally:
        process.kill()
        process.wait()
        os.close(main)


def test_an_interrupted_question_has_done_nothing(url: str, cli: Cli) -> None:
    with at_a_terminal("runs", "cancel", "wait-1", "--store", url) as (process, terminal):
        shown = _read_until(terminal, b"[y/N]")
        assert b"Cancel run wait-1 of wait, which is waiting" in shown
        for _ in range(10):  # one that comes just before Python waits for the answer is seen with the next
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(2.0)
                break
        assert process.returncode == 130
    assert cli("runs", "show", "wait-1", "--json", "--store", url).document["signals"] == []


def test_a_terminal_gets_colours_unless_it_wants_none(url: str) -> None:
    with at_a_terminal("runs", "list", "--store", url) as (_, terminal):
        assert b"\x1b[" in _read_until(terminal, b"june")
    with at_a_terminal("runs", "list", "--store", url, NO_COLOR="1") as (_, terminal):
        assert b"\x1b[" not in _read_until(terminal, b"june")


def _read_until(terminal: int, words: bytes) -> bytes:
    shown, deadline = b"", time.monotonic() + WAIT
    while words not in shown and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:
                break
    return shown


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="somebody else is needed who may not write")
def test_a_file_that_cannot_be_written_to_is_read(written: Path, url: str) -> None:
    # First as somebody who may, so that all is imported: what the other user may read of this interpreter is not known.
    code = """
import os, sys
from flowlet.cli import main
mine, theirs = sys.argv[1:]
assert main(["runs", "show", "good", "--store", mine]) == main(["runs", "list", "--store", mine]) == 0
os.setuid(65534)
print("now", flush=True)
assert main(["runs", "show", "good", "--json", "--store", theirs]) == 0
sys.exit(main(["runs", "list", "--json", "--store", theirs]))
"""
    place = Path(tempfile.mkdtemp())
    try:
        shutil.copy(written, place / "shop.db")
        (place / "shop.db").chmod(0o444)
        place.chmod(0o555)
        arguments = [sys.executable, "-c", code, url, f"sqlite:///{place}/shop.db"]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=WAIT)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.partition("now\n")[2].splitlines()) > 8
        assert [path.name for path in place.iterdir()] == ["shop.db"]
    finally:
        shutil.rmtree(place)


def test_a_terminal_that_knows_ascii_only(spawn: Spawn, url: str) -> None:
    path = url.removeprefix("sqlite:///").partition("?")[0]
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE heads SET id = 'größer' WHERE id = 'good'")
    process = spawn("runs", "list", "--store", url, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    out, err = process.communicate(timeout=WAIT)
    assert (process.returncode, err) == (0, "")
    assert "gr\\xf6\\xdfer" in out


def test_what_a_killed_process_left_in_its_log_is_read(tmp_path: Path, spawn: Spawn) -> None:
    url = f"sqlite:///{tmp_path}/killed.db"
    code = f"""
import anyio, os, signal, sys
import cli_shop
from flowlet import Flowlet
async def main():
    async with Flowlet({url!r}, registry=cli_shop.registry) as flow:
        await flow.create(cli_shop.Order(), id="m-1")
        os.kill(os.getpid(), signal.SIGKILL)
anyio.run(main)
"""
    path = os.pathsep.join([str(Path(cli_shop.__file__).parent), *sys.path])
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    assert (tmp_path / "killed.db-wal").stat().st_size > 0
    before = (tmp_path / "killed.db").read_bytes()
    out, err = spawn("machines", "list", "--json", "--store", url).communicate(timeout=WAIT)
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["m-1"], err
    assert (tmp_path / "killed.db").read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is full")
def test_output_that_cannot_be_written_is_one_line(spawn: Spawn, url: str) -> None:
    with open("/dev/full", "w") as full:
        process = spawn("runs", "list", "--store", url, stdout=full)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_closed_streams_are_no_bug(url: str) -> None:
    def left(*arguments: str, closed: str) -> int:
        words = shlex.join([sys.executable, "-m", "flowlet.cli", *arguments, "--store", url])
        done = subprocess.run(f"{words} {closed}", shell=True, capture_output=True, text=True, timeout=30)
        assert "Traceback" not in done.stderr
        return done.returncode

    assert left("runs", "list", closed=">&-") == 0
    assert left("runs", "show", "nobody", closed="2>&-") == 1
    assert left("runs", "cancel", "wait-1", closed="<&-") == 2
    assert left("runs", "signal", "wait-1", "tea", "-", "--yes", closed="<&-") == 2
