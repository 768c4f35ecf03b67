"""What a writer can be asked to do: store writes, do one other thing, or only open the file.

Law: a request is attempted inside somebody else's transaction. It keeps its own refusal (`Ticket.error`)
and lets pass what concerns everybody in the transaction: an error of SQLite.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from flowlet.errors import FlowletError
from flowlet.store import Work, Write
from flowlet.stores.port import Ticket
from flowlet.stores.refusal import size_of
from flowlet.stores.sqlite_batch import Batch, WorkFailed
from flowlet.stores.sqlite_prune import prune

if TYPE_CHECKING:
    from flowlet.stores.sqlite_turn import Turn

__all__ = ["Append", "Job", "Open", "Prune", "Request", "Stop"]


class Request(Ticket):
    """Something to be done in a transaction.

    Attributes:
        turn: where it came from and its outcome goes to.
        needs_file: whether the file must be open for it.
        writes_data: whether it needs a transaction.
        is_brief: whether it may be done in an event loop's own thread.
        size: bytes that it writes, about.
    """

    __slots__ = ("turn",)

    turn: Turn
    needs_file: bool = True
    writes_data: bool = True
    is_brief: bool = True
    size: int = 0

    def attempt(self, batch: Batch) -> None:
        """Do it, as far as it can be done before the commit. May be called again after a rollback."""


class Append(Request):
    """An append; see `flowlet.store.Store.append`."""

    __slots__ = ("_work", "_writes", "is_brief", "size")

    is_brief: bool
    size: int
    error: BaseException | None

    def __init__(self, writes: Sequence[Write], work: Work | None) -> None:
        super().__init__()
        self._writes, self._work = writes, work
        self.is_brief = work is None  # nobody knows how long user code takes, or where it may run
        self.size = size_of(writes[0]) if len(writes) == 1 else sum(map(size_of, writes))

    def attempt(self, batch: Batch) -> None:
        self.error = None
        try:
            if self._work is None:
                batch.add(self._writes)
            else:
                batch.add_work(self._writes, self._work)
        except FlowletError as error:
            self.error = error
        except WorkFailed as failure:
            self.error = failure.error


class Job(Request):
    """A function of the connection and the store's time, with a transaction of its own in the batch.

    Args:
        function: what to do; its value is the request's.
        notable: whether those who watch must hear of it.
        is_brief: see `Request`.
    """

    __slots__ = ("_function", "_notable", "is_brief")

    is_brief: bool
    value: Any
    error: BaseException | None

    def __init__(
        self, function: Callable[[sqlite3.Connection, float], Any], *, notable: bool = False, is_brief: bool = True
    ) -> None:
        super().__init__()
        self._function, self._notable = function, notable
        self.is_brief = is_brief

    def attempt(self, batch: Batch) -> None:
        self.error = None
        try:
            with batch.undoable():
                self.value = self._function(batch.connection, batch.now)
                batch.forget()  # it has changed heads behind the batch's back
                batch.notable |= self._notable
        except FlowletError as error:
            self.error = error


class Prune(Request):
    """One transaction of a prune; its value is a `Pruned`."""

    __slots__ = ("_closed_before", "_limit", "size")

    is_brief: bool = False
    size: int
    value: Any
    error: BaseException | None

    def __init__(self, closed_before: float, limit: int) -> None:
        super().__init__()
        self._closed_before, self._limit = closed_before, limit
        self.size = 0

    def attempt(self, batch: Batch) -> None:
        self.error = None
        with batch.undoable():
            self.value = pruned = prune(batch.connection, self._closed_before, self._limit)
            batch.forget()
            # What is deleted may be written to the log, too: SQLite can be told to leave no trace of it.
            self.size = pruned.size


class Open(Request):
    """Nothing but an open connection."""

    __slots__ = ()

    writes_data = False


class Stop(Open):
    """The last request: what was handed over before is done, then the writer ends."""

    __slots__ = ()

    needs_file = False
    is_brief = False
