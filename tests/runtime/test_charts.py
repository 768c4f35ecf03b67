"""Nested, parallel and remembering states, without a store, in memory and on SQLite."""

from __future__ import annotations

import copy
import pickle
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from flowlet import (
    Flowlet,
    Registry,
    Transition,
    any_of,
    available_events,
    can,
    fire,
    guard,
    in_state,
    raise_event,
    state,
    states_of,
    transition,
)
from flowlet.errors import HookFailed, MachineError, TransitionNotAllowed
from flowlet.runtime.machine_questions import state_of
from flowlet.store import Store
from flowlet.stores import open_store

pytestmark = pytest.mark.anyio

registry = Registry()
machine = registry.machine

said: list[str] = []
"""What callbacks have done, whatever became of their machine's data."""


@pytest.fixture(autouse=True)
def _silence() -> None:
    said.clear()


def say(machine: Any, what: str) -> None:
    said.append(f"{what} in {state_of(machine)}")


class Home:
    """Makes machines in one of the ways there are."""

    def __init__(self, new_store: Callable[[], Store] | None) -> None:
        self._new_store = new_store
        self.flow = None if new_store is None else Flowlet(new_store(), registry=registry)

    async def __call__(self, cls: Any, **data: Any) -> Any:
        made = cls()
        for name, value in data.items():
            setattr(made, name, value)
        return made if self.flow is None else await self.flow.create(made)

    async def again(self, thing: Any) -> Any:
        """Return the machine as somebody else sees it: as loaded by another process, or a copy of it."""
        if self._new_store is None:
            return copy.copy(thing)
        async with Flowlet(self._new_store(), registry=registry) as other:
            return await other.load(type(thing), thing._flowlet_turn.id)


@pytest.fixture(scope="module", params=["none", "memory", "sqlite"])
async def home(
    anyio_backend: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Home]:
    if request.param == "none":
        yield Home(None)
        return
    memory = open_store("memory://")
    path = f"sqlite:///{tmp_path_factory.mktemp('home')}/flow.db?durability=process"
    home = Home((lambda: memory) if request.param == "memory" else (lambda: open_store(path)))
    assert home.flow is not None
    async with home.flow:
        yield home


# The order of one transition ---------------------------------------------------------------------------
@machine
class Studio:
    takes: int = 0

    @state(initial=True)
    class Off: ...

    @state(parallel=True)
    class On:
        @state
        class Sound:
            @state(initial=True)
            class Quiet: ...

            @state
            class Loud:
                @state(initial=True)
                class Clear: ...

                @state
                class Harsh: ...

        @state
        class Picture:
            @state(initial=True)
            class Grey: ...

            @state
            class Bright: ...

    @guard
    def can_up(self) -> bool:
        say(self, "guard")
        return True

    @transition(Off, On)
    async def start(self) -> None:
        say(self, "start")

    @transition(On, Off)
    async def stop(self) -> None:
        say(self, "stop")

    @transition(On.Sound.Quiet, On.Sound.Loud, event="up")
    async def up_sound(self) -> str:
        say(self, "up_sound")
        self.takes += 1
        return "loud"

    @transition(On.Picture.Grey, On.Picture.Bright, event="up")
    async def up_picture(self) -> str:
        say(self, "up_picture")
        self.takes += 10
        return "bright"

    @transition(On.Sound, None)
    async def tap(self) -> None:
        say(self, "tap")

    @transition(On, On)
    async def reset(self) -> None:
        say(self, "reset")

    @transition(On.Sound.Loud, On.Sound.Loud.Harsh, internal=True)
    async def tear(self) -> None:
        say(self, "tear")

    @transition(On.Sound.Loud, On.Sound.Loud.Harsh)
    async def tear_anew(self) -> None:
        say(self, "tear_anew")

    @transition(Off, (On.Picture.Bright, On.Sound.Loud.Harsh))
    async def blast(self) -> None:
        say(self, "blast")

    async def on_enter_on(self) -> None:
        say(self, "enter On")

    def on_exit_on(self) -> None:
        say(self, "exit On")

    async def on_enter_sound(self) -> None:
        await anyio.lowlevel.checkpoint()
        say(self, "enter Sound")

    async def on_exit_on_sound(self) -> None:
        say(self, "exit Sound")

    async def on_enter_on_sound_quiet(self) -> None:
        say(self, "enter Quiet")

    async def on_exit_quiet(self) -> None:
        say(self, "exit Quiet")

    async def on_enter_loud(self) -> None:
        say(self, "enter Loud")

    async def on_exit_loud(self) -> None:
        say(self, "exit Loud")

    async def on_enter_clear(self) -> None:
        say(self, "enter Clear")

    async def on_exit_clear(self) -> None:
        say(self, "exit Clear")

    async def on_enter_harsh(self) -> None:
        say(self, "enter Harsh")

    async def on_exit_harsh(self) -> None:
        say(self, "exit Harsh")

    def on_enter_picture(self) -> None:
        say(self, "enter Picture")

    def on_exit_picture(self) -> None:
        say(self, "exit Picture")

    async def on_enter_grey(self) -> None:
        say(self, "enter Grey")

    async def on_exit_grey(self) -> None:
        say(self, "exit Grey")

    async def on_enter_bright(self) -> None:
        say(self, "enter Bright")

    async def on_exit_bright(self) -> None:
        say(self, "exit Bright")

    async def on_transition(self, t: Transition) -> None:
        said.append(f"{t.event}: {t.source} => {t.target}")


