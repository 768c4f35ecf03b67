"""What commands print: rows in columns, facts, and JSON.

Law: ``--json`` prints one document for one thing, and one line for each thing of a list. Text is for people: the width
of the window counts on a terminal only, and so do colours, without ``NO_COLOR``. Whatever is shown of what somebody
else has written cannot steer the terminal.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click
import msgspec

Row = Mapping[str, Any]

_COLOURS: Final = {
    "completed": "green",
    "active": "green",
    "ok": "green",
    "running": "cyan",
    "waiting": "cyan",
    "compensating": "yellow",
    "retrying": "yellow",
    "paused": "yellow",
    "skipped": "yellow",
    "warning": "yellow",
    "failed": "red",
    "parked": "red",
    "problem": "red",
    "needs_attention": "red",
    "compensation_failed": "red",
    "cancelled": "magenta",
    "compensated": "magenta",
}
_GAP: Final = "  "
_NARROWEST: Final = 8
_LONGEST: Final = 2000
"""Letters of one value that are shown; --json shows all."""
_STEERING: Final = re.compile("[\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""What JSON may hold as it is, and what yet steers terminals."""


class Column:
    """A column of a table.

    Args:
        key: of the row.
        shrinks: it may be cut off where the window is narrow.
        leaves: it may be left out where that is not enough; the last one goes first.
        show: makes text of the value.
    """

    def __init__(
        self, key: str, *, shrinks: bool = False, leaves: bool = False, show: Callable[[Any], str] | None = None
    ) -> None:
        self.key: str = key
        self.shrinks: bool = shrinks
        self.leaves: bool = leaves
        self.title: str = key.replace("_", " ").upper()
        self.show: Callable[[Any], str] = show or text_of


class Output:
    """Where a command prints, and how.

    Args:
        json: as JSON.
    """

    def __init__(self, json: bool) -> None:
        self.json = json
        self.is_terminal: bool = sys.stdout.isatty()
        self.has_colour: bool = self.is_terminal and not os.environ.get("NO_COLOR")

    @property
    def width(self) -> int | None:
        """Columns of the window; None where there is none."""
        return shutil.get_terminal_size().columns if self.is_terminal else None

    def say(self, text: str = "") -> None:
        """Print a line."""
        sys.stdout.write((text if self.has_colour else click.unstyle(text)) + "\n")

    def document(self, thing: Any) -> None:
        """Print one JSON document."""
        sys.stdout.write(to_json(thing, indent=2) + "\n")

    def line(self, thing: Any) -> None:
        """Print one line of JSON; whoever reads along has it at once."""
        sys.stdout.write(to_json(thing) + "\n")

    def flush(self) -> None:
        """Let what was printed be seen."""
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Tell something that is not part of the answer."""
        click.echo(lines_of(text), err=True)

    def facts(self, facts: Iterable[tuple[str, Any]], indent: str = "") -> None:
        """Print names and values below each other, leaving out what is None."""
        shown = [(name, text_of(value)) for name, value in facts if value is not None]
        wide = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            self.say(f"{indent}{name.ljust(wide)}{_GAP}{paint(value)}")


class Table:
    """Rows in columns, page by page: the first page decides which there are, and how wide."""

    def __init__(self, output: Output, columns: Sequence[Column]) -> None:
        self._output, self._columns = output, list(columns)
        self._room = output.width
        self._widths: list[int] | None = None

    def add(self, rows: Sequence[Row]) -> None:
        """Print rows."""
        for text in self.lines(rows):
            self._output.say(text)
        self._output.flush()

    def lines(self, rows: Sequence[Row]) -> list[str]:
        """Return rows as lines, the titles before the first ones."""
        lines: list[str] = []
        if self._widths is None:
            self._widths = self._fit(rows)
            titles = [column.title for column in self._columns]
            lines.append(click.style(self._line(titles, self._widths), bold=True))
        cells = ([column.show(row.get(column.key)) for column in self._columns] for row in rows)
        return [*lines, *(self._line(row, self._widths) for row in cells)]

    def _fit(self, rows: Sequence[Row]) -> list[int]:
        """Return how wide each column is, without those for which there is no room."""
        widths = [
            max(len(column.title), *(width_of(column.show(row.get(column.key))) for row in rows), 0)
            for column in self._columns
        ]
        if self._room is None:
            return widths
        # One value that is very long is to make its own line long, and not all of them.
        most = max(_NARROWEST, self._room // 2)
        widths = [
            wide if column.shrinks else min(wide, max(most, len(column.title)))
            for wide, column in zip(widths, self._columns, strict=True)
        ]
        for index in sorted(range(len(widths)), key=lambda i: -widths[i]):
            if self._columns[index].shrinks:
                widths[index] -= min(max(0, self._over(widths)), max(0, widths[index] - _NARROWEST))
        for index in reversed(range(len(widths))):
            if self._over(widths) > 0 and self._columns[index].leaves:
                del widths[index], self._columns[index]
        return widths

    def _over(self, widths: Sequence[int]) -> int:
        assert self._room is not None
        return sum(widths) + len(_GAP) * (len(widths) - 1) - self._room

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        parts: list[str] = []
        for cell, wide, column in zip(cells, widths, self._columns, strict=True):
            cell = cut(cell, wide) if column.shrinks and self._room is not None else cell
            parts.append(paint(cell) + " " * (wide - width_of(cell)))
        return _GAP.join(parts).rstrip()


# ---------------------------------------------------------------- values
def paint(text: str) -> str:
    """Give a word for how something stands its colour."""
    return click.style(text, fg=_COLOURS[text]) if text in _COLOURS else text


def text_of(value: Any) -> str:
    """Return a value as people read it; nothing in it steers the terminal."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else to_json(value)
    text = "".join(letter if _is_harmless(letter) else _escaped(letter) for letter in text[: _LONGEST + 1])
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def lines_of(text: str) -> str:
    """Return a text of several lines, in which nothing else steers the terminal."""
    return "".join(letter if letter == "\n" or _is_harmless(letter) else _escaped(letter) for letter in text)


