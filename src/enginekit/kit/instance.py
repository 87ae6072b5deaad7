"""What every class of both frameworks shares: the client behind an instance, made on first use.

No framework and no pydantic here: `Instance` is mixed into the frameworks' own base classes, which
hold the settings as fields.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Literal, Self

from enginekit import config
from enginekit.kit.client import Client
from enginekit.types import Receipt


class OmittedSetting(UserWarning):
    """An engine does not have a tuning parameter that was set; the reply's receipt names it too."""


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


def new_state() -> State:
    """The state of an instance that is constructed."""
    _load_drivers()
    return State()


@cache
def _load_drivers() -> None:
    """Import what talks to servers: a tenth of a second, most of it aiohttp.

    The first construction of a process pays it, at start-up. Left to the first call, it would hold
    up the event loop, and with it every other call that begins at the same moment.
    """
    from enginekit.drivers import async_, sync

    del async_, sync


_lock = threading.Lock()


class Instance:
    """The client of an instance whose fields are settings; mix in before the framework's base.

    The other base has a field for each of `_client_fields` and a private `_state`.
    """

    _state: State

    _client_fields: ClassVar[tuple[str, ...]] = tuple(
        name for name in config.KEYS if name != "embed_model"
    )

    def __copy__(self) -> Self:
        made: Self = super().__copy__()  # type: ignore[misc]
        made._state = State()
        return made

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
        given = ((name, getattr(self, name)) for name in self._client_fields)
        return {name: _plain(value) for name, value in given if self._counts(value)}

    def _counts(self, value: Any) -> bool:
        """Whether the value of a field was given as an argument."""
        return value is not None

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


def _plain(value: Any) -> Any:
    reveal = getattr(value, "get_secret_value", None)
    return value if reveal is None else reveal()


def embedding_client(settings: Mapping[str, Any], where: str) -> Client:
    """A client for embeddings: `embed_model` of any layer stands in for a model not given."""
    client = Client(settings, where=where, embeds=True)
    if "model" in settings:
        return client
    own = client.config.find("embed_model")
    if own is None:
        return client
    return Client({**settings, "model": own.value}, where=where, embeds=True)