QUIET = "On.Sound.Quiet + On.Picture.Grey"
CLEAR = "On.Sound.Loud.Clear + On.Picture.Bright"


async def test_entering_goes_outside_in_after_the_commit(home: Home) -> None:
    studio = await home(Studio)
    await studio.start()
    assert said == [
        "start in Off",
        *(f"enter {name} in {QUIET}" for name in ("On", "Sound", "Quiet", "Picture", "Grey")),
        f"start: Off => {QUIET}",
    ]
    assert states_of(studio) == ("On", "On.Sound", "On.Sound.Quiet", "On.Picture", "On.Picture.Grey")


async def test_leaving_goes_inside_out_before_the_action(home: Home) -> None:
    studio = await home(Studio)
    await studio.start()
    said.clear()
    await studio.stop()
    assert said == [
        *(f"exit {name} in {QUIET}" for name in ("Grey", "Picture", "Quiet", "Sound", "On")),
        f"stop in {QUIET}",
        f"stop: {QUIET} => Off",
    ]


async def test_two_regions_move_in_one_transition(home: Home) -> None:
    studio = await home(Studio)
    await studio.start()
    said.clear()
    assert await fire(studio, "up") == "loud"
    assert said == [
        f"guard in {QUIET}",
        f"exit Grey in {QUIET}",
        f"exit Quiet in {QUIET}",
        f"up_sound in {QUIET}",
        f"up_picture in {QUIET}",
        f"enter Loud in {CLEAR}",
        f"enter Clear in {CLEAR}",
        f"enter Bright in {CLEAR}",
        f"up: {QUIET} => {CLEAR}",
    ]
    assert studio.takes == 11


async def test_a_method_moves_its_own_region_alone(home: Home) -> None:
    studio = await home(Studio)
    await studio.start()
    assert await studio.up_picture() == "bright"
    assert state_of(studio) == "On.Sound.Quiet + On.Picture.Bright"
    with pytest.raises(TransitionNotAllowed) as refused:
        await studio.up_picture()
    assert (refused.value.reason, refused.value.event) == ("no_transition", "up")
    assert await fire(studio, "up") == "loud"
    assert studio.takes == 11
    assert state_of(await home.again(studio)) == CLEAR


async def test_targetless_external_and_internal_transitions(home: Home) -> None:
    studio = await home(Studio)
    await studio.start()
    said.clear()
    await studio.tap()
    assert said == [f"tap in {QUIET}", f"tap: {QUIET} => {QUIET}"]
    await fire(studio, "up")
    said.clear()
    harsh = "On.Sound.Loud.Harsh + On.Picture.Bright"
    await studio.tear()
    assert said == [
        f"exit Clear in {CLEAR}",
        f"tear in {CLEAR}",
        f"enter Harsh in {harsh}",
        f"tear: {CLEAR} => {harsh}",
    ]
    said.clear()
    await studio.tear_anew()
    assert said == [
        f"exit Harsh in {harsh}",
        f"exit Loud in {harsh}",
        f"tear_anew in {harsh}",
        f"enter Loud in {harsh}",
        f"enter Harsh in {harsh}",
        f"tear_anew: {harsh} => {harsh}",
    ]


async def test_an_external_self_transition_of_a_parallel_state_enters_it_anew(home: Home) -> None:
    studio = await home(Studio)
    await studio.start()
    await fire(studio, "up")
    said.clear()
    await studio.reset()
    assert said == [
        *(f"exit {name} in {CLEAR}" for name in ("Bright", "Picture", "Clear", "Loud", "Sound", "On")),
        f"reset in {CLEAR}",
        *(f"enter {name} in {QUIET}" for name in ("On", "Sound", "Quiet", "Picture", "Grey")),
        f"reset: {CLEAR} => {QUIET}",
    ]


async def test_several_targets_deep_in_different_regions(home: Home) -> None:
    studio = await home(Studio)
    await studio.blast()
    label = "On.Sound.Loud.Harsh + On.Picture.Bright"
    assert said == [
        "blast in Off",
        *(f"enter {name} in {label}" for name in ("On", "Sound", "Loud", "Harsh", "Picture", "Bright")),
        f"blast: Off => {label}",
    ]
    assert state_of(await home.again(studio)) == label


async def test_questions_about_nested_states(home: Home) -> None:
    studio = await home(Studio)
    assert (states_of(studio), available_events(studio)) == (("Off",), ["start", "blast"])
    assert await can(studio.start)
    assert not await can(studio.stop)
    await studio.start()
    assert in_state(studio, Studio.On)
    assert in_state(studio, "On.Sound")
    assert in_state(studio, "Quiet")
    assert in_state(studio, Studio.Off, Studio.On.Picture.Grey)
    assert not in_state(studio, Studio.On.Sound.Loud, "Bright", "Off")
    assert available_events(studio) == ["stop", "up", "tap", "reset"]
    assert await can(studio.up_sound)
    assert await can(studio.up_picture)
    await studio.up_sound()
    assert not await can(studio.up_sound)
    assert await can(studio.up_picture)
    assert available_events(studio) == ["stop", "up", "tap", "reset", "tear", "tear_anew"]
    with pytest.raises(MachineError, match=r"state 'On\.Sound\.Lod' does not exist; did you mean"):
        in_state(studio, "On.Sound.Lod")


