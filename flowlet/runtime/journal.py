"""The writing half of a run's journal: what is recorded waits here until it must be durable.

Law: records go to the store in order, by one task at a time, each append carrying the expected
version and the fence. A store that is down is asked again for a bounded time; a store that says that
somebody else wrote means that this process no longer owns the run. The last append is refused when a
signal has come in that the run has not seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable
from typing import Protocol

import anyio
import msgspec
from msgspec.structs import replace

from flowlet.core.engine import Suspended
from flowlet.errors import Conflict, FlowletError, LeaseLost, RunFinished, RunNotFound, StoreUnavailable
from flowlet.store import UNCHANGED, Store, Unchanged, Work, Write

_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


class Perform(Protocol):
    """User code that works on a store's connection inside of an append; returns the record of what it did.

    Attributes:
        value: what it has returned, encoded.
    """

    value: bytes

    def __call__(self, connection: object, /) -> bytes: ...

    async def awaited(self, connection: object, /) -> bytes:
        """Do the same for a store whose connection is used with ``await``."""
        ...


def outlives_process(store: Store) -> bool:
    """Tell whether somebody else may see what is in the store when this process has died: a server's memory, too."""
    return store.capabilities.durable or store.capabilities.multi_process


class SignalArrived(Exception):
    """The run cannot end: a signal has come in that it has not seen."""


