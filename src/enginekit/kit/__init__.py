"""The composition root: what puts configuration, engines, drivers and launchers together."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enginekit.kit.client import Client as Client
    from enginekit.kit.discover import Found as Found
    from enginekit.kit.discover import discover as discover

_PUBLIC = {
    "Client": "enginekit.kit.client",
    "Found": "enginekit.kit.discover",
    "discover": "enginekit.kit.discover",
}

__all__ = ["Client", "Found", "discover"]


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'enginekit.kit' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
