"""SIGTERM: a process that is asked to end drains its Flowlets first, and then ends by that signal.

Law: the handler takes the place of the default disposition only, on the main thread only, and only while a
Flowlet is entered there; the last one that is left puts the default back. A program or framework that handles
SIGTERM itself is left alone. What the handler knows is in the handler, which the `signal` module holds: the
package has no state of its own. A second SIGTERM finds the default disposition, and ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from flowlet.runtime.tasks import loop_token, on_trio, spawn

Drainer = Callable[[], Awaitable[None]]


class Guest:
    """One entered Flowlet, as the handler knows it.

    Args:
        drain: leaves its runs; awaited on the event loop that is running now.
    """

    def __init__(self, termination: Termination, drain: Drainer) -> None:
        self._termination = termination
        self._drain = drain
        self._loop: Any = loop_token()
        self._is_trio = on_trio()

    def ask(self) -> bool:
        """Have it drained, from within a signal handler; False when its event loop does not run any more."""
        try:
            if self._is_trio:
                self._loop.run_sync_soon(self._begin)
            elif self._loop.is_running():
                self._loop.call_soon_threadsafe(self._begin)
            else:
                return False
        except RuntimeError:  # the loop has ended; trio's RunFinishedError is one, too
            return False
        return True

    def _begin(self) -> None:
        spawn(self._drain, lambda error: None, lambda task: self.leave())  # `drain` tells of its errors itself

    def leave(self) -> None:
        """Let the process end, or the default disposition return, without this one."""
        self._termination.remove(self)


class Termination:
    """The handler of SIGTERM while Flowlets are entered."""

    def __init__(self) -> None:
        self.process: int = os.getpid()
        self._guests: list[Guest] = []
        self._has_come = False

    def __call__(self, number: int, frame: object) -> None:
        """Begin to end: ask every Flowlet to drain, and end once all have."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._has_come = True
        if os.getpid() != self.process:  # a fork without exec: what is entered is entered in the parent
            self._guests.clear()
        for guest in list(self._guests):
            if not guest.ask():
                self._guests.remove(guest)
        self._end_if_alone()

    def add(self, drain: Drainer) -> Guest:
        """Let a Flowlet be drained before the process ends."""
        guest = Guest(self, drain)
        self._guests.append(guest)
        return guest

    def remove(self, guest: Guest) -> None:
        """Let the process end, or the default disposition return, without this one."""
        if guest in self._guests:
            self._guests.remove(guest)
        self._end_if_alone()

    def _end_if_alone(self) -> None:
        if self._guests:
            return
        if self._has_come:
            signal.raise_signal(signal.SIGTERM)
        elif signal.getsignal(signal.SIGTERM) is self:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def drain_on_sigterm(drain: Drainer) -> Guest | None:
    """Have a Flowlet drained when SIGTERM comes, until the returned guest leaves.

    Returns:
        None where that is not flowlet's to decide: off the main thread, or where somebody handles SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    present = signal.getsignal(signal.SIGTERM)
    if isinstance(present, Termination) and present.process == os.getpid():
        return present.add(drain)
    if present is not signal.SIG_DFL and not isinstance(present, Termination):
        return None
    termination = Termination()
    try:
        signal.signal(signal.SIGTERM, termination)
    except ValueError:  # a subinterpreter
        return None
    return termination.add(drain)
