"""Drawing a saga or a pipeline: its steps, what joins them, and what undoes them.

Law: a pipeline's arrows are its data. A saga's steps are joined in their order, which for one that is a function
is the order in which its body names them: what it decides while it runs, no picture can know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flowlet.diagram.exported import RunExport, StepExport
from flowlet.diagram.picture import Edge, Idents, Look, Picture, Vertex
from flowlet.diagram.wording import duration, step_details
from flowlet.errors import FlowletError


def draw_run(run: RunExport, active: Sequence[str]) -> Picture:
    """Draw a saga or a pipeline.

    Args:
        active: names of steps and compensations to highlight.

    Raises:
        FlowletError: the export names a step that it does not have.
    """
    idents = Idents()
    call = Vertex(idents.make("begin"), _call_lines(run), "call")
    ids = {step.name: idents.make(step.name) for step in run.steps}
    edges = list(_order(run, ids, call.id) if run.kind == "saga" else _data(run, ids, call.id))
    steps = [Vertex(ids[s.name], _step_lines(s), "step", _look(s.name, active)) for s in run.steps]
    undos: list[Vertex] = []
    for step in run.steps:
        name = step.compensation
        if name is not None:
            undos.append(Vertex(idents.make(name), (name,), "compensation", _look(name, active)))
            edges.append(Edge(ids[step.name], undos[-1].id, ("undone by",), aside=True))
    return Picture(Idents().make(run.name), "flow", (call, *steps, *undos), tuple(edges))


def _look(name: str, active: Sequence[str]) -> Look:
    return "active" if name in active else "plain"


def _order(run: RunExport, ids: dict[str, str], call: str) -> Iterator[Edge]:
    before = call
    for step in run.steps:
        yield Edge(before, ids[step.name])
        before = ids[step.name]


def _data(run: RunExport, ids: dict[str, str], call: str) -> Iterator[Edge]:
    for step in run.steps:
        if not step.needs:
            yield Edge(call, ids[step.name])
        for need in step.needs:
            if need not in ids:
                raise FlowletError(f"{run.name}: step {step.name!r} needs {need!r}, which the export does not have")
            yield Edge(ids[need], ids[step.name])


def _call_lines(run: RunExport) -> tuple[str, ...]:
    title = f"{run.name}({', '.join(run.inputs)})"
    return (title,) if run.deadline is None else (title, f"deadline {duration(run.deadline)}")


def _step_lines(step: StepExport) -> tuple[str, ...]:
    details = step_details(step)
    return (step.name, details) if details else (step.name,)
