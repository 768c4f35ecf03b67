"""Planning for nested states: which transitions an event enables, and what taking them together does.

Law: pure, and worked out once for each configuration and choice (W3C SCXML, appendix D). The sets come from
`flowlet.core.tree`; here they are given the hooks, actions, timers and "done" events of the machine. Which guards
agree is the driver's question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import msgspec

from flowlet.core.chart import Act, Candidate, Hooks, Landing, Plan
from flowlet.core.configurations import Configuration, Configurations
from flowlet.core.guards import Check
from flowlet.core.hooks import Callback, EventParameters
from flowlet.core.tree import ROOT, Arrow, Step, Tree, numbers

MOST_WAYS = 256
"""Combinations of guards' answers that are gone through when a recorded transition is judged."""


class Move(msgspec.Struct, frozen=True, eq=False):
    """A candidate, ready to be taken.

    Attributes:
        arrow: what it means in the tree.
        rescue: the same when its action fails, if that leads anywhere.
        timer: the key of the timer that makes it be considered, if one does.
        asks: a guard takes the event's arguments.
    """

    candidate: Candidate
    arrow: Arrow
    rescue: Arrow | None
    action: Callback
    parameters: EventParameters
    hooks: Hooks
    timer: str | None
    asks: bool

    @property
    def gate(self) -> Check | None:
        return self.candidate.gate

    @property
    def checks(self) -> tuple[Check, ...]:
        return () if self.candidate.check is None else (self.candidate.check,)

    @property
    def exclusive(self) -> bool:
        return self.candidate.exclusive

    @property
    def retry(self) -> bool:
        return self.candidate.retry


class Choice:
    """What an event could do in one configuration, before guards are asked.

    Attributes:
        levels: for each active atomic state, in document order, the moves it is asked about: its own, in the order
            of the class, then those of the states around it, inner ones first.
    """

    __slots__ = ("_chart", "_configuration", "levels")

    levels: tuple[tuple[Move, ...], ...]

    def __init__(self, chart: Statechart, configuration: Configuration, levels: tuple[tuple[Move, ...], ...]) -> None:
        self._chart, self._configuration, self.levels = chart, configuration, levels

    def __iter__(self) -> Iterator[Move]:
        return (move for level in self.levels for move in level)

    def plan(self, enabled: Sequence[Move]) -> Plan:
        """Plan taking the moves that were enabled, or as many of them as can be taken together."""
        return self._chart.plan(self._configuration, tuple(enabled))


class Table:
    """What one event (or one trigger method) can do in each configuration.

    Attributes:
        listener: hears of the configurations in which there is only one plan, as they are found.
    """

    listener: Callable[[Configuration, tuple[Plan, ...]], None] | None = None

    def __init__(self, chart: Statechart, moves: Sequence[Move]) -> None:
        self._chart = chart
        self._at: dict[int, list[Move]] = {}
        for move in moves:
            self._at.setdefault(move.arrow.source, []).append(move)
        self._sources = sum(1 << number for number in self._at)
        self._known: dict[Configuration, Choice | tuple[Plan] | None] = {}

    def get(self, configuration: Configuration, default: Any = ()) -> Any:
        """Return what can be done in a configuration: a `Choice`, the only `Plan` there is, or the default."""
        found = self._known.get(configuration, self)
        if found is self:
            found = self._known[configuration] = self._choice(configuration)
        return default if found is None else found

    def __contains__(self, configuration: object) -> bool:
        return isinstance(configuration, Configuration) and self.get(configuration, None) is not None

    def __iter__(self) -> Iterator[Configuration]:
        """Iterate over the configurations of single states that it leaves, for messages."""
        configurations, nodes = self._chart.configurations, self._chart.tree.nodes
        return (Configuration((nodes[n].name or "*",), False, configurations.home) for n in self._at)

    def _choice(self, configuration: Configuration) -> Choice | tuple[Plan] | None:
        if configuration.final or not configuration.active & self._sources:
            return None
        nodes = self._chart.tree.nodes
        levels = [
            tuple(move for number in (leaf, *nodes[leaf].ancestors) for move in self._at.get(number, ()))
            for leaf in self._chart.tree.leaves(configuration.active)
        ]
        choice = Choice(self._chart, configuration, tuple(levels))
        only, *others = dict.fromkeys(choice)
        if others or only.candidate.automatic:
            return choice
        plan = choice.plan((only,))
        plans = (msgspec.structs.replace(plan, gate=only.gate, checks=only.checks, asks=only.asks),)
        if self.listener is not None and not configuration.fresh:
            self.listener(configuration, plans)
        return plans


