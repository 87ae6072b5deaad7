"""LMDeploy's API server, from its source: never run with enginekit.

Read in InternLM/lmdeploy at 1263d5c (0.16.0), files below `lmdeploy/serve`: `openai/protocol.py`
(fields), `openai/chat_completions/validation.py` and `serving.py` (ranges, tools, streams),
`openai/endpoints` (models, health, sleep, encode), `openai/errors.py`, `core/exceptions.py`,
`core/async_engine.py` (context length); `lmdeploy/metrics/loggers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

from enginekit.engine import Answer, Operation
from enginekit.engines import _openai_routes as routes
from enginekit.engines._fault import Case, overflow_facts
from enginekit.engines._messages import MessagePolicy
from enginekit.engines._params import Draft, Rule, Table, omitted, sent
from enginekit.engines._row import BIAS, Row, absent, depends, documented, emulated, stop_rule
from enginekit.errors import (
    ContextOverflow,
    EngineDied,
    EngineFault,
    EngineLoading,
    ModelNotFound,
    Unsupported,
)
from enginekit.facts.engine import EngineProfile
from enginekit.types import UNSET, CompletionRequest, Constraint

TOOL_FLAG: Final = "--tool-call-parser NAME"
_BY_SCHEMA: Final = "by a JSON schema: the server only shows the tools to the model"

PROFILE: Final = EngineProfile(
    name="lmdeploy",
    title="LMDeploy",
    wire="OpenAI chat completions, SSE",
    docs_url="https://lmdeploy.readthedocs.io",
    default_url="http://127.0.0.1:23333",
    sources=("InternLM/lmdeploy at 1263d5c (0.16.0): lmdeploy/serve, lmdeploy/metrics",),
    capabilities={
        "chat": documented(),
        "completion": documented(),
        "stream": documented(),
        "tools": depends(TOOL_FLAG),
        "tool_choice_required": emulated(_BY_SCHEMA),
        "tool_choice_named": emulated(_BY_SCHEMA),
        "parallel_tool_calls": documented(),
        "stream_tools": documented(),
        "json": documented(),
        "json_schema": documented(),
        "regex": documented("as response_format regex_schema"),
        "grammar": absent("it has JSON schemas and patterns"),
        "choice": emulated("by an enum in a JSON schema"),
        "logprobs": depends("--logprobs-mode"),
        "n": documented("128 at most"),
        "reasoning": depends("--reasoning-parser NAME; without it thinking comes inline"),
        "images": depends("a vision model"),
        "image_urls": depends("a vision model; the server fetches them"),
        "audio": absent("not documented"),
        "embeddings": absent("its /v1/embeddings answers 400: Unsupported by turbomind."),
        "rerank": absent("no such route"),
        "tokenize": documented("POST /v1/encode"),
        "detokenize": absent("no such route"),
        "count_tokens": absent("it encodes texts, not conversations"),
        "fim": absent("the field suffix is read and not used"),
        "lora": depends("--adapters NAME=PATH"),
        "metrics": depends("--enable-metrics"),
        "load": documented("POST /wakeup"),
        "unload": documented("POST /sleep"),
        "version": absent("no route tells it"),
    },
    defaults={
        "temperature": "generation_config.json of the model, else 0.8",
        "top_p": "generation_config.json of the model, else 1.0",
        "top_k": "generation_config.json of the model, else 50",
        "max_tokens": "the rest of the context",
        "n": 1,
    },
    roles=frozenset({"server", "production"}),
    memory="preallocate",
    weight_formats=("safetensors",),
    model_id="served",
    start_command="lmdeploy serve api_server {model} --server-name 127.0.0.1 "
    "--server-port 23333 " + TOOL_FLAG,
)

SAMPLING: Final[Table] = {
    "temperature": sent("temperature", 0, 2),
    "top_p": sent("top_p", 0, 1, above=True),
    "top_k": sent("top_k", 0),
    "min_p": sent("min_p", 0, 1),
    "typical_p": omitted("LMDeploy has no typical sampling"),
    "seed": sent("seed"),
    "max_tokens": sent("max_tokens", 1),
    "min_tokens": Rule(
        outcome="translated", wire="min_new_tokens", low=0, note="the wire name is min_new_tokens"
    ),
    "stop": stop_rule,
    "repetition_penalty": sent("repetition_penalty", 0, above=True),
    "repetition_window": omitted("the penalty always looks at the whole text"),
    "frequency_penalty": omitted("the field is read and not used"),
    "presence_penalty": omitted("the field is read and not used"),
    "logit_bias": BIAS,
    "ignore_eos": sent("ignore_eos"),
    "mirostat": omitted("LMDeploy has no Mirostat"),
    "mirostat_tau": omitted("LMDeploy has no Mirostat"),
    "mirostat_eta": omitted("LMDeploy has no Mirostat"),
    "logprobs": sent("logprobs"),
    "top_logprobs": sent("top_logprobs", 0),
    "n": sent("n", 1, 128),
}


def _feature(name: str) -> Any:
    return lambda fault, match: {"feature": name, "rule": f"lmdeploy.{name}"}


FAULTS: Final[tuple[Case, ...]] = (
    Case(
        error=EngineLoading,
        name="asleep",
        status=(503,),
        text="engine is sleeping",
        says="it was put to sleep and has to be woken",
        hint="POST /wakeup",
    ),
    Case(
        error=EngineDied,
        name="unavailable",
        text="inference engine is unavailable",
        hint="look at the server's log",
    ),
    Case(
        error=ContextOverflow,
        name="context",
        text=r"input length \((?P<requested>\d+)\) must be smaller than the model context length "
        r"\((?P<limit>\d+)",
        facts=overflow_facts,
        hint="shorten the conversation, or start the server with a larger --session-len",
    ),
    Case(
        error=ModelNotFound,
        name="model",
        status=(404,),
        text=r"the model '(?P<model>[^']*)' does not exist",
    ),
    Case(
        error=Unsupported,
        name="tools",
        text="launch the api_server with --tool-call-parser",
        facts=_feature("tools"),
        hint=f"start the server with {TOOL_FLAG}",
    ),
    Case(
        error=Unsupported,
        name="logprobs",
        text="not enabled logprobs_mode",
        facts=_feature("logprobs"),
        hint="start the server with --logprobs-mode",
    ),
    Case(
        error=Unsupported,
        name="embeddings",
        text="unsupported by turbomind",
        facts=_feature("embeddings"),
    ),
    Case(error=EngineFault, name="fault", status=(500,)),
)


class LMDeploy(Row):
    """An LMDeploy API server at one address."""

    profile: ClassVar[EngineProfile] = PROFILE
    dialect: ClassVar[str] = "lmdeploy"
    sampling: ClassVar[Table] = SAMPLING
    faults: ClassVar[tuple[Case, ...]] = FAULTS
    policy: ClassVar[MessagePolicy] = MessagePolicy(developer="system", audio=False)
    owner: ClassVar[str] = "lmdeploy"
    thinking: ClassVar[Literal["template", "effort", "both", ""]] = "both"
    parallel_key: ClassVar[bool] = True
    _window_hint: ClassVar[str] = "start the server with --session-len {value}"
    metrics: ClassVar[Mapping[str, str]] = {
        "running": "lmdeploy:num_requests_running",
        "waiting": "lmdeploy:num_requests_waiting",
        "kv_cache_usage": "lmdeploy:gpu_cache_usage_perc",
        "prompt_tokens_total": "lmdeploy:prompt_tokens_total",
        "generated_tokens_total": "lmdeploy:generation_tokens_total",
    }

    def _own_constraint(self, constraint: Constraint) -> dict[str, Any]:
        if constraint.kind != "regex":
            return {}
        return {"response_format": {"type": "regex_schema", "regex_schema": constraint.value}}

    def _completion(self, request: CompletionRequest, stream: bool) -> Any:
        """Its text completions know neither response formats nor adapters."""
        if request.constraint is not UNSET:
            self.refuse(
                "json_schema",
                "its text completions take no constraint",
                rule="lmdeploy.constraint.completion",
                hint="ask in a chat",
            )
        return super()._completion(request, stream)

    def _lora(self, draft: Draft, value: Any) -> None:
        """An adapter is a model of its own name."""
        if not isinstance(value, str):
            draft.refuse("lora", "an adapter is chosen by its name, and has no scale")
        draft.adapter(value)

    def tokenize(self, text: str, *, model: str = "") -> Operation[tuple[int, ...]]:
        """`/v1/encode`, without a token for the beginning."""
        body = {"input": text, "add_bos": False}
        value = yield from routes.ask(self, "POST", "/v1/encode", body)
        return tuple(value["input_ids"])

    def load(self, model: str) -> Operation[None]:
        """Wake a sleeping server."""
        yield from self._sleep("/wakeup")

    def unload(self, model: str) -> Operation[None]:
        """Put the server to sleep; it answers 503 until it is woken."""
        yield from self._sleep("/sleep?level=1")

    def _sleep(self, path: str) -> Operation[None]:
        answer: Answer = yield self.call("POST", path, {}, timeout=120)
        if not answer.ok:
            raise self.failure(answer.status, answer.headers, answer.body, path=path)
