"""Help for tests: `stub`, a Flowlet whose time is moved by hand, and `StoreConformance`, which proves a store.

To prove a store, subclass `StoreConformance`, return your store, and run pytest.

Law: nothing is imported before it is asked for. `stub` and `Clock` need no pytest; the checks of stores do, which
flowlet does not install. They ask for what `flowlet.store` promises and for nothing else, so that every store passes
them unmodified; what a store says that it cannot do (`flowlet.store.Capabilities`) is skipped, and the reason of the
skip names the flag.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowlet.testing.conformance import StoreConformance
    from flowlet.testing.hand import Clock
    from flowlet.testing.stubs import Stub, StubClock, stub

__all__ = ["Clock", "StoreConformance", "Stub", "StubClock", "stub"]

_CHECKS = (
    "calls",
    "endurance",
    "kills",
    "leases",
    "listing",
    "opening",
    "processes",
    "races",
    "records",
    "signals",
    "values",
    "watching",
    "work",
)


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name == "StoreConformance":
        return _conformance()
    if name == "Clock":
        from flowlet.testing.hand import Clock

        return Clock
    if name in ("Stub", "StubClock", "stub"):
        from flowlet.testing import stubs as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _conformance() -> Any:
    import pytest

    # Before they are imported: their assertions then say what was found, as those of a test file do.
    names = [f"{__name__}.{module}" for module in _CHECKS]
    pytest.register_assert_rewrite(*(name for name in names if name not in sys.modules))
    from flowlet.testing.conformance import StoreConformance

    return StoreConformance
