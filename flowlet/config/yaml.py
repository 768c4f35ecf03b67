"""YAML files: their content, and the lines on which its keys stand.

Law: PyYAML's safe loader and nothing else of it; it is imported when there is such a file.
"""

from __future__ import annotations

from typing import Any

from flowlet.config.documents import Document, Keys, Unreadable
from flowlet.errors import MissingExtra


def read_yaml(text: str) -> Document:
    """Read a file of one document.

    Raises:
        Unreadable: it is no YAML, or has what the safe loader refuses.
        MissingExtra: PyYAML is not installed.
    """
    try:
        import yaml  # type: ignore[import-untyped]  # has no types of its own
    except ImportError as error:
        raise MissingExtra("reading YAML needs PyYAML; install it with: pip install 'flowlet[yaml]'") from error
    try:
        content = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Unreadable(error.problem or str(error), 1 if mark is None else mark.line + 1) from error
    except RecursionError as error:
        raise Unreadable("nested too deeply", 1) from error
    except yaml.YAMLError as error:
        raise Unreadable(str(error), 1) from error
    lines: dict[Keys, int] = {}
    twice: list[tuple[Keys, int]] = []
    _note(node, (), lines, twice)
    return Document(content, lines, tuple(twice))


_DEEPEST = 5
"""Levels whose lines are noted: no setting stands deeper, and a node may hold itself."""


def _note(node: Any, keys: Keys, lines: dict[Keys, int], twice: list[tuple[Keys, int]]) -> None:
    if getattr(node, "id", None) != "mapping" or len(keys) >= _DEEPEST:
        return
    seen: set[str] = set()
    for key, value in node.value:
        if key.id != "scalar":
            continue
        path, line = (*keys, key.value), key.start_mark.line + 1
        if key.value in seen:
            twice.append((path, line))
        seen.add(key.value)
        lines[path] = line
        _note(value, path, lines, twice)