async def test_a_refusal_names_all_active_states_and_where_the_event_would_lead_on(home: Home) -> None:
    studio = await home(Studio)
    await studio.start()
    with pytest.raises(TransitionNotAllowed) as refused:
        await studio.tear()
    assert (refused.value.event, refused.value.state) == ("tear", QUIET)
    assert (refused.value.reason, refused.value.guard) == ("no_transition", None)
    assert "it leaves On.Sound.Loud" in str(refused.value)


# Which transition ------------------------------------------------------------------------------------
@machine(allow={"conflict"})
class Picker:
    """Every state answers the same event."""

    child: bool = True
    parent: bool = True
    left: bool = True

    @state(initial=True)
    class P:
        @state(initial=True)
        class A: ...

        @state
        class B: ...

    @state(parallel=True)
    class Q:
        @state
        class L:
            @state(initial=True)
            class L1: ...

            @state
            class L2: ...

        @state
        class R:
            @state(initial=True)
            class R1: ...

            @state
            class R2: ...

    @state
    class Lost: ...

    @guard
    def is_child(self) -> bool:
        say(self, "child?")
        return self.child

    @guard
    def is_parent(self) -> bool:
        say(self, "parent?")
        return self.parent

    @guard
    def is_left(self) -> bool:
        say(self, "left?")
        return self.left

    @transition("*", Lost, event="go")
    async def anything(self) -> str:
        return "anything"

    @transition(P, Q, event="go", guard=is_parent)
    async def of_parent(self) -> str:
        return "parent"

    @transition(P.A, P.B, event="go", guard=is_child)
    async def of_child(self) -> str:
        return "child"

    @transition("*", P, event="again")
    async def again(self) -> None: ...

    @transition(P, Q)
    async def both(self) -> None: ...

    @transition(Q.L.L1, Q.L.L2, event="out", guard=is_left)
    async def stay_left(self) -> str:
        return "stay_left"

    @transition(Q.R.R1, Lost, event="out")
    async def out_right(self) -> str:
        return "out_right"

    @transition(Q, P, event="out")
    async def out_around(self) -> str:
        return "out_around"

    @transition(Q.R.R1, Q.R.R2)
    async def right(self) -> None: ...

    @transition(Lost, Q, event="home")
    async def home(self) -> None: ...


async def test_a_child_comes_before_its_parent_and_the_wildcard_last(home: Home) -> None:
    picker = await home(Picker)
    assert await fire(picker, "go") == "child"
    assert said == ["child? in P.A"]
    await picker.again()
    picker.child = False
    assert await fire(picker, "go") == "parent"
    assert state_of(picker) == "Q.L.L1 + Q.R.R1"
    await picker.again()
    picker.parent = False
    assert await fire(picker, "go") == "anything"
    assert state_of(picker) == "Lost"
    assert said[1:] == ["child? in P.A", "parent? in P.A"] * 2


async def test_a_method_of_a_parent_passes_over_the_child(home: Home) -> None:
    picker = await home(Picker)
    assert await picker.of_parent() == "parent"
    assert in_state(picker, Picker.Q)


async def test_of_two_regions_in_conflict_the_first_wins(home: Home) -> None:
    picker = await home(Picker)
    await picker.both()
    # L1 stays inside its region, R1 leaves both: they exit L1 in common, neither is inside the other's source.
    assert await fire(picker, "out") == "stay_left"
    assert state_of(picker) == "Q.L.L2 + Q.R.R1"
    # Now L is asked through its parent Q, whose transition yields to that of R1, a descendant.
    assert await fire(picker, "out") == "out_right"
    assert state_of(picker) == "Lost"


async def test_a_refused_guard_leaves_the_way_to_the_ancestor_and_descendants_beat_it(home: Home) -> None:
    picker = await home(Picker, left=False)
    await picker.both()
    assert await fire(picker, "out") == "out_right"
    await picker.home()
    await picker.right()
    assert await fire(picker, "out") == "out_around"
    assert state_of(picker) == "P.A"


# Guards ------------------------------------------------------------------------------------------------
@machine(allow={"dead_end"})
class Watched:
    """Regions that meet the same guards."""

    open: bool = True

    @state(initial=True, parallel=True)
    class P:
        @state
        class A:
            @state(initial=True)
            class A1: ...

            @state
            class A2: ...

        @state
        class B:
            @state(initial=True)
            class B1: ...

            @state
            class B2: ...

        @state
        class C:
            @state(initial=True)
            class C1: ...

            @state
            class C2: ...

    @state
    class Q: ...

    @guard
    async def is_open(self, by: str = "") -> bool:
        await anyio.lowlevel.checkpoint()
        say(self, f"open? {by}")
        return self.open

    @guard
    def can_step(self) -> bool:
        said.append("gate")
        return True

    @guard
    def beside_a1(self) -> bool:
        said.append(f"a1? {in_state(self, 'A1')}")
        return in_state(self, Watched.P.A.A1)

    @transition(P, Q, guard=is_open)
    async def leave(self, by: str = "") -> None: ...

    @transition(Q, P)
    async def back(self) -> None: ...

    @transition(P.A.A1, P.A.A2, event="step")
    async def step_a(self) -> None:
        said.append("step_a")

    @transition(P.B.B1, P.B.B2, event="step", guard=beside_a1)
    async def step_b(self) -> None:
        said.append("step_b")

    @transition(P.C.C1, P.C.C2, event="step", guard=any_of(beside_a1, is_open))
    async def step_c(self) -> None:
        said.append("step_c")


