"""The client that the integrations and the CLI stand on: requests in, replies out, any engine.

A client is cheap to build and does nothing until its first call: that one reads the configuration,
finds or starts the engine and asks it what it is. It may be shared by threads and event loops,
copied and pickled; sockets live in the drivers, not here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from enginekit import config as configuration
from enginekit.engine import Engine, Operation
from enginekit.errors import ConfigError, NoEngine
from enginekit.facts.engine import Load, ModelCard, ServerFacts
from enginekit.kit import embedded
from enginekit.kit.calls import DEFAULT_RETRIES, Calls
from enginekit.kit.describe import Description, describe
from enginekit.kit.known import Known, look
from enginekit.kit.route import Route
from enginekit.operations import Folder
from enginekit.types import (
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    Ranking,
    Reply,
    RerankRequest,
)

if TYPE_CHECKING:
    from enginekit.drivers.async_ import AsyncDriver, AsyncStream
    from enginekit.drivers.sync import SyncDriver, SyncStream

_T = TypeVar("_T")


class Client(Calls):
    """Talks to whatever engine the settings say.

    Args:
        settings: any of `enginekit.config.KEYS`; None values count as not given. `engine` may list
            several, `"vllm,ollama"`: the first that can answer does.
        progress: told about anything that takes over a second (a download, a start).
        where: how origins call the arguments (`"EngineKitChat(...)"`).
        embeds: a server that has to be started is one that embeds and does not chat.

    Raises UnknownSetting for a setting that does not exist (naming the nearest one) and ConfigError
    for one of the wrong type. Opens no socket and reads no file.
    """

    def __init__(
        self,
        settings: Mapping[str, Any] | None = None,
        *,
        progress: embedded.Progress | None = None,
        where: str = "argument",
        embeds: bool = False,
    ) -> None:
        self._settings = {k: v for k, v in (settings or {}).items() if v is not None}
        for name in self._settings:
            if name not in configuration.KEYS:
                raise configuration.unknown_setting(name, configuration.KEYS, where)
        self._where = where
        self._embeds = embeds
        self._progress = progress
        self._start_empty()

    # -- copying: a copy finds its own way to the engine -----------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {"_settings": self._settings, "_where": self._where, "_embeds": self._embeds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._progress = None
        self._start_empty()

    # -- what is known without I/O ---------------------------------------------------------

    @property
    def settings(self) -> Mapping[str, Any]:
        """The arguments this client was built with."""
        return self._settings

    @property
    def route(self) -> Route | None:
        """The engine that was resolved first, or None before the first call."""
        for route in self._routes:
            if route is not None:
                return route
        return None

    @property
    def engine(self) -> Engine | None:
        """The engine in use, or None before the first call."""
        route = self.route
        return None if route is None else route.engine

    @property
    def facts(self) -> ServerFacts | None:
        """What the server said of itself, or None before the first call. Never does I/O."""
        return None if self.engine is None else self.engine.facts

    @property
    def all_facts(self) -> tuple[ServerFacts | None, ...]:
        """`facts` of each engine of the list; empty before the first call. Never does I/O."""
        return tuple([None if route is None else route.engine.facts for route in self._routes])

    def known(self) -> Known:
        """What is known of engine and model now, each value with its origin. Asks no server."""
        return look(self.config, self._routes)

    @property
    def model(self) -> str:
        """The model a request gets that names none; "" when that is not known yet."""
        if self.route is not None and self.route.model:
            return self.route.model
        return str(self.config.value("model") or "")

    def describe(self) -> Description:
        """Engine, version, address, process, wire and model in use; connects if need be."""
        if self.route is None:
            self.connect()
        route = self.route
        if route is None:
            raise NoEngine("no engine is in use")
        return describe(route)

    # -- blocking --------------------------------------------------------------------------

    def chat(self, request: ChatRequest | CompletionRequest) -> Reply:
        """One whole reply. Raises an EngineKitError; never returns a cut answer."""
        stream = self._run(self._open(request, stream=False))
        folder = Folder()
        for chunk in stream:
            folder.add(chunk)
        return folder.reply(stream.receipt)

    def stream(self, request: ChatRequest | CompletionRequest) -> SyncStream:
        """A reply as it comes; returns once the first chunk is there."""
        stream: SyncStream = self._run(self._open(request, stream=True))
        return stream

    def connect(self) -> ServerFacts | None:
        """Find or start the engine and ask it what it is, ahead of the first call."""
        return self._run(self._connect())

    def embed(self, request: EmbedRequest) -> Embeddings:
        """Vectors for texts, in their order."""
        return self._run(self._embed(request))

    def rerank(self, request: RerankRequest) -> Ranking:
        """Documents by relevance."""
        return self._run(self._rerank(request))

    def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt after the chat template, by the engine's own tokenizer."""
        return self._run(self._count(request))[0]

    def count_by(self, what: str | ChatRequest) -> tuple[int, str]:
        """Tokens of a text, or of a prompt after the chat template, and which engine counted."""
        if not isinstance(what, str):
            return self._run(self._count(what))
        ids, engine = self._run(self._ids(what, None))
        return len(ids), engine

    def tokenize(self, text: str, *, model: str | None = None) -> tuple[int, ...]:
        """Token ids of a text, by the engine's own tokenizer."""
        return self._run(self._ids(text, model))[0]

    def detokenize(self, tokens: Sequence[int], *, model: str | None = None) -> str:
        """Text of token ids."""
        return self._run(self._text(tokens, model))[0]

    def models(self) -> tuple[ModelCard, ...]:
        """The models the server lists."""
        return self._run(self._on_engine(lambda e, _: e.models()))[0]

    def load_state(self) -> Load:
        """Queue depth, running requests and cache use of the server."""
        return self._run(self._on_engine(lambda e, _: e.load_state(), feature="metrics"))[0]

    def load(self, model: str | None = None) -> None:
        """Load a model into the server's memory, or wake a server that sleeps."""
        self._run(self._on_engine(lambda e, m: e.load(m), model, "load"))

    def unload(self, model: str | None = None) -> None:
        """Take a model out of the server's memory, where the server can."""
        self._run(self._on_engine(lambda e, m: e.unload(m), model, "unload"))

    def run(self, operation: Operation[_T]) -> _T:
        """Run any operation on the blocking driver, without resolving an engine first."""
        result: _T = _sync_driver().run(operation)
        return result

    def close(self) -> None:
        """Let go of a server that enginekit started; the last one out stops it. Never needed."""
        routes, self._routes = self._routes, [None] * len(self._routes)
        self._looked = False
        for route in routes:
            if route is not None:
                for one in (route, *route.others.values()):
                    if one.lease is not None:
                        one.lease.release()

    # -- async -----------------------------------------------------------------------------

    async def achat(self, request: ChatRequest | CompletionRequest) -> Reply:
        """As `chat`, without blocking the event loop."""
        stream = await self._arun(self._open(request, stream=False))
        folder = Folder()
        async for chunk in stream:
            folder.add(chunk)
        return folder.reply(stream.receipt)

    async def astream(self, request: ChatRequest | CompletionRequest) -> AsyncStream:
        """As `stream`: returns an async iterator once the first chunk is there."""
        stream: AsyncStream = await self._arun(self._open(request, stream=True))
        return stream

    async def aconnect(self) -> ServerFacts | None:
        """As `connect`."""
        return await self._arun(self._connect())

    async def aembed(self, request: EmbedRequest) -> Embeddings:
        """As `embed`."""
        return await self._arun(self._embed(request))

    async def arerank(self, request: RerankRequest) -> Ranking:
        """As `rerank`."""
        return await self._arun(self._rerank(request))

    async def acount_tokens(self, request: ChatRequest) -> int:
        """As `count_tokens`."""
        return (await self._arun(self._count(request)))[0]

    async def atokenize(self, text: str, *, model: str | None = None) -> tuple[int, ...]:
        """As `tokenize`."""
        return (await self._arun(self._ids(text, model)))[0]

    async def amodels(self) -> tuple[ModelCard, ...]:
        """As `models`."""
        return (await self._arun(self._on_engine(lambda e, _: e.models())))[0]

    async def adetokenize(self, tokens: Sequence[int], *, model: str | None = None) -> str:
        """As `detokenize`."""
        return (await self._arun(self._text(tokens, model)))[0]

    async def aload_state(self) -> Load:
        """As `load_state`."""
        operation = self._on_engine(lambda e, _: e.load_state(), feature="metrics")
        return (await self._arun(operation))[0]

    async def aload(self, model: str | None = None) -> None:
        """As `load`."""
        await self._arun(self._on_engine(lambda e, m: e.load(m), model, "load"))

    async def aunload(self, model: str | None = None) -> None:
        """As `unload`."""
        await self._arun(self._on_engine(lambda e, m: e.unload(m), model, "unload"))

    async def arun(self, operation: Operation[_T]) -> _T:
        """As `run`, on the async driver."""
        result: _T = await _async_driver().run(operation)
        return result

    # -- running ---------------------------------------------------------------------------

    def _run(self, operation: Operation[_T]) -> _T:
        driver = _sync_driver()
        if not self._settled:
            with self._lock:
                if not self._settled:
                    driver.run(self._settle())
        result: _T = driver.run(operation)
        return result

    async def _arun(self, operation: Operation[_T]) -> _T:
        try:
            asyncio.get_running_loop()
        except RuntimeError as error:
            raise ConfigError(
                "async calls run on asyncio, and no asyncio event loop is running here",
                hint="under trio call the blocking method in a thread: "
                "await trio.to_thread.run_sync(…)",
            ) from error
        driver = _async_driver()
        if not self._settled:
            loop = asyncio.get_running_loop()
            lock = self._loop_locks.get(loop)
            if lock is None:
                lock = self._loop_locks[loop] = asyncio.Lock()
            async with lock:
                if not self._settled:
                    await driver.run(self._settle())
        result: _T = await driver.run(operation)
        return result


def _sync_driver() -> SyncDriver:
    from enginekit.drivers import sync

    return sync.default()


def _async_driver() -> AsyncDriver:
    from enginekit.drivers import async_

    return async_.default()


__all__ = ["DEFAULT_RETRIES", "Client", "NoEngine"]
