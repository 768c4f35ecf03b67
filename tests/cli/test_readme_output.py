"""What the README shows of the command line is what it prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from flowlet.cli.program import program

if TYPE_CHECKING:
    from conftest import Cli


@pytest.fixture
def section(root: Path) -> str:
    text = (root / "README.md").read_text(encoding="utf-8")
    return text.partition("## The command line\n")[2].partition("\n## ")[0]


def test_the_shown_output_is_real(cli: Cli, section: str, root: Path) -> None:
    example = (root / "README.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    exec(example, {"__name__": "shop"})  # what the README says before
    command, *shown = [line.removeprefix("    ") for line in section.splitlines() if re.match(" {4}|$", line)][2:]
    printed = cli(*command.removeprefix("$ flowlet ").split()).out
    end = shown.index("book    completed  1         0.008    -") + 1
    assert [_without_times(line) for line in shown[:end]] == [_without_times(line) for line in printed.splitlines()]


def _without_times(line: str) -> str:
    return re.sub(r"\d\.\d{3}", "SECONDS", re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "TIME", line))


def test_the_table_names_every_command(section: str) -> None:
    context = click.Context(program)
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = {word for row in rows for words in re.findall(r"`([^`]+)`", row) for word in words.split()}
    for name in program.list_commands(context):
        command = program.get_command(context, name)
        assert command is not None
        assert name in named
        if isinstance(command, click.Group):
            assert set(command.list_commands(context)) <= named
