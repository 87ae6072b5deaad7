"""The llama.cpp engine: probing, readiness and the routes beside generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from enginekit.engine import Answer, Encoded, Operation, Sleep, Target
from enginekit.engines import _openai_routes as routes
from enginekit.engines._params import Draft
from enginekit.engines.llamacpp.facts import facts_of, model_cards, router_facts
from enginekit.engines.llamacpp.requests import LlamaCppRequests
from enginekit.errors import (
    EngineError,
    EngineFault,
    EngineLoading,
    EngineTimeout,
    ModelNotFound,
    Unsupported,
    nearest_models,
)
from enginekit.facts.engine import Capability, Feature, Load, ModelCard, ServerFacts
from enginekit.types import (
    UNSET,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    Ranking,
    RerankRequest,
)

LOADING: Final = 600.0
"""Seconds a router may take to load a model."""
UNLOADING: Final = 30.0
"""Seconds it may take to end the process of one."""


class LlamaCpp(LlamaCppRequests):
    """`llama-server` at one address.

    Options (`[engines.llamacpp.options]`): `substituted_template`, the name of a chat template that
    the server was started with instead of the model's own; every receipt then says so.
    """

    # -- probing ------------------------------------------------------------------------

    @classmethod
    def recognise(cls, target: Target) -> Operation[bool]:
        """Whether `GET /health` carries its name; it needs no key and answers while loading."""
        answer: Answer = yield cls(target).call("GET", "/health")
        return answer.headers.get("server") == "llama.cpp"

    def probe(self) -> Operation[ServerFacts]:
        """Read `/props`, `/v1/models` and `/lora-adapters`.

        Raises EngineLoading while the model loads and Unauthorized without the right key: all of
        these routes are guarded.
        """
        props = yield from self._props()
        if props.get("role") == "router":
            listing = yield from routes.ask(self, "GET", "/models")
            return router_facts(props, listing, self.options.get("model"))
        listing = yield from routes.ask(self, "GET", "/v1/models")
        adapters = yield from self.adapters()
        return facts_of(props, listing, adapters)

    def _props(self) -> Operation[Mapping[str, Any]]:
        try:
            value = yield from routes.ask(self, "GET", "/props")
        except Unsupported:
            return {}
        return value if isinstance(value, Mapping) else {}

    def adapters(self) -> Operation[Sequence[Mapping[str, Any]]]:
        """The LoRA adapters that are loaded; empty where the route is missing."""
        try:
            value = yield from routes.ask(self, "GET", "/lora-adapters")
        except Unsupported:
            return ()
        return value if isinstance(value, list) else ()

    def ready(self, model: str) -> Operation[bool]:
        """`/health`, and for a router the model's own status; an unloaded one is asked to load."""
        try:
            yield from routes.ask(self, "GET", "/health", timeout=5)
        except EngineLoading:
            return False
        if not self._router:
            return True
        card = (yield from self._card(model)) if model else None
        if card is None or card.loaded:
            return True
        self._not_failed(card)
        if card.extra["status"].get("value") == "unloaded":
            yield from self._manage("load", model)
        return False

    def loads_silently(self) -> bool:
        """In router mode, unless it was told not to load by itself."""
        return self.facts is not None and bool(self.facts.extra.get("autoload"))

    def cold(self, encoded: Encoded) -> Operation[bool]:
        """Router mode: whether the model that is named is not in memory yet."""
        model = encoded.call.json.get("model")
        if not model or self.facts is None or not self.facts.extra.get("autoload"):
            return False
        return not (yield from self._card(model)).loaded

    def warm(self, encoded: Encoded, seconds: float) -> Operation[None]:
        """Router mode: have the model loaded; returns when it is."""
        model = encoded.call.json["model"]
        yield from self._manage("load", model)
        yield from self._loaded(model, seconds)

    def _not_failed(self, card: ModelCard) -> None:
        status = card.extra.get("status") or {}
        if status.get("failed"):
            raise EngineFault(
                f"{self.name} at {self.target.base_url} failed to load {card.id!r} "
                f"(exit code {status.get('exit_code')})",
                hint="look at the server's log",
                engine=self.name,
                url=self.target.base_url,
            )

    def _card(self, model: str) -> Operation[ModelCard]:
        cards = model_cards((yield from routes.ask(self, "GET", "/models")))
        for card in cards:
            if model == card.id or model in card.aliases:
                return card
        near = nearest_models([(card.id, *card.aliases) for card in cards], model)
        raise ModelNotFound(
            f"{self.name} at {self.target.base_url} has no model {model!r}; "
            f"nearest: {', '.join(near) or 'it has none'}",
            engine=self.name,
            url=self.target.base_url,
            model=model,
            near=near,
        )

    def models(self) -> Operation[tuple[ModelCard, ...]]:
        """The models of `/v1/models`: one, or all that a router knows."""
        return model_cards((yield from routes.ask(self, "GET", "/v1/models")))

    # -- other routes -------------------------------------------------------------------

    def embed(self, request: EmbedRequest) -> Operation[Embeddings]:
        """`/v1/embeddings`; a text longer than one batch (`-ub`) is a ContextOverflow."""
        draft = Draft(self, request, self.dialect)
        self._model(draft, request.model)
        draft.enter("texts", "translated", {"input": list(request.texts)}, note="as input")
        if request.dimensions is not UNSET:
            draft.refuse("dimensions", "it ignores the number of dimensions")
        if request.truncate:
            draft.refuse("truncate", "it never cuts a text that is too long")
        if request.keep_alive is not UNSET:
            self._scalar(draft, "keep_alive", request.keep_alive)
        draft.options()
        return (yield from routes.embed(self, request, draft))

    def rerank(self, request: RerankRequest) -> Operation[Ranking]:
        """`/v1/rerank`; needs a server started with `--reranking`."""
        draft = Draft(self, request, self.dialect)
        self._model(draft, request.model)
        draft.enter("query", "sent", {"query": request.query})
        draft.enter("documents", "sent", {"documents": list(request.documents)})
        if request.top_n is not UNSET:
            draft.enter("top_n", "sent", {"top_n": request.top_n})
        draft.options()
        return (yield from routes.rerank(self, request, draft))

    def settle(self, feature: Feature, model: str = "") -> Operation[None]:
        """Whether the server was started for this, by a request without any text.

        It looks at its flags before it reads the body: 501 where they lack, 400 where not. One that
        was started to rerank answers a text to embed with zeros under 200 (seen on b10488).
        """
        path = {"embeddings": "/embedding", "rerank": "/reranking"}.get(feature)
        if path is None or self._router:
            return
        answer: Answer = yield self.call("POST", path, {})
        if answer.status == 501:
            refusal = self.failure(answer.status, answer.headers, answer.body, path=path)
            if isinstance(refusal, Unsupported):
                self.remember(self.learnt(refusal))
        elif answer.status == 400:
            fact = Capability(support="native", evidence="probed")
            if feature == "embeddings":
                ranking: Answer = yield self.call("POST", "/reranking", {})
                if ranking.status == 400:
                    note = "the server was started with --reranking: its vectors are no embeddings"
                    fact = Capability(support="none", evidence="probed", note=note)
            self.remember({feature: fact})

    def tokenize(self, text: str, *, model: str = "") -> Operation[tuple[int, ...]]:
        """`/tokenize`, without special tokens added; text that looks like one is read as one."""
        body = {**self._named(model), "content": text, "add_special": False}
        value = yield from routes.ask(self, "POST", "/tokenize", body)
        return tuple(value["tokens"])

    def detokenize(self, tokens: Sequence[int], *, model: str = "") -> Operation[str]:
        """`/detokenize`."""
        body = {**self._named(model), "tokens": list(tokens)}
        value = yield from routes.ask(self, "POST", "/detokenize", body)
        return str(value["content"])

    def count_tokens(self, request: ChatRequest) -> Operation[int]:
        """Tokens of the prompt as the server's own template makes it.

        Asks `/v1/chat/completions/input_tokens`; older servers are asked for the rendered template
        and its tokens.
        """
        body = dict(self.encode(request).call.json)
        for key in ("stream", "stream_options"):
            body.pop(key, None)
        try:
            value = yield from routes.ask(self, "POST", f"{self.chat_path}/input_tokens", body)
            return int(value["input_tokens"])
        except Unsupported:
            rendered = yield from routes.ask(self, "POST", "/apply-template", body)
            return len((yield from self.tokenize(rendered["prompt"], model=request.model)))

    def load_state(self) -> Operation[Load]:
        """From `/metrics`; where that is off, from the slots that are busy.

        A router has metrics per model: those of the loaded ones are added up.
        """
        if self._router:
            return (yield from self._load_of_all())
        answer = yield self.call("GET", "/metrics")
        if answer.ok:
            return load_of(routes.read_metrics(answer.body))
        error = self.failure(answer.status, answer.headers, answer.body, path="/metrics")
        if not isinstance(error, Unsupported):
            raise error
        try:
            slots = yield from self.slots()
        except EngineError:
            raise error from None
        return Load(running=sum(1 for slot in slots if slot.get("is_processing")))

    def _load_of_all(self) -> Operation[Load]:
        total: dict[str, float] = {}
        for card in (yield from self.models()):
            if card.loaded:
                answer = yield self.call("GET", f"/metrics?model={quote(card.id, safe='')}")
                if not answer.ok:
                    raise self.failure(answer.status, answer.headers, answer.body, path="/metrics")
                for name, value in routes.read_metrics(answer.body).items():
                    total[name] = total.get(name, 0.0) + value
        return load_of(total)

    def slots(self) -> Operation[Sequence[Mapping[str, Any]]]:
        """What each slot is doing. Unsupported when the server was started with `--no-slots`."""
        value = yield from routes.ask(self, "GET", "/slots")
        return value if isinstance(value, list) else ()

    def load(self, model: str) -> Operation[None]:
        """Router mode: load a model; returns when it is loaded. Raises why it failed."""
        yield from self._manage("load", model)
        yield from self._loaded(model, LOADING)

    def _loaded(self, model: str, seconds: float) -> Operation[None]:
        card = yield from self._settled(model, ("loaded", "sleeping", "unloaded"), seconds)
        self._not_failed(card)
        if not card.loaded:
            raise EngineFault(
                f"{self.name} at {self.target.base_url} loaded {model!r} and unloaded it at once",
                hint="start the router with a larger --models-max, or look at its log",
                engine=self.name,
                url=self.target.base_url,
            )

    def unload(self, model: str) -> Operation[None]:
        """Router mode: take a model out of memory; returns when it is out."""
        yield from self._manage("unload", model)
        yield from self._settled(model, ("unloaded",), UNLOADING)

    def _settled(self, model: str, states: Sequence[str], seconds: float) -> Operation[ModelCard]:
        """The model's card once it is in one of the states: the server answers before it is."""
        waited = 0.0
        while True:
            card = yield from self._card(model)
            if (card.extra.get("status") or {}).get("value") in states:
                return card
            pause = min(0.05 + waited / 4, 1.0)
            if waited + pause > seconds:
                raise EngineTimeout(
                    f"{self.name} at {self.target.base_url}: {model!r} was still "
                    f"{card.extra['status'].get('value')} after {seconds:g} s",
                    engine=self.name,
                    url=self.target.base_url,
                    phase="load",
                    budget=seconds,
                )
            waited += pause
            yield Sleep(seconds=pause)

    def _manage(self, verb: str, model: str) -> Operation[None]:
        if not self._router:
            self.refuse(
                "load" if verb == "load" else "unload",
                "a server with one model has it loaded as long as it runs",
                rule=f"llamacpp.{verb}",
                hint="start llama-server without a model: then it is a router",
            )
        # The server answers a name it does not know with "File Not Found".
        yield from self._card(model)
        answer = yield self.call("POST", f"/models/{verb}", {"model": model})
        if not answer.ok and b"already" not in answer.body and b"not running" not in answer.body:
            raise self.failure(answer.status, answer.headers, answer.body, path=f"/models/{verb}")

    def _named(self, model: str) -> dict[str, str]:
        return {"model": model} if model and self._router else {}


def load_of(metrics: Mapping[str, float]) -> Load:
    """llama-server's metrics in the common shape; it has none for the KV cache."""

    def count(name: str) -> int | None:
        value = metrics.get(f"llamacpp:{name}")
        return None if value is None else int(value)

    cached = count("prompt_tokens_cached_total") or 0
    prompt = count("prompt_tokens_total")
    return Load(
        running=count("requests_processing"),
        waiting=count("requests_deferred"),
        prompt_tokens_total=None if prompt is None else prompt + cached,
        generated_tokens_total=count("tokens_predicted_total"),
        extra={name.removeprefix("llamacpp:"): value for name, value in metrics.items()},
    )
