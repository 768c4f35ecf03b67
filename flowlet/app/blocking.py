"""A `Flowlet` for threads that have no event loop: it is entered on a loop of its own, in a thread of its own.

Law: nothing is decided here: each call is one call on that loop, and gives its result or raises its very error. Who
waits holds a thread and nothing else; who stops waiting has stopped the call, and not the run.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, TypeVarTuple, Unpack, overload

import anyio
from anyio.from_thread import BlockingPortal

from flowlet.app.arguments import Deadline, SagaClass
from flowlet.core.retry import Seconds
from flowlet.errors import FlowletError
from flowlet.runtime.tasks import is_loop_running

if TYPE_CHECKING:
    from flowlet.app.flowlet import Flowlet
    from flowlet.approval import Approval, ApprovalOutcome
    from flowlet.core.bulk import BulkReport
    from flowlet.core.machine import Transition
    from flowlet.runtime.handle import Handle, Record, Status
    from flowlet.runtime.listing import RunSummary
    from flowlet.runtime.report import RunReport

M = TypeVar("M")
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def _named(requester: str | None) -> dict[str, str]:
    return {} if requester is None else {"requester": requester}


class _Exit:
    """A call wants the program to end."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class BlockingHandle(Generic[R_co]):
    """One run, asked from threads: `flowlet.runtime.handle.Handle` without ``await``.

    Attributes:
        id: of the run.

    Example:
        >>> from flowlet import Flowlet, Run, provided
        >>> flow = Flowlet()
        >>> @flow.saga
        ... async def order(run: Run = provided) -> str:
        ...     await run.publish("said", "waiting")
        ...     return "paid by " + await run.receive("payment", type=str)
        >>> with flow.blocking() as b:
        ...     handle = b.start(order, id="o-1")
        ...     handle.send("payment", "ann", message_id="1")
        ...     print(handle.result(timeout=30), handle.status(), handle.read("said", type=str))
        ...     print([record.kind for record in handle.history()][-1], handle.report().status)
        paid by ann completed waiting
        completed completed
    """

    def __init__(self, blocking: Blocking, handle: Handle[R_co]) -> None:
        self._blocking = blocking
        self._handle = handle
        self.id: str = handle.id

    def result(self, timeout: Seconds | None = None, *, raise_on_reject: bool = False) -> R_co:
        """Wait for the run's end and return its result.

        Args:
            timeout: seconds to wait, or a timedelta; the run goes on afterwards.

        Raises:
            TimeoutError: it has not ended by then.
            Exception: what the run failed with.
        """
        ask = partial(self._handle.result, raise_on_reject=raise_on_reject)
        if isinstance(timeout, timedelta):
            timeout = timeout.total_seconds()
        return self._blocking._wait(ask, timeout, f"run {self.id!r} has not ended")

    def status(self) -> Status:
        """See `Handle.status`."""
        return self._blocking.call(self._handle.status)

    def report(self) -> RunReport:
        """See `Handle.report`."""
        return self._blocking.call(self._handle.report)

    def cancel(self) -> None:
        """See `Handle.cancel`."""
        self._blocking.call(self._handle.cancel)

    def resume(self) -> None:
        """See `Handle.resume`."""
        self._blocking.call(self._handle.resume)

    def skip(self, step: str, result: object = None) -> None:
        """See `Handle.skip`."""
        self._blocking.call(self._handle.skip, step, result)

    def compensate(self) -> None:
        """See `Handle.compensate`."""
        self._blocking.call(self._handle.compensate)

    def fork(self, *, from_step: str, id: str | None = None) -> BlockingHandle[R_co]:
        """See `Handle.fork`."""
        forked = self._blocking.call(self._handle.fork, from_step=from_step, id=id)
        return BlockingHandle(self._blocking, forked)

    def send(self, topic: str, payload: object, /, *, message_id: str | None = None) -> None:
        """See `Handle.send`."""
        self._blocking.call(self._handle.send, topic, payload, message_id=message_id)

    @overload
    def read(self, key: str, /, *, type: type[T], default: T | None = None) -> T | None: ...
    @overload
    def read(self, key: str, /, *, default: Any = None) -> Any: ...
    def read(self, key: str, /, *, type: Any = Any, default: Any = None) -> Any:
        """See `Handle.read`."""
        return self._blocking.call(self._handle.read, key, type=type, default=default)

    def history(self) -> Iterator[Record]:
        """See `Handle.history`."""
        return self._blocking.iterate(self._handle.history())

    def events(self) -> Iterator[Record]:
        """See `Handle.events`; it waits for each."""
        return self._blocking.iterate(self._handle.events())

    def __repr__(self) -> str:
        return f"<BlockingHandle {self.id!r}>"