async def test_a_guard_is_asked_once_for_all_regions(home: Home) -> None:
    watched = await home(Watched)
    here = "P.A.A1 + P.B.B1 + P.C.C1"
    await watched.leave(by="ann")
    assert said == [f"open? ann in {here}"]
    await watched.back()
    watched.open = False
    said.clear()
    with pytest.raises(TransitionNotAllowed) as refused:
        await watched.leave(by="bob")
    assert (refused.value.reason, refused.value.guard) == ("guard", "is_open")
    assert said == [f"open? bob in {here}"]


async def test_all_guards_see_the_configuration_from_before_and_come_before_any_action(home: Home) -> None:
    watched = await home(Watched)
    await fire(watched, "step")
    actions = [word for word in said if word.startswith("step")]
    assert actions == ["step_a", "step_b", "step_c"]
    assert said[-3:] == actions
    assert "a1? False" not in said
    assert state_of(watched) == "P.A.A2 + P.B.B2 + P.C.C2"


async def test_the_gate_of_an_event_is_asked_once_for_all_its_methods(home: Home) -> None:
    watched = await home(Watched)
    await fire(watched, "step")
    assert said.count("gate") == 1


# Histories ---------------------------------------------------------------------------------------------
@machine
class Desk:
    @state(initial=True)
    class Away: ...

    @state
    class Work:
        @state(history="shallow")
        class Last: ...

        @state(history="deep")
        class Exactly: ...

        @state(history="shallow", default="Work.Mail.Reading")
        class LastOrMail: ...

        @state(initial=True)
        class Plan: ...

        @state
        class Mail:
            @state(initial=True)
            class Sorting: ...

            @state
            class Reading: ...

    @state(parallel=True)
    class Show:
        @state(history="deep", default=("Show.Sound.On", "Show.Light.On"))
        class Again: ...

        @state
        class Sound:
            @state(initial=True)
            class Off: ...

            @state
            class On: ...

        @state
        class Light:
            @state(initial=True)
            class Off: ...

            @state
            class On: ...

    @transition(Away, Work.Last)
    async def resume(self) -> None: ...

    @transition(Away, Work.Exactly)
    async def resume_exactly(self) -> None: ...

    @transition(Away, Work.LastOrMail)
    async def resume_or_mail(self) -> None: ...

    @transition(Away, Work)
    async def work(self) -> None: ...

    @transition((Work, Show), Away)
    async def leave(self) -> None: ...

    @transition(Work.Plan, Work.Mail)
    async def mail(self) -> None: ...

    @transition(Work.Mail.Sorting, Work.Mail.Reading)
    async def read(self) -> None: ...

    @transition(Work.Mail, Work.Last)
    async def loop(self) -> None: ...

    @transition(Away, Show.Again)
    async def show_again(self) -> None: ...

    @transition(Away, Show)
    async def show(self) -> None: ...

    @transition(Show.Light.Off, Show.Light.On)
    @transition(Show.Light.On, Show.Light.Off)
    async def light(self) -> None: ...


@pytest.mark.parametrize(
    ("event", "first", "later"),
    [
        ("resume", "Work.Plan", "Work.Mail.Sorting"),
        ("resume_exactly", "Work.Plan", "Work.Mail.Reading"),
        ("resume_or_mail", "Work.Mail.Reading", "Work.Mail.Sorting"),
        ("work", "Work.Plan", "Work.Plan"),
    ],
)
async def test_histories_before_and_after_they_remember(home: Home, event: str, first: str, later: str) -> None:
    desk = await home(Desk)
    await fire(desk, event)
    assert state_of(desk) == first
    desk = await home(Desk)
    for step in ("work", "mail", "read", "leave", event):
        await fire(desk, step)
    assert state_of(desk) == later


async def test_a_history_of_regions_has_a_default_for_each(home: Home) -> None:
    desk = await home(Desk)
    await desk.show_again()
    assert state_of(desk) == "Show.Sound.On + Show.Light.On"
    await desk.light()
    await desk.leave()
    await desk.show()
    assert state_of(desk) == "Show.Sound.Off + Show.Light.Off"
    await desk.leave()
    await desk.show_again()
    assert state_of(desk) == "Show.Sound.Off + Show.Light.Off"


async def test_what_is_remembered_is_there_for_who_loads_it_and_in_copies(home: Home) -> None:
    desk = await home(Desk)
    for step in ("work", "mail", "read", "leave", "show", "light", "leave"):
        await fire(desk, step)
    other = await home.again(desk)
    assert states_of(other) == ("Away",)
    assert other._flowlet_state.memory == desk._flowlet_state.memory
    twins = [copy.copy(desk), copy.deepcopy(desk), pickle.loads(pickle.dumps(desk))]  # noqa: S301 - its own
    for twin in twins:
        await twin.resume_exactly()
        assert state_of(twin) == "Work.Mail.Reading"
        await twin.leave()
        await twin.show_again()
        assert state_of(twin) == "Show.Sound.Off + Show.Light.On"
    assert states_of(desk) == ("Away",)


