"""The values of a configuration.

Law: frozen, and checked when made; the defaults are the documented ones. Nothing is read here.
"""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec
from msgspec import Struct

from flowlet.config import kinds
from flowlet.config.kinds import Kind, Setting
from flowlet.core.retry import Seconds
from flowlet.errors import ConfigError


class Checked(Struct, frozen=True, kw_only=True):
    """Values that are checked when they are made."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        for name, setting in settings(type(self)).items():
            value = getattr(self, name)
            try:
                kept = setting.kind.convert(value)
            except ValueError:
                problems.append(f"{name}: {wrong(setting.kind, shown(value))}")
            else:
                if kept is not value:
                    msgspec.structs.force_setattr(self, name, kept)
        for name, section in sections(type(self)).items():
            if not isinstance(getattr(self, name), section):
                problems.append(f"{name}: must be a {section.__name__}, not {getattr(self, name)!r:.80}")
        refuse(problems, type(self).__name__)


class BulkConfig(Checked, frozen=True, kw_only=True):
    """What bulk operations do when neither the call nor the step says anything of it. Times are in seconds.

    Example:
        >>> from flowlet.config import BulkConfig
        >>> BulkConfig(retry_attempts=1).max_concurrency
        5
    """

    batch_size: Annotated[int, Setting(kinds.COUNT, "items of one list, where the function takes lists")] = 10
    max_concurrency: Annotated[int, Setting(kinds.COUNT, "calls under way at once")] = 5
    timeout: Annotated[Seconds | None, Setting(kinds.TIME_LIMIT, "time for a whole bulk operation")] = 300.0
    retry_attempts: Annotated[int, Setting(kinds.COUNT, "how often an item is tried, the first time included")] = 3
    retry_delay: Annotated[
        Seconds, Setting(kinds.SECONDS, "wait before an item is tried again; doubled each further time")
    ] = 1.0
    enable_progress_tracking: Annotated[
        bool, Setting(kinds.BOOLEAN, "log how far bulk operations are; `progress=` of a call shows it even so")
    ] = True
    pipeline_timeout: Annotated[
        Seconds | None, Setting(kinds.TIME_LIMIT, "time that a process may spend on a pipeline")
    ] = 300.0


class GraphConfig(Checked, frozen=True, kw_only=True):
    """What graphs do when their definition says nothing of it. Times are in seconds.

    Example:
        >>> from flowlet.config import GraphConfig
        >>> GraphConfig(node_timeout=30).node_timeout
        30.0
    """

    max_iterations: Annotated[int, Setting(kinds.COUNT, "how often a node of a cycle may be executed in one run")] = 100
    node_timeout: Annotated[Seconds | None, Setting(kinds.TIME_LIMIT, "time for an attempt of a node")] = None
    total_timeout: Annotated[Seconds | None, Setting(kinds.TIME_LIMIT, "time that a process may spend on a graph")] = (
        None
    )
    max_parallel_branches: Annotated[int | None, Setting(kinds.LIMIT, "nodes that execute at once")] = None


class Config(Checked, frozen=True, kw_only=True, eq=False):
    """What a `Flowlet` goes by, where its own arguments do not say otherwise.

    Made directly it has the defaults and reads nothing; `load` reads the environment and a file.

    Raises:
        ConfigError: values are not allowed; ``.problems`` has a sentence for each.

    Example:
        >>> from flowlet import Flowlet
        >>> from flowlet.config import BulkConfig, Config
        >>> config = Config(store="memory://", bulk=BulkConfig(max_concurrency=20))
        >>> flow = Flowlet(config=config)
        >>> flow.config.bulk.max_concurrency
        20
    """

    enabled: Annotated[bool, Setting(kinds.BOOLEAN, "false: start nothing, recover nothing, open no store")] = True
    store: Annotated[str, Setting(kinds.TEXT, "where history is kept")] = "memory://"
    name: Annotated[str | None, Setting(kinds.NAME, "what this process is called where owners are named")] = None
    lease: Annotated[Seconds, Setting(kinds.LEASE, "time within which others notice that a process is dead")] = 10.0
    grace: Annotated[Seconds, Setting(kinds.SECONDS, "time that running steps get when the process leaves")] = 5.0
    drain_on_sigterm: Annotated[bool, Setting(kinds.BOOLEAN, "drain before SIGTERM ends the process")] = True
    max_payload: Annotated[
        int | None, Setting(kinds.BYTES, "most bytes of one record, signal or snapshot; none: what the store takes")
    ] = None
    bulk: BulkConfig = msgspec.field(default_factory=BulkConfig)
    graph: GraphConfig = msgspec.field(default_factory=GraphConfig)
    _origins: Mapping[str, str] = {}

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        profile: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Return what the environment and one file say; the environment wins, and what neither says is the default.

        Without a path, the file is the one that ``FLOWLET_CONFIG`` names, or else the one in the current directory that
        configures flowlet: ``flowlet.toml``, ``application.yaml`` or ``application.yml`` with a section ``workflow:``,
        or ``pyproject.toml`` with a table ``[tool.flowlet]``. Two of them at once are an error, and none is fine.

        Args:
            path: a file, TOML or YAML by its name.
            profile: applies the section ``profiles.<profile>`` of the file, and ``application-<profile>.yaml`` beside
                ``application.yaml``, over the rest; by default what ``FLOWLET_PROFILE`` says.
            environ: the environment, by default that of the process.

        Raises:
            ConfigError: something there is not allowed, is not known, or cannot be read; all of it is in ``.problems``.
            MissingExtra: the file is YAML, and PyYAML is not installed.

        Example:
            >>> from flowlet.config import Config
            >>> Config.load(environ={"FLOWLET_LEASE": "1m30s", "FLOWLET_BATCH_SIZE": "50"}).lease
            90.0
        """
        from flowlet.config.loading import load  # which needs what most programs do not

        return load(cls, path, profile=profile, environ=environ)

    def origin(self, name: str) -> str | None:
        """Return where a setting was found, such as ``"FLOWLET_STORE"`` or ``"flowlet.toml:3"``.

        Args:
            name: as in `flowlet.config.variables`, such as ``"bulk.timeout"``.

        Returns:
            None for a default, or for what was set in Python.
        """
        return self._origins.get(name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__struct_fields__ if name != "_origins")

    def __repr__(self) -> str:
        names = [name for name in self.__struct_fields__ if name != "_origins"]
        return f"Config({', '.join(f'{name}={shown(getattr(self, name))}' for name in names)})"


