"""The writing half of a run's journal: what is recorded waits here until it must be durable.

Law: records go to the store in order, by one task at a time, each append carrying the expected
version and the fence. A store that is down is asked again for a bounded time; a store that says that
somebody else wrote means that this process no longer owns the run.
"""

from __future__ import annotations

import anyio
from msgspec.structs import replace

from flowlet.core.engine import Suspended
from flowlet.errors import Conflict, FlowletError, LeaseLost, StoreUnavailable
from flowlet.store import UNCHANGED, Store, Unchanged, Write

_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


class Journal:
    """Appends the records of one run under its lease.

    Attributes:
        version: the version that the store has acknowledged.
        pending: records that are not durable yet.
        busy: an append is under way.
        create: the first append makes the run; set while that has not happened.
        durable: the store outlives the process. What is in one that does not needs to be up to date only
            when somebody else gets to run, which is when the body suspends.
        status: the head's status from the next append on, if it is to change.
        trouble: why the run cannot go on here, once that is so.
    """

    __slots__ = ("_store", "busy", "create", "durable", "fence", "id", "pending", "status", "trouble", "version")

    def __init__(self, store: Store, id: str, version: int, fence: int, create: Write | None = None) -> None:
        self._store = store
        self.durable = store.capabilities.durable
        self.id = id
        self.version = version
        self.fence = fence
        self.pending: list[bytes] = []
        self.busy = False
        self.create = create
        self.status: str | Unchanged = UNCHANGED
        self.trouble: Exception | None = None

    async def commit(self) -> None:
        """Make everything recorded so far durable.

        Raises:
            Suspended: it could not be done here; ``trouble`` says why.
        """
        write = self.create
        if write is None:
            write = Write(
                id=self.id, expect=self.version, fence=self.fence, records=tuple(self.pending), status=self.status
            )
        else:
            status = write.status if self.status is UNCHANGED else self.status
            write = replace(write, records=tuple(self.pending), status=status)
        await self._append(write)
        self.status = UNCHANGED

    async def end(self, status: str, record: bytes) -> None:
        """Make everything durable with a last record and close the run, giving back its lease."""
        records = (*self.pending, record)
        if self.create is None:
            write = Write(
                id=self.id,
                expect=self.version,
                fence=self.fence,
                records=records,
                status=status,
                wake=None,
                close=True,
                owner=None,
            )
        else:  # it has come to its end before anybody could have seen it
            write = Write(
                id=self.id,
                expect=0,
                create=self.create.create,
                records=records,
                status=status,
                wake=None,
                close=True,
            )
        await self._append(write)

    async def park(self) -> None:
        """Make everything durable and leave the run for an operator, giving back its lease."""
        if self.create is not None:
            await self.commit()
        await self._append(
            Write(
                id=self.id,
                expect=self.version,
                fence=self.fence,
                records=tuple(self.pending),
                status="parked",
                wake=None,
                owner=None,
            )
        )

    async def catch_up(self) -> None:
        """After an append that was cut off, drop from ``pending`` what turns out to be stored."""
        stored = await self._store.load(self.id, after=self.version)
        if stored is None or stored.head.fence != self.fence:
            return
        count = len(stored.records)
        if list(stored.records) == self.pending[:count]:
            self.create = None
            self.version += count
            del self.pending[:count]

    async def _append(self, write: Write) -> None:
        count = len(write.records)
        self.busy = True
        try:
            await self._store.append((write,))
        except StoreUnavailable:
            await self._append_again(write)
        except FlowletError as error:
            self._give_up(error)
        finally:
            self.busy = False
        self.create = None
        self.version += count
        del self.pending[:count]

    async def _append_again(self, write: Write) -> None:
        """Repeat an append whose outcome is unknown until it is stored, or is seen to have been."""
        for pause in _PAUSES:
            await anyio.sleep(pause)
            try:
                await self._store.append((write,))
            except StoreUnavailable as error:
                last: FlowletError = error
            except (Conflict, LeaseLost) as error:
                if await self._is_stored(write):
                    return
                self._give_up(error)
            except FlowletError as error:
                self._give_up(error)
            else:
                return
        self._give_up(last)

    async def _is_stored(self, write: Write) -> bool:
        """Tell whether the records that stand where ours would are ours: the reply was lost, not the write."""
        assert write.expect is not None
        stored = await self._store.load(self.id, after=write.expect, limit=len(write.records))
        return stored is not None and len(write.records) > 0 and tuple(stored.records) == tuple(write.records)

    def _give_up(self, error: FlowletError) -> None:
        self.trouble = error
        raise Suspended from error
