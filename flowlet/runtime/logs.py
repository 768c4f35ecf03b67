"""Log events, through structlog, under stable names (``run.started``, ``transition.committed`` ...).

Law: flowlet never configures structlog and says nothing by default on the happy path. An
unconfigured structlog prints every level to stdout, so then only warnings pass, to stderr. structlog
is imported when there is something to say; a user who wants the events has imported it already.
"""

from __future__ import annotations

import sys
from typing import Any


class Log:
    """The log of one `Flowlet`; `refresh` when it is entered, then ask `active` before an info event.

    Attributes:
        active: False when nobody can be listening to info events, so that building them is saved.
    """

    __slots__ = ("_structlog", "active")

    def __init__(self) -> None:
        self.active = False
        self.refresh()

    def refresh(self) -> None:
        """Look whether structlog has been imported by anybody."""
        self._structlog: Any = sys.modules.get("structlog")
        self.active = self._structlog is not None

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
