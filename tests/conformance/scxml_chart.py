"""Reads SCXML files: states, transitions, and executable content as functions of a `Session`.

Law: no semantics: a `Chart` says what the file says. What is done with it is decided by who writes it down for flowlet
or for the model (`scxml_loader`). Another element of executable content is another entry in `CONTENT`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from scxml_script import (
    BUILTINS,
    UNDEFINED,
    Code,
    Expression,
    Function,
    ScriptError,
    constant,
    is_truthy,
    read_expression,
    read_script,
    text_of,
)


class Session(Protocol):
    """What executable content may do; there is one for flowlet and one for the model.

    Attributes:
        vars: the data that have a value. A new map is assigned whenever one changes.
        event: the event being handled, as ``_event`` shows it, or None.
    """

    vars: dict[str, Any]
    event: dict[str, Any] | None

    def is_in(self, id: str) -> bool: ...
    def raise_event(self, name: str, data: Any) -> None: ...
    def send(self, name: str, delay: float, data: Any) -> None: ...


class World:
    """The global names of a chart's scripts during one block of content."""

    def __init__(self, chart: Chart, session: Session) -> None:
        self.chart, self.session = chart, session

    def get(self, name: str) -> Any:
        session = self.session
        if name in session.vars:
            return session.vars[name]
        if name in self.chart.functions:
            return self.chart.functions[name].bind(self)
        if name in self.chart.data:
            return UNDEFINED
        system = {"In": session.is_in, "_event": session.event or UNDEFINED, "_sessionid": "1", "_name": "chart"}
        found = system.get(name, BUILTINS.get(name))
        if found is None:
            raise ScriptError(f"{name} is not defined")
        return found

    def put(self, name: str, value: Any) -> None:
        if callable(value):
            return  # a function declared on the way: it is found in the chart
        others = {n: v for n, v in self.session.vars.items() if n != name}
        self.session.vars = others if value is UNDEFINED else {**others, name: value}


Action = Callable[[World], None]
Block = Callable[[Session], None]


@dataclass(eq=False, repr=False)
class Node:
    """One state; ``default`` are the ids of where entering it leads, and None stands for the first child."""

    id: str
    kind: str
    parent: Node | None
    children: list[Node] = field(default_factory=list)
    default: list[str] | None = None
    arrows: list[Arrow] = field(default_factory=list)
    on_entry: list[Block] = field(default_factory=list)
    on_exit: list[Block] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.id}>"

    def walk(self) -> Iterator[Node]:
        """Iterate over this state and all below it in document order."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(eq=False)
class Arrow:
    """One transition; ``descriptors`` is None for an eventless one."""

    source: Node
    descriptors: list[str] | None
    targets: list[str]
    internal: bool
    cond: Callable[[Session], bool] | None
    content: Block

    def events(self, chart: Chart) -> list[str]:
        """Expand the descriptors over the events of the chart."""
        return [e for e in chart.events if any(_matches(d, e) for d in self.descriptors or ())]


def _matches(descriptor: str, event: str) -> bool:
    prefix = descriptor.removesuffix("*").removesuffix(".")
    return not prefix or event == prefix or event.startswith(f"{prefix}.")


@dataclass(eq=False, repr=False)
class Chart:
    """What a file says.

    Attributes:
        folder: where the file is, for the ``src`` of its scripts.
        scripts: texts for the ``src`` of scripts that are not there.
        root: the ``scxml`` element.
        events: all that may occur: those from outside first, then those of the document.
        data: the declared names.
        functions: what the document's scripts declare.
        start: what runs before the chart starts: the first values of the data, then the document's own scripts.
    """

    name: str
    folder: Path
    scripts: Mapping[str, str]
    root: Node = field(default_factory=lambda: Node("", "root", None))
    events: list[str] = field(default_factory=list)
    data: set[str] = field(default_factory=set)
    functions: dict[str, Function] = field(default_factory=dict)
    start: list[Block] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<chart {self.name}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Keep hypothesis from showing all of it."""
        printer.text(repr(self))

    @property
    def nodes(self) -> list[Node]:
        """All states in document order."""
        return [node for child in self.root.children for node in child.walk()]

    @property
    def arrows(self) -> list[Arrow]:
        """All transitions, state by state."""
        return [arrow for node in self.root.walk() for arrow in node.arrows]

    def named_arrows(self) -> Iterator[tuple[str, Arrow]]:
        """Iterate over all transitions with the names of their methods."""
        return ((f"t{n}", arrow) for n, arrow in enumerate(self.arrows, 1))


