"""Leaving the runs of a process: no further step begins, and what is not in the middle of one is given back at once.

Law: it happens once, in a task of flowlet's own, however often and by whomever it is asked for, so that a
cancelled caller does not leave it half done. A shutdown fails nothing and compensates nothing: what is left
is as its journal has it, and whoever claims it next goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import anyio
import anyio.lowlevel

from flowlet.errors import StoreError
from flowlet.runtime.execution import Execution
from flowlet.runtime.logs import Log
from flowlet.runtime.tasks import Latch, Task, spawn
from flowlet.runtime.worker import Worker
from flowlet.store import Store

_STRAGGLE = 0.5
"""Seconds that a step which was cancelled, as its grace time is over, has to end before its lease is given back."""

_BATCH = 500
"""Runs whose leases are given back in one transaction."""


class DrainHost(Protocol):
    """What is drained.

    Attributes:
        closing: no further step may start.
        stopping: steps are being cut off, so that what they raise is no failure of theirs.
        live: what is executed here.
        tasks: those of flowlet's own that execute it.
    """

    closing: bool
    stopping: bool
    log: Log
    worker: Worker

    @property
    def live(self) -> Mapping[str, Execution]: ...
    @property
    def tasks(self) -> set[Task]: ...


class Drain:
    """How the runs of one `Flowlet` are left.

    Args:
        host: what is drained.
        store: where the leases are.
    """

    def __init__(self, host: DrainHost, store: Store) -> None:
        self._host = host
        self._store = store
        self._begun = Latch()
        self._over: Latch | None = None
        self._left: list[str] = []
        self._bell = Latch()

    async def pause(self, seconds: float) -> None:
        """Wait between two attempts, but not once the process wants to stop: others honour the rest of the delay."""
        if seconds <= 0:
            await anyio.lowlevel.checkpoint()
            return
        with anyio.move_on_after(seconds):
            await self._begun.wait()

    def note_left(self, id: str) -> None:
        """Give the lease on a run back soon: nothing is done for it here any more."""
        if self._over is not None:
            self._left.append(id)
            self._bell.set()

    async def run(self, grace: float) -> None:
        """Let running steps end within ``grace`` seconds and give every lease back; the first call's grace counts."""
        if self._over is None:
            self._over = over = Latch()
            self._host.closing = True
            self._begun.set()
            spawn(lambda: self._main(grace), self._broke, lambda _: over.set())
        await self._over.wait()

    async def wait_for_tasks(self) -> None:
        """Wait until no task of flowlet's own executes a run."""
        while self._host.tasks:
            await next(iter(self._host.tasks)).done.wait()

    async def _main(self, grace: float) -> None:
        host = self._host
        await host.worker.stop_looking()
        async with anyio.create_task_group() as group:
            group.start_soon(host.worker.keep_lease)
            group.start_soon(self._give_back)
            with anyio.move_on_after(grace):
                await self.wait_for_tasks()
                for execution in list(host.live.values()):  # those that callers execute in their own tasks
                    await execution.done.wait()
            group.cancel_scope.cancel()
        host.stopping = True
        for task in list(host.tasks):
            task.cancel()
        with anyio.move_on_after(_STRAGGLE):  # a thread cannot be cancelled, and some steps will not be
            await self.wait_for_tasks()
        for execution in list(host.live.values()):
            execution.give_up()
        await host.worker.stop()

    async def _give_back(self) -> None:
        """Give back the leases on runs as they are left, together those that are left together."""
        while True:
            await self._bell.wait()
            self._bell = Latch()
            ids, self._left = self._left[:_BATCH], self._left[_BATCH:]
            if self._left:
                self._bell.set()
            try:
                await self._store.release(self._host.worker.id, ids)
            except StoreError as error:  # the worker's own end gives back what is still held
                self._host.log.warning("store.unavailable", error=str(error))

    def _broke(self, error: BaseException) -> None:
        self._host.log.error("worker.broken", worker=self._host.worker.id, error=repr(error))
