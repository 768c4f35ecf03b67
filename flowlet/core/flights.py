"""Flights: the calls of one interpretation that are under way, and how they come back.

Law: every interpreter that has more than one thing under way keeps it here, and waits in `Flights.land`
only. Calls start in the order in which they were added, at most so many at once; what is above that waits
for its turn and is never dropped. They land in the order of the journal, so a replay repeats it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from flowlet.core.codec import pack
from flowlet.core.engine import Engine, Pending, StepCall, StepCancelled, cut_off


class Landed(msgspec.Struct, frozen=True, eq=False):
    """How something that was under way has ended.

    Attributes:
        purpose: what it was added with.
        call: the call, None for what was only watched.
        value: the encoded result, if there is no ``error``.
        error: what it failed with.
    """

    purpose: Any
    call: StepCall | None
    value: bytes
    error: Exception | None

    @property
    def result(self) -> Any:
        """The result of a call, as a replay would have it.

        Raises:
            Exception: what it failed with.
            DecodeError: it is not of the annotated type.
        """
        if self.error is not None:
            raise self.error
        assert self.call is not None
        definition = self.call.definition
        if type(self.call.result) is definition.scalar:
            return self.call.result  # an int, a str ... is what its encoding decodes to
        return definition.decode(self.value)


class Flights:
    """Calls under way, each with its purpose.

    Args:
        limit: so many calls run at once; None for all of them.
    """

    __slots__ = ("_alone", "_engine", "_limit", "_queue", "_room", "_under_way")

    def __init__(self, engine: Engine, limit: int | None = None) -> None:
        self._engine = engine
        self._limit = limit
        self._room = limit
        self._queue: deque[tuple[StepCall, Any]] = deque()
        self._under_way: dict[Pending, tuple[StepCall | None, Any]] = {}
        self._alone: tuple[StepCall, Any] | None = None  # what the engine performs by itself

    def __bool__(self) -> bool:
        return bool(self._under_way or self._queue)

    def __len__(self) -> int:
        return len(self._under_way) + len(self._queue)

    def add(self, call: StepCall, purpose: Any) -> None:
        """Have a call made as soon as there is room for it."""
        self._queue.append((call, purpose))

    def watch(self, pending: Pending, purpose: Any) -> None:
        """Wait for something else, such as a signal, as well; it takes no room."""
        self._under_way[pending] = (None, purpose)

    async def land(self) -> Sequence[Landed]:
        """Start what there is room for and wait until something has ended; nothing if nothing is under way."""
        queue, under_way = self._queue, self._under_way
        if queue and not under_way and (len(queue) == 1 or self._limit == 1):
            call, purpose = self._alone = queue.popleft()
            try:
                value = await self._engine.perform(call)
            except Exception as error:
                landed = Landed(purpose, call, b"", error)
            else:
                landed = Landed(purpose, call, value, None)
            self._alone = None
            return (landed,)
        while queue and self._room != 0:
            self._start(*queue.popleft())
        if not under_way:
            return ()
        return [await self._take(pending) for pending in await self._engine.first(under_way)]

    def _start(self, call: StepCall, purpose: Any) -> None:
        self._under_way[self._engine.step(call)] = (call, purpose)
        if self._room is not None:
            self._room -= 1

    async def _take(self, pending: Pending) -> Landed:
        call, purpose = self._under_way.pop(pending)
        if call is not None and self._room is not None:
            self._room += 1
        try:
            return Landed(purpose, call, await self._engine.value(pending), None)
        except StepCancelled:  # nobody here has stopped it: on replay, that is where something else cut it off
            return Landed(purpose, call, b"", cut_off(pending.key))
        except Exception as error:
            return Landed(purpose, call, b"", error)

    async def stop(self) -> list[Landed]:
        """Cancel what is under way and see it end, so that nothing of the run outlives it; drop what waits.

        Returns what has ended meanwhile, by itself or because of that.
        """
        self._queue.clear()
        for pending in self._under_way:
            self._engine.cancel(pending)
        landed: list[Landed] = []
        while self._under_way:
            landed += [await self._take(pending) for pending in await self._engine.first(self._under_way)]
        return landed

    async def remains(self) -> list[Landed]:
        """Return what had ended when the way forward was cut off, and nobody has seen; forget everything else."""
        self._queue.clear()
        landed = [await self._take(pending) for pending in list(self._under_way) if pending.ended]
        self._under_way.clear()
        if self._alone is not None and self._alone[0].result is not UNSET:
            call, purpose = self._alone
            landed.append(Landed(purpose, call, pack(call.result), None))
        return landed
