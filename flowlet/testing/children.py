"""Other processes that use the store under test, some of them until they are killed.

Law: this is the program of one process that never opens a store. It imports the test class once and forks for
each task, so that a child is a process with everything imported and nothing begun.

It reads one task as JSON per line from stdin, and answers each with one line of JSON.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel

from flowlet.errors import Conflict, FlowletError
from flowlet.store import Signal, Store, Write
from flowlet.testing.calls import CHECKOUTS, RUN

__all__ = ["SCRIPT_LENGTH", "main"]

Tell: TypeAlias = Callable[[object], None]

STUCK_AFTER = 60
"""Seconds after which a child that has not ended is killed."""

SCRIPT_LENGTH = 6

_FILES = ("flush", "fdatasync", "fsync", "ftruncate", "truncate", "write", "writelines", "writev", "pwrite", "close")
_FOLDERS = ("link", "mkdir", "remove", "rename", "replace", "rmdir", "symlink", "unlink")
_DATABASES = ("commit", "execute", "executemany", "executescript")
_SOCKETS = ("send", "sendall", "sendmsg", "sendto")
_POINTS = frozenset((*_FILES, *_FOLDERS, *_DATABASES, *_SOCKETS))
"""Built-in functions by which a process changes something outside of it."""


def main() -> None:
    """Serve the tasks that come in on stdin."""
    module, file, name, loop = sys.argv[1:]
    open_store = _test_class(module, file, name)().open_store
    anyio.run(anyio.lowlevel.checkpoint, backend=loop)  # imports what every child would have to import
    for line in sys.stdin:
        task = json.loads(line)
        bodies = [partial(_do, open_store, loop, task, n) for n in range(task["n"])]
        print(json.dumps(_forked(bodies)), flush=True)


def _test_class(module: str, file: str, name: str) -> Any:
    found = sys.modules.get(module)
    if found is None:
        # By its file: pytest may have given it a name under which Python would not find it.
        spec = importlib.util.spec_from_file_location(module, file)
        assert spec is not None
        assert spec.loader is not None
        found = sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    for part in name.split("."):
        found = getattr(found, part)
    return found


# ---------------------------------------------------------------- forking
def _forked(bodies: Sequence[Callable[[Tell], None]]) -> list[dict[str, object]]:
    """Run each body in a process of its own, all at once; return what each has told and how it ended."""
    gate_out, gate_in = os.pipe()
    started: list[tuple[int, int]] = []
    for body in bodies:
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(gate_in)
            _live(body, gate_out, into)
        os.close(into)
        started.append((child, out))
    os.close(gate_out)
    os.close(gate_in)  # now they begin
    answers: list[dict[str, object]] = []
    for child, out in started:
        with os.fdopen(out, "rb") as told:
            lines = [line for line in told.read().splitlines(keepends=True) if line.endswith(b"\n")]
        _, status = os.waitpid(child, 0)
        answers.append({"told": [json.loads(line) for line in lines], "code": os.waitstatus_to_exitcode(status)})
    return answers


def _live(body: Callable[[Tell], None], gate: int, into: int) -> None:
    code = 1
    try:
        signal.alarm(STUCK_AFTER)
        os.read(gate, 1)  # ends when all have been started
        body(lambda fact: _tell(into, fact))
        code = 0
    except BaseException:
        _tell(into, {"error": traceback.format_exc()})
    finally:
        os._exit(code)


def _tell(into: int, fact: object) -> None:
    os.write(into, json.dumps(fact).encode() + b"\n")


# ---------------------------------------------------------------- tasks
def _do(open_store: Callable[..., Store], loop: str, task: dict[str, Any], n: int, tell: Tell) -> None:
    points = Points(task.get("kill"))
    if task["do"] == "script":
        points.count()

    async def body() -> None:
        store = open_store(Path(task["place"]), time.time)
        await _TASKS[task["do"]](store, task, n, tell, points)
        points.stop()
        await store.close()

    anyio.run(body, backend=loop)


class Points:
    """Counts the calls by which this process changes the world, and kills it at one of them."""

    def __init__(self, kill: int | None) -> None:
        self.passed: int = 0
        self._kill = kill
        self._lock = threading.Lock()

    def count(self) -> None:
        """Begin, in all threads that start from now on."""
        threading.setprofile(self._look)
        sys.setprofile(self._look)

    def stop(self) -> None:
        """Count no more."""
        self._kill = None
        sys.setprofile(None)
        threading.setprofile(None)

    def _look(self, frame: FrameType, event: str, function: Any) -> None:
        # Before the call and after it: between the two lies the change itself.
        if event in ("c_call", "c_return") and function.__name__ in _POINTS and frame.f_code.co_filename != __file__:
            self.reach()

    def reach(self) -> None:
        """Pass a point, or die."""
        with self._lock:
            self.passed += 1
            if self.passed == self._kill:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(STUCK_AFTER)


async def _create(store: Store, task: dict[str, Any], n: int, tell: Tell, points: Points) -> None:
    await store.append([Write(id=f"id-{n}", expect=0, create=RUN, records=[b"first"])])


async def _race(store: Store, task: dict[str, Any], n: int, tell: Tell, points: Points) -> None:
    """Append to one entity until it has so many records; tell which versions this process has won."""
    version = 1
    while version < task["versions"]:
        try:
            await store.append([Write(id="a", expect=version, records=[b"%d" % n])])
            tell(version + 1)
            version += 1
        except Conflict as conflict:
            if conflict.expected != version or conflict.actual <= version:
                raise RuntimeError(f"a conflict that is none: {conflict!r} at version {version}") from conflict
            version = conflict.actual


async def _claim(store: Store, task: dict[str, Any], n: int, tell: Tell, points: Points) -> None:
    """Claim so many times; tell what was taken."""
    await store.heartbeat(f"w{n}", 100)
    for _ in range(task["rounds"]):
        for head in (await store.claim(f"w{n}", definitions=CHECKOUTS, limit=3)).heads:
            tell([head.id, head.owner, head.fence])


async def _run_script(store: Store, task: dict[str, Any], n: int, tell: Tell, points: Points) -> None:
    """Make the appends of the script, from the first that is not yet stored; tell the state after each."""
    stored = await store.load("a", limit=0)
    begin = 0 if stored is None else stored.head.version
    tell(await _state(store) if task.get("states") else None)
    for index in range(begin, SCRIPT_LENGTH):
        points.reach()
        await store.append(_writes(index, store.capabilities.signals))
        tell(await _state(store) if task.get("states") else None)
        points.reach()
    points.stop()
    tell({"points": points.passed})
    try:
        await store.append(_writes(SCRIPT_LENGTH - 1, store.capabilities.signals))
    except FlowletError as error:
        tell({"again": type(error).__name__})


_TASKS: dict[str, Callable[..., Awaitable[None]]] = {
    "create": _create,
    "race": _race,
    "claim": _claim,
    "script": _run_script,
}


def _writes(index: int, signals: bool) -> list[Write]:
    """Return the append after which "a" and "b" have ``index + 1`` records."""
    if index == 0:
        return [Write(id=id, expect=0, create=RUN, records=[b"1"], wake=5.0) for id in "ab"]
    record = b"%d" % (index + 1) * 1000
    message = [Signal("t", record, f"m{index}")] if signals else []
    a = Write(id="a", expect=index, records=[record], status=str(index), snapshot=record if index == 2 else record[:9])
    b = Write(id="b", expect=index, records=[record], signals=message, consumed=index - 2, close=index == 5)
    c = Write(id=f"c{index}", expect=0, create=RUN, records=[record], owner="w", state=str(index))
    return [a, b, c]


async def _state(store: Store) -> list[object]:
    """Return all that can be seen of the script, but for the times."""
    seen: list[object] = []
    for id in ("a", "b", *(f"c{index}" for index in range(1, SCRIPT_LENGTH))):
        stored = await store.load(id)
        if stored is None:
            seen.append(None)
            continue
        head = stored.head
        payloads = [stored.snapshot or b"", *stored.records, *(signal.payload for signal in stored.signals)]
        facts = [head.version, head.status, head.state, head.wake, head.owner, head.fence, head.inbox]
        numbers = [signal.number for signal in stored.signals]
        facts += [head.closed is not None, stored.snapshot_version, numbers]
        seen.append([*facts, [payload.decode() for payload in payloads]])
    seen.append([head.id for head in await store.scan(kind="run")])
    return seen
