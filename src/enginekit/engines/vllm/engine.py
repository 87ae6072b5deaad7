"""The vLLM engine: requests, probing and the routes of its OpenAI server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

from enginekit.engine import Answer, Operation, Target
from enginekit.engines import _openai_routes as routes
from enginekit.engines._json import parse_json
from enginekit.engines._params import Draft
from enginekit.engines._vllm_wire import TOOL_FEATURES, VLLMRequests
from enginekit.engines.vllm.facts import PROFILE, facts_of, model_cards, tool_capabilities
from enginekit.errors import (
    BadRequest,
    EngineLoading,
    ModelNotFound,
    Redirected,
    Unreachable,
    Unsupported,
)
from enginekit.facts.engine import (
    Capability,
    EngineProfile,
    Evidence,
    Feature,
    Load,
    ModelCard,
    ServerFacts,
)
from enginekit.types import (
    UNSET,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    Ranking,
    RerankRequest,
)


class VLLM(VLLMRequests):
    """A vLLM OpenAI server at one address.

    Whether the server was started with a tool parser is found out before the first call that needs
    one, by a request that generates nothing; without a parser calls are emulated. Option
    (`[engines.vllm.options]`): `probe_tools = true` makes this part of every `probe()`, `false`
    never asks, and the first refusal tells.
    """

    profile: ClassVar[EngineProfile] = PROFILE
    dialect: ClassVar[str] = "vllm"
    learns: ClassVar[frozenset[Feature]] = frozenset(
        {"chat", "completion", "embeddings", "rerank", "load", "unload", "images"}
    )

    # -- probing ------------------------------------------------------------------------

    @classmethod
    def recognise(cls, target: Target) -> Operation[bool]:
        """Whether `GET /version` is answered as vLLM's server does; it needs no key."""
        answer: Answer = yield cls(target).call("GET", "/version")
        if not answer.ok:
            return False
        try:
            value = parse_json(answer.body)
        except ValueError:
            return False
        if not isinstance(value, dict) or not isinstance(value.get("version"), str):
            return False
        if len(value) == 1:
            return True
        # A newer vLLM may tell more there, but so do other servers: an empty ping decides.
        ping: Answer = yield cls(target).call("GET", "/ping")
        return ping.ok and not ping.body.strip()

    def probe(self) -> Operation[ServerFacts]:
        """Read `/version` and `/v1/models`; with `probe_tools = true` look for a tool parser, too."""
        try:
            version = yield from routes.ask(self, "GET", "/version")
        except Unsupported:
            version = {}
        listing = yield from routes.ask(self, "GET", "/v1/models")
        tools: bool | None = None
        cards = model_cards(listing)
        if self.options.get("probe_tools") and cards:
            tools = yield from self.takes_tools(cards[0].id)
        return facts_of(version, listing, tools=tools)

    def learnt(self, refusal: Unsupported) -> Mapping[Feature, Capability]:
        """Also a tool parser that lacks: from then on calls are made by a schema."""
        if refusal.feature == "tools":
            return self.tool_capabilities(False, "observed")
        return super().learnt(refusal)

    def tool_capabilities(
        self, native: bool, evidence: Evidence = "probed"
    ) -> Mapping[Feature, Capability]:
        """The capabilities of a server with a tool parser, or without one."""
        return tool_capabilities(native, evidence)

    def settle(self, feature: Feature, model: str = "") -> Operation[None]:
        """Whether there is a tool parser, or a route of pooling models; nothing is generated.

        The routes by two requests that reach none: of a path with a slash too many the server says where it belongs (307) if the route exists,
        and 404 if not. Believed only if chats are told apart in the same way, which a gateway in
        front of the server may not do.
        """
        if feature in TOOL_FEATURES:
            yield from self._settle_tools(model)
            return
        path = {"embeddings": "/v1/embeddings/", "rerank": "/v1/rerank/"}.get(feature)
        if path is None:
            return
        if (there := (yield from self._status(path))) == 307:
            self.remember({feature: Capability(support="native", evidence="probed")})
        elif there == 404 and (yield from self._status(f"{self.chat_path}/")) == 307:
            note = f"the server generates; this needs {self.profile.capability(feature).note}"
            self.remember({feature: Capability(support="none", evidence="probed", note=note)})
        else:
            self.remember({feature: self.profile.capability(feature)})

    def _status(self, path: str) -> Operation[int | None]:
        try:
            answer: Answer = yield self.call("GET", path)
        except Redirected as error:
            return error.status
        return answer.status

    def ready(self, model: str) -> Operation[bool]:
        """`/health` answers once the model is loaded, and `/v1/models` has the name.

        A refused connection is "not yet": the port opens only when everything is loaded.
        """
        try:
            answer: Answer = yield self.call("GET", "/health", timeout=5)
        except (Unreachable, EngineLoading):
            return False
        if answer.status == 503:
            return False
        if not answer.ok:
            raise self.failure(answer.status, answer.headers, answer.body, path="/health")
        cards = yield from self.models()
        if model and not any(model == card.id for card in cards):
            raise ModelNotFound(
                f"{self.name} at {self.target.base_url} does not serve {model!r}",
                engine=self.name,
                url=self.target.base_url,
                model=model,
            )
        return True

    def models(self) -> Operation[tuple[ModelCard, ...]]:
        """Every served name and every LoRA adapter."""
        return model_cards((yield from routes.ask(self, "GET", "/v1/models")))

    # -- other routes -------------------------------------------------------------------

    def embed(self, request: EmbedRequest) -> Operation[Embeddings]:
        """`/v1/embeddings`, on a server started with a pooling model."""
        asked = routes.embed(self, request, self._embeds(request))
        made: Embeddings = yield from self._pooling("embeddings", asked)
        return made

    def rerank(self, request: RerankRequest) -> Operation[Ranking]:
        """`/v1/rerank`, on a server started with a scoring model."""
        draft = Draft(self, request, self.dialect)
        self._model(draft, request.model)
        draft.enter("query", "sent", {"query": request.query})
        draft.enter("documents", "sent", {"documents": list(request.documents)})
        if request.top_n is not UNSET:
            draft.enter("top_n", "sent", {"top_n": request.top_n})
        draft.options()
        made: Ranking = yield from self._pooling("rerank", routes.rerank(self, request, draft))
        return made

    def _pooling(
        self, feature: Literal["embeddings", "rerank"], operation: Operation[Any]
    ) -> Operation[Any]:
        """The routes of pooling models are absent from a server that generates."""
        try:
            return (yield from operation)
        except Unsupported as error:
            self.refuse(
                feature,
                f"the server answered {error.status}; it serves no pooling model",
                rule=f"vllm.{feature}",
                hint=self.profile.capability(feature).note,
                status=error.status,
            )

    def tokenize(self, text: str, *, model: str = "") -> Operation[tuple[int, ...]]:
        """`/tokenize`, without special tokens added."""
        body = {**_named(model), "prompt": text, "add_special_tokens": False}
        value = yield from routes.ask(self, "POST", "/tokenize", body)
        return tuple(value["tokens"])

    def detokenize(self, tokens: Sequence[int], *, model: str = "") -> Operation[str]:
        """`/detokenize`."""
        body = {**_named(model), "tokens": list(tokens)}
        value = yield from routes.ask(self, "POST", "/detokenize", body)
        return str(value["prompt"])

    def count_tokens(self, request: ChatRequest) -> Operation[int]:
        """`/tokenize` of the conversation, template and tools included."""
        body = self.encode(request).call.json
        keys = (
            "model",
            "messages",
            "tools",
            "chat_template_kwargs",
            "add_generation_prompt",
            "continue_final_message",
        )
        asked = {key: body[key] for key in keys if key in body}
        value = yield from routes.ask(self, "POST", "/tokenize", asked)
        return int(value["count"])

    def load_state(self) -> Operation[Load]:
        """From `/metrics`; absent series mean `--disable-log-stats`."""
        answer: Answer = yield self.call("GET", "/metrics")
        if not answer.ok:
            raise self.failure(answer.status, answer.headers, answer.body, path="/metrics")
        return load_of(routes.read_metrics(answer.body, mean=CACHE_USAGE))

    def load(self, model: str) -> Operation[None]:
        """Wake a sleeping server."""
        yield from self._sleep("load", "/wake_up")

    def unload(self, model: str) -> Operation[None]:
        """Put the server to sleep: weights leave the GPU. Requests sent meanwhile hang."""
        yield from self._sleep("unload", "/sleep?level=1")

    def asleep(self) -> Operation[bool]:
        """Whether the server sleeps; False where it cannot."""
        try:
            value = yield from routes.ask(self, "GET", "/is_sleeping")
        except Unsupported:
            return False
        return bool(value.get("is_sleeping"))

    def _sleep(self, verb: Literal["load", "unload"], path: str) -> Operation[None]:
        answer: Answer = yield self.call("POST", path, timeout=120)
        if answer.ok:
            return
        error = self.failure(answer.status, answer.headers, answer.body, path=path)
        if isinstance(error, Unsupported | BadRequest):
            self.refuse(
                verb,
                "sleep mode is off",
                rule=f"vllm.{verb}",
                hint="start the server with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1",
                status=error.status,
            )
        raise error


CACHE_USAGE: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
"""The gauge of the KV cache, by its name and by the one it had in older versions."""


def load_of(metrics: Mapping[str, float]) -> Load:
    """vLLM's metrics in the common shape."""

    def count(name: str) -> int | None:
        value = metrics.get(f"vllm:{name}")
        return None if value is None else int(value)

    return Load(
        running=count("num_requests_running"),
        waiting=count("num_requests_waiting"),
        kv_cache_usage=next((metrics[name] for name in CACHE_USAGE if name in metrics), None),
        prompt_tokens_total=count("prompt_tokens_total"),
        generated_tokens_total=count("generation_tokens_total"),
        extra={
            name.removeprefix("vllm:"): value
            for name, value in metrics.items()
            if name.startswith("vllm:") and not name.endswith("_bucket")
        },
    )


def _named(model: str) -> dict[str, str]:
    return {"model": model} if model else {}
