"""LangChain's model profile from what is known of the engine, each value with its origin.

Nothing here does I/O; see `enginekit.kit.known` for what counts, and in which order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginekit import config
from enginekit.errors import ConfigError
from enginekit.facts.engine import Feature
from enginekit.kit.known import Known, look

_KEYS: Mapping[str, Feature] = {
    "tool_calling": "tools",
    "tool_choice": "tool_choice_required",
    "tool_call_streaming": "stream_tools",
    "reasoning_output": "reasoning",
    "image_inputs": "images",
    "image_url_inputs": "image_urls",
    "audio_inputs": "audio",
}
"""Profile key to the feature that decides it."""

_ALWAYS: Mapping[str, Any] = {
    "text_inputs": True,
    "text_outputs": True,
    "temperature": True,
    "pdf_inputs": False,
    "pdf_tool_message": False,
    "video_inputs": False,
    "image_outputs": False,
    "audio_outputs": False,
    "video_outputs": False,
    "structured_output": False,
}
_AGENTS = (
    "agents read this as schema and tools in one request, which no engine can do; they force a tool "
    "instead. with_structured_output() constrains decoding all the same"
)
_ALWAYS_ORIGINS = {
    key: _AGENTS if key == "structured_output" else "the same on every engine" for key in _ALWAYS
}


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


def before_connecting(
    settings: Mapping[str, Any], context_window: int | None, *, where: str
) -> Profile:
    """The profile of an instance that has not been used, from its arguments and the environment.

    Reads no file: what a project file says shows after the first call or `connect()`. `where` is
    how origins call the arguments.
    """
    try:
        layers = config.load(settings, where=where, files=False)
    except ConfigError:  # of a variable; the first call says it aloud
        layers = config.Config(layers={})
    return of(look(layers), context_window)


def of(known: Known, context_window: int | None) -> Profile:
    """The profile of what is known."""
    made = Profile(_ALWAYS)
    made.origins.update(_ALWAYS_ORIGINS)
    if known.model.value:
        made.put("name", known.model.value, known.model.origin)
    window = known.window(context_window)
    made.put("max_input_tokens", window.value, window.origin)
    for key, feature in _KEYS.items():
        fact = known.can(feature)
        made.put(key, fact.value, fact.origin)
    return made
