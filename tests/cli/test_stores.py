"""``flowlet store`` and ``flowlet doctor``."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlet.stores import sqlite_schema

if TYPE_CHECKING:
    from conftest import Cli


def test_stats(cli: Cli, url: str) -> None:
    found = cli("store", "stats", "--store", url, "--json").document
    assert found["schema_version"] == sqlite_schema.SCHEMA_VERSION
    assert found["size"] > 10_000
    counts = {(row["kind"], row["definition"], row["status"]): row["count"] for row in found["counts"]}
    assert counts["run", "checkout", "completed"] == 1
    assert counts["machine", "Order", "Paid"] == 1
    assert sum(count for (kind, _, _), count in counts.items() if kind == "run") == 8
    assert "needs_attention" in cli("store", "stats", "--store", url).out


def test_prune(cli: Cli, url: str) -> None:
    asked = cli("store", "prune", "--older-than", "0s", "--store", url)
    assert asked.code == 2
    assert "Delete 5 of what has ended" in asked.err
    assert cli("store", "prune", "--older-than", "30d", "--store", url).out.startswith("0 deleted")
    assert (
        cli("store", "prune", "--older-than", "0s", "--limit", "1", "--store", url, "-y", "--json").document["left"]
        == 4
    )
    assert cli("store", "prune", "--older-than", "0s", "--store", url, "-y").out.startswith("4 deleted")
    left = [row["id"] for row in cli("runs", "list", "--store", url, "--json").lines]
    assert left == ["stuck", "pivot", "wait-1", "wait-2", "chairs"]
    assert "no duration" in cli("store", "prune", "--older-than", "soon", "--store", url).err


def test_copy(cli: Cli, url: str, tmp_path: Path) -> None:
    target = f"sqlite:///{tmp_path}/copy.db"
    assert cli("store", "copy", target, "--store", url).code == 2
    assert not (tmp_path / "copy.db").exists()
    done = cli("store", "copy", target, "--store", url, "-y", "--json").document
    assert (done["runs"], done["machines"]) == (8, 2)
    assert cli("verify", "--store", target).code == 0
    assert cli("runs", "show", "stuck", "--store", target, "--json").document["status"] == "compensation_failed"
    assert "is the store itself" in cli("store", "copy", f"sqlite:///{tmp_path}/./shop.db", "--store", url, "-y").err
    assert cli("store", "copy", "memory://", "--store", url, "-y").code == 2
    none = cli("store", "copy", target, "--store", "sqlite:///none.db", "-y")
    assert none.code == 3
    assert not (tmp_path / "none.db").exists()


def test_migrate_makes_what_is_not_there(cli: Cli, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    assert cli("store", "migrate", "--store", url).code == 2
    assert not (tmp_path / "new.db").exists()
    assert cli("store", "migrate", "--store", url, "-y", "--json").document["done"] == "the tables are made"
    assert "as they should be" in cli("store", "migrate", "--store", url, "-y").out
    assert cli("runs", "list", "--store", url).code == 0


def test_a_file_of_an_older_version_is_read_and_can_be_brought_up_to_date(cli: Cli, url: str) -> None:
    path = url.removeprefix("sqlite:///").partition("?")[0]
    with closing(sqlite3.connect(path)) as file:
        file.execute("DROP TABLE graves")
        file.execute("PRAGMA user_version = 1")
    assert len(cli("runs", "list", "--store", url, "--json").lines) == 8
    assert cli("store", "stats", "--store", url, "--json").document["schema_version"] == 1
    assert "brought from version 1 to version 2" in cli("store", "migrate", "--store", url, "-y").out
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA user_version = 99")
    newer = cli("runs", "list", "--store", url)
    assert newer.code == 1
    assert "Update flowlet" in newer.err


# ---------------------------------------------------------------- doctor
def findings(cli: Cli, *options: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in cli("doctor", "--json", *options).document:
        found.setdefault(finding["check"], []).append(finding)
    return found


def test_doctor_finds_what_needs_somebody(cli: Cli, url: str) -> None:
    done = cli("doctor", "--store", url)
    assert done.code == 1
    assert "-> flowlet runs show pivot says why" in done.out
    found = findings(cli, "--store", url)
    assert {finding["status"] for finding in found["runs"]} == {"problem"}
    assert [finding["found"] for finding in found["runs"]] == [
        "1 are parked: wait-2",
        "1 are needs_attention: pivot",
        "1 are compensation_failed: stuck",
    ]
    assert found["python"][0]["status"] == found["store"][0]["status"] == found["clock"][0]["status"] == "ok"
    assert "survives the process" in found["abilities"][0]["found"]
    assert found["extra cli"][0]["status"] == "ok"


def test_doctor_knows_workers_and_what_is_overdue(cli: Cli, url: str) -> None:
    path, now = url.removeprefix("sqlite:///").partition("?")[0], time.time()
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("INSERT INTO workers VALUES ('living', ?), ('dead', ?)", (now + 60, now - 60))
        file.execute("UPDATE heads SET owner = 'living' WHERE id = 'wait-1'")
        file.execute("UPDATE heads SET wake = 1.0, updated = 1.0 WHERE id = 'chairs'")
    found = findings(cli, "--store", url, "--app", "cli_shop:flow")
    assert found["workers"][0]["found"] == "living, which owns 1"
    assert "dead has not been heard of" in found["workers"][1]["found"]
    assert "run 'expense' version 1" in found["due"][0]["found"]
    assert found["code"][0]["status"] == "ok"


def test_doctor_knows_code_that_is_missing(cli: Cli, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cli_bare.py").write_text("from flowlet import Flowlet\nflow = Flowlet()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = findings(cli, "--store", url, "--app", "cli_bare:flow")
    assert any("'wait' version 1, which --app does not include" in finding["found"] for finding in found["code"])


def test_doctor_looks_at_the_configuration(cli: Cli, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWLET_STORE", url)
    monkeypatch.setenv("FLOWLET_ENABLED", "false")
    found = findings(cli)
    assert "FLOWLET_STORE" in found["configuration"][0]["found"]
    assert "FLOWLET_ENABLED" in found["enabled"][0]["found"]
    monkeypatch.setenv("FLOWLET_STROE", "x")
    done = cli("doctor", "--json")
    assert done.code == 1
    (problem,) = [finding for finding in done.document if finding["status"] == "problem"]
    assert "FLOWLET_STORE" in problem["found"]
    assert cli("runs", "list").code == 2


def test_doctor_without_a_store(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = cli("doctor")
    assert done.code == 0
    assert "which store?" in done.out
    assert cli("doctor", "--store", "sqlite:///none.db").code == 3
    assert "flowlet store migrate" in cli("doctor", "--store", "sqlite:///none.db").out
    monkeypatch.setenv("FLOWLET_STORE", "postgresql://ann:hunter2@127.0.0.1:1/db")
    hidden = cli("doctor")
    assert hidden.code == 3
    assert "hunter2" not in hidden.out + hidden.err
    assert list(tmp_path.iterdir()) == []
