"""What can be configured: the store, the limits, and whether flowlet works at all.

Law: a `Config` is a value that is checked when it is made; nothing is read before `Config.load` is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowlet.config.values import BulkConfig, Config, GraphConfig

if TYPE_CHECKING:
    from flowlet.config.catalog import Variable, variables

__all__ = ["BulkConfig", "Config", "GraphConfig", "Variable", "variables"]


def __getattr__(name: str) -> Any:
    """Import what programs seldom ask for when somebody does."""
    if name in ("Variable", "variables"):
        from flowlet.config import catalog

        return getattr(catalog, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
