"""Telling how far a bulk operation is: to a function, to the log, as a bar on a terminal.

Law: at most ten times a second to a function, however many items end; always once at the end. Nothing is built when
nobody listens. rich is imported when a bar is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from flowlet.core.bulk import Progress
from flowlet.errors import MissingExtra
from flowlet.runtime.logs import Log
from flowlet.runtime.tally import Tally

_EVERY = 0.1
_LOGGED_EVERY = 10.0


class Reporter:
    """Tells whoever wants to know.

    Args:
        name: of the function, for the log and the bar.
        id: of the bulk operation, if it has one.
        show: see ``progress=`` of `Flowlet.bulk`.
        is_tracked: False: nothing goes to the log.

    Raises:
        MissingExtra: a bar is wanted, and rich is not installed.
    """

    def __init__(self, tally: Tally, log: Log, name: str, id: str | None, show: Any, is_tracked: bool = True) -> None:
        self._tally = tally
        self._log = log
        self._facts = {"function": name} if id is None else {"function": name, "run_id": id}
        self._bar = Bar(name) if show is True else None
        self._show: Callable[[Progress], object] | None = self._bar or (show or None)  # pyright: ignore[reportAttributeAccessIssue]
        self._next_show = self._next_log = 0.0
        self._is_logged = is_tracked and log.active
        self._is_listened_to = self._show is not None or self._is_logged

    def begin(self) -> None:
        """Tell that it has begun."""
        self._next_log = perf_counter() + _LOGGED_EVERY
        if self._is_logged:
            self._log.info("bulk.started", **self._facts, total=self._tally.total)
        if self._bar is not None:
            self._bar.begin(self._tally.total)

    def glance(self, now: float) -> None:
        """Tell how far it is, if it is time to."""
        if not self._is_listened_to:
            return
        if self._show is not None and now >= self._next_show:
            self._next_show = now + _EVERY
            self._show(self._tally.progress())
        if now >= self._next_log:
            self._next_log = now + _LOGGED_EVERY
            self._tell("bulk.progress")

    def end(self, status: str) -> None:
        """Tell that it is over."""
        self._tell("bulk.ended", status=status)
        try:
            if self._show is not None:
                self._show(self._tally.progress())
        finally:
            self.close()

    def close(self) -> None:
        """Take the bar away, if there is one."""
        if self._bar is not None:
            self._bar.end()

    def _tell(self, event: str, **more: Any) -> None:
        if self._is_logged:
            progress = self._tally.progress()
            self._log.info(
                event,
                **self._facts,
                **more,
                done=progress.done,
                failed=progress.failed,
                total=progress.total,
                rate=round(progress.rate, 1),
            )


class Bar:
    """A bar of rich on standard error, so that it does not mix with what a program prints.

    Args:
        title: what stands before it.
    """

    def __init__(self, title: str) -> None:
        try:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bars
        except ImportError as error:
            raise MissingExtra("progress=True needs rich; install it with: pip install 'flowlet[cli]'") from error
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bars.add_task(title, total=None, speed="")

    def begin(self, total: int | None) -> None:
        """Show it."""
        self._bars.update(self._task, total=total)
        self._bars.start()

    def __call__(self, progress: Progress) -> None:
        failed = f", {progress.failed:,} failed" if progress.failed else ""
        speed = f"{progress.rate:,.0f}/s{failed}"
        self._bars.update(self._task, completed=progress.done, total=progress.total, speed=speed)

    def end(self) -> None:
        """Leave it as it is, and give the terminal back."""
        self._bars.stop()