async def test_remembering_inside_of_the_parent_itself(home: Home) -> None:
    desk = await home(Desk)
    for step in ("work", "mail", "read", "leave", "resume_exactly"):
        await fire(desk, step)
    await desk.loop()  # Mail to the history beside it, which still has what it had: Mail
    assert state_of(desk) == "Work.Mail.Sorting"


# Where entering leads ----------------------------------------------------------------------------------
@machine(allow={"dead_end"})
class Led:
    @state(initial=True, default="Top.Mid.Low")
    class Top:
        @state
        class First: ...

        @state
        class Mid:
            @state(initial=True)
            class High: ...

            @state
            class Low: ...

    @state(default=("Wide.Par.A.A2", "Wide.Par.B.B2"))
    class Wide:
        @state
        class Idle: ...

        @state(parallel=True)
        class Par:
            @state
            class A:
                @state(initial=True)
                class A1: ...

                @state
                class A2: ...

            @state
            class B:
                @state(initial=True)
                class B1: ...

                @state
                class B2: ...

    @state(default="Kept.Past")
    class Kept:
        @state(history="deep", default="Kept.X.X2")
        class Past: ...

        @state
        class X:
            @state(initial=True)
            class X1: ...

            @state
            class X2: ...

    @transition(Top, Wide)
    async def wide(self) -> None: ...

    @transition(Wide.Par.A.A2, Wide.Par.A.A1)
    @transition(Top.Mid.Low, Top.Mid.High)
    @transition(Kept.X.X2, Kept.X.X1)
    async def back(self) -> None: ...

    @transition(Wide, Wide.Idle)
    async def idle(self) -> None: ...

    @transition((Wide, Kept), Top.First)
    async def up(self) -> None: ...

    @transition(Wide.Par, (Wide.Par.B.B1, Wide.Par.A.A1))
    async def both(self) -> None: ...

    @transition(Top, Kept)
    async def keep(self) -> None: ...


async def test_defaults_lead_deep_to_several_regions_and_to_histories(home: Home) -> None:
    led = await home(Led)
    assert states_of(led) == ("Top", "Top.Mid", "Top.Mid.Low")
    await led.wide()
    assert state_of(led) == "Wide.Par.A.A2 + Wide.Par.B.B2"
    await led.back()
    assert state_of(led) == "Wide.Par.A.A1 + Wide.Par.B.B2"
    await led.both()
    assert state_of(led) == "Wide.Par.A.A1 + Wide.Par.B.B1"
    await led.idle()
    await led.up()
    assert state_of(led) == "Top.First"
    await led.keep()
    assert state_of(led) == "Kept.X.X2"
    await led.back()
    await led.up()
    await led.keep()
    assert state_of(led) == "Kept.X.X1"
    assert state_of(await home.again(led)) == "Kept.X.X1"


# Starting ----------------------------------------------------------------------------------------------
@machine
class Starter:
    steps: int = 0

    @state(initial=True, parallel=True)
    class P:
        @state
        class A:
            @state(initial=True)
            class A1: ...

            @state
            class A2: ...

        @state
        class B:
            @state(initial=True)
            class B1: ...

            @state(final=True)
            class B2: ...

    @transition(P.A.A1, P.A.A2)
    @transition(P.A.A2, P.A.A1)
    async def go(self) -> int:
        say(self, "go")
        return self.steps

    @transition(P.B.B1, P.B.B2, eventless=True)
    async def slide(self) -> None:
        say(self, "slide")

    async def on_enter_p(self) -> None:
        say(self, "enter P")
        self.steps += 1

    async def on_enter_a1(self, who: str = "nobody") -> None:
        say(self, f"enter A1 for {who}")
        self.steps += 1

    async def on_transition(self, t: Transition) -> None:
        said.append(f"{t.event}")


START = ["enter P in P.A.A1 + P.B.B1", "enter A1 for nobody in P.A.A1 + P.B.B1", "slide in P.A.A1 + P.B.B1", "slide"]


async def test_a_machine_starts_when_it_is_created_or_with_its_first_event(home: Home) -> None:
    starter = await home(Starter)
    if home.flow is None:
        assert said == []
        assert states_of(starter) == ("P", "P.A", "P.A.A1", "P.B", "P.B.B1")
        assert in_state(starter, "A1")
        assert available_events(starter) == ["go"]
        assert await can(starter.go)
        assert said == []
    else:
        assert said == START
        assert (await home.again(starter)).steps == 2
        assert said == START  # loading runs no enter hook
    assert await starter.go() == 2
    assert said == [*START, "go in P.A.A1 + P.B.B2", "go"]
    await starter.go()
    assert starter.steps == 3
    assert (await home.again(starter)).steps == 3


async def test_a_refused_first_event_has_started_the_machine(home: Home) -> None:
    starter = await home(Starter)
    with pytest.raises(MachineError, match=r"slide happens by itself"):
        await starter.slide()
    with pytest.raises(MachineError, match="has no event"):
        await fire(starter, "slip")
    await starter.go()
    assert said.count("slide") == 1


@machine(allow={"no_initial"})
class Shy:
    fail: bool = True
    tries: int = 0

    @state(initial=True)
    class P:
        @state
        class A: ...

    @state
    class B: ...

    @transition(P, B)
    @transition(B, P)
    async def go(self) -> int:
        return self.tries

    async def on_enter_a(self) -> None:
        self.tries += 1
        if self.fail:
            raise ValueError("shy")


