"""The command line: ``flowlet``, which looks after what a store keeps.

Law: reading a store never writes to it, and needs no user code; what changes something asks first. Nothing is imported
before a command needs it, since people wait for a command line. It stands on top of everything and nothing imports it.

Exit codes: 0 done; 1 a problem was found, or what was asked was refused; 2 the command was used wrongly (or needs
``--yes``); 3 the store is not there or does not answer; 130 interrupted; 141 nobody reads the output any more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Args:
        arguments: those behind the program's name; by default the process's own.

    Example:
        >>> main(["--version"])
        flowlet 0.1.0
        0
    """
    try:
        import click  # noqa: F401  # pyright: ignore[reportUnusedImport] - whether it is there
    except ImportError:
        sys.stderr.write("the command line needs click and rich; install them: pip install 'flowlet[cli]'\n")
        return 2
    from flowlet.cli.program import run

    return run(list(sys.argv[1:] if arguments is None else arguments))
