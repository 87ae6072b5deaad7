"""LangChain's model profile from what is known of the engine, each value with its origin.

Nothing here does I/O. Before the server has been asked, the context window is the smallest that the
engine is known to start with, never the trained maximum: a caller that trusts it loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginekit import registry
from enginekit.config import split_engines
from enginekit.engine import Engine
from enginekit.errors import EngineKitError
from enginekit.facts.engine import Capability, EngineProfile, Feature, ServerFacts
from enginekit.kit import route

_KEYS: Mapping[str, Feature] = {
    "tool_calling": "tools",
    "tool_choice": "tool_choice_required",
    "tool_call_streaming": "stream_tools",
    "reasoning_output": "reasoning",
    "image_inputs": "images",
    "image_url_inputs": "image_urls",
    "audio_inputs": "audio",
}
"""Profile key to the capability that decides it."""

_PLAIN = {"text_inputs": True, "text_outputs": True, "temperature": True, "pdf_inputs": False}
_AGENTS = (
    "agents read this as schema and tools in one request, which no engine can do; they force a tool "
    "instead. with_structured_output() constrains decoding all the same"
)
SMALLEST_WINDOW = 2048
"""Tokens; the smallest window any known engine starts with."""


class Profile(dict[str, Any]):
    """A value for `BaseChatModel.profile` that was not given by the caller.

    `origins` says for each key where its value came from. A class of its own, so that an instance
    rebuilt from another's attributes (`configurable_fields`) does not take it for the caller's.
    """

    def __init__(self, values: Any = ()) -> None:
        super().__init__(values)
        self.origins: dict[str, str] = {}

    def put(self, key: str, value: Any, origin: str) -> None:
        """Note one value."""
        self[key] = value
        self.origins[key] = origin


def before_connecting(*, engine: str | None, base_url: str | None, model: str | None) -> Profile:
    """The profile of an instance that has not been used: cached facts, else the engine's own."""
    made = _plain()
    names = split_engines(engine or "")
    if len(names) != 1:
        made.put("max_input_tokens", SMALLEST_WINDOW, "the smallest window any engine starts with")
        return made
    try:
        known = registry.engine_class(names[0]).profile
    except EngineKitError:
        made.put("max_input_tokens", SMALLEST_WINDOW, "the smallest window any engine starts with")
        return made
    address = (base_url or known.default_url).rstrip("/").removesuffix("/v1")
    facts = route.known_facts(names[0], address, model or "")
    _fill(made, names[0], known, facts)
    return made


def of_server(engine: Engine, model: str) -> Profile:
    """The profile of a server that has been asked what it is."""
    made = _plain()
    _fill(made, engine.name, engine.profile, engine.facts, model)
    return made


def _plain() -> Profile:
    made = Profile()
    for key, value in _PLAIN.items():
        made.put(key, value, "the same on every engine")
    made.put("structured_output", False, _AGENTS)
    return made


def _fill(
    made: Profile, name: str, known: EngineProfile, facts: ServerFacts | None, model: str = ""
) -> None:
    card = facts.model(model) if facts is not None and model else None
    if facts is not None and facts.context_window is not None:
        source = facts.context_source or f"{name} itself"
        made.put("max_input_tokens", facts.context_window, source)
    elif card is not None and card.context_window is not None:
        made.put("max_input_tokens", card.context_window, f"{name}'s list of models")
    else:
        made.put("max_input_tokens", known.min_context, f"the smallest window {name} starts with")
    for key, feature in _KEYS.items():
        stated = facts.capabilities.get(feature) if facts is not None else None
        capability: Capability = stated or known.capability(feature)
        if capability.support == "server":
            continue
        made.put(
            key,
            capability.usable,
            f"{name} itself" if stated is not None else f"what is {capability.evidence} of {name}",
        )
