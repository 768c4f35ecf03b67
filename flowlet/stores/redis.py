"""The store in a Redis server: shared by many hosts, as durable as the server is told to be.

Law: this module joins the parts. Writes go through one `redis_line.Line`, reads through another, so that a
large history that is read keeps no write waiting. Every change is one script, which Redis runs alone and
as a whole. Works on asyncio only. Time is the server's own.

What Redis itself promises, and so what this store can
    Everything is in the server's memory. With ``appendonly yes`` and ``appendfsync always`` it is on the
    server's disk, too, before an append returns. With ``appendfsync everysec`` the last second, or two, may
    be lost with the power or with the server's process. Without ``appendonly`` all that came since the last
    snapshot of the server is. A replica that takes over may not have had what was acknowledged last:
    Redis replicates afterwards, whatever its files do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from flowlet.errors import StoreError, StoreNotFound
from flowlet.store import Capabilities, Claims, Head, Stored, Work, Write
from flowlet.stores.bell import Bell, CommitTeller
from flowlet.stores.redis_forms import claims_of, head_of, listed, packed, question, stored_of, time_of
from flowlet.stores.redis_line import Append, Asked, Line, Run
from flowlet.stores.redis_news import News
from flowlet.stores.redis_opening import Link, connect, import_driver, link_to, schema_at
from flowlet.stores.redis_url import Place
from flowlet.stores.refusal import malformed, worker_unknown

__all__ = ["RedisStore"]

_LARGEST = 128 * 1024 * 1024
"""Redis takes values of 512 MB, but serves nobody else while it moves one."""

_PRUNE_STRIDE = 100


class RedisStore(CommitTeller):
    """Keep history in a Redis server (6.0 or newer, standing alone; or one that speaks its language).

    The keys are made at the first use, all under ``prefix:``; a call after `close` opens again, on any event
    loop. One event loop at a time, and asyncio's only. An append that is cancelled after it was accepted
    still waits for its outcome and then raises the cancellation.

    ``durability=`` in the URL says what the server must give; one that gives less is refused when it is opened:

    - ``power``: an acknowledged append is on the disk (``appendonly yes``, ``appendfsync always``,
      ``no-appendfsync-on-rewrite no``).
    - ``second``: about a second of acknowledged appends may be lost with the server (``appendfsync everysec``).
    - ``none``: whatever the server does.

    When nothing is said, any server is taken, and ``capabilities.durable`` is what was found: False until the
    store is open, then True if the server gives ``power``. A server that lets nobody ask for its settings
    (``CONFIG``) is believed to be what the URL says. What somebody sets while the store is open is found
    when it connects again.

    Args:
        url: as `flowlet.stores.open_store` takes it.
        clock: for tests: returns the store's time, in seconds since the epoch, instead of the server.

    Attributes:
        capabilities: whether it is durable is stated in the URL, or known when the store is open.

    Raises:
        ConfigError: the URL has another form.
        MissingExtra: redis-py is not installed.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None) -> None:
        self._place = Place(url)
        import_driver()
        self._clock = clock
        self.capabilities: Capabilities = Capabilities(
            durable=self._place.durability == "power", multi_process=True, max_payload=_LARGEST
        )
        self._bell = Bell()
        self._process = 0
        self._writes: Line | None = None
        self._reads: Line | None = None
        self._news: News | None = None

    def __repr__(self) -> str:
        return f"RedisStore({self._place.name!r}, prefix={self._place.prefix!r})"

    @property
    def clock(self) -> Callable[[], float] | None:
        """The clock it was given, if time does not pass by itself in it."""
        return self._clock

    # Writing ------------------------------------------------------------------------------------
    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        """Store all writes or none of them; see `flowlet.store.Store.append`."""
        if work is not None:
            text = "cannot run user code in a transaction (capabilities.transactional is False): leave out work="
            raise StoreError(f"a Redis store {text}, or use a store in SQLite or PostgreSQL")
        if error := malformed(writes, _LARGEST):
            raise error
        if writes:
            writes = tuple(writes)
            await self._writing().result(Append(writes, packed(writes)))

    async def _run(self, script: str, *arguments: Any) -> Any:
        return await self._writing().result(Run(script, self._place, self._now(), *arguments))

    # Reading ------------------------------------------------------------------------------------
    async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Stored | None:
        """Read an entity; see `flowlet.store.Store.load`."""
        asked = Run("load", self._place, "", id, max(0, after), "" if limit is None else limit)
        found = await self._reading().result(asked)
        return None if found is None else stored_of(*found)

    async def scan(
        self,
        *,
        kind: str | None = None,
        definition: str | None = None,
        status: Sequence[str] | None = None,
        state: str | None = None,
        wake_before: float | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[Head]:
        """List heads in the order of creation; see `flowlet.store.Store.scan`."""
        asked = question(kind, definition, status, state, wake_before, after, limit)
        rows = await self._reading().result(Run("scan", self._place, self._now(), asked))
        return [head_of(row) for row in rows]

    # Leases -------------------------------------------------------------------------------------
    async def claim(
        self,
        worker: str,
        /,
        *,
        definitions: Sequence[tuple[str, str, str]] = (),
        ids: Sequence[str] = (),
        limit: int = 100,
    ) -> Claims:
        """Take entities that nobody alive owns; see `flowlet.store.Store.claim`."""
        wanted = (listed(list(dict.fromkeys(wanted))) for wanted in (definitions, ids))
        reply = await self._run("claim", worker, limit, *wanted)
        if not reply[0]:
            raise worker_unknown(worker)
        return claims_of(reply[1], reply[2])

    async def heartbeat(self, worker: str, lease: float, /) -> Sequence[str]:
        """Say that the worker lives for ``lease`` more seconds; return the others on record."""
        names = await self._run("heartbeat", worker, time_of(lease))
        return sorted(name.decode() for name in names if name != worker.encode())

    async def release(self, worker: str, /, ids: Sequence[str] | None = None) -> None:
        """Give back the worker's leases on these ids, or all of them and its place on record."""
        if ids is not None:
            _, news = await self._run("release", worker, *dict.fromkeys(ids))
            self._ring(news)
            return
        is_over = 0
        while not is_over:
            is_over, news = await self._run("leave", worker)
            self._ring(news)

    async def now(self) -> float:
        """Return the store's own time, in seconds since the epoch: the server's."""
        if self._clock is not None:
            return self._clock()
        seconds, microseconds = await self._reading().result(Asked(("TIME",)))
        return int(seconds) + int(microseconds) / 1e6

    async def watch(self, seen: int, timeout: float, /) -> int:
        """Wait until the change counter differs from ``seen``, or ``timeout`` seconds; return it.

        Redis tells at once; while it does not (the connection was lost, the user may not subscribe), the
        counter is looked at every 50 ms.
        """
        self._open()
        assert self._news is not None
        return await self._news.wait(seen, timeout)

    async def prune(self, *, closed_before: float, limit: int = 1000) -> int:
        """Delete at most ``limit`` entities closed before this time, oldest first; return how many.

        It goes in short scripts, so that the calls of others come in between.
        """
        count, before = 0, time_of(closed_before)
        while count < limit:
            stride = min(_PRUNE_STRIDE, limit - count)
            pruned: int = await self._run("prune", before, stride)
            count += pruned
            if pruned < stride:
                break
        return count

    async def onlooker(self) -> RedisStore:
        """Return this store, for reading, if its keys are there; make nothing.

        Raises:
            StoreNotFound: they are not.
        """
        if await schema_at(self._place) is None:
            text = f"{self._place.name}: there is nothing of flowlet's under the prefix {self._place.prefix!r}"
            raise StoreNotFound(f"{text}; nothing was created")
        return self

    async def close(self) -> None:
        """Finish what was accepted and hang up."""
        news, lines = self._news, (self._writes, self._reads)
        self._news = self._writes = self._reads = None
        self._bell.ring()
        if os.getpid() != self._process:
            return
        if news is not None:
            await news.close()
        for line in lines:
            if line is not None and line.port.is_here():
                await line.close()

    # Opening ------------------------------------------------------------------------------------
    def _writing(self) -> Line:
        self._open()
        assert self._writes is not None
        return self._writes

    def _reading(self) -> Line:
        self._open()
        assert self._reads is not None
        return self._reads

    def _open(self) -> None:
        """Have lines to the server that belong to this loop."""
        if self._writes is not None and self._writes.port.is_here() and self._process == os.getpid():
            return
        if self._writes is not None and self._process != os.getpid():
            text = f"was open when this process was forked from process {self._process}; close it before forking"
            raise StoreError(f"the store on {self._place.name} {text}, or start processes with 'spawn'")
        trio = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_task():
            raise StoreError("a Redis store works on asyncio only; run on asyncio, or use a store in SQLite on trio")
        self._process = os.getpid()
        self._writes, self._reads = (Line(self._place, self._link, self._now, self._ring, self._bell) for _ in range(2))
        self._news = News(self._place, connect, self._ask_for_news, self._bell)

    async def _link(self, place: Place) -> Link:
        link = await link_to(place)
        self.capabilities = replace(self.capabilities, durable=link.durability == "power")
        return link

    async def _ask_for_news(self) -> int:
        return int(await self._reading().result(Asked(("GET", f"{self._place.prefix}:news"))) or 0)

    def _ring(self, count: int) -> None:
        if self._news is not None:
            self._news.ring(count)

    def _now(self) -> str:
        return "" if self._clock is None else time_of(self._clock())

    # What it has done, for tests and benchmarks ---------------------------------------------------
    @property
    def batches(self) -> int:
        """Commands that carried appends, each of one or more, since the store was opened."""
        return 0 if self._writes is None else self._writes.batches
