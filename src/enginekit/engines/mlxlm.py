"""mlx-lm's HTTP server, from its source: never run with enginekit.

Read in ml-explore/mlx-lm at d78bf58 (0.32.0): `mlx_lm/server.py` (fields and their checks, replies,
errors, routes) and `mlx_lm/SERVER.md`. A value out of range ends the request without any answer, so
the ranges stand here.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

from enginekit.engine import Answer, Operation, Target
from enginekit.engines._fault import Case, model_facts
from enginekit.engines._messages import MessagePolicy
from enginekit.engines._openai import Plan
from enginekit.engines._params import Draft, Table, omitted, refused, sent
from enginekit.engines._params import Rule as _Rule
from enginekit.engines._row import BIAS, Row, absent, depends, documented, stop_rule
from enginekit.errors import BadRequest, EngineFault, ModelNotFound, Unsupported
from enginekit.facts.engine import EngineProfile
from enginekit.types import UNSET, ChatRequest, CompletionRequest, Sampling

UNLIMITED: Final = 2**31 - 1
"""`max_tokens` of a request that sets none: the server's own default would cut at 512."""

_NO_FORMAT: Final = "the server constrains no output: it reads no response_format"

PROFILE: Final = EngineProfile(
    name="mlxlm",
    title="mlx-lm",
    wire="OpenAI chat completions, SSE",
    docs_url="https://github.com/ml-explore/mlx-lm",
    default_url="http://127.0.0.1:8080",
    sources=("ml-explore/mlx-lm at d78bf58 (0.32.0): mlx_lm/server.py, mlx_lm/SERVER.md",),
    capabilities={
        "chat": documented(),
        "completion": documented(),
        "stream": documented(),
        "tools": depends("a model whose tokenizer has a tool parser"),
        "tool_choice_required": absent(_NO_FORMAT),
        "tool_choice_named": absent(_NO_FORMAT),
        "parallel_tool_calls": documented("no parameter: kept to one on our side"),
        "stream_tools": documented(),
        "json": absent(_NO_FORMAT),
        "json_schema": absent(_NO_FORMAT),
        "regex": absent(_NO_FORMAT),
        "grammar": absent(_NO_FORMAT),
        "choice": absent(_NO_FORMAT),
        "logprobs": documented("not in a stream: asked for without streaming"),
        "n": absent("one reply to a request"),
        "reasoning": depends("a chat template with a switch for thinking"),
        "images": absent("text models only"),
        "image_urls": absent("text models only"),
        "audio": absent("text models only"),
        "embeddings": absent("no such route"),
        "rerank": absent("no such route"),
        "tokenize": absent("no such route"),
        "detokenize": absent("no such route"),
        "count_tokens": absent("no such route"),
        "fim": absent("no suffix"),
        "lora": documented("a path below the folder the server was started in, as adapters"),
        "metrics": absent("no such route"),
        "version": absent("no route tells it"),
    },
    defaults={
        "temperature": "--temp, 0.0 by default",
        "top_p": "--top-p, 1.0 by default",
        "top_k": "--top-k, off by default",
        "min_p": "--min-p, off by default",
        "repetition_penalty": "off",
        "repetition_window": 20,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
    },
    roles=frozenset({"local", "desktop"}),
    memory="file",
    sizing="unified-context",
    weight_formats=("mlx", "safetensors"),
    model_id="hub",
    start_command="mlx_lm.server --model {model} --host 127.0.0.1 --port 8080",
)

SAMPLING: Final[Table] = {
    "temperature": sent("temperature", 0),
    "top_p": sent("top_p", 0, 1),
    "top_k": sent("top_k", 0),
    "min_p": sent("min_p", 0, 1),
    "typical_p": omitted("mlx-lm has no typical sampling"),
    "seed": sent("seed"),
    "max_tokens": sent("max_tokens", 1),
    "min_tokens": omitted("the server has no lower limit of tokens"),
    "stop": stop_rule,
    "repetition_penalty": sent("repetition_penalty", 0),
    "repetition_window": _Rule(
        outcome="translated",
        wire="repetition_context_size",
        low=0,
        note="the wire name is repetition_context_size",
    ),
    "frequency_penalty": sent("frequency_penalty"),
    "presence_penalty": sent("presence_penalty"),
    "logit_bias": BIAS,
    "ignore_eos": omitted("the server has no such field"),
    "mirostat": omitted("mlx-lm has no Mirostat"),
    "mirostat_tau": omitted("mlx-lm has no Mirostat"),
    "mirostat_eta": omitted("mlx-lm has no Mirostat"),
    "logprobs": sent("logprobs"),
    "top_logprobs": sent("top_logprobs", 0, 11),
    "n": lambda n: (
        _Rule(outcome="translated", note="one is what it makes")
        if n == 1
        else refused("it makes one alternative")
    ),
}

