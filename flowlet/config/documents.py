"""A file of whatever format, as far as the configuration goes.

Law: plain values and the lines on which they stand; the formats have a module each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from msgspec import Struct

Keys: TypeAlias = tuple[str, ...]


class Unreadable(Exception):
    """A file is not of its format.

    Attributes:
        reason: what the reader says.
        line: where, from 1.
    """

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.reason: str = reason
        self.line: int = line


class Document(Struct, frozen=True):
    """What a file says.

    Attributes:
        content: mappings, lists and plain values.
        lines: where the keys stand, as far as that is known, from 1.
        twice: keys that occur twice in the same place, with their second lines.
    """

    content: Any
    lines: Mapping[Keys, int]
    twice: tuple[tuple[Keys, int], ...] = ()

    def line(self, keys: Keys) -> int | None:
        """Return the line of a key, or of the nearest one that it is within."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys)

    def at(self, keys: Keys) -> Any:
        """Return what stands under some keys, or None."""
        found = self.content
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found
