"""Looking again and again: ``--watch``.

Law: on a terminal the picture is drawn anew in place; elsewhere it is printed when it has changed, and as JSON only
what has changed in it. It ends by itself when there is nothing more to come.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from flowlet.cli.output import Output, cut, to_json
from flowlet.store import Store

_CLEAR = "\x1b[H\x1b[2J\x1b[3J"
_SHORTEST = 0.1
"""Seconds between two looks, however much happens."""


class Picture(msgspec.Struct):
    """What there is to be seen at a moment.

    Attributes:
        things: by what tells them apart, for JSON.
        lines: for people.
        is_over: nothing more will come.
    """

    things: dict[str, Any]
    lines: Sequence[str]
    is_over: bool = False


async def watch(store: Store, output: Output, every: float, look: Callable[[], Awaitable[Picture]]) -> None:
    """Show what ``look`` sees until it is over, or somebody interrupts."""
    seen = await store.watch(-1, 0.0)
    known: dict[str, str] = {}
    while True:
        picture = await look()
        shown = {key: to_json(thing) for key, thing in picture.things.items()}
        if shown != known or not known:
            _show(output, picture, shown, known)
        known = shown
        if picture.is_over:
            return
        time.sleep(_SHORTEST)  # noqa: ASYNC251 - nothing else runs in this loop
        seen = await store.watch(seen, every)


def _show(output: Output, picture: Picture, shown: dict[str, str], known: dict[str, str]) -> None:
    if output.json:
        for key, text in shown.items():
            if known.get(key) != text:
                output.line(picture.things[key])
        for key in known.keys() - shown.keys():
            output.line({"id": key, "gone": True})
    elif output.is_terminal:
        size = shutil.get_terminal_size()
        lines = [*picture.lines[: size.lines - 2]]
        if len(picture.lines) > len(lines):
            lines.append(cut(f"... and {len(picture.lines) - len(lines)} more lines", size.columns))
        sys.stdout.write(_CLEAR)
        output.say("\n".join(lines))
    else:
        output.say("\n".join(picture.lines) + "\n")
    output.flush()
