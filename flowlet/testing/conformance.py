"""All checks of a store, in one class.

Law: it joins the groups of checks and adds none.
"""

from __future__ import annotations

from flowlet.testing.endurance import EnduranceChecks
from flowlet.testing.kills import KillChecks
from flowlet.testing.leases import LeaseChecks
from flowlet.testing.listing import ListingChecks
from flowlet.testing.opening import OpeningChecks
from flowlet.testing.processes import ProcessChecks
from flowlet.testing.races import RaceChecks
from flowlet.testing.records import RecordChecks
from flowlet.testing.signals import SignalChecks
from flowlet.testing.values import ValueChecks
from flowlet.testing.watching import WatchChecks
from flowlet.testing.work import WorkChecks

__all__ = ["StoreConformance"]


class StoreConformance(
    RecordChecks,
    RaceChecks,
    ValueChecks,
    SignalChecks,
    LeaseChecks,
    ListingChecks,
    WatchChecks,
    WorkChecks,
    OpeningChecks,
    EnduranceChecks,
    KillChecks,
    ProcessChecks,
):
    """Everything that `flowlet.store` promises, asked of one store.

    Define `open_store` in a subclass whose name begins with ``Test`` and run pytest on its file. The
    checks run on asyncio and on trio, with pytest's plugin of anyio (which anyio brings). What the
    store's `flowlet.store.Capabilities` deny is skipped with the name of the flag, but for one check
    that asks for it and wants a clear error.

    Attributes:
        loops: the event loops that the store works on; ``("asyncio",)`` skips those on trio.
        takes_clock: whether `open_store` gives its ``clock`` to the store. A store with a time of its own
            (a server's) says False, and the checks of leases wait for some seconds instead.
        patience: seconds that the checks wait for something that should happen soon.
        kills: at most so many processes are killed, at points spread evenly over an append's writes.

    Example:
        >>> from flowlet.stores.memory import MemoryStore
        >>> class TestMemoryStore(StoreConformance):
        ...     def open_store(self, place, clock):
        ...         return MemoryStore(clock=clock)
    """
