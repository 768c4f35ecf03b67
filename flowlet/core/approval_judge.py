"""The judge: whether somebody may do to an approval chain what they want to.

Law: one pure function of the case and the request, for who asks before they send and for the run that takes what was
sent. It changes nothing. It says why not in a way that tells the person what they may do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, TypeVar

import msgspec

from flowlet.core.approval_messages import Decided, Delegated, Request, Vote, Withdrawn
from flowlet.core.approval_stage import Stage, name_people
from flowlet.core.faults import nearest
from flowlet.errors import AlreadyDecided, DecisionRefused

if TYPE_CHECKING:
    from flowlet.core.approval_case import Case

V = TypeVar("V", Decided, Delegated)

_TELLING = ("already_decided", "delegated", "self_approval", "distinct", "not_delegable", "ambiguous", "no_roles")
"""Of several reasons, the one that is given: what concerns the person before what concerns a level."""


def judge(case: Case, request: Request) -> Request:
    """Return a request with what was left open filled in: the level, whose vote it is, by which role.

    Args:
        case: as it is at the time of the request.

    Raises:
        DecisionRefused: it may not be.
    """
    if case.is_over:
        _refuse_ended(case, request)
    if case.deadline is not None and request.at >= case.deadline:
        text = f"the deadline of this run has passed; {request.by} can change nothing any more"
        raise DecisionRefused(text, "expired", request.by, request.level)
    if isinstance(request, Decided):
        return _judge_vote(case, request)
    if isinstance(request, Delegated):
        return _judge_vote(case, request)
    if request.by != case.requester:
        word = "withdraw" if isinstance(request, Withdrawn) else "resubmit"
        text = f"{request.by} cannot {word} what {case.requester} has requested; only {case.requester} can"
        raise DecisionRefused(text, "not_requester", request.by)
    return request


def _refuse_ended(case: Case, request: Request) -> NoReturn:
    text = f"the chain has ended: {case.failure or case.reason}; {request.by} can change nothing any more"
    raise AlreadyDecided(text, "ended", request.by, request.level)


def _judge_vote(case: Case, request: V) -> V:
    if request.level:
        return _weigh(case, _named_stage(case, request), request)
    before = next((stage for stage in _stages(case) if _is_repeated(stage, request)), None)
    if before is not None:
        # The same click twice must not decide two levels.
        name = before.plan.name
        levels = " or ".join(f"level={name!r}" for name in case.stages)
        text = f"{request.by} has decided on level {name!r}; to go on with another one, say {levels}"
        raise AlreadyDecided(text, "already_decided", request.by, name)
    return _find_stage(case, request)


def _stages(case: Case) -> list[Stage]:
    """Return the levels on which anything has been decided, or may be."""
    return [*case.passed.values(), *case.stages.values()]


def _is_repeated(stage: Stage, request: Vote) -> bool:
    """Tell whether somebody may mean a level on which they have a part in a vote already."""
    votes = [vote for vote in stage.votes.values() if request.by in (vote.by, vote.principal)]
    is_own = stage.role_of(request.by, request.roles or ())[0]
    return any(is_own or vote.on_behalf_of is not None for vote in votes)


def _find_stage(case: Case, request: V) -> V:
    """Return the request for the only open level that it can be for."""
    found: list[V] = []
    refusals: list[DecisionRefused] = []
    for stage in case.stages.values():
        try:
            found.append(_weigh(case, stage, request))
        except DecisionRefused as error:
            refusals.append(error)
    if len(found) > 1:
        levels = " or ".join(f"level={one.level!r}" for one in found)
        raise DecisionRefused(f"{request.by} may decide on several levels; say {levels}", "ambiguous", request.by)
    if found:
        return found[0]
    refusal = min(refusals, key=_rank)
    if refusal.reason in ("role_not_held", "not_asked"):
        for stage in case.passed.values():
            if stage.role_of(request.by, request.roles or ())[0]:
                _refuse_passed(stage, request)  # somebody was faster
    raise refusal


def _rank(error: DecisionRefused) -> int:
    return _TELLING.index(error.reason) if error.reason in _TELLING else len(_TELLING)


def _named_stage(case: Case, request: Vote) -> Stage:
    """Return the open level that a request names."""
    name = request.level
    stage = case.stages.get(name)
    if stage is not None:
        return stage
    passed = case.passed.get(name)
    if passed is not None:
        _refuse_passed(passed, request)
    names = [level.name for level in case.plan.levels]
    if name not in names:
        known = ", ".join(map(repr, names)) or "none"
        text = f"there is no level {name!r}{nearest(name, names)}; there are {known}"
        raise DecisionRefused(text, "unknown_level", request.by, name)
    applies = any(level.name == name for level in case.applying)
    why = "its turn has not come" if applies else "it does not apply to this subject"
    open_ones = ", ".join(map(repr, case.stages)) or "none"
    raise DecisionRefused(f"level {name!r} is not open, {why}; open: {open_ones}", "not_open", request.by, name)


def _refuse_passed(stage: Stage, request: Vote) -> NoReturn:
    by = ", ".join(vote.by for vote in stage.votes.values()) or "its timeout"
    name = stage.plan.name
    raise AlreadyDecided(f"level {name!r} has been decided by {by}", "already_decided", request.by, name)


# ------------------------------------------------------------------ one level
def _weigh(case: Case, stage: Stage, request: V) -> V:
    """Return a request for a level, with whose vote it is and by which role.

    Raises:
        DecisionRefused: they may not.
    """
    by, name = request.by, stage.plan.name
    _check_open(case, stage, request)
    if isinstance(request, Delegated) and request.to == by and by in stage.delegations and request.on_behalf_of is None:
        _check_vote(stage, request, by)
        return msgspec.structs.replace(request, level=name)  # takes their own vote back
    _check_person(case, stage, request, by)
    may, role = stage.role_of(by, request.roles or ())
    given = [p for p, to in stage.delegations.items() if to == by and p not in stage.votes]
    principal = request.on_behalf_of
    if principal is None and may and by in stage.delegations:
        text = f"{by} has had {stage.delegations[by]} decide on level {name!r}; delegate it to yourself to take it back"
        raise DecisionRefused(text, "delegated", by, name)
    if principal is None and not may:
        principal = _only_delegation(stage, request, given)
    if principal is not None:
        if principal not in given:
            raise DecisionRefused(f"{principal} has not had {by} decide on level {name!r}", "not_asked", by, name)
        _check_person(case, stage, request, principal)
        role = None
    judged = msgspec.structs.replace(request, level=name, on_behalf_of=principal, role=role)
    if isinstance(judged, Delegated):
        _check_delegate(case, stage, judged)
    return judged


def _check_open(case: Case, stage: Stage, request: Vote) -> None:
    if stage.since is None:
        name = stage.plan.name
        text = f"level {name!r} is about to open: who is asked is just being found out; try again"
        raise DecisionRefused(text, "not_open", request.by, name)


def _check_person(case: Case, stage: Stage, request: Vote, person: str) -> None:
    """Refuse who has a part in the chain already, be it for themselves or as the one whose vote it is."""
    name = stage.plan.name
    if person == case.requester and not case.plan.self_approval:
        text = f"{person} has requested this and cannot decide on it; the chain says nothing of self_approval=True"
        raise DecisionRefused(text, "self_approval", request.by, name)
    _check_vote(stage, request, person)
    if person in case.excluded(name):
        text = f"{person} has decided on another level, and the chain says distinct=True: somebody else has to"
        raise DecisionRefused(text, "distinct", request.by, name)


def _check_vote(stage: Stage, request: Vote, person: str) -> None:
    name = stage.plan.name
    for vote in stage.votes.values():
        if person in (vote.by, vote.principal):
            whose = "" if vote.on_behalf_of is None else f" on behalf of {vote.on_behalf_of}"
            word = "approved" if vote.approved else "rejected"
            text = f"{vote.by} has {word} level {name!r}{whose}; {person} cannot decide on it once more"
            raise AlreadyDecided(text, "already_decided", request.by, name)


def _only_delegation(stage: Stage, request: Vote, given: list[str]) -> str:
    """Return whose vote somebody casts who has none of their own.

    Raises:
        DecisionRefused: nobody's.
    """
    by, name = request.by, stage.plan.name
    if given:
        return given[0]  # there is but one: nobody is given a second vote
    if stage.people is not None and by not in stage.people and stage.escalated is None:
        text = f"{by} is not asked on level {name!r}; {name_people(stage.asked())} can decide"
        raise DecisionRefused(text, "not_asked", by, name)
    needed = " or ".join(map(repr, stage.roles))
    if request.roles is None:
        text = (
            f"nobody says which roles {by} has, and level {name!r} needs {needed}: give roles=, or the Flowlet an "
            "authorize="
        )
        raise DecisionRefused(text, "no_roles", by, name)
    held = ", ".join(map(repr, request.roles)) or "none"
    raise DecisionRefused(f"level {name!r} needs the role {needed}, and {by} has {held}", "role_not_held", by, name)


def _check_delegate(case: Case, stage: Stage, request: Delegated) -> None:
    """Refuse to have somebody decide who cannot, or who decides anyway."""
    by, to, name = request.by, request.to, stage.plan.name
    if to == request.principal and by != to:
        return  # it is given back
    if not stage.plan.delegate:
        raise DecisionRefused(f"level {name!r} says delegate=False; {by} has to decide", "not_delegable", by, name)
    if to == by:
        raise DecisionRefused(f"{by} decides on level {name!r} anyway; name somebody else", "not_delegable", by, name)
    if to == case.requester and not case.plan.self_approval:
        text = f"{to} has requested this, so that {by} cannot have {to} decide on it"
        raise DecisionRefused(text, "self_approval", by, name)
    if to in (stage.people or ()) or to in stage.delegations.values():
        text = f"{to} is asked on level {name!r} as well, and has one vote; have somebody else decide"
        raise DecisionRefused(text, "not_delegable", by, name)
    for vote in stage.votes.values():
        if to in (vote.by, vote.principal):
            text = f"{to} has decided on level {name!r}; have somebody else decide"
            raise AlreadyDecided(text, "already_decided", by, name)
    if to in case.excluded(name):
        text = f"{to} has decided on another level, and the chain says distinct=True; have somebody else decide"
        raise DecisionRefused(text, "distinct", by, name)
