"""Exceptions as data: what is kept, what comes back as itself, and what only as StepFailed."""

from __future__ import annotations

import builtins
import sys
import types
from typing import Any

import msgspec
import pytest

from flowlet.core.codec import pack
from flowlet.core.failures import Failure, describe_failure, rebuild_failure
from flowlet.errors import (
    Conflict,
    DecodeError,
    EncodeError,
    PayloadTooLarge,
    StepFailed,
    StepTimeout,
    TransitionNotAllowed,
)

made: list[str] = []


class Declined(Exception):
    """An exception whose constructor takes other things than ``args`` keeps, and has an effect."""

    def __init__(self, card: str, *, code: int) -> None:
        made.append(card)
        super().__init__(f"{card} was declined")
        self.code = code


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Picky(Exception):
    def __new__(cls, *args: Any) -> Picky:
        raise RuntimeError("made in one place only")


class Address(msgspec.Struct):
    street: str


def stored(error: BaseException) -> Failure:
    """Return what a store gives back of it."""
    return msgspec.msgpack.decode(pack(describe_failure(error, "charge", 3)), type=Failure)


def again(error: Exception) -> Exception:
    return rebuild_failure(stored(error))


def test_what_is_kept() -> None:
    failure = stored(Declined("visa", code=51))
    assert failure.type == f"{__name__}:Declined"
    assert failure.message == "visa was declined"
    assert failure.retryable


def test_its_own_class_comes_back_with_its_data_and_without_its_constructor() -> None:
    error = Declined("visa", code=51)
    made.clear()
    back = again(error)
    assert type(back) is Declined
    assert back.args == ("visa was declined",)
    assert str(back) == "visa was declined"
    assert back.code == 51
    assert made == []


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        KeyError("key"),
        OSError(2, "no such file"),
        FileNotFoundError(2, "no such file"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        ZeroDivisionError(),
        StopAsyncIteration(1),
        StepTimeout("too long"),
        Conflict(3, 4, "o-1"),
        TransitionNotAllowed("pay", "Draft", "guard", "can_pay"),
    ],
)
def test_what_comes_back_says_the_same(error: Exception) -> None:
    back = again(error)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.args == error.args
    assert vars(back) == vars(error)


def test_an_os_error_comes_back_with_its_number() -> None:
    back = again(FileNotFoundError(2, "no such file"))
    assert isinstance(back, FileNotFoundError)
    assert back.errno == 2


def test_notes_come_back() -> None:
    error = ValueError("x")
    error.add_note("while charging")
    assert again(error).__notes__ == ["while charging"]


def assert_step_failed(back: Exception, type_: str, message: str) -> None:
    assert isinstance(back, StepFailed)
    assert (back.step, back.attempts) == ("charge", 3)
    assert back.type.endswith(type_)
    assert str(back) == f"step 'charge' failed with {message}"


def test_a_class_of_a_function_comes_back_as_step_failed() -> None:
    class Local(Exception): ...

    assert_step_failed(again(Local("x")), "<locals>.Local", f"{Local.__qualname__}: x")


def test_a_class_that_is_not_imported_comes_back_as_step_failed_and_nothing_is_imported() -> None:
    failure = msgspec.structs.replace(stored(ValueError("x")), type="wave:Error")
    assert "wave" not in sys.modules
    assert_step_failed(rebuild_failure(failure), "wave:Error", "Error: x")
    assert "wave" not in sys.modules


@pytest.mark.parametrize(
    "name", ["builtins:print", "builtins:KeyboardInterrupt", "builtins:int", "builtins:", ":", "os"]
)
def test_what_is_no_exception_class_is_never_made(name: str) -> None:
    failure = msgspec.structs.replace(stored(ValueError("x")), type=name)
    assert isinstance(rebuild_failure(failure), StepFailed)


def test_data_without_encoding_leaves_the_message() -> None:
    back = again(ValueError(object()))
    assert isinstance(back, StepFailed)
    assert "ValueError: <object object" in str(back)


def test_attributes_without_encoding_are_left_out() -> None:
    error = ValueError("x")
    error.connection = object()  # type: ignore[attr-defined]
    back = again(error)
    assert type(back) is ValueError
    assert vars(back) == {}


def test_an_exception_without_a_readable_message() -> None:
    failure = stored(Mute())
    assert failure.message == "<Mute without a readable message>"
    assert isinstance(rebuild_failure(failure), StepFailed)


def test_an_exception_that_refuses_to_be_made_again() -> None:
    error = builtins.Exception.__new__(Picky, "x")
    assert isinstance(error, Picky)
    # __new__ of the user's class is a constructor too: it is not run, so the class does come back.
    assert type(again(error)) is Picky


def test_groups_come_back_as_step_failed() -> None:
    assert isinstance(again(ExceptionGroup("two", [ValueError("a"), KeyError("b")])), StepFailed)


def test_structs_among_the_arguments_come_back_as_plain_data() -> None:
    back = again(ValueError(Address("high street")))
    assert type(back) is ValueError
    assert back.args == ({"street": "high street"},)


def test_a_class_that_was_replaced_by_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("shop_errors")
    monkeypatch.setitem(sys.modules, "shop_errors", module)
    failure = msgspec.structs.replace(stored(ValueError("x")), type="shop_errors:Gone")
    assert isinstance(rebuild_failure(failure), StepFailed)
    module.Gone = type("Gone", (Exception,), {})  # type: ignore[attr-defined]
    assert type(rebuild_failure(failure)) is module.Gone  # type: ignore[attr-defined]


def test_without_a_step_it_says_that_it_failed() -> None:
    back = rebuild_failure(describe_failure(ExceptionGroup("two", [ValueError("a")])))
    assert isinstance(back, StepFailed)
    assert (back.step, back.attempts) == ("", 1)
    assert str(back).startswith("it failed with ExceptionGroup: two")


@pytest.mark.parametrize("error", [EncodeError("x"), DecodeError("x"), PayloadTooLarge("x")])
def test_errors_of_data_are_not_worth_another_attempt(error: Exception) -> None:
    assert not describe_failure(error).retryable


def test_a_message_that_has_no_encoding() -> None:
    failure = describe_failure(ValueError("bad name: \ud800"))
    assert failure.message == "bad name: \\ud800"
    assert pack(failure)
    assert "bad name" in str(rebuild_failure(failure))