class Blocking:
    """What `Flowlet.blocking` returns. Any number of threads may use it.

    Example:
        >>> from flowlet import Flowlet, in_state, state, transition
        >>> flow = Flowlet()
        >>> @flow.machine
        ... class Door:
        ...     @state(initial=True)
        ...     class Shut: ...
        ...     @state(final=True)
        ...     class Open: ...
        ...     @transition(Shut, Open)
        ...     async def unlock(self, by: str) -> str:
        ...         return f"unlocked by {by}"
        >>> @flow.saga
        ... async def double(n: int) -> int:
        ...     return 2 * n
        >>> with flow.blocking() as b:  # or b.open() and b.close()
        ...     print(b.execute(double, 21, id="d-1"), b.handle("d-1", double).status(), b.start(double, 4).result())
        ...     print(len(list(b.runs())), b.bulk(double, [1, 2, 3]).succeeded)
        ...     door = b.create(Door(), id="front")
        ...     print(b.call(door.unlock, by="ann"), in_state(b.load(Door, "front"), Door.Open))
        ...     print(list(b.machines(Door)), [t.event for t in b.history("front")])
        ...     print([entity.id for entity in b.iterate(flow.runs("double", limit=1))])
        42 completed 8
        2 3
        unlocked by ann True
        ['front'] ['unlock']
        ['d-1']
    """

    def __init__(self, flow: Flowlet, backend: str) -> None:
        self._flow = flow
        self._backend = backend
        self._started: Future[BlockingPortal] | None = None
        self._thread: threading.Thread | None = None
        self._process = 0
        self._is_unwanted = False

    # -------------------------------------------------------------- opening and closing
    def open(self) -> Self:
        """Enter the Flowlet, as ``with`` does; the end of the process closes it, if nobody has.

        Raises:
            FlowletError: it is open, or an event loop runs in this thread, or the Flowlet is live on another loop.
        """
        self._refuse_in_loop("open()")
        if self._thread is not None:
            raise FlowletError("this is open already: one for all threads is enough")
        self._process, self._is_unwanted, self._started = os.getpid(), False, Future()
        # Not an executor's thread: the interpreter waits for those at its end, before it calls what closes this.
        self._thread = threading.Thread(target=self._main, args=(self._started,), name="flowlet", daemon=True)
        self._thread.start()
        try:
            self._started.result()
        except BaseException:
            self._is_unwanted = True
            self._thread = self._started = None
            raise
        atexit.register(self._close_at_exit)
        return self

    def close(self) -> None:
        """Leave the Flowlet, as the end of ``with`` does; who still waits gets a `FlowletError`.

        Raises:
            FlowletError: it is called on the very loop that it ends, and would wait for itself.
        """
        if self._thread is threading.current_thread():
            raise FlowletError("close() was called on the loop that it ends: call it from another thread")
        thread, self._thread = self._thread, None
        started, self._started = self._started, None
        if thread is None or started is None:
            return
        atexit.unregister(self._close_at_exit)
        if self._process == os.getpid():  # a fork has no such thread
            portal = started.result()
            with suppress(RuntimeError):  # something like SystemExit in a step has ended the loop before
                portal.start_task_soon(portal.stop)
            thread.join()

    def _close_at_exit(self) -> None:
        with suppress(Exception):
            self.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /) -> None:
        self.close()

    def _main(self, started: Future[BlockingPortal]) -> None:
        try:
            anyio.run(self._serve, started, backend=self._backend)
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _serve(self, started: Future[BlockingPortal]) -> None:
        async with BlockingPortal() as portal:
            try:
                await self._flow.__aenter__()
            except Exception as error:
                started.set_exception(error)
                return
            try:
                started.set_result(portal)
                if not self._is_unwanted:
                    await portal.sleep_until_stopped()
            finally:
                await self._flow.__aexit__(None, None, None)
                await portal.stop(cancel_remaining=True)

    # -------------------------------------------------------------- calling
    def call(self, function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call an async function on the Flowlet's loop, and wait for what it returns.

        Raises:
            FlowletError: this is closed, or an event loop runs in this thread, which waiting would block.
            Exception: what the function raises.
        """
        return self._wait(partial(function, *args, **kwargs), None, "")

    def iterate(self, items: AsyncIterable[T], /) -> Iterator[T]:
        """Yield what an async iterable has, as it comes: ``for run in b.iterate(flow.runs()): ...``."""
        iterator = items.__aiter__()

        async def take() -> tuple[T, ...]:
            async for item in iterator:
                return (item,)
            return ()

        try:
            while found := self.call(take):
                yield found[0]
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None and self._thread is not None:
                self.call(close)

    def _wait(self, ask: Callable[[], Awaitable[R]], timeout: float | None, what: str) -> R:
        self._refuse_in_loop("this")
        started = self._started
        if started is None or not started.done():
            raise FlowletError("this is not open: use it inside `with flow.blocking() as b:`")
        if self._process != os.getpid():
            raise FlowletError(
                "this was opened before a fork, and its thread is in the parent: open one in each process"
            )

        async def main() -> R | _Exit:
            try:
                return await ask()
            except (KeyboardInterrupt, SystemExit) as error:
                return _Exit(error)  # meant for who waits, and not for the loop that others use, too

        try:
            future = started.result().start_task_soon(main)
        except RuntimeError as error:
            raise FlowletError("this is closed: use it inside `with flow.blocking() as b:`") from error
        try:
            outcome = future.result(timeout)
        except CancelledError as error:
            raise FlowletError("this was closed meanwhile; a run goes on when its Flowlet is entered again") from error
        except TimeoutError:
            if future.done():  # it is the function's own
                raise
            future.cancel()
            raise TimeoutError(f"{what} within {timeout} s; it goes on") from None
        except BaseException:
            future.cancel()  # an interrupt: nobody waits any more
            raise
        if isinstance(outcome, _Exit):
            raise outcome.error
        return outcome

    def _refuse_in_loop(self, what: str) -> None:
        if is_loop_running():
            raise FlowletError(
                f"an event loop runs in this thread, which {what} would block: await the Flowlet's own methods instead"
            )

    # -------------------------------------------------------------- runs
    @overload
    def start(
        self,
        definition: Approval[S],
        subject: S,
        /,
        *,
        requester: str,
        id: str | None = None,
        deadline: Deadline = None,
    ) -> BlockingHandle[ApprovalOutcome[S]]: ...
    @overload
    def start(
        self, definition: type[SagaClass[*Ts, R]], /, *args: *Ts, id: str | None = None, deadline: Deadline = None
    ) -> BlockingHandle[R]: ...
    @overload
    def start(
        self,
        definition: Callable[[Unpack[Ts]], Awaitable[R]],
        /,
        *args: *Ts,
        id: str | None = None,
        deadline: Deadline = None,
    ) -> BlockingHandle[R]: ...
    def start(
        self,
        definition: Any,
        /,
        *args: object,
        id: str | None = None,
        deadline: Deadline = None,
        requester: str | None = None,
    ) -> Any:
        """Start a run and return when its input is durable; see `Flowlet.start`."""
        flow: Any = self._flow
        handle = self.call(flow.start, definition, *args, id=id, deadline=deadline, **_named(requester))
        return BlockingHandle(self, handle)

    @overload
    def execute(
        self,
        definition: Approval[S],
        subject: S,
        /,
        *,
        requester: str,
        id: str | None = None,
        deadline: Deadline = None,
    ) -> ApprovalOutcome[S]: ...
    @overload
    def execute(
        self, definition: type[SagaClass[*Ts, R]], /, *args: *Ts, id: str | None = None, deadline: Deadline = None
    ) -> R: ...
    @overload
    def execute(
        self,
        definition: Callable[[Unpack[Ts]], Awaitable[R]],
        /,
        *args: *Ts,
        id: str | None = None,
        deadline: Deadline = None,
    ) -> R: ...
    def execute(
        self,
        definition: Any,
        /,
        *args: object,
        id: str | None = None,
        deadline: Deadline = None,
        requester: str | None = None,
    ) -> Any:
        """Run a definition and return its result; see `Flowlet.execute`."""
        flow: Any = self._flow
        return self.call(flow.execute, definition, *args, id=id, deadline=deadline, **_named(requester))

    @overload
    def handle(self, id: str, /) -> BlockingHandle[Any]: ...
    @overload
    def handle(self, id: str, definition: Callable[..., Awaitable[R]], /) -> BlockingHandle[R]: ...
    def handle(self, id: str, definition: Any = None, /) -> Any:
        """Return the handle of a run; see `Flowlet.handle`."""
        return BlockingHandle(self, self._flow.handle(id, definition))

    def runs(self, definition: Any = None, **options: Any) -> Iterator[RunSummary]:
        """Yield the runs there are; see `Flowlet.runs`."""
        return self.iterate(self._flow.runs(definition, **options))

    def bulk(self, fn: Callable[..., Any], items: Iterable[T] | AsyncIterable[T], /, **options: Any) -> BulkReport[T]:
        """Do the same with many items and return the report; see `Flowlet.bulk`."""

        async def main() -> BulkReport[T]:
            report: BulkReport[T] = await self._flow.bulk(fn, items, **options)
            return report

        return self.call(main)

    # -------------------------------------------------------------- machines
    @overload
    def create(self, machine: type[M], /, *, id: str | None = None, **data: Any) -> M: ...
    @overload
    def create(self, machine: M, /, *, id: str | None = None) -> M: ...
    def create(self, machine: Any, /, **options: Any) -> Any:
        """Make a machine durable; fire its events with `call`: ``b.call(order.confirm, by="ann")``."""
        return self.call(self._flow.create, machine, **options)

    def load(self, machine: type[M], id: str, /) -> M:
        """Return the machine with this id; see `Flowlet.load`."""
        return self.call(self._flow.load, machine, id)

    def history(self, id: str, /) -> Iterator[Transition]:
        """Yield a machine's transitions; see `Flowlet.history`."""
        return self.iterate(self._flow.history(id))

    def machines(self, machine: type[Any], /, *, state: Any = None) -> Iterator[str]:
        """Yield the ids of the machines of a class; see `Flowlet.machines`."""
        return self.iterate(self._flow.machines(machine, state=state))
