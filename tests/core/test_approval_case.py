"""What people and time make of an approval chain: every way to decide twice, for oneself, too late or for nobody."""

from __future__ import annotations

from typing import Any

import pytest
from hearings import Expense, Hearing

from flowlet import level
from flowlet.approval import ApprovalNotice
from flowlet.errors import QuorumUnreachable


def quiet(notice: ApprovalNotice[Expense]) -> None: ...


MANAGER = level("manager", role="manager")
DIRECTOR = level("director", role="director")
LEGAL = level("legal", approvers=["lea", "lou", "lee"], quorum="majority")


# ---------------------------------------------------------------- quorum
@pytest.mark.parametrize(
    ("quorum", "needed"),
    [(1, 1), (2, 2), (3, 3), ("all", 3), ("majority", 2)],
)
def test_so_many_must_approve(quorum: Any, needed: int) -> None:
    hearing = Hearing(level("legal", approvers=["lea", "lou", "lee"], quorum=quorum))
    for number, person in enumerate(["lee", "lea", "lou"][:needed]):
        assert hearing.status is None, number
        assert hearing.approve(person) == "ok"
    assert hearing.status == "approved"


def test_a_role_counts_heads_and_not_clicks() -> None:
    hearing = Hearing(level("finance", role="finance", quorum=2))
    assert hearing.approve("bob", "finance") == "ok"
    assert hearing.approve("bob", "finance") == "already_decided"
    assert hearing.approve("bob", "finance", level="finance") == "already_decided"
    assert hearing.reject("bob", "finance", level="finance") == "already_decided"
    assert hearing.status is None
    assert hearing.approve("eve", "finance") == "ok"
    assert hearing.status == "approved"


def test_the_requester_does_not_count_among_those_named() -> None:
    hearing = Hearing(level("legal", approvers=["ann", "lou"], quorum="all"))
    assert hearing.approve("ann") == "self_approval"
    assert hearing.approve("lou") == "ok"
    assert hearing.status == "approved"


@pytest.mark.parametrize("quorum", [1, "all", "majority"])
def test_nobody_left_is_not_everybody(quorum: Any) -> None:
    hearing = Hearing(level("legal", approvers=["ann"], quorum=quorum))
    assert isinstance(hearing.case.failure, QuorumUnreachable)
    assert hearing.case.failure.level == "legal"
    assert hearing.status is None


@pytest.mark.parametrize(("people", "quorum"), [([], "all"), ([], 1), (["bob"], 2), (["ann", "bob"], 2)])
def test_too_few_are_named_by_a_function(people: list[str], quorum: Any) -> None:
    hearing = Hearing(level("legal", approvers=lambda e: [], quorum=quorum)).name(*people)
    assert isinstance(hearing.case.failure, QuorumUnreachable)


def test_until_it_is_known_who_is_asked_the_level_is_not_open() -> None:
    hearing = Hearing(level("legal", approvers=lambda e: []))
    assert hearing.approve("bob") == "not_open"
    hearing.name("bob", "bob")
    assert hearing.open == ["legal"]
    assert hearing.approve("eve") == "not_asked"
    assert hearing.approve("bob") == "ok"


def test_both_name_and_role_are_needed_where_both_are_said() -> None:
    hearing = Hearing(level("legal", role="lawyer", approvers=["lea", "lou"]))
    assert hearing.approve("lea", "cook") == "role_not_held"
    assert hearing.approve("lea") == "no_roles"
    assert hearing.approve("max", "lawyer") == "not_asked"
    assert hearing.approve("lea", "lawyer") == "ok"
    assert hearing.status == "approved"


# ---------------------------------------------------------------- rejections
def test_one_rejection_is_a_veto() -> None:
    hearing = Hearing(LEGAL)
    assert hearing.approve("lea") == "ok"
    assert hearing.reject("lou") == "ok"
    assert hearing.status == "rejected"
    assert "lou" in hearing.case.reason


@pytest.mark.parametrize(
    ("quorum", "rejections"),
    [(1, 3), (2, 2), (3, 1), ("all", 1), ("majority", 2)],
)
def test_without_veto_it_is_rejected_when_too_few_are_left(quorum: Any, rejections: int) -> None:
    hearing = Hearing(level("legal", approvers=["lea", "lou", "lee"], quorum=quorum, veto=False))
    for person in ["lea", "lou", "lee"][:rejections]:
        assert hearing.status is None
        hearing.reject(person)
    assert hearing.status == "rejected"


