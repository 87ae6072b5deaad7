"""What every LlamaIndex class of ours shares: which engine, which model, and the client to it.

Constructing one opens no socket and reads no file; the client is made by the first call. A field
that is left alone is None and is looked up there, in the environment, the project file and the
user's file, so that `enginekit config --origin` and the rules about keys and addresses see where a
value came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from enginekit.kit.instance import Instance, State, new_state
from enginekit.kit.keywords import listed_engines, settle, unknown

FOREIGN: Mapping[str, str] = {
    "num_ctx": "context_window",
    "num_predict": "max_tokens",
    "num_output": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "repetition_window",
    "stop_sequences": "stop",
    "api_base": "base_url",
    "request_timeout": "timeout",
    "extra_body": "engine_options",
    "model_kwargs": "engine_options",
    "generate_kwargs": "engine_options",
    "ollama_additional_kwargs": "engine_options",
    "options": "engine_options",
    "model_id": "model",
    "model_path": "model",
    "n_ctx": "context",
    "reasoning_effort": "reasoning",
    "thinking": "reasoning",
    "think": "reasoning",
    "chat_template_kwargs": "template_options",
    "format": "response_format",
    "query_instruction": "query_prefix",
    "text_instruction": "text_prefix",
}
"""Names that LlamaIndex's other integrations give to our settings."""

_ALIASES: Mapping[str, str] = {"model_name": "model", "additional_kwargs": "engine_options"}
"""Names that are taken as well as ours."""


class Connection(Instance, BaseModel):
    """Settings that say which engine and model, by argument, environment, file or discovery."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    model: str | None = Field(default=None, description="The model; ENGINEKIT_MODEL.")
    engine: str | None = Field(
        default=None,
        description="embedded, llamacpp, ollama, vllm, …; ENGINEKIT_ENGINE. Several, 'vllm,ollama' "
        "(or engines=['vllm', 'ollama']), are tried in order before the first token.",
    )
    base_url: str | None = Field(
        default=None,
        description="http://host:port, https://… or unix:///path; ENGINEKIT_BASE_URL.",
    )
    api_key: SecretStr | None = Field(
        default=None, exclude=True, repr=False, description="ENGINEKIT_API_KEY. Never serialized."
    )
    timeout: float | dict[str, float] | None = Field(
        default=None,
        description="Seconds, or budgets by name: connect, load, first_token, between_tokens, "
        "whole_reply.",
    )
    max_retries: int | None = Field(
        default=None,
        description="Repeats of a request that may succeed when sent again, before the first token "
        "only.",
    )
    cooldown: float | None = Field(
        default=None,
        description="Seconds for which an engine of a list is not asked once it let a call wait in "
        "vain; 30.",
    )
    lossy: Literal["warn", "error"] | None = Field(
        default=None,
        description="What happens to tuning that the engine does not have: a warning (default) or "
        "an error.",
    )
    defaults: Literal["server", "pinned"] | None = Field(
        default=None,
        description="Leave what is unset to the server (default), or send one neutral set.",
    )
    context: int | None = Field(
        default=None, description="Context window, in tokens, of a server that enginekit starts."
    )
    slots: int | None = Field(
        default=None,
        description="How many requests a server that enginekit starts decodes at once.",
    )
    threads: int | None = Field(
        default=None,
        description="Threads a server that enginekit starts computes with; one per physical core.",
    )
    ca_file: str | None = Field(default=None, description="PEM file of authorities to trust.")
    client_cert: str | None = Field(
        default=None, description="PEM file with the certificate and key to present."
    )
    verify: bool | None = Field(default=None, description="False accepts any certificate.")
    proxy: str | None = Field(
        default=None, description="Proxy URL; '' forbids one, None lets the environment decide."
    )
    allow_large_download: bool | None = Field(
        default=None, description="Let library code fetch a model file over 500 MB."
    )
    fetch_images: bool | None = Field(
        default=None,
        description="Fetch images by URL and send their bytes, where the engine takes no URLs.",
    )
    chat_template: str | None = Field(
        default=None, description="Template file for a server that enginekit starts."
    )
    engine_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of the engine's own wire format, sent as they are.",
    )

    _state: State = PrivateAttr(default_factory=new_state)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keywords(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known = cls.model_fields
        if values.keys() <= known.keys() and not isinstance(values.get("engine"), (list, tuple)):
            return values
        values = dict(values)
        for alias, name in _ALIASES.items():
            if alias in values and alias not in known:
                settle(values, name, values.pop(alias), alias)
        listed_engines(values)
        values.pop("class_name", None)
        for name in values:
            if name not in known:
                raise unknown(name, known, f"{cls.__name__}(...)", FOREIGN, {})
        return values

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self._client_fields or name in Connection.model_fields:
            self._state = State()
        elif name in type(self).model_fields:
            self._state.memo = {}

    # -- the client ---------------------------------------------------------------------

    def connect(self) -> Self:
        """Find or start the engine and ask it what it is, ahead of the first call.

        Afterwards `metadata` is the server's own. Raises an EngineKitError.
        """
        self.client.connect()
        return self

    async def aconnect(self) -> Self:
        """As `connect`, without blocking the event loop."""
        await self.client.aconnect()
        return self
