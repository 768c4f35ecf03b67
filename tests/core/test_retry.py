"""The retry policy as a value: its defaults and its bounds."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import tenacity

from flowlet import Retry
from flowlet.core.retry import seconds
from flowlet.errors import DefinitionError


def test_defaults() -> None:
    policy = Retry()
    assert (policy.attempts, policy.wait, policy.backoff, policy.jitter, policy.max_wait) == (3, 0.1, 2.0, 0.0, 60.0)
    assert policy.on == (Exception,)
    assert policy.stop is None
    assert policy.retry is None


def test_times_may_be_timedeltas() -> None:
    policy = Retry(wait=timedelta(milliseconds=20), jitter=timedelta(seconds=1), max_wait=timedelta(minutes=2))
    assert (policy.wait, policy.jitter, policy.max_wait) == (0.02, 1.0, 120.0)


def test_tenacity_objects_are_kept_as_they_are() -> None:
    wait, stop, retry = tenacity.wait_fixed(1), tenacity.stop_after_delay(2), tenacity.retry_if_result(bool)
    policy = Retry(wait=wait, stop=stop, retry=retry)
    assert (policy.wait, policy.stop, policy.retry) == (wait, stop, retry)


def test_one_class_or_several() -> None:
    assert Retry(on=KeyError).on == (KeyError,)
    assert Retry(on=(KeyError, OSError)).on == (KeyError, OSError)


def test_it_reads_like_its_call() -> None:
    assert repr(Retry(5, 0.2)) == "Retry(attempts=5, wait=0.2, backoff=2.0, jitter=0.0, max_wait=60.0)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attempts": 0}, "attempts must be a whole number of at least 1, not 0"),
        ({"attempts": 2.0}, "attempts must be a whole number of at least 1, not 2.0"),
        ({"attempts": True}, "attempts must be a whole number of at least 1, not True"),
        ({"attempts": "3"}, "attempts must be a whole number"),
        ({"backoff": 0.5}, "backoff must be a number of at least 1, not 0.5"),
        ({"backoff": float("inf")}, "backoff must be a number of at least 1, not inf"),
        ({"backoff": "2"}, "backoff must be a number"),
        ({"wait": -1}, "wait: must be finite and not negative, not -1"),
        ({"wait": "soon"}, "wait: must be seconds or a timedelta, not 'soon'"),
        ({"jitter": float("nan")}, "jitter: must be finite and not negative, not nan"),
        ({"max_wait": timedelta(-1)}, "max_wait: must be finite and not negative"),
        ({"on": "OSError"}, "on must be an exception class or a tuple of them, not 'OSError'"),
        ({"on": (OSError, int)}, "on must be an exception class"),
        ({"on": KeyboardInterrupt}, "on must be an exception class"),
        ({"on": ()}, "on must be an exception class"),
        ({"stop": 3}, "stop must be a tenacity stop object, not 3"),
        ({"retry": OSError}, "retry must be a tenacity retry object, not <class 'OSError'>"),
        ({"retry": "x"}, "retry must be a tenacity retry object, not 'x'"),
    ],
)
def test_bounds(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        Retry(**arguments)
    assert message in caught.value.problems[0]
    assert caught.value.problems[0].startswith("Retry: ")


def test_seconds() -> None:
    assert seconds(3, "x") == 3.0
    assert seconds(timedelta(minutes=1), "x") == 60.0
    with pytest.raises(DefinitionError, match="x: must be seconds or a timedelta, not None"):
        seconds(None, "x")
