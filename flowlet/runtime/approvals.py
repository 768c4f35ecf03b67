"""Approval chains from outside: judging what somebody wants to do, sending it, and listing what waits for whom.

Law: a request is judged on one consistent view of journal and inbox, and sent only if both are still what they were:
so two people at once cannot both be the last, and no decision is made on what is not the case any more. What is refused
changes nothing; that it was tried is sent to the run, for its audit, if the application knows who did.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Protocol

import anyio.lowlevel
import msgspec

from flowlet.core.approval_case import Case, as_datetime
from flowlet.core.approval_messages import TOPIC, Decided, Message, Refused, Request
from flowlet.core.approval_plan import ApprovalDefinition
from flowlet.core.approval_stage import Stage
from flowlet.core.approval_values import AuditEntry, Decision
from flowlet.core.approval_view import read_case
from flowlet.core.codec import encode, pack
from flowlet.core.definitions import RunDefinition
from flowlet.core.run_records import Interrupted, RunRecord
from flowlet.core.sizes import FRAME, check_size
from flowlet.errors import ApprovalError, Conflict, DecisionRefused, FlowletError, RunFinished, RunParked
from flowlet.runtime.execution import Execution
from flowlet.runtime.iterating import readable
from flowlet.runtime.orders import CANCEL, ORDERED, STUCK
from flowlet.store import Head, Signal, Store, Stored, Write

_OPEN = ("running", "waiting")
"""Statuses of runs in which people can decide."""

_PATIENCE = 5.0
"""Seconds for which a request waits for a level to open of which it is just being found out who is asked."""

_MOST_REFUSALS = 100
"""So many refused attempts of one run are kept for its audit."""


class ApprovalsHost(Protocol):
    """What this needs of the process it is in."""

    live: dict[str, Execution]
    max_payload: int | None

    def now(self) -> float: ...
    def definition_of(self, head: Head) -> RunDefinition | None: ...
    def decode(self, id: str, number: int, data: bytes) -> RunRecord: ...
    async def load(self, id: str, *, after: int = 0, limit: int | None = None) -> Stored: ...
    async def take_up(self, id: str) -> None: ...
    async def look(self, execution: Execution) -> None: ...


class InboxItem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that waits for somebody to decide.

    Attributes:
        id: the run's id, which `Flowlet.approve` takes.
        roles: the level's role and, when it was escalated, that one as well; none if only names count.
        people: those who are asked by name and have not decided, delegates included.
        since: when the level opened.
        due: when its timeout comes, None if it has none.
        escalated: it has come to ``escalate_to``.
        required: how many must approve.
        decisions: those that were made on this level.
    """

    id: str
    definition: str
    level: str
    roles: tuple[str, ...]
    people: tuple[str, ...]
    requester: str
    subject: Any
    since: datetime
    due: datetime | None
    escalated: bool
    required: int
    decisions: tuple[Decision, ...]


class _View(msgspec.Struct, eq=False):
    """A run at one moment, as somebody from outside sees it.

    Attributes:
        is_told: it was told to end, and has not yet.
    """

    head: Head
    definition: ApprovalDefinition
    case: Case
    is_told: bool


