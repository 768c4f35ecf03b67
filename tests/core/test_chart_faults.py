"""Every fault of a machine with nested states is found at assembly, named, and reported with the others."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flowlet import Registry, guard, state, transition
from flowlet.core.faults import Faults
from flowlet.core.machine_builder import build_machine
from flowlet.errors import DefinitionError
from flowlet.runtime.machine_install import definition_of

Build = Callable[[], Any]
CASES: list[Any] = []


def faults_of(cls: Any, **settings: Any) -> list[str]:
    faults = Faults()
    definition = build_machine(cls, name=cls.__name__, namespace={}, faults=faults, **settings)
    assert (definition is None) == bool(faults.problems)
    return [problem.replace(f"{_place(problem)}.<locals>.", "") for problem in faults.problems]


def _place(problem: str) -> str:
    return problem.partition(".<locals>.")[0].rpartition(" ")[2]


def fault(*sentences: str, **settings: Any) -> Callable[[Build], Build]:
    """Register a class that must have exactly these faults."""

    def register(build: Build) -> Build:
        CASES.append(pytest.param(build, sentences, settings, id=build.__name__))
        return build

    return register


class Player:
    """A chart without fault, to be spoilt by subclasses."""

    @state(initial=True)
    class Stopped: ...

    @state
    class Playing:
        @state(initial=True)
        class Quiet: ...

        @state
        class Loud: ...

        @state(history="shallow")
        class Last: ...

    @state(parallel=True)
    class Recording:
        @state
        class Sound:
            @state(initial=True)
            class Mono: ...

            @state(final=True)
            class Muted: ...

        @state
        class Picture:
            @state(initial=True)
            class Grey: ...

            @state(final=True)
            class Dark: ...

    @transition(Stopped, Playing)
    async def play(self) -> None: ...

    @transition(Playing.Quiet, Playing.Loud)
    @transition(Playing.Loud, Playing.Quiet)
    async def turn(self) -> None: ...

    @transition(Playing, Stopped)
    async def stop(self) -> None: ...

    @transition(Stopped, Recording)
    async def record(self) -> None: ...

    @transition(Recording.Sound.Mono, Recording.Sound.Muted)
    async def mute(self) -> None: ...

    @transition(Recording.Picture.Grey, Recording.Picture.Dark)
    async def dim(self) -> None: ...

    @transition(Recording, Stopped, done=True)
    async def end(self) -> None: ...

    @transition(Stopped, Playing.Last)
    async def resume(self) -> None: ...


def test_a_sound_chart_has_no_faults() -> None:
    assert faults_of(Player) == []


# Nested states ----------------------------------------------------------------------------------------
@fault("Case.P: a parallel state needs at least two regions; put further states inside, or drop it")
def one_region() -> type:
    class Case:
        @state(initial=True, parallel=True)
        class P:
            @state
            class R:
                @state(initial=True)
                class A: ...

                @state
                class B: ...

        @transition(P.R.A, P.R.B)
        @transition(P.R.B, P.R.A)
        async def go(self) -> None: ...

    return Case


@fault(
    "Case.P: a parallel state needs at least two regions; put further states inside, or drop it",
    allow=frozenset({"dead_end"}),
)
def no_region() -> type:
    class Case:
        @state(initial=True, parallel=True)
        class P: ...

        @transition(P, None)
        async def go(self) -> None: ...

    return Case


@fault(
    "Case.P.A: drop initial=True: all regions of 'P' are entered",
    "Case.P.B: a region of 'P' cannot be final; put a final state inside of it",
)
def odd_regions() -> type:
    class Case:
        @state(initial=True, parallel=True)
        class P:
            @state(initial=True)
            class A: ...

            @state(final=True)
            class B: ...

        @state
        class Q: ...

        @transition(P, Q)
        @transition(Q, P)
        async def go(self) -> None: ...

    return Case


NO_INITIAL = (
    "Case.P: none of its states is the initial one; write @state(initial=True) on one, or "
    'allow={"no_initial"} to take the first'
)


@fault(NO_INITIAL)
def compound_without_initial() -> type:
    class Case:
        @state(initial=True)
        class P:
            @state
            class A: ...

            @state
            class B: ...

        @transition(P.A, P.B)
        @transition(P.B, P.A)
        async def go(self) -> None: ...

    return Case


def test_the_first_state_is_the_initial_one_when_that_is_allowed() -> None:
    cls = Registry().machine(allow={"no_initial"})(compound_without_initial())
    export = definition_of(cls).export()
    assert [s["name"] for s in export["states"] if s["initial"]] == ["P", "P.A"]


@fault("Case.P: it has more than one initial state (P.A, P.B); keep initial=True on one")
def two_initial() -> type:
    class Case:
        @state(initial=True)
        class P:
            @state(initial=True)
            class A: ...

            @state(initial=True)
            class B: ...

        @transition(P.A, P.B)
        @transition(P.B, P.A)
        async def go(self) -> None: ...

    return Case


@fault("Case.P: it has both default= and a state with initial=True; drop one of the two")
def initial_and_default() -> type:
    class Case:
        @state(initial=True, default="P.B")
        class P:
            @state(initial=True)
            class A: ...

            @state
            class B: ...

        @transition(P.A, P.B)
        @transition(P.B, P.A)
        async def go(self) -> None: ...

    return Case


@fault("Case.P: default= must be inside of 'P', and 'Q' is not", "Case.P: default= names no state")
def default_outside() -> type:
    class Case(Player):
        @state(default="Q")
        class P:
            @state
            class A: ...

        @state
        class Q: ...

        @transition("Stopped", "P")
        @transition("P", "Q")
        @transition("Q", "Stopped")
        async def leap(self) -> None: ...

        @transition(Q, P.A)
        async def back(self) -> None: ...

    return Case


@fault(
    "Case.P: default= state 'P.Bb' does not exist; did you mean 'P.B'?",
    "Case.P: default= names no state",
    allow=frozenset({"unreachable"}),
)
def default_unknown() -> type:
    class Case:
        @state(initial=True, default="P.Bb")
        class P:
            @state
            class A: ...

            @state
            class B: ...

        @transition(P.A, P.B)
        @transition(P.B, P.A)
        async def go(self) -> None: ...

    return Case


@fault("Case.A: default= says where entering a compound or a history leads; drop it here")
def default_of_an_atomic_state() -> type:
    class Case:
        @state(initial=True, default="B")
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        @transition(B, A)
        async def go(self) -> None: ...

    return Case


# Histories --------------------------------------------------------------------------------------------
@fault("Case.Past: a history belongs inside of a state, whose states it remembers")
def history_at_the_top() -> type:
    class Case(Player):
        @state(history="deep")
        class Past: ...

        @transition("Stopped", Past)
        async def back(self) -> None: ...

    return Case


@fault("""Case.Playing.Past: history must be "shallow" or "deep", not 'total'""")
def history_of_no_kind() -> type:
    class Case(Player):
        @state
        class Playing(Player.Playing):
            @state(history="total")  # type: ignore[call-overload]
            class Past: ...

        @transition("Stopped", Playing.Past)
        async def back(self) -> None: ...

    return Case


@fault("Case.Playing.Past: a history state has no states inside", allow=frozenset({"dead_end", "no_initial"}))
def history_with_states() -> type:
    class Case(Player):
        @state
        class Playing(Player.Playing):
            @state(history="deep")
            class Past:
                @state
                class Inner: ...

        @transition("Stopped", Playing.Past)
        async def back(self) -> None: ...

    return Case


@fault("Case.back: nothing starts from the history 'Playing.Last'; name its parent")
def out_of_history() -> type:
    class Case(Player):
        @transition("Playing.Last", "Stopped")
        async def back(self) -> None: ...

    return Case


@fault("Case.Stopped: it cannot be final and parallel at once", allow=frozenset({"unreachable", "dead_end"}))
def final_and_parallel() -> type:
    class Case:
        @state(initial=True)
        class First: ...

        @state(final=True, parallel=True)
        class Stopped: ...

        @transition(First, Stopped)
        async def go(self) -> None: ...

    return Case


@fault("Case.P: it has histories and no state to remember", allow=frozenset({"no_initial", "dead_end", "unreachable"}))
def only_histories() -> type:
    class Case:
        @state(initial=True)
        class A: ...

        @state
        class P:
            @state(history="deep")
            class H: ...

        @transition(A, P)
        @transition(P, A)
        async def go(self) -> None: ...

    return Case


# Names ------------------------------------------------------------------------------------------------
@fault("Case.go: target state 'Playing.Lod' does not exist; did you mean 'Playing.Loud'?")
def unknown_path() -> type:
    class Case(Player):
        @transition("Stopped", "Playing.Lod")
        async def go(self) -> None: ...

    return Case


@fault("Case.go: target state 'A' does not exist")
def ambiguous_bare_name() -> type:
    class Case:
        @state(initial=True)
        class P:
            @state(initial=True)
            class A: ...

            @state
            class B: ...

        @state
        class Q:
            @state(initial=True)
            class A: ...

        @transition(P, Q)
        @transition(Q, P)
        async def swap(self) -> None: ...

        @transition(P.A, P.B)
        async def on(self) -> None: ...

        @transition("P.B", "A")
        async def go(self) -> None: ...

    return Case


@fault("Case: states 'P.Low' and 'P.LOW' share the hooks on_enter_p_low; rename one")
def one_slug_in_one_state() -> type:
    class Case:
        @state(initial=True)
        class P:
            @state(initial=True)
            class Low: ...

            @state
            class LOW: ...

        @transition(P.Low, P.LOW)
        @transition(P.LOW, P.Low)
        async def go(self) -> None: ...

    return Case


@fault("Case: states 'Play.Low' and 'PlayLow' share the hooks on_enter_play_low; rename one")
def one_slug_for_a_path_and_a_name() -> type:
    class Case:
        @state(initial=True)
        class Play:
            @state(initial=True)
            class Low: ...

        @state
        class PlayLow: ...

        @transition(Play, PlayLow)
        @transition(PlayLow, Play)
        async def go(self) -> None: ...

        async def on_enter_play_low(self) -> None: ...

    return Case


@fault("Case.on_enter_a: it is the hook of no state; did you mean 'on_enter_q_a'?")
def hook_by_an_ambiguous_slug() -> type:
    class Case:
        @state(initial=True)
        class P:
            @state(initial=True)
            class A: ...

        @state
        class Q:
            @state(initial=True)
            class A: ...

        @transition(P, Q)
        @transition(Q, P)
        async def swap(self) -> None: ...

        async def on_enter_a(self) -> None: ...

    return Case


@fault("Case.on_enter_playing_loud: state 'Playing.Loud' has this hook already, under another name")
def one_hook_by_two_names() -> type:
    class Case(Player):
        async def on_enter_loud(self) -> None: ...

        async def on_enter_playing_loud(self) -> None: ...

    return Case


@fault(
    "Case.on_enter_loud: on_enter_loud: nothing provides its parameter 'volume'; it is caused by 'turn', "
    "which has no such argument",
    "Case.on_enter_loud: on_enter_loud: nothing provides its parameter 'volume'; it is caused by 'resume', "
    "which has no such argument",
)
def hook_of_a_nested_state_with_an_unknown_parameter() -> type:
    class Case(Player):
        async def on_enter_loud(self, volume: int) -> None: ...

    return Case


@fault(
    "Case.on_enter_quiet: on_enter_quiet: nothing provides its parameter 'volume'; it is caused by 'skip', "
    "which has no such argument"
)
def hook_of_a_state_that_is_entered_by_the_way() -> type:
    class Case:
        @state(initial=True)
        class Off: ...

        @state
        class On:
            @state(initial=True)
            class Quiet: ...

        @transition(Off, On)
        async def play(self, volume: int) -> None: ...

        @transition(On, Off)
        async def stop(self) -> None: ...

        @transition("*", On)
        async def skip(self) -> None: ...

        async def on_enter_quiet(self, volume: int) -> None: ...

    return Case


@fault(
    "Case.on_enter_a: on_enter_a: nothing provides its parameter 'who'; it also runs when the machine starts, where "
    "there is no event: give it a default"
)
def hook_of_the_initial_state_with_a_parameter() -> type:
    class Case:
        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        @transition(B, A)
        async def go(self, who: str) -> None: ...

        async def on_enter_a(self, who: str) -> None: ...

    return Case


@fault(
    "Case.on_exit_stopped: on_exit_stopped: nothing provides its parameter 'by'; it is caused by 'late', "
    "which has no such argument"
)
def hook_that_a_timer_can_cause() -> type:
    class Case:
        @state(initial=True)
        class Stopped: ...

        @state
        class Playing: ...

        @transition(Stopped, Playing)
        async def play(self, by: str) -> None: ...

        @transition(Stopped, Playing, after=5)
        async def late(self) -> None: ...

        @transition(Playing, Stopped)
        async def stop(self) -> None: ...

        async def on_exit_stopped(self, by: str) -> None: ...

    return Case


# Causes -----------------------------------------------------------------------------------------------
@fault("Case.late: event= and after= exclude each other: a transition has one cause; stack two")
def after_with_event() -> type:
    class Case(Player):
        @transition("Playing", "Stopped", event="hush", after=3)
        async def late(self) -> None: ...

    return Case


@fault(
    "Case.late: eventless= and done= and after= exclude each other: a transition has one cause; stack two",
    allow=frozenset({"shadowed"}),
)
def three_causes() -> type:
    class Case(Player):
        @transition("Recording", "Stopped", eventless=True, done=True, after=3)
        async def late(self) -> None: ...

    return Case


@fault("Case.late: nothing provides its parameter 'by': the transition happens by itself")
def parameter_of_a_delayed_transition() -> type:
    class Case(Player):
        @transition("Playing", "Stopped", after=3)
        async def late(self, by: str, why: str = "") -> None: ...

    return Case


@fault("Case.slide: nothing provides its parameter 'by': the transition happens by itself")
def parameter_of_an_eventless_transition() -> type:
    class Case(Player):
        @transition("Playing", "Stopped", eventless=True, guard=lambda self: False)
        async def slide(self, *, by: str) -> None: ...

    return Case


@fault("Case.over: 'Playing.Quiet' is never done; put a final state inside, or give it invoke=")
def done_of_an_atomic_state() -> type:
    class Case(Player):
        @transition("Playing.Quiet", "Stopped", done=True)
        async def over(self) -> None: ...

    return Case


@fault("Case.over: 'Playing' is never done; put a final state inside, or give it invoke=")
def done_without_a_final_child() -> type:
    class Case(Player):
        @transition("Playing", "Stopped", done=True)
        async def over(self) -> None: ...

    return Case


@fault("Case.over: 'P' is never done; put a final state inside, or give it invoke=")
def done_of_a_parallel_state_with_a_region_without_end() -> type:
    class Case:
        @state(initial=True, parallel=True)
        class P:
            @state
            class A:
                @state(initial=True)
                class A1: ...

                @state(final=True)
                class A2: ...

            @state
            class B:
                @state(initial=True)
                class B1: ...

        @state
        class Q: ...

        @transition(P.A.A1, P.A.A2)
        async def go(self) -> None: ...

        @transition(P, Q, done=True)
        async def over(self) -> None: ...

        @transition(P, Q)
        @transition(Q, P)
        async def swap(self) -> None: ...

    return Case


@fault('Case.over: "*" is never done; name the states')
def done_of_anything() -> type:
    class Case(Player):
        @transition("*", "Stopped", done=True)
        async def over(self) -> None: ...

    return Case


@fault("Case.over: 'Playing' invokes nothing that could fail; give it invoke=")
def failed_without_invoke() -> type:
    class Case(Player):
        @transition("Playing", "Stopped", failed=True)
        async def over(self) -> None: ...

    return Case


@fault("Case.Stop: nothing can be invoked here, since the machine never stays in it; drop invoke=")
def invoke_in_a_final_state() -> type:
    async def work() -> None: ...

    class Case(Player):
        @state(final=True, invoke=work)
        class Stop: ...

        @transition("*", Stop)
        async def give_up(self) -> None: ...

    return Case


@fault("Case.hum: internal=True leads inside of the source; without a target it stays there anyway")
def internal_without_target() -> type:
    class Case(Player):
        @transition("Playing", None, internal=True)
        async def hum(self) -> None: ...

    return Case


# Targets ----------------------------------------------------------------------------------------------
@fault("Case.leap: targets 'Playing.Quiet' and 'Playing.Loud' are not in different regions")
def two_targets_in_one_region() -> type:
    class Case(Player):
        @transition("Stopped", ("Playing.Quiet", "Playing.Loud"))
        async def leap(self) -> None: ...

    return Case


@fault("Case.leap: targets 'Recording.Sound' and 'Recording.Sound.Mono' are not in different regions")
def a_target_inside_of_another() -> type:
    class Case(Player):
        @transition("Stopped", ("Recording.Sound", "Recording.Sound.Mono"))
        async def leap(self) -> None: ...

    return Case


@fault("Case.leap: targets 'Stopped' and 'Recording.Sound.Mono' are not in different regions")
def targets_far_apart() -> type:
    class Case(Player):
        @transition("Playing", ("Stopped", "Recording.Sound.Mono"))
        async def leap(self) -> None: ...

    return Case


# The chart as a whole ---------------------------------------------------------------------------------
@fault("""Case: state 'Playing.Mad' is unreachable: no transition leads to it; add one, or allow={"unreachable"}""")
def unreachable_deep_inside() -> type:
    class Case(Player):
        @state
        class Playing(Player.Playing):
            @state
            class Mad: ...

    return Case


@fault("""Case: state 'Lost' is unreachable: no transition leads to it; add one, or allow={"unreachable"}""")
def unreachable_with_all_inside() -> type:
    class Case(Player):
        @state
        class Lost:
            @state(initial=True)
            class A: ...

            @state
            class B: ...

        @transition(Lost, "Stopped")
        async def find(self) -> None: ...

        @transition(Lost.A, Lost.B)
        async def go(self) -> None: ...

    return Case


@fault(
    "Case: state 'P.B' is a dead end: no transition leaves it; write @state(final=True), add a transition, "
    """or allow={"dead_end"}"""
)
def dead_end_deep_inside() -> type:
    class Case:
        @state(initial=True)
        class P:
            @state(initial=True)
            class A: ...

            @state
            class B: ...

        @transition(P.A, P.B)
        async def go(self) -> None: ...

    return Case


@fault(
    """Case: from state 'Q.A' no path leads to a final state; add a transition, or allow={"no_final"}""",
    """Case: from state 'Q.B' no path leads to a final state; add a transition, or allow={"no_final"}""",
)
def no_path_to_an_end() -> type:
    class Case:
        @state(initial=True)
        class P: ...

        @state
        class Q:
            @state(initial=True)
            class A: ...

            @state
            class B: ...

        @state(final=True)
        class End: ...

        @transition(P, End)
        async def end(self) -> None: ...

        @transition(P, Q)
        async def go(self) -> None: ...

        @transition(Q.A, Q.B)
        @transition(Q.B, Q.A)
        async def turn(self) -> None: ...

    return Case


@fault(
    "Case: transitions up (P.A.A1 -> Q) and up (P.B.B1 -> P) are in conflict when both regions are active, and "
    """the first is taken; give one a guard, or allow={"conflict"}"""
)
def conflict() -> type:
    class Case:
        @state(initial=True, parallel=True)
        class P:
            @state
            class A:
                @state(initial=True)
                class A1: ...

            @state
            class B:
                @state(initial=True)
                class B1: ...

        @state
        class Q: ...

        @transition(P.A.A1, Q)
        @transition(P.B.B1, P)
        async def up(self) -> None: ...

        @transition(Q, P)
        async def back(self) -> None: ...

    return Case


@fault(
    "Case: transition spin (Playing -> itself) would be taken for ever; give it a guard, "
    """or allow={"cycle"}"""
)
def eventless_without_end() -> type:
    class Case(Player):
        @transition("Playing", None, eventless=True)
        async def spin(self) -> None: ...

    return Case


@fault(
    "Case: transitions without event and guard lead from 'A' back to it for ever; guard one, or "
    """allow={"cycle"}""",
    "Case: transitions without event and guard lead from 'B.C' back to it for ever; guard one, or "
    """allow={"cycle"}""",
)
def eventless_cycle() -> type:
    class Case:
        @state(initial=True)
        class A: ...

        @state
        class B:
            @state(initial=True)
            class C: ...

        @transition(A, B, eventless=True)
        async def there(self) -> None: ...

        @transition(B.C, A, eventless=True)
        async def back(self) -> None: ...

    return Case


@fault(
    "Case: transition second (A -> C) is never chosen: it is shadowed by first (A -> B), which has no guard; "
    """give that one a guard, put it last, or allow={"shadowed"}"""
)
def shadowed_eventless() -> type:
    class Case:
        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @state(final=True)
        class C: ...

        @transition(A, B, eventless=True)
        async def first(self) -> None: ...

        @transition(A, C, eventless=True)
        async def second(self) -> None: ...

    return Case


DOUBTFUL = {
    "unreachable": unreachable_deep_inside,
    "dead_end": dead_end_deep_inside,
    "no_final": no_path_to_an_end,
    "conflict": conflict,
    "shadowed": shadowed_eventless,
    "no_initial": compound_without_initial,
    "cycle": eventless_cycle,
}


@pytest.mark.parametrize("doubt", DOUBTFUL)
def test_doubtful_charts_pass_when_allowed(doubt: str) -> None:
    assert faults_of(DOUBTFUL[doubt](), allow=frozenset({doubt})) == []
    others = frozenset(DOUBTFUL) - {doubt}
    assert faults_of(DOUBTFUL[doubt](), allow=others) != []


@pytest.mark.parametrize("build", [one_region, odd_regions, after_with_event, two_targets_in_one_region])
def test_what_cannot_work_is_not_allowed_by_anything(build: Build) -> None:
    assert faults_of(build(), allow=frozenset(DOUBTFUL)) != []


@pytest.mark.parametrize(("build", "sentences", "settings"), CASES)
def test_faults(build: Build, sentences: tuple[str, ...], settings: dict[str, Any]) -> None:
    assert faults_of(build(), **settings) == list(sentences)


def test_all_faults_come_at_once() -> None:
    class Case(Player):
        @state(parallel=True)
        class Two:
            @state
            class Only: ...

        @transition("Playing", "Playng", after=3, event="x")
        async def lose(self) -> None: ...

        @transition("Playing.Quiet", "Stopped", done=True)
        async def over(self, reason: str) -> None: ...

        async def on_enter_loudd(self) -> None: ...

    with pytest.raises(DefinitionError) as caught:
        Registry().machine(Case)
    said = "\n".join(caught.value.problems)
    for part in (
        "two regions", "did you mean 'Playing'?", "exclude each other", "'Playing.Quiet' is never done",
        "nothing provides its parameter 'reason'", "did you mean 'on_enter_loud'?", "'Two' is unreachable",
    ):  # fmt: skip
        assert part in said, part


# No faults --------------------------------------------------------------------------------------------
def test_one_body_may_serve_an_event_and_a_delay_from_the_same_state() -> None:
    class Case(Player):
        @transition("Playing", "Stopped")
        @transition("Playing", "Stopped", after=30)
        async def hush(self) -> None: ...

    assert faults_of(Case) == []


def test_two_delays_of_one_body_are_two_timers() -> None:
    class Case(Player):
        @transition("Playing", None, after=1)
        @transition("Playing", "Stopped", after=timedelta(seconds=2))
        async def hush(self) -> None: ...

    assert faults_of(Case) == []


def test_an_event_and_an_eventless_transition_of_one_body_do_not_shadow_each_other() -> None:
    class Case(Player):
        @guard
        def is_tired(self) -> bool:
            return False

        @transition("Playing", "Stopped")
        @transition("Playing", "Stopped", eventless=True, guard=is_tired)
        async def hush(self) -> None: ...

    assert faults_of(Case) == []


def test_a_guarded_conflict_is_no_fault() -> None:
    class Case(conflict()):  # type: ignore[misc]
        @transition("P.A.A1", "Q", guard=lambda self: True)
        @transition("P.B.B1", "P")
        async def up(self) -> None: ...

    assert faults_of(Case) == []


def test_transitions_of_two_regions_that_stay_inside_are_no_conflict() -> None:
    class Case(Player):
        @transition("Recording.Sound.Mono", "Recording.Sound.Muted", event="hide")
        async def hide_sound(self) -> None: ...

        @transition("Recording.Picture.Grey", "Recording.Picture.Dark", event="hide")
        async def hide_picture(self) -> None: ...

    assert faults_of(Case) == []


def test_an_ancestor_and_a_descendant_do_not_shadow_each_other() -> None:
    class Case(Player):
        @transition("Playing", "Stopped", event="x")
        async def out(self) -> None: ...

        @transition("Playing.Quiet", "Playing.Loud", event="x")
        async def up(self) -> None: ...

    assert faults_of(Case) == []


@pytest.mark.parametrize("delay", [-1, timedelta(seconds=-1), float("nan"), "soon"])
def test_a_delay_is_a_time(delay: Any) -> None:
    def build() -> Any:
        class Case(Player):
            @transition("Playing", "Stopped", after=delay)
            async def late(self) -> None: ...

        return Registry().machine(Case)

    with pytest.raises((DefinitionError, TypeError, ValueError)):
        build()
