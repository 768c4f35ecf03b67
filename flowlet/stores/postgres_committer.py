"""The one that stores appends: a task with a connection of its own, which stores in groups.

Law: an append that was accepted is done, whatever becomes of its caller, and appends to one id are done in the
order in which they were accepted. An outcome is on its append before anybody is told. Whatever is gathered while
a batch is under way is the next batch; there is no timer. An append that is refused, or that PostgreSQL cannot
store, leaves no trace and disturbs no other.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence

from flowlet.errors import FlowletError, StoreError, StoreUnavailable
from flowlet.store import Write
from flowlet.stores.bell import Bell
from flowlet.stores.postgres_batch import APPEND, ONE, arguments, one, refusals
from flowlet.stores.postgres_catalog import Catalog
from flowlet.stores.postgres_driver import Connection
from flowlet.stores.postgres_errors import DRIVER_ERRORS, is_cut, translated
from flowlet.stores.postgres_link import Link, again, farewell, outlast, terminate
from flowlet.stores.postgres_schema import in_schema
from flowlet.stores.refusal import size_of

__all__ = ["Append", "Committer"]

_BOUND = 1024
"""Appends that are accepted and not done; whoever brings one more waits before it is accepted."""

_MOST_AT_ONCE, _LARGEST_AT_ONCE = 256, 8 << 20
"""Writes, and bytes of them, in one statement; a single append may have more."""


_OUTLASTED = 5.0
"""Seconds for which a caller that was cancelled waits for the outcome; usually it is there in some milliseconds."""


class Append:
    """Writes to be stored together.

    Attributes:
        is_judged: the outcome is known: stored, or ``error``.
        waiter: tells when the outcome is there.
    """

    __slots__ = ("error", "is_judged", "size", "waiter", "writes")

    waiter: asyncio.Future[None]
    writes: Sequence[Write]

    def __init__(self, writes: Sequence[Write], waiter: asyncio.Future[None]) -> None:
        self.writes, self.waiter = writes, waiter
        self.is_judged: bool = False
        self.error: Exception | None = None
        self.size: int = size_of(writes[0]) if len(writes) == 1 else sum(map(size_of, writes))

    def judge(self, error: Exception | None) -> None:
        """Note the outcome."""
        self.is_judged, self.error = True, error


class Committer:
    """Stores appends, on one event loop.

    Args:
        link: makes its connection.
        catalog: knows the numbers of definitions.
        tell: called after something was stored that those who watch must hear of.
        bell: the store's, which knows who wants to hear of commits.

    Attributes:
        statements: how many were sent that stored appends, for tests and benchmarks.
    """

    def __init__(self, link: Link, catalog: Catalog, tell: Callable[[], None], bell: Bell) -> None:
        self.statements: int = 0
        self._link, self._catalog, self._tell, self._bell = link, catalog, tell, bell
        self._append, self._one = in_schema(APPEND, link.address.schema), in_schema(ONE, link.address.schema)
        self._loop = asyncio.get_running_loop()
        self._queue: list[Append] = []
        self._accepted = 0
        self._work = asyncio.Event()
        self._room: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._is_closing = False

    async def result(self, writes: Sequence[Write]) -> None:
        """Have an append stored, or raise its error; a cancellation is raised when the outcome is there."""
        while self._accepted >= _BOUND:
            if self._room is None:
                self._room = asyncio.Event()
            await self._room.wait()
        append = Append(writes, self._loop.create_future())
        self._accepted += 1
        self._queue.append(append)
        self._work.set()
        if self._task is None:
            self._task = self._loop.create_task(self._serve())
        try:
            await append.waiter
        except asyncio.CancelledError:
            if not append.is_judged:
                append.waiter = self._loop.create_future()
                await outlast(append.waiter, _OUTLASTED)
            raise
        error, append.error = append.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it holds this frame; let the two not keep each other alive

    async def close(self) -> None:
        """Finish what was accepted, then close the connection."""
        self._is_closing = True
        self._work.set()
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._connection is not None:
            await farewell(self._connection)

    def drop(self) -> None:
        """Let go of the connection, when the event loop it belongs to has ended."""
        if self._connection is not None:
            terminate(self._connection)

    # The task -----------------------------------------------------------------------------------
    async def _serve(self) -> None:
        try:
            await self._store_batches()
        finally:  # somebody has cancelled this task: that its loop ends is the only good reason
            self._task = None
            left, self._queue = self._queue, []
            self._finish(left)

    async def _store_batches(self) -> None:
        while True:
            if not self._queue:
                if self._is_closing:
                    return
                self._work.clear()
                await self._work.wait()
            batch = self._next_batch()
            try:
                await self._store(batch)
            finally:
                self._finish(batch)
            if self._bell.on_commit is not None:
                self._bell.on_commit(len(batch))
            # Those who were just woken have their turn: what they bring is in the next batch, not in the one after.
            await asyncio.sleep(0)

    def _next_batch(self) -> list[Append]:
        """Take what can be stored together from the queue: no id comes twice, the order within an id is kept."""
        batch: list[Append] = []
        left: list[Append] = []
        ids: set[str] = set()
        size = count = 0
        for append in self._queue:
            mine = [write.id for write in append.writes]
            full = batch and (count + len(mine) > _MOST_AT_ONCE or size + append.size > _LARGEST_AT_ONCE)
            if full or not ids.isdisjoint(mine):
                left.append(append)
            else:
                batch.append(append)
                count += len(mine)
                size += append.size
            ids.update(mine)
        self._queue = left
        return batch

    def _finish(self, batch: Sequence[Append]) -> None:
        self._accepted -= len(batch)
        if self._room is not None:
            self._room.set()
            self._room = None
        for append in batch:
            if not append.is_judged:
                text = f"{self._link.address.shown}: the event loop ended while an append was under way"
                append.judge(StoreUnavailable(f"{text}; whether it was stored is not known"))
            if not append.waiter.done():
                append.waiter.set_result(None)

    async def _store(self, batch: list[Append]) -> None:
        """Store a batch, or note on each append why not. Raises nothing but a cancellation."""
        try:
            batch = await self._known(batch)
            if batch:
                await self._send(batch)
        except DRIVER_ERRORS as error:
            await self._failed(batch, error)
        except Exception as error:  # the way to the server, or a mistake here: it must not be the last batch
            for append in batch:
                append.judge(_own(error))

    async def _known(self, batch: list[Append]) -> list[Append]:
        """Learn the numbers of what is to be created; return the appends for which that worked."""
        known: list[Append] = []
        for append in batch:
            try:
                await self._catalog.learn(append.writes)
                known.append(append)
            except FlowletError as error:
                append.judge(error)
        return known

    async def _send(self, batch: Sequence[Append]) -> None:
        connection = await self._connected()
        self.statements += 1
        usual = one(batch[0].writes) if len(batch) == 1 else None
        if usual is not None and await again(lambda: connection.fetchval(self._one, *usual)) is not None:
            batch[0].judge(None)
            return
        appends = [append.writes for append in batch]
        values = arguments(appends, self._catalog.numbers)
        row = await again(lambda: connection.fetchrow(self._append, *values))
        refused = refusals(appends, row)
        for place, append in enumerate(batch):
            append.judge(refused.get(place))
        if row["notable"]:
            self._tell()

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            await self._link.open()
            self._connection = await self._link.connect()
        return self._connection

    async def _failed(self, batch: list[Append], error: BaseException) -> None:
        """Tell everybody; unless it may be the fault of one, then find that one and store the others."""
        if is_cut(error) or len(batch) == 1:
            for append in batch:
                own = translated(error, self._link.address)
                own.__cause__ = error
                append.judge(own)
            if is_cut(error) and self._connection is not None:
                self._connection.terminate()
                self._connection = None
        else:
            middle = len(batch) // 2
            await self._store(batch[:middle])
            await self._store(batch[middle:])


def _own(error: Exception) -> Exception:
    """Return an error of the same kind for each caller: a traceback belongs to one."""
    own = copy.copy(error) if isinstance(error, FlowletError) else StoreError(f"flowlet made a mistake: {error!r}")
    own.__cause__ = error.__cause__ if isinstance(error, FlowletError) else error
    return own
