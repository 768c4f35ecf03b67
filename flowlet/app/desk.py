"""A `Flowlet`'s approvals and schedules for a process that executes nothing, such as the command line.

Law: it is not entered, opens no worker and claims nothing; what it decides or orders is in the store when the call
returns. The application's definitions, and what it says of people's roles, are asked as in the application itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowlet.app.approval_side import ApprovalSide
from flowlet.app.schedule_side import ScheduleSide
from flowlet.runtime.reading import Reader

if TYPE_CHECKING:
    from flowlet.app.flowlet import Flowlet
    from flowlet.registry import Registry
    from flowlet.store import Store


class Desk(ApprovalSide, ScheduleSide):
    """What people can do with the runs of a store.

    Args:
        store: where they are.
        flow: the application; without it nobody can decide, since nobody knows the rules.
    """

    def __init__(self, store: Store, flow: Flowlet | None = None) -> None:
        from flowlet.registry import Registry

        # Not that of `Life`: this is one more way to look at an application, and not one more application.
        self.store: Store = store
        self._registry: Registry = Registry() if flow is None else flow.registry
        self._authorize = None if flow is None else flow._authorize
        self._reader = Reader(store, self._registry.find_run)

    async def open(self) -> None:
        """Learn the store's time."""
        await self._reader.set_clock()

    @property
    def _open_runs(self) -> Any:
        return self._reader

    @property
    def _open_store(self) -> Store:
        return self.store
