"""What a subclass of the kit says of its store, and the fixtures that the checks are given.

Law: the only place that opens stores in the process of the tests; every store that it opens is closed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import pytest

from flowlet.store import Store
from flowlet.testing.clocks import Clock, ServerClock

__all__ = ["StoreFixtures"]

_LOOPS = ("asyncio", "trio")


class StoreFixtures:
    """The questions that the kit has; see `flowlet.testing.StoreConformance`."""

    pytestmark: ClassVar[Sequence[pytest.MarkDecorator]] = [pytest.mark.anyio]

    loops: ClassVar[Sequence[str]] = _LOOPS
    takes_clock: ClassVar[bool] = True
    patience: ClassVar[float] = 10.0

    def open_store(self, place: Path, clock: Callable[[], float]) -> Store:
        """Return a store on what is kept at ``place``, which is new and empty at first.

        Asked twice for one place, it returns two stores on the same data, as two processes would have.
        It is called in other processes, too, where no fixture of pytest has run: take what it needs from
        ``place``, from the class and from the environment.

        Args:
            place: an empty directory of this check's own. A store that is not kept in files makes a name
                of it, for instance ``uuid.uuid5(uuid.NAMESPACE_URL, str(place)).hex``.
            clock: returns the store's time, in seconds since the epoch.
        """
        raise NotImplementedError(f"{type(self).__name__} must define open_store(self, place, clock)")

    def remove_store(self, place: Path) -> None:
        """Take away what is kept at ``place``; called after each check, when its stores are closed."""

    def make_newer(self, place: Path) -> bool:
        """Mark what is kept at ``place`` as written by a later version of the store, and return True.

        False, the default, says that the store's data has no version.
        """
        return False

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each check on both event loops, or say why not."""
        if "anyio_backend" in metafunc.fixturenames:
            loops = [pytest.param(loop, marks=self._why_not(loop)) for loop in _LOOPS]
            metafunc.parametrize("anyio_backend", loops, scope="class")

    def _why_not(self, loop: str) -> Sequence[pytest.MarkDecorator]:
        if loop not in self.loops:
            return [pytest.mark.skip(f"the store says loops={tuple(self.loops)}")]
        if find_spec(loop) is None:
            return [pytest.mark.skip(f"{loop} is not installed")]
        return []

    @pytest.fixture
    def clock(self) -> Clock:
        """Return the store's time."""
        return Clock() if self.takes_clock else ServerClock()

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Path]:
        """Return where the store of this check is kept."""
        place = tmp_path / "place"
        place.mkdir()
        yield place
        self.remove_store(place)

    @pytest.fixture
    async def store(self, anyio_backend: str, place: Path, clock: Clock) -> AsyncIterator[Store]:
        """Return the store under test."""
        store = self.open_store(place, clock)
        yield store
        await store.close()
