"""Servers known from their documentation or source only: a profile, tables and a signature.

`Row` is the OpenAI dialect with everything that differs between such servers as a class attribute,
so that an engine of this kind is data and a few lines. Nobody has run these against enginekit: their
profiles name the sources, list no tested version, and every probe says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

from enginekit.engine import Answer, Operation, Target
from enginekit.engines import _openai_routes as routes
from enginekit.engines._emulate import LiftedAnswer
from enginekit.engines._json import parse_json
from enginekit.engines._openai import OpenAIEngine, Plan
from enginekit.engines._params import Draft, Rule, Table
from enginekit.engines._required import CallRequired
from enginekit.engines._think import ThinkSplitter
from enginekit.engines._wrap import FirstCallOnly, Inner
from enginekit.errors import EngineLoading, ModelNotFound, Unreachable
from enginekit.facts.engine import Capability, Feature, Load, ModelCard, ServerFacts
from enginekit.types import (
    UNSET,
    ChatRequest,
    CompletionRequest,
    Constraint,
    Embeddings,
    EmbedRequest,
    Ranking,
    Receipt,
    RerankRequest,
)


def documented(note: str = "") -> Capability:
    """The documentation says that it is there."""
    return Capability(support="native", note=note)


def depends(note: str) -> Capability:
    """It is there, depending on a flag or the model."""
    return Capability(support="server", note=note)


def emulated(note: str) -> Capability:
    """The server cannot; enginekit does it by other means."""
    return Capability(support="emulated", note=note)


def absent(note: str) -> Capability:
    """The documentation or the source has nothing of the kind."""
    return Capability(support="none", note=note)


def told(support: Literal["native", "emulated", "none"], note: str = "") -> Capability:
    """What the running server said of itself."""
    return Capability(support=support, evidence="probed", note=note)


def stop_rule(stops: Sequence[str]) -> Rule:
    """A list of stop strings; empty ones would mean nothing."""
    if all(stops):
        return Rule(wire="stop", value=list)
    return Rule(
        outcome="translated",
        wire="stop",
        value=lambda given: [stop for stop in given if stop],
        case="empty",
        note="empty stop strings were left out",
    )


BIAS: Final = Rule(
    outcome="translated",
    wire="logit_bias",
    value=lambda bias: {str(int(token)): float(by) for token, by in bias.items()},
    note="token ids as the keys of an object",
)


class Row(OpenAIEngine):
    """An OpenAI-compatible server that is described by data.

    Attributes:
        owner: `owned_by` of the models it lists; its signature, unless `recognise` is overridden.
        health_path: answers 200 once the server can generate; "" asks for the models instead.
        window_key: where an item of `/v1/models` says its context window.
        thinking: how thinking is switched: `template` sets variables of the chat template, `effort`
            sends `reasoning_effort`, `both` does either by what was asked; "" has no switch.
        parallel_key: `parallel_tool_calls` is a parameter of the server's own.
        completion_limit: tokens after which a completion ends when `max_tokens` is unset, if that
            is a number and not the rest of the window.
        metrics: series of `/metrics` by field of `Load`, without what `_total` means.
    """

    owner: ClassVar[str] = ""
    health_path: ClassVar[str] = "/health"
    window_key: ClassVar[str] = ""
    thinking: ClassVar[Literal["template", "effort", "both", ""]] = ""
    parallel_key: ClassVar[bool] = False
    completion_limit: ClassVar[int] = 0
    embed_path: ClassVar[str] = "/v1/embeddings"
    rerank_path: ClassVar[str] = "/v1/rerank"
    metrics: ClassVar[Mapping[str, str]] = {}

    # -- requests -----------------------------------------------------------------------

    def receipt(self) -> Receipt:
        """An empty receipt that says that nobody ran such a server."""
        receipt = super().receipt()
        receipt.notes.append(NOT_RUN.format(title=self.profile.title))
        return receipt

    def _chat_wraps(self) -> list[Callable[[Inner], Inner]]:
        return [ThinkSplitter]

    def _tools(self, draft: Draft, request: ChatRequest, plan: Plan) -> None:
        super()._tools(draft, request, plan)
        if "tools" in draft.body and draft.body.get("tool_choice") not in (None, "auto", "none"):
            plan.wraps.append(lambda inner: CallRequired(inner, self))

    def _parallel(self, draft: Draft, parallel: bool, plan: Plan) -> None:
        if self.parallel_key:
            super()._parallel(draft, parallel, plan)
        elif parallel:
            draft.enter("parallel_tool_calls", "translated", note="calls are never limited to one")
        else:
            draft.enter("parallel_tool_calls", "emulated", note="kept to the first call")
            plan.wraps.append(FirstCallOnly)

    def _reasoning(self, draft: Draft, wish: bool | str, plan: Plan) -> None:
        if self.capability("reasoning").support == "none" or not self.thinking:
            draft.omit("reasoning", self.capability("reasoning").note or "it has no switch")
        elif isinstance(wish, str) and self.thinking in ("effort", "both"):
            parts: dict[str, Any] = {"reasoning_effort": wish}
            note = "as reasoning_effort"
            draft.enter("reasoning", "translated", parts, case="level", note=note)
        elif self.thinking == "effort":
            draft.omit("reasoning", "it has levels (low, medium, high), and no plain switch")
        else:
            on = wish if isinstance(wish, bool) else wish != "none"
            parts = {
                "chat_template_kwargs.enable_thinking": on,
                "chat_template_kwargs.thinking": on,
            }
            draft.enter("reasoning", "translated", parts, note="variables of the chat template")

    def _constrain(self, draft: Draft, constraint: Constraint, plan: Plan) -> None:
        if not self.capability(constraint.kind).usable:
            why = self.capability(constraint.kind).note or f"it has no {constraint.kind}"
            draft.refuse("constraint", why, case=constraint.kind)
        elif constraint.kind == "choice":
            inner = {"type": "string", "enum": list(constraint.value)}
            schema = {
                "type": "object",
                "properties": {"answer": inner},
                "required": ["answer"],
                "additionalProperties": False,
            }
            parts = self._schema_parts(schema, "answer", None)
            note = "by an enum in a JSON schema"
            draft.enter("constraint", "emulated", parts, case="choice", note=note)
            plan.wraps.append(lambda inner: LiftedAnswer(inner, self, (), answer=True))
        elif parts := self._own_constraint(constraint):
            note = f"as {next(iter(parts))}"
            draft.enter("constraint", "translated", parts, case=constraint.kind, note=note)
        else:
            super()._constrain(draft, constraint, plan)

    def _own_constraint(self, constraint: Constraint) -> dict[str, Any]:
        """Where a constraint of the server's own goes in the body; empty for the dialect's."""
        return {}

    def _sampling(
        self, draft: Draft, request: ChatRequest | CompletionRequest, plan: Plan
    ) -> Table:
        sampling = request.sampling
        if isinstance(request, CompletionRequest) and sampling.max_tokens is UNSET:
            self._whole(draft)
        top = self.sampling.get("top_logprobs")
        if sampling.top_logprobs is UNSET or sampling.logprobs is not UNSET:
            return self.sampling
        if not isinstance(top, Rule) or top.outcome != "sent":
            return self.sampling
        rule = Rule(
            outcome="translated",
            wire="logprobs top_logprobs",
            value=lambda top: {"logprobs": True, "top_logprobs": top},
            low=top.low,
            high=top.high,
            note="the server wants logprobs switched on as well",
        )
        return {**self.sampling, "top_logprobs": rule}

    def _whole(self, draft: Draft) -> None:
        """No answer is cut by a length that nobody asked for."""
        if self.completion_limit:
            draft.refuse(
                "sampling.max_tokens",
                f"completions are cut after {self.completion_limit} tokens unless told otherwise",
                case="unset",
                hint="set max_tokens",
            )

    def _scalar(self, draft: Draft, name: str, value: Any) -> None:
        if name == "keep_alive":
            draft.omit(name, "the model is in memory as long as the server runs")
        elif name == "lora":
            self._lora(draft, value)
        else:
            draft.window_of_launch(value, self._window_hint.format(value=value))

    _window_hint: ClassVar[str] = "start the server with a larger window"

    def _lora(self, draft: Draft, value: Any) -> None:
        draft.refuse("lora", self.capability("lora").note or "it has no adapters")

    def _template_option(self, draft: Draft, key: str, value: Any) -> None:
        if self.thinking not in ("template", "both"):
            draft.refuse(f"template_options.{key}", "its chat template takes no variables")
        super()._template_option(draft, key, value)

    # -- probing ------------------------------------------------------------------------

    @classmethod
    def recognise(cls, target: Target) -> Operation[bool]:
        """Whether `GET /v1/models` lists a model that is owned by this kind of server."""
        listing = yield from json_at(cls(target), "/v1/models")
        items = listing.get("data") if isinstance(listing, Mapping) else None
        return bool(cls.owner) and any(
            isinstance(item, Mapping) and item.get("owned_by") == cls.owner
            for item in (items if isinstance(items, list) else ())
        )

    def probe(self) -> Operation[ServerFacts]:
        """Read `/v1/models`."""
        return self._facts((yield from self.models()))

    def _facts(
        self,
        cards: Sequence[ModelCard],
        *,
        version: str | None = None,
        source: str = "",
        capabilities: Mapping[Feature, Capability] | None = None,
        notes: Sequence[str] = (),
    ) -> ServerFacts:
        """The facts of a server of which no version was ever run: always unverified."""
        wanted = str(self.options.get("model") or "")
        chosen = [card for card in cards if wanted in (card.id, *card.aliases)] or list(cards)
        windows = [card.context_window for card in chosen if card.context_window]
        return ServerFacts(
            version=version,
            models=tuple(cards),
            context_window=min(windows) if windows else None,
            context_source=(source or f"{self.window_key} of GET /v1/models") if windows else "",
            capabilities=capabilities or {},
            verified=False,
            notes=(*notes, NOT_RUN.format(title=self.profile.title)),
        )

    def models(self) -> Operation[tuple[ModelCard, ...]]:
        """The models of `/v1/models`."""
        listing = yield from routes.ask(self, "GET", "/v1/models")
        items = listing.get("data") if isinstance(listing, Mapping) else None
        return tuple(self._card(item) for item in items or () if "id" in item)

    def _card(self, item: Mapping[str, Any]) -> ModelCard:
        window = item.get(self.window_key) if self.window_key else None
        return ModelCard(
            id=str(item["id"]),
            context_window=window if isinstance(window, int) else None,
            extra={"root": item.get("root"), "parent": item.get("parent")},
        )

    def ready(self, model: str) -> Operation[bool]:
        """Its health route answers 200 and the model is listed."""
        if self.health_path:
            try:
                answer: Answer = yield self.call("GET", self.health_path, timeout=30)
            except (Unreachable, EngineLoading):
                return False
            if answer.status == 503:
                return False
            if not answer.ok:
                raise self.failure(
                    answer.status, answer.headers, answer.body, path=self.health_path
                )
        try:
            cards = yield from self.models()
        except (Unreachable, EngineLoading):
            return False
        if model and cards and not any(model in (card.id, *card.aliases) for card in cards):
            return self._unlisted(model)
        return True

    def _unlisted(self, model: str) -> bool:
        raise ModelNotFound(
            f"{self.name} at {self.target.base_url} does not list {model!r}",
            engine=self.name,
            url=self.target.base_url,
            model=model,
        )

    # -- other routes -------------------------------------------------------------------

    def embed(self, request: EmbedRequest) -> Operation[Embeddings]:
        """The dialect's `/v1/embeddings`, where the server has it."""
        self._require("embeddings")
        draft = Draft(self, request, self.dialect)
        self._model(draft, request.model)
        draft.enter("texts", "translated", {"input": list(request.texts)}, note="as input")
        if request.dimensions is not UNSET:
            draft.enter("dimensions", "sent", {"dimensions": request.dimensions})
        if request.truncate:
            draft.refuse("truncate", "it is not documented to cut a text that is too long")
        if request.keep_alive is not UNSET:
            self._scalar(draft, "keep_alive", request.keep_alive)
        draft.options()
        return (yield from routes.embed(self, request, draft, self.embed_path))

    def rerank(self, request: RerankRequest) -> Operation[Ranking]:
        """`/v1/rerank`, where the server has it."""
        self._require("rerank")
        draft = Draft(self, request, self.dialect)
        self._model(draft, request.model)
        draft.enter("query", "sent", {"query": request.query})
        draft.enter("documents", "sent", {"documents": list(request.documents)})
        if request.top_n is not UNSET:
            draft.enter("top_n", "sent", {"top_n": request.top_n})
        draft.options()
        return (yield from routes.rerank(self, request, draft, self.rerank_path))

    def load_state(self) -> Operation[Load]:
        """From `/metrics`, by the names of `metrics`."""
        self._require("metrics")
        answer: Answer = yield self.call("GET", "/metrics")
        if not answer.ok:
            raise self.failure(answer.status, answer.headers, answer.body, path="/metrics")
        usage = self.metrics.get("kv_cache_usage", "")
        found = routes.read_metrics(answer.body, mean=(usage,))

        def count(name: str) -> int | None:
            value = found.get(self.metrics.get(name, ""))
            return None if value is None else int(value)

        return Load(
            running=count("running"),
            waiting=count("waiting"),
            kv_cache_usage=found.get(usage),
            prompt_tokens_total=count("prompt_tokens_total"),
            generated_tokens_total=count("generated_tokens_total"),
            extra={name: value for name, value in found.items() if not name.endswith("_bucket")},
        )

    def _require(self, feature: Feature) -> None:
        fact = self.capability(feature)
        if not fact.usable:
            self.refuse(feature, fact.note, rule=f"{self.dialect}.{feature}")


NOT_RUN: Final = (
    "{title} is known from its documentation only: no version of it was run with enginekit"
)


def newer(version: str | None, known: tuple[int, int]) -> bool:
    """Whether a version is newer than the one that was read."""
    match = re.match(r"v?(\d+)\.(\d+)", version or "")
    return match is not None and (int(match[1]), int(match[2])) > known


def json_at(engine: Row, path: str) -> Operation[Any]:
    """What a route says, or None when it has nothing to say."""
    answer: Answer = yield engine.call("GET", path)
    if not answer.ok:
        return None
    try:
        return parse_json(answer.body)
    except ValueError:
        return None
