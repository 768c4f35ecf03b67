"""Definitions in ``golden/*.json`` are drawn as ``golden/*.mmd`` and ``.dot``, which Mermaid and dot understand.

After a change that is meant, write them anew with ``FLOWLET_TEST_UPDATE_GOLDEN=1`` and read the difference.

Mermaid's own parser is asked under node, for the golden files also its layout, with the packages in
``mermaid/package.json``, which are installed once into the user's cache directory. Without node, npm or a registry, and
without ``dot``, the tests skip and say so; ``FLOWLET_TEST_REQUIRE=mermaid,dot`` makes that a failure.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import string
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NoReturn

import pytest

from flowlet.diagram import Diagram, DotFailed, diagram
from flowlet.diagram import draw as draw_export
from flowlet.diagram.dot import write_dot
from flowlet.diagram.mermaid import write_mermaid
from flowlet.diagram.picture import Picture
from flowlet.diagram.source import read_source

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))


def given(name: str) -> tuple[dict[str, Any], list[str] | None]:
    read = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return read["export"], read["active"]


def draw(export: dict[str, Any], active: list[str] | None = None) -> Picture:
    exported, names = read_source(export, active)
    return draw_export(exported, names)


def squeeze(*texts: str) -> str:
    """Join texts without white space: lines are broken where they are too long."""
    return re.sub(r"\s", "", "".join(texts))


def refuse(word: str, reason: str) -> NoReturn:
    if word in os.environ.get("FLOWLET_TEST_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)


# ------------------------------------------------------------------ golden files
@pytest.mark.parametrize("suffix", ["mmd", "dot"])
@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_as_it_was(name: str, suffix: str) -> None:
    export, active = given(name)
    drawn = diagram(export, active=active)
    text = drawn.mermaid if suffix == "mmd" else drawn.dot
    path = GOLDEN / f"{name}.{suffix}"
    if os.environ.get("FLOWLET_TEST_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(NAMES)


# ------------------------------------------------------------------ texts of all kinds
def punctuated() -> list[str]:
    marks = [*string.punctuation, "\t", "\u00a0", "\u2028", "\x00", "\ud800", "e\u0301", "ﬂ°°35¶ß", "]("]
    return [text for mark in marks for text in (f"{mark} a", f"a{mark}b", f"a {mark}{mark}")]


def chain() -> dict[str, Any]:
    names = punctuated()
    states = [{"name": name, "initial": not number} for number, name in enumerate(names)]
    transitions = [
        {"event": name, "method": name, "source": name, "targets": [after], "guards": [after]}
        for name, after in itertools.pairwise(names)
    ]
    return {"kind": "machine", "name": "chain", "states": states, "transitions": transitions}


def row() -> dict[str, Any]:
    steps = [{"name": name, "compensation": f"{name}~"} for name in punctuated()]
    return {"kind": "saga", "name": 'a "row"', "inputs": ["[]", '"'], "steps": steps}


def drawings() -> dict[str, Picture]:
    """All that is shown to the programs which must understand it."""
    return {**{name: draw(*given(name)) for name in NAMES}, "chain": draw(chain()), "row": draw(row())}


# ------------------------------------------------------------------ Mermaid
def test_mermaid_understands_what_was_drawn() -> None:
    pictures = drawings()
    answers = ask_mermaid({name: write_mermaid(picture) for name, picture in pictures.items()})
    assert {a["name"]: a["error"] for a in answers if a["error"]} == {}
    assert [a["name"] for a in answers] == list(pictures)
    for answer in answers:
        compare(pictures[answer["name"]], answer)


def test_mermaid_refuses_what_is_wrong() -> None:
    (answer,) = ask_mermaid({"wrong": "stateDiagram-v2\n    A --\n"})
    assert "Parse error" in answer["error"]


def compare(picture: Picture, answer: dict[str, Any]) -> None:
    """Check that Mermaid has seen all vertices in their places, their texts and looks, and all edges."""
    assert answer["type"] == ("stateDiagram" if picture.kind == "chart" else "flowchart-v2")
    nodes = {node["id"]: node for node in answer["nodes"]}
    homes = picture.homes()
    for vertex in picture.walk():
        node = nodes.pop(vertex.id)
        assert node["parent"] == homes[vertex.id]
        if vertex.shape != "fork":
            assert squeeze(node["label"]) == squeeze(*shown(vertex.lines))
        assert (vertex.look in node["classes"]) == (vertex.look != "plain")
    regions = {child.id for v in picture.walk() if v.shape == "parallel" for child in v.children}
    assert {node["id"] for node in answer["nodes"] if node["region"]} >= regions
    assert all(re.fullmatch(r"([\w-]+_(start|end)|entry(_\d)?)", added) for added in nodes)
    seen = [(e["source"], e["target"], squeeze(e["label"])) for e in answer["edges"]]
    for edge in picture.edges:
        if edge.source != edge.target:
            seen.remove((edge.source, edge.target, squeeze(*shown(edge.lines))))
    for loop in [seen.pop(n) for n, (source, target, _) in reversed([*enumerate(seen)]) if source == target]:
        wanted = [line for edge in picture.edges if edge.source == edge.target == loop[0] for line in edge.lines]
        assert loop[2] == squeeze(*shown(wanted))
    assert all(source in nodes or target in nodes for source, target, _ in seen)
    assert {target for source, target, _ in seen if source in nodes} >= set(picture.entry)
    if answer["drawn"]:
        for text in texts_of(picture):
            assert squeeze(*shown([text])) in squeeze(answer["drawn"])


def texts_of(picture: Picture) -> list[str]:
    return [line for v in picture.walk() for line in v.lines] + [line for edge in picture.edges for line in edge.lines]


def shown(lines: Any) -> list[str]:
    """Return texts as far as a picture can show them."""
    return [re.sub("[\x00\ud800]", "\ufffd", line) for line in lines]


def ask_mermaid(texts: dict[str, str]) -> list[dict[str, Any]]:
    """Have Mermaid read texts, all in one process."""
    folder = installed()
    done = subprocess.run(
        [str(shutil.which("node")), str(HERE / "mermaid" / "check.mjs")],
        input=json.dumps([{"name": name, "text": text, "layout": name in NAMES} for name, text in texts.items()]),
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def installed() -> Path:
    """Return the folder where Mermaid is installed, after installing it if need be."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        refuse("mermaid", "Mermaid's parser needs node and npm: install Node.js 20 or newer")
    package = HERE / "mermaid" / "package.json"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowlet-tests"
    folder = cache / f"mermaid-{hashlib.sha256(package.read_bytes()).hexdigest()[:16]}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as fresh:
        shutil.copy(package, fresh)
        command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        try:
            done = subprocess.run(command, cwd=fresh, capture_output=True, text=True, timeout=100)
        except subprocess.TimeoutExpired:
            refuse("mermaid", "npm did not install Mermaid in time: try again, or look for its registry")
        if done.returncode:
            refuse("mermaid", f"npm cannot install Mermaid, whose parser is needed: {done.stderr[-500:]}")
        try:
            Path(fresh).rename(folder)
        except OSError:  # another process was faster
            assert folder.exists()
        else:
            Path(fresh).mkdir()  # for the context manager to remove
    return folder


# ------------------------------------------------------------------ Graphviz
def svg_of(picture: Picture, name: str) -> str:
    try:
        return Diagram(name, "", write_dot(picture)).svg(timeout=60)
    except DotFailed as error:
        if error.reason != "missing":
            raise
        refuse("dot", str(error))


@pytest.mark.parametrize("name", [*NAMES, "chain", "row"])
def test_dot_understands_what_was_drawn(name: str) -> None:
    picture = drawings()[name]
    tree = ElementTree.fromstring(svg_of(picture, name))

    def find(path: str) -> list[str]:
        return [element.text or "" for element in tree.iterfind(path, {"": "http://www.w3.org/2000/svg"})]

    titles = find(".//g[@class='node']/title")
    boxes = find(".//g[@class='cluster']/title")
    arrows = find(".//g[@class='edge']/title")
    texts = squeeze(*find(".//text"))
    assert sorted(boxes) == sorted(f"cluster_{v.id}" for v in picture.walk() if v.children)
    assert {v.id for v in picture.walk()} <= {*titles, *(box.removeprefix("cluster_") for box in boxes)}
    for edge in picture.edges:
        arrows.remove(f"{edge.source}->{edge.target}")
    for text in texts_of(picture):
        assert squeeze(*shown([text])) in texts
