"""A `Flowlet` for tests: in memory, with time that is moved by hand, and nothing configured.

Law: it is the Flowlet that programs use, over another store and another clock. It reads no environment and no file,
handles no signal, and needs no pytest.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from datetime import timedelta
from time import perf_counter
from typing import Any

import anyio
import anyio.lowlevel

from flowlet.app.flowlet import Flowlet
from flowlet.config.values import Config
from flowlet.core.retry import Seconds
from flowlet.errors import FlowletError
from flowlet.observing import Event, StepBegan
from flowlet.registry import Registry
from flowlet.runtime.hand_clock import HandRuns
from flowlet.stores.memory import MemoryStore
from flowlet.testing.hand import Clock

_LEASE = 1e9
"""Seconds: time that is moved by days is not to make the worker look dead."""

_CALM = 5
"""So many turns of the event loop in which nothing happens are taken for rest."""

_SOFT = 0.25
"""Seconds of real time that something due may take to be begun: it may be there for nobody here."""


class StubClock(Clock):
    """The time of a `stub`.

    Attributes:
        patience: seconds of real time that what is under way may take to come to rest.
    """

    patience: float = 5.0

    def __init__(self, flow: weakref.ref[Stub]) -> None:
        super().__init__()
        self._flow = flow
        self._is_moving = False

    async def advance(  # pyright: ignore[reportIncompatibleMethodOverride] - seconds here, units there
        self,
        time: Seconds = 0.0,
        *,
        days: float = 0.0,
        hours: float = 0.0,
        minutes: float = 0.0,
        seconds: float = 0.0,
    ) -> None:
        """Let time pass: what falls due meanwhile happens in its order, each at its time.

        It returns when all of it has come to rest, so that there is nothing to do until later: runs have ended, or wait
        for a time, a signal or an operator. With no time at all it waits for that only.

        Args:
            time: seconds, or a timedelta; added to the others.

        Raises:
            FlowletError: a run is still busy after `patience` seconds of real time; it is named. Or another call of
                this has not returned yet.
            ValueError: the time is negative, or no number.

        Example:
            >>> import anyio
            >>> from flowlet import Run, provided
            >>> from flowlet.testing import stub
            >>> async def main() -> None:
            ...     async with stub() as flow:
            ...         @flow.saga
            ...         async def remind(run: Run = provided) -> str:
            ...             await run.sleep(3 * 86400)
            ...             return "three days later"
            ...         handle = await flow.start(remind)
            ...         await flow.clock.advance(days=2)
            ...         print(await handle.status())
            ...         await flow.clock.advance(days=1)
            ...         print(await handle.result())
            >>> anyio.run(main)
            waiting
            three days later
        """
        more = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        total = (time.total_seconds() if isinstance(time, timedelta) else time) + more.total_seconds()
        if total < 0:
            raise ValueError(f"time does not go back: {total} s")
        if not math.isfinite(total):
            raise ValueError(f"time passes by a number of seconds, not by {total}")
        if self._is_moving:
            raise FlowletError("the clock is being advanced already: await that first; two at once have no order")
        self._is_moving = True
        try:
            await self._move(self.time + total)
        finally:
            self._is_moving = False

    async def _move(self, until: float) -> None:
        await self._rest()
        while (due := await self._next_due(until)) is not None:
            self.time = due
            await self._rest()
        self.time: float = until
        await self._rest()

    @property
    def _runs(self) -> HandRuns | None:
        flow = self._flow()
        runs = None if flow is None else flow._runs
        return runs if isinstance(runs, HandRuns) else None

    async def _next_due(self, until: float) -> float | None:
        runs = self._runs
        return None if runs is None else await runs.next_due(self.time, until)

    async def _rest(self) -> None:
        """Wait until nothing is left to be done at the present time."""
        runs = self._runs
        if runs is None:
            return
        runs.notice()
        latest = perf_counter() + self.patience
        begun, calm, turns = perf_counter(), 0, 0
        while calm < _CALM:
            turns += 1
            await (anyio.lowlevel.checkpoint() if turns % 20 else anyio.sleep(0.001))
            now = perf_counter()
            if busy := runs.busy():
                calm, begun = 0, now
                if now > latest:
                    raise FlowletError(
                        f"{', '.join(map(repr, busy[:5]))} did not come to rest within {self.patience} s of real time; "
                        "a step waits for something that only the test can do, or needs more: set clock.patience"
                    )
            elif now - begun < _SOFT and (runs.is_looking() or await runs.has_due()):
                calm = 0
                if turns % 20 == 0:
                    runs.worker.nudge()
            else:
                calm += 1


class Stub(Flowlet):
    """What `stub` makes.

    Attributes:
        clock: its time; `StubClock.advance` moves it.
        ran: the names of the steps that were executed, compensations too, in the order in which they began.

    Example:
        >>> import anyio
        >>> from flowlet import step
        >>> from flowlet.testing import stub
        >>> @step
        ... async def mail(to: str) -> None: ...
        >>> async def main() -> None:
        ...     async with stub() as flow:
        ...         await flow.execute(flow.saga("remind", mail), "ann")
        ...         print(flow.ran)
        >>> anyio.run(main)
        ['mail']
    """

    clock: StubClock
    ran: list[str]

    def __init__(self, registry: Registry | None = None, **options: Any) -> None:
        self.clock = StubClock(weakref.ref(self))
        ran: list[str] = []
        self.ran = ran
        options = {"config": Config(), "lease": _LEASE, "drain_on_sigterm": False, **options}

        def note(event: Event) -> None:
            if isinstance(event, StepBegan):
                ran.append(event.name)

        observers = (note, *options.pop("observers", ()))
        super().__init__(MemoryStore(clock=self.clock), registry=registry, observers=observers, **options)


def stub(registry: Registry | None = None, *, provide: Mapping[Any, Any] | None = None, **options: Any) -> Stub:
    """Return a `Flowlet` for tests, in memory and with a clock of its own.

    Args:
        registry: the definitions under test, such as ``flow.registry`` of the program's own Flowlet. If both know
            them, run them with ``flow.execute(saga, ...)``: a direct call would not say on which one.
        provide: what steps are given for their parameters ``= provided``, by type; fakes need only look like it.
        options: others of `Flowlet`.

    Example:
        >>> import anyio
        >>> from flowlet import Run, provided, step
        >>> from flowlet.testing import stub
        >>> class Mailer: ...
        >>> class FakeMailer:
        ...     sent: list[str] = []
        ...     async def send(self, to: str) -> None:
        ...         self.sent.append(to)
        >>> @step
        ... async def mail(to: str, mailer: Mailer = provided) -> None:
        ...     await mailer.send(to)
        >>> async def main() -> None:
        ...     fake = FakeMailer()
        ...     async with stub(provide={Mailer: fake}) as flow:
        ...         @flow.saga
        ...         async def remind(to: str, run: Run = provided) -> None:
        ...             await run.sleep(timedelta(days=3))
        ...             await mail(to)
        ...         handle = await flow.start(remind, "ann")
        ...         await flow.clock.advance(days=2)
        ...         print(await handle.status(), fake.sent)
        ...         await flow.clock.advance(days=1)
        ...         print(await handle.status(), fake.sent, flow.ran)
        >>> from datetime import timedelta
        >>> anyio.run(main)
        waiting []
        completed ['ann'] ['mail']
    """
    flow = Stub(registry, **options)
    for key, value in (provide or {}).items():
        flow.override(key, value).__enter__()
    return flow
