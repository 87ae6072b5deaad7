"""Opt-in: teach LangChain's `init_chat_model` and `init_embeddings` the name `enginekit`."""

from __future__ import annotations

import importlib
from typing import Any

from enginekit.errors import ConfigError, MissingExtra

_ROWS = {
    "langchain.chat_models.base": ("EngineKitChat", "init_chat_model", "EngineKitChat(model=…)"),
    "langchain.embeddings.base": (
        "EngineKitEmbeddings",
        "init_embeddings",
        "EngineKitEmbeddings(model=…)",
    ),
}
"""Module with a table of providers: our class, what reads the table, and what needs none of this."""


def register() -> None:
    """Make `init_chat_model("enginekit:llama3.1")` return an `EngineKitChat`.

    And `init_embeddings("enginekit:nomic-embed-text")` an `EngineKitEmbeddings`. LangChain keeps its
    providers in private tables without entry points; this writes a row into each, so a new release
    of LangChain may break it. `EngineKitChat(model="llama3.1")` needs none of this. Calling it again
    changes nothing.

    Raises MissingExtra without the package `langchain`, ConfigError when a table is not there.
    """
    tables: list[tuple[dict[str, Any], str]] = []
    for module, (name, reader, instead) in _ROWS.items():
        try:
            base = importlib.import_module(module)
        except ImportError as error:
            raise MissingExtra(
                f"register() extends {reader}, which is in the package langchain",
                hint="pip install langchain",
                extra="langchain",
            ) from error
        table = getattr(base, "_BUILTIN_PROVIDERS", None)
        if not isinstance(table, dict):
            raise ConfigError(
                f"this release of langchain has no table of providers for {reader}",
                hint=f"construct {instead} instead",
            )
        tables.append((table, name))
    for table, name in tables:
        table.setdefault("enginekit", ("enginekit.langchain", name, _make))


def _make(cls: Any, **kwargs: Any) -> Any:
    return cls(**kwargs)
