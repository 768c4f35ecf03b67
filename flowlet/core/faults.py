"""Collecting the faults of definitions, so that all of them are reported at once.

Law: a check adds a sentence and goes on; only `Faults.raise_if_any` raises. A sentence names the class
or function, says what is wrong and, for a likely typo, the nearest name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from flowlet.errors import DefinitionError


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the candidate closest to ``name``, or ``""``."""
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def describe(thing: object) -> str:
    """Name a class or function as its author knows it, without its module."""
    name = getattr(thing, "__qualname__", None) or repr(thing)
    return str(name).rpartition("<locals>.")[2]


class Faults:
    """A growing list of what is wrong with one definition (or with several that belong together)."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def add(self, where: object, what: str) -> None:
        """Note a fault of ``where`` (a class, a function or a name)."""
        name = where if isinstance(where, str) else describe(where)
        problem = f"{name}: {what}"
        if problem not in self.problems:
            self.problems.append(problem)

    def extend(self, problems: Iterable[str]) -> None:
        """Note the faults that another check has found."""
        self.problems.extend(p for p in problems if p not in self.problems)

    def raise_if_any(self) -> None:
        """Raise `DefinitionError` with everything noted so far."""
        if self.problems:
            raise DefinitionError(self.problems)
