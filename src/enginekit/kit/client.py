"""The client that the integrations and the CLI stand on: requests in, replies out, any engine.

A client is cheap to build and does nothing until its first call: that one reads the configuration,
finds or starts the engine and asks it what it is. It may be shared by threads and event loops,
copied and pickled; sockets live in the drivers, not here.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from enginekit import config as configuration
from enginekit import registry
from enginekit.config import Config
from enginekit.engine import Budgets, Engine, Operation, Sleep
from enginekit.errors import (
    ConfigError,
    ContextOverflow,
    EngineError,
    EngineKitError,
    NoEngine,
    Unreachable,
    Unsupported,
)
from enginekit.facts.engine import Load, ModelCard, ServerFacts
from enginekit.fallback import open_first
from enginekit.kit import embedded, images
from enginekit.kit.describe import Description, describe
from enginekit.kit.known import Known, look
from enginekit.kit.route import Route, explained, forget_route, probe_once, resolve, roomier
from enginekit.operations import Folder, open_reply
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

DEFAULT_RETRIES = 2


class Client:
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

    def _start_empty(self) -> None:
        self._config: Config | None = None
        self._routes: list[Route | None] = []
        self._names: list[str | None] = []
        self._budgets: Budgets | None = None
        self._retries = DEFAULT_RETRIES
        self._looked = False
        self._lock = threading.Lock()
        self._loop_locks: weakref.WeakKeyDictionary[Any, asyncio.Lock] = weakref.WeakKeyDictionary()

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
    def config(self) -> Config:
        """All layers of settings; files are read on first use."""
        if self._config is None:
            self._config = configuration.load(self._settings, where=self._where)
        return self._config

    @property
    def budgets(self) -> Budgets:
        """How long each wait may take."""
        if self._budgets is None:
            try:
                self._budgets = Budgets.of(self.config.value("timeout"))
            except ValueError as error:
                setting = self.config.find("timeout")
                place = setting.where if setting else "timeout"
                raise ConfigError(f"{place}: {error}") from error
        return self._budgets

    @property
    def route(self) -> Route | None:
        """The engine that was resolved first, or None before the first call."""
        return next((route for route in self._routes if route is not None), None)

    @property
    def engine(self) -> Engine | None:
        """The engine in use, or None before the first call."""
        return None if self.route is None else self.route.engine

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
        return self._run(self._count(request))

    def tokenize(self, text: str, *, model: str | None = None) -> tuple[int, ...]:
        """Token ids of a text, by the engine's own tokenizer."""
        return self._run(self._on_engine(lambda e, m: e.tokenize(text, model=m), model))

    def detokenize(self, tokens: Sequence[int], *, model: str | None = None) -> str:
        """Text of token ids."""
        return self._run(self._on_engine(lambda e, m: e.detokenize(tokens, model=m), model))

    def models(self) -> tuple[ModelCard, ...]:
        """The models the server lists."""
        return self._run(self._on_engine(lambda e, _: e.models()))

    def load_state(self) -> Load:
        """Queue depth, running requests and cache use of the server."""
        return self._run(self._on_engine(lambda e, _: e.load_state()))

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
        return await self._arun(self._count(request))

    async def atokenize(self, text: str, *, model: str | None = None) -> tuple[int, ...]:
        """As `tokenize`."""
        return await self._arun(self._on_engine(lambda e, m: e.tokenize(text, model=m), model))

    async def amodels(self) -> tuple[ModelCard, ...]:
        """As `models`."""
        return await self._arun(self._on_engine(lambda e, _: e.models()))

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

    @property
    def _settled(self) -> bool:
        """Whether the first route was looked for: the first call does it, under a lock."""
        return self._looked

    def _settle(self) -> Operation[None]:
        try:
            yield from self._route(0, None)
        except EngineKitError:
            # Of a list of engines another one may take over; the call itself finds out.
            if len(self._names) < 2:
                raise
        self._looked = True

    # -- operations ------------------------------------------------------------------------

    def _prepare(self) -> None:
        if self._names:
            return
        retries = self.config.value("max_retries", DEFAULT_RETRIES)
        if retries < 0:
            raise ConfigError(f"max_retries must not be negative, got {retries}")
        self._retries = retries
        listed = configuration.split_engines(self.config.value("engine", ""))
        for name in listed:
            if name not in self.config.custom_engines():
                registry.engine_class(name)
        self._routes = [None] * (len(listed) or 1)
        self._names = [*listed] or [None]

    def _route(self, number: int, model: str | None) -> Operation[Route]:
        """The route of one engine of the list, resolved, alive and probed."""
        self._prepare()
        route = self._routes[number]
        if route is None or not route.alive:
            route = yield from resolve(
                self.config,
                self._names[number],
                model=None,
                progress=self._progress,
                budget=self.budgets.load,
                embeds=self._embeds,
            )
            self._routes[number] = route
        if route.lease is not None and model and model != route.model:
            other = route.others.get(model)
            if other is None or not other.alive:
                other = yield from resolve(
                    self.config,
                    route.engine.name,
                    model=model,
                    progress=self._progress,
                    budget=self.budgets.load,
                    embeds=self._embeds,
                )
                route.others[model] = other
            route = other
        if not route.probed:
            yield from probe_once(route, budget=self.budgets.load)
        return route

    def _open(self, request: ChatRequest | CompletionRequest, *, stream: bool) -> Operation[Any]:
        self._prepare()
        if len(self._names) > 1:
            return open_first(
                len(self._names), lambda number: self._open_on(number, request, stream)
            )
        return self._open_on(0, request, stream)

    def _open_on(
        self,
        number: int,
        asked: ChatRequest | CompletionRequest,
        stream: bool,
        again: bool = False,
    ) -> Operation[Any]:
        request = asked
        route = yield from self._route(number, request.model or None)
        if not request.model:
            request = replace(request, model=route.model)
        request, fetched = yield from images.with_bytes(
            route.engine,
            request,
            allowed=bool(self.config.value("fetch_images", False)),
            stream=stream,
        )
        try:
            opened = yield from open_reply(
                route.engine,
                request,
                stream=stream,
                budgets=self.budgets,
                max_retries=self._retries,
            )
        except EngineError as error:
            if not isinstance(error, Unsupported):
                forget_route(route)
            if isinstance(error, ContextOverflow) and route.lease is not None:
                raise roomier(error) from error
            if isinstance(error, Unreachable):
                if route.lease is not None and not again:
                    # A dying server's socket closes a moment before its process has ended.
                    yield Sleep(seconds=0.1)
                    if not route.alive:
                        return (yield from self._open_on(number, asked, stream, again=True))
                raise explained(route, error) from error
            raise
        if route.notes or fetched:
            opened.receipt.notes.extend((*route.notes, *fetched))
        return opened

    def _connect(self) -> Operation[ServerFacts | None]:
        route = yield from self._route(0, None)
        if route.engine.facts is None:
            route.engine.facts = yield from route.engine.probe()
        return route.engine.facts

    def _embed(self, request: EmbedRequest) -> Operation[Embeddings]:
        if not request.texts:
            return Embeddings(vectors=[], receipt=_nothing_sent())
        route = yield from self._route(0, request.model or None)
        if not request.model:
            request = replace(request, model=route.model)
        return (yield from route.engine.embed(request))

    def _rerank(self, request: RerankRequest) -> Operation[Ranking]:
        if not request.documents:
            return Ranking(scores=[], receipt=_nothing_sent())
        route = yield from self._route(0, request.model or None)
        if not request.model:
            request = replace(request, model=route.model)
        return (yield from route.engine.rerank(request))

    def _count(self, request: ChatRequest) -> Operation[int]:
        route = yield from self._route(0, request.model or None)
        if not request.model:
            request = replace(request, model=route.model)
        return (yield from route.engine.count_tokens(request))

    def _on_engine(
        self, make: Callable[[Engine, str], Operation[_T]], model: str | None = None
    ) -> Operation[_T]:
        route = yield from self._route(0, model)
        return (yield from make(route.engine, model or route.model))


def _nothing_sent() -> Any:
    from enginekit.types import Receipt

    return Receipt(engine="-", notes=["nothing was asked for, so nothing was sent"])


def _sync_driver() -> SyncDriver:
    from enginekit.drivers import sync

    return sync.default()


def _async_driver() -> AsyncDriver:
    from enginekit.drivers import async_

    return async_.default()


__all__ = ["DEFAULT_RETRIES", "Client", "NoEngine"]
