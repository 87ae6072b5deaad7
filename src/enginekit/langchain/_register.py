"""Opt-in: teach LangChain's `init_chat_model` the name `enginekit`."""

from __future__ import annotations

import importlib

from enginekit.errors import ConfigError, MissingExtra


def register() -> None:
    """Make `init_chat_model("enginekit:llama3.1")` return an `EngineKitChat`.

    LangChain keeps its providers in a private table without entry points; this writes a row into it,
    so a new release of LangChain may break it. `EngineKitChat(model="llama3.1")` needs none of this.
    Calling it again changes nothing.

    Raises MissingExtra without the package `langchain`, ConfigError when the table is not there.
    """
    try:
        base = importlib.import_module("langchain.chat_models.base")
    except ImportError as error:
        raise MissingExtra(
            "register() extends init_chat_model, which is in the package langchain",
            hint="pip install langchain",
            extra="langchain",
        ) from error
    table = getattr(base, "_BUILTIN_PROVIDERS", None)
    if not isinstance(table, dict):
        raise ConfigError(
            "this release of langchain has no table of providers to extend",
            hint="construct EngineKitChat(model=…) instead of calling init_chat_model",
        )
    table.setdefault(
        "enginekit", ("enginekit.langchain", "EngineKitChat", lambda cls, **kwargs: cls(**kwargs))
    )
