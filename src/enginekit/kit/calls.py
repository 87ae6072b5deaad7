"""What a client asks of its engines, as operations: routes, replies, counts, over one or a list.

Nothing here runs anything: `enginekit.kit.client` hands these to a driver.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from enginekit import config as configuration
from enginekit import registry
from enginekit.config import Config
from enginekit.engine import Budgets, Encoded, Engine, Operation, Sleep
from enginekit.errors import (
    ConfigError,
    ContextOverflow,
    EngineError,
    EngineKitError,
    EngineLoading,
    Unreachable,
    Unsupported,
)
from enginekit.facts.engine import Feature, ServerFacts
from enginekit.fallback import Resting, first, none_could, open_first, resting_of
from enginekit.kit import embedded, images
from enginekit.kit.budgets import budgets_of
from enginekit.kit.loading import load_beside
from enginekit.kit.route import Route, explained, resolve, roomier
from enginekit.kit.server_facts import forget_route, keep_facts, probe_once
from enginekit.kit.showing import with_schema_shown
from enginekit.operations import asked as unless_lacking
from enginekit.operations import open_reply, settle_all, settle_needed, within
from enginekit.types import (
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    Ranking,
    Receipt,
    RerankRequest,
)

_T = TypeVar("_T")

DEFAULT_RETRIES = 2


class Calls:
    """Settings, the routes found by them, and the operations over those routes."""

    _settings: Mapping[str, Any]
    _where: str
    _embeds: bool
    _progress: embedded.Progress | None

    def _start_empty(self) -> None:
        self._config: Config | None = None
        self._routes: list[Route | None] = []
        self._names: list[str | None] = []
        self._budgets: Budgets | None = None
        self._retries = DEFAULT_RETRIES
        self._resting = Resting()
        self._looked = False
        self._lock = threading.Lock()
        self._loop_locks: weakref.WeakKeyDictionary[Any, asyncio.Lock] = weakref.WeakKeyDictionary()

    # -- settings ---------------------------------------------------------------------------

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
            self._budgets = budgets_of(self.config)
        return self._budgets

    @property
    def resting(self) -> Resting:
        """Which engines of the list rest; shared by all clients with the same list and budgets."""
        self._prepare()
        return self._resting

    # -- operations -------------------------------------------------------------------------

    @property
    def _settled(self) -> bool:
        """Whether the first route was looked for: the first call does it, under a lock."""
        return self._looked

    def _settle(self) -> Operation[None]:
        """Find the engine, of a list the first that is there; the call itself says what failed."""
        self._prepare()
        for number in range(len(self._names)):
            if self._lists and self._resting.why(number) is not None:
                continue
            try:
                route = self._route(number, None, patient=not self._lists)
                yield from self.resting.watched(number, route)
                break
            except EngineKitError as error:
                if not self._lists or isinstance(error, ConfigError):
                    raise
        self._looked = True

    def _prepare(self) -> None:
        if self._names:
            return
        self._retries = self.config.value("max_retries", DEFAULT_RETRIES)
        listed = configuration.split_engines(self.config.value("engine", ""))
        for name in listed:
            if name not in self.config.custom_engines():
                registry.engine_class(name)
        if len(listed) > 1:
            _refuse_one_for_all(self.config, listed)
        self._routes = [None] * (len(listed) or 1)
        if len(listed) > 1:
            self._resting = resting_of(self.config, tuple(listed), self.budgets)
        self._names = [*listed] or [None]

    @property
    def _lists(self) -> bool:
        return len(self._names) > 1

    def _route(self, number: int, model: str | None, *, patient: bool = True) -> Operation[Route]:
        """The route of one engine of the list, resolved, alive and probed."""
        self._prepare()
        route = self._routes[number]
        if route is None or not route.alive:
            route = yield from self._resolved(self._names[number])
            self._routes[number] = route
        if route.lease is not None and model and model != route.model:
            other = route.others.get(model)
            if other is None or not other.alive:
                other = yield from self._resolved(route.engine.name, model)
                route.others[model] = other
            route = other
        if not route.probed:
            try:
                asked = probe_once(route, budget=self.budgets.load, patient=patient)
                yield from within(asked, self.budgets.first_token)
            except Unreachable as error:
                raise explained(route, error) from error
        return route

    def _resolved(self, name: str | None, model: str | None = None) -> Operation[Route]:
        found = resolve(
            self.config,
            name,
            model=model,
            progress=self._progress,
            budget=self.budgets.load,
            embeds=self._embeds,
        )
        return (yield from within(found, self.budgets.first_token))

    def _open(self, request: ChatRequest | CompletionRequest, *, stream: bool) -> Operation[Any]:
        self._prepare()
        if not self._lists:
            return self._open_on(0, request, stream)
        return open_first(
            [str(name) for name in self._names],
            lambda number, patient: self._open_on(number, request, stream, patient=patient),
            self.resting,
        )

    def _open_on(
        self,
        number: int,
        asked: ChatRequest | CompletionRequest,
        stream: bool,
        *,
        patient: bool = True,
        again: bool = False,
    ) -> Operation[Any]:
        request, told = with_schema_shown(asked)
        route = yield from self._route(number, request.model or None, patient=patient)
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
                max_retries=self._retries if patient else 0,
                passing=None if patient else self._load_beside,
            )
        except EngineError as error:
            if isinstance(error, Unsupported):
                keep_facts(route)
            else:
                forget_route(route, error)
            if isinstance(error, ContextOverflow) and route.lease is not None:
                raise roomier(error) from error
            if isinstance(error, Unreachable):
                if route.lease is not None and not again:
                    # A dying server's socket closes a moment before its process has ended.
                    yield Sleep(seconds=0.1)
                    if not route.alive:
                        return (
                            yield from self._open_on(
                                number, asked, stream, patient=patient, again=True
                            )
                        )
                raise explained(route, error) from error
            raise
        keep_facts(route)
        if route.notes or fetched or told:
            opened.receipt.notes.extend((*route.notes, *fetched, *told))
        return opened

    def _load_beside(self, engine: Engine, encoded: Encoded) -> EngineLoading | None:
        return load_beside(engine, encoded, self.budgets.load)

    def _connect(self) -> Operation[ServerFacts | None]:
        self._prepare()
        found: list[ServerFacts | None] = []
        failures: list[EngineKitError] = []
        for number in range(len(self._names)):
            try:
                looked = self._route(number, None, patient=not self._lists)
                route = yield from self.resting.watched(number, looked)
                if route.engine.facts is None:
                    probe = within(route.engine.probe(), self.budgets.first_token)
                    route.engine.facts = yield from probe
                yield from settle_all(route.engine, route.model, self.budgets.first_token)
                keep_facts(route)
                found.append(route.engine.facts)
            except EngineKitError as error:
                if not self._lists or isinstance(error, ConfigError):
                    raise
                failures.append(error)
        if not found:
            raise none_could([str(name) for name in self._names], failures)
        return found[0]

    def _seconds(self, engine: Engine, feature: Feature) -> float:
        """How long one answer that comes in one piece may take."""
        load = self.budgets.load if feature in _BY_MODEL and engine.loads_silently() else 0.0
        return self.budgets.whole_reply + load

    def _embed(self, request: EmbedRequest) -> Operation[Embeddings]:
        if not request.texts:
            return Embeddings(vectors=[], receipt=_nothing_sent())
        route = yield from self._route(0, request.model or None)
        if not request.model:
            request = replace(request, model=route.model)
        operation = route.engine.embed(request)
        return (
            yield from _asked(
                route,
                "embeddings",
                operation,
                request.model,
                self._seconds(route.engine, "embeddings"),
            )
        )

    def _rerank(self, request: RerankRequest) -> Operation[Ranking]:
        if not request.documents:
            return Ranking(scores=[], receipt=_nothing_sent())
        route = yield from self._route(0, request.model or None)
        if not request.model:
            request = replace(request, model=route.model)
        operation = route.engine.rerank(request)
        return (
            yield from _asked(
                route, "rerank", operation, request.model, self._seconds(route.engine, "rerank")
            )
        )

    def _count(self, request: ChatRequest) -> Operation[tuple[int, str]]:
        def on(engine: Engine, model: str) -> Operation[int]:
            asked = request if request.model else replace(request, model=model)
            # What is counted is what would be sent.
            yield from settle_needed(engine, asked, self.budgets.first_token)
            return (yield from engine.of(asked.model).count_tokens(asked))

        return self._on_engine(on, request.model or None, "count_tokens")

    def _ids(self, text: str, model: str | None) -> Operation[tuple[tuple[int, ...], str]]:
        return self._on_engine(lambda e, m: e.tokenize(text, model=m), model, "tokenize")

    def _text(self, tokens: Sequence[int], model: str | None) -> Operation[tuple[str, str]]:
        return self._on_engine(lambda e, m: e.detokenize(tokens, model=m), model, "detokenize")

    def _on_engine(
        self,
        make: Callable[[Engine, str], Operation[_T]],
        model: str | None = None,
        feature: Feature | None = None,
    ) -> Operation[tuple[_T, str]]:
        """The outcome, and the name of the engine it is from: of a list the first that can.

        Refused before anything is sent where the server is known to lack `feature`.
        """
        self._prepare()

        def on(number: int, patient: bool) -> Operation[tuple[_T, str]]:
            route = yield from self._route(number, model, patient=patient)
            operation = make(route.engine, model or route.model)
            if feature is not None:
                load = feature == "load"
                seconds = self.budgets.load if load else self._seconds(route.engine, feature)
                operation = _asked(route, feature, operation, model or route.model, seconds)
            else:
                operation = within(operation, self.budgets.whole_reply)
            return (yield from operation), route.engine.name

        if not self._lists:
            return (yield from on(0, True))
        found, _ = yield from first([str(name) for name in self._names], on, self.resting)
        return found


_BY_MODEL: Final[frozenset[Feature]] = frozenset(
    ("embeddings", "rerank", "count_tokens", "tokenize", "detokenize")
)
"""What only a loaded model can answer."""


def _refuse_one_for_all(config: Config, engines: Sequence[str]) -> None:
    """Raise ConfigError for an address or a key that could be any engine's of the list."""
    elsewhere = [name for name in engines if name not in registry.LAUNCHED]
    for name, key in (("base_url", "url"), ("api_key", "api_key")):
        setting = config.find(name)
        if setting is None or all(key in config.engine_table(one) for one in elsewhere):
            continue
        named = config.layers[setting.layer].get("engine")
        if named is not None and len(configuration.split_engines(named.value)) == 1:
            continue  # it belongs to that one
        variables = ", ".join(f"ENGINEKIT_{one.upper()}_{key.upper()}" for one in elsewhere)
        raise ConfigError(
            f"{name} (from {setting.where}) could be that of any engine in {','.join(engines)!r}",
            hint=f"give each its own: {variables}, or {key} under [engines.NAME] in a file",
        )


def _asked(
    route: Route, feature: Feature, operation: Operation[_T], model: str, seconds: float
) -> Operation[_T]:
    """The operation, unless the server is known to lack what it needs; what it refuses is kept."""
    try:
        return (
            yield from unless_lacking(
                route.engine, feature, operation, model=model, seconds=seconds
            )
        )
    finally:
        keep_facts(route)


def _nothing_sent() -> Receipt:
    return Receipt(engine="-", notes=["nothing was asked for, so nothing was sent"])
