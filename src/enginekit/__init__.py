"""enginekit: the layer between applications and self-hosted LLM engines.

Importing this package loads no third-party module and touches no network; every public name is
resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from enginekit._version import __version__

if TYPE_CHECKING:
    from enginekit.errors import ContextOverflow as ContextOverflow
    from enginekit.errors import EngineKitError as EngineKitError

_PUBLIC: dict[str, str] = {
    "EngineKitError": "enginekit.errors",
    "ContextOverflow": "enginekit.errors",
}

__all__ = ["ContextOverflow", "EngineKitError", "__version__"]


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'enginekit' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
