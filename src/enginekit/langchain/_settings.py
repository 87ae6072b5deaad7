"""What every LangChain class of ours shares: which engine, which model, and the client to it.

Constructing one opens no socket and reads no file; the client is made by the first call. Values
taken from the environment show as attributes but are not handed on as arguments, so that
`enginekit config --origin` and the rules about keys and addresses see where they came from.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from enginekit import config
from enginekit.errors import ConfigError, EngineKitError
from enginekit.kit.client import Client
from enginekit.langchain._errors import dual
from enginekit.langchain._keywords import (
    EnvSecret,
    EnvText,
    from_environment,
    kept,
    key_from_environment,
    unknown,
)
from enginekit.langchain._profile import Profile
from enginekit.types import Receipt


def reraise(error: EngineKitError) -> NoReturn:
    """Raise the error's double, which LangChain's handlers know as well."""
    double = dual(error)
    if double is error:
        raise error
    raise double from error.__cause__


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

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: Annotated[str | None, kept] = Field(default_factory=from_environment("model"))
    """The model; `ENGINEKIT_MODEL`. None lets enginekit take the engine's own, or its default.
    `model_name` is accepted as well."""
    engine: Annotated[str | None, kept] = Field(default_factory=from_environment("engine"))
    """`embedded`, `llamacpp`, `ollama`, `vllm`, …; `ENGINEKIT_ENGINE`. Several, `"vllm,ollama"` (or
    `engines=["vllm", "ollama"]`), are tried in order before the first token. None finds one."""
    base_url: Annotated[str | None, kept] = Field(default_factory=from_environment("base_url"))
    """`http://host:port`, `https://…` or `unix:///path`; `ENGINEKIT_BASE_URL`."""
    api_key: Annotated[SecretStr | None, kept] = Field(default_factory=key_from_environment)
    """`ENGINEKIT_API_KEY`. Never shown."""
    timeout: float | dict[str, float] | None = None
    """Seconds, or budgets by name: connect, load, first_token, between_tokens, whole_reply."""
    max_retries: int | None = None
    """Repeats of a request that may succeed when sent again, before the first token only."""
    cooldown: float | None = None
    """Seconds for which an engine of a list is not asked once it let a call wait in vain; 30."""
    lossy: Literal["warn", "error"] | None = None
    """What happens to tuning that the engine does not have: a warning (default), or an error."""
    defaults: Literal["server", "pinned"] | None = None
    """Leave what is unset to the server (default), or send one neutral set everywhere."""
    context: int | None = None
    """Context window, in tokens, of a server that enginekit starts."""
    slots: int | None = None
    """How many requests a server that enginekit starts decodes at once."""
    ca_file: str | None = None
    """PEM file of the authorities to trust."""
    client_cert: str | None = None
    """PEM file with the certificate and key to present."""
    verify: bool | None = None
    """False accepts any certificate."""
    proxy: str | None = None
    """Proxy URL; `""` forbids one. None lets the environment decide."""
    allow_large_download: bool | None = None
    """Let library code fetch a model file over 500 MB."""
    fetch_images: bool | None = None
    """Fetch images by URL and send their bytes, where the engine takes no URLs."""
    chat_template: str | None = None
    """Template file for a server that enginekit starts."""
    engine_options: dict[str, Any] = Field(default_factory=dict)
    """Fields of the engine's own wire format, sent as they are."""

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
        if isinstance(values.get("profile"), Profile):
            values = {name: value for name, value in values.items() if name != "profile"}
        if values.keys() <= known.keys() and not isinstance(values.get("engine"), (list, tuple)):
            return values
        values = dict(values)
        if "model_name" in values:
            name = values.pop("model_name")
            if values.setdefault("model", name) != name:
                raise ConfigError(f"model={values['model']!r} and model_name={name!r} disagree")
        listed = values.pop("engines", None)
        if listed is None and isinstance(values.get("engine"), (list, tuple)):
            listed = values.pop("engine")
        if listed is not None:
            joined = listed if isinstance(listed, str) else ",".join(listed)
            if values.setdefault("engine", joined) != joined:
                raise ConfigError(f"engine={values['engine']!r} and engines={listed!r} disagree")
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
        if name in _OURS or name in type(self)._resets:
            self._state = State()

    _resets: ClassVar[frozenset[str]] = frozenset()

    # -- the client ---------------------------------------------------------------------

    @property
    def client(self) -> Client:
        """The client to the engine; made on first use, shared by threads and event loops."""
        return self._ready().client  # type: ignore[return-value]

    def _ready(self) -> State:
        state = self._state
        if state.client is None:
            with _lock:
                if state.client is None:
                    client = self._make_client(self._client_settings())
                    state.lossy = client.config.value("lossy", "warn")
                    state.defaults = client.config.value("defaults", "server")
                    state.client = client
        return state

    def _make_client(self, settings: Mapping[str, Any]) -> Client:
        return Client(settings, where=f"{type(self).__name__}(...)")

    def _client_settings(self) -> dict[str, Any]:
        """The settings given as arguments; what the environment gave is left to its own layer."""
        found: dict[str, Any] = {}
        for name in self._client_fields:
            value = getattr(self, name)
            if value is None or isinstance(value, (EnvText, EnvSecret)):
                continue
            found[name] = value.get_secret_value() if isinstance(value, SecretStr) else value
        return found

    def _model_name(self, kwargs: Mapping[str, Any]) -> str:
        """The name of the model a call uses, as far as it is known without I/O."""
        named = kwargs.get("model")
        if named:
            return str(named)
        client = self._state.client
        route = client.route if client is not None else None
        if route is not None and route.model:
            return route.model
        return str(self.model or "")

    def connect(self) -> Self:
        """Find or start the engine and ask it what it is, ahead of the first call.

        Afterwards the profile and the context window are the server's own.
        """
        try:
            self._ready().client.connect()  # type: ignore[union-attr]
        except EngineKitError as error:
            reraise(error)
        self._learned()
        return self

    async def aconnect(self) -> Self:
        """As `connect`, without blocking the event loop."""
        try:
            await self._ready().client.aconnect()  # type: ignore[union-attr]
        except EngineKitError as error:
            reraise(error)
        self._learned()
        return self

    def close(self) -> None:
        """Let go of a server that enginekit started for this instance. Never needed."""
        client = self._state.client
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """As `close`."""
        self.close()

    def _learned(self) -> None:
        """The server has been asked what it is; classes with a profile take it over."""

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


class OmittedSetting(UserWarning):
    """An engine does not have a tuning parameter that was set; the reply's receipt names it too."""


_OURS = frozenset(Connection.model_fields)
