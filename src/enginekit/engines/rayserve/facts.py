"""What is known of Ray Serve LLM: its profile, what its refusals mean, how its models are listed.

Seen running as Ray 2.60.0 over vLLM 0.32.0 on CPU. The bodies of chats and completions are vLLM's
(`_vllm_wire`); what differs is everything around them: three layers answer (the proxy in bare text,
the ingress as `{"detail": …}`, the engine as `{"error": …}`), and none of them says when the engine
behind it is ready.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from enginekit.engines._fault import Case, Fault, overflow_facts, retry_facts
from enginekit.engines._vllm_faults import FAULTS as VLLM_FAULTS
from enginekit.engines._vllm_wire import tools_by_parser
from enginekit.engines.rayserve.scaling import Scaling
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineDied,
    EngineLoading,
    EngineTimeout,
    ModelNotFound,
    Overloaded,
    Unsupported,
)
from enginekit.facts.engine import (
    Capability,
    EngineProfile,
    Evidence,
    Feature,
    ModelCard,
    ServerFacts,
)

NEWEST_TESTED: Final = (0, 32)
"""Newest minor version of vLLM that was seen running behind it."""

NEWEST_RAY: Final = (2, 60)
"""Newest minor version of Ray that was seen running; it tells only on its dashboard."""

TOOL_ARGUMENTS: Final = "enable_auto_tool_choice and tool_call_parser in engine_kwargs"
TOOL_HINT: Final = f"deploy the model with {TOOL_ARGUMENTS} of its LLMConfig"


def _seen(note: str = "") -> Capability:
    return Capability(support="native", evidence="observed", note=note)


def _by_config(note: str) -> Capability:
    return Capability(support="server", evidence="observed", note=note)


NO_METRICS: Final = (
    "not on the ingress: name Ray's exporter of a node (its metrics_export_port) as exporter under "
    "[engines.rayserve.options]"
)
NO_TOKENIZER: Final = "the ingress has the route, but vLLM 0.32 refuses it: no 'tokenization' task"

PROFILE: Final = EngineProfile(
    name="rayserve",
    title="Ray Serve LLM",
    wire="OpenAI chat completions, SSE (vLLM's, behind Ray's proxy)",
    docs_url="https://docs.ray.io/en/latest/serve/llm/index.html",
    default_url="http://127.0.0.1:8000",
    capabilities={
        "chat": _seen(),
        "completion": _seen(),
        "stream": _seen("several events arrive together: tokens are batched for 50 ms"),
        "tools": _by_config(TOOL_ARGUMENTS),
        "tool_choice_required": _by_config("tool_call_parser in engine_kwargs"),
        "tool_choice_named": _by_config("tool_call_parser in engine_kwargs"),
        "parallel_tool_calls": _seen(),
        "stream_tools": _seen(),
        "json": _seen(),
        "json_schema": _seen(),
        "regex": _seen(),
        "grammar": _seen("GBNF or Lark, by the structured-outputs backend"),
        "choice": _seen(),
        "logprobs": _seen("at most max_logprobs of engine_kwargs, 20 by default"),
        "n": _seen(),
        "reasoning": _by_config("reasoning_parser in engine_kwargs; without it thinking is inline"),
        "images": _by_config("a multimodal model"),
        "image_urls": _by_config("a multimodal model; the replica fetches the URL"),
        "audio": _by_config("a multimodal model"),
        "embeddings": _by_config("a model deployed with runner: pooling"),
        "rerank": Capability(
            support="none", evidence="observed", note="the ingress has no rerank route"
        ),
        "tokenize": Capability(support="none", evidence="observed", note=NO_TOKENIZER),
        "detokenize": Capability(support="none", evidence="observed", note=NO_TOKENIZER),
        "count_tokens": Capability(
            support="none", evidence="observed", note="/tokenize takes a prompt only, no chat"
        ),
        "fim": _by_config("a model whose completions know fill-in-the-middle"),
        "lora": Capability(support="server", note="lora_config.dynamic_lora_loading_path"),
        "metrics": Capability(support="none", evidence="observed", note=NO_METRICS),
        "version": _seen("vLLM's, from system_fingerprint of a one-token completion"),
    },
    defaults={
        "temperature": "generation_config.json of the model, else 1.0",
        "top_p": "generation_config.json of the model, else 1.0",
        "top_k": "generation_config.json of the model, else off",
        "min_p": 0.0,
        "repetition_penalty": "generation_config.json of the model, else 1.0",
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "max_tokens": "the rest of the context",
        "min_tokens": 0,
        "n": 1,
    },
    min_context=2048,
    roles=frozenset({"cluster", "production"}),
    memory="preallocate",
    sizing="deployed-pool",
    weight_formats=("safetensors",),
    model_id="served",
    many_models=True,
    tested=("2.60.0 with vLLM 0.32.0",),
    start_command='python -c "from ray import serve; '
    "from ray.serve.llm import LLMConfig, build_openai_app; "
    "serve.run(build_openai_app(dict(llm_configs=[LLMConfig("
    "model_loading_config=dict(model_id='{model}'))])), blocking=True)\"",
)

AUTOSCALING: Final = (
    "autoscaling: the LLM builder fills target_ongoing_requests and max_ongoing_requests with 1e9, "
    "so nothing ever scales up; set both in deployment_config (32 and 64, say), and max_replicas",
    "autoscaling: downscaling waits 600 s; with min_replicas 0 requests queue while a replica starts",
)
"""What a person should know who runs more than one replica; the ingress does not show it."""


# ---------------------------------------------------------------------------------- faults


def _feature(name: str) -> Any:
    return lambda fault, match: {"feature": name, "rule": f"rayserve.{name}"}


def _timed_out(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
    return {
        "phase": "whole reply",
        "budget": float(match["seconds"]) if match is not None else 0.0,
    }


FAULTS: Final[tuple[Case, ...]] = (
    Case(
        error=EngineLoading,
        name="routes",
        status=(503,),
        text="route table is not populated",
        says="its proxy is up, its applications are not",
    ),
    Case(
        error=EngineLoading,
        name="path",
        status=(404,),
        text=r"^path '.*' not found\. ping",
        says="no application is deployed at this path (yet)",
        hint="if this stays so, compare the base URL's path with GET /-/routes",
    ),
    Case(
        error=Overloaded,
        name="backpressure",
        status=(503,),
        text="dropped due to backpressure",
        facts=retry_facts,
        says="its queue is full",
        hint="raise max_queued_requests or max_replicas in deployment_config",
    ),
    Case(
        error=EngineTimeout,
        name="request-timeout",
        status=(408,),
        text=r"timed out after (?P<seconds>[\d.]+)",
        facts=_timed_out,
        says="its own time limit for a request passed",
        hint="raise http_options.request_timeout_s, or RAY_SERVE_LLM_ROUTER_HTTP_TIMEOUT",
    ),
    Case(
        error=ModelNotFound,
        name="model",
        status=(404,),
        text=r'(?:got request for|could not find) model (?:with id )?"(?P<model>[^"]*)"',
    ),
    Case(
        error=ModelNotFound,
        name="adapter",
        status=(404,),
        text=r"lora adapter config file .* in folder \S*?(?P<model>[^/\s]+)\. check",
        hint="look into dynamic_lora_loading_path of lora_config",
    ),
    Case(
        error=ModelNotFound,
        name="model-route",
        status=(404,),
        text=r"unable to find (?P<model>\S+?)\. please ensure",
    ),
    Case(
        error=EngineDied,
        name="replica",
        status=(500,),
        text="actor (?:died|is dead|has died)|actordied|worker process has died",
        says="the replica that answered is gone; Ray starts another",
    ),
    Case(
        error=EngineDied,
        name="engine",
        text="enginedead|enginecore encountered",
        says="the engine of the replica is gone; Ray replaces it after about half a minute",
    ),
    Case(  # before it left the check to vLLM
        error=ContextOverflow,
        name="input",
        text=r"input too long\.(?: received (?P<requested>\d+) tokens, but)? the maximum input length "
        r"is (?P<limit>\d+)",
        facts=overflow_facts,
        hint="shorten the conversation, or raise max_model_len in engine_kwargs",
    ),
    Case(
        error=BadRequest,
        name="media-type",
        status=(500,),
        text="is not json serializable",
        says="the body was not declared as application/json",
    ),
    Case(
        error=Unsupported,
        name="embeddings",
        status=(400,),
        text="does not support the 'embed' task",
        facts=_feature("embeddings"),
        hint="deploy a model with runner: pooling",
    ),
    Case(
        error=Unsupported,
        name="generate",
        status=(400,),
        text="does not support the 'generate' task",
        facts=_feature("chat"),
        says="this model embeds or ranks and does not generate",
        hint="name a model that generates",
    ),
    Case(
        error=Unsupported,
        name="tokenizer",
        status=(400,),
        text="does not support the 'tokenization' task",
        facts=_feature("tokenize"),
    ),
    Case(
        error=Unsupported,
        name="tools",
        text="requires --(?:enable-auto-tool-choice|tool-call-parser)",
        facts=_feature("tools"),
        hint=TOOL_HINT,
    ),
    *VLLM_FAULTS,
)

_CAUSE = "original exception: "


def undecorated(fault: Fault) -> Fault:
    """The fault with the sentence that matters in front.

    A failure inside a replica is reported as "Internal Server Error", and what happened stands at
    the end of the message after two request ids and a traceback: its last line is the exception,
    except for a dead actor, whose first line is.
    """
    told = str(fault.error.get("message") or "")
    if fault.message != "Internal Server Error" or _CAUSE not in told:
        return fault
    lines = [line.strip() for line in told.split(_CAUSE, 1)[1].splitlines() if line.strip()]
    if not lines:
        return fault
    cause = lines[0] if lines[0].startswith("The actor") else lines[-1]
    return replace(fault, message=re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", cause))


# ---------------------------------------------------------------------------------- probing


def facts_of(
    listing: Mapping[str, Any],
    *,
    fingerprint: str | None = None,
    ray: str | None = None,
    answered: bool = True,
    scaling: Sequence[Scaling] = (),
    notes: Sequence[str] = (),
) -> ServerFacts:
    """What a server says of itself in `/v1/models` and in the fingerprint of a reply.

    `ray` is Ray's own version, of its dashboard; `answered` tells whether the trial completion came back in time; `scaling` what Ray's dashboard says
    of the deployments, where it was asked.
    """
    cards = model_cards(listing)
    windows = [card.context_window for card in cards if card.context_window]
    version, verified, said = judge_version(fingerprint, ray)
    notes = (*said, *notes)
    if cards and not windows:
        notes = (
            *notes,
            "the context window is unknown: max_model_len is not set in engine_kwargs; "
            f"{PROFILE.min_context} tokens are assumed",
        )
    if not answered:
        notes = (*notes, "it lists its models but did not generate a token: it may be loading")
    modalities = {str(card.extra.get("modality")) for card in cards if card.extra.get("modality")}
    return ServerFacts(
        version=version,
        models=cards,
        context_window=min(windows) if windows else None,
        context_source="max_request_context_length of GET /v1/models" if windows else "",
        modalities=tuple(sorted(modalities)),
        verified=verified,
        notes=(*notes, *([one.sentence for one in scaling] or AUTOSCALING)),
        extra={"scaling": tuple(scaling)} if scaling else {},
    )


def tool_capabilities(native: bool, evidence: Evidence = "probed") -> dict[Feature, Capability]:
    """The capabilities of a model deployed with, or without, a tool parser."""
    return tools_by_parser(native, evidence, TOOL_ARGUMENTS)


def model_cards(listing: Mapping[str, Any]) -> tuple[ModelCard, ...]:
    """The models of `/v1/models`: those configured, loaded or not (it does not say)."""
    cards = []
    for item in listing.get("data") or ():
        told = item.get("metadata") or item.get("rayllm_metadata") or {}  # the older name
        cards.append(
            ModelCard(
                id=item["id"],
                context_window=told.get("max_request_context_length"),
                extra={"modality": told.get("input_modality")},
            )
        )
    return tuple(cards)


def judge_version(
    fingerprint: str | None, ray: str | None = None
) -> tuple[str | None, bool, tuple[str, ...]]:
    """Ray's version and that of the vLLM behind a fingerprint, as far as they are known.

    Returns them as one text, whether both were tested, and what to say if not.
    """
    found: list[str] = []
    notes: list[str] = []
    engine = re.match(r"vllm-((\d+)\.(\d+)[^-]*)", fingerprint or "")
    own = re.match(r"((\d+)\.(\d+).*)", ray or "")
    for name, match, newest in (("ray", own, NEWEST_RAY), ("vllm", engine, NEWEST_TESTED)):
        if match is None:
            continue
        found.append(f"{name} {match[1]}")
        if (int(match[2]), int(match[3])) > newest:
            known = ".".join(map(str, newest))
            notes.append(f"{found[-1]} is newer than {known}, the newest that was tested here")
    return ", ".join(found) or None, not notes, tuple(notes)