# ------------------------------------------------------------------ reading
class Unsupported(Exception):
    """An element that the loader does not know yet."""


class Place(NamedTuple):
    """Where an element starts in its file."""

    line: int
    column: int


def parse_xml(text: bytes) -> tuple[Element, Mapping[Element, Place]]:
    """Parse a document into elements without namespaces, and where each of them starts."""
    builder = TreeBuilder()
    places: dict[Element, Place] = {}
    parser = expat.ParserCreate(namespace_separator="}")

    def start(name: str, attributes: dict[str, str]) -> None:
        element = builder.start(name.rpartition("}")[2], attributes)
        places[element] = Place(parser.CurrentLineNumber, parser.CurrentColumnNumber)

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda name: builder.end(name.rpartition("}")[2])
    parser.CharacterDataHandler = builder.data
    parser.Parse(text, True)
    return builder.close(), places


STATES = {"state": "compound", "parallel": "parallel", "final": "final", "history": "shallow"}
"""Elements that are states, with the kind they are."""


class Reader:
    """Reads one document into a `Chart`."""

    def __init__(self, path: Path, scripts: Mapping[str, str]) -> None:
        self.chart = Chart(path.stem, path.parent, scripts)
        self._document, self._places = parse_xml(path.read_bytes())

    def read(self, external: Iterable[str]) -> Chart:
        """Read all of it; descriptors will be expanded over ``external`` and the document's own events."""
        chart, document = self.chart, self._document
        chart.data.update(data.get("id", "") for data in document.iter("data"))
        for data in document.iter("data"):  # early binding: all of them, wherever they are
            chart.start.append(self.block([data]))
        for script in document.findall("script"):
            chart.start.append(self.block([script]))
        self._fill(chart.root, document)
        chart.events.extend(dict.fromkeys([*external, *self._own_events()]))
        return chart

    def _own_events(self) -> Iterator[str]:
        for element in self._document.iter():
            if element.tag in ("raise", "send") and "event" in element.attrib:
                yield element.attrib["event"]
            elif element.tag == "transition":
                yield from (d for d in element.get("event", "").split() if not d.endswith(("*", ".")))
        yield "error.execution"
        for node in self.chart.nodes:
            if node.kind == "parallel" or any(child.kind == "final" for child in node.children):
                yield f"done.state.{node.id}"

    def _fill(self, node: Node, element: Element) -> None:
        if "initial" in element.attrib:
            node.default = element.attrib["initial"].split()
        for child in element:
            if child.tag in STATES:
                kind = child.get("type", "shallow") if child.tag == "history" else STATES[child.tag]
                inner = Node(child.get("id") or f"state {len(self.chart.nodes) + 1}", kind, node)
                node.children.append(inner)
                self._fill(inner, child)
            elif child.tag == "initial":
                node.default = self._default(child)
            elif child.tag == "transition" and node.kind in ("shallow", "deep"):
                node.default = self._default(element)
            elif child.tag == "transition":
                node.arrows.append(self._arrow(node, child))
            elif child.tag == "onentry":
                node.on_entry.append(self.block(child))
            elif child.tag == "onexit":
                node.on_exit.append(self.block(child))
            elif child.tag not in ("datamodel", "script"):
                raise Unsupported(f"<{child.tag}> in <{element.tag}>")
        if node.kind == "compound" and not any(c.kind not in ("shallow", "deep") for c in node.children):
            node.kind = "atomic"

    def _default(self, element: Element) -> list[str]:
        transition = cast("Element", element.find("transition"))
        if len(transition):
            raise Unsupported(f"executable content in the transition of <{element.tag}>")
        return transition.attrib["target"].split()

    def _arrow(self, node: Node, element: Element) -> Arrow:
        return Arrow(
            source=node,
            descriptors=element.attrib["event"].split() if "event" in element.attrib else None,
            targets=element.get("target", "").split(),
            internal=element.get("type") == "internal",
            cond=self._condition(element) if "cond" in element.attrib else None,
            content=self.block(element),
        )

    def _condition(self, element: Element) -> Callable[[Session], bool]:
        cond = read_expression(element.attrib["cond"])

        def holds(session: Session) -> bool:
            try:
                return is_truthy(cond.get(World(self.chart, session)))
            except ScriptError as error:
                self._report(session, element, error)
                return False

        return holds

    # Executable content
    def block(self, elements: Iterable[Element]) -> Block:
        """Read a block of content: what fails in it is an event, and the rest of it is skipped."""
        actions = self.actions(elements)

        def run(session: Session) -> None:
            world = World(self.chart, session)
            for element, action in actions:
                try:
                    action(world)
                except ScriptError as error:
                    self._report(session, element, error)
                    return

        return run

    def actions(self, elements: Iterable[Element]) -> list[tuple[Element, Action]]:
        """Read elements of content one by one."""
        found: list[tuple[Element, Action]] = []
        for element in elements:
            if element.tag not in CONTENT:
                raise Unsupported(f"<{element.tag}> as executable content")
            found.append((element, CONTENT[element.tag](self, element)))
        return found

    def _report(self, session: Session, element: Element, error: ScriptError) -> None:
        element = getattr(error, "element", element)  # the innermost one
        line, column = self._places[element]
        what = {"tagname": element.tag, "line": line, "column": column, "reason": str(error)}
        session.raise_event("error.execution", what)


