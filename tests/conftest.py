"""Fixtures for all tests. A coroutine test marked ``anyio`` runs on both event loops."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each test marked ``anyio`` on asyncio and on trio."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the repository."""
    return Path(__file__).resolve().parent.parent
