"""flowlet: workflows that do not lose their place.

Mark the async functions and classes you have, let a registry assemble them into state machines, sagas
and pipelines, and run them over a store that keeps every step.
"""

from flowlet.app import Flowlet
from flowlet.core.annotations import provided
from flowlet.core.approval_levels import level
from flowlet.core.approval_values import Decision
from flowlet.core.gathering import gather
from flowlet.core.guards import all_of, any_of, not_
from flowlet.core.machine import Transition
from flowlet.core.marks import compensate, guard, state, step, transition
from flowlet.core.retry import Retry
from flowlet.core.run import Run, current_run
from flowlet.registry import Registry, describe
from flowlet.runtime.machine_questions import available_events, can, fire, in_state, raise_event, states_of

__version__ = "0.1.0"

__all__ = [
    "Decision",
    "Flowlet",
    "Registry",
    "Retry",
    "Run",
    "Transition",
    "all_of",
    "any_of",
    "available_events",
    "can",
    "compensate",
    "current_run",
    "describe",
    "fire",
    "gather",
    "guard",
    "in_state",
    "level",
    "not_",
    "provided",
    "raise_event",
    "state",
    "states_of",
    "step",
    "transition",
]
