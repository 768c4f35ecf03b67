"""What the environment says of the configuration.

Law: every variable that begins with ``FLOWLET_`` is known, or an error; an empty one says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from flowlet.config.catalog import PREFIX, names_by_variable
from flowlet.config.findings import Findings
from flowlet.core.faults import nearest

FILE, PROFILE = PREFIX + "CONFIG", PREFIX + "PROFILE"
_OTHERS = (PREFIX + "TEST_", PREFIX + "CONFORMANCE_")
"""Beginnings of names that are no settings: tests of stores use them."""


def read_environment(environ: Mapping[str, str]) -> Findings:
    """Return what is set there, and what is wrong with it."""
    findings = Findings()
    known = names_by_variable()
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable.startswith(_OTHERS) or variable in (FILE, PROFILE):
            continue
        name = known.get(variable)
        if name is None:
            findings.problems.append(
                f"{variable}: there is no such setting{nearest(variable, [*known, FILE, PROFILE])}"
            )
        elif text.strip():
            findings.add(name, text, variable)
    return findings
