"""Which engines there are: a table of names, and the entry-point group third parties join.

A row is a string, so nothing is imported until an engine is asked for. A package adds its own with

    [project.entry-points."enginekit.engines.v1"]
    myengine = "mypackage.engine:MyEngine"
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from enginekit.errors import ConfigError, describe_choices

if TYPE_CHECKING:
    from enginekit.engine import Engine

GROUP = "enginekit.engines.v1"

_BUILTIN: Mapping[str, str] = MappingProxyType(
    {
        "llamacpp": "enginekit.engines.llamacpp:LlamaCpp",
        "ollama": "enginekit.engines.ollama:Ollama",
        "vllm": "enginekit.engines.vllm:VLLM",
        "rayserve": "enginekit.engines.rayserve:RayServe",
        "tgi": "enginekit.engines.tgi:TGI",
        "mlc": "enginekit.engines.mlc:MLC",
        "sglang": "enginekit.engines.sglang:SGLang",
        "lmstudio": "enginekit.engines.lmstudio:LMStudio",
        "lmdeploy": "enginekit.engines.lmdeploy:LMDeploy",
        "mlxlm": "enginekit.engines.mlxlm:MLXLM",
        "modelrunner": "enginekit.engines.modelrunner:ModelRunner",
    }
)

LAUNCHED: Mapping[str, str] = MappingProxyType({"embedded": "llamacpp"})
"""Names that are an engine plus a launcher: what they are when running."""


@cache
def _table() -> Mapping[str, str]:
    from importlib.metadata import entry_points

    rows = dict(_BUILTIN)
    for entry in entry_points(group=GROUP):
        rows.setdefault(entry.name, entry.value)
    return MappingProxyType(rows)


def names() -> tuple[str, ...]:
    """Every engine name a user can type, launchers first, then in the table's order."""
    return (*LAUNCHED, *_table())


def engine_class(name: str) -> type[Engine]:
    """The class behind a name.

    Raises ConfigError for an unknown name (with the nearest known ones), or when a plugin's module
    cannot be imported (naming it).
    """
    row = _table().get(LAUNCHED.get(name, name))
    if row is None:
        near = describe_choices(names(), name)
        raise ConfigError(
            f"there is no engine {name!r}"
            + (f"; nearest: {', '.join(near)}" if near else "")
            + f". Known: {', '.join(names())}",
        )
    module, _, attribute = row.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"engine {name!r} is registered as {row!r} but that fails: {error}"
        ) from (error)
    return found  # type: ignore[no-any-return]