async def test_an_initial_enter_hook_that_fails_has_started_the_machine(home: Home) -> None:
    if home.flow is None:
        shy = Shy()
        with pytest.raises(HookFailed) as failed:
            await shy.go()
    else:
        with pytest.raises(HookFailed) as failed:
            await home.flow.create(Shy, id="shy")
        shy = await home.flow.load(Shy, "shy")
    assert failed.value.committed
    assert "on_enter_a" in str(failed.value)
    assert state_of(shy) == "P.A"
    assert await shy.go() == 1  # the hook ran once, and what it assigned is kept
    assert state_of(shy) == "B"


# Failures ----------------------------------------------------------------------------------------------
class Broken(Exception):
    pass


@machine(allow={"dead_end"})
class Fragile:
    fail: str = ""
    n: int = 0
    notes: tuple[str, ...] = ()

    @state(initial=True, parallel=True)
    class P:
        @state
        class A:
            @state(initial=True)
            class A1: ...

            @state
            class A2: ...

        @state
        class B:
            @state(initial=True)
            class B1: ...

            @state
            class B2: ...

    def _touch(self, phase: str) -> None:
        self.n += 1
        self.notes = (*self.notes, phase)
        said.append(phase)
        raise_event(self.note, phase)
        raise_event(self, "note", f"late {phase}", after=0)
        if self.fail == phase:
            raise Broken(phase)

    @transition(P.A.A1, P.A.A2, event="go")
    async def go_a(self, by: str) -> str:
        self._touch("action A")
        return by

    @transition(P.B.B1, P.B.B2, event="go")
    async def go_b(self, by: str) -> str:
        self._touch("action B")
        return by

    @transition(P, None)
    async def note(self, what: str) -> None:
        said.append(f"noted {what}")

    @transition(P, None)
    async def calm(self) -> None:
        self.fail = ""

    async def on_exit_a1(self, by: str) -> None:
        self._touch("exit A1")

    async def on_exit_b1(self) -> None:
        self._touch("exit B1")

    async def on_enter_a2(self, by: str) -> None:
        self._touch(f"enter A2 {by}")

    async def on_enter_b2(self) -> None:
        self._touch("enter B2")

    async def on_transition(self, t: Transition) -> None:
        if t.event == "go":
            self._touch("transition")


PHASES = ["exit B1", "exit A1", "action A", "action B", "enter A2 ann", "enter B2", "transition"]


def delayed(home: Home, thing: Any) -> int:
    """Return how many events are delayed."""
    timers = thing._flowlet_turn if home.flow is not None else getattr(thing, "_flowlet_timers", None)
    if timers is None:
        return 0
    return len(timers.timers if home.flow is not None else timers.running)


async def late_ones(home: Home, thing: Any) -> None:
    """Wait until all that was delayed has happened."""
    with anyio.fail_after(10):
        while delayed(home, thing) or (home.flow is not None and thing._flowlet_turn._flowlet_turn is not None):
            await anyio.sleep(0.002)


@pytest.mark.parametrize("phase", PHASES[:4])
async def test_what_fails_before_the_commit_leaves_everything_as_it_was(home: Home, phase: str) -> None:
    fragile = await home(Fragile, fail=phase)
    with pytest.raises((Broken, HookFailed)) as failed:
        await fire(fragile, "go", by="ann")
    if isinstance(failed.value, HookFailed):
        assert not failed.value.committed
    assert said == PHASES[: PHASES.index(phase) + 1]  # nothing raised is handled
    for each in (fragile, await home.again(fragile)):
        assert (state_of(each), each.n, each.notes) == ("P.A.A1 + P.B.B1", 0, ())
    assert delayed(home, fragile) == 0
    said.clear()
    await fragile.calm()
    assert said == []
    assert await fire(fragile, "go", "ann") == "ann"
    assert fragile.n == len(PHASES)
    await late_ones(home, fragile)


@pytest.mark.parametrize("phase", PHASES[4:])
async def test_what_fails_after_the_commit_leaves_it_committed(home: Home, phase: str) -> None:
    fragile = await home(Fragile, fail=phase)
    with pytest.raises(HookFailed) as failed:
        await fire(fragile, "go", by="ann")
    assert failed.value.committed
    done = PHASES[: PHASES.index(phase) + 1]
    assert [word for word in said if not word.startswith("noted")] == done
    assert [word for word in said if "late" not in word] == [*done, *(f"noted {name}" for name in done)]
    for each in (fragile, await home.again(fragile)):
        assert (state_of(each), each.n, each.notes) == ("P.A.A2 + P.B.B2", len(done), tuple(done))
    await late_ones(home, fragile)
    assert [word for word in said if "late" in word] == [f"noted late {name}" for name in done]


async def test_nothing_fails(home: Home) -> None:
    fragile = await home(Fragile)
    assert await fire(fragile, "go", "ann") == "ann"
    await late_ones(home, fragile)
    assert [word for word in said if "late" not in word] == [*PHASES, *(f"noted {name}" for name in PHASES)]


