"""Drawing an approval chain: its levels, in their order or beside each other, and where a rejection sends it back to.

Law: what a level's rule is, only its name can say; the picture shows that and no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from flowlet.diagram.exported import ApprovalExport, LevelExport
from flowlet.diagram.picture import Edge, Idents, Picture, Vertex
from flowlet.diagram.wording import duration
from flowlet.errors import FlowletError


def draw_approval(chain: ApprovalExport, active: Sequence[str]) -> Picture:
    """Draw an approval chain.

    Args:
        active: names of levels to highlight.

    Raises:
        FlowletError: a level of the export sends back to one that it does not have.
    """
    idents = Idents()
    call = Vertex(idents.make("begin"), _call_lines(chain), "call")
    ids = {level.name: idents.make(level.name) for level in chain.levels}
    end = Vertex(idents.make("approved"), ("approved",), "end")
    levels = [
        Vertex(ids[v.name], tuple(_level_lines(v)), "pause", "active" if v.name in active else "plain")
        for v in chain.levels
    ]
    edges = [*_ways(chain, ids, call.id, end.id), *_ways_back(chain, ids)]
    return Picture(Idents().make(chain.name), "flow", (call, *levels, end), tuple(edges))


def _ways(chain: ApprovalExport, ids: dict[str, str], begin: str, end: str) -> Iterator[Edge]:
    if chain.parallel and chain.levels:
        for level in chain.levels:
            yield Edge(begin, ids[level.name])
            yield Edge(ids[level.name], end)
        return
    stops = [begin, *(ids[level.name] for level in chain.levels), end]
    for before, after in pairwise(stops):
        yield Edge(before, after)


def _ways_back(chain: ApprovalExport, ids: dict[str, str]) -> Iterator[Edge]:
    for level in chain.levels:
        target = level.send_back_to
        if target is None:
            continue
        if target not in ids:
            raise FlowletError(
                f"{chain.name}: level {level.name!r} sends back to {target!r}, which the export does not have"
            )
        yield Edge(ids[level.name], ids[target], ("rejected",), aside=True)


def _call_lines(chain: ApprovalExport) -> tuple[str, ...]:
    title = f"{chain.name}({chain.subject})"
    return (title,) if chain.deadline is None else (title, f"deadline {duration(chain.deadline)}")


def _level_lines(level: LevelExport) -> Iterator[str]:
    yield level.name
    yield _who(level)
    if level.when is not None:
        yield "[condition]" if level.when == "<lambda>" else f"[{level.when}]"
    if level.timeout is not None:
        then = [] if level.escalate_to is None else [level.escalate_to]
        then += [level.on_timeout] if level.on_timeout in ("approve", "reject") else []
        yield f"after {duration(level.timeout)}: {', then '.join(then)}"


def _who(level: LevelExport) -> str:
    names = level.approvers or ([] if level.resolver is None else [f"{level.resolver}()"])
    who = ", ".join([*names, *([] if level.role is None else [f"role {level.role}"])])
    return who if level.quorum == 1 else f"{level.quorum} of {who}"
