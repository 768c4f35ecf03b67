"""The loader of SCXML files and its script language, by themselves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import anyio
import pytest
from scxml_chart import Unsupported, read_chart
from scxml_loader import PROBE, build_machine, build_model
from scxml_script import UNDEFINED, Local, ScriptError, read_expression, read_script

from flowlet import fire, states_of
from flowlet.errors import TransitionNotAllowed


class Empty:
    """A scope that knows nothing."""

    def get(self, name: str) -> Any:
        raise ScriptError(f"{name} is not defined")

    def put(self, name: str, value: Any) -> None:
        raise ScriptError(f"{name} is not defined")


def value_of(text: str, **names: Any) -> Any:
    return read_expression(text).get(Local(Empty(), names))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3 - 4 / 2", 5),
        ("(1 + 2) * -3 % 4", -1),
        ("10 - 3 - 2", 5),
        ("x === 2 && y !== 'b' || false", True),
        ("!x || x >= 2 ? 'big' : 'small'", "big"),
        ("'n: ' + x + null", "n: 2null"),
        ("1 === '1'", False),
        ("1 == '1' && null == undefined && null !== undefined", True),
        ("'b' > 'a' && '10' > 9", True),
        ("{p1: 'v1', 'p2': [1, {a: x}]}.p2[1].a", 2),
        ("o.none", UNDEFINED),
        ("typeof nothing + typeof x + typeof o", "undefinednumberobject"),
        ("0x10 + .5e1", 21),
        ("twice(x) + o.list.length", 6),
        ("0.1 + 0.2", 0.1 + 0.2),
        ("1 / 0", math.inf),
    ],
)
def test_expressions(text: str, value: Any) -> None:
    assert value_of(text, x=2, y="a", o={"list": [1, 2]}, twice=lambda n: 2 * n) == value


@pytest.mark.parametrize("text", ["{p1: 'v1'", "1 +", "", "a b", "1 = 2", "'open", "x.y.z", "x()", "unknown", "a #"])
def test_a_wrong_expression_fails_when_it_is_used(text: str) -> None:
    expression = read_expression(text)
    with pytest.raises(ScriptError):
        expression.get(Local(Empty(), {"x": UNDEFINED, "a": 1}))


def test_scripts() -> None:
    text = """
        function sum(list, start) { var n = start; n += list[0]; if (n > 5) { return n; } else return -n; }
        x = sum([4], 2); y = sum([1], 2); /* a comment */ z++; o.p.q = 'new';  // and another
    """
    code, functions = read_script(text)
    before = {"p": {"q": "old"}}
    scope = Local(Empty(), {"x": 0, "y": 0, "z": 1, "o": before})
    code(scope)
    assert list(functions) == ["sum"]
    assert {name: scope.get(name) for name in "xyzo"} == {"x": 6, "y": -3, "z": 2, "o": {"p": {"q": "new"}}}
    assert before == {"p": {"q": "old"}}, "what was read before has changed"


CHART = """
<scxml xmlns="http://www.w3.org/2005/07/scxml" initial="b.2 C" name="any">
  <datamodel><data id="n" expr="0"/><data id="log">[]</data></datamodel>
  <state id="idle"/>
  <parallel id="P">
    <state id="B"><state id="b.1"/><state id="b.2">
      <onentry><assign location="n" expr="n + 1"/><assign location="missing" expr="1"/><raise event="never"/></onentry>
      <onexit><raise event="left"/></onexit>
      <transition event="go.* stop" target="b.1"><if cond="n === 1"><raise event="one"/><else/><raise event="two"/></if>
      </transition></state></state>
    <state id="C"><state id="calm"><transition event="error" target="alarmed"/></state><state id="alarmed"/></state>
    <state id="c"><state id="c1"><transition event="one" target="c2"/></state><state id="c2"/></state>
    <transition event="never" target="idle"/>
  </parallel>
</scxml>
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "any.scxml"
    file.write_text(CHART)
    return file


def test_descriptors_are_expanded_over_the_events_of_the_case(path: Path) -> None:
    chart = read_chart(path, ["go", "going", "go.on", "stop.now"])
    assert chart.arrows[1].descriptors == ["go.*", "stop"]
    assert chart.arrows[1].events(chart) == ["go", "go.on", "stop.now", "stop"]
    assert [a.events(chart) for a in chart.arrows if a.descriptors == ["error"]] == [["error", "error.execution"]]


async def play(path: Path) -> list[set[str]]:
    machine = build_machine(read_chart(path, ["go", "go.on"]))
    it = machine.cls()
    found: list[set[str]] = []
    for event in (PROBE, "go.on"):
        try:
            await fire(it, event)
        except TransitionNotAllowed:
            assert event == PROBE
        found.append(machine.configuration(states_of(it)))
    assert it.vars == {"n": 1, "log": []}
    assert found == [{"b.2", "alarmed", "c1"}, {"b.1", "alarmed", "c2"}]
    return found


def test_ids_of_any_form_deep_starts_and_failing_content(path: Path) -> None:
    model = build_model(read_chart(path, ["go", "go.on"]))
    model.start()
    expected = [set(model.atomic)]
    model.send_now("go.on")
    assert anyio.run(play, path) == [*expected, set(model.atomic)]


@pytest.mark.parametrize(
    "inside",
    [
        "<state id='a'><onentry><foreach/></onentry></state>",
        "<state id='a'><invoke/></state>",
        "<state id='a'><initial><transition target='b'><log/></transition></initial><state id='b'/></state>",
    ],
)
def test_what_it_does_not_know_is_refused(tmp_path: Path, inside: str) -> None:
    file = tmp_path / "any.scxml"
    file.write_text(f"<scxml>{inside}</scxml>")
    with pytest.raises(Unsupported):
        read_chart(file)