# on_error ----------------------------------------------------------------------------------------------
@machine(allow={"dead_end"})
class Rescued:
    n: int = 0
    error: str = ""

    @state(initial=True, parallel=True)
    class P:
        @state
        class A:
            @state(initial=True)
            class A1: ...

            @state
            class A2: ...

            @state
            class Bad: ...

        @state
        class B:
            @state(initial=True)
            class B1: ...

            @state
            class B2: ...

    @state
    class Out:
        @state(initial=True)
        class Cold: ...

    @transition(P.A.A1, P.A.A2, on_error=P.A.Bad)
    async def near(self) -> str:
        self.n += 1
        raise_event(self.never)
        raise Broken("near")

    @transition(P.A.A1, P.A.A2, event="far", on_error=Out)
    async def far_a(self) -> None:
        self.n += 1
        raise Broken("far")

    @transition(P.B.B1, P.B.B2, event="far")
    async def far_b(self) -> None:
        self.n += 10

    @transition(P.A.A1, P.A.A2, event="second")
    async def second_a(self) -> None:
        self.n += 1

    @transition(P.B.B1, P.B.B2, event="second", on_error=P.B.B1)
    async def second_b(self) -> None:
        raise Broken("second")

    @transition((P, Out), None)
    async def never(self) -> None:
        said.append("never")

    @transition((P, Out), P)
    async def again(self) -> None: ...

    async def on_exit_a1(self) -> None:
        said.append("exit A1")

    async def on_exit_b1(self) -> None:
        said.append("exit B1")

    async def on_exit_b(self) -> None:
        said.append("exit B")

    async def on_exit_p(self) -> None:
        said.append("exit P")

    async def on_exit_a(self) -> None:
        said.append("exit A")

    async def on_enter_a2(self) -> None:
        said.append("enter A2")

    async def on_enter_b1(self, error: Exception | None = None) -> None:
        said.append(f"enter B1 {error!r}")

    async def on_enter_bad(self, error: Exception) -> None:
        said.append(f"enter Bad {error!r}")
        self.error = str(error)

    async def on_enter_cold(self, error: Exception) -> None:
        said.append(f"enter Cold {error!r}")

    async def on_transition(self, t: Transition) -> None:
        said.append(f"{t.event}: {t.source} => {t.target}")


async def test_an_error_leads_to_another_state_of_the_region(home: Home) -> None:
    rescued = await home(Rescued)
    await rescued.never()  # which starts it
    said.clear()
    assert await rescued.near() is None
    assert said == ["exit A1", "enter Bad Broken('near')", "near: P.A.A1 + P.B.B1 => P.A.Bad + P.B.B1"]
    for each in (rescued, await home.again(rescued)):
        assert (state_of(each), each.n, each.error) == ("P.A.Bad + P.B.B1", 0, "near")


async def test_an_error_leads_out_of_all_regions_and_every_exit_hook_runs_once(home: Home) -> None:
    rescued = await home(Rescued)
    await rescued.never()  # which starts it
    said.clear()
    await fire(rescued, "far")
    assert sorted(word for word in said if word.startswith("exit")) == [
        "exit A",
        "exit A1",
        "exit B",
        "exit B1",
        "exit P",
    ]
    assert said[-2:] == ["enter Cold Broken('far')", "far: P.A.A1 + P.B.B1 => Out.Cold"]
    for each in (rescued, await home.again(rescued)):
        assert (state_of(each), each.n) == ("Out.Cold", 0)


async def test_an_error_of_the_second_region_undoes_the_first(home: Home) -> None:
    rescued = await home(Rescued)
    await rescued.never()  # which starts it
    said.clear()
    await fire(rescued, "second")
    assert state_of(rescued) == "P.A.A1 + P.B.B1"
    assert rescued.n == 0
    assert "enter A2" not in said
    assert "enter B1 Broken('second')" in said
    assert state_of(await home.again(rescued)) == "P.A.A1 + P.B.B1"


@machine(allow={"dead_end"})
class Balanced:
    """What it enters and exits adds up to where it is."""

    @state(initial=True)
    class Off: ...

    @state(parallel=True)
    class P:
        @state
        class A:
            @state(initial=True)
            class A1: ...

            @state
            class Bad: ...

        @state
        class B:
            @state(initial=True)
            class B1: ...

            @state
            class B2: ...

    @transition(Off, P)
    async def start(self) -> None: ...

    @transition(P.A.A1, Off, on_error=P.A.Bad)
    async def out(self) -> None:
        raise Broken("out")

    @transition(P.A.A1, P.A.Bad, on_error=Off)
    async def inside(self) -> None:
        raise Broken("inside")

    @transition(P, P, on_error=P.B.B2)
    async def anew(self) -> None:
        raise Broken("anew")

    def on_enter_p(self) -> None:
        said.append("+P")

    def on_exit_p(self) -> None:
        said.append("-P")

    def on_enter_a(self) -> None:
        said.append("+P.A")

    def on_exit_a(self) -> None:
        said.append("-P.A")

    def on_enter_a1(self) -> None:
        said.append("+P.A.A1")

    def on_exit_a1(self) -> None:
        said.append("-P.A.A1")

    def on_enter_bad(self) -> None:
        said.append("+P.A.Bad")

    def on_enter_b(self) -> None:
        said.append("+P.B")

    def on_exit_b(self) -> None:
        said.append("-P.B")

    def on_enter_b1(self) -> None:
        said.append("+P.B.B1")

    def on_exit_b1(self) -> None:
        said.append("-P.B.B1")

    def on_enter_b2(self) -> None:
        said.append("+P.B.B2")


