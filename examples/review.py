"""Articles that are checked by programs and decided on by people: a graph with a pause, over several processes.

    python examples/review.py submit article.md                        # checked, then published or left to an editor
    python examples/review.py list                                     # what there is, and what was found in it
    python examples/review.py decide article.md --remark "shorten it"  # when the author has, it is checked anew
    python examples/review.py decide article.md --approve              # published, by this process

Each command is a process of its own, and does only what comes next; what was done before is in ``review.db``. One that
was killed is given again: ``submit`` goes on where it was, and any command that runs takes over what others have left.
"""

from __future__ import annotations

import argparse
import operator
import os
import re
from pathlib import Path
from typing import Annotated, Any

import anyio
from msgspec import Struct

from flowlet import Flowlet, Registry
from flowlet.errors import RunFinished, RunNotFound
from flowlet.graph import Graph
from flowlet.runtime.handle import Handle

LONG = 30  # words of a sentence

registry = Registry()


class Article(Struct):
    """What the graph works on.

    Attributes:
        findings: what is wrong with the text, by the check that found it; each check writes its own.
    """

    source: str
    folder: str
    text: str = ""
    findings: Annotated[dict[str, list[str]], operator.or_] = {}
    remarks: Annotated[list[str], operator.add] = []
    approved: bool = False
    published: str = ""

    @property
    def doubts(self) -> list[str]:
        return [finding for found in self.findings.values() for finding in found]


class Decision(Struct):
    """What an editor sends."""

    approve: bool
    remark: str = ""


review: Graph[Article] = registry.graph("review", state=Article, max_iterations=20)


# ---------------------------------------------------------------- the nodes
@review.node
def read(article: Article) -> dict[str, str]:
    print(f"read {article.source}")
    return {"text": Path(article.source).read_text(encoding="utf-8")}


@review.node
async def find_long_sentences(text: str) -> dict[str, Any]:
    sentences = [s.split() for s in re.split(r"[.!?]\s", text)]
    found = [f"a sentence of {len(s)} words: {' '.join(s[:5])} ..." for s in sentences if len(s) > LONG]
    return report("long sentences", found)


@review.node
async def find_doubled_words(text: str) -> dict[str, Any]:
    found = [f"a doubled word: {m[0]}" for m in re.finditer(r"\b(\w+)\s+\1\b", text, re.IGNORECASE)]
    return report("doubled words", found)


@review.node
async def find_open_ends(text: str) -> dict[str, Any]:
    found = [f"an open end: {line.strip()}" for line in text.splitlines() if re.search(r"\b(TODO|FIXME|TBD)\b", line)]
    return report("open ends", found)


def report(check: str, found: list[str]) -> dict[str, Any]:
    print(f"checked for {check}: {len(found)} found")
    return {"findings": {check: found}}


@review.node
async def weigh(article: Article) -> None:
    print(f"weighed {len(article.doubts)} findings")


@review.node
def publish(article: Article) -> dict[str, str]:
    """Put the text into its place in one step, so that nobody sees half of it, also if this is done twice."""
    target = Path(article.folder) / Path(article.source).name
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(".draft")
    draft.write_text(article.text, encoding="utf-8")
    os.replace(draft, target)
    print(f"published {target}")
    return {"published": str(target)}


def merge(article: Article, decision: Decision) -> dict[str, Any]:
    return {"approved": decision.approve, "remarks": [decision.remark] if decision.remark else []}


review.pause("editor", type=Decision, merge=merge)

# ---------------------------------------------------------------- how they are joined
CHECKS = (find_long_sentences, find_doubled_words, find_open_ends)

review.entry(read)
for check in CHECKS:  # at the same time; weigh waits for all of them
    review.edge(read, check)
    review.edge(check, weigh)
review.edge(weigh, "editor", when=lambda article: bool(article.doubts), label="doubtful")
review.edge(weigh, publish, otherwise=True)
review.edge("editor", publish, when=lambda article: article.approved, label="approved")
review.edge("editor", read, otherwise=True, label="to be changed")
review.final(publish)


# ---------------------------------------------------------------- the commands
async def submit(flow: Flowlet, options: argparse.Namespace) -> None:
    article = Article(str(options.article), str(options.folder))
    await come_to_rest(await flow.start(review, article, id=options.article.name))


async def decide(flow: Flowlet, options: argparse.Namespace) -> None:
    handle = flow.handle(options.article.name, review)
    try:
        seen = await count(handle)
        await handle.send("editor", Decision(options.approve, options.remark))
        await come_to_rest(handle, seen)
    except (RunFinished, RunNotFound) as error:
        raise SystemExit(str(error)) from error


async def come_to_rest(handle: Handle[Article], seen: int = 0) -> None:
    """Wait until a run has gone on from where it was, and has ended or waits for somebody; say which."""
    while await count(handle) <= seen or await handle.status() in ("pending", "running"):  # noqa: ASYNC110
        await anyio.sleep(0.01)
    print(f"{handle.id} is {await handle.status()}")


async def count(handle: Handle[Article]) -> int:
    return len([record async for record in handle.history()])


async def show(flow: Flowlet, options: argparse.Namespace) -> None:
    async for run in flow.runs(review):
        print(f"{run.id} is {run.status}")
        found: dict[str, list[str]] = {}
        for step in (await flow.handle(run.id, review).report()).steps.values():
            if isinstance(step.value, dict):
                found |= step.value.get("findings", {})  # of each check, the last
        for finding in [finding for findings in found.values() for finding in findings]:
            print(f"  {finding}")


async def serve(options: argparse.Namespace) -> None:
    async with Flowlet(f"sqlite:///{options.db}", registry=registry) as flow:
        await options.command(flow, options)


def main() -> None:
    parser = argparse.ArgumentParser(description="Have articles checked, decided on and published.")
    parser.add_argument("--db", default="review.db", help="the SQLite file that keeps the work")
    parser.add_argument("--folder", type=Path, default=Path("published"), help="where articles are published")
    commands = parser.add_subparsers(required=True)
    new = commands.add_parser("submit", help="have an article checked")
    new.add_argument("article", type=Path)
    new.set_defaults(command=submit)
    decision = commands.add_parser("decide", help="say what is to be done with an article that waits")
    decision.add_argument("article", type=Path)
    decision.add_argument("--approve", action="store_true", help="publish it as it is")
    decision.add_argument("--remark", default="", help="what the author is to change")
    decision.set_defaults(command=decide)
    commands.add_parser("list", help="show all articles").set_defaults(command=show)
    anyio.run(serve, parser.parse_args())


if __name__ == "__main__":
    main()
