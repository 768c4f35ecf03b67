"""Running an approval chain: one task that takes messages, lets time pass, and has steps do the rest.

Law: what a message or a timer means is the case's to say; here it is only waited for, and what follows from it begun. A
chain that waits for people keeps nothing in memory. What ``notify=`` fails with holds nobody up.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from flowlet.core.approval_case import Announcement, Case, as_datetime
from flowlet.core.approval_messages import TOPIC, message_codec
from flowlet.core.approval_plan import OPENED, ChainPlan
from flowlet.core.approval_stage import Stage
from flowlet.core.approval_values import ApprovalNotice, ApprovalOutcome
from flowlet.core.codec import Codec, encode, pack
from flowlet.core.definitions import Context, Undone
from flowlet.core.engine import Pending, StepCall
from flowlet.core.flights import Flights, Landed
from flowlet.core.program import exchange_call
from flowlet.errors import ApprovalError

_names: Codec[list[str]] = Codec(list[str])
_time: Codec[float] = Codec(float)

_MESSAGE = "message"


class _Asking(msgspec.Struct, frozen=True, eq=False):
    """That a step finds out who is asked on a level."""

    number: int
    level: str


class _Due(msgspec.Struct, frozen=True, eq=False):
    """That time does something."""

    at: float


class _Telling(msgspec.Struct, frozen=True, eq=False):
    """That a step tells people something."""


class ApprovalInterpretation:
    """One run of a chain."""

    __slots__ = (
        "_asked",
        "_calls",
        "_due",
        "_engine",
        "_flights",
        "_inputs",
        "_messages",
        "_plan",
        "_timer",
        "_timers",
        "_told",
        "_untold",
    )

    def __init__(self, plan: ChainPlan, inputs: tuple[Any, ...], context: Context) -> None:
        self._plan = plan
        self._engine = context.engine
        self._inputs = inputs
        self._flights = Flights(context.engine)
        self._asked = 0  # the last level of which it was asked who decides, by its number
        self._calls = 0  # steps that are under way
        self._told = 0
        self._untold: deque[StepCall] = deque()  # what is to be told, one after the other; the first is under way
        self._messages = 0
        self._timers = 0
        self._timer: Pending | None = None
        self._due: _Due | None = None  # what the timer is for

    @property
    def undoes(self) -> bool:
        """Nothing: what people have decided stands."""
        return False

    async def backward(self, error: Exception) -> Undone:
        """Undo nothing."""
        return Undone()

    async def forward(self) -> bytes:
        """Let people decide; return the encoded outcome."""
        flights = self._flights
        subject, requester = self._inputs
        try:
            data = encode(subject, f"the subject of {self._plan.name!r}")
            case = Case(self._plan, data, requester, self._engine.now(), self._choose)
            self._hear()
            self._begin(case)
            while self._calls or not case.is_over:
                for landed in await flights.land():
                    self._take(case, landed)
                    self._begin(case)
        except Exception:
            await flights.stop()
            raise
        if case.failure is not None:
            raise case.failure
        return pack(self._outcome(case))

    def _choose(self, submission: int, subject: bytes) -> list[str]:
        """Ask the rules which levels apply, once."""
        data = pack(self._plan.choose(subject))
        return _names.decode(self._engine.note(self._plan.rules_key(submission), data), "the levels that apply")

    def _outcome(self, case: Case) -> ApprovalOutcome[Any]:
        assert case.status is not None
        return ApprovalOutcome(
            approved=case.status == "approved",
            status=case.status,
            decisions=case.decisions,
            reason=case.reason,
            subject=self._read_subject(case),
            requester=case.requester,
        )

    def _read_subject(self, case: Case) -> Any:
        return self._plan.subject.decode(case.subject, f"the subject of {self._plan.name!r}")

    # -------------------------------------------------------------- what has landed
    def _take(self, case: Case, landed: Landed) -> None:
        purpose = landed.purpose
        if purpose is _MESSAGE:
            if landed.error is not None:
                raise landed.error
            case.take(message_codec.decode(landed.value, "a message to the approval chain"))
            if not case.is_over:
                self._hear()
        elif isinstance(purpose, _Due):
            if purpose is self._due:  # otherwise it was stopped, since it was for nothing any more
                self._timer = self._due = None
                if landed.error is not None:
                    raise landed.error
                case.advance(purpose.at)
        else:
            self._calls -= 1
            if isinstance(purpose, _Telling):
                self._untold.popleft()
                self._tell_next()
            else:
                names = self._read_names(purpose, landed)
                case.resolve(purpose.number, names, self._note_opening(purpose.number))

    def _note_opening(self, number: int) -> float:
        """Return when a level was opened, which is put on record: its timeouts are counted from then."""
        return _time.decode(self._engine.note(f"{OPENED}{number}", pack(self._engine.now())), "when a level opened")

    def _read_names(self, purpose: _Asking, landed: Landed) -> list[str]:
        names: list[str] = landed.result
        if not all(names):
            raise ApprovalError(f"approvers= of level {purpose.level!r} returned a name without letters: {names!r}")
        return names

    # -------------------------------------------------------------- what follows
    def _hear(self) -> None:
        """Wait for the next message."""
        self._messages += 1
        self._flights.watch(self._engine.signal(f"{_MESSAGE}#{self._messages}", TOPIC), _MESSAGE)

    def _begin(self, case: Case) -> None:
        """Begin what follows from what has happened."""
        for stage in case.unresolved():
            if stage.number > self._asked and not case.is_over:
                self._ask(case, stage)
        self._set_timer(case)
        if case.status is not None and not self._engine.committed:
            self._engine.obey()
            self._engine.committed = True  # what people are told of it now stays true
        announcements, case.announcements = case.announcements, []
        for announcement in announcements:
            self._tell(case, announcement)

    def _ask(self, case: Case, stage: Stage) -> None:
        """Have a step find out who is asked."""
        self._asked = stage.number
        step = stage.plan.resolver
        assert step is not None
        data, args = exchange_call(step, (self._read_subject(case),))
        key = f"{step.name}#{stage.number}"
        call = StepCall(self._engine, step, key, args, data, stage.plan.owner)
        self._calls += 1
        self._flights.add(call, _Asking(stage.number, stage.plan.name))

    def _set_timer(self, case: Case) -> None:
        """Wait for the moment at which time changes something next, and for no other one."""
        at = case.next_due()
        if self._due is not None and self._due.at == at:
            return
        if self._timer is not None:
            self._engine.cancel(self._timer)
            self._timer = self._due = None
        if at is not None:
            self._timers += 1
            self._due = _Due(at)
            self._timer = self._engine.timer(f"due#{self._timers}", at=at)
            self._flights.watch(self._timer, self._due)

    def _tell(self, case: Case, announcement: Announcement) -> None:
        """Have a step tell people something, when they have been told what came before."""
        step = self._plan.notify
        if step is None:
            return
        self._told += 1
        notice = self._notice(case, announcement)
        data, args = exchange_call(step, (notice,))
        what = notice.what if notice.level is None else f"{notice.what}/{notice.level}"
        key = f"{step.name}:{what}#{self._told}"
        self._untold.append(StepCall(self._engine, step, key, args, data, self._plan.owner))
        if len(self._untold) == 1:
            self._tell_next()

    def _tell_next(self) -> None:
        if self._untold:
            self._calls += 1
            self._flights.add(self._untold[0], _Telling())

    def _notice(self, case: Case, announcement: Announcement) -> ApprovalNotice[Any]:
        entry = announcement.entry
        return ApprovalNotice(
            what=entry.what,
            id=self._engine.origin,  # of a fork that repeats what another run has told, that one's
            definition=self._plan.name,
            requester=case.requester,
            subject=self._read_subject(case),
            at=entry.at,
            level=entry.level,
            by=entry.by,
            to=entry.to,
            roles=announcement.roles,
            people=announcement.people,
            due=None if announcement.due is None else as_datetime(announcement.due),
            reason=entry.reason,
        )