# ------------------------------------------------------------------ executable content
def _raise(reader: Reader, element: Element) -> Action:
    name = element.attrib["event"]
    return lambda world: world.session.raise_event(name, None)


def _send(reader: Reader, element: Element) -> Action:
    name, delay = _value_of(element, "event"), _value_of(element, "delay")

    def send(world: World) -> None:
        world.session.send(text_of(name(world)), seconds_of(delay(world)), None)

    return send


def _value_of(element: Element, attribute: str) -> Code:
    """Read what an attribute says, or the expression in the attribute with ``expr`` at the end of its name."""
    if f"{attribute}expr" in element.attrib:
        return read_expression(element.attrib[f"{attribute}expr"]).get
    return constant(element.get(attribute, UNDEFINED)).get


def seconds_of(delay: Any) -> float:
    """Read a CSS duration such as ``10ms`` or ``.5s``."""
    if delay is UNDEFINED:
        return 0.0
    match = re.fullmatch(r"(\d*\.?\d+)(ms|s)", text_of(delay))
    if match is None:
        raise ScriptError(f"{delay!r} is no duration")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def _log(reader: Reader, element: Element) -> Action:
    expression = read_expression(element.get("expr", "undefined"))
    return expression.get  # the worth of it is that it may fail


def _assign_to(reader: Reader, element: Element) -> Action:
    place, value = read_expression(element.attrib["location"]), read_expression(element.attrib["expr"])

    def assign(world: World) -> None:
        if place.put is None or (place.name is not None and place.name not in world.chart.data):
            raise ScriptError(f"{element.attrib['location']} is no place to assign to")
        place.put(world, value.get(world))

    return assign


def _data(reader: Reader, element: Element) -> Action:
    name = element.attrib["id"]
    inline = (element.text or "").strip()
    value = read_expression(element.get("expr") or inline or "undefined")
    return lambda world: world.put(name, value.get(world))


def _script(reader: Reader, element: Element) -> Action:
    source = element.get("src")
    code, functions = read_script((element.text or "") if source is None else _source(reader.chart, source))
    reader.chart.functions.update(functions)
    return code


def _source(chart: Chart, source: str) -> str:
    path = chart.folder / source
    return path.read_text() if path.is_file() else chart.scripts[source]


def _if(reader: Reader, element: Element) -> Action:
    branches: list[tuple[Expression, list[Element]]] = [(read_expression(element.attrib["cond"]), [])]
    for child in element:
        if child.tag in ("elseif", "else"):
            branches.append((read_expression(child.get("cond", "true")), []))
        else:
            branches[-1][1].append(child)
    choices = [(condition.get, reader.actions(content)) for condition, content in branches]

    def choose(world: World) -> None:
        chosen = next((actions for condition, actions in choices if is_truthy(condition(world))), [])
        for inner, action in chosen:
            try:
                action(world)
            except ScriptError as error:
                error.element = getattr(error, "element", inner)  # type: ignore[attr-defined]
                raise

    return choose


CONTENT: dict[str, Callable[[Reader, Element], Action]] = {
    "raise": _raise,
    "send": _send,
    "log": _log,
    "assign": _assign_to,
    "data": _data,
    "script": _script,
    "if": _if,
}
"""How each element of executable content is read."""


def read_chart(path: Path, external: Iterable[str] = (), scripts: Mapping[str, str] | None = None) -> Chart:
    """Read an SCXML file.

    Args:
        external: the events that will be sent from outside, over which descriptors are expanded.
        scripts: texts for the ``src`` of scripts that are not beside the file.
    """
    return Reader(path, scripts or {}).read(external)
