"""Finding the file that configures flowlet, and reading its sections.

Law: the current directory only, and one file only; what it says is collected with its lines, and wrong things are noted
and not raised, but for a file that cannot be read at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from flowlet.config.documents import Document, Keys, Unreadable
from flowlet.config.toml import read_toml
from flowlet.errors import ConfigError

_SEARCHED = ("flowlet.toml", "application.yaml", "application.yml", "pyproject.toml")
_YAML = (".yaml", ".yml")
_WORKFLOW = re.compile(r"^(?:\{\s*)?[\"']?workflow[\"']?\s*:", re.MULTILINE)


class Source(Struct, frozen=True):
    """A file that configures flowlet.

    Attributes:
        label: how messages name it.
        keys: where its section is; none if all of it is.
    """

    path: Path
    label: str
    keys: Keys
    document: Document

    @property
    def section(self) -> Any:
        """What it says of flowlet."""
        return self.document.at(self.keys)

    def place(self, *keys: str) -> str:
        """Return the file and line of a key in the section."""
        line = self.document.line(self.keys + keys)
        return self.label if line is None else f"{self.label}:{line}"


def find_source() -> Source | None:
    """Return the file in the current directory that configures flowlet.

    Raises:
        ConfigError: there are two, or one cannot be read.
        MissingExtra: it is YAML, and PyYAML is not installed.
    """
    found = [source for name in _SEARCHED if (source := _look(Path(name))) is not None]
    if len(found) > 1:
        names = " and ".join(source.label for source in found)
        raise ConfigError(f"{names} both configure flowlet: keep one, or name one in FLOWLET_CONFIG")
    return found[0] if found else None


def _look(path: Path) -> Source | None:
    """Return a file if it is there and configures flowlet."""
    if not os.path.isfile(path):
        if path.name == "flowlet.toml" and os.path.lexists(path):  # nobody else has one, so it was meant for flowlet
            raise ConfigError(f"{path}: is no file that can be read, and configures nothing: mend it or take it away")
        return None
    text = _text(path)
    # Programs have an application.yaml without flowlet, and no PyYAML.
    if path.suffix in _YAML and not _WORKFLOW.search(text):
        return None
    source = _read(path, text)
    return source if not source.keys or _holds(source) else None


def _holds(source: Source) -> bool:
    outer: Any = source.document.at(source.keys[:-1])
    return isinstance(outer, dict) and source.keys[-1] in outer


def open_source(path: Path, named_by: str) -> Source:
    """Return a file that somebody has named.

    Raises:
        ConfigError: it is not there, cannot be read or says nothing of flowlet.
        MissingExtra: it is YAML, and PyYAML is not installed.
    """
    if not os.path.isfile(path):  # which a name that is too long only makes say no
        what = "is a directory: name the file" if os.path.isdir(path) else "does not exist"
        raise ConfigError(f"{named_by}: {str(path)!r:.200} {what}")
    if path.suffix not in (".toml", *_YAML):
        raise ConfigError(f"{named_by}: {str(path)!r} is of no known format; it takes a .toml, .yaml or .yml file")
    source = _read(path, _text(path))
    if source.keys and not _holds(source):
        form = "[tool.flowlet]" if path.suffix == ".toml" else "workflow:"
        raise ConfigError(f"{source.label}: has no section {form}")
    return source


def find_profile_file(source: Source, profile: str) -> Source | None:
    """Return ``application-<profile>.yaml`` beside ``application.yaml``, if it is there."""
    if source.path.suffix not in _YAML:
        return None
    beside = (source.path.with_name(f"{source.path.stem}-{profile}{suffix}") for suffix in _YAML)
    found = next((path for path in beside if path.is_file()), None)
    return None if found is None else _read(found, _text(found))


def profile_files(source: Source) -> Iterator[str]:
    """Yield the profiles for which there is such a file."""
    if source.path.suffix in _YAML:
        stem = f"{source.path.stem}-"
        for path in sorted(source.path.parent.iterdir()):
            if path.suffix in _YAML and path.stem.startswith(stem):
                yield path.stem.removeprefix(stem)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _read(path: Path, text: str) -> Source:
    is_yaml = path.suffix in _YAML
    if is_yaml:
        from flowlet.config.yaml import read_yaml as read
    else:
        read = read_toml
    try:
        document = read(text)
    except Unreadable as error:
        raise ConfigError(f"{path}:{error.line}: {error.reason}") from error
    keys: Keys = ("workflow",) if is_yaml else ("tool", "flowlet") if path.name == "pyproject.toml" else ()
    return Source(path, str(path), keys, document)
