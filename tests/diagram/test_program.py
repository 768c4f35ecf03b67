"""`flowlet.diagram.program`: all the ways in which ``dot``, played by scripts here, does not make a picture."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flowlet.diagram.program import DotFailed, run_dot
from flowlet.errors import FlowletError

Play = Callable[..., Path]


def test_no_dot(play_dot: Play) -> None:
    play_dot()
    with pytest.raises(DotFailed, match="apt-get install graphviz") as caught:
        run_dot("digraph {}", "dot", 30)
    assert (caught.value.reason, caught.value.program) == ("missing", "dot")
    assert isinstance(caught.value, FlowletError)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (str(again), again.reason, again.program) == (str(caught.value), "missing", "dot")


def test_dot_fails(play_dot: Play) -> None:
    play_dot("echo syntax error >&2", "exit 3")
    with pytest.raises(DotFailed, match="dot ended with 3: syntax error") as caught:
        run_dot("digraph {}", "dot", 30)
    assert caught.value.reason == "failed"


def test_dot_cannot_be_started(play_dot: Play) -> None:
    play_dot("")
    play_dot().write_text("#!/nowhere/at/all\n")
    with pytest.raises(DotFailed, match="cannot be started") as caught:
        run_dot("digraph {}", "dot", 30)
    assert caught.value.reason == "failed"


def test_dot_does_not_end(play_dot: Play) -> None:
    play_dot("exec /bin/sleep 60")
    begun = time.monotonic()
    with pytest.raises(DotFailed, match=r"did not end within 0\.2 s") as caught:
        run_dot("digraph {}", "dot", 0.2)
    assert caught.value.reason == "timeout"
    assert time.monotonic() - begun < 30
