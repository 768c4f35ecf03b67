"""A store of one's own: a file with one line of JSON for each append, which any tool can read.

    python examples/custom_store.py [folder]     # runs a saga on it and shows what is in the folder

Several processes of one host may share the folder, on a system with `flock` (not Windows). An append is durable
when it returns: its line was written and the disk has confirmed it. Each process keeps all entities in memory, so
it is meant for some ten thousand of them. `flowlet.testing.StoreConformance` proves that it keeps the promises.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import msgspec
from anyio import to_thread

from flowlet import Flowlet, compensate, step
from flowlet.core.run_records import run_record_codec
from flowlet.errors import StoreUnavailable
from flowlet.store import BasicStore, Capabilities, Change, Entity, Head, Stored, Work, Write

T = TypeVar("T")


class Line(msgspec.Struct):
    """One append: when it was, by the clock of who wrote it, and what."""

    now: float
    writes: Sequence[Change]


class FolderStore(BasicStore):
    """Keeps history in ``folder/history.jsonl``."""

    capabilities = Capabilities(durable=True, multi_process=True)

    def __init__(self, folder: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock=clock)
        self._path = Path(folder, "history.jsonl")
        self._lock = Lock()  # among the threads of this process
        self._entities: dict[str, Entity] = {}
        self._size = 0  # how much of the file is in memory
        self._last = 0  # the highest order that was ever given

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        await to_thread.run_sync(self._locked, lambda: self._append(writes, work))
        self.notify(writes)

    async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Stored | None:
        return await to_thread.run_sync(
            self._locked, lambda: self.view(self._entities.get(id), after=after, limit=limit)
        )

    async def scan(self, **question: Any) -> Sequence[Head]:
        return await to_thread.run_sync(
            self._locked, lambda: self.select((entity.head for entity in self._entities.values()), **question)
        )

    def _locked(self, call: Callable[[], T]) -> T:
        with self._lock:
            try:
                self._catch_up()
                return call()
            except OSError as error:
                raise StoreUnavailable(f"{self._path}: {error}; what was not reported done may be there") from error

    def _append(self, writes: Sequence[Write], work: Work | None) -> None:
        with open(self._path, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # among processes, until the file is closed or its process ends
            self._catch_up()
            self.apply(writes, self._entities, last=self._last, work=work)  # raises if it is refused
            file.truncate(self._size)  # there may be half a line, of a writer that was killed
            file.write(msgspec.json.encode({"now": self._clock(), "writes": writes}) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._catch_up()

    def _catch_up(self) -> None:
        """Bring into memory what the lines say that were written since, by whatever process."""
        if not self._path.exists():
            return
        with open(self._path, "rb") as file:
            file.seek(self._size)
            for text in file:
                if not text.endswith(b"\n"):
                    break  # somebody is writing it, or was killed
                line = msgspec.json.decode(text, type=Line)
                for id, entity in self.apply(line.writes, self._entities, last=self._last, now=line.now).items():
                    if entity is None:
                        del self._entities[id]
                    else:
                        self._entities[id] = entity
                        self._last = max(self._last, entity.head.order)
                self._size += len(text)


# ---------------------------------------------------------------- a saga on it
@step
async def reserve(item: str) -> str:
    return f"shelf of {item}"


@compensate(reserve)
async def put_back(reserve: str) -> None: ...


@step
async def charge(item: str, total: int) -> int:
    if total > 100:
        raise ValueError(f"{total} is more than the card allows")
    return total


def main(folder: Path) -> None:
    """Run a saga twice, once to its end and once rolled back, and print the history that the folder has of it."""
    flow = Flowlet(FolderStore(folder))

    @flow.saga
    async def buy(item: str, total: int) -> str:
        shelf = await reserve(item)
        return f"{shelf}, paid {await charge(item, total)}"

    print(flow.run(buy, "chair", 80, id="o-1"))
    try:
        flow.run(buy, "piano", 9000, id="o-2")
    except ValueError as error:
        print(f"rolled back: {error}")
    for path in sorted(folder.iterdir()):
        lines = path.read_bytes().splitlines()
        print(f"{path.name}: {len(lines)} lines")
        for text in lines:
            for write in msgspec.json.decode(text, type=Line).writes:
                if write.id.startswith("o-"):
                    for record in write.records:
                        print(f"  {write.id}  {type(run_record_codec.decode(record, write.id)).__name__}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
