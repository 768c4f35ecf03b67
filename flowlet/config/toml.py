"""TOML files: their content, and the lines on which its keys stand.

Law: tomllib says what a file means; the lines are looked up beside that for messages, and may be missing.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

from flowlet.config.documents import Document, Keys, Unreadable

_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_AT = re.compile(r"^(.*?) \(at line (\d+), column \d+\)$")


def read_toml(text: str) -> Document:
    """Read a file.

    Raises:
        Unreadable: it is no TOML.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = _AT.match(str(error))
        if match is None:
            raise Unreadable(str(error), len(text.splitlines()) or 1) from error
        raise Unreadable(match[1], int(match[2])) from error
    except RecursionError as error:
        raise Unreadable("nested too deeply", 1) from error
    return Document(content, dict(_lines(text)))


def _lines(text: str) -> Iterator[tuple[Keys, int]]:
    """Yield keys and tables with their lines; what is within a text or a list of several lines is passed over."""
    table: Keys = ()
    inside: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if inside is not None:
            inside = None if inside in line else inside
            continue
        stripped = line.strip()
        if stripped.startswith("["):
            table = _path(stripped) or table
            yield table, number
        elif match := _KEY.match(line):
            yield table + _path(f"{match[1]} = 0"), number
        for quotes in ('"""', "'''"):
            if line.count(quotes) % 2:
                inside = quotes


def _path(line: str) -> Keys:
    """Return the keys that one line names, as tomllib reads it."""
    try:
        content: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    keys = []
    while isinstance(content, dict) and content:
        key, content = next(iter(content.items()))
        keys.append(key)
    return tuple(keys)
