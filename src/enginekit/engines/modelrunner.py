"""Docker Model Runner, from its source: never run with enginekit.

Read in docker/model-runner at 642c721: `README.md` (port), `METRICS.md`, `pkg/server/server.go` (root,
version), `pkg/routing/router.go` and `pkg/inference/scheduling/http_handler.go` (routes, errors),
`pkg/inference/models/api.go` (model list), `pkg/inference/scheduling/api.go` (unload). Bodies go
unread to the backend behind it, llama.cpp by default, so replies are that engine's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

from enginekit.engine import Answer, Call, Framing, Operation, Target
from enginekit.engines import _openai_routes as routes
from enginekit.engines._fault import Case, overflow_facts
from enginekit.engines._messages import MessagePolicy
from enginekit.engines._params import Table, omitted, sent
from enginekit.engines._row import BIAS, Row, absent, depends, documented, emulated, stop_rule
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineError,
    EngineFault,
    EngineLoading,
    ModelNotFound,
    Unsupported,
)
from enginekit.facts.engine import EngineProfile, ModelCard, ServerFacts

PREFIX: Final = "/engines"
"""Where the API is; `/engines/BACKEND` names one backend."""

_BEHIND: Final = "the backend's own; not every one has it under this name"

PROFILE: Final = EngineProfile(
    name="modelrunner",
    title="Docker Model Runner",
    wire="OpenAI chat completions, SSE (the backend's: llama.cpp, vLLM, SGLang, MLX)",
    docs_url="https://docs.docker.com/ai/model-runner/",
    default_url="http://127.0.0.1:12434",
    sources=("docker/model-runner at 642c721: README.md, METRICS.md, pkg",),
    imitates=frozenset({"ollama", "vllm"}),
    capabilities={
        "chat": documented(),
        "completion": documented(),
        "stream": documented(),
        "tools": depends("a model whose chat template knows tools"),
        "tool_choice_required": emulated("by a JSON schema: llama.cpp behind it enforces none"),
        "tool_choice_named": emulated("by a JSON schema: llama.cpp behind it enforces none"),
        "parallel_tool_calls": documented("kept to one on our side"),
        "stream_tools": documented(),
        "json": documented(),
        "json_schema": documented(),
        "regex": absent("backends differ: use its backend as an engine of its own"),
        "grammar": absent("backends differ: use its backend as an engine of its own"),
        "choice": emulated("by an enum in a JSON schema"),
        "logprobs": depends("the backend"),
        "n": depends("the backend"),
        "reasoning": depends("a chat template with a switch for thinking"),
        "images": depends("a multimodal model"),
        "image_urls": depends("a multimodal model; the backend fetches them"),
        "audio": absent("not documented"),
        "embeddings": documented("the runner starts the model a second time, for embeddings"),
        "rerank": depends("a reranking model"),
        "tokenize": absent("no such route"),
        "detokenize": absent("no such route"),
        "count_tokens": absent("no such route"),
        "fim": absent("no such route"),
        "lora": absent("no such route"),
        "metrics": documented("GET /metrics, of the llama.cpp runners; off with DISABLE_METRICS"),
        "unload": documented("POST /engines/unload"),
        "version": documented("GET /version"),
    },
    roles=frozenset({"local", "desktop", "server"}),
    memory="file",
    weight_formats=("gguf", "safetensors"),
    model_id="tag",
    start_command="docker model run {model}",
)

_OWN: Final = omitted("backends name it differently")

SAMPLING: Final[Table] = {
    "temperature": sent("temperature", 0),
    "top_p": sent("top_p", 0, 1),
    "top_k": sent("top_k", 0),
    "min_p": sent("min_p", 0, 1),
    "typical_p": _OWN,
    "seed": sent("seed", 0, 2**32 - 1),
    "max_tokens": sent("max_tokens", 1),
    "min_tokens": _OWN,
    "stop": stop_rule,
    "repetition_penalty": _OWN,
    "repetition_window": _OWN,
    "frequency_penalty": sent("frequency_penalty"),
    "presence_penalty": sent("presence_penalty"),
    "logit_bias": BIAS,
    "ignore_eos": sent("ignore_eos"),
    "mirostat": _OWN,
    "mirostat_tau": _OWN,
    "mirostat_eta": _OWN,
    "logprobs": sent("logprobs"),
    "top_logprobs": sent("top_logprobs", 0),
    "n": sent("n", 1),
}

FAULTS: Final[tuple[Case, ...]] = (
    Case(error=ModelNotFound, name="model", status=(404,), text=r"model not found"),
    Case(
        error=Unsupported,
        name="backend",
        status=(404, 412),
        text="backend not found|is not installed",
        hint="docker model install-runner --backend NAME",
    ),
    Case(
        error=EngineLoading,
        name="installing",
        status=(503,),
        text="service unavailable|installer not started",
        says="its backend is not up",
    ),
    Case(
        error=ContextOverflow,
        name="context",
        type="exceed_context_size_error",
        facts=overflow_facts,
        hint="docker model configure --context-size TOKENS MODEL",
    ),
    Case(error=BadRequest, name="large", status=(400,), text="request too large"),
    Case(
        error=EngineFault,
        name="runner",
        status=(500,),
        text="unable to load runner",
        says="it could not start the model",
        hint="docker model logs",
    ),
)


class ModelRunner(Row):
    """A Docker Model Runner at one address, with or without `/engines[/BACKEND]` at its end."""

    profile: ClassVar[EngineProfile] = PROFILE
    dialect: ClassVar[str] = "modelrunner"
    sampling: ClassVar[Table] = SAMPLING
    faults: ClassVar[tuple[Case, ...]] = FAULTS
    policy: ClassVar[MessagePolicy] = MessagePolicy(audio=False)
    chat_path: ClassVar[str] = "/engines/v1/chat/completions"
    completion_path: ClassVar[str] = "/engines/v1/completions"
    embed_path: ClassVar[str] = "/engines/v1/embeddings"
    rerank_path: ClassVar[str] = "/engines/rerank"
    health_path: ClassVar[str] = ""
    thinking: ClassVar[Literal["template", "effort", "both", ""]] = "template"
    _window_hint: ClassVar[str] = "docker model configure --context-size {value} MODEL"
    metrics: ClassVar[Mapping[str, str]] = {
        "prompt_tokens_total": "llama_prompt_tokens_total",
        "generated_tokens_total": "llama_generation_tokens_total",
    }

    def call(
        self,
        method: Literal["GET", "POST", "DELETE", "HEAD"],
        path: str,
        json: Any = None,
        *,
        framing: Framing = "json",
        timeout: float = 10.0,
    ) -> Call:
        """A call below the address given, which may end in `/engines` or name a backend."""
        if PREFIX in self.target.base_url:
            path = path.removeprefix(PREFIX)
        return super().call(method, path, json, framing=framing, timeout=timeout)

    @classmethod
    def recognise(cls, target: Target) -> Operation[bool]:
        """Whether `GET /` says that Docker Model Runner is running."""
        answer: Answer = yield cls(target).call("GET", "/", framing="text")
        return answer.ok and answer.body.strip() == b"Docker Model Runner is running"

    def probe(self) -> Operation[ServerFacts]:
        """Read the models and `/version`."""
        cards = yield from self.models()
        try:
            value = yield from routes.ask(self, "GET", "/version")
        except EngineError:
            value = {}
        version = value.get("version") if isinstance(value, Mapping) else None
        return self._facts(
            cards, version=version, source="dmr.context_window of GET /engines/v1/models"
        )

    def models(self) -> Operation[tuple[ModelCard, ...]]:
        """The models that were pulled, of `/engines/v1/models`."""
        listing = yield from routes.ask(self, "GET", f"{PREFIX}/v1/models")
        items = listing.get("data") if isinstance(listing, Mapping) else None
        return tuple(self._card(item) for item in items or ())

    def _card(self, item: Mapping[str, Any]) -> ModelCard:
        told = item.get("dmr") or {}
        name = str(item["id"])
        short = name.removeprefix("docker.io/").removesuffix(":latest")
        return ModelCard(
            id=name,
            context_window=told.get("context_window"),
            aliases=(short,) if short != name else (),
            extra={"dmr": dict(told)},
        )

    def unload(self, model: str) -> Operation[None]:
        """Stop the runners of a model. One that is answering is left alone by the server."""
        yield from routes.ask(self, "POST", f"{PREFIX}/unload", {"models": [model]})
