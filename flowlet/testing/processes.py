"""Several processes on the same data: opening it at once, racing for one version, claiming."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest

from flowlet.store import Store
from flowlet.testing.calls import create, found, needs
from flowlet.testing.fixtures import StoreFixtures

__all__ = ["ProcessChecks", "Processes"]

_PROCESSES = 4

Answers: TypeAlias = "list[dict[str, Any]]"


class Processes:
    """Runs tasks of `flowlet.testing.children` in processes that have imported this test class."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def do(self, what: str, place: Path, n: int = 1, **options: object) -> Answers:
        """Do it in ``n`` processes at once; return what each has told and the code it ended with."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"do": what, "place": str(place), "n": n, **options}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the process that forks has ended; its traceback is on stderr"
        answers: Answers = json.loads(line)
        return answers

    def do_well(self, what: str, place: Path, n: int = 1, **options: object) -> list[list[Any]]:
        """Do it in ``n`` processes at once, none of which may fail; return what each has told."""
        answers = self.do(what, place, n, **options)
        for answer in answers:
            assert answer["code"] == 0, _report(answer)
        return [answer["told"] for answer in answers]


class ProcessChecks(StoreFixtures):
    """Several processes on the same data: opening it at once, racing for one version, claiming."""

    @contextmanager
    def processes(self) -> Generator[Processes]:
        """Start the process that forks the others, and end it."""
        cls = type(self)
        if not hasattr(os, "fork"):
            pytest.skip("this system has no fork")
        if "<locals>" in cls.__qualname__:
            pytest.skip(f"{cls.__qualname__} is defined inside of a function, where no other process finds it")
        command = [sys.executable, "-c", "from flowlet.testing.children import main; main()"]
        command += [cls.__module__, inspect.getfile(cls), cls.__qualname__, self.loops[0]]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            try:
                yield Processes(process)
            finally:
                process.kill()

    def _on_the_store(self, place: Path, call: Any) -> Any:
        async def body() -> Any:
            store = self.open_store(place, time.time)
            try:
                return await call(store)
            finally:
                await store.close()

        return anyio.run(body, backend=self.loops[0])

    def test_many_processes_open_it_at_once_for_the_first_time(self, place: Path) -> None:
        needs(self.open_store(place, time.time).capabilities, "durable", "multi_process")
        with self.processes() as processes:
            processes.do_well("create", place, 2 * _PROCESSES)

        async def ids(store: Store) -> list[str]:
            return sorted(head.id for head in await store.scan())

        assert self._on_the_store(place, ids) == [f"id-{n}" for n in range(2 * _PROCESSES)]

    def test_of_many_processes_one_wins_each_version(self, place: Path) -> None:
        needs(self.open_store(place, time.time).capabilities, "durable", "multi_process")

        async def begin(store: Store) -> None:
            await create(store, "a")

        async def records(store: Store) -> list[bytes]:
            return list((await found(store, "a")).records)

        self._on_the_store(place, begin)
        with self.processes() as processes:
            told = processes.do_well("race", place, _PROCESSES, versions=60)
        winners = {version: b"%d" % n for n, versions in enumerate(told) for version in versions}
        assert sorted(winners) == list(range(2, 61)), "each version was won, and acknowledged, once"
        assert sum(map(len, told)) == 59
        assert self._on_the_store(place, records) == [b"first", *(winners[version] for version in range(2, 61))]

    def test_no_two_processes_claim_the_same(self, place: Path) -> None:
        needs(self.open_store(place, time.time).capabilities, "durable", "multi_process", "leases")
        ids = [f"id-{n:02}" for n in range(40)]

        async def begin(store: Store) -> None:
            await create(store, *ids, wake=0.0)

        async def owners(store: Store) -> list[list[object]]:
            return [[head.id, head.owner, head.fence] for head in await store.scan()]

        self._on_the_store(place, begin)
        with self.processes() as processes:
            told = processes.do_well("claim", place, _PROCESSES, rounds=len(ids))
        assert sorted(claim[0] for claims in told for claim in claims) == ids
        assert sorted(claim for claims in told for claim in claims) == self._on_the_store(place, owners)


def _report(answer: dict[str, Any]) -> str:
    errors = [fact["error"] for fact in answer["told"] if isinstance(fact, dict) and "error" in fact]
    return "\n".join([f"a process ended with the code {answer['code']}", *errors])