def test_without_veto_a_role_rejects_with_as_many_as_would_approve() -> None:
    hearing = Hearing(level("finance", role="finance", quorum=2, veto=False))
    hearing.reject("bob", "finance")
    hearing.approve("eve", "finance")
    assert hearing.status is None
    hearing.reject("sam", "finance")
    assert hearing.status == "rejected"


def test_sent_back_all_decisions_from_there_on_are_void() -> None:
    hearing = Hearing(
        level("first", role="a"), level("second", role="b"), level("third", role="c", send_back_to="second")
    )
    hearing.approve("eva", "a")
    hearing.approve("ben", "b")
    hearing.reject("cid", "c")
    assert hearing.open == ["second"]
    assert hearing.decided == [("first", "eva")]
    assert hearing.approve("ben", "b", level="second") == "ok"  # it is asked anew
    assert hearing.approve("cid", "c", level="third") == "ok"
    assert hearing.status == "approved"


def test_sent_back_to_a_level_that_does_not_apply_goes_on_behind_it() -> None:
    hearing = Hearing(
        level("first", role="a", when=lambda e: e.amount > 100),
        level("second", role="b"),
        level("third", role="c", send_back_to="first"),
    )
    hearing.approve("ben", "b")
    hearing.reject("cid", "c")
    assert hearing.open == ["second"]


# ---------------------------------------------------------------- which level
def test_a_second_click_does_not_decide_the_next_level() -> None:
    hearing = Hearing(MANAGER, DIRECTOR)
    assert hearing.approve("bob", "manager", "director") == "ok"
    assert hearing.approve("bob", "manager", "director") == "already_decided"
    assert hearing.open == ["director"]
    assert hearing.approve("bob", "manager", "director", level="director") == "ok"
    assert hearing.status == "approved"


def test_who_comes_with_another_role_means_another_level() -> None:
    hearing = Hearing(MANAGER, DIRECTOR)
    assert hearing.approve("bob", "manager") == "ok"
    assert hearing.approve("bob", "manager") == "already_decided"
    assert hearing.approve("bob", "director") == "ok"
    assert hearing.status == "approved"


def test_who_has_decided_for_somebody_else_says_which_level() -> None:
    hearing = Hearing(MANAGER, level("board", approvers=["eve"]))
    hearing.delegate("bob", "eve", "manager")
    assert hearing.approve("eve") == "ok"
    assert hearing.approve("eve") == "already_decided"
    assert hearing.approve("eve", level="board") == "ok"


def test_who_is_slower_is_told_so() -> None:
    hearing = Hearing(MANAGER, DIRECTOR)
    hearing.approve("bob", "manager")
    assert hearing.approve("eve", "manager") == "already_decided"
    assert hearing.approve("eve", "manager", level="manager") == "already_decided"
    assert hearing.approve("cat", "cook") == "role_not_held"
    hearing.approve("dan", "director")
    assert hearing.approve("dora", "director") == "ended"


def test_levels_have_to_be_there_and_open() -> None:
    hearing = Hearing(MANAGER, DIRECTOR, level("board", role="board", when=lambda e: e.amount > 100))
    assert hearing.approve("bob", "manager", level="boss") == "unknown_level"
    assert hearing.approve("dan", "director", level="director") == "not_open"
    assert hearing.approve("bea", "board", level="board") == "not_open"


def test_of_several_open_levels_one_is_named() -> None:
    hearing = Hearing(MANAGER, DIRECTOR, parallel=True)
    assert hearing.open == ["manager", "director"]
    assert hearing.approve("dan", "director") == "ok"
    assert hearing.status is None
    both = Hearing(MANAGER, DIRECTOR, parallel=True)
    assert both.approve("bob", "manager", "director") == "ambiguous"
    assert both.approve("bob", "manager", "director", level="manager") == "ok"


def test_one_rejection_ends_parallel_levels() -> None:
    hearing = Hearing(MANAGER, DIRECTOR, parallel=True)
    hearing.reject("dan", "director")
    assert hearing.status == "rejected"
    assert hearing.open == []


