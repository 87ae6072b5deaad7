"""LM Studio's server, from its documentation: never run with enginekit.

Read in the repository lmstudio-ai/docs at c6854fb: `1_developer/3_openai-compat` (parameters, tools,
structured output), `1_developer/2_rest` (`/api/v1` and `/api/v0`: models, load, unload),
`1_developer/0_core/ttl-and-auto-evict.md`, `1_developer/api-changelog.md`. What it answers to a
mistake is documented nowhere, so its refusals are read by the dialect's common table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from enginekit.engine import Operation, Target
from enginekit.engines import _openai_routes as routes
from enginekit.engines._messages import MessagePolicy
from enginekit.engines._params import Draft, Rule, Table, omitted, refused, sent
from enginekit.engines._row import (
    BIAS,
    Row,
    absent,
    depends,
    documented,
    emulated,
    json_at,
    stop_rule,
    told,
)
from enginekit.errors import EngineError, ModelNotFound
from enginekit.facts.engine import Capability, EngineProfile, Feature, ModelCard, ServerFacts

_LOAD: Final = "POST /api/v1/models/load, since LM Studio 0.4.0"

PROFILE: Final = EngineProfile(
    name="lmstudio",
    title="LM Studio",
    wire="OpenAI chat completions, SSE; models by /api/v1",
    docs_url="https://lmstudio.ai/docs/developer",
    default_url="http://127.0.0.1:1234",
    sources=("lmstudio-ai/docs at c6854fb: 1_developer",),
    capabilities={
        "chat": documented(),
        "completion": documented("the prompt template is not applied"),
        "stream": documented(),
        "tools": documented("every model to some degree; what cannot be parsed stays text"),
        "tool_choice_required": emulated("by a JSON schema: the server's own is llama.cpp's only"),
        "tool_choice_named": emulated("by a JSON schema"),
        "parallel_tool_calls": documented("no parameter: kept to one on our side"),
        "stream_tools": documented(),
        "json": emulated("by a JSON schema of any object"),
        "json_schema": documented(),
        "regex": absent("JSON schemas only"),
        "grammar": absent("JSON schemas only"),
        "choice": emulated("by an enum in a JSON schema"),
        "logprobs": absent("not among the parameters of its chat completions"),
        "n": absent("not among the parameters of its chat completions"),
        "reasoning": absent("no switch on this route; thinking is told from the answer"),
        "images": depends("a model that sees"),
        "image_urls": absent("not documented: images go as bytes"),
        "audio": absent("not documented"),
        "embeddings": depends("an embedding model"),
        "rerank": absent("no such route"),
        "tokenize": absent("no such route"),
        "detokenize": absent("no such route"),
        "count_tokens": absent("no such route"),
        "fim": absent("not documented"),
        "lora": absent("not documented"),
        "keep_alive": documented("as ttl, for models that a request loads"),
        "metrics": absent("no such route"),
        "load": documented(_LOAD),
        "unload": documented("POST /api/v1/models/unload, since LM Studio 0.4.0"),
        "version": absent("no route tells it"),
    },
    roles=frozenset({"local", "desktop"}),
    memory="file",
    weight_formats=("gguf", "mlx"),
    model_id="tag",
    start_command="lms server start --port 1234",
)

_UNKNOWN: Final = omitted("not among the documented parameters")

SAMPLING: Final[Table] = {
    "temperature": sent("temperature", 0),
    "top_p": sent("top_p", 0, 1),
    "top_k": sent("top_k", 0),
    "min_p": _UNKNOWN,
    "typical_p": _UNKNOWN,
    "seed": sent("seed"),
    "max_tokens": sent("max_tokens", 1),
    "min_tokens": _UNKNOWN,
    "stop": stop_rule,
    "repetition_penalty": Rule(
        outcome="translated",
        wire="repeat_penalty",
        low=0,
        note="the wire name is repeat_penalty",
    ),
    "repetition_window": _UNKNOWN,
    "frequency_penalty": sent("frequency_penalty"),
    "presence_penalty": sent("presence_penalty"),
    "logit_bias": BIAS,
    "ignore_eos": _UNKNOWN,
    "mirostat": _UNKNOWN,
    "mirostat_tau": _UNKNOWN,
    "mirostat_eta": _UNKNOWN,
    "logprobs": lambda wish: (
        refused("not among the documented parameters")
        if wish
        else Rule(outcome="translated", note="it gives none")
    ),
    "top_logprobs": refused("not among the documented parameters"),
    "n": lambda n: (
        Rule(outcome="translated", note="one is what it makes")
        if n == 1
        else refused("it makes one alternative")
    ),
}


class LMStudio(Row):
    """An LM Studio server at one address."""

    profile: ClassVar[EngineProfile] = PROFILE
    dialect: ClassVar[str] = "lmstudio"
    sampling: ClassVar[Table] = SAMPLING
    policy: ClassVar[MessagePolicy] = MessagePolicy(developer="system", images="data", audio=False)
    health_path: ClassVar[str] = ""
    _window_hint: ClassVar[str] = "load the model with lms load --context-length {value}"

    @classmethod
    def recognise(cls, target: Target) -> Operation[bool]:
        """Whether `/api/v1/models`, or the older `/api/v0/models`, lists models as only it does."""
        listing = yield from json_at(cls(target), "/api/v1/models")
        items = listing.get("models") if isinstance(listing, Mapping) else None
        if isinstance(items, list):
            return all(isinstance(item, Mapping) and "loaded_instances" in item for item in items)
        listing = yield from json_at(cls(target), "/api/v0/models")
        items = listing.get("data") if isinstance(listing, Mapping) else None
        if not isinstance(items, list) or not items:
            return False
        return all(isinstance(item, Mapping) and "compatibility_type" in item for item in items)

    def probe(self) -> Operation[ServerFacts]:
        """Read the models with their state, and what the chosen one can do."""
        cards = yield from self.models()
        wanted = str(self.options.get("model") or "")
        chosen = next((card for card in cards if wanted in (card.id, *card.aliases)), None)
        return self._facts(
            cards,
            source="config.context_length of the loaded instance",
            capabilities=narrow(chosen) if chosen is not None else {},
        )

    def models(self) -> Operation[tuple[ModelCard, ...]]:
        """Of `/api/v1/models`; of `/api/v0/models` or `/v1/models` where that is missing."""
        for path, key in (("/api/v1/models", "models"), ("/api/v0/models", "data")):
            try:
                listing = yield from routes.ask(self, "GET", path)
            except EngineError as error:
                if error.status in (404, 405):
                    continue
                raise
            items = listing.get(key) if isinstance(listing, Mapping) else None
            if isinstance(items, list):
                return tuple(card_of(item) for item in items)
        return (yield from super().models())

    def _scalar(self, draft: Draft, name: str, value: Any) -> None:
        if name == "keep_alive" and value > 0:
            draft.enter(
                name,
                "translated",
                {"ttl": int(value)},
                note="as ttl, which a model has that a request loads",
            )
        elif name == "keep_alive":
            draft.omit(name, "a time to live is a positive number of seconds here")
        else:
            super()._scalar(draft, name, value)

    def _own_constraint(self, constraint: Any) -> dict[str, Any]:
        if constraint.kind == "json":
            return self._schema_parts({"type": "object"}, constraint.name, None)
        return {}

    def load(self, model: str) -> Operation[None]:
        """Load a model; returns when it is loaded."""
        yield from routes.ask(
            self, "POST", "/api/v1/models/load", {"model": model}, timeout=routes.LONG
        )

    def unload(self, model: str) -> Operation[None]:
        """Unload every instance of a model. Raises ModelNotFound where none is loaded."""
        cards = yield from self.models()
        instances = [
            name
            for card in cards
            if model in (card.id, *card.aliases)
            for name in card.extra.get("instances", ())
        ]
        if not instances:
            raise ModelNotFound(
                f"{self.name} at {self.target.base_url} has no loaded model {model!r}",
                engine=self.name,
                url=self.target.base_url,
                model=model,
            )
        for name in instances:
            yield from routes.ask(self, "POST", "/api/v1/models/unload", {"instance_id": name})


def card_of(item: Mapping[str, Any]) -> ModelCard:
    """A model of `/api/v1/models` (with instances) or of `/api/v0/models` (with a state)."""
    instances = [one for one in item.get("loaded_instances") or () if isinstance(one, Mapping)]
    windows = [(one.get("config") or {}).get("context_length") for one in instances]
    state = item.get("state")
    loaded = bool(instances) if "loaded_instances" in item else None
    if loaded is None and state is not None:
        loaded = state == "loaded"
    name = str(item.get("key") or item.get("id") or "")
    names = tuple(str(one["id"]) for one in instances if one.get("id"))
    return ModelCard(
        id=name,
        context_window=min((window for window in windows if window), default=None),
        aliases=tuple(other for other in names if other != name),
        loaded=loaded,
        extra={
            "type": item.get("type"),
            "max_context_length": item.get("max_context_length"),
            "capabilities": item.get("capabilities") or {},
            "instances": names,
        },
    )


def narrow(card: ModelCard) -> dict[Feature, Capability]:
    """What the list says of one model: whether it embeds or generates, and whether it sees."""
    found: dict[Feature, Capability] = {}
    kind = card.extra.get("type")
    if kind in ("embedding", "embeddings"):
        found["embeddings"] = told("native")
        found["chat"] = found["completion"] = told("none", f"{card.id} is an embedding model")
    elif kind in ("llm", "vlm"):
        found["embeddings"] = told("none", f"{card.id} is no embedding model")
        caps = card.extra.get("capabilities")
        sees = caps.get("vision") if isinstance(caps, Mapping) else None
        if kind == "vlm" or sees is True:
            found["images"] = told("native")
        elif sees is False:
            found["images"] = told("none", f"{card.id} takes no images")
    return found
