"""A bulk operation with an id: having done what is not on record, recording it, and ending.

Law: an outcome is told when it is on record. What has ended is recorded when there is enough of it, or after a tenth
of a second, by one task; leaving, this process records what there is and gives its shards back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Protocol

import anyio

from flowlet.core.bulk import BulkStatus, Outcome
from flowlet.core.bulk_records import record_item
from flowlet.core.current import run_context
from flowlet.core.engine import Suspended
from flowlet.core.run import Run
from flowlet.errors import ConfigError, RunError, StoreError, StoreUnavailable
from flowlet.runtime.bulk_account import Account
from flowlet.runtime.bulk_operation import Operation
from flowlet.runtime.bulk_options import BulkPlan
from flowlet.runtime.bulk_scope import ItemRuns
from flowlet.runtime.bulk_shard import Shard, is_lost
from flowlet.runtime.bulk_shards import Shards
from flowlet.runtime.logs import Log
from flowlet.runtime.tasks import Task
from flowlet.runtime.worker import Worker
from flowlet.store import Store

_EVERY = 0.1
"""Seconds after which what has ended is recorded, even if it is not enough for a commit."""

_LEAST_PAUSE = 0.05
"""Seconds between two looks at whether it was cancelled, however much the store changes."""


class LedgerHost(Protocol):
    """What a ledger needs of the process it is in; see `Runs`."""

    closing: bool
    deadline: float
    log: Log
    max_payload: int | None
    tasks: set[Task]
    worker: Worker

    def now(self) -> float: ...
    async def pause(self, seconds: float) -> None: ...


class Ledger:
    """What is recorded of one bulk operation.

    Args:
        held: ids of the shards that are worked on in this process, by all its bulk operations.

    Attributes:
        surroundings: what its items are called within.
        seconds: how long it took, over all calls, once that is known.

    Raises:
        ConfigError: the store has no leases, which sharing needs.
    """

    def __init__(self, plan: BulkPlan, store: Store, host: LedgerHost, held: set[str]) -> None:
        assert plan.function.result is not None
        if not store.capabilities.leases:
            raise ConfigError(
                f"{type(store).__qualname__} has no leases, so it can keep no bulk operation: leave id= out"
            )
        self._plan = plan
        self._host = host
        self._held = held
        self._codec = plan.function.result
        self._account = Account(plan, store, host)
        names = [p.name for p in plan.function.providers if p.annotation is Run]
        self.surroundings: ItemRuns = ItemRuns(self._account.id, host, names, self._check)
        self.seconds: float = 0.0
        self._shards: Shards
        self._operation: Operation
        self._due = anyio.Event()
        self._urgent = anyio.Event()
        self._recording = anyio.Lock()

    # -------------------------------------------------------------- the whole
    async def see_through(self, operation: Operation) -> BulkStatus:
        """Have the items done that are not on record; return how it stands when that has ended."""
        account = self._account
        self._operation = operation
        await account.open()
        self._shards = Shards(
            account, operation, self._codec, self._host, self._held, self._accept, lambda: self._make_due(urgent=True)
        )
        if account.ended is not None:
            return await self._retell()
        status = await self._work_within_process()
        self.seconds = self._host.now() - account.began
        if status == "completed" and operation.tally.done != operation.tally.total:  # it would never be noticed again
            raise AssertionError(f"{operation.tally.done} of {operation.tally.total} items are accounted for")
        if status in ("completed", "cancelled"):
            report = operation.tally.report(status)
            await account.end(
                "completed" if status == "completed" else "cancelled", report, self.seconds, self._shards.count
            )
        elif status == "failed":
            await account.mark("failed")
        return status

    async def _retell(self) -> BulkStatus:
        """Tell what is on record of an operation that has ended."""
        account = self._account
        async for _ in self._shards.pairs():
            pass
        if account.sums is not None:
            self.seconds = account.sums.seconds
        if account.ended is None or account.ended.status != "completed":
            return "cancelled"
        if account.sums is not None:
            account.check_total(account.sums.total, self._operation.tally.total)
        return "completed"

    async def _work_within_process(self) -> BulkStatus:
        """Work on it as long as this process goes on: who leaves the Flowlet waits for it, for a while."""
        operation = self._operation
        self._host.tasks.add(operation.task)
        try:
            status = await self._work()
        except BaseException:
            if self._host.closing:
                operation.error = self._left()
            raise
        finally:
            self._host.tasks.discard(operation.task)
        if status == "completed" and not self._shards.is_over:
            raise self._left()
        return status

    def _left(self) -> BaseException:
        """Return what is told to who waits for it when this process leaves: a step is as little failed."""
        if run_context.get() is not None:
            return Suspended()
        return RunError(
            f"this Flowlet was left or drained: bulk operation {self._account.id!r} goes on when it is called again"
        )

    async def _work(self) -> BulkStatus:
        operation = self._operation
        try:
            async with anyio.create_task_group() as group:
                for main in (self._record_regularly, self._watch, self._watch_leaving):
                    group.start_soon(self._guard, main)
                try:
                    operation.begin_items(self._shards.pairs(), self._accept, self._wait_for_room)
                    status = await operation.see_items_through()
                finally:
                    group.cancel_scope.cancel()
                    with anyio.CancelScope(shield=True):
                        await self._give_back()
        except BaseExceptionGroup as errors:  # nothing but what the body raised: the others are guarded
            raise errors.exceptions[0] from errors.exceptions[0].__cause__
        if operation.crew.error is not None:  # found out at the last commit
            raise operation.crew.error
        return status  # pyright: ignore[reportPossiblyUnboundVariable] - the group swallows nothing

    async def _guard(self, main: Callable[[], Awaitable[None]]) -> None:
        """Have what breaks a task beside the items break the operation, after what was begun has ended."""
        try:
            await main()
        except Exception as error:
            self._operation.crew.fail(error)

    async def _give_back(self) -> None:
        """Record what has ended, and give the leases back."""
        try:
            await self._record()
        except Exception as error:
            self._operation.crew.fail(error)
        for shard in list(self._shards.active.values()):
            try:
                await shard.give_back()
            except StoreError as error:
                if not is_lost(error):
                    self._host.log.warning("store.unavailable", error=str(error))
            self._shards.let_go(shard)

    # -------------------------------------------------------------- outcomes
    def _accept(self, outcome: Outcome[Any, Any]) -> bool:
        """Have an outcome recorded; tell whether the next item is to wait for that."""
        shard = self._shards.active.get(outcome.index // self._account.size)
        if shard is None or shard.journal is None:
            return False  # the lease was lost meanwhile: somebody else has done it, or will
        record, outcome = record_item(outcome, outcome.index - shard.start, self._codec, self._host.max_payload)
        shard.pending.append((outcome, record))
        if outcome.error is not None and self._plan.on_error != "collect":
            # At once: until it is on record, many more items would begin.
            self._operation.judge([o for other in self._shards.active.values() for o, _ in other.pending])
        waiting, size = len(shard.pending), self._plan.batch_size
        self._make_due(urgent=waiting >= size or shard.is_ready)
        return waiting >= 2 * size or self._operation.is_full

    async def _wait_for_room(self) -> None:
        """Wait until outcomes were recorded, and taken, if too many are not."""
        most, crew, shards = 2 * self._plan.batch_size, self._operation.crew, self._shards
        while not crew.stopped and any(len(s.pending) >= most and s.journal for s in shards.active.values()):
            await shards.recorded.wait()
        await self._operation.wait_for_room()

    def _make_due(self, *, urgent: bool) -> None:
        self._due.set()
        if urgent:
            self._urgent.set()

    async def _record_regularly(self) -> None:
        next_time = 0.0
        while True:
            if not self._due.is_set():
                await self._due.wait()
                next_time = perf_counter() + _EVERY
            with anyio.move_on_after(next_time - perf_counter()):
                await self._urgent.wait()
            if perf_counter() < next_time:
                await self._record(self._plan.batch_size)
            else:
                await self._record()
                next_time = perf_counter() + _EVERY

    async def _record(self, least: int = 1) -> None:
        """Record what has ended.

        Args:
            least: only of shards that have so many outcomes to be recorded, or all of the last ones.

        Raises:
            StoreUnavailable: it could not be.
        """
        async with self._recording:
            self._urgent = anyio.Event()
            if least == 1:
                self._due = anyio.Event()
            shards = self._shards
            try:
                for shard in list(shards.active.values()):
                    await self._record_shard(shard, least)
            finally:
                shards.recorded.set()
                shards.recorded = anyio.Event()

    async def _record_shard(self, shard: Shard, least: int) -> None:
        shards = self._shards
        try:
            await shard.commit(self._host.max_payload, least, self._plan.batch_size, self._operation.accept)
        except StoreError as error:
            if not is_lost(error):
                raise
            shards.lose(shard)
            if self._host.log.active:
                self._host.log.info("bulk.shard_lost", run_id=self._account.id, shard=shard.number)
        if shard.journal is None:
            shards.let_go(shard)

    # -------------------------------------------------------------- what ends it from outside
    async def _check(self, index: int) -> None:
        await self._shards.check(index)

    async def _watch(self) -> None:
        """End it when it was cancelled, here or elsewhere."""
        account, seen = self._account, -1
        while True:
            try:
                if await account.is_cancelled():
                    self._operation.cut("cancelled")
                    return
                seen = await account.store.watch(seen, 1.0)
            except StoreUnavailable as error:
                self._host.log.debug("store.unavailable", error=str(error))
            await anyio.sleep(_LEAST_PAUSE)

    async def _watch_leaving(self) -> None:
        """Begin no further item when this process wants to stop."""
        while not self._host.closing:
            await self._host.pause(3600.0)
        self._operation.crew.stop()
