"""What can be wrong with the levels of an approval chain.

Law: a check notes a fault and goes on. A level about which nothing can be said any more is left out of what follows.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from flowlet.core.approval_levels import Level, LevelPlan
from flowlet.core.faults import Faults, describe, nearest
from flowlet.core.needs import refuse_provided
from flowlet.core.retry import seconds
from flowlet.errors import DefinitionError

_FORBIDDEN = "#:~/[],"
"""Characters from which keys in the journal are built."""


def is_count(value: object) -> bool:
    """Tell whether it is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_level(where: str, level: Level[Any], faults: Faults) -> LevelPlan | None:
    """Return a level without its resolver, noting faults; None if there are any."""
    before = len(faults.problems)
    name = level.name
    if not isinstance(name, str) or not name or any(c in _FORBIDDEN for c in name):
        faults.add(where, f"a level's name is a text without # : ~ / [ ] and comma, not {name!r}")
    approvers = _check_people(where, level, faults)
    _check_quorum(where, level, approvers, faults)
    _check_rule(where, level.when, faults)
    timeout = _check_seconds(where, level.timeout, "timeout", faults)
    remind = _check_reminders(where, level.remind, faults)
    _check_timeout(where, level, timeout, remind, faults)
    for what in ("veto", "delegate"):
        if not isinstance(getattr(level, what), bool):
            faults.add(where, f"{what}= is True or False, not {getattr(level, what)!r}")
    if len(faults.problems) > before:
        return None
    return LevelPlan(
        name=name,
        role=level.role,
        approvers=approvers,
        quorum=level.quorum,
        when=level.when,
        timeout=timeout,
        escalate_to=level.escalate_to,
        on_timeout=level.on_timeout if level.on_timeout in ("approve", "reject") else "wait",
        remind=remind,
        veto=level.veto,
        send_back_to=level.send_back_to,
        delegate=level.delegate,
    )


def check_order(name: str, levels: Sequence[LevelPlan], *, parallel: bool, has_notify: bool, faults: Faults) -> None:
    """Note what is wrong with levels among each other."""
    names = [level.name for level in levels]
    for place, level in enumerate(levels):
        where = f"{name}: level {level.name!r}"
        if level.name in names[:place]:
            faults.add(name, f"has two levels named {level.name!r}; give one another name")
        if level.remind and not has_notify:
            faults.add(where, "remind= calls the notify= of the chain, which has none; give it one")
        target = level.send_back_to
        if target is None:
            continue
        if parallel:
            faults.add(where, "send_back_to= goes with levels in order, and these are parallel; leave it out")
        elif target not in names:
            faults.add(where, f"send_back_to= names {target!r}, which is no level of it{nearest(str(target), names)}")
        elif names.index(target) >= place:
            faults.add(where, f"send_back_to= names {target!r}, which does not come before it; name an earlier level")


# ------------------------------------------------------------------ who, and how many
def _check_people(where: str, level: Level[Any], faults: Faults) -> tuple[str, ...] | None:
    """Return those who are named in the code."""
    for what in ("role", "escalate_to"):
        role = getattr(level, what)
        if role is not None and (not isinstance(role, str) or not role):
            faults.add(where, f"{what}= is the name of a role, not {role!r}")
    given = level.approvers
    if given is None:
        if level.role is None:
            faults.add(where, "nobody may decide on it; give it a role=, or approvers=")
        return None
    if callable(given):
        return None
    if isinstance(given, str) or not isinstance(given, (list, tuple, set, frozenset)):
        faults.add(where, f"approvers= is a list of names, or a function that returns one, not {given!r}")
        return None
    if not all(isinstance(name, str) and name for name in given):
        faults.add(where, f"approvers= is a list of names, and these are not all names: {given!r}")
        return None
    if not given:
        faults.add(where, "approvers= names nobody, so that nobody may decide on it")
    names = sorted(given) if isinstance(given, (set, frozenset)) else given
    return tuple(dict.fromkeys(names))


def _check_quorum(where: str, level: Level[Any], approvers: tuple[str, ...] | None, faults: Faults) -> None:
    quorum = level.quorum
    if quorum in ("all", "majority"):
        if level.approvers is None:
            faults.add(where, f"quorum={quorum!r} needs to know of whom; name them with approvers=, or give a number")
    elif not is_count(quorum):
        faults.add(where, f'quorum= is a whole number of at least 1, "all" or "majority", not {quorum!r}')
    elif approvers and quorum > len(approvers):
        faults.add(where, f"quorum={quorum} is more than the approvers there are: {len(approvers)}")


def _check_rule(where: str, when: Any, faults: Faults) -> None:
    if when is None:
        return
    if not callable(when) or inspect.iscoroutinefunction(when):
        faults.add(where, "when= must be a plain function of the subject; do slow work before the chain is started")
        return
    refuse_provided(when, where, f"when= {describe(when)}", "ask before the chain is started", faults)
    try:
        inspect.signature(when).bind(None)
    except TypeError:
        faults.add(where, f"when= {describe(when)} must take one argument, the subject")
    except ValueError:  # of a builtin that has no signature
        return


# ------------------------------------------------------------------ time
def _check_timeout(
    where: str, level: Level[Any], timeout: float | None, remind: Sequence[float], faults: Faults
) -> None:
    then = level.on_timeout
    if then not in (None, "escalate", "approve", "reject"):
        faults.add(where, f'on_timeout= is "escalate", "approve" or "reject", not {then!r}')
    if level.escalate_to is not None and level.escalate_to == level.role and level.approvers is None:
        faults.add(where, f"escalate_to={level.escalate_to!r} is the role that may decide anyway; name another one")
    if then == "escalate" and level.escalate_to is None:
        faults.add(where, 'on_timeout="escalate" needs escalate_to=, the role that may decide then')
    if level.timeout is None:
        for what in ("escalate_to", "on_timeout"):
            if getattr(level, what) is not None:
                faults.add(where, f"{what}= is for after the timeout, and there is none; give it timeout=")
        return
    if then is None and level.escalate_to is None:
        faults.add(where, 'timeout= does not say what then; give it escalate_to=, or on_timeout="approve" or "reject"')
    if timeout == 0:
        faults.add(where, "timeout: must be more than 0, or nobody could decide")
    late = [at for at in remind if timeout is not None and at >= timeout]
    if late and level.escalate_to is None:
        faults.add(where, f"remind= is after the timeout of {timeout:g} s, when the level is not open any more")


def _check_reminders(where: str, remind: Any, faults: Faults) -> tuple[float, ...]:
    if remind is None:
        return ()
    several = remind if isinstance(remind, (list, tuple)) else [remind]
    found = [_check_seconds(where, one, "remind", faults) for one in several]
    if 0.0 in found:
        faults.add(where, "remind: must be more than 0")
    return tuple(sorted({at for at in found if at is not None}))


def _check_seconds(where: str, value: Any, what: str, faults: Faults) -> float | None:
    if value is None:
        return None
    try:
        return seconds(value, what)
    except DefinitionError as error:
        faults.add(where, error.problems[0])
        return None
