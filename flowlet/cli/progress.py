"""The bar of what takes its time, on a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from flowlet.cli.output import Output

if TYPE_CHECKING:
    from flowlet.runtime.copying import CopyProgress


class Progress:
    """Shows how far a copy is; nothing where nobody looks."""

    def __init__(self, output: Output) -> None:
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        if sys.stderr.isatty() and not output.json:
            from rich.console import Console
            from rich.progress import Progress as Bar  # only here: it takes a moment to import

            self._bar = Bar(console=Console(stderr=True), transient=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, progress: CopyProgress) -> None:
        """Show how far it is."""
        if self._bar is None:
            return
        task = self._tasks.get(progress.phase)
        if task is None:
            task = self._tasks[progress.phase] = self._bar.add_task(progress.phase, total=progress.total)
        self._bar.update(task, completed=progress.done, total=progress.total)
