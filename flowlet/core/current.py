"""What the code that runs now is part of: a run's body, an attempt of a step, a machine's callback.

Law: these context variables say where the running code belongs, so that a step call finds its run and
a nested event is noticed. They never decide which `Flowlet` a definition runs on.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowlet.core.engine import StepCall
    from flowlet.core.program import Program
    from flowlet.core.run import InsideEvent

run_context: ContextVar[Program | StepCall | InsideEvent | None] = ContextVar("flowlet_run", default=None)
"""The scope that the code runs in: the program of a body, or the call of a step.

Both have ``inside`` (None only where a body runs that is not inside of a step), ``run()`` and ``event_key()``.
"""

machine_context: ContextVar[Any] = ContextVar("flowlet_machine", default=None)
"""The machine whose callbacks are running."""