# ---------------------------------------------------------------- for oneself, or twice
def test_nobody_approves_their_own_request_unless_it_is_said() -> None:
    hearing = Hearing(MANAGER)
    assert hearing.approve("ann", "manager") == "self_approval"
    assert hearing.reject("ann", "manager") == "self_approval"
    lenient = Hearing(MANAGER, self_approval=True)
    assert lenient.approve("ann", "manager") == "ok"
    assert lenient.status == "approved"


def test_nobody_approves_their_own_request_through_others() -> None:
    hearing = Hearing(level("legal", approvers=["lea", "ann"], quorum=1))
    assert hearing.delegate("lea", "ann") == "self_approval"
    assert hearing.delegate("ann", "bob") == "self_approval"
    assert hearing.delegate("lea", "bob") == "ok"
    assert hearing.delegate("bob", "ann") == "self_approval"
    assert hearing.approve("ann", for_="lea") == "self_approval"
    assert hearing.approve("bob", for_="ann") == "not_asked"
    assert hearing.approve("bob") == "ok"
    assert hearing.case.decisions[0].on_behalf_of == "lea"


def test_distinct_people_on_distinct_levels() -> None:
    hearing = Hearing(MANAGER, DIRECTOR, distinct=True)
    hearing.approve("bob", "manager")
    assert hearing.approve("bob", "director", level="director") == "distinct"
    assert hearing.approve("dan", "director") == "ok"
    assert hearing.status == "approved"


def test_distinct_sees_through_delegation() -> None:
    hearing = Hearing(MANAGER, level("board", approvers=["bea", "bob", "eve"]), distinct=True)
    hearing.delegate("bob", "eve", "manager")
    hearing.approve("eve")  # on behalf of bob
    assert hearing.approve("eve", level="board") == "distinct"
    assert hearing.approve("bob", level="board") == "distinct"
    assert hearing.delegate("bea", "bob") == "not_delegable"
    assert hearing.approve("bea") == "ok"


def test_distinct_leaves_somebody_out_of_all_and_fails_if_that_is_everybody() -> None:
    hearing = Hearing(MANAGER, level("legal", approvers=["lea", "bob"], quorum="all"), distinct=True)
    hearing.approve("bob", "manager")
    assert hearing.approve("lea") == "ok"
    assert hearing.status == "approved"
    stuck = Hearing(MANAGER, level("legal", approvers=["bob"], quorum="all"), distinct=True)
    stuck.approve("bob", "manager")
    assert isinstance(stuck.case.failure, QuorumUnreachable)


def test_distinct_among_parallel_levels() -> None:
    hearing = Hearing(level("a", approvers=["bob", "eve"]), level("b", approvers=["bob"]), parallel=True, distinct=True)
    assert hearing.approve("bob", level="a") == "ok"
    assert isinstance(hearing.case.failure, QuorumUnreachable)  # nobody is left for b
    assert hearing.case.failure.level == "b"


def test_a_vote_on_one_level_can_complete_another_one() -> None:
    """Who decides on one level is no longer among all who have to on the other one."""
    levels = level("a", approvers=["bob"]), level("b", approvers=["bob", "lea"], quorum="all")
    hearing = Hearing(*levels, parallel=True, distinct=True)
    hearing.approve("lea")
    assert hearing.open == ["a", "b"]
    hearing.approve("bob", level="a")
    assert hearing.status == "approved"
    assert hearing.decided == [("b", "lea"), ("a", "bob")]


# ---------------------------------------------------------------- delegation
def test_a_vote_is_cast_once_by_whoever_it_is_with() -> None:
    hearing = Hearing(level("legal", approvers=["lea", "lou"], quorum="all"))
    assert hearing.delegate("lea", "eve") == "ok"
    assert hearing.approve("lea") == "delegated"
    assert hearing.approve("eve") == "ok"
    assert hearing.approve("eve") == "already_decided"
    assert hearing.approve("lea", level="legal") == "already_decided"
    assert hearing.delegate("lea", "lea") == "already_decided"
    assert hearing.status is None
    assert hearing.approve("lou") == "ok"
    assert hearing.status == "approved"


