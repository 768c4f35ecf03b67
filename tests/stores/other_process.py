"""What the tests of the SQLite store have done by another process. It says on stdout how far it is.

python other_process.py create PATH ID          wait for a line on stdin, then create the entity
python other_process.py race PATH ID            append after each version that comes in on stdin, first or not
python other_process.py write PATH NAME         append for ever, in eight tasks; name what was acknowledged
python other_process.py lock PATH SECONDS       hold the write lock
python other_process.py fork PATH               use a store on both sides of a fork
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
import warnings

import anyio

from flowlet.errors import Conflict, StoreError
from flowlet.store import New, Write
from flowlet.stores.sqlite import SQLiteStore

RUN = New("run", "test")


def say(*words: object) -> None:
    print(*words, flush=True)


async def create(path: str, id: str) -> None:
    say("ready")
    sys.stdin.readline()
    store = SQLiteStore(path)
    await store.append([Write(id=id, expect=0, create=RUN, records=[b"first"])])
    await store.close()
    say("done")


async def race(path: str, id: str) -> None:
    store = SQLiteStore(path)
    await store.load(id)
    say("ready")
    for line in sys.stdin:
        try:
            await store.append([Write(id=id, expect=int(line), records=[b"%d" % os.getpid()])])
        except Conflict as conflict:
            say("lost", conflict.expected, conflict.actual)
        else:
            say("won")
    await store.close()


async def write(path: str, name: str) -> None:
    store = SQLiteStore(path)

    async def one(id: str) -> None:
        await store.append([Write(id=id, expect=0, create=RUN, records=[b"1"], status="1")])
        for version in range(1, 1_000_000):
            say("stored", id, version)
            await store.append([Write(id=id, expect=version, records=[b"%d" % (version + 1)], status=str(version + 1))])

    async with anyio.create_task_group() as group:
        for n in range(8):
            group.start_soon(one, f"{name}-{n}")


async def lock(path: str, seconds: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    say("locked")
    time.sleep(float(seconds))
    connection.execute("ROLLBACK")


def fork(path: str) -> None:
    warnings.simplefilter("ignore")
    store = SQLiteStore(path)

    async def append(version: int) -> None:
        await store.append([Write(id="a", expect=version, records=[b"x"])])

    anyio.run(store.append, [Write(id="a", expect=0, create=RUN, records=[b"x"])])
    child = os.fork()
    if child == 0:
        try:
            anyio.run(append, 1)
        except StoreError as error:
            say("child:", error)
        os._exit(0)
    os.waitpid(child, 0)
    anyio.run(append, 1)
    anyio.run(store.close)
    say("parent: done")


if __name__ == "__main__":
    _, command, *arguments = sys.argv
    if command == "fork":
        fork(*arguments)
    else:
        anyio.run(globals()[command], *arguments)