@pytest.mark.parametrize("event", ["out", "inside", "anew"])
async def test_whatever_a_failing_body_leads_to_hooks_have_run_as_often_as_states_were_left(
    home: Home, event: str
) -> None:
    balanced = await home(Balanced)
    await balanced.start()
    await fire(balanced, event)
    inside: list[str] = []
    for word in said:
        if word.startswith("+"):
            assert word[1:] not in inside, said
            inside.append(word[1:])
        else:
            inside.remove(word[1:])
    assert sorted(inside) == sorted(name for name in states_of(balanced) if name != "Off")


# Arguments of events ------------------------------------------------------------------------------------
@machine(allow={"dead_end"})
class Told:
    @state(initial=True)
    class Off: ...

    @state
    class On:
        @state(initial=True)
        class Dim: ...

        @state
        class Full:
            @state(initial=True)
            class Warm: ...

            @state
            class Cold: ...

    @guard
    def is_enough(self, watts: int) -> bool:
        said.append(f"enough? {watts}")
        return watts > 10

    @transition(On, On.Full, event="warm")
    async def warm(self, watts: int, *, by: str = "nobody") -> None: ...

    @transition(Off, On.Full.Cold, guard=is_enough)
    @transition(Off, On)
    async def light(self, watts: int, *, by: str = "nobody") -> int:
        return watts

    @transition(On, Off)
    async def dark(self, *, by: str = "nobody") -> None: ...

    async def on_enter_on(self, by: str, watts: int) -> None:
        said.append(f"On {watts} {by}")

    async def on_enter_full(self, t: Transition, watts: int) -> None:
        said.append(f"Full {watts} {t.actor}")

    async def on_enter_cold(self, *, by: str) -> None:
        said.append(f"Cold {by}")

    async def on_enter_on_dim(self, watts: int, *, by: str) -> None:
        said.append(f"Dim {watts} {by}")

    async def on_exit_on(self, by: str) -> None:
        said.append(f"exit On {by}")


async def test_hooks_of_every_level_get_the_arguments_they_ask_for(home: Home) -> None:
    told = await home(Told)
    assert await told.light(60, by="ann") == 60
    assert said == ["enough? 60", "On 60 ann", "Full 60 ann", "Cold ann"]
    said.clear()
    await told.dark(by="bob")
    assert await told.light(watts=5) == 5
    assert said == ["exit On bob", "enough? 5", "On 5 nobody", "Dim 5 nobody"]
    assert in_state(told, Told.On.Dim)


async def test_wrong_arguments_are_found_before_anything_happens(home: Home) -> None:
    told = await home(Told)
    for args, kwargs in (((), {}), ((1, 2), {}), ((1,), {"who": "x"})):
        with pytest.raises(TypeError, match="light"):
            await told.light(*args, **kwargs)
    assert said == []
    assert states_of(told) == ("Off",)


# The end -------------------------------------------------------------------------------------------------
@machine
class Ending:
    @state(initial=True)
    class P:
        @state(initial=True)
        class A: ...

        @state(final=True)
        class Z: ...

    @state(final=True)
    class End: ...

    @transition(P.A, P.Z)
    async def inner(self) -> None: ...

    @transition("*", End)
    async def stop(self) -> None:
        raise_event(self.again)

    @transition("*", None)
    async def again(self) -> None:
        said.append("again")

    async def on_enter_end(self) -> None:
        raise_event(self.again)


async def test_a_top_level_final_state_is_the_end_and_an_inner_one_is_not(home: Home) -> None:
    ending = await home(Ending)
    await ending.inner()
    await ending.again()
    assert said == ["again"]
    await ending.stop()
    assert (states_of(ending), available_events(ending)) == (("End",), [])
    with pytest.raises(TransitionNotAllowed):
        await ending.again()
    assert not await can(ending.again)
    assert said == ["again"]
    other = await home.again(ending)
    assert states_of(other) == ("End",)
    with pytest.raises(TransitionNotAllowed):
        await other.again()


# Inheritance ---------------------------------------------------------------------------------------------
@machine(allow={"dead_end"})
class Wider(Studio):
    @state(parallel=True)
    class On(Studio.On):
        @state
        class Smell:
            @state(initial=True)
            class Faint: ...

            @state
            class Strong: ...

    @transition(On.Smell.Faint, On.Smell.Strong, event="up")
    async def up_smell(self) -> None:
        say(self, "up_smell")

    async def on_enter_smell(self) -> None:
        say(self, "enter Smell")


async def test_a_subclass_adds_a_region_and_overrides_hooks(home: Home) -> None:
    wider = await home(Wider)
    await wider.start()
    label = f"{QUIET} + On.Smell.Faint"
    assert said[1:] == [
        f"enter On in {label}",
        f"enter Sound in {label}",
        f"enter Quiet in {label}",
        f"enter Picture in {label}",
        f"enter Grey in {label}",
        f"enter Smell in {label}",
        f"start: Off => {label}",
    ]
    assert await fire(wider, "up") == "loud"
    assert state_of(wider) == f"{CLEAR} + On.Smell.Strong"
    assert in_state(wider, Studio.On.Sound.Loud)
    assert in_state(wider, Wider.On, Wider.On.Smell.Strong)
    assert state_of(await home.again(wider)) == state_of(wider)
    plain = await home(Studio)
    await plain.start()
    assert state_of(plain) == QUIET
