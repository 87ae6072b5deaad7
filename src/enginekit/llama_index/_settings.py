"""What every LlamaIndex class of ours shares: which engine, which model, and the client to it.

Constructing one opens no socket and reads no file; the client is made by the first call. A field
that is left alone is None and is looked up there, in the environment, the project file and the
user's file, so that `enginekit config --origin` and the rules about keys and addresses see where a
value came from.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from enginekit import config
from enginekit.errors import ConfigError, UnknownSetting, describe_choices
from enginekit.kit.client import Client
from enginekit.types import Receipt

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


LIKE = 0.6
"""How alike two names must be, from 0 to 1, for one to be a slip of the other."""


class OmittedSetting(UserWarning):
    """An engine does not have a tuning parameter that was set; the reply's receipt names it too."""


def unknown(name: str, known: Mapping[str, Any] | tuple[str, ...], where: str) -> UnknownSetting:
    """The error for a keyword that does not exist; knows what other libraries call ours."""
    near = _nearest(name, known)
    return UnknownSetting(
        f"{where} does not know {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        hint=None
        if near
        else "a field of the engine's own wire format goes into engine_options={…}",
        name=name,
        near=near,
    )


def _nearest(name: str, known: Mapping[str, Any] | tuple[str, ...]) -> tuple[str, ...]:
    meant = FOREIGN.get(name)
    if meant is not None and meant in known:
        return (meant,)
    near = describe_choices(tuple(known), name, 1)
    return near if near and SequenceMatcher(None, name, near[0]).ratio() >= LIKE else ()


class State:
    """What an instance has learned. A copy of the instance starts with an empty one."""

    __slots__ = ("client", "defaults", "lossy", "memo", "warned")

    def __init__(self) -> None:
        self.client: Client | None = None
        self.lossy: Literal["warn", "error"] = "warn"
        self.defaults: Literal["server", "pinned"] = "server"
        self.warned: set[str] = set()
        self.memo: dict[str, Any] = {}

    def __copy__(self) -> State:
        return State()

    def __deepcopy__(self, memo: Any) -> State:
        return State()

    def __reduce__(self) -> tuple[type[State], tuple[()]]:
        return State, ()

    def __eq__(self, other: object) -> bool:
        # Two instances are equal when their settings are, whatever they have learned.
        return isinstance(other, State)

    __hash__ = None  # type: ignore[assignment]


_lock = threading.Lock()


class Connection(BaseModel):
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

    _state: State = PrivateAttr(default_factory=State)

    _client_fields: ClassVar[tuple[str, ...]] = tuple(
        name for name in config.KEYS if name != "embed_model"
    )

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
                _settle(values, name, values.pop(alias), alias)
        listed = values.pop("engines", None)
        if listed is None and isinstance(values.get("engine"), (list, tuple)):
            listed = values.pop("engine")
        if listed is not None:
            joined = listed if isinstance(listed, str) else ",".join(listed)
            _settle(values, "engine", joined, "engines")
        values.pop("class_name", None)
        for name in values:
            if name not in known:
                raise unknown(name, tuple(known), f"{cls.__name__}(...)")
        return values

    def __copy__(self) -> Self:
        made = super().__copy__()
        made._state = State()
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self._client_fields or name in Connection.model_fields:
            self._state = State()
        elif name in type(self).model_fields:
            self._state.memo = {}

    # -- the client ---------------------------------------------------------------------

    @property
    def client(self) -> Client:
        """The client to the engine; made on first use, shared by threads and event loops."""
        return self._ready()[1]

    def _ready(self) -> tuple[State, Client]:
        state = self._state
        client = state.client
        if client is None:
            with _lock:
                client = state.client
                if client is None:
                    client = self._make_client(self._client_settings())
                    state.lossy = client.config.value("lossy", "warn")
                    state.defaults = client.config.value("defaults", "server")
                    state.client = client
        return state, client

    def _make_client(self, settings: Mapping[str, Any]) -> Client:
        return Client(settings, where=f"{type(self).__name__}(...)")

    def _client_settings(self) -> dict[str, Any]:
        """The settings given as arguments; the rest is left to the other layers."""
        found: dict[str, Any] = {}
        for name in self._client_fields:
            value = getattr(self, name)
            if value is not None:
                found[name] = value.get_secret_value() if isinstance(value, SecretStr) else value
        return found

    def connect(self) -> Self:
        """Find or start the engine and ask it what it is, ahead of the first call.

        Afterwards `metadata` is the server's own. Raises an EngineKitError.
        """
        self._ready()[1].connect()
        return self

    async def aconnect(self) -> Self:
        """As `connect`, without blocking the event loop."""
        await self._ready()[1].aconnect()
        return self

    def close(self) -> None:
        """Let go of a server that enginekit started for this instance. Never needed."""
        client = self._state.client
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """As `close`."""
        self.close()

    def _warn_omitted(self, receipt: Receipt) -> None:
        """One warning per instance for each parameter that the engine does not have."""
        warned = self._state.warned
        for entry in receipt.entries:
            if entry.outcome == "omitted" and entry.field not in warned:
                warned.add(entry.field)
                warnings.warn(
                    f"{receipt.engine} left out {entry.field}: {entry.note or entry.rule}",
                    OmittedSetting,
                    stacklevel=2,
                )


def _settle(values: dict[str, Any], name: str, value: Any, alias: str) -> None:
    """Put the value of an alias under its own name. Raises ConfigError when the two disagree."""
    if value is None:
        return
    if values.get(name) is None:
        values[name] = value
    elif values[name] != value:
        raise ConfigError(f"{name}={values[name]!r} and {alias}={value!r} disagree")
