"""``flowlet machines | approvals | schedules | diagram``."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import cli_shop
import pytest

from flowlet import Flowlet

if TYPE_CHECKING:
    from conftest import Cli, Spawn

APP = ("--app", "cli_shop:flow")


# ---------------------------------------------------------------- machines
def test_machines_are_listed(cli: Cli, url: str) -> None:
    rows = cli("machines", "list", "--store", url, "--json").lines
    assert [(row["id"], row["state"], row["records"]) for row in rows] == [("m-1", "Paid", 2), ("m-2", "Open", 1)]
    only = cli("machines", "list", "--store", url, "--json", "--state", "Open", "--definition", "Order").lines
    assert [row["id"] for row in only] == ["m-2"]
    assert cli("machines", "list", "--store", url).out.splitlines()[1].split()[:3] == ["m-1", "Order", "Paid"]


def test_a_list_without_machines_says_what_there_is(cli: Cli, url: str) -> None:
    assert "did you mean 'Order'?" in cli("machines", "list", "--store", url, "--definition", "Ordr").err
    assert "there are Open, Paid" in cli("machines", "list", "--store", url, "--state", "Pad").err


def test_a_machine_is_shown_without_its_secrets(cli: Cli, url: str) -> None:
    shown = cli("machines", "show", "m-1", "--store", url, "--json").document
    assert (shown["state"], shown["data"], shown["timers"]) == ("Paid", {"total": 1, "code": "***"}, [])
    text = cli("machines", "show", "m-1", "--store", url).out
    assert "0000" not in text
    assert "nearest are" in cli("machines", "show", "m-3", "--store", url).err


def test_a_machine_has_a_history(cli: Cli, url: str) -> None:
    rows = cli("machines", "history", "m-1", "--store", url, "--json").lines
    assert [(row["kind"], row["event"], row["source"], row["target"]) for row in rows] == [
        ("created", None, None, "Open"),
        ("transition", "pay", "Open", "Paid"),
    ]
    assert len(cli("machines", "history", "m-1", "--store", url, "--json", "--after", "1").lines) == 1


# ---------------------------------------------------------------- approvals
def test_approvals_need_the_code(cli: Cli, url: str) -> None:
    done = cli("approvals", "inbox", "--store", url)
    assert done.code == 2
    assert "--app module:flow" in done.err


def test_the_inbox(cli: Cli, url: str) -> None:
    (row,) = cli("approvals", "inbox", "--store", url, *APP, "--json").lines
    assert (row["id"], row["level"], row["subject"], row["requester"]) == ("chairs", "manager", "two chairs", "ann")
    assert cli("approvals", "inbox", "--role", "director", "--store", url, *APP, "--json").lines == []
    assert "nothing waits" in cli("approvals", "inbox", "--role", "director", "--store", url, *APP).err


@pytest.mark.parametrize("word", ["approve", "reject"])
def test_deciding(cli: Cli, url: str, word: str) -> None:
    asked = cli("approvals", word, "chairs", "--by", "bob", "--role", "manager", "--store", url, *APP)
    assert asked.code == 2
    refused = cli("approvals", word, "chairs", "--by", "ann", "--role", "manager", "--store", url, *APP, "-y")
    assert refused.code == 1
    assert cli("approvals", word, "chairs", "--by", "bob", "--role", "manager", "--store", url, *APP, "-y").code == 0
    again = cli("approvals", word, "chairs", "--by", "bob", "--role", "manager", "--store", url, *APP, "-y")
    assert again.code == 1

    async def outcome() -> bool:
        async with Flowlet(url, registry=cli_shop.registry, drain_on_sigterm=False) as flow:
            return (await flow.handle("chairs", cli_shop.expense).result()).approved

    assert anyio.run(outcome) is (word == "approve")
    whats = [row["what"] for row in cli("approvals", "audit", "chairs", "--store", url, *APP, "--json").lines]
    assert {"submitted", "opened", "refused", "ended"} <= set(whats)


def test_delegating_and_withdrawing(cli: Cli, url: str) -> None:
    given = ("--by", "bob", "--role", "manager", "--to", "flo", "--store", url, *APP, "-y")
    assert cli("approvals", "delegate", "chairs", *given).code == 0
    (row,) = cli("approvals", "inbox", "--person", "flo", "--store", url, *APP, "--json").lines
    assert row["people"] == ["flo"]
    assert cli("approvals", "withdraw", "chairs", "--by", "bob", "--store", url, *APP, "-y").code == 1
    assert cli("approvals", "withdraw", "chairs", "--by", "ann", "--store", url, *APP, "-y").code == 0
    assert cli("approvals", "inbox", "--store", url, *APP, "--json").lines == []


def test_resubmitting(cli: Cli, url: str) -> None:
    given = ("--by", "ann", "--store", url, *APP, "-y")
    assert "is no JSON" in cli("approvals", "resubmit", "chairs", "three chairs", *given).err
    assert cli("approvals", "resubmit", "chairs", "3", *given).code == 1  # of another type
    assert cli("approvals", "resubmit", "chairs", '"three chairs"', *given).code == 0
    (row,) = cli("approvals", "inbox", "--store", url, *APP, "--json").lines
    assert row["subject"] == "three chairs"


# ---------------------------------------------------------------- schedules
def test_schedules(cli: Cli, url: str) -> None:
    (row,) = cli("schedules", "list", "--store", url, "--json").lines
    assert (row["name"], row["status"], row["when"]) == ("clean", "active", "every day")
    assert len(cli("schedules", "show", "clean", "--count", "3", "--store", url, "--json").document["ticks"]) == 3
    assert cli("schedules", "pause", "clean", "--store", url).code == 2
    assert cli("schedules", "pause", "clean", "--store", url, "-y").code == 0
    (row,) = cli("schedules", "list", "--store", url, "--json").lines
    assert (row["status"], row["next"]) == ("paused", None)
    assert cli("schedules", "resume", "clean", "--store", url, "-y").code == 0
    assert cli("schedules", "show", "clean", "--store", url, "--json").document["next"] is not None
    assert "did you mean 'clean'?" in cli("schedules", "show", "clear", "--store", url).err


@pytest.mark.parametrize("command", ["schedules list", "schedules show clean", "approvals inbox --app cli_shop:flow"])
def test_what_is_watched_is_shown_at_once(spawn: Spawn, url: str, command: str) -> None:
    process = spawn(*command.split(), "--watch", "--json", "--store", url)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


def test_a_schedule_is_triggered_for_whoever_has_the_code(cli: Cli, url: str) -> None:
    assert cli("schedules", "trigger", "clean", "--store", url, "-y").code == 2
    done = cli("schedules", "trigger", "clean", "--id", "c-1", "--store", url, *APP, "-y", "--json").document
    assert done["run"] == "c-1"
    again = cli("schedules", "trigger", "clean", "--id", "c-1", "--store", url, *APP, "-y")
    assert again.code == 0  # it is the same run
    shown = cli("runs", "show", "c-1", "--store", url, "--json").document
    assert (shown["status"], shown["owner"]) == ("running", None)

    async def outcome() -> str:
        async with Flowlet(url, registry=cli_shop.registry, drain_on_sigterm=False) as flow:
            with anyio.fail_after(10):
                return str(await flow.handle("c-1").result())

    assert anyio.run(outcome) == "clean"
    assert cli("schedules", "remove", "clean", "--store", url, "-y").code == 0
    assert cli("schedules", "list", "--store", url, "--json").lines == []


# ---------------------------------------------------------------- diagrams
def test_a_definition_is_drawn(cli: Cli, url: str, tmp_path: Path) -> None:
    code = cli("diagram", "cli_shop:Order").out
    assert code.startswith("stateDiagram-v2")
    assert cli("diagram", "Order", "--store", url).out == code
    assert cli("diagram", "Order:1", "--store", url).out == code
    assert cli("diagram", "cli_shop:checkout", "--format", "dot").out.startswith("digraph")
    assert cli("diagram", "cli_shop:checkout", "-o", "saga.dot").code == 0
    assert (tmp_path / "saga.dot").read_text().startswith("digraph")
    assert "class Open active" in cli("diagram", "cli_shop:Order", "--active", "Open").out


def test_what_cannot_be_drawn(cli: Cli, url: str) -> None:
    assert "did you mean 'Order'?" in cli("diagram", "cli_shop:Ordr").err
    assert cli("diagram", "cli_shop:Card").code == 1
    assert "no module" in cli("diagram", "no_such_module:x").err
    assert "did you mean 'checkout'?" in cli("diagram", "chekout", "--store", url).err
    assert "has no version 7 here; there are 1" in cli("diagram", "checkout:7", "--store", url).err
    missing = cli("diagram", "cli_shop:flow.nothing")
    assert missing.code == 2
