"""Whether those who own something in a store live, asked by somebody who is no worker of it.

Law: the store and the locks of this host decide, never a guess: an owner is dead when it is known here to have died,
or when the store lets somebody else claim what it has. What was found dead is released, as a worker does it.
"""

from __future__ import annotations

import anyio

from flowlet.runtime.presence import Presence, new_worker_id
from flowlet.store import Head, Store

_LEASE = 5.0
"""Seconds for which whoever asks counts as a worker, to be allowed to claim."""


class Owners:
    """The owners of what a store keeps.

    Args:
        store: in which they own it. In one without leases nobody who owns something lives.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._me = new_worker_id("copy")
        self._presence = Presence(self._me)
        self._lives: dict[str, bool] = {}

    async def is_owned(self, head: Head) -> bool:
        """Tell whether a living worker owns this, asking about each worker once."""
        owner = head.owner
        if owner is None or head.closed is not None or not self._store.capabilities.leases:
            return False
        if owner not in self._lives:
            self._lives[owner] = not self._presence.is_dead(owner) and await self._is_taken(head.id)
        return self._lives[owner]

    def may_own(self, head: Head) -> bool:
        """Tell whether this is owned by anybody who was not found to be dead."""
        return head.owner is not None and head.closed is None and self._lives.get(head.owner, True)

    async def _is_taken(self, id: str) -> bool:
        await self._store.heartbeat(self._me, _LEASE)
        return not (await self._store.claim(self._me, ids=(id,))).heads

    async def release_dead(self) -> None:
        """Give back what dead workers held, and what had to be claimed to find that out."""
        if self._lives:
            with anyio.CancelScope(shield=True):
                for worker in (self._me, *(owner for owner, lives in self._lives.items() if not lives)):
                    await self._store.release(worker)
