"""``flowlet verify``: what is right is found right, and whatever is damaged is found."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from flowlet.core.codec import pack
from flowlet.runtime.verifying import Verifier
from flowlet.store import New, Write
from flowlet.stores import open_store

if TYPE_CHECKING:
    from conftest import Cli

APP = ("--app", "cli_shop:flow")


def path_of(url: str) -> str:
    return url.removeprefix("sqlite:///").partition("?")[0]


def change(url: str, text: str, *values: object) -> None:
    with closing(sqlite3.connect(path_of(url))) as file, file:
        assert file.execute(text, values).rowcount > 0


def records(url: str) -> list[tuple[str, str, int, bytes]]:
    with closing(sqlite3.connect(path_of(url))) as file:
        return file.execute(
            "SELECT kind, id, seq, data FROM records JOIN heads USING (n) JOIN catalog USING (c)"
        ).fetchall()


def test_a_store_as_flowlet_writes_it_is_right(cli: Cli, url: str) -> None:
    done = cli("verify", "--store", url)
    assert (done.code, "no problems" in done.out) == (0, True)
    assert "8 runs, 2 machines" in done.out.replace("definitions, ", "")
    sums = cli("verify", "--store", url, *APP, "--json").lines[-1]
    assert (sums["problems"], sums["runs"], sums["machines"]) == (0, 8, 2)
    assert sums["judged_by_code"] == 9  # all runs but the bulk operation, and both machines
    assert sums["records"] == len(records(url))


def test_any_missing_record_is_found(cli: Cli, url: str, written: Path) -> None:
    whole = written.read_bytes()
    for kind, id, seq, _ in records(url):
        Path(path_of(url)).write_bytes(whole)
        change(url, "DELETE FROM records WHERE seq = ? AND n = (SELECT n FROM heads WHERE id = ?)", seq, id)
        done = cli("verify", "--store", url)
        assert done.code == 1, (kind, id, seq)
        assert repr(id) in done.out


def test_any_record_that_is_cut_off_is_found(cli: Cli, url: str, written: Path) -> None:
    whole = written.read_bytes()
    for _, id, seq, data in records(url):
        Path(path_of(url)).write_bytes(whole)
        values = (data[: len(data) // 2], seq, id)
        change(url, "UPDATE records SET data = ? WHERE seq = ? AND n = (SELECT n FROM heads WHERE id = ?)", *values)
        assert cli("verify", "--store", url).code == 1, (id, seq)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "UPDATE heads SET status = 'failed' WHERE id = 'good'",
            "it has ended as 'completed', and is listed as 'failed'",
        ),
        ("UPDATE heads SET closed = NULL WHERE id = 'good'", "is listed as 'completed'"),
        ("UPDATE heads SET closed = 1.0 WHERE id = 'wait-1'", "no record says so"),
        ("UPDATE heads SET state = 'Open' WHERE id = 'm-1'", "its records add up to 'Paid'"),
        ("UPDATE heads SET version = 9 WHERE id = 'm-1'", "it has 2 records where 9 should be"),
        ("UPDATE heads SET status = 'paused' WHERE id LIKE 'flowlet/schedule/%'", "its state says 'active'"),
        ("UPDATE catalog SET kind = 'thing' WHERE kind = 'machine'", "its kind 'thing' is not known"),
        ("UPDATE catalog SET definition = 'other' WHERE kind = 'run' AND definition = 'wait'", "is listed as another"),
        (  # its second record once more, as the third
            "UPDATE records SET data = (SELECT data FROM records WHERE n = heads_n AND seq = 2) "
            "WHERE n = heads_n AND seq = 3",
            "is a second outcome of 'reserve'",
        ),
    ],
)
def test_what_does_not_fit_together_is_found(cli: Cli, url: str, statement: str, words: str) -> None:
    change(url, statement.replace("heads_n", "(SELECT n FROM heads WHERE id = 'good')"))
    done = cli("verify", "--store", url)
    assert done.code == 1
    assert words in done.out


def test_a_signal_that_never_came_is_found(cli: Cli, url: str) -> None:
    assert cli("runs", "signal", "wait-1", "payment", "--store", url, "-y").code == 0
    assert cli("verify", "--store", url).code == 0
    change(url, "UPDATE signals SET number = 5")
    assert "numbered [5], and the last was 1" in cli("verify", "--store", url).out


def test_what_only_the_code_knows_is_found_with_it(cli: Cli, url: str) -> None:
    with closing(sqlite3.connect(path_of(url))) as file, file:
        (data,) = file.execute(
            "SELECT data FROM records WHERE seq = 2 AND n = (SELECT n FROM heads WHERE id = 'm-1')"
        ).fetchone()
    change(
        url,
        "UPDATE records SET data = ? WHERE seq = 2 AND n = (SELECT n FROM heads WHERE id = 'm-1')",
        data.replace(b"total", b"tutal"),
    )
    assert cli("verify", "m-1", "--store", url).code == 0
    done = cli("verify", "m-1", "--store", url, *APP)
    assert done.code == 1
    assert "does not decode to OrderData" in done.out


def test_a_later_version_may_call_its_states_otherwise() -> None:
    records = [
        ("c", "Draft", 1.0, 1, 1, b"\x80"),
        ("m", "send", "Draft", "Away", 2.0, 1, 1),
        ("m", "arrive", "Sent", "There", 3.0, 1, 2),
    ]

    async def problems(*changed: tuple[object, ...]) -> list[str]:
        store = open_store("memory://")
        for id, history in (("m", records), ("n", [*records, *changed])):
            new, packed = New("machine", "Parcel"), [pack(record) for record in history]
            await store.append([Write(id=id, expect=0, create=new, records=packed, state=str(history[-1][3]))])
        return [problem async for verdict in Verifier(store).judge_all() for problem in verdict.problems]

    assert anyio.run(problems) == []
    wrong = anyio.run(problems, ("m", "return_", "Away", "Home", 4.0, 1, 2))
    assert wrong == ["machine 'n': record 4 leads from 'Away', and it was in 'There'"]


def test_single_ids(cli: Cli, url: str) -> None:
    assert cli("verify", "good", "m-1", "--store", url, "--json").lines[-1]["entities"] == 2
    assert "nearest are 'good'" in cli("verify", "goood", "--store", url).err
