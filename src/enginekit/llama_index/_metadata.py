"""LlamaIndex's metadata from what is known of the engine, each value with its source.

Nothing here talks to a server. Before it has been asked, the context window is the smallest that
the engine is known to start with, never the trained maximum: prompts that are cut to it fit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginekit import catalog, registry
from enginekit.config import PREFIX, split_engines
from enginekit.engine import Engine
from enginekit.errors import EngineKitError
from enginekit.facts.engine import EngineProfile, ServerFacts
from enginekit.kit import route

SMALLEST_WINDOW = 2048
"""Tokens; the smallest window any known engine starts with."""
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
    """What the caller set that decides metadata."""

    model: str | None
    engine: str | None
    base_url: str | None
    context: int | None
    context_window: int | None
    max_tokens: int | None
    is_function_calling_model: bool | None
    is_chat_model: bool


def before_connecting(wishes: Wishes) -> Known:
    """Of an instance that has not been used: cached facts of its server, else the engine's own."""
    wishes = _with_environment(wishes)
    names = split_engines(wishes.engine or "")
    if len(names) != 1:
        return _known(wishes, "", None, None)
    try:
        profile = registry.engine_class(names[0]).profile
    except EngineKitError:
        return _known(wishes, "", None, None)
    address = (wishes.base_url or profile.default_url).rstrip("/").removesuffix("/v1")
    facts = route.known_facts(names[0], address, wishes.model or "")
    return _known(wishes, names[0], profile, facts)


def of_server(wishes: Wishes, engine: Engine, model: str) -> Known:
    """Of a server that has been asked what it is."""
    from dataclasses import replace

    return _known(replace(wishes, model=model), engine.name, engine.profile, engine.facts)


def _with_environment(wishes: Wishes) -> Wishes:
    """The environment's engine, model and address, unless they are for another engine."""
    from dataclasses import replace

    named = os.environ.get(PREFIX + "ENGINE") or None
    if wishes.engine and named and named != wishes.engine:
        return wishes
    return replace(
        wishes,
        engine=wishes.engine or named,
        model=wishes.model or os.environ.get(PREFIX + "MODEL") or None,
        base_url=wishes.base_url or os.environ.get(PREFIX + "BASE_URL") or None,
    )


def _known(
    wishes: Wishes, name: str, profile: EngineProfile | None, facts: ServerFacts | None
) -> Known:
    values: dict[str, Any] = {"model_name": wishes.model or "unknown"}
    sources = {"model_name": "the settings" if wishes.model else "not known before the first call"}
    window, sources["context_window"] = _window(wishes, name, profile, facts)
    values["context_window"] = window
    if wishes.max_tokens:
        values["num_output"], sources["num_output"] = wishes.max_tokens, "max_tokens"
    else:
        values["num_output"] = max(1, min(USUAL_ANSWER, window // SHARE_OF_WINDOW))
        sources["num_output"] = "no max_tokens is set; room kept for a usual answer"
    values["is_chat_model"] = wishes.is_chat_model
    sources["is_chat_model"] = "use_completion_endpoint"
    calls, sources["is_function_calling_model"] = _calls(wishes, name, profile, facts)
    values["is_function_calling_model"] = calls
    return Known(values=values, sources=sources)


def _window(
    wishes: Wishes, name: str, profile: EngineProfile | None, facts: ServerFacts | None
) -> tuple[int, str]:
    if wishes.context_window:
        return wishes.context_window, "context_window, sent with every request"
    card = facts.model(wishes.model) if facts is not None and wishes.model else None
    if facts is not None and facts.context_window:
        return facts.context_window, facts.context_source or f"{name} itself"
    if card is not None and card.context_window:
        return card.context_window, f"{name}'s list of models"
    if profile is None:
        window, source = SMALLEST_WINDOW, "the smallest window any engine starts with"
    elif profile.starts_itself and wishes.context:
        window, source = wishes.context, f"context, for the server that {name} starts"
    else:
        window, source = profile.min_context, f"the smallest window {name} starts with"
    found = catalog.find(wishes.model) if wishes.model else None
    trained = found.spec.context_length if found is not None else 0
    if 0 < trained < window:
        return trained, f"the catalog: {wishes.model} was trained for no more"
    return window, source


def _calls(
    wishes: Wishes, name: str, profile: EngineProfile | None, facts: ServerFacts | None
) -> tuple[bool, str]:
    if wishes.is_function_calling_model is not None:
        return wishes.is_function_calling_model, "is_function_calling_model"
    stated = facts.capabilities.get("tools") if facts is not None else None
    if stated is not None:
        return stated.usable, f"{name} itself"
    if profile is not None:
        capability = profile.capability("tools")
        return capability.usable, f"what is {capability.evidence} of {name}"
    return True, "every engine here can call tools, by a schema if not natively"
