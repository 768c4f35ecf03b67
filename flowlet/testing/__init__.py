"""The proof that a store keeps its promises: subclass `StoreConformance`, return your store, run pytest.

Law: the checks ask for what `flowlet.store` promises and for nothing else, so that every store passes
them unmodified; what a store says that it cannot do (`flowlet.store.Capabilities`) is skipped, and the
reason of the skip names the flag. This package needs pytest, which flowlet does not install; nothing
else of flowlet imports it, and it imports nothing of flowlet but `flowlet.store` and `flowlet.errors`.
"""

from __future__ import annotations

import pytest

# Before they are imported: their assertions then say what was found, as those of a test file do.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in (
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
    )
)

from flowlet.testing.clocks import Clock  # noqa: E402
from flowlet.testing.conformance import StoreConformance  # noqa: E402

__all__ = ["Clock", "StoreConformance"]