def test_nobody_has_two_votes() -> None:
    hearing = Hearing(level("legal", approvers=["lea", "lou", "lee"], quorum=2))
    assert hearing.delegate("lea", "lou") == "not_delegable"  # lou is asked as well
    assert hearing.delegate("lea", "eve") == "ok"
    assert hearing.delegate("lou", "eve") == "not_delegable"  # eve has one already
    assert hearing.delegate("eve", "lee") == "not_delegable"
    hearing.approve("lee")
    assert hearing.delegate("lou", "lee") in ("not_delegable", "already_decided")
    roles = Hearing(level("finance", role="finance", quorum=2))
    assert roles.delegate("bob", "eve", "finance") == "ok"
    assert roles.approve("eve", "finance") == "ok"  # her own
    assert roles.approve("eve", "finance", level="finance", for_="bob") == "already_decided"
    assert roles.status is None
    assert roles.delegate("bob", "bob") == "ok"  # taken back
    assert roles.approve("bob", "finance") == "ok"
    assert roles.status == "approved"


def test_a_vote_can_be_passed_on_taken_back_and_given_back() -> None:
    hearing = Hearing(level("legal", approvers=["lea"]))
    hearing.delegate("lea", "eve")
    assert hearing.delegate("eve", "max") == "ok"
    assert hearing.approve("eve") == "not_asked"
    assert hearing.delegate("lea", "lea") == "ok"
    assert hearing.approve("max") == "not_asked"
    hearing.delegate("lea", "max")
    assert hearing.delegate("max", "lea") == "ok"
    assert hearing.approve("lea") == "ok"
    assert hearing.case.decisions[0].on_behalf_of is None


def test_delegating_can_be_forbidden_and_makes_sense() -> None:
    assert Hearing(level("legal", approvers=["lea"], delegate=False)).delegate("lea", "eve") == "not_delegable"
    hearing = Hearing(MANAGER)
    assert hearing.delegate("bob", "eve") == "no_roles"
    assert hearing.delegate("bob", "bob", "manager") == "not_delegable"
    assert hearing.delegate("eve", "bob", "cook") == "role_not_held"
    hearing.approve("bob", "manager")
    assert hearing.delegate("eve", "bob", "manager") == "ended"


def test_a_delegation_is_void_when_the_level_is_opened_anew() -> None:
    hearing = Hearing(MANAGER)
    hearing.delegate("bob", "eve", "manager")
    hearing.resubmit("ann", 60)
    assert hearing.approve("eve") == "no_roles"
    assert hearing.approve("bob", "manager") == "ok"


# ---------------------------------------------------------------- the requester
def test_a_request_is_withdrawn_or_changed_by_the_requester_only() -> None:
    hearing = Hearing(MANAGER)
    assert hearing.withdraw("bob") == "not_requester"
    assert hearing.resubmit("bob", 1) == "not_requester"
    assert hearing.withdraw("ann") == "ok"
    assert hearing.status == "withdrawn"
    assert hearing.withdraw("ann") == "ended"
    assert hearing.resubmit("ann", 1) == "ended"


def test_what_is_resubmitted_begins_anew_under_its_own_rules() -> None:
    board = level("board", role="board", when=lambda e: e.amount > 100)
    hearing = Hearing(MANAGER, board, amount=50)
    assert [(e.what, e.level) for e in hearing.case.log] == [
        ("submitted", None),
        ("skipped", "board"),
        ("opened", "manager"),
    ]
    hearing.resubmit("ann", 500)
    hearing.approve("bob", "manager")
    assert hearing.open == ["board"]
    hearing.resubmit("ann", 20)
    assert hearing.decided == []
    assert hearing.open == ["manager"]
    assert hearing.approve("bob", "manager") == "ok"
    assert hearing.status == "approved"
    assert hearing.plan.subject.decode(hearing.case.subject, "") == Expense(20)


def test_resubmitted_so_that_no_level_applies_it_is_not_approved() -> None:
    hearing = Hearing(level("board", role="board", when=lambda e: e.amount > 100), amount=500)
    hearing.resubmit("ann", 1)
    assert hearing.status == "rejected"


# ---------------------------------------------------------------- time
TIMED = level("manager", role="manager", timeout=10, escalate_to="director", remind=[4, 8, 12])


