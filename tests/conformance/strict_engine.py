"""An engine that forgives nothing: it suspends at every wait, begins again, and compares each start by position.

Law: a run that suspends is thrown away, with its object and its body, and begins anew from the journal.
The n-th thing that it then starts (a step, a note, a cancellation, a wait) must be the n-th that it started
before. Whatever crosses the seam does so as bytes. An interpreter that passes here needs nothing of an
engine but its protocol, so that it runs on a distributed one as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from flowlet.core.codec import Codec, pack
from flowlet.core.current import run_context
from flowlet.core.definitions import Context, RunDefinition, Undone
from flowlet.core.engine import Decided, Pending, Question, StepCall, StepCancelled, Suspended
from flowlet.core.failures import Failure, describe_failure, rebuild_failure
from flowlet.core.registry import definition_of
from flowlet.core.run import Run
from flowlet.core.run_records import Resolved
from flowlet.errors import SignalTimeout
from flowlet.runtime.retrying import next_delay
from flowlet.runtime.tasks import current_task_function

Provide = Callable[[Any], Any]

_failure = Codec(Failure)
_CANCELLED = b"cancelled"


class NotTheSame(Exception):
    """A replay has started something else than the run did before."""


@dataclass
class StrictJournal:
    """What is remembered of a run between two suspensions.

    Attributes:
        started: everything that the run has started, in order, as plain data.
        answers: of each wait, the start that ended; only this one was told to the run.
        outcomes: by start, the encoded value, or the encoded failure, or that it was cancelled.
        attempts: by start, how often a step was tried.
        verdicts: the answers to the run's questions, in order.
        replays: how often the run began.
    """

    started: list[tuple[Any, ...]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    outcomes: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    verdicts: list[Resolved] = field(default_factory=list)
    replays: int = 0


class StrictPending(Pending):
    """A step that was started, or a wait, which has no call: for a signal of a topic, for a time, or for both."""

    __slots__ = ("call", "ended", "is_timed", "stopping", "topic")

    def __init__(self, start: int, key: str, call: StepCall | None, topic: str = "", *, is_timed: bool = False) -> None:
        super().__init__(key, start)
        self.call = call
        self.topic = topic
        self.is_timed = is_timed
        self.ended = False
        self.stopping = False


class StrictEngine:
    """Implements `flowlet.core.engine.Engine` for one replay of one run.

    Attributes:
        asked: what the run waited for when it was suspended.
        question: what it asked then, if that is what it waits for.
    """

    run_id = origin = "strict"
    committed = False

    def __init__(self, journal: StrictJournal) -> None:
        self.journal = journal
        self.asked: Sequence[StrictPending] = ()
        self.question: Question | None = None
        self._position = 0
        self._waits = 0
        self._verdicts = 0
        self._keys: set[str] = set()
        self._done: list[tuple[StepCall, bytes | None]] = []

    def step(self, call: StepCall, /) -> StrictPending:
        if call.key in self._keys and not call.spent:
            raise NotTheSame(f"key {call.key!r} was given to two steps")
        self._keys.add(call.key)
        self._start("step", call.key, call.definition.name, call.input)
        return StrictPending(self._position, call.key, call)

    def signal(self, key: str, topic: str, /, *, timeout: float | None = None) -> StrictPending:
        self._begin_wait("signal", key, topic, timeout)
        return StrictPending(self._position, key, None, topic, is_timed=timeout is not None)

    def timer(self, key: str, /, *, delay: float | None = None, at: float | None = None) -> StrictPending:
        if (delay is None) is (at is None):
            raise NotTheSame(f"timer {key!r} needs either a delay or a time")
        self._begin_wait("timer", key, delay, at)
        return StrictPending(self._position, key, None, is_timed=True)

    def _begin_wait(self, kind: str, key: str, *what: Any) -> None:
        if key in self._keys:
            raise NotTheSame(f"key {key!r} was given to two starts")
        self._keys.add(key)
        self._start(kind, key, *what)

    def publish(self, key: str, value: bytes, /, *, in_step: bool = False) -> None:
        if not in_step:
            self._start("publish", key, value)

    def cancel(self, pending: Pending, /) -> None:
        assert isinstance(pending, StrictPending)
        self._start("cancel", pending.start)
        pending.stopping = True

    def note(self, key: str, value: bytes, /) -> bytes:
        recorded: bytes = self._start("note", key, value)[2]
        return recorded

    def patch(self, key: str, /) -> bool:
        started = self.journal.started
        if self._position < len(started) and started[self._position] != ("patch", key):
            return False
        self._start("patch", key)
        return True

    def keep(self, key: str, value: bytes | None, /) -> bytes | None:
        started = self.journal.started
        if self._position < len(started):
            begun = started[self._position]
            return self.note(key, begun[2]) if begun[:2] == ("note", key) else None
        return None if value is None or self._position else self.note(key, value)

    def done(self) -> Sequence[tuple[StepCall, bytes | None]]:
        return list(self._done)

    def obey(self) -> None:
        """Nobody tells this run anything."""

    async def attend(self, question: Question, /) -> Resolved:
        self._start("ask", question.status, question.steps)
        if self._verdicts == len(self.journal.verdicts):
            self.question = question
            raise Suspended
        self._verdicts += 1
        verdict = self.journal.verdicts[self._verdicts - 1]
        if verdict.action == "compensate":
            raise Decided(question.error or question.errors[0])
        return verdict

    async def first(self, pending: Collection[Pending], /) -> Sequence[Pending]:
        ours = [p for p in pending if isinstance(p, StrictPending)]
        assert len(ours) == len(pending) > 0, "it waits for nothing"
        ended = [p for p in ours if p.ended]
        if ended:
            return ended
        self._start("wait", *(p.start for p in ours))
        if self._waits == len(self.journal.answers):
            self.asked = ours
            raise Suspended
        answer = self.journal.answers[self._waits]
        self._waits += 1
        chosen = next(p for p in ours if p.start == answer)
        chosen.ended = True
        return [chosen]

    async def value(self, pending: Pending, /) -> bytes:
        assert isinstance(pending, StrictPending)
        assert pending.ended, "it asks for a value before the step has ended"
        kind, data = self.journal.outcomes[pending.start]
        call = pending.call
        if call is None:
            if kind == "cancelled":
                raise StepCancelled(pending.key)
            if kind == "late":
                raise SignalTimeout(f"no signal {pending.topic!r}")
            return data
        if kind == "ok":
            if call.definition.compensation is not None:
                self._done.append((call, data))
            return data
        call.attempt = self.journal.attempts.get(pending.start, 1)
        if kind == "cancelled":
            if call.definition.compensate_unknown:
                self._done.append((call, None))
            raise StepCancelled(pending.key)
        raise rebuild_failure(_failure.decode(data, "a failure"))

    async def perform(self, call: StepCall, /) -> bytes:
        pending = self.step(call)
        await self.first([pending])
        return await self.value(pending)

    def describe(self, error: Exception, /) -> Failure:
        return describe_failure(error)

    def now(self) -> float:
        return 1e9 + self._position

    def _start(self, *what: Any) -> tuple[Any, ...]:
        started = self.journal.started
        if self._position < len(started):
            if started[self._position] != what:
                raise NotTheSame(f"start {self._position + 1} was {started[self._position]}, and now is {what}")
        else:
            started.append(what)
        self._position += 1
        return started[self._position - 1]

    def check_used(self) -> None:
        """Refuse the end of a run that has not done again all that it had done."""
        if self._position != len(self.journal.started) or self._waits != len(self.journal.answers):
            raise NotTheSame(f"the run ended at start {self._position} of {len(self.journal.started)}")


class StrictRun:
    """One run of a definition on the strict engine.

    Args:
        dice: decides which of the steps that a run waits for ends first.
        provide: as in the runtime.
        answer: gives the operator's answers.
        signals: the encoded payloads that are sent, by topic.

    Attributes:
        undone: what the interpretation says that it undid.
    """

    def __init__(
        self,
        definition: Any,
        *inputs: Any,
        dice: random.Random,
        provide: Provide | None = None,
        answer: Callable[[Question], Resolved] | None = None,
        signals: dict[str, list[bytes]] | None = None,
    ) -> None:
        found = definition_of(definition)
        assert isinstance(found, RunDefinition)
        self.definition = found
        self.journal = StrictJournal()
        self.undone = Undone()
        self._input = found.starter.exchange_input(found.starter.bind(inputs, {}))[0]
        self._dice = dice
        self._answer = answer
        self._signals = {topic: list(payloads) for topic, payloads in (signals or {}).items()}
        self._provide: Provide = provide or (lambda annotation: annotation())

    async def result(self) -> Any:
        """Run to the end; return the decoded result or raise why it failed."""
        while True:
            engine = StrictEngine(self.journal)
            self.journal.replays += 1
            assert self.journal.replays < 10_000, "it does not come to an end"
            try:
                return await self._once(engine)
            except Suspended:
                if engine.question is None:
                    await self._end_one(engine.asked)
                else:
                    assert self._answer is not None, engine.question.reason
                    self.journal.verdicts.append(self._answer(engine.question))

    async def _once(self, engine: StrictEngine) -> Any:
        definition = self.definition
        instance = None
        if isinstance(definition.target, type):
            instance = definition.target(**{p.name: self._provide(p.annotation) for p in definition.constructor})
        provided = {
            p.name: self._provide(p.annotation) for p in definition.starter.providers if p.annotation is not Run
        }
        inputs = definition.starter.input.decode(self._input, "the input")
        context = Context(engine, current_task_function(), instance, provided)
        interpretation = definition.interpret(context, inputs)
        try:
            value = await interpretation.forward()
        except NotTheSame:
            raise
        except (Exception, Decided) as reason:
            error = reason.error if isinstance(reason, Decided) else reason
            undoes = interpretation.undoes
            self.undone = await interpretation.backward(error)
            assert undoes or not self.undone.steps  # a pipeline does what is left to do, and undoes nothing
            engine.check_used()
            raise error from None
        engine.check_used()
        return definition.starter.decode(value)

    async def _end_one(self, asked: Sequence[StrictPending]) -> None:
        """Let something that the run waits for come to its end, while nothing of the run is in memory."""
        ready = [p for p in asked if p.call or p.stopping or p.is_timed or self._signals.get(p.topic)]
        pending = self._dice.choice(ready)
        if pending.call is None:
            self.journal.outcomes[pending.start] = self._end_wait(pending)
        elif pending.start not in self.journal.outcomes:
            if pending.stopping and self._dice.random() < 0.7:  # or it was too late to stop it
                self.journal.outcomes[pending.start] = ("cancelled", b"")
            else:
                self.journal.outcomes[pending.start] = await self._execute(pending.call)
                self.journal.attempts[pending.start] = pending.call.attempt
        self.journal.answers.append(pending.start)

    def _end_wait(self, pending: StrictPending) -> tuple[str, bytes]:
        """Return how a wait ends: a signal that is there is given to it, and is not passed over for a time."""
        if pending.stopping:
            return "cancelled", b""
        sent = self._signals.get(pending.topic)
        if sent:
            return "ok", sent.pop(0)
        return ("late", b"") if pending.topic else ("ok", b"")

    async def _execute(self, call: StepCall) -> tuple[str, bytes]:
        definition = call.definition
        attempt = call.spent
        while True:
            attempt += 1
            call.begin(attempt)
            token = run_context.set(call)
            try:
                provided = {
                    p.name: call.run() if p.annotation is Run else self._provide(p.annotation)
                    for p in definition.providers
                }
                result = definition.call(call.owner, call.args, provided)
                return "ok", pack(await result if definition.is_async else result)
            except Exception as error:
                if definition.retry is None or next_delay(definition.retry, attempt - call.spent, error, 0.0) is None:
                    return "failed", msgspec.msgpack.encode(describe_failure(error))
            finally:
                run_context.reset(token)
