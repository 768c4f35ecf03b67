"""`flowlet.diagram.diagram`: what can be drawn, and what is highlighted in it."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from enum import Enum
from typing import Any

import pytest
from msgspec import Struct

from flowlet import Flowlet, Registry, compensate, guard, state, step, transition
from flowlet.diagram import diagram
from flowlet.errors import FlowletError, MachineError

registry = Registry()


@registry.machine
class Player:
    @state(initial=True)
    class Off: ...

    @state(parallel=True)
    class On:
        @state
        class Media:
            @state(initial=True)
            class Paused: ...

            @state
            class Playing: ...

            @state(history="deep", default=Paused)
            class Last: ...

        @state
        class Volume:
            @state(initial=True)
            class Low: ...

            @state
            class High: ...

    @state(final=True)
    class Gone: ...

    @guard
    async def can_play(self) -> bool:
        return True

    @transition(Off, (On.Media.Last, On.Volume.High))
    async def power(self) -> None: ...

    @transition(On.Media.Paused, On.Media.Playing)
    async def play(self) -> None: ...

    @transition(On.Media, On.Media.Playing, internal=True)
    async def again(self) -> None: ...

    @transition(On.Volume.High, On.Volume.Low, after=timedelta(days=3))
    @transition(On.Volume.High, None)
    async def quieten(self) -> None: ...

    @transition("*", Gone, on_error=Off)
    async def smash(self) -> None: ...


class Color(Enum):
    RED = state(initial=True)
    GREEN = state()


@registry.machine
class Light:
    @transition(Color.RED, Color.GREEN)
    @transition(Color.GREEN, Color.RED)
    async def change(self) -> None: ...


@step
async def reserve(order: str) -> str:
    return order


@compensate(reserve)
async def free(order: str) -> None: ...


@step
async def charge(order: str) -> str:
    return order


@registry.saga
async def checkout(order: str) -> str:
    await reserve(order)
    return await charge(order)


@registry.saga
class Checkout:
    @step
    async def reserve(self, order: str) -> str:
        return order

    async def __call__(self, order: str) -> str:
        return await self.reserve(order)


async def extract(path: str) -> str:
    return path


async def load(extract: str) -> str:
    return extract


etl = registry.pipeline("etl", extract, load)

WANTED = """\
stateDiagram-v2
    [*] --> Off
    Off
    state On {
        state "Media" as On_Media {
            [*] --> On_Media_Paused
            state "Paused" as On_Media_Paused
            state "Playing" as On_Media_Playing
            state "Last (H#42;)" as On_Media_Last
            On_Media_Last --> On_Media_Paused
            On_Media_Paused --> On_Media_Playing : play [can_play]
        }
        --
        state "Volume" as On_Volume {
            [*] --> On_Volume_Low
            state "Low" as On_Volume_Low
            state "High" as On_Volume_High
            On_Volume_High --> On_Volume_Low : after 3 d / quieten
            On_Volume_High --> On_Volume_High : quieten (internal)
        }
    }
    Gone
    state split <<fork>>
    state "#42; (any state)" as any_state
    Gone --> [*]
    Off --> split : power
    split --> On_Media_Last
    split --> On_Volume_High
    On_Media --> On_Media_Playing : again (internal)
    any_state --> Gone : smash
    any_state --> Off : smash on error