def test_an_escalated_level_is_for_both_roles_and_waits() -> None:
    hearing = Hearing(TIMED, DIRECTOR, notify=quiet)
    assert hearing.wait(9.9).approve("dan", "director") == "role_not_held"
    assert hearing.wait(0.1).approve("dan", "director") == "ok"
    assert hearing.case.decisions[0].role == "director"
    other = Hearing(TIMED, notify=quiet).wait(1e9)
    assert other.approve("bob", "manager") == "ok"
    assert [e.what for e in other.case.log[2:6]] == ["reminded", "reminded", "escalated", "reminded"]


def test_after_a_second_timeout_it_is_as_the_level_says() -> None:
    for then, status in (("approve", "approved"), ("reject", "expired")):
        hearing = Hearing(level("m", role="m", timeout=10, escalate_to="d", on_timeout=then))  # type: ignore[arg-type]
        assert hearing.wait(19.9).status is None
        assert hearing.wait(0.2).status == status
        assert hearing.decided == []


def test_a_decision_at_the_very_end_is_too_late() -> None:
    hearing = Hearing(level("m", role="m", timeout=10, on_timeout="reject"))
    hearing.now = 10.0
    assert hearing.approve("bob", "m") == "ended"
    just = Hearing(level("m", role="m", timeout=10, on_timeout="reject"))
    just.now = 9.999
    assert just.approve("bob", "m") == "ok"
    assert just.status == "approved"


def test_several_timeouts_pass_in_their_order_also_when_nobody_looked() -> None:
    names = ["a", "b", "c"]
    levels = [level(name, role=name, timeout=10, on_timeout="approve") for name in names]
    hearing = Hearing(*levels).wait(25)
    assert hearing.open == ["c"]
    assert hearing.case.stages["c"].since == 20
    assert hearing.approve("bob", "a", level="a") == "already_decided"
    assert hearing.wait(5).status == "approved"


def test_a_timeout_can_send_back() -> None:
    hearing = Hearing(MANAGER, level("d", role="d", timeout=10, on_timeout="reject", send_back_to="manager"))
    hearing.approve("bob", "manager")
    assert hearing.wait(10).open == ["manager"]
    assert hearing.decided == []


def test_escalation_opens_a_named_level_to_others_but_keeps_its_quorum() -> None:
    hearing = Hearing(level("legal", approvers=["lea", "lou"], quorum="all", timeout=10, escalate_to="director"))
    hearing.approve("lea")
    hearing.wait(10)
    assert hearing.approve("dan", "director") == "ok"
    assert hearing.status == "approved"


def test_time_stands_still_when_it_is_over() -> None:
    hearing = Hearing(TIMED, notify=quiet)
    hearing.approve("bob", "manager")
    before = list(hearing.case.log)
    assert hearing.case.next_due() is None
    hearing.wait(1e6)
    assert hearing.case.log == before


def test_a_deadline_of_the_run_refuses_what_comes_later() -> None:
    hearing = Hearing(MANAGER)
    hearing.case.deadline = 10.0
    assert hearing.wait(9.9).approve("bob", "cook") == "role_not_held"
    assert hearing.wait(0.1).approve("bob", "manager") == "expired"
    assert hearing.withdraw("ann") == "expired"


# ---------------------------------------------------------------- who can still decide
def test_who_is_asked_is_who_can_still_decide() -> None:
    hearing = Hearing(level("legal", approvers=["lea", "lou", "ann"], quorum="all"))
    stage = hearing.case.stages["legal"]
    assert stage.asked() == ("lea", "lou")
    hearing.delegate("lea", "eve")
    assert stage.asked() == ("lou", "eve")
    hearing.approve("lou")
    assert stage.asked() == ("eve",)
    assert stage.asked({"eve"}) == ()
    hearing.approve("eve")
    assert stage.asked() == ()
    role = Hearing(TIMED, notify=quiet)
    stage = role.case.stages["manager"]
    assert (stage.roles, stage.asked()) == (("manager",), ())
    role.delegate("bob", "eve", "manager")
    assert stage.asked() == ("eve",)
    role.wait(10)
    assert stage.roles == ("manager", "director")


def test_who_has_a_vote_of_their_own_and_was_given_one_is_asked_for_the_one_that_is_left() -> None:
    hearing = Hearing(level("finance", role="finance", quorum=3))
    stage = hearing.case.stages["finance"]
    hearing.delegate("bob", "eve", "finance")
    assert stage.asked() == ("eve",)
    hearing.approve("eve", "finance")
    assert stage.asked() == ()  # she has decided, and cannot cast his vote any more
