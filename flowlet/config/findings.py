"""What was found of a configuration, and where.

Law: a finding has its place with it, so that every message can name it; problems are collected and never raised here.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from flowlet.config.catalog import kinds_by_name
from flowlet.config.values import shown, wrong


class Finding(Struct, frozen=True):
    """A value for a setting.

    Attributes:
        name: of the setting, as in `flowlet.config.variables`.
        value: as it is kept.
        origin: the variable, or file and line.
    """

    name: str
    value: Any
    origin: str


class Findings:
    """All that one place says.

    Attributes:
        found: by the names of the settings; the values are as they are kept.
        problems: a sentence for each thing that is wrong.
    """

    def __init__(self) -> None:
        self.found: dict[str, Finding] = {}
        self.problems: list[str] = []

    def add(self, name: str, value: Any, origin: str, *, label: str = "") -> None:
        """Note a value of a setting that there is, or that it is wrong.

        Args:
            label: how the setting is called there, if its place does not say it.
        """
        kind = kinds_by_name()[name]
        try:
            kept = kind.convert(value)
        except ValueError:
            self.problems.append(f"{origin}: {label and label + ' '}{wrong(kind, shown(value))}")
            return
        other = self.found.get(name)
        if other is None:
            self.found[name] = Finding(name, kept, origin)
        elif other.value != kept:
            values = f"{shown(other.value)} and {shown(kept)}"
            self.problems.append(f"{other.origin} and {origin} both set {name}, to {values}; keep one")

    def cover(self, others: Findings) -> None:
        """Note all that another place says, which counts for more."""
        self.found |= others.found
        self.problems += others.problems
