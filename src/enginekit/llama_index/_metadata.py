"""LlamaIndex's metadata from what is known of the engine, each value with its source.

Nothing here does I/O; see `enginekit.kit.known` for what counts, and in which order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginekit import config
from enginekit.errors import ConfigError
from enginekit.kit.known import Known as KnownEngines
from enginekit.kit.known import look

SHARE_OF_WINDOW = 4
"""At most one part in so many is kept free for the answer when no `max_tokens` was set."""
USUAL_ANSWER = 256
"""Tokens kept free for the answer when no `max_tokens` was set: LlamaIndex's own default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Values for `LLMMetadata`, and for each where it came from."""

    values: Mapping[str, Any]
    sources: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the caller set on the instance that decides metadata."""

    context_window: int | None
    max_tokens: int | None
    is_function_calling_model: bool | None
    is_chat_model: bool


def before_connecting(settings: Mapping[str, Any], wishes: Wishes, *, where: str) -> Known:
    """Of an instance that has not been used, from its arguments and the environment.

    Reads no file: what a project file says shows after the first call or `connect()`. `where` is
    how sources call the arguments.
    """
    try:
        layers = config.load(settings, where=where, files=False)
    except ConfigError:  # of a variable; the first call says it aloud
        layers = config.Config(layers={})
    return of(look(layers), wishes)


def of(known: KnownEngines, wishes: Wishes) -> Known:
    """Of what is known."""
    window = known.window(wishes.context_window)
    values: dict[str, Any] = {
        "model_name": known.model.value or "unknown",
        "context_window": window.value,
        "is_chat_model": wishes.is_chat_model,
    }
    sources = {
        "model_name": known.model.origin,
        "context_window": window.origin,
        "is_chat_model": "use_completion_endpoint",
    }
    if wishes.max_tokens:
        values["num_output"], sources["num_output"] = wishes.max_tokens, "max_tokens"
    else:
        values["num_output"] = max(1, min(USUAL_ANSWER, window.value // SHARE_OF_WINDOW))
        sources["num_output"] = "no max_tokens is set; room kept for a usual answer"
    if wishes.is_function_calling_model is not None:
        values["is_function_calling_model"] = wishes.is_function_calling_model
        sources["is_function_calling_model"] = "is_function_calling_model"
    else:
        calls = known.can("tools")
        values["is_function_calling_model"] = calls.value
        sources["is_function_calling_model"] = calls.origin
    return Known(values=values, sources=sources)
