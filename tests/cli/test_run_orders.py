"""``flowlet runs cancel | resume | retry | skip | compensate | signal | fork``: said here, done where the code is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import anyio
import cli_shop
import pytest

from flowlet import Flowlet
from flowlet.errors import RunCancelled

if TYPE_CHECKING:
    from conftest import Cli


def result_of(url: str, id: str) -> Any:
    """Let a process that has the code be there until a run has ended; return what came of it."""

    async def main() -> Any:
        async with Flowlet(url, registry=cli_shop.registry, drain_on_sigterm=False) as flow:
            with anyio.fail_after(20):
                return await flow.handle(id).result()

    return anyio.run(main)


@pytest.fixture(autouse=True)
def _mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_shop, "mended", True)


ORDERS = [
    ["cancel", "wait-1"],
    ["resume", "wait-2"],
    ["retry", "pivot"],
    ["skip", "pivot", "ship"],
    ["compensate", "pivot"],
    ["signal", "wait-1", "payment", "7"],
    ["fork", "bad", "--from", "charge"],
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order[0])
def test_without_a_terminal_yes_must_be_said(cli: Cli, url: str, order: list[str]) -> None:
    before = cli("runs", "list", "--store", url, "--json").out
    done = cli("runs", *order, "--store", url)
    assert done.code == 2
    assert "say --yes. Nothing was done." in done.err
    assert cli("runs", "list", "--store", url, "--json").out == before


@pytest.mark.parametrize("answer", ["y\n", "n\n", ""])
def test_at_a_terminal_somebody_is_asked(cli: Cli, url: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self, *_: int) -> str:
            return answer

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda *_: answer.strip() if answer else _end())
    done = cli("runs", "cancel", "wait-1", "--store", url)
    assert done.code == (0 if answer == "y\n" else 1)
    signals = cli("runs", "show", "wait-1", "--store", url, "--json").document["signals"]
    assert len(signals) == (answer == "y\n")


def _end() -> str:
    raise EOFError


def test_cancel(cli: Cli, url: str) -> None:
    done = cli("runs", "cancel", "wait-1", "--store", url, "--yes", "--json").document
    assert (done["id"], done["order"], done["was"]) == ("wait-1", "cancel", "waiting")
    assert "'wait'" in done["next"]
    with pytest.raises(RunCancelled):
        result_of(url, "wait-1")
    assert "has ended as 'cancelled'" in cli("runs", "resume", "wait-1", "--store", url, "--yes").err


def test_signal(cli: Cli, url: str) -> None:
    said = cli("runs", "signal", "wait-1", "payment", "7", "--message-id", "a", "--store", url, "--yes")
    assert "one must be running" in said.out
    cli("runs", "signal", "wait-1", "payment", "8", "--message-id", "a", "--store", url, "--yes")
    shown = cli("runs", "show", "wait-1", "--store", url, "--json").document
    assert [(s["topic"], s["message_id"]) for s in shown["signals"]] == [("payment", "a")]
    assert result_of(url, "wait-1") == "7 for w-1"


def test_a_payload_is_json_also_from_the_standard_input(cli: Cli, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    refused = cli("runs", "signal", "wait-1", "payment", "seven", "--store", url, "--yes")
    assert refused.code == 2
    assert "PAYLOAD is no JSON" in refused.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("9"))
    assert cli("runs", "signal", "wait-1", "payment", "-", "--store", url, "--yes").code == 0
    assert result_of(url, "wait-1") == "9 for w-1"


def test_resume(cli: Cli, url: str) -> None:
    assert cli("runs", "resume", "wait-2", "--store", url, "--yes").code == 0
    assert cli("runs", "show", "wait-2", "--store", url, "--json").document["status"] == "running"
    cli("runs", "signal", "wait-2", "payment", "1", "--store", url, "--yes")
    assert result_of(url, "wait-2") == "1 for w-2"


def test_retry_of_what_failed_behind_the_pivot(cli: Cli, url: str) -> None:
    assert cli("runs", "retry", "pivot", "--store", url, "--yes").code == 0
    assert result_of(url, "pivot") == "label of o-7"
    assert cli("verify", "--store", url, "--app", "cli_shop:flow").code == 0


def test_retry_of_a_compensation(cli: Cli, url: str) -> None:
    assert cli("runs", "retry", "stuck", "--store", url, "--yes").code == 0
    with pytest.raises(ValueError, match="no money"):
        result_of(url, "stuck")
    assert cli("runs", "show", "stuck", "--store", url, "--json").document["status"] == "compensated"
    assert cli("verify", "--store", url, "--app", "cli_shop:flow").code == 0


def test_a_payload_nested_too_deeply_is_refused(cli: Cli, url: str) -> None:
    done = cli("runs", "signal", "wait-1", "tea", "[" * 5000, "--store", url, "-y")
    assert (done.code, "PAYLOAD is no JSON" in done.err) == (2, True)


def test_retry_says_what_else_there_is(cli: Cli, url: str) -> None:
    assert "flowlet runs fork --from STEP bad" in cli("runs", "retry", "bad", "--store", url, "-y").err
    assert "flowlet runs resume wait-2" in cli("runs", "retry", "wait-2", "--store", url, "-y").err


def test_skip(cli: Cli, url: str) -> None:
    refused = cli("runs", "skip", "pivot", "pay", "--store", url, "-y")
    assert refused.code == 1
    assert "it waits for an answer about 'ship'" in refused.err
    wrong = cli("runs", "skip", "pivot", "ship", "--result", "1", "--store", url, "-y", "--app", "cli_shop:flow")
    assert wrong.code == 1  # the application knows that it is a text
    assert cli("runs", "skip", "pivot", "ship", "--result", '"by hand"', "--store", url, "-y").code == 0
    assert result_of(url, "pivot") == "by hand"


def test_compensate(cli: Cli, url: str) -> None:
    assert cli("runs", "compensate", "pivot", "--store", url, "-y").code == 0
    with pytest.raises(OSError, match="no van"):
        result_of(url, "pivot")


def test_fork(cli: Cli, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = cli("runs", "fork", "bad", "--from", "chrge", "--store", url, "-y")
    assert refused.code == 1
    assert "'charge'" in refused.err
    done = cli("runs", "fork", "bad", "--from", "charge", "--id", "again", "--store", url, "-y", "--json").document
    assert done["new_id"] == "again"
    assert cli("runs", "show", "again", "--store", url, "--json").document["forked_from"] == ["bad"]
    with pytest.raises(ValueError, match="no money"):
        result_of(url, "again")
    made_up = cli("runs", "fork", "good", "--from", "charge", "--store", url, "-y", "--json").document["new_id"]
    assert result_of(url, made_up) == "paid good"


def test_what_has_ended_is_refused(cli: Cli, url: str) -> None:
    for order in (["cancel", "good"], ["resume", "good"], ["skip", "good", "charge"], ["signal", "good", "x"]):
        done = cli("runs", *order, "--store", url, "-y")
        assert (done.code, done.out) == (1, "")
        assert "has ended as 'completed'" in done.err


def test_no_worker_is_left_behind(cli: Cli, url: str) -> None:
    cli("runs", "cancel", "wait-1", "--store", url, "-y")
    found = cli("doctor", "--store", url, "--json").document
    assert next(f for f in found if f["check"] == "workers")["found"].startswith("none on record")
