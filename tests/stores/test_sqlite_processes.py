"""Several processes on one SQLite file, and one that is killed in the middle of its work."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import TypeAlias

import anyio
import pytest

from flowlet.store import New, Stored, Write
from flowlet.stores.sqlite import SQLiteStore

Start: TypeAlias = Callable[..., "Popen[str]"]

RUN = New("run", "test")


def answer(process: Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def ready(process: Popen[str]) -> None:
    assert answer(process) == "ready"


def tell(process: Popen[str], word: object) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()


def load_all(path: Path) -> dict[str, Stored]:
    async def load() -> dict[str, Stored]:
        store = SQLiteStore(path)
        found = {}
        for head in await store.scan(limit=10_000):
            stored = await store.load(head.id)
            assert stored is not None
            found[head.id] = stored
        await store.close()
        return found

    return anyio.run(load)


def integrity(path: Path) -> str:
    connection = sqlite3.connect(path)
    answer: str = connection.execute("PRAGMA integrity_check").fetchone()[0]
    connection.close()
    return answer


def test_eight_processes_open_and_make_the_file_at_once(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "s.db"
    processes = [start("create", path, f"id-{n}") for n in range(8)]
    for process in processes:
        ready(process)
    for process in processes:
        tell(process, "go")
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "done\n")
    assert sorted(load_all(path)) == [f"id-{n}" for n in range(8)]
    assert integrity(path) == "ok"


def test_of_two_processes_one_wins_each_version(tmp_path: Path, start: Start) -> None:
    path, rounds = tmp_path / "s.db", 200

    async def create() -> None:
        store = SQLiteStore(path)
        await store.append([Write(id="a", expect=0, create=RUN, records=[b"first"])])
        await store.close()

    anyio.run(create)
    processes = [start("race", path, "a") for _ in range(2)]
    for process in processes:
        ready(process)
    winners = []
    for version in range(1, rounds + 1):
        for process in processes:
            tell(process, version)
        answers = [answer(process) for process in processes]
        assert sorted(answers) == [f"lost {version} {version + 1}", "won"]
        winners.append(processes[answers.index("won")].pid)
    assert [int(record) for record in load_all(path)["a"].records[1:]] == winners


def test_what_was_acknowledged_survives_kill(tmp_path: Path, start: Start) -> None:
    path, chance = tmp_path / "s.db", random.Random(7)
    acknowledged: dict[str, int] = {}
    for round_ in range(10):
        process = start("write", path, f"round{round_}")
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(chance.randrange(1, 400))]
        process.kill()
        lines += process.stdout.readlines()
        for line in lines:
            if not line.endswith("\n"):
                continue  # it was killed in the middle of the word
            _, id, word = line.split()
            acknowledged[id] = int(word)
        found = load_all(path)
        for id, version in acknowledged.items():
            stored = found[id]
            assert stored.head.version >= version
            assert [int(record) for record in stored.records] == list(range(1, stored.head.version + 1))
            assert stored.head.status == str(stored.head.version)
    assert len(acknowledged) > 10
    assert integrity(path) == "ok"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_store_that_was_open_at_a_fork_says_so_in_the_child(tmp_path: Path, start: Start) -> None:
    out, _ = start("fork", tmp_path / "s.db").communicate(timeout=60)
    child, parent = out.splitlines()
    assert "forked" in child
    assert "spawn" in child
    assert parent == "parent: done"
    assert load_all(tmp_path / "s.db")["a"].head.version == 2
