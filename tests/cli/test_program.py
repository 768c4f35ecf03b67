"""The program itself: its commands, its errors, what it imports."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

import flowlet
from flowlet.cli import main
from flowlet.cli.program import program

if TYPE_CHECKING:
    from conftest import Cli


def test_help_names_all_commands(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0
    for name in program.list_commands(click.Context(program)):
        assert f"  {name} " in done.out


def walk(command: click.Command, *names: str) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return [names]
    context = click.Context(command)
    found = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
    return [path for name, inner in found if inner is not None for path in walk(inner, *names, name)]


def test_every_command_has_help_and_tells_its_json(cli: Cli) -> None:
    paths = walk(program)
    assert len(paths) > 30
    for path in paths:
        done = cli(*path, "--help")
        assert done.code == 0, path
        assert done.out.split("\n\n")[1].strip(), path
        assert path == ("diagram",) or "--json" in done.out, path


def test_the_script_is_declared(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"flowlet": "flowlet.cli:main"}
    assert [line.partition(">")[0] for line in project["optional-dependencies"]["cli"]] == ["click", "rich"]


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"flowlet {flowlet.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rums"], "did you mean 'runs'?"),
        (["runs", "shw"], "did you mean 'show'?"),
        (["runs", "list", "--statsu", "x"], "--status"),
        (["runs", "list", "--status", "complete"], "did you mean 'completed'?"),
        (["runs", "list", "--limit", "-1"], "--limit"),
        (["runs", "show"], "ID"),
        (["verify", "--app", "cli_shop"], "module:name"),
        (["verify", "--app", "cli_shop:flw"], "did you mean 'flow'?"),
        (["verify", "--app", "no_such_module:flow"], "there is no module"),
    ],
)
def test_wrong_usage(cli: Cli, arguments: list[str], words: str) -> None:
    done = cli(*arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['click'] = None; from flowlet.cli import main; sys.exit(main(['runs', 'list']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "the command line needs click and rich; install them: pip install 'flowlet[cli]'\n"


def imported(*arguments: str) -> set[str]:
    code = "import sys; from flowlet.cli import main; main(sys.argv[1:]); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    names: list[str] = ast.literal_eval(done.stderr.splitlines()[-1])
    return set(names)


def test_nothing_is_imported_that_is_not_needed(url: str) -> None:
    help_needs, list_needs = imported("--help"), imported("runs", "list", "--store", url)
    assert not help_needs & {"anyio", "asyncio", "flowlet.app", "flowlet.runtime", "msgspec", "rich", "sqlite3"}
    assert not list_needs & {"anyio", "asyncio", "flowlet.app", "flowlet.runtime.runs", "rich", "tomllib"}


def test_errors_are_for_people_and_bugs_are_not_hidden(cli: Cli, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("flowlet.stores.sqlite_onlooker.SQLiteOnlooker.scan", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["runs", "list", "--store", url])


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:hunter2@db/shop?schema=a", "postgresql://ann:***@db/shop?schema=a"),
        ("redis://:a/b@c#d?e@host:6379/0", "redis://:***@host:6379/0"),
        ("postgresql://db/a?password=hunter2&sslpassword=b", "postgresql://db/a?password=***&sslpassword=***"),
        ("sqlite:////srv/shop.db?durability=process", "sqlite:////srv/shop.db?durability=process"),
    ],
)
def test_passwords_are_never_shown(url: str, shown: str) -> None:
    from flowlet.cli.place import hide_password

    assert hide_password(url) == shown


def test_a_shell_can_complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("_FLOWLET_COMPLETE", "bash_complete"), ("COMP_WORDS", "flowlet runs h"), ("COMP_CWORD", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out == "plain,history\n"


def test_what_others_wrote_cannot_steer_the_terminal(cli: Cli) -> None:
    from flowlet.cli.output import cut, text_of, width_of

    assert text_of("a\x1b[2Jb\nc\u202ed") == "a\\u001b[2Jb\\nc\\u202ed"
    assert text_of({"a": [1, None]}) == '{"a":[1,null]}'
    assert (width_of("日本"), cut("日本語", 5), cut("abc", 3), cut("abcd", 3)) == (4, "日本…", "abc", "ab…")
    assert len(text_of("x" * 5000)) == 2001


def test_one_long_value_does_not_widen_all_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowlet.cli.output import Column, Output, Table

    monkeypatch.setattr(Output, "width", 80)
    table = Table(Output(json=False), (Column("id"), Column("status")))
    title, short, long = table.lines([{"id": "r-1", "status": "parked"}, {"id": "x" * 300, "status": "parked"}])
    assert len(click.unstyle(title)) <= 80
    assert len(click.unstyle(short)) <= 80
    assert click.unstyle(long) == "x" * 300 + "  parked"


def test_json_does_not_steer_the_terminal_either() -> None:
    from flowlet.cli.output import to_json

    odd = "a\x9b31m\x7f\u202eb\u2028ü日\x1b[0m"
    for text in (to_json({odd: [odd]}), to_json({odd: [odd]}, indent=2)):
        assert json.loads(text) == {odd: [odd]}
        assert text.isprintable() or set(filter(lambda c: not c.isprintable(), text)) == {"\n"}
        assert "ü日" in text


def test_errors_and_hints_do_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flowlet.cli import program
    from flowlet.cli.output import argument

    assert [argument(word) for word in ("o-42:a", "two words", "-x", "a;b", "'", "e\x1b[1m")] == [
        "o-42:a",
        "'two words'",
        "-- -x",
        "'a;b'",
        "''\"'\"''",
        "'e\\u001b[1m'",
    ]
    program._complain("one\x9b31m\ntwo\x1b[2J\u202e")
    assert capsys.readouterr().err == "error: one\\u009b31m\ntwo\\u001b[2J\\u202e\n"


def test_anything_that_can_be_stored_is_json() -> None:
    from flowlet.cli.output import to_json

    assert json.loads(to_json({1: b"\x00", (1, 2): {"x": float("nan")}})) == {"1": "AA==", "[1,2]": {"x": None}}


def lines_of(width: int | None, *pages: list[dict[str, str]]) -> list[str]:
    from flowlet.cli.output import Column, Output, Table

    class Window(Output):
        @property
        def width(self) -> int | None:
            return width

    columns = (Column("id"), Column("text", shrinks=True), Column("more", leaves=True), Column("last", leaves=True))
    table = Table(Window(json=False), columns)
    return [click.unstyle(line) for page in pages for line in table.lines(page)]


def test_columns_fit_into_the_window() -> None:
    row = {"id": "a-long-id-that-stays", "text": "x" * 30, "more": "y" * 10, "last": "z" * 10}
    wide, narrower, narrow = lines_of(80, [row]), lines_of(60, [row]), lines_of(45, [row])
    assert wide[1].split() == list(row.values())
    assert narrower[1].split() == [row["id"], "x" * 13 + "…", row["more"], row["last"]]
    assert narrow[0].split() == ["ID", "TEXT", "MORE"]
    assert narrow[1].split() == [row["id"], "x" * 7 + "…", row["more"]]
    assert max(map(len, narrower)) == 60
    assert lines_of(5, [row])[1].split()[0] == row["id"]  # which can be copied, even so


def test_without_a_window_nothing_is_cut_off() -> None:
    keys = ("id", "text", "more", "last")
    short, long = dict.fromkeys(keys, "a"), dict.fromkeys(keys, "b" * 300)
    assert lines_of(None, [short], [long])[-1].split() == list(long.values())


def test_what_is_not_for_a_terminal_has_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    from flowlet.cli.output import Output

    Output(json=False).say(click.style("failed", fg="red"))
    assert capsys.readouterr().out == "failed\n"


def test_the_store_may_stand_before_the_command(cli: Cli, url: str) -> None:
    behind = cli("runs", "list", "--json", "--store", url)
    assert cli("--store", url, "--json", "runs", "list") == behind
    done = cli("--store", url, "runs", "list", "--store", "sqlite:///other.db")
    assert (done.code, "given twice" in done.err) == (2, True)