@functools.cache
def settings(cls: type[Checked]) -> Mapping[str, Setting]:
    """Return what is known of the fields of a class, those that hold further ones left out."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
        name: setting
        for name in cls.__struct_fields__
        for setting in getattr(hints[name], "__metadata__", ())
        if isinstance(setting, Setting)
    }


@functools.cache
def sections(cls: type[Checked]) -> Mapping[str, type[Checked]]:
    """Return the fields of a class that hold further ones."""
    hints = typing.get_type_hints(cls)
    return {n: hints[n] for n in cls.__struct_fields__ if isinstance(hints[n], type) and issubclass(hints[n], Checked)}


def shown(value: object) -> str:
    """Return a value for a message: short, and without the password of a URL, also one that is among its options."""
    if isinstance(value, str):
        value = re.sub(r"([?&]\w*password=)[^&#]*", r"\1***", re.sub("//.*@", "//***@", value), flags=re.IGNORECASE)
    return repr(value)[:200]


def wrong(kind: Kind, given: str) -> str:
    """Say that a value is not of its kind."""
    return f"takes {kind.takes}, not {given}"


def refuse(problems: list[str], where: str) -> None:
    """Raise what is wrong, all of it at once.

    Raises:
        ConfigError: there is something.
    """
    if len(problems) == 1:
        raise ConfigError(f"{where}: {problems[0]}", problems)
    if problems:
        raise ConfigError(f"{where}: {len(problems)} problems:\n" + "\n".join(f"  - {p}" for p in problems), problems)
