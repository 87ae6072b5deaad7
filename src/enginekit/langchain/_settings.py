"""What every LangChain class of ours shares: which engine, which model, and the client to it.

Constructing one opens no socket and reads no file; the client is made by the first call. Values
taken from the environment show as attributes but are not handed on as arguments, so that
`enginekit config --origin` and the rules about keys and addresses see where they came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from enginekit.errors import EngineKitError
from enginekit.kit.instance import Instance, State, new_state
from enginekit.kit.keywords import listed_engines, settle, unknown
from enginekit.langchain._errors import dual
from enginekit.langchain._keywords import (
    FOREIGN,
    NEEDLESS,
    EnvSecret,
    EnvText,
    from_environment,
    kept,
    key_from_environment,
)
from enginekit.langchain._profile import Profile


def reraise(error: EngineKitError) -> NoReturn:
    """Raise the error's double, which LangChain's handlers know as well."""
    double = dual(error)
    if double is error:
        raise error
    raise double from error.__cause__


class Connection(Instance, BaseModel):
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
    threads: int | None = None
    """Threads a server that enginekit starts computes with; one per physical core."""
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

    _state: State = PrivateAttr(default_factory=new_state)

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
            settle(values, "model", values.pop("model_name"), "model_name")
        listed_engines(values)
        for name in values:
            if name not in known:
                raise unknown(name, known, f"{cls.__name__}(...)", FOREIGN, NEEDLESS)
        return values

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _OURS or name in type(self)._resets:
            self._state = State()

    _resets: ClassVar[frozenset[str]] = frozenset()

    # -- the client ---------------------------------------------------------------------

    def _counts(self, value: Any) -> bool:
        # What the environment gave is left to its own layer.
        return value is not None and not isinstance(value, (EnvText, EnvSecret))

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
            self.client.connect()
        except EngineKitError as error:
            reraise(error)
        self._learned()
        return self

    async def aconnect(self) -> Self:
        """As `connect`, without blocking the event loop."""
        try:
            await self.client.aconnect()
        except EngineKitError as error:
            reraise(error)
        self._learned()
        return self

    def _learned(self) -> None:
        """The server has been asked what it is; classes with a profile take it over."""


_OURS = frozenset(Connection.model_fields)
