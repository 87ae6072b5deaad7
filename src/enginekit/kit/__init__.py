"""The composition root: what puts configuration, engines, drivers and launchers together."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enginekit.kit.client import Client as Client
    from enginekit.kit.discover import Found as Found
    from enginekit.kit.discover import discover as discover
    from enginekit.kit.openai_sdk import async_openai_client as async_openai_client
    from enginekit.kit.openai_sdk import openai_client as openai_client

_PUBLIC = {
    "Client": "enginekit.kit.client",
    "Found": "enginekit.kit.discover",
    "async_openai_client": "enginekit.kit.openai_sdk",
    "discover": "enginekit.kit.discover",
    "openai_client": "enginekit.kit.openai_sdk",
}

__all__ = ["Client", "Found", "async_openai_client", "discover", "openai_client"]


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'enginekit.kit' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
