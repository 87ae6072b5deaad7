"""SGLang's OpenAI server, from its source: never run with enginekit.

Read in sglang 0.5.23 (wheel), files below `sglang/srt`: `entrypoints/http_server.py` (routes, model
and server info, auth), `entrypoints/openai/protocol.py` (fields, defaults), `serving_base.py` and
`serving_chat.py` (errors, streams, tools), `serving_tokenize.py`, `managers/tokenizer_manager.py`
(limits), `observability/metrics_collector.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

from enginekit.engine import Operation
from enginekit.engines import _openai_routes as routes
from enginekit.engines._fault import Case, overflow_facts, retry_facts
from enginekit.engines._messages import MessagePolicy
from enginekit.engines._params import Draft, Rule, Table, omitted, sent
from enginekit.engines._row import (
    BIAS,
    Row,
    absent,
    depends,
    documented,
    emulated,
    newer,
    stop_rule,
    told,
)
from enginekit.errors import (
    ContextOverflow,
    EngineError,
    EngineFault,
    ModelNotFound,
    Overloaded,
    Unsupported,
)
from enginekit.facts.engine import Capability, EngineProfile, Feature, ServerFacts
from enginekit.types import ChatRequest, Constraint

READ: Final = (0, 5)
TOOL_FLAG: Final = "--tool-call-parser NAME"

PROFILE: Final = EngineProfile(
    name="sglang",
    title="SGLang",
    wire="OpenAI chat completions, SSE",
    docs_url="https://docs.sglang.ai",
    default_url="http://127.0.0.1:30000",
    sources=("sglang 0.5.23 (wheel): sglang/srt/entrypoints, managers/tokenizer_manager.py",),
    capabilities={
        "chat": documented(),
        "completion": documented("max_tokens is needed: 16 by default"),
        "stream": documented(),
        "tools": depends(TOOL_FLAG),
        "tool_choice_required": depends(TOOL_FLAG),
        "tool_choice_named": depends(TOOL_FLAG),
        "parallel_tool_calls": documented(),
        "stream_tools": documented(),
        "json": documented(),
        "json_schema": documented(),
        "regex": documented("as regex"),
        "grammar": documented("as ebnf"),
        "choice": emulated("by an enum in a JSON schema"),
        "logprobs": documented(),
        "n": documented(),
        "reasoning": depends("--reasoning-parser NAME; without it thinking comes inline"),
        "images": depends("a multimodal model"),
        "image_urls": depends("a multimodal model"),
        "audio": depends("a multimodal model"),
        "embeddings": depends("--is-embedding"),
        "rerank": depends("a reranking model"),
        "tokenize": documented(),
        "detokenize": documented(),
        "count_tokens": documented("/tokenize of the conversation"),
        "fim": absent("the suffix is handed to a completion template that few models have"),
        "lora": depends("--enable-lora"),
        "metrics": depends("--enable-metrics"),
        "version": documented("version of GET /server_info"),
    },
    defaults={
        "temperature": "generation_config.json of the model, else 1.0",
        "top_p": "generation_config.json of the model, else 1.0",
        "top_k": "generation_config.json of the model, else off",
        "min_p": "generation_config.json of the model, else 0.0",
        "repetition_penalty": "generation_config.json of the model, else 1.0",
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "max_tokens": "the rest of the context",
        "min_tokens": 0,
        "n": 1,
    },
    roles=frozenset({"server", "cluster", "production"}),
    memory="preallocate",
    weight_formats=("safetensors",),
    model_id="served",
    start_command="python -m sglang.launch_server --model-path {model} --host 127.0.0.1 "
    "--port 30000 " + TOOL_FLAG,
)

SAMPLING: Final[Table] = {
    "temperature": sent("temperature", 0),
    "top_p": sent("top_p", 0, 1, above=True),
    "top_k": Rule(
        outcome="translated",
        wire="top_k",
        value=lambda k: k if k > 0 else -1,
        note="0 is -1 here: off",
    ),
    "min_p": sent("min_p", 0, 1),
    "typical_p": omitted("SGLang has no typical sampling"),
    "seed": sent("seed", -(2**63), 2**63 - 1),
    "max_tokens": sent("max_tokens", 1),
    "min_tokens": sent("min_tokens", 0),
    "stop": stop_rule,
    "repetition_penalty": sent("repetition_penalty", 0, 2, above=True),
    "repetition_window": omitted("the penalty always looks at the whole text"),
    "frequency_penalty": sent("frequency_penalty", -2, 2),
    "presence_penalty": sent("presence_penalty", -2, 2),
    "logit_bias": BIAS,
    "ignore_eos": sent("ignore_eos"),
    "mirostat": omitted("SGLang has no Mirostat"),
    "mirostat_tau": omitted("SGLang has no Mirostat"),
    "mirostat_eta": omitted("SGLang has no Mirostat"),
    "logprobs": sent("logprobs"),
    "top_logprobs": sent("top_logprobs", 0),
    "n": sent("n", 1),
}


def _feature(name: str) -> Any:
    return lambda fault, match: {"feature": name, "rule": f"sglang.{name}"}


_LARGER: Final = "shorten the conversation, or start the server with a larger --context-length"

FAULTS: Final[tuple[Case, ...]] = (
    Case(
        error=ContextOverflow,
        name="input",
        text=r"input \((?P<requested>\d+) tokens\) is longer than the model's context length "
        r"\((?P<limit>\d+)",
        facts=overflow_facts,
        hint=_LARGER,
    ),
    Case(
        error=ContextOverflow,
        name="total",
        text=r"maximum context length of (?P<limit>\d+) tokens. You requested a total of "
        r"(?P<requested>\d+)",
        facts=overflow_facts,
        hint=_LARGER,
    ),
    Case(
        error=ContextOverflow,
        name="output",
        text=r"max_completion_tokens is too large: (?P<requested>\d+)\.\s*This model supports at "
        r"most (?P<limit>\d+)",
        facts=overflow_facts,
        hint="ask for fewer tokens",
    ),
    Case(
        error=Overloaded,
        name="queue",
        status=(503,),
        text="request queue is full",
        facts=retry_facts,
        says="its queue is full",
    ),
    Case(
        error=ModelNotFound,
        name="model",
        status=(404,),
        text=r"the model '(?P<model>[^']*)' does not exist",
    ),
    Case(
        error=Unsupported,
        name="embeddings",
        text="does not appear to be an embedding model",
        facts=_feature("embeddings"),
        hint="start the server with --is-embedding and a model that embeds",
    ),
    Case(error=EngineFault, name="fault", status=(500,)),
)


class SGLang(Row):
    """An SGLang server at one address."""

    profile: ClassVar[EngineProfile] = PROFILE
    dialect: ClassVar[str] = "sglang"
    sampling: ClassVar[Table] = SAMPLING
    faults: ClassVar[tuple[Case, ...]] = FAULTS
    policy: ClassVar[MessagePolicy] = MessagePolicy(reasoning="reasoning_content")
    owner: ClassVar[str] = "sglang"
    window_key: ClassVar[str] = "max_model_len"
    thinking: ClassVar[Literal["template", "effort", "both", ""]] = "both"
    parallel_key: ClassVar[bool] = True
    completion_limit: ClassVar[int] = 16
    _window_hint: ClassVar[str] = "start the server with --context-length {value}"
    metrics: ClassVar[Mapping[str, str]] = {
        "running": "sglang:num_running_reqs",
        "waiting": "sglang:num_queue_reqs",
        "kv_cache_usage": "sglang:token_usage",
        "prompt_tokens_total": "sglang:prompt_tokens_total",
        "generated_tokens_total": "sglang:generation_tokens_total",
    }

    def probe(self) -> Operation[ServerFacts]:
        """Read `/v1/models`, `/model_info` and the version of `/server_info`."""
        cards = yield from self.models()
        model = yield from self._asked("/model_info")
        server = yield from self._asked("/server_info")
        version = server.get("version")
        notes = []
        if newer(version, READ):
            known = ".".join(map(str, READ))
            notes.append(f"SGLang {version} is newer than {known}, whose source was read")
        return self._facts(cards, version=version, capabilities=narrow(model), notes=notes)

    def _asked(self, path: str) -> Operation[Mapping[str, Any]]:
        try:
            value = yield from routes.ask(self, "GET", path)
        except EngineError:
            return {}
        return value if isinstance(value, Mapping) else {}

    def _own_constraint(self, constraint: Constraint) -> dict[str, Any]:
        wire = {"regex": "regex", "grammar": "ebnf"}.get(constraint.kind)
        return {wire: constraint.value} if wire else {}

    def _lora(self, draft: Draft, value: Any) -> None:
        if not isinstance(value, str):
            draft.refuse("lora", "an adapter is chosen by its name, and has no scale")
        draft.enter("lora", "translated", {"lora_path": value}, note="as lora_path")

    def _request_id(self, draft: Draft, request_id: str) -> None:
        draft.enter("request_id", "translated", {"rid": request_id}, note="as rid")

    def tokenize(self, text: str, *, model: str = "") -> Operation[tuple[int, ...]]:
        """`/tokenize`, without special tokens added."""
        body = {"model": model or "default", "prompt": text, "add_special_tokens": False}
        value = yield from routes.ask(self, "POST", "/tokenize", body)
        return tuple(value["tokens"])

    def detokenize(self, tokens: Sequence[int], *, model: str = "") -> Operation[str]:
        """`/detokenize`."""
        body = {"model": model or "default", "tokens": list(tokens)}
        value = yield from routes.ask(self, "POST", "/detokenize", body)
        return str(value["text"])

    def count_tokens(self, request: ChatRequest) -> Operation[int]:
        """`/tokenize` of the conversation, template and tools included."""
        body = self.encode(request).call.json
        keys = ("model", "messages", "tools", "tool_choice", "chat_template_kwargs")
        asked = {key: body[key] for key in keys if key in body}
        value = yield from routes.ask(self, "POST", "/tokenize", asked)
        return int(value["count"])


def narrow(info: Mapping[str, Any]) -> dict[Feature, Capability]:
    """What `/model_info` settles: tool parser, thinking, eyes, ears, and whether it generates."""
    found: dict[Feature, Capability] = {}
    if "tool_call_parser" in info:
        native = bool(info["tool_call_parser"])
        note = "" if native else f"by a JSON schema; natively with {TOOL_FLAG}"
        for feature in TOOLS:
            found[feature] = told("native" if native else "emulated", note)
    for key, features in SEES.items():
        if isinstance(info.get(key), bool):
            for feature in features:
                found[feature] = (
                    told("native") if info[key] else told("none", "this model does not take them")
                )
    if isinstance(info.get("is_generation"), bool):
        generates = info["is_generation"]
        for feature in GENERATING if not generates else EMBEDDING:
            found[feature] = told(
                "none",
                "the server was started with --is-embedding"
                if not generates
                else "the server generates; one started with --is-embedding embeds",
            )
        if not generates:
            found["embeddings"] = told("native")
    return found


TOOLS: Final[tuple[Feature, ...]] = ("tools", "tool_choice_required", "tool_choice_named")
SEES: Final[Mapping[str, tuple[Feature, ...]]] = {
    "has_image_understanding": ("images", "image_urls"),
    "has_audio_understanding": ("audio",),
}
GENERATING: Final[tuple[Feature, ...]] = ("chat", "completion")
EMBEDDING: Final[tuple[Feature, ...]] = ("embeddings",)
