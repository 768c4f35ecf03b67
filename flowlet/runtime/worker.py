"""This process as a worker of a store: its heartbeat, its lease, and taking up what nobody runs.

Law: a worker has an identity of its own for each time it is started. It may begin an effect only
before its deadline, which is worked out before it asks the store, so that it is never later than what
the store believes. A peer of this host that is known to be dead is released at once; one elsewhere when
its lease runs out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter

import anyio

from flowlet.errors import LeaseLost, StoreError, StoreUnavailable
from flowlet.runtime.logs import Log
from flowlet.runtime.presence import Presence, new_worker_id
from flowlet.runtime.tasks import Latch, Task, spawn
from flowlet.store import Claims, Head, Store

_LEAST_PAUSE = 0.05
"""Seconds between two looks for work, however much the store changes."""

_PEERS_EVERY = 0.25
"""Seconds between two looks at whether the peers of this host live."""

_LOOKED_FOR = 0.1
"""The part of a lease in which a live worker looks for peers elsewhere whose heartbeats no longer count. They count
for the rest of it, so that a dead worker is noticed within one lease."""

_CLAIM_PATIENCE = 2.0
"""Seconds for which leaving waits for a claim that is under way; a store may hang."""

Adopt = Callable[[Sequence[Head]], Awaitable[None]]


class Worker:
    """Keeps the lease of one `Flowlet` and claims runs for it.

    Args:
        lease: seconds after its last heartbeat within which the others notice that it is dead.
        name: a part of the identity, for people.
        definitions: tells what this process can run, as (kind, name, version).
        adopt: takes over what was claimed.
        find_orders: looks whether somebody has ordered something of what is executed here.
        recovered: called after each heartbeat that worked.
        renewed: told the local time, of ``perf_counter``, up to which the leases surely hold.
        lapsed: called before that when the lease had run out, so that others may have taken what was held.
        room: returns how many more runs may be taken up now.

    Attributes:
        id: the worker's identity in the store.
        has_lost: there was no answer to a claim, so that it may own what it was not told of.
    """

    def __init__(
        self,
        store: Store,
        lease: float,
        name: str | None,
        log: Log,
        definitions: Callable[[], Sequence[tuple[str, str, str]]],
        adopt: Adopt,
        find_orders: Callable[[], Awaitable[None]],
        recovered: Callable[[], Awaitable[None]],
        renewed: Callable[[float], None],
        lapsed: Callable[[], Awaitable[None]],
        room: Callable[[], int],
    ) -> None:
        self._store = store
        self._lease = lease
        self._counts = lease * (1 - _LOOKED_FOR)
        self._log = log
        self._definitions = definitions
        self._adopt = adopt
        self._find_orders = find_orders
        self._recovered = recovered
        self._renewed = renewed
        self._lapsed = lapsed
        self._room = room
        self._next_beat = 0.0
        self._watching: anyio.CancelScope | None = None
        self.has_lost: bool = False
        self._is_nudged = False
        self._deadline = float("inf")
        self._peers: Sequence[str] = ()
        self.id: str = new_worker_id(name)
        self._presence = Presence(self.id)
        self._wake: float | None = None
        self._task: Task | None = None
        self._leaving = False
        self._claiming: Latch | None = None

    async def start(self) -> None:
        """Say that this worker lives, take up what nobody runs, then go on doing both."""
        self._presence.hold()
        try:
            await self.beat()
            await self._look()
        except BaseException:
            self._presence.drop()
            raise
        self._task = spawn(self._main, self._broke)

    async def stop_looking(self) -> None:
        """Claim nothing more."""
        self._leaving = True
        if self._claiming is not None:  # cut off, it would leave what it takes owned, and nobody working on it
            with anyio.move_on_after(_CLAIM_PATIENCE):
                await self._claiming.wait()
        if self._task is not None:
            self._task.cancel()
            await self._task.done.wait()
            self._task = None

    async def keep_lease(self) -> None:
        """Renew the lease until cancelled, and do nothing else: what still runs is not to be taken over."""
        while True:
            await anyio.sleep(self._lease / 3)
            try:
                await self.beat()
            except StoreError as error:
                self._log.warning("store.unavailable", error=str(error))

    async def stop(self) -> None:
        """Give back every lease and leave the store's records."""
        await self.stop_looking()
        try:
            await self._store.release(self.id)
        except StoreError as error:
            self._log.warning("worker.not_released", worker=self.id, error=str(error))
        self._presence.drop()

    async def beat(self) -> None:
        """Renew the lease now, and give back what dead peers of this host held."""
        before = perf_counter()
        self._peers = await self._store.heartbeat(self.id, self._counts)
        if perf_counter() > self._deadline:
            await self._lapsed()
        self._deadline = before + self._counts
        self._renewed(self._deadline)
        await self._release_dead()

    async def _release_dead(self) -> bool:
        """Give back what dead peers of this host held; tell whether there were any."""
        dead = [peer for peer in self._peers if self._presence.is_dead(peer)]
        self._peers = [peer for peer in self._peers if peer not in dead]
        for peer in dead:
            self._log.warning("worker.dead", worker=peer)
            await self._store.release(peer)
            self._presence.forget(peer)  # not before: if this process dies now, the next one has to see it as well
        return bool(dead)

    async def _look(self) -> bool:
        """Take up what is due; tell whether there was something."""
        if self._leaving:
            return False
        claims = Claims()
        self._claiming = claiming = Latch()
        try:
            room = self._room()
            if room:
                try:
                    claims = await self._store.claim(self.id, definitions=self._definitions(), limit=room)
                except StoreUnavailable:
                    self.has_lost = True
                    raise
                self._wake = claims.wake
                if claims.heads:
                    await self._take_up(claims.heads)
                self._is_nudged |= len(claims.heads) == room  # there may be more of them
            await self._find_orders()
        finally:
            self._claiming = None
            claiming.set()
        return bool(claims.heads)

    async def _take_up(self, heads: Sequence[Head]) -> None:
        if self._leaving:  # meanwhile
            await self._store.release(self.id, [head.id for head in heads])
        else:
            await self._adopt(heads)

    async def _main(self) -> None:
        seen = -1
        pause = self._lease / 24  # short at first: a heartbeat is also how peers that start together meet
        self._next_beat = perf_counter() + pause
        is_time = False
        while True:
            try:
                if perf_counter() >= self._next_beat:
                    pause = min(2 * pause, self._lease / 3)
                    self._next_beat = perf_counter() + pause
                    await self.beat()
                    await self._recovered()
                self._is_nudged = False
                found = await self._look()
                if not self._is_nudged:
                    before = seen
                    with anyio.CancelScope() as self._watching:
                        seen = await self._watch(seen)
                    self._watching = None
                    if seen == before and (found or not is_time):  # it is time for something, and that was no surprise
                        is_time = True
                        continue
                is_time = False
            except LeaseLost:
                self._next_beat = 0.0  # the lease ran out while this process slept: say again that it lives
            except StoreError as error:  # down, or refusing: in either case this process goes on trying
                self._log.warning("store.unavailable", error=str(error))
                await anyio.sleep(min(1.0, self._lease / 10))
            with anyio.CancelScope() as self._watching:  # a nudge ends the pause
                await anyio.sleep(_LEAST_PAUSE if not self._is_nudged else 0.0)
            self._watching = None

    @property
    def is_idle(self) -> bool:
        """Whether it waits for something to happen, having looked for work."""
        return self._watching is not None and not self._is_nudged

    def expect(self, at: float) -> None:
        """Look for work at a time of the store's clock, at the latest: something falls due then."""
        if self._wake is None or at < self._wake:
            self._wake = at
            self.nudge()

    def nudge(self, *, beat: bool = False) -> None:
        """Look for work soon.

        Args:
            beat: say before that this worker lives.
        """
        self._is_nudged = True
        if beat:
            self._next_beat = 0.0
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self, seen: int) -> int:
        """Wait for a change in the store, the death of a peer, or something that falls due."""
        latest = perf_counter() + await self._patience()
        while True:
            left = max(0.0, latest - perf_counter())
            brief = min(left, _PEERS_EVERY) if self._peers else left
            count = await self._store.watch(seen, brief)
            if count != seen or brief == left or await self._release_dead():
                return count

    async def _patience(self) -> float:
        """Return the seconds until the next heartbeat, or until something may be due before it."""
        left = max(0.0, self._next_beat - perf_counter())
        if any(not self._presence.sees(peer) for peer in self._peers):  # only its lease tells when it has died
            left = min(left, self._lease * _LOOKED_FOR)
        if self._wake is None:
            return left
        return min(left, max(0.0, self._wake - await self._store.now()))

    def _broke(self, error: BaseException) -> None:
        self._log.error("worker.broken", worker=self.id, error=repr(error))
