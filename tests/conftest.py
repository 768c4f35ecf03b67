"""Fixtures for all tests. A coroutine test marked ``anyio`` runs on both event loops."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowlet import Flowlet
from flowlet.store import Store
from flowlet.stores import open_store


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each test marked ``anyio`` on asyncio and on trio."""
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def _structlog_stays_unconfigured() -> Iterator[None]:
    """Fail the test that leaves structlog configured: later ones would find flowlet talking."""
    yield
    structlog = sys.modules.get("structlog")  # not imported here: whether it has been is a question of some tests
    if structlog is not None and structlog.is_configured():
        structlog.reset_defaults()
        pytest.fail("this test has left structlog configured: use the fixture `events`")


@pytest.fixture
def events() -> Iterator[list[Any]]:
    """Configure structlog, as a user would, and collect what is logged."""
    import structlog

    capture = structlog.testing.LogCapture()
    structlog.configure(processors=[capture])
    yield capture.entries
    structlog.reset_defaults()


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