def argument(word: str) -> str:
    """Return a word as it is written behind a command in a shell, which must not do what it says."""
    quoted = text_of(shlex.quote(word))
    return f"-- {quoted}" if word.startswith("-") else quoted


def _is_harmless(letter: str) -> bool:
    return letter == " " or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def _escaped(letter: str) -> str:
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(letter, f"\\u{ord(letter):04x}")


def width_of(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    wide = (unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return sum(0 if unicodedata.combining(c) else 1 + w for c, w in zip(text, wide, strict=True))


def cut(text: str, wide: int) -> str:
    """Return a text that takes no more columns than this."""
    if width_of(text) <= wide:
        return text
    while text and width_of(text) > wide - 1:
        text = text[:-1]
    return text + "…"


def time_text(value: Any) -> str:
    """Return a time, as rows have it, for people."""
    return "-" if value is None else str(value)[:19].replace("T", " ") + "Z"


def seconds_text(value: Any) -> str:
    """Return a number of seconds, as rows have it, for people."""
    return "-" if value is None else f"{value:.3f}"


def time_of(seconds: float | None) -> str | None:
    """Return a time of a store as ISO 8601 in UTC, None for none."""
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return None  # such as infinity


def to_json(thing: Any, indent: int = 0) -> str:
    """Return plain data as JSON: bytes in base64, times in ISO 8601, keys as text."""
    try:
        data = msgspec.json.encode(thing)
    except (TypeError, ValueError, msgspec.MsgspecError):
        data = msgspec.json.encode(_plain(thing))
    text = (msgspec.json.format(data, indent=indent) if indent else data).decode()
    # Such letters occur in JSON's texts only, where this is another spelling of them.
    return text if text.isascii() and "\x7f" not in text else _STEERING.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


def _plain(thing: Any) -> Any:
    """Return what JSON can hold, of what msgpack can: keys that are no text become some."""
    if isinstance(thing, Mapping):
        return {key if isinstance(key, str) else text_of(key): _plain(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple, set, frozenset)):
        return [_plain(part) for part in thing]
    try:
        msgspec.json.encode(thing)
    except (TypeError, ValueError, msgspec.MsgspecError):
        return repr(thing)
    return thing