class Journal(msgspec.Struct, eq=False):
    """Appends the records of one run under its lease.

    Attributes:
        version: the version that the store has acknowledged.
        pending: records that are not durable yet.
        busy: an append is under way.
        create: the first append makes the run, as this says but under its id; set while that has not happened.
        status: the head's status from the next append on, if it is to change.
        inbox: the number of the last signal that the run has seen.
        consumed: signals up to this number were given to the run, as its records say.
        marked: listings show that the run was sent an order; the next append takes that back.
        trouble: why the run cannot go on here, once that is so.
        unsure: an append was cut off by a cancellation; see `catch_up`.
    """

    _store: Store
    id: str
    version: int
    fence: int
    create: Write | None = None
    pending: list[bytes] = []
    busy: bool = False
    marked: bool = False
    unsure: bool = False
    inbox: int = 0
    consumed: int = 0
    status: str | Unchanged = UNCHANGED
    trouble: Exception | None = None
    _beside: tuple[Write, ...] = ()

    async def commit(self) -> None:
        """Make everything recorded so far durable.

        Raises:
            Suspended: it could not be done here; ``trouble`` says why.
        """
        await self._append(self._write())
        self.status = UNCHANGED

    async def commit_unseen(self) -> None:
        """Do the same, unless a signal has come in that the run has not seen.

        Raises:
            SignalArrived: one has; nothing was stored.
            Suspended: it could not be done here; ``trouble`` says why.
        """
        write = self._write()
        if self.create is None:
            write = replace(write, inbox=self.inbox)
        await self._append(write)
        self.status = UNCHANGED

    def creation(self) -> Write:
        """Return the write that creates the run, for somebody else's append."""
        return self._write()

    def created(self) -> None:
        """Take note that somebody else's append has created the run."""
        self.create = None
        self.version = 1
        self.pending.clear()

    def _write(self) -> Write:
        """Return the write of everything recorded so far."""
        write = self.create
        if write is None:
            write = Write(
                id=self.id,
                expect=self.version,
                fence=self.fence,
                records=tuple(self.pending),
                status=self.status,
                consumed=self.consumed,
            )
        else:
            status = write.status if self.status is UNCHANGED else self.status
            write = replace(write, id=self.id, records=tuple(self.pending), status=status)
        return write

    async def commit_with(self, perform: Perform) -> None:
        """Commit, in one transaction with what ``perform`` does on the store's connection, also its record.

        Raises:
            Exception: what ``perform`` has raised; nothing of it is stored then.
            Suspended: it could not be done here; ``trouble`` says why.
        """
        if self.pending:
            await self.commit()
        write = self._write()

        def work(connection: object) -> list[Write]:
            return [replace(write, records=(perform(connection),))]

        async def async_work(connection: object) -> list[Write]:
            return [replace(write, records=(await perform.awaited(connection),))]

        try:
            await self._append(write, async_work if self._store.capabilities.async_work else work)
        except FlowletError as error:
            if not _is_about(error, self.id):
                raise
            self._give_up(error)

    def end(self, status: str, record: bytes, parent: Write | None = None) -> Awaitable[None]:
        """Make everything durable with a last record and close the run, giving back its lease; await it at once.

        Args:
            parent: tells the run that waits for this one; left out if that has ended itself.

        Raises:
            SignalArrived: not yet; see what has come in first.
            Suspended: it could not be done here; ``trouble`` says why.
        """
        records = (*self.pending, record)
        if self.create is None:
            write = Write(
                id=self.id,
                expect=self.version,
                fence=self.fence,
                inbox=self.inbox,
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
        return self._append(write) if parent is None else self._append_both(write, parent)

    async def _append_both(self, write: Write, parent: Write) -> None:
        self._beside = (parent,)
        try:
            await self._append(write)
        finally:
            self._beside = ()

    async def park(self, status: str, record: bytes | None, wake: float | None = None) -> None:
        """Make everything durable and leave the run for an operator, giving back its lease.

        Args:
            record: says why; None when the journal does so already, or cannot be written to.
            wake: when somebody is to look at it even so.

        Raises:
            SignalArrived: not yet; see what has come in first.
            Suspended: it could not be done here; ``trouble`` says why.
        """
        if self.create is not None:
            await self.commit()
        if record is not None:
            self.pending.append(record)
        await self._append(
            Write(
                id=self.id,
                expect=self.version,
                fence=self.fence,
                inbox=self.inbox,
                records=tuple(self.pending),
                status=status,
                wake=wake,
                owner=None,
                consumed=self.consumed,
            )
        )

    async def catch_up(self) -> bool:
        """After an append that was cut off, drop from ``pending`` what turns out to be stored.

        Returns:
            Whether that is all there is; what a transactional step has stored never was in ``pending``.
        """
        if self.unsure:
            # A store does what it was handed in order: when this is done, the one that was cut off is as well.
            with contextlib.suppress(RunNotFound, LeaseLost):
                await self._store.append((Write(id=self.id, fence=self.fence),))
            self.unsure = False
        stored = await self._store.load(self.id, after=self.version)
        if stored is None or stored.head.fence != self.fence:
            return True
        count = len(stored.records)
        is_ours = list(stored.records) == self.pending[:count]
        if is_ours:
            self.create = None
            del self.pending[:count]
        self.version += count
        return is_ours

    async def _append(self, write: Write, work: Work | None = None) -> None:
        if self.marked and work is None:
            write = replace(write, state="")
        self.busy = True
        try:
            if work is None:
                await self._store.append((write, *self._beside))
            else:
                await self._store.append((), work=work)
        except StoreUnavailable:
            await self._append_again(write, work)
        except FlowletError as error:
            if work is not None:
                raise
            if not self._is_about_beside(error):
                self._refused(write, error)
            self._beside = ()  # who was to be told has ended
            await self._append(write)
            return
        except Exception:
            raise
        except BaseException:
            self.unsure = True  # the store may still do it
            raise
        finally:
            self.busy = False
        count = len(write.records) if work is None else 1
        self.create = None
        if work is None:
            self.marked = False
        self.version += count
        del self.pending[: count if work is None else 0]

    async def _append_again(self, write: Write, work: Work | None) -> None:
        """Repeat an append whose outcome is unknown until it is stored, or is seen to have been."""
        for pause in _PAUSES:
            await anyio.sleep(pause)
            try:
                if work is None:
                    await self._store.append((write, *self._beside))
                elif not await self._has_grown(write):  # under our fence, nobody else's record can be there
                    await self._store.append((), work=work)
            except StoreUnavailable as error:
                last: FlowletError = error
            except (Conflict, LeaseLost) as error:
                if await self._is_stored(write):
                    return
                self._refused(write, error)
            except FlowletError as error:
                if work is not None and not _is_about(error, self.id):
                    raise
                last = error
                if not self._is_about_beside(error):
                    self._give_up(error)
                self._beside = ()
            else:
                return
        self._give_up(last)  # pyright: ignore[reportPossiblyUnboundVariable] - there are pauses

    def _is_about_beside(self, error: FlowletError) -> bool:
        """Tell whether what was refused is not this run's write, but that which tells another run of it."""
        return isinstance(error, (RunFinished, RunNotFound)) and any(error.id == write.id for write in self._beside)

    def _refused(self, write: Write, error: FlowletError) -> None:
        """Find out what a refusal means: that a signal has come in, or that the run is not ours any more."""
        if isinstance(error, Conflict) and write.inbox is not None and error.actual == error.expected:
            raise SignalArrived from error
        self._give_up(error)

    async def _is_stored(self, write: Write) -> bool:
        """Tell whether the records that stand where ours would are ours: the reply was lost, not the write."""
        assert write.expect is not None
        stored = await self._store.load(self.id, after=write.expect, limit=len(write.records))
        return stored is not None and len(write.records) > 0 and tuple(stored.records) == tuple(write.records)

    async def _has_grown(self, write: Write) -> bool:
        """Tell whether a record stands where ours would, under our lease."""
        assert write.expect is not None
        stored = await self._store.load(self.id, after=write.expect, limit=1)
        return stored is not None and stored.head.fence == self.fence and bool(stored.records)

    def _give_up(self, error: FlowletError) -> None:
        self.trouble = error
        raise Suspended from error


def _is_about(error: FlowletError, id: str) -> bool:
    """Tell whether it is the store's refusal of a write to ``id``, and not something that user code has raised."""
    return getattr(error, "id", "") == id and isinstance(error, (Conflict, LeaseLost))