class Statechart:
    """The moves of one machine with nested states.

    Args:
        announce: makes the hook that queues a "done" event.
        invoking: the set of states that have work of their own.

    Attributes:
        eventless: the moves that are taken by themselves.
        timed: those that a timer makes be considered, by its key.
    """

    tree: Tree
    configurations: Configurations
    moves: tuple[Move, ...]

    def __init__(
        self,
        tree: Tree,
        configurations: Configurations,
        moves: Sequence[Move],
        enters: Mapping[str, Callback],
        announce: Callable[[str], Callback],
        invoking: int,
    ) -> None:
        self.tree, self.configurations, self.moves = tree, configurations, tuple(moves)
        self._enters, self._announce, self._invoking = enters, announce, invoking
        self._heard = {m.candidate.event for m in moves}
        self._plans: dict[tuple[Configuration, tuple[Move, ...]], Plan] = {}
        self.eventless: Table = Table(self, [m for m in moves if m.candidate.cause == "eventless"])
        self.timed: dict[str, Table] = {m.timer: Table(self, [m]) for m in moves if m.timer is not None}

    # Starting -----------------------------------------------------------------------------------
    def start(self) -> Landing:
        """Return what is true of a machine that has just begun."""
        return self._land(self.tree.start(), (), self._enters.get)

    # Planning -----------------------------------------------------------------------------------
    def plan(self, configuration: Configuration, enabled: tuple[Move, ...]) -> Plan:
        """Plan what enabled moves do in a configuration; of those in conflict, some are left out."""
        found = self._plans.get((configuration, enabled))
        if found is None:
            found = self._plans[configuration, enabled] = self._plan(configuration, enabled)
        return found

    def _plan(self, here: Configuration, enabled: tuple[Move, ...]) -> Plan:
        tree, active, memory = self.tree, here.active, here.memory
        kept = tree.compatible([m.arrow for m in enabled], active, memory)
        moves = [enabled[place] for place in kept]
        first = moves[0]
        step = tree.step([m.arrow for m in moves], active, memory)
        landing = self._landing(here, moves, step)
        acts = [Act(m.action, m.parameters, self._rescue(here, m, moves, step)) for m in moves]
        rescues = [a.rescue for a in acts if a.rescue is not None]
        callbacks = [m.action for m in moves]
        for place in (landing, *rescues):
            callbacks += (*place.exits, *place.enters)
        return Plan(
            event=first.candidate.event,
            method=first.candidate.method,
            source=here,
            target=landing.target,
            gate=None,
            checks=(),
            action=first.action,
            parameters=first.parameters,
            exits=landing.exits,
            enters=landing.enters,
            landing=landing,
            rescue=acts[0].rescue,
            exclusive=any(m.exclusive for m in moves),
            retry=any(m.retry for m in moves),
            asks=False,
            waits=any(c.awaits for c in callbacks) or any(g.awaits for m in moves for g in _guards(m)),
            plain=all(c.alone or c.passes for c in callbacks) and not any(m.parameters.provided for m in moves),
            more=tuple(acts[1:]),
            automatic=first.candidate.automatic,
        )

    def _rescue(self, here: Configuration, move: Move, others: Sequence[Move], before: Step) -> Landing | None:
        """Plan where a failing action leads: its own transition alone, with another target.

        Args:
            before: what was planned, whose exit hooks have run already; what stays active of it is entered again.
        """
        if move.rescue is None:
            return None
        step = self.tree.step([move.rescue], here.active, here.memory)
        again = [n for n in before.exits if step.active >> n & 1]
        rescue = self._landing(
            here,
            [move],
            Step(
                exits=tuple(n for n in step.exits if n not in before.exits),
                enters=tuple(sorted({*step.enters, *again})),
                active=step.active,
                memory=step.memory,
            ),
            [move.rescue],
            others,
        )
        left = tuple({*before.exits, *step.exits})
        return msgspec.structs.replace(rescue, **self._exited(left))

    def _landing(
        self,
        here: Configuration,
        moves: Sequence[Move],
        step: Step,
        arrows: Sequence[Arrow] | None = None,
        others: Sequence[Move] = (),
    ) -> Landing:
        """Find for each exited and entered state the hook of the move that causes it."""
        active, memory = here.active, here.memory
        arrows = [m.arrow for m in moves] if arrows is None else arrows
        alone = [self.tree.step([arrow], active, memory) for arrow in arrows]
        left: dict[int, Move] = {}
        reached: dict[int, Move] = {}
        for move, part in zip(moves, alone, strict=True):
            for number in part.exits:
                left.setdefault(number, move)
            for number in part.enters:
                reached.setdefault(number, move)
        nodes = self.tree.nodes
        exits = [left.get(n, moves[0]).hooks.exit.get(nodes[n].name) for n in step.exits]

        def enter(name: str) -> Callback | None:
            number = next(n for n in step.enters if nodes[n].name == name)
            some = (reached.get(number, moves[0]), *moves, *others)
            return next((hook for m in some if (hook := m.hooks.enter.get(name)) is not None), None)

        always = moves[0].hooks.transition
        landing = self._land(step, tuple(e for e in exits if e is not None), enter)
        return landing if always is None else msgspec.structs.replace(landing, enters=(*landing.enters, always))

    def _land(self, step: Step, exits: tuple[Callback, ...], enter: Callable[[str], Callback | None]) -> Landing:
        nodes = self.tree.nodes
        enters: list[Callback] = []
        done: list[str] = []
        so_far = step.active & ~sum(1 << n for n in step.enters)
        for number in step.enters:
            so_far |= 1 << number
            hook = enter(nodes[number].name)
            if hook is not None:
                enters.append(hook)
            if nodes[number].kind == "final":
                events = [f"done.state.{nodes[n].name}" for n in self.tree.done(number, so_far)]
                heard = [event for event in events if event in self._heard]
                done += heard
                enters += [self._announce(event) for event in heard]
        entered = sum(1 << n for n in step.enters)
        if so_far == entered | 1 << ROOT and not step.exits:
            entered |= 1 << ROOT  # the machine itself begins
        return Landing(
            target=self.configurations.of(step.active, step.memory),
            enters=tuple(enters),
            exits=exits,
            done=tuple(done),
            **self._exited(step.exits),
            starts=tuple((m.timer or "", m.candidate.after or 0.0) for m in self._timed(entered)),
            invokes=tuple(nodes[n].name for n in numbers(entered & self._invoking)),
        )

    def _exited(self, exits: Sequence[int]) -> dict[str, Any]:
        """Return what ends with states that are exited."""
        exited = sum(1 << n for n in exits)
        return {
            "stops": frozenset(m.timer for m in self._timed(exited) if m.timer is not None),
            "ends": tuple(self.tree.nodes[n].name for n in numbers(exited & self._invoking)),
        }

    def _timed(self, sources: int) -> list[Move]:
        return [m for m in self.moves if m.timer is not None and sources >> m.arrow.source & 1]

    # Judging ------------------------------------------------------------------------------------
    def may(self, event: str, here: Configuration, target: str) -> bool:
        """Say whether an event can have led from a configuration to another, whatever its guards have said."""
        moves = [m for m in self.moves if m.candidate.event == event]
        if any(m.candidate.cause == "eventless" for m in moves):  # of several regions, the first one's name is recorded
            moves += [m for m in self.moves if m.candidate.cause == "eventless" and m not in moves]
        choice = Table(self, moves).get(here, None)
        if not isinstance(choice, Choice):
            return choice is not None and target in self._ends(choice[0])
        options = [(None, *level) for level in choice.levels]
        for place, chosen in enumerate(product(*options)):
            if place > MOST_WAYS:
                return True  # more than can be gone through; the event and its source fit
            enabled = tuple(dict.fromkeys(m for m in chosen if m is not None))
            if enabled and target in self._ends(self.plan(here, enabled)):
                return True
        return False

    def _ends(self, plan: Plan) -> set[str]:
        rescues = [plan.rescue, *(act.rescue for act in plan.more)]
        return {plan.target.state, *(r.target.state for r in rescues if r is not None)}


def _guards(move: Move) -> Iterator[Check]:
    return (check for check in (move.gate, *move.checks) if check is not None)


def arrow_of(candidate: Candidate, targets: Sequence[Any]) -> Arrow:
    """Return what a candidate means in the tree, with the targets given."""
    source = ROOT if candidate.source is None else candidate.source.number
    return Arrow(source, tuple(t.number for t in targets), candidate.internal)
