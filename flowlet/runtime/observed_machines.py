"""Machines of a `Flowlet` that has observers: the same transitions, told.

Law: nothing is decided here. That a bond is of this kind keeps its machine from the shortest path of a transition,
which tells nobody anything.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

from flowlet.core.chart import Plan
from flowlet.observing import TransitionBegan, TransitionEnded
from flowlet.runtime.machine_bond import Bond


class ObservedBond(Bond):
    """The bond of a machine whose transitions are told."""

    __slots__ = ()

    is_observed = True

    async def watch(self, machine: Any, plan: Plan, follow: Any) -> Any:
        """Make a transition and tell of it.

        Args:
            follow: makes it.
        """
        observing = self.office.log.observing
        if observing is None:  # the Flowlet has been entered again without observers
            return await follow()
        name, before = self.definition.name, self.version
        source = machine._flowlet_state.state
        work = TransitionBegan(machine=self.id, definition=name, event=plan.event, source=source)
        observing.tell(work)
        began = perf_counter()
        problem: BaseException | None = None
        try:
            with observing.around(work):
                return await follow()
        except BaseException as error:
            problem = error
            raise
        finally:
            observing.tell(
                TransitionEnded(
                    machine=self.id,
                    definition=name,
                    event=plan.event,
                    source=source,
                    target=machine._flowlet_state.state,
                    version=self.version,
                    committed=self.version > before,
                    seconds=perf_counter() - began,
                    error=problem,
                )
            )
            del problem
