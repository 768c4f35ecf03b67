"""Fixtures for all tests. A coroutine test marked ``anyio`` runs on both event loops."""

from __future__ import annotations

import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowlet import Flowlet
from flowlet.store import Store
from flowlet.stores import open_store


def pytest_configure() -> None:
    """Let interrupts arrive where the tests were begun in the background, which leaves them ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="every test on every event loop with every store")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what says little new: half of the pairings of loops and stores, and half of the long tests.

    Each test still meets both loops and both stores, and which pairings it has is drawn by its name, so that a module
    has all four. Of crash and model tests that differ in the loop alone, one is drawn, and of a crash test with many
    cases every third one. ``--all`` leaves out nothing.
    """
    if config.getoption("--all"):
        return
    long = {item.nodeid for item in items if item.path.parent.name in ("crash", "properties")}
    left_out = {item for item in items if _is_other_pairing(item) or _is_twin(item.nodeid, long)}
    left_out |= _two_of_three([item for item in items if item not in left_out and item.path.parent.name == "crash"])
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def _is_other_pairing(item: pytest.Item) -> bool:
    drawn = dict(getattr(getattr(item, "callspec", None), "params", {}))
    loop = drawn.pop("anyio_backend", None)
    store = next((value for value in drawn.values() if isinstance(value, str) and value in ("memory", "sqlite")), None)
    if loop not in ("asyncio", "trio") or store is None:
        return False
    is_crossed = _draw(item.nodeid.partition("[")[0])
    return ((loop == "asyncio") == (store == "memory")) == is_crossed


def _is_twin(name: str, names: set[str]) -> bool:
    on_asyncio, on_trio = name.replace("trio", "asyncio"), name.replace("asyncio", "trio")
    if name not in names or on_asyncio == on_trio or not {on_asyncio, on_trio} <= names:
        return False
    return name == (on_asyncio if _draw(on_trio) else on_trio)


def _two_of_three(items: list[pytest.Item]) -> set[pytest.Item]:
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return {item for found in cases.values() if len(found) > _MANY for n, item in enumerate(found) if n % 3}


_MANY = 3


def _draw(name: str) -> bool:
    return zlib.crc32(name.encode()) % 2 == 1


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
