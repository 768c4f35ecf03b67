"""Fixtures for all tests. A coroutine test marked ``anyio`` runs on both event loops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flowlet import Flowlet
from flowlet.store import Store
from flowlet.stores import open_store


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each test marked ``anyio`` on asyncio and on trio."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(params=["memory", "sqlite"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Make stores over the same data, each as if it belonged to a process of its own."""
    if request.param == "memory":
        memory = open_store("memory://")
        return lambda: memory
    return lambda: open_store(f"sqlite:///{tmp_path}/flow.db?durability=process")


@pytest.fixture
def flow(new_store: Callable[[], Store]) -> Flowlet:
    """Return a Flowlet that has not been entered."""
    return Flowlet(new_store())
