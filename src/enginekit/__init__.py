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
    from enginekit.errors import StreamTruncated as StreamTruncated
    from enginekit.kit.client import Client as Client
    from enginekit.kit.planning import plan as plan
    from enginekit.langchain import EngineKitChat as EngineKitChat
    from enginekit.llama_index import EngineKitLLM as EngineKitLLM

_PUBLIC: dict[str, str] = {
    "Client": "enginekit.kit.client",
    "ContextOverflow": "enginekit.errors",
    "EngineKitChat": "enginekit.langchain",
    "EngineKitError": "enginekit.errors",
    "EngineKitLLM": "enginekit.llama_index",
    "StreamTruncated": "enginekit.errors",
    "plan": "enginekit.kit.planning",
}

_EXTRAS: dict[str, tuple[str, str]] = {
    "enginekit.langchain": ("langchain_core", "langchain"),
    "enginekit.llama_index": ("llama_index", "llama-index"),
}
"""Module to the package it stands on and the extra that brings it."""

__all__ = [
    "Client",
    "ContextOverflow",
    "EngineKitChat",
    "EngineKitError",
    "EngineKitLLM",
    "StreamTruncated",
    "__version__",
    "plan",
]


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'enginekit' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(module), name)
    except ImportError as error:
        package, extra = _EXTRAS.get(module, ("", ""))
        if not package or (error.name or "").partition(".")[0] != package:
            raise
        from enginekit.errors import MissingExtra

        raise MissingExtra(
            f"{name} needs the package {error.name}, which is not installed",
            hint=f"pip install 'enginekit[{extra}]'",
            extra=extra,
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
