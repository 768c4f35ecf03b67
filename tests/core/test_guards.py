"""The guard algebra as values: immutable, equal by content, readable."""

from __future__ import annotations

import msgspec
import pytest

from flowlet import all_of, any_of, not_
from flowlet.core.guards import Guard, guard_leaves, guard_name


def is_paid(machine: object) -> bool:
    return True


def test_combinations_read_like_they_were_written() -> None:
    assert str(all_of("is_paid", not_("is_frozen"))) == "all_of(is_paid, not_(is_frozen))"
    assert str(any_of(is_paid, all_of("a", "b"))) == "any_of(is_paid, all_of(a, b))"


def test_combinations_are_equal_by_content() -> None:
    assert all_of("a", not_("b")) == all_of("a", not_("b"))
    assert all_of("a", "b") != any_of("a", "b")
    assert all_of("a", "b") != all_of("b", "a")
    assert len({not_("a"), not_("a"), not_("b")}) == 2


def test_combinations_are_immutable() -> None:
    combined = all_of("a")
    with pytest.raises(AttributeError):
        combined.kind = "any_of"  # type: ignore[misc]
    assert isinstance(combined, Guard)
    assert isinstance(combined, msgspec.Struct)


def test_names_of_guards() -> None:
    assert guard_name("ready") == "ready"
    assert guard_name(is_paid) == "is_paid"
    assert guard_name(not_(is_paid)) == "not_(is_paid)"


def test_leaves_are_found_in_order_at_any_depth() -> None:
    assert guard_leaves(all_of("a", any_of(is_paid, not_("b")), "c")) == ["a", is_paid, "b", "c"]
    assert guard_leaves("a") == ["a"]
