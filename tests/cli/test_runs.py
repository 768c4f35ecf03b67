"""``flowlet runs list | show | history``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import cli_shop
import pytest

from flowlet import Flowlet

if TYPE_CHECKING:
    from conftest import Cli

STATUSES = {
    "good": "completed",
    "bad": "compensated",
    "stuck": "compensation_failed",
    "pivot": "needs_attention",
    "wait-1": "waiting",
    "wait-2": "parked",
    "chairs": "waiting",
    "june": "completed",
}


def test_all_runs_are_listed_in_order(cli: Cli, url: str) -> None:
    done = cli("runs", "list", "--store", url)
    assert (done.code, done.err) == (0, "")
    title, *rows = [line.split() for line in done.out.splitlines()]
    assert title[:4] == ["ID", "DEFINITION", "VERSION", "STATUS"]
    assert {row[0]: row[3] for row in rows} == STATUSES
    assert "\x1b" not in done.out


def test_json_has_a_line_for_each(cli: Cli, url: str) -> None:
    rows = cli("runs", "list", "--store", url, "--json").lines
    assert {row["id"]: row["status"] for row in rows} == STATUSES
    assert list(rows[0]) == [
        *("id", "definition", "version", "status", "created", "updated", "closed", "wake", "owner", "records"),
    ]
    assert rows[0]["created"].endswith("Z")
    assert rows[0]["owner"] is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--status", "waiting"], ["wait-1", "chairs"]),
        (["--status", "waiting,parked", "--status", "completed"], ["good", "wait-1", "wait-2", "chairs", "june"]),
        (["--open"], ["stuck", "pivot", "wait-1", "wait-2", "chairs"]),
        (["--definition", "checkout"], ["good", "bad", "stuck"]),
        (["--definition", "checkout", "--limit", "2"], ["good", "bad"]),
        (["--limit", "0"], []),
    ],
)
def test_what_is_listed_can_be_said(cli: Cli, url: str, options: list[str], expected: list[str]) -> None:
    assert [row["id"] for row in cli("runs", "list", "--json", "--store", url, *options).lines] == expected


def test_a_long_list_is_read_page_by_page(cli: Cli, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowlet.cli.listing._PAGE", 3)
    assert [line.split()[0] for line in cli("runs", "list", "--store", url).out.splitlines()] == ["ID", *STATUSES]
    assert len(cli("runs", "list", "--store", url, "--limit", "4", "--json").lines) == 4


def test_an_empty_list_says_why(cli: Cli, url: str, tmp_path: Path) -> None:
    async def make() -> None:
        async with Flowlet(f"sqlite:///{tmp_path}/empty.db", drain_on_sigterm=False):
            pass

    anyio.run(make)
    done = cli("runs", "list", "--store", f"sqlite:///{tmp_path}/empty.db")
    assert (done.code, done.out) == (0, "")
    assert "start one with `await flow.start(...)`" in done.err
    assert "did you mean 'checkout'?" in cli("runs", "list", "--store", url, "--definition", "chekout").err
    assert "no run with this status" in cli("runs", "list", "--store", url, "--status", "failed").err
    assert cli("runs", "list", "--store", url, "--status", "failed", "--json").out == ""


def test_a_run_is_shown_without_its_secrets(cli: Cli, url: str) -> None:
    done = cli("runs", "show", "good", "--store", url, "--json")
    shown = done.document
    assert shown["input"] == {"order": "good", "card": {"holder": "ann", "number": "***"}}
    assert (shown["status"], shown["result"], shown["error"]) == ("completed", "paid good", None)
    steps = {step["name"]: step for step in shown["steps"]}
    assert steps["reserve"]["value"] == {"holder": "ann", "number": "***"}
    assert steps["charge"]["value"] == "paid good"
    text = cli("runs", "show", "good", "--store", url)
    assert "4111-1111" not in done.out + text.out
    assert "checkout version 1" in text.out


def test_what_failed_is_shown_with_what_to_do(cli: Cli, url: str) -> None:
    bad = cli("runs", "show", "bad", "--store", url, "--json").document
    assert (bad["status"], bad["error"]) == ("compensated", "ValueError: no money")
    charge = next(step for step in bad["steps"] if step["name"] == "charge")
    assert (charge["status"], charge["attempts"], charge["error"]) == ("failed", 2, "ValueError: no money")
    stuck = cli("runs", "show", "stuck", "--store", url)
    assert "flowlet runs retry stuck" in stuck.out
    assert "the shelf is locked" in stuck.out
    pivot = cli("runs", "show", "pivot", "--store", url, "--json").document
    assert pivot["asked"] == ["ship"]
    assert "flowlet runs skip pivot ship" in cli("runs", "show", "pivot", "--store", url).out
    parked = cli("runs", "show", "wait-2", "--store", url)
    assert "step 'a' was expected and 'b' was found" in parked.out
    assert "flowlet runs resume wait-2" in parked.out


def test_a_bulk_operation_is_shown_by_its_sums(cli: Cli, url: str) -> None:
    shown = cli("runs", "show", "june", "--store", url, "--json").document
    assert shown["input"] == {"items": 5, "in_parts_of": 10}
    assert (shown["result"]["succeeded"], shown["result"]["failed"]) == (4, 1)


def test_values_are_masked_where_nobody_can_tell_what_is_secret(cli: Cli, url: str) -> None:
    import sqlite3

    with sqlite3.connect(url.removeprefix("sqlite:///").partition("?")[0]) as file:
        file.execute("DELETE FROM heads WHERE id = 'definition/saga/checkout/1'")
    file.close()
    shown = cli("runs", "show", "good", "--store", url, "--json").document
    assert (shown["input"], shown["result"], shown["steps"][0]["value"]) == ("***", "***", "***")
    assert "values are masked" in cli("runs", "show", "good", "--store", url).out


def test_what_cannot_be_judged_is_masked(cli: Cli, url: str) -> None:
    async def main() -> None:
        async with Flowlet(url, registry=cli_shop.registry, drain_on_sigterm=False) as flow:
            await flow.execute(cli_shop.archive, "a.pdf", id="archive")

    anyio.run(main)
    steps = {s["name"]: s["value"] for s in cli("runs", "show", "archive", "--store", url, "--json").document["steps"]}
    assert steps["scan"] == {"name": "a.pdf", "pages": ["<9 bytes>"]}
    assert steps["look"] == "***"  # of which the definition says nothing


def test_history_has_the_records(cli: Cli, url: str) -> None:
    rows = cli("runs", "history", "bad", "--store", url, "--json").lines
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    assert [row["kind"] for row in rows][:4] == ["started", "step_completed", "attempt_failed", "step_failed"]
    assert rows[-1]["kind"] == "compensated"
    rest = cli("runs", "history", "bad", "--store", url, "--json", "--after", "2").lines
    assert [row["seq"] for row in rest] == [row["seq"] for row in rows[2:]]
    assert len(cli("runs", "history", "bad", "--store", url, "--json", "--limit", "2").lines) == 2
    assert "ValueError: no money" in cli("runs", "history", "bad", "--store", url).out


def test_an_unknown_id_is_told_the_nearest(cli: Cli, url: str) -> None:
    for command in (["show"], ["history"], ["cancel", "--yes"], ["resume", "-y"], ["signal", "--yes"]):
        word, *options = command
        given = [word, "wait-3", *(["payment"] if word == "signal" else []), *options]
        done = cli("runs", *given, "--store", url)
        assert done.code == 1
        assert "there is no run 'wait-3'" in done.err
        assert "'wait-1'" in done.err
    assert (
        "is a machine of 'Order', not a run; see `flowlet machines`" in cli("runs", "show", "m-1", "--store", url).err
    )


def test_reading_changes_nothing(cli: Cli, url: str, tmp_path: Path) -> None:
    def digests() -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}

    before = digests()
    for command in (
        "runs list",
        "runs show good",
        "machines list",
        "schedules list",
        "verify",
        "store stats",
        "doctor",
    ):
        assert cli(*command.split(), "--store", url).code in (0, 1)
    assert digests() == before


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("sqlite:///none.db", 3, "there is no database at"),
        ("sqlite:///nowhere/none.db", 3, "nothing was created"),
        ("sqlite://none.db", 2, "three slashes"),
        ("sqlite:////tmp", 3, "is a directory"),
        ("sqlite3:///x.db", 2, "the known forms are"),
        ("memory://", 2, "gone with its process"),
        ("postgresql://ann:hunter2@127.0.0.1:1/db", 3, "127.0.0.1"),
        ("redis://:hunter2@127.0.0.1:1/0", 3, "cannot be reached"),
    ],
)
def test_a_store_that_is_not_there(cli: Cli, tmp_path: Path, url: str, code: int, words: str) -> None:
    done = cli("runs", "list", "--store", url)
    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert "hunter2" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_flowlets(cli: Cli, tmp_path: Path) -> None:
    import sqlite3

    (tmp_path / "text.db").write_text("this is no database, and it is long enough to be looked at\n" * 30)
    assert "not a SQLite database" in cli("runs", "list", "--store", "sqlite:///text.db").err
    with sqlite3.connect(tmp_path / "other.db") as file:
        file.execute("CREATE TABLE mine (x)")
    file.close()
    done = cli("runs", "list", "--store", "sqlite:///other.db")
    assert done.code == 1
    assert "database of another application" in done.err
    (tmp_path / "empty.db").touch()
    assert cli("runs", "list", "--store", "sqlite:///empty.db").code == 3
    assert (tmp_path / "empty.db").stat().st_size == 0


def test_the_configured_store_is_taken(cli: Cli, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = cli("runs", "list")
    assert done.code == 2
    assert "set FLOWLET_STORE" in done.err
    monkeypatch.setenv("FLOWLET_STORE", url)
    assert len(cli("runs", "list", "--json").lines) == len(STATUSES)


def test_what_was_written_through_a_codec_needs_its_application(cli: Cli, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/coded.db?durability=process"
    anyio.run(lambda: cli_shop.write_history(url, codec=cli_shop.Squeeze()))
    assert cli("runs", "list", "--store", url).code == 0  # heads are plain
    refused = cli("runs", "show", "good", "--store", url)
    assert refused.code == 1
    assert "give --app module:flow" in refused.err
    shown = cli("runs", "show", "good", "--store", url, "--app", "cli_shop:squeezed", "--json").document
    assert shown["result"] == "paid good"
    assert shown["input"]["card"]["number"] == "***"
    assert cli("verify", "--store", url, "--app", "cli_shop:squeezed").code == 0