"""


class Draft(Struct):
    text: str = ""


async def write(draft: Draft) -> None: ...


async def end(draft: Draft) -> None: ...


review = registry.graph("review", state=Draft)
review.node(write, retry=2)
review.pause("p", type=str, merge=lambda draft, text: {"text": text})
review.node(end)
review.entry(write)
review.edge(write, "p")
review.edge("p", end, when=lambda draft: bool(draft.text), label="given")
review.edge("p", write, otherwise=True)
review.final(end)


def active_in(text: str) -> dict[str, str]:
    """Return the ids that each class of a Mermaid text has."""
    lines = [line.split() for line in text.splitlines() if line.startswith("    class ")]
    return {name: ids for _, ids, name in lines}


def test_a_machine_class() -> None:
    assert diagram(Player).mermaid == WANTED


def test_the_same_from_the_definition_and_from_its_export() -> None:
    definition = registry.definitions["Player", "1"]
    assert diagram(definition) == diagram(definition.export()) == diagram(Player)


def test_a_subclass_that_changes_nothing() -> None:
    class Walkman(Player): ...

    assert diagram(Walkman) == diagram(Player)
    assert active_in(diagram(Walkman()).mermaid) == {"active": "Off"}


@pytest.mark.anyio
async def test_a_live_object_shows_what_it_is_in() -> None:
    player = Player()
    assert active_in(diagram(player).mermaid) == {"active": "Off"}
    await player.power()
    await player.play()
    wanted = {"active": "On_Media_Playing,On_Volume_High", "around": "On,On_Media,On_Volume"}
    assert active_in(diagram(player).mermaid) == wanted
    assert diagram(player, active=[]) == diagram(Player)


@pytest.mark.anyio
async def test_a_stored_machine_and_the_word_its_listing_has_for_it() -> None:
    async with Flowlet(registry=registry) as flow:
        player = await flow.create(Player(), id="p")
        await player.power()
        word = player._flowlet_state.state  # type: ignore[attr-defined]
        assert diagram(player) == diagram(Player, active=word)
        assert active_in(diagram(player).mermaid)["active"] == "On_Media_Paused,On_Volume_High"


@pytest.mark.parametrize("ref", [Player.On.Volume.High, "On.Volume.High", "High"])
def test_active_states_by_class_path_or_bare_name(ref: Any) -> None:
    assert active_in(diagram(Player, active=[ref]).mermaid) == {"active": "On_Volume_High", "around": "On,On_Volume"}


def test_active_states_by_enum_member() -> None:
    assert active_in(diagram(Light, active=[Color.GREEN]).mermaid) == {"active": "GREEN"}
    assert active_in(diagram(Light()).mermaid) == {"active": "RED"}


def test_a_box_can_be_active_itself() -> None:
    assert active_in(diagram(Player, active="On").mermaid) == {"active": "On"}


def test_runs_are_drawn_from_what_takes_the_place_of_function_and_class() -> None:
    assert diagram(checkout).mermaid == (
        "flowchart TB\n"
        '    begin(["checkout(order)"])\n'
        '    reserve["reserve"]\n'
        '    charge["charge"]\n'
        '    free("free")\n'
        "    begin --> reserve\n"
        "    reserve --> charge\n"
        '    reserve -.->|"undone by"| free\n'
        "    classDef compensation stroke-dasharray:4\n"
        "    class free compensation\n"
    )
    assert "reserve" in diagram(Checkout).mermaid
    assert diagram(Checkout()) == diagram(Checkout)
    assert "extract --> load" in diagram(etl).mermaid
    assert diagram(registry.definitions["etl", "1"]) == diagram(etl)
    assert active_in(diagram(etl, active=["load"]).mermaid) == {"active": "load"}


class Plain:
    @state
    class Open: ...


@pytest.mark.parametrize("thing", [Plain, Plain(), reserve, 42, None, "Order", registry])
def test_what_cannot_be_drawn_is_told_so(thing: Any) -> None:
    with pytest.raises(FlowletError, match="cannot be drawn: give diagram"):
        diagram(thing)


def test_a_graph() -> None:
    picture = diagram(review, active=["p"])
    assert picture.mermaid.splitlines()[1:6] == [
        '    begin(["review(Draft)"])',
        '    write["write<br/>2 attempts"]',
        '    p{{"p"}}',
        '    end_[["end"]]',
        "    begin --> write",
    ]
    assert active_in(picture.mermaid) == {"active": "p"}
    assert diagram(review.definition().export()).dot == diagram(review).dot
    with pytest.raises(FlowletError, match=r"review: 'wriet' .*did you mean 'write'"):
        diagram(review, active=["wriet"])
    torn = {"kind": "graph", "name": "g", "nodes": [{"name": "a"}], "edges": [{"source": "a", "target": "b"}]}
    with pytest.raises(FlowletError, match="an edge joins 'b', which the export does not have"):
        diagram(torn)


def test_active_names_what_is_there() -> None:
    with pytest.raises(FlowletError, match=r"Player: 'Hihg' .*did you mean"):
        diagram(Player, active=["Hihg"])
    with pytest.raises(MachineError, match="does not exist"):
        diagram(Player, active=[Plain.Open])
    with pytest.raises(FlowletError, match=r"etl: 'lod' .*did you mean 'load'"):
        diagram(etl, active=["lod"])


def test_a_bare_name_must_be_the_only_one() -> None:
    states = [{"name": "A"}, {"name": "B"}, {"name": "A.X", "parent": "A"}, {"name": "B.X", "parent": "B"}]
    export = {"kind": "machine", "name": "M", "states": states, "transitions": []}
    with pytest.raises(FlowletError, match=r"it may be 'A\.X' or 'B\.X'"):
        diagram(export, active=["X"])
    assert active_in(diagram(export, active=["B.X"]).mermaid) == {"active": "B_X", "around": "B"}


def test_nothing_else_is_loaded_for_pictures() -> None:
    code = (
        "import sys, types, pathlib, importlib.util as u\n"
        "spec = u.find_spec('flowlet'); package = types.ModuleType('flowlet')\n"
        "package.__path__ = spec.submodule_search_locations; sys.modules['flowlet'] = package\n"
        "import flowlet.diagram\n"
        "print(*sorted({'.'.join(n.split('.')[:2]) for n in sys.modules if n.startswith('flowlet.')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["flowlet.core", "flowlet.diagram", "flowlet.errors"]
