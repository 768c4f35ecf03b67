"""Log events, through structlog, under stable names (``run.started``, ``transition.committed`` ...).

Law: flowlet never configures structlog and says nothing by default on the happy path. An
unconfigured structlog prints every level to stdout, so then only warnings pass, to stderr. structlog
is imported when there is something to say; a user who wants the events has imported it already.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowlet.runtime.observing import Observing


class Log:
    """The log of one `Flowlet`; `refresh` when it is entered, then ask `active` before an info event.

    Attributes:
        active: False when nobody can be listening to info events, so that building them is saved.
        observing: tells the observers of the `Flowlet`; None when there are none. Ask `active` first.
    """

    __slots__ = ("_structlog", "active", "observing")

    def __init__(self) -> None:
        self.active: bool = False
        self.observing: Observing | None = None
        self.refresh()

    def refresh(self, observers: Sequence[Any] = ()) -> None:
        """Look whether structlog has been imported by anybody, and take note of the observers there are."""
        self._structlog: Any = sys.modules.get("structlog")
        self.observing = None
        shows_context = self._shows_context()
        if observers or shows_context:
            from flowlet.runtime.observing import LogContext, Observing

            listening = [*observers, LogContext(self._structlog)] if shows_context else observers
            self.observing = Observing(listening, self, of_machines=bool(observers))
        self.active = self._structlog is not None or self.observing is not None

    def _shows_context(self) -> bool:
        """Tell whether what is bound to context variables would be seen in lines of the user's own."""
        if self._structlog is None or not self._structlog.is_configured():
            return False
        return self._structlog.contextvars.merge_contextvars in self._structlog.get_config()["processors"]

    def debug(self, event: str, **fields: Any) -> None:
        """Tell of a detail, if structlog is configured."""
        if self._structlog is not None and self._structlog.is_configured():
            self._structlog.get_logger("flowlet").debug(event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        """Tell of something that went as it should, if structlog is configured."""
        if self._structlog is not None and self._structlog.is_configured():
            self._structlog.get_logger("flowlet").info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Tell of something that somebody should look at, whatever is configured."""
        self._unfiltered().warning(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """Tell of something that needs somebody, whatever is configured."""
        self._unfiltered().error(event, **fields)

    def _unfiltered(self) -> Any:
        import structlog

        if structlog.is_configured():
            return structlog.get_logger("flowlet")
        return structlog.wrap_logger(
            structlog.PrintLogger(sys.stderr),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.format_exc_info,
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.dev.ConsoleRenderer(colors=False),
            ],
        )
