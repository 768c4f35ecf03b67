"""What is too large is refused, and what must be said is shortened until it fits."""

from __future__ import annotations

import pickle

import pytest

from flowlet.core.codec import pack
from flowlet.core.failures import describe_failure, rebuild_failure
from flowlet.core.sizes import ALWAYS_FITS, FRAME, LEAST, check_size, fit, fit_all, fit_text
from flowlet.errors import PayloadTooLarge, StepFailed


def test_a_limit_is_what_is_allowed() -> None:
    check_size(bytes(100), 100, "it")
    check_size(bytes(100), None, "it")
    with pytest.raises(PayloadTooLarge, match=r"^it takes 101 bytes to store, and 100 are allowed .*pass a reference$"):
        check_size(bytes(101), 100, "it")
    with pytest.raises(PayloadTooLarge) as caught:
        check_size(bytes(90), 100, "it", beside=11)
    assert (caught.value.size, caught.value.limit) == (101, 100)


def test_the_error_keeps_what_it_says() -> None:
    error = PayloadTooLarge("too large", 3, 2)
    for copy in (pickle.loads(pickle.dumps(error)), rebuild_failure(describe_failure(error))):  # noqa: S301
        assert type(copy) is PayloadTooLarge
        assert (str(copy), copy.size, copy.limit) == ("too large", 3, 2)
    assert (PayloadTooLarge("x").size, PayloadTooLarge("x").limit) == (0, 0)


def test_what_always_fits() -> None:
    assert ALWAYS_FITS + FRAME < LEAST


def test_a_failure_that_fits_stays_as_it_is() -> None:
    failure = describe_failure(ValueError("no"), "charge", 3)
    assert fit(failure, LEAST) is failure
    assert fit(failure, None) is failure


@pytest.mark.parametrize("text", ["x" * 100_000, "ä" * 100_000, "\N{SNOWMAN}" * 5_000])
@pytest.mark.parametrize("beside", [0, 500])
def test_a_failure_is_shortened_until_it_fits(text: str, beside: int) -> None:
    failure = fit(describe_failure(ValueError(text), "charge"), LEAST, beside)
    size = len(pack(failure))
    assert LEAST - FRAME - beside - 8 <= size <= LEAST - FRAME - beside
    assert failure.message.endswith("characters)")
    assert failure.message[:100] == text[:100]
    error = rebuild_failure(failure)
    assert isinstance(error, StepFailed)
    assert (error.step, error.type) == ("charge", "builtins:ValueError")


def test_large_data_of_an_exception_goes_and_its_message_stays() -> None:
    error = ValueError("short")
    error.response = "x" * 100_000  # type: ignore[attr-defined]
    failure = fit(describe_failure(error), LEAST)
    assert (failure.message, failure.state) == ("short", None)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_failures_share_the_room(count: int) -> None:
    failures = fit_all([describe_failure(ValueError("x" * 10_000)) for _ in range(count)], LEAST)
    assert len(failures) == count
    assert LEAST - FRAME - 10 * count <= len(pack(failures)) <= LEAST - FRAME + 2
    assert fit_all([], LEAST) == ()
    whole = [describe_failure(ValueError("x" * 10_000))]
    assert fit_all(whole, None) == tuple(whole)


def test_a_text_is_shortened() -> None:
    assert fit_text("why", LEAST) == "why"
    assert fit_text("x" * 10_000, None) == "x" * 10_000
    short = fit_text("ä" * 10_000, LEAST)
    assert short.endswith("ä...")
    assert LEAST - FRAME - 2 <= len(short.encode()) <= LEAST - FRAME
