"""All settings there are: their names, their environment variables, their defaults.

Law: worked out of the annotations in `flowlet.config.values`, so that nothing is listed twice.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from flowlet.config.kinds import Kind
from flowlet.config.values import Checked, Config, sections, settings

PREFIX = "FLOWLET_"
FLAT = "bulk"
"""The section whose settings may also stand outside of it."""


class Variable(Struct, frozen=True):
    """One setting.

    Attributes:
        name: of the field, such as ``"bulk.timeout"``.
        variables: the environment variables that set it; the first is the short one.
        type: what kind of value it is.
        default: the value if nobody sets it.
        meaning: what it does.
        takes: what is allowed.
    """

    name: str
    variables: tuple[str, ...]
    type: str
    default: Any
    meaning: str
    takes: str


@functools.cache
def kinds_by_name() -> Mapping[str, Kind]:
    """Return the kind of each setting, by its name with its section's before it."""
    found = {name: setting.kind for name, setting in settings(Config).items()}
    for section, cls in sections(Config).items():
        found |= {f"{section}.{name}": setting.kind for name, setting in settings(cls).items()}
    return found


@functools.cache
def names_by_variable() -> Mapping[str, str]:
    """Return the setting that each environment variable sets."""
    return {spelling: name for name in kinds_by_name() for spelling in spellings(name)}


def spellings(name: str) -> tuple[str, ...]:
    """Return the environment variables of a setting, the short one first."""
    section, _, field = name.rpartition(".")
    full = PREFIX + name.replace(".", "__").upper()
    return (PREFIX + field.upper(), full) if section == FLAT else (full,)


def variables() -> tuple[Variable, ...]:
    """Return every setting there is, in the order of the fields of `Config`.

    Example:
        >>> from flowlet.config import variables
        >>> [v.name for v in variables() if "FLOWLET_TIMEOUT" in v.variables]
        ['bulk.timeout']
    """
    parts: dict[str, type[Checked]] = {"": Config, **{f"{name}.": cls for name, cls in sections(Config).items()}}
    return tuple(
        Variable(
            prefix + field,
            spellings(prefix + field),
            setting.kind.title,
            getattr(cls(), field),
            setting.meaning,
            setting.kind.takes,
        )
        for prefix, cls in parts.items()
        for field, setting in settings(cls).items()
    )