FAULTS: Final[tuple[Case, ...]] = (
    Case(error=Unsupported, name="route", status=(404,), text=r"^not found$"),
    Case(
        error=ModelNotFound,
        name="model",
        status=(404,),
        text=r"repository not found|404 client error|no such file or directory: '(?P<model>[^']*)'|"
        r"repo id must be",
        facts=model_facts,
        says="it calls every failure 404; this one is about the model",
    ),
    Case(
        error=EngineFault,
        name="any",
        status=(404,),
        says="it calls every failure 404",
    ),
    Case(error=BadRequest, name="bad", status=(400, 411)),
)


class MLXLM(Row):
    """An mlx-lm server at one address. It loads the model that a request names, from the Hub too."""

    profile: ClassVar[EngineProfile] = PROFILE
    dialect: ClassVar[str] = "mlxlm"
    sampling: ClassVar[Table] = SAMPLING
    faults: ClassVar[tuple[Case, ...]] = FAULTS
    policy: ClassVar[MessagePolicy] = MessagePolicy(images="none", audio=False)
    thinking: ClassVar[Literal["template", "effort", "both", ""]] = "template"

    @classmethod
    def recognise(cls, target: Target) -> Operation[bool]:
        """Whether `GET /health` is the work of Python's own `http.server`."""
        answer: Answer = yield cls(target).call("GET", "/health")
        server = str(answer.headers.get("server", ""))
        return answer.ok and server.startswith("BaseHTTP/") and b'"status"' in answer.body

    def _unlisted(self, model: str) -> bool:
        """It lists what the Hub's cache holds and loads anything else when it is asked for."""
        return True

    def _emulates(self, mode: str, request: ChatRequest) -> bool:
        if mode in ("required", "named"):
            self.refuse(
                "tool_choice_required" if mode == "required" else "tool_choice_named",
                f"it cannot force a call: {_NO_FORMAT}",
                rule=f"mlxlm.tool_choice.{mode}",
            )
        return False

    def _tools(self, draft: Draft, request: ChatRequest, plan: Plan) -> None:
        super()._tools(draft, request, plan)
        if draft.body.pop("tool_choice", None) == "none":
            # The field is not read: without the tools none can be called.
            draft.body.pop("tools", None)
        entries = draft.receipt.entries
        none = "tools" not in draft.body
        entries[:] = [
            entry._replace(
                outcome="emulated" if none else "translated",
                wire="",
                note="the tools are left out" if none else "what the server does by itself",
            )
            if entry.field == "tool_choice" or (none and entry.field == "tools")
            else entry
            for entry in entries
        ]

    def _sampling(
        self, draft: Draft, request: ChatRequest | CompletionRequest, plan: Plan
    ) -> Table:
        sampling = request.sampling
        if sampling.logprobs is True or sampling.top_logprobs is not UNSET:
            plan.stream = False
        if sampling.max_tokens is UNSET:
            draft.need(
                "max_tokens",
                UNLIMITED,
                case="max_tokens.rest",
                note="until the model ends; the server's own default is 512 tokens",
            )
        return super()._sampling(draft, request, plan)

    def _completion_logprobs(self, draft: Draft, request: CompletionRequest) -> Sampling:
        """Completions have the chat's two fields here."""
        return request.sampling

    def _lora(self, draft: Draft, value: Any) -> None:
        if not isinstance(value, str):
            draft.refuse("lora", "an adapter is chosen by its path, and has no scale")
        draft.enter("lora", "translated", {"adapters": value}, note="as adapters")