class Approvals:
    """Judges, sends and lists for the approval chains in a store."""

    def __init__(self, store: Store, host: ApprovalsHost) -> None:
        self._store = store
        self._host = host

    # -------------------------------------------------------------- sending
    async def request(
        self,
        id: str,
        make: Callable[[ApprovalDefinition, float], Request],
        *,
        is_known: bool,
        refusal: DecisionRefused | None = None,
    ) -> Request:
        """Judge a request and send it to a run; return it with what was left open filled in.

        Args:
            make: makes the request, given the time at which it is judged.
            is_known: the application knows who asks, so that the attempt is worth a record if it is refused.
            refusal: why it is to be refused in any case.
        """
        given_up, seen = time.monotonic() + _PATIENCE, -1
        while True:
            view = await self._look(id)
            case = view.case
            request = make(view.definition, max(case.at, self._host.now()))
            self._check_open(view, request)
            try:
                judged = case.judge(request)
                if refusal is not None:
                    raise refusal
            except DecisionRefused as error:
                if error.reason == "not_open" and case.unresolved() and time.monotonic() < given_up:
                    await self._host.take_up(id)
                    seen = await self._store.watch(seen, 0.2)
                    continue
                known = is_known or _is_part(case, request.by)
                if known and not await self._send(view, _refused(request, error)):
                    continue  # something else has happened meanwhile: it may be allowed now
                raise
            if await self._send(view, judged):
                return judged

    def _check_open(self, view: _View, request: Request) -> None:
        head = view.head
        if view.case.status is not None and (head.closed is None or head.status == "completed"):
            view.case.judge(request)  # which says how it has ended
        if head.closed is not None:
            text = f"run {head.id!r} has ended as {head.status!r}; nobody can decide on it any more"
            raise RunFinished(text, head.id)
        if view.is_told:
            raise RunFinished(f"run {head.id!r} was told to end; nobody can decide on it any more", head.id)
        if head.status in STUCK:
            raise RunParked(
                f"run {head.id!r} waits for its operator; nobody can decide on it until it goes on: resume()"
            )

    async def _send(self, view: _View, message: Message) -> bool:
        """Send a message to a run that is still as it was seen; tell whether it was."""
        head = view.head
        if isinstance(message, Refused) and sum(e.what == "refused" for e in view.case.log) >= _MOST_REFUSALS:
            return True
        data = pack(message)
        check_size(data, self._host.max_payload, f"what {message.by} sends to run {head.id!r}", FRAME + 2 * len(TOPIC))
        signal = Signal(TOPIC, data)
        write = Write(id=head.id, expect=head.version, inbox=head.inbox, signals=(signal,), state=ORDERED)
        try:
            await self._store.append((write,))
        except (Conflict, RunFinished):
            await anyio.lowlevel.checkpoint()
            return False
        execution = self._host.live.get(head.id)
        if execution is not None:
            await self._host.look(execution)
        else:
            await self._host.take_up(head.id)
        return True

    # -------------------------------------------------------------- looking
    @readable
    async def audit(self, id: str) -> AsyncGenerator[AuditEntry, None]:
        """Yield what has happened, in order."""
        view = await self._look(id)
        for entry in view.case.log:
            yield entry

    @readable
    async def inbox(
        self, definitions: Sequence[str], role: str | None, person: str | None, roles: Iterable[str] | None
    ) -> AsyncGenerator[InboxItem, None]:
        """Yield what waits for a role, or for a person with these roles; everything without either."""
        held = None if roles is None else tuple(sorted(roles))
        for name in definitions:
            after = 0
            while heads := await self._store.scan(kind="run", definition=name, status=_OPEN, after=after):
                for head in heads:
                    view = await self._look_if_open(head)
                    for stage in [] if view is None else view.case.stages.values():
                        if view is not None and _waits_for(view.case, stage, role, person, held):
                            yield _item(view, stage)
                after = heads[-1].order

    async def _look(self, id: str) -> _View:
        """Read a run and what has come in for it, at one moment.

        Raises:
            RunNotFound: there is none.
            ApprovalError: it is no run of an approval chain.
            FlowletError: its definition is not known here.
        """
        stored = await self._host.load(id)
        head = stored.head
        definition = self._host.definition_of(head) if head.kind == "run" else None
        if head.kind == "run" and definition is None:
            raise FlowletError(
                f"run {id!r} is of {head.definition!r} version {head.definition_version}, which is not known here: "
                "include its definition"
            )
        if not isinstance(definition, ApprovalDefinition):
            raise ApprovalError(f"{id!r} is a {head.kind} of {head.definition!r}, on which nobody decides")
        return self._view(stored, definition)

    async def _look_if_open(self, head: Head) -> _View | None:
        """Read a run of a listing; None if nobody can decide on it."""
        definition = self._host.definition_of(head)
        if not isinstance(definition, ApprovalDefinition):
            return None  # of a version that is not known here
        stored = await self._store.load(head.id)
        if stored is None or stored.head.closed is not None:
            return None
        try:
            view = self._view(stored, definition)
        except FlowletError:  # it cannot be read, or its rules fail; that is the run's own trouble
            return None
        return None if view.case.is_over or view.is_told else view

    def _view(self, stored: Stored, definition: ApprovalDefinition) -> _View:
        head = stored.head
        records = [self._host.decode(head.id, number, data) for number, data in enumerate(stored.records, 1)]
        inbox = [(signal.number, signal.payload) for signal in stored.signals if signal.topic == TOPIC]
        case = read_case(definition, records, inbox)
        if head.closed is None:
            case.advance(self._host.now())
        is_told = any(isinstance(record, Interrupted) for record in records) or any(
            signal.topic == CANCEL for signal in stored.signals
        )
        return _View(head, definition, case, is_told)


def _refused(request: Request, error: DecisionRefused) -> Refused:
    """Return what is kept of an attempt that was refused."""
    return Refused(
        at=request.at,
        by=request.by,
        attempt=request.attempt,
        reason=str(error),
        level=error.level or request.level,
        roles=getattr(request, "roles", None),
        comment=request.comment,
    )


def _is_part(case: Case, person: str) -> bool:
    """Tell whether the chain itself knows a person: who has requested, is asked by name, or has decided."""
    stages = [*case.stages.values(), *case.passed.values()]
    named = {name for stage in stages for name in (*(stage.people or ()), *stage.delegations.values(), *stage.voters)}
    return person == case.requester or person in named


def _waits_for(case: Case, stage: Stage, role: str | None, person: str | None, roles: tuple[str, ...] | None) -> bool:
    if stage.since is None or (role is not None and role not in stage.roles):
        return False
    if person is None:
        return True
    if roles is None and role is not None:
        roles = (role,)
    try:
        case.judge(Decided(at=case.at, by=person, roles=roles, approved=True, level=stage.plan.name))
    except DecisionRefused:
        return False
    return True


def _item(view: _View, stage: Stage) -> InboxItem:
    case, name = view.case, stage.plan.name
    excluded = case.excluded(name)
    assert stage.since is not None
    return InboxItem(
        id=view.head.id,
        definition=view.definition.name,
        level=name,
        roles=stage.roles,
        people=stage.asked(excluded),
        requester=case.requester,
        subject=case.plan.subject.decode(case.subject, f"the subject of run {view.head.id!r}"),
        since=as_datetime(stage.since),
        due=None if stage.deadline is None else as_datetime(stage.deadline),
        escalated=stage.escalated is not None,
        required=stage.required(excluded),
        decisions=tuple(d for d in case.decisions if d.level == name),
    )


def encode_subject(definition: ApprovalDefinition, subject: object, max_payload: int | None) -> bytes:
    """Encode what is decided on anew, if it is of its type and the rules can be asked of it.

    Raises:
        EncodeError, DecodeError, PayloadTooLarge: it cannot be stored, or is of another type.
        RuleFailed: a rule has.
    """
    what = f"the subject of {definition.name!r}"
    data = encode(subject, what)
    definition.plan.subject.decode(data, what)
    check_size(data, max_payload, what, 2 * FRAME)
    definition.plan.choose(data)
    return data
