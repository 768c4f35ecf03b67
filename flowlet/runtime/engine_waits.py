"""The part of the local engine that waits for the world: signals, times, and child runs that go on elsewhere.

Law: what is there is taken in the order of signals, then times; a time is not over while the store has a signal that
the run has not seen. A run that waits for nothing but these leaves: it costs no task and no memory, and whoever is
there when something comes goes on with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import anyio
import anyio.lowlevel

from flowlet.core.codec import pack
from flowlet.core.engine import Decided, StepCancelled, StepWaits, Suspended
from flowlet.core.run_records import Outcome, SignalTaken, StepStopped, TimerFired
from flowlet.core.sizes import FRAME, check_size
from flowlet.core.steps import digest
from flowlet.errors import SignalTimeout
from flowlet.runtime.children import CHILD
from flowlet.runtime.engine_replay import ReplayingEngine
from flowlet.runtime.journal import SignalArrived
from flowlet.runtime.pendings import LocalPending, Wait
from flowlet.runtime.replay import name_item
from flowlet.store import Signal

_BRIEF = 1.0
"""A run waits here, and does not leave, if the next time is so many seconds away at most."""


class Waiting(Exception):
    """The run waits for nothing but signals, times and children: whoever is there when one comes goes on with it.

    Attributes:
        due: the first of the times, in seconds of the store's clock, or None.
    """

    def __init__(self, due: float | None) -> None:
        super().__init__("it waits")
        self.due = due


class WaitingEngine(ReplayingEngine):
    """An engine as far as it waits."""

    # -------------------------------------------------------------- what interpreters ask for
    def signal(self, key: str, topic: str, /, *, timeout: float | None = None) -> Wait:
        """Wait for a signal of a topic, if need be only for some seconds."""
        return self._begin_wait(Wait(self._next_start(), key, topic, timeout))

    def timer(self, key: str, /, *, delay: float | None = None, at: float | None = None) -> Wait:
        """Wait for some seconds, or for a time."""
        assert (delay is None) is not (at is None)
        return self._begin_wait(Wait(self._next_start(), key, None, delay, at))

    def _next_start(self) -> int:
        if self.over is not None:
            raise Decided(self.over)
        self._starts += 1
        return self._starts

    def _begin_wait(self, wait: Wait) -> Wait:
        known = self._timers.get(wait.start)
        if known is not None:
            if known.key != wait.key or (wait.delay is None and wait.due is None):
                self._mismatch(wait.name(), f"a time, {known.key!r}")
            wait.delay, wait.due, wait.is_set = None, known.due, True
        self._waits[wait.start] = wait
        return wait

    def publish(self, key: str, value: bytes, /, *, in_step: bool = False) -> None:
        """Let others see a value."""
        check_size(value, self._host.max_payload, f"what run {self.run_id!r} publishes as {key!r}", FRAME + len(key))
        number = 0
        if not in_step:
            self._publishes += 1
            number = self._publishes
            if number <= self._published or self.over is not None:
                return
        self.journal.pending.append(pack(("u", key, value, self._stamp_aside(), number)))
        if in_step:  # nobody else sees to it until the step has ended
            self.rouse()
            self.save_soon()

    async def record_child(self, key: str, id: str) -> None:
        """Put it on record that a step has called a run, before that exists."""
        known = self._called.get(key, ())
        if id in known:
            return
        self._called = {**self._called, key: (*known, id)}
        self.journal.pending.append(pack(("k", key, id, self._stamp_aside())))
        self.rouse()
        self.save_soon()
        while self._host.durable and self.journal.pending and self.journal.trouble is None:
            await self.settle()
            await anyio.lowlevel.checkpoint()

    def save_soon(self) -> None:
        """Make what is recorded durable while nobody waits for that."""
        raise NotImplementedError

    # -------------------------------------------------------------- signals
    def hear_of(self, signals: Sequence[Signal]) -> None:
        """Take note of what is in the run's inbox."""
        self.signals = signals
        told = [signal for signal in signals if signal.topic == CHILD and signal.number not in self._taken]
        if told:
            self._told = {*self._told, *(signal.payload.decode() for signal in told)}
            self._consume(*(signal.number for signal in told))
        if self._waits or told:
            self.rouse()

    def rouse(self) -> None:
        """Look again at what there is."""
        self._has_news = True
        if self._bell is not None:
            self._bell.set()

    def _find_signal(self) -> tuple[Wait, Signal] | None:
        """Return the first signal that something waits for, with the first that does."""
        for signal in self.signals if self._waits else ():
            if signal.number not in self._taken:
                wait = next((w for w in self._waits.values() if w.topic == signal.topic), None)
                if wait is not None:
                    return wait, signal
        return None

    @property
    def has_news(self) -> bool:
        """Whether there is a signal for something that waits, or a child has ended."""
        return self._find_signal() is not None or bool(self._rested())

    def _take_signals(self) -> bool:
        """Give a signal to what waits for it; tell whether there was one."""
        found = None if self.ordered is not None else self._find_signal()
        if found is not None:
            self._take_signal(*found)
        return found is not None

    def _take_signal(self, wait: Wait, signal: Signal) -> None:
        journal = self.journal
        journal.pending.append(
            pack(("g", wait.start, wait.key, signal.topic, self._stamp(), signal.number, signal.payload))
        )
        self._consume(signal.number)
        self._end_wait(wait, signal.payload, None)

    def _consume(self, *numbers: int) -> None:
        """Let signals be removed from the inbox, as far as those before them can be."""
        self._taken = {*self._taken, *numbers}
        kept = [s.number for s in self.signals if s.number not in self._taken]
        self.journal.consumed = min(kept) - 1 if kept else max(s.number for s in self.signals)

    # -------------------------------------------------------------- times
    def _set_timers(self) -> None:
        """Put the times on record that waits end at which have just begun."""
        for wait in self._waits.values():
            if wait.is_set or (wait.delay is None and wait.due is None):
                continue
            if wait.due is None:
                assert wait.delay is not None
                wait.due = self._host.now() + wait.delay
            wait.is_set = True
            self.journal.pending.append(pack(("w", wait.start, wait.key, self._stamp_aside(), wait.due)))

    def _next_wait(self) -> Wait | None:
        """Return what ends first by itself; of several at one time, what began first."""
        timed = [wait for wait in self._waits.values() if wait.due is not None]
        return min(timed, key=lambda wait: (wait.due, wait.start), default=None)

    async def _fire_due(self) -> bool:
        """End the first wait whose time has come; tell whether there was one, or a signal that comes before it."""
        wait = None if self.ordered is not None else self._next_wait()
        if wait is None or wait.due is None or wait.due > self._host.now():
            return False
        journal = self.journal
        is_asked = any(other.topic is not None for other in self._waits.values())
        if is_asked:
            await self.settle()  # nobody but this task is to store the record, which has to be stored with a question
        journal.pending.append(record := pack(("t", wait.start, wait.key, self._stamp())))
        if is_asked:
            try:
                await journal.commit_unseen()
            except SignalArrived:
                journal.pending.remove(record)
                await self._host.look_at(self.run_id)
                return True
            except BaseException:  # whether it was stored, the journal knows; nobody else is to store it without asking
                journal.pending.remove(record)
                raise
        self._end_wait(wait, b"", self._timed_out(wait))
        return True

    async def settle(self) -> None:
        """Wait for a save that is under way."""
        raise NotImplementedError

    def _timed_out(self, wait: Wait) -> Exception | None:
        if wait.topic is None:
            return None
        return SignalTimeout(f"run {self.run_id!r} was sent no signal {wait.topic!r} within the time given for it")

    # -------------------------------------------------------------- steps for which nothing is to be done now
    def _set_at_rest(self, pending: LocalPending, waits: StepWaits) -> None:
        """Let a step be until its child has ended, or its next attempt is due."""
        pending.launched, pending.rest = True, waits
        self._resting = True
        if waits.failed is not None:
            past = self._attempts.get(pending.start, ())
            self._attempts = {**self._attempts, pending.start: [*past, waits.failed]}

    def _rested(self) -> list[LocalPending]:
        """Return the steps for which there is something to be done again."""
        return [p for p in self._open.values() if p.rest is not None and self._is_over(p.rest)]

    def _is_over(self, rest: StepWaits) -> bool:
        return rest.child in self._told if rest.due is None else rest.due <= self._host.now()

    def _rouse_rested(self) -> bool:
        """Begin steps again for which there is something to be done; tell whether there were any."""
        if not self._resting:
            return False
        rested = self._rested()
        for pending in rested:
            pending.rest, pending.launched, pending.told = None, False, False
            self._fresh.append(pending)
        return bool(rested)

    # -------------------------------------------------------------- waiting
    async def _hear(self) -> None:
        """Wait for a message of a step's task, a signal or a time; leave the run if it may be long.

        Raises:
            Suspended: nothing is done for the run, and the next time is far away.
        """
        wait = self._next_wait()
        times = [p.rest.due for p in self._open.values() if p.rest is not None and p.rest.due is not None]
        due = min(times if wait is None or wait.due is None else [*times, wait.due], default=None)
        if all(pending.rest is not None for pending in self._open.values()):
            self._obey()
            if due is None or due - self._host.now() > _BRIEF or self._host.closing:
                if self.in_own_task and anyio.current_effective_deadline() < inf:
                    await self.refuse_timeout()
                self.journal.trouble = Waiting(due)
                raise Suspended
        if due is not None:
            self._host.rouse_at(self.run_id, due)
        while not self._inbox and not self._has_news:
            self._bell = anyio.Event()
            await self._bell.wait()
        self._has_news = False

    async def refuse_timeout(self) -> None:
        """Fail a wait that a body has put a timeout of its own around, which would be over with this process."""
        raise NotImplementedError

    # -------------------------------------------------------------- ends
    def _deliver_wait(self, wait: Wait, record: Outcome | SignalTaken | TimerFired) -> None:
        """Let a wait end as it did before."""
        if not isinstance(record, (SignalTaken, TimerFired, StepStopped)) or wait.key != record.key:
            self._mismatch(wait.name(), name_item(record))
        if isinstance(record, SignalTaken) and wait.topic != record.topic:
            self._mismatch(wait.name(), name_item(record))
        if isinstance(record, TimerFired) and wait.due is None and wait.delay is None:
            self._mismatch(wait.name(), name_item(record))
        self._pop()
        if isinstance(record, SignalTaken):
            self._end_wait(wait, record.payload, None)
        elif isinstance(record, TimerFired):
            self._end_wait(wait, b"", self._timed_out(wait))
        else:
            self._end_wait(wait, b"", StepCancelled(wait.key))

    def _end_wait(self, wait: Wait, payload: bytes, error: Exception | None) -> None:
        wait.ended = True
        wait.value = payload
        wait.error = error
        del self._waits[wait.start]
        self._landed.append(wait)

    def _stop_wait(self, wait: Wait) -> None:
        """End a wait that was cancelled before it was over."""
        data = digest((wait.topic or "").encode())
        self.journal.pending.append(pack(("c", wait.start, wait.key, data, self._stamp(), False)))
        self._end_wait(wait, b"", StepCancelled(wait.key))
