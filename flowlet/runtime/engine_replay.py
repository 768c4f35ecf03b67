"""The half of the local engine that repeats what is on record, and decides where that ends.

Law: nothing here waits for a step or has an effect. What the journal says is given back in its order; the first
thing that does not fit sets the run aside. What a run is told from outside takes effect where the records end.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn, cast

import anyio
import msgspec

from flowlet.core.codec import Codec, pack
from flowlet.core.definitions import RunDefinition
from flowlet.core.engine import (
    COMPENSATING,
    PATCHED,
    Decided,
    Engine,
    Pending,
    Question,
    StepCall,
    StepCancelled,
    Suspended,
)
from flowlet.core.failures import Failure, rebuild_failure
from flowlet.core.run_records import (
    AttemptErred,
    Attention,
    Interrupted,
    Noted,
    Outcome,
    Resolved,
    RunRecord,
    SignalTaken,
    StepEnded,
    StepErred,
    StepStopped,
    TimerFired,
    TimerSet,
)
from flowlet.errors import HistoryMismatch, StepTimeout
from flowlet.runtime.journal import Journal
from flowlet.runtime.lanes import Lanes
from flowlet.runtime.pendings import LocalPending, Notice, Wait
from flowlet.runtime.replay import Item, Replay, name_item
from flowlet.runtime.steps import Host, StepRunner
from flowlet.runtime.tasks import Task
from flowlet.store import Signal

if TYPE_CHECKING:
    from typing_extensions import TypeIs

_failure_codec: Codec[Failure] = Codec(Failure)


class Reread(Exception):
    """What has happened last is known to the journal only: the run goes on from there at once."""


class Unresolved(Exception):
    """Why a run cannot go on here: its operator has to answer a question first.

    Attributes:
        asked: the question is on record already.
    """

    def __init__(self, question: Question, asked: bool) -> None:
        super().__init__(question.reason)
        self.question = question
        self.asked = asked


class ReplayingEngine(msgspec.Struct, eq=False):
    """The engine of one run in this process.

    Attributes:
        cut: a cancellation has passed through a wait for steps, which then stay open.
        order: why the run is to unwind, once it has been told to and as long as that is not on record.
        over: why the way forward has ended: a body that goes on even so starts nothing that would be on record.
        forced: an operator says so, which goes for a run that is past its pivot, too.
        interrupted: it is on record.
        committed: see `flowlet.core.engine.Engine`.
        signals: what is in the run's inbox, as far as it has looked.
        saving: the task that makes records durable beside a body which waits for something else.
        in_own_task: it is executed in a task of flowlet's own, so that every cancel scope there is the body's.
    """

    # A struct, with defaults for what most runs never touch: a run is short, and setting up its engine is most of it.
    run_id: str
    journal: Journal
    _host: Host
    _definition: RunDefinition
    _runner: StepRunner
    _owner: object = None  # the object of a class definition
    _doubt: bool = False  # what is started next may have begun before
    order: Exception | None = None
    over: Exception | None = None
    cut: bool = False
    committed: bool = False
    interrupted: bool = False
    in_own_task: bool = False
    forced: bool = False
    saving: Task | None = None
    _starts: int = 0
    _recorded: int = 0  # the last start of which an outcome was repeated
    _open: dict[int, LocalPending] = {}
    _fresh: list[LocalPending] = []  # started, and not begun
    _landed: list[Pending] = []  # ended, and not told to the interpreter
    _waits: dict[int, Wait] = {}
    _resting: bool = False  # there was a step for which nothing was to be done for a while
    _is_stopping: bool = False  # the interpreter has asked for something to be cancelled
    signals: Sequence[Signal] = ()
    _taken: set[int] | frozenset[int] = frozenset()
    _told: set[str] | frozenset[str] = frozenset()  # ids of children that have ended
    _timers: Mapping[int, TimerSet] = MappingProxyType({})
    _published: int = 0  # how many times the body has let others see something, as is on record
    _publishes: int = 0
    _called: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # ids of the runs that steps have called, by key
    _done: list[tuple[StepCall, bytes | None]] = []
    _replay: deque[Item] | tuple[()] = ()
    _attempts: Mapping[int, list[AttemptErred]] = MappingProxyType({})
    _begun: Mapping[int, str] = MappingProxyType({})
    _intents: Mapping[int, int] = MappingProxyType({})
    _origins: Sequence[tuple[int, str]] = ()
    _inbox: deque[Notice] | None = None
    _lanes: Lanes | None = None
    _has_news: bool = False  # a signal has come in
    _told_at: float = 0.0  # the time of the last record, while there are steps that have ended and were not told
    _aside_at: float = 0.0  # the time of the last record that no interpreter meets again
    _bell: anyio.Event | None = None

    def repeat(self, records: Sequence[RunRecord]) -> None:
        """Give back what is on record, before anything else."""
        replay = Replay(records)
        self._replay, self._attempts, self._begun = replay.items, replay.attempts, replay.begun
        self._intents, self._origins, self.order = replay.intents, replay.origins, replay.order
        self._taken, self._timers, self._published = replay.taken, replay.timers, replay.published
        self.forced = replay.order is not None
        self._called = replay.called
        self._runner.last = max(record.at for record in records)

    def note(self, key: str, value: bytes, /) -> bytes:
        """Record a decision, or return the recorded one."""
        self._forget_patches()
        if self._replay:
            front = self._replay[0]
            if not isinstance(front, Noted) or front.key != key:
                self._mismatch(f"decision {key!r}", name_item(front))
            self._pop()
            self._show_unwinding(key == COMPENSATING)
            return front.value
        self.journal.pending.append(pack(("n", key, value, self._stamp())))
        if key == COMPENSATING:
            self.journal.status = COMPENSATING
        return value

    def _show_unwinding(self, is_unwinding: bool) -> None:
        """Let listings say that the run is being undone, where they have to be told anew what it does."""
        if is_unwinding and self.journal.status == "running":
            self.journal.status = COMPENSATING

    def patch(self, key: str, /) -> bool:
        """Tell whether the run takes a new path: not if its history goes on without a word of it."""
        if self.over is not None:
            return False
        for place, record in enumerate(self._replay):
            if not _is_patch(record):
                return False
            if record.key == key:
                for _ in range(place + 1):  # what stands before it is asked for no more
                    self._pop()
                return True
        if self._replay or any(start > self._starts for start in (*self._attempts, *self._begun)):
            return False
        self.journal.pending.append(pack(("n", key, b"", self._stamp())))
        return True

    def keep(self, key: str, value: bytes | None, /) -> bytes | None:
        """Return a setting that the run began with, or have it begin with this one."""
        if self._replay:
            front = self._replay[0]
            if not isinstance(front, Noted) or front.key != key:
                return None
            self._pop()
            return front.value
        if value is None or self._attempts or self._begun or self._timers or self._published:
            return None
        self.journal.pending.append(pack(("n", key, value, self._stamp())))
        return value

    def _forget_patches(self) -> None:
        """Skip answers to `patch` that the code does not ask for any more: only its new path is left."""
        while self._replay and _is_patch(self._replay[0]):
            self._pop()

    def done(self) -> Sequence[tuple[StepCall, bytes | None]]:
        """Return the calls that can be undone, in the order of the journal, with their encoded results."""
        return tuple(self._done)

    def forget(self) -> None:
        """Let go of what holds this engine, calls and errors: so a run that has ended needs no garbage collector."""
        self._done.clear()
        self._landed.clear()
        self._runner.forget()

    @property
    def is_straight(self) -> bool:
        """Whether there is nothing left to repeat, and nobody has told the run to unwind."""
        return not self._replay and self.order is None and self.over is None

    @property
    def origin(self) -> str:
        """The run that the body's draws derive from: another one, while a fork repeats what that has done."""
        for left, origin in self._origins:
            if len(self._replay) > left:
                return origin
        return self.run_id

    async def attend(self, question: Question, /) -> Resolved:
        """Return the operator's answer, or leave the run until there is one."""
        if self.over is not None:
            raise Decided(self.over)
        asked = False
        self._forget_patches()
        if self._replay:
            front = self._replay[0]
            if not isinstance(front, Attention) or (front.status, front.steps) != (question.status, question.steps):
                self._mismatch(f"a question about step {', '.join(question.steps)}", name_item(front))
            self._pop()
            asked = True
            if self._replay and isinstance(self._replay[0], Interrupted):  # instead of an answer
                self._repeat_interruption()
            if self._replay:
                return self._answer(question)
        self._obey()
        self.journal.trouble = Unresolved(question, asked)
        raise Suspended

    def _answer(self, question: Question) -> Resolved:
        answer = self._pop()
        if not isinstance(answer, Resolved):
            self._mismatch("an operator's answer", name_item(answer))
        if answer.action == "compensate":
            # There is a way back after all: an operator has said so.
            self.committed = False
            if self._replay and isinstance(self._replay[0], Interrupted):
                self._repeat_interruption()
            self.order = question.error or question.errors[0]
            self._obey()
        return answer

    def describe(self, error: Exception, /) -> Failure:
        """Turn an exception into what is recorded of it."""
        return self._runner.describe(error)

    def now(self) -> float:
        """Return the time of the last record the run has seen."""
        return self._told_at if self._inbox else self._runner.now

    def _stamp(self) -> float:
        """Return the time for a record of the interpreter's: not behind that of what has ended and was not told."""
        self._told_at = max(self._told_at, self._aside_at) if self._inbox else self._runner.tick()
        return self._told_at

    def _stamp_aside(self) -> float:
        """Return the time for a record that no interpreter meets again, with which time does not go on for it."""
        self._aside_at = max(self._told_at, self._aside_at) if self._inbox else self._runner.mark()
        return self._aside_at

    def tick(self) -> float:
        """Read the store's clock for a record."""
        return self._runner.tick()

    def decided(self) -> Exception | None:
        """Return why the run unwinds, if its history says that it does where the body has returned."""
        self._forget_patches()
        front = self._replay[0] if self._replay else None
        if isinstance(front, Noted) and front.key == COMPENSATING:
            return rebuild_failure(_failure_codec.decode(front.value, "a recorded failure"))
        if isinstance(front, Interrupted):
            try:
                self._repeat_interruption()
            except Decided as decision:
                return decision.error
        return self.ordered

    @property
    def ordered(self) -> Exception | None:
        """Why the run is to unwind here, if it is."""
        return self.order if self.forced or not self.committed else None

    @property
    def decision(self) -> Exception | None:
        """Why the run unwinds, whatever its body has made of that."""
        return self.ordered if self.over is None else self.over

    @property
    def is_decided(self) -> bool:
        """Whether the history says that the run had decided to unwind by itself."""
        self._forget_patches()
        front = self._replay[0] if self._replay else None
        return isinstance(front, Noted) and front.key == COMPENSATING

    @property
    def is_due(self) -> bool:
        """Whether the run is to unwind, and to be cut short for it: not before it is where its records end.

        Where they end it goes on to its next step all the same if that may have begun before and wants to be undone.
        """
        if self._replay:
            return isinstance(self._replay[0], Interrupted)
        return self.ordered is not None and not (self._doubt and self._is_step_ahead())

    def obey(self) -> None:
        """Go no further where the run has been told to unwind, now or by its history."""
        self._forget_patches()
        if self._replay and isinstance(self._replay[0], Interrupted):
            self._repeat_interruption()
        if self.is_due:
            self._obey()

    def _is_step_ahead(self) -> bool:
        """Tell whether a step that has no outcome on record may matter to how the run is undone."""
        if any(start > self._starts for start in (*self._attempts, *self._begun)):
            return True
        return any(step.compensate_unknown for step in self._definition.steps.values())

    @property
    def _was_interrupted(self) -> bool:
        """Whether the history says that the run was told to unwind, further on than it has come here."""
        return any(isinstance(record, Interrupted) for record in self._replay)

    @property
    def is_astray(self) -> bool:
        """Whether the body has ended before it was where the run has to unwind from."""
        if self.is_decided or not self._replay:
            return False
        return self._was_interrupted or self.ordered is not None

    def check_end(self) -> None:
        """Refuse an end that leaves recorded work unused."""
        self._forget_patches()
        if self._replay:
            self._mismatch("the end of the run", name_item(self._replay[0]))

    def _obey(self) -> None:
        """Go no further forward in a run that was told to unwind."""
        order = self.ordered
        if order is not None:
            self.over = order
            raise Decided(order)

    def _pop(self) -> Item:
        assert self._replay
        record = self._replay.popleft()
        self._runner.now = record.at
        if isinstance(record, (StepEnded, StepErred, StepStopped, SignalTaken, TimerFired)):
            self._recorded = max(self._recorded, record.start)
        return record

    def _deliver_recorded(self) -> None:
        """Give the next recorded outcome to the pending that it belongs to."""
        assert self._replay
        record = self._replay[0]
        if isinstance(record, Noted) and record.key == COMPENSATING:
            # Whatever is open now was not started when the decision fell: the body has gone astray.
            self._forget_open()
            self.over = rebuild_failure(_failure_codec.decode(record.value, "a recorded failure"))
            raise Decided(self.over)
        if isinstance(record, Interrupted):
            self._repeat_interruption()
        if isinstance(record, (Noted, Attention, Resolved)):
            self._mismatch("a wait for a step", name_item(record))
        wait = self._waits.get(record.start)
        if wait is not None:
            self._deliver_wait(wait, record)
            return
        pending = self._open.get(record.start)
        if pending is None or isinstance(record, (SignalTaken, TimerFired)):
            started = ", ".join(repr(p.key) for p in (*self._open.values(), *self._waits.values()))
            self._mismatch(f"step {started}", name_item(record))
        self._check_same(pending, record)
        self._pop()
        self._end_as(pending, record)

    def _deliver_wait(self, wait: Wait, record: Outcome | SignalTaken | TimerFired) -> None:
        """Let a wait end as it did before."""
        raise NotImplementedError

    def _end_as(self, pending: LocalPending, record: Outcome) -> None:
        """End a pending as its record says."""
        if isinstance(record, StepEnded):
            self._end(pending, record.value, None)
            return
        if isinstance(record, StepErred):
            pending.call.attempt = record.attempt
            pending.call.doubtful = record.doubt
            error = rebuild_failure(record.error)
            self._runner.remember(error, record.error)
            self._end(pending, b"", error)
        else:
            if past := self._attempts.get(record.start):
                pending.call.attempt = past[-1].attempt + 1
            self._end(pending, b"", StepCancelled(record.key), record.begun)

    def _repeat_interruption(self) -> NoReturn:
        """Unwind where the run was told to before; what was under way then has its record right behind that.

        Where it waited for something else, it may come by on another path: then the records say what was under way.
        """
        record = self._pop()
        assert isinstance(record, Interrupted)
        self._show_unwinding(True)
        self.order, self.interrupted, self.committed = None, True, False
        while self._replay and isinstance(front := self._replay[0], (StepEnded, StepErred, StepStopped)):
            pending = self._open.get(front.start)
            self._pop()
            if pending is not None and (pending.key, pending.digest) == (front.key, front.digest):
                self._end_as(pending, front)
            elif isinstance(front, StepEnded) and front.input is not None:
                self._done.append((self._recorded_call(front, ""), front.value))
        self._forget_open()
        self.over = rebuild_failure(record.error)
        raise Decided(self.over)

    def _forget_open(self) -> None:
        self._starts = self._recorded  # of every other start there is a record by now
        self._open.clear()
        self._waits.clear()
        self._fresh, self._landed = [], []

    def _check_same(self, pending: LocalPending, record: Outcome | AttemptErred) -> None:
        if pending.key != record.key:
            self._mismatch(f"step {pending.key!r}", f"step {record.key!r}")
        if pending.digest != record.digest:
            self._mismatch(f"step {pending.key!r} with this input", "the same step with another input")

    def _past(self, pending: LocalPending) -> Sequence[AttemptErred]:
        """Return the recorded attempts of a step that has no recorded outcome."""
        past = self._attempts.get(pending.start, ())
        if past:
            self._check_same(pending, past[-1])
        return past

    def _mismatch(self, found: str, expected: str) -> NoReturn:
        reason = (
            f"run {self.run_id!r} of {self._definition.name!r}, start {self._starts}: the code now asks for {found}, "
            f"but the history has {expected}; bring back the code that the run began with and await "
            f"flow.handle({self.run_id!r}).resume(); new code wants a new version= beside the old"
        )
        if self._was_interrupted or (self.ordered is not None and (self.forced or not self._has_pivot_ahead())):
            self._unwind_unmatched(reason)
        self.journal.trouble = HistoryMismatch(reason)
        raise Suspended

    def _has_pivot_ahead(self) -> bool:
        """Tell whether the history has the return of a pivot, which the code no longer leads to."""
        for record in self._replay:
            key = record.key if isinstance(record, StepEnded) else None
            if isinstance(record, Resolved) and record.action == "skip":
                key = record.step
            step = None if key is None else self._definition.steps.get(_name_of(key))
            if step is not None and step.pivot:
                return True
        return False

    def _unwind_unmatched(self, reason: str) -> NoReturn:
        """Unwind although the body cannot be followed to where the run was told to: the records say what to undo."""
        self._forget_open()
        error, self.order = self.order, None
        interrupted = False
        while self._replay:
            front = self._replay[0]
            if isinstance(front, (StepEnded, StepErred, StepStopped, SignalTaken, TimerFired)):
                if "~" in front.key:  # the first compensation
                    break
                self._starts = max(self._starts, front.start)
                if isinstance(front, StepEnded) and front.input is not None:
                    self._done.append((self._recorded_call(front, reason), front.value))
            elif interrupted:
                break
            elif isinstance(front, Interrupted):
                interrupted = True
                error = rebuild_failure(front.error)
            self._pop()
        undoing = {start: past for start, past in self._attempts.items() if "~" in past[0].key}
        self._starts = max(self._starts, *(self._attempts.keys() - undoing.keys()), 0)
        self._attempts = undoing
        assert error is not None
        self.committed = False
        self.order, self.interrupted = (None, True) if interrupted else (error, False)
        self.over = error
        raise Decided(error)

    def _recorded_call(self, record: StepEnded, reason: str) -> StepCall:
        """Make the call that a record is of, without the body that made it."""
        step = self._definition.steps.get(_name_of(record.key))
        if step is None or step.compensation is None or (step.method and self._owner is None):
            self.journal.trouble = HistoryMismatch(
                f"step {record.key!r} cannot be undone, since this code does not know its compensation. {reason}"
            )
            raise Suspended
        assert record.input is not None
        return StepCall(cast("Engine", self), step, record.key, (), record.input, self._owner if step.method else None)

    def _end(self, pending: LocalPending, value: bytes, error: Exception | None, begun: bool = True) -> None:
        pending.ended = True
        pending.value = value
        pending.error = error
        del self._open[pending.start]
        self._landed.append(pending)
        call = pending.call
        if call.definition.compensation is not None:
            if error is None:
                self._done.append((call, value))
            elif call.definition.compensate_unknown and _may_have_acted(call, error, begun):
                self._done.append((call, None))

    def _stop(self, pending: LocalPending) -> None:
        """End a step that was cancelled before it had an outcome."""
        begun = pending.launched or self._doubt or pending.start in self._begun
        self.journal.pending.append(self._runner.pack_stopped(pending.start, pending.call, begun, self._stamp()))
        self._end(pending, b"", StepCancelled(pending.key), begun)


def _name_of(key: str) -> str:
    """Return the name of the step that a key is of."""
    return re.split(r"[#:~[]", key, maxsplit=1)[0]


def _is_patch(record: Item) -> TypeIs[Noted]:
    return isinstance(record, Noted) and record.key.startswith(PATCHED)


def _may_have_acted(call: StepCall, error: Exception, begun: bool) -> bool:
    """Tell whether a step without a result may have done something even so."""
    if isinstance(error, StepCancelled):
        return begun
    return call.doubtful or isinstance(error, StepTimeout)
