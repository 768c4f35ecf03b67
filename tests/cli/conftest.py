"""Help for the tests of the command line: a store that a real Flowlet has written, and the command itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import anyio
import cli_shop
import pytest

import flowlet
from flowlet.cli import main

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no configuration of the machine be found."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("FLOWLET_") and not name.startswith("FLOWLET_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with some of everything, for copies."""
    path = tmp_path_factory.mktemp("written") / "shop.db"
    anyio.run(cli_shop.write_history, f"sqlite:///{path}?durability=process")
    return path


@pytest.fixture
def url(written: Path, tmp_path: Path) -> str:
    """Return the URL of a file with some of everything, this test's own."""
    path = tmp_path / "shop.db"
    shutil.copy(written, path)
    return f"sqlite:///{path}?durability=process"


class Done(NamedTuple):
    """What a command has done."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Cli: TypeAlias = Callable[..., Done]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        code = main(arguments)
        return Done(code, *capsys.readouterr())

    return run


Spawn: TypeAlias = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Run a command in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(Path(flowlet.__file__).parent.parent), str(HERE)])
        environment = {**os.environ, "PYTHONPATH": path} | options.pop("env", {})
        given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen(
            [sys.executable, "-m", "flowlet.cli", *arguments], text=True, env=environment, **(given | options)
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
