"""Having the program ``dot`` of Graphviz turn DOT text into SVG.

Law: a program that is missing, fails or does not end is one typed error that says what to do.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import Literal

from flowlet.errors import FlowletError


class DotFailed(FlowletError):
    """The program that makes a picture of DOT text did not do so.

    Attributes:
        reason: ``"missing"`` when there is no such program, ``"failed"`` when it refused the text, ``"timeout"``.
        program: its name.
    """

    reason: Literal["missing", "failed", "timeout"]
    program: str

    def __init__(self, message: str, reason: Literal["missing", "failed", "timeout"], program: str = "dot") -> None:
        self.reason, self.program = reason, program
        super().__init__(message)

    def __reduce__(self) -> tuple[type[DotFailed], tuple[str, str, str]]:
        return type(self), (str(self), self.reason, self.program)


def run_dot(text: str, program: str, timeout: float) -> str:
    """Return the SVG that a program makes of DOT text.

    Args:
        timeout: seconds.

    Raises:
        DotFailed: it is not installed, refused the text, or did not end in time.
    """
    path = shutil.which(program)
    if path is None:
        raise DotFailed(
            f"SVG needs the program {program!r} of Graphviz: install it (`apt-get install graphviz`, `brew install "
            "graphviz`), or use .mermaid or .dot, which are text",
            "missing",
            program,
        )
    try:
        done = subprocess.run([path, "-Tsvg"], input=text.encode(), capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        message = f"{program} did not end within {timeout:g} s; give svg() a longer timeout="
        raise DotFailed(message, "timeout", program) from error
    except OSError as error:
        raise DotFailed(f"{path} cannot be started: {error}; install Graphviz anew", "failed", program) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise DotFailed(f"{program} ended with {done.returncode}: {said}", "failed", program)
    return done.stdout.decode()
