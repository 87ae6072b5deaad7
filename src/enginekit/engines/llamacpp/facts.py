"""What is known of llama-server: its profile, its parameter tables, what its refusals mean.

Read in build b11434 and seen running as the server inside xllamacpp 2026.10.11549, which calls
itself `b0-unknown`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from enginekit.engines._fault import Case, Fault, overflow_facts
from enginekit.engines._params import Rule, Table, omitted, sent
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineFault,
    EngineLoading,
    ModelNotFound,
    Overloaded,
    Unsupported,
)
from enginekit.facts.engine import (
    Capability,
    EngineProfile,
    Feature,
    ModelCard,
    ServerFacts,
)

NEWEST_TESTED: Final = 11549
"""Newest build number that was seen running."""


def _seen(note: str = "") -> Capability:
    return Capability(support="native", evidence="observed", note=note)


def _by_flag(note: str) -> Capability:
    return Capability(support="server", evidence="observed", note=note)


PROFILE: Final = EngineProfile(
    name="llamacpp",
    title="llama.cpp server",
    wire="OpenAI chat completions, SSE",
    docs_url="https://github.com/ggml-org/llama.cpp/tree/master/tools/server",
    default_url="http://127.0.0.1:8080",
    capabilities={
        "chat": _seen(),
        "completion": _seen(),
        "stream": _seen(),
        "tools": _seen("needs a chat template that knows tools"),
        "tool_choice_required": Capability(
            support="emulated",
            evidence="observed",
            note="the server's own `required` may end in prose and can abort the process",
        ),
        "tool_choice_named": Capability(
            support="emulated",
            evidence="observed",
            note="the server takes the object form for auto, without a word",
        ),
        "parallel_tool_calls": _seen(
            "false is not enforced by the server: kept to one on our side"
        ),
        "stream_tools": _seen(),
        "json": _seen(),
        "json_schema": _seen(),
        "regex": Capability(
            support="emulated", evidence="observed", note="as the pattern of a JSON string"
        ),
        "grammar": _seen("GBNF"),
        "choice": Capability(
            support="emulated", evidence="observed", note="as a grammar of alternatives"
        ),
        "logprobs": _seen("not in a stream together with tools"),
        "n": _seen("at most as many as there are slots; usage counts the first only"),
        "reasoning": Capability(
            support="server", evidence="documented", note="depends on the chat template"
        ),
        "images": _by_flag("--mmproj FILE"),
        "image_urls": _by_flag("--mmproj FILE; the server fetches them itself, 10 MB at most"),
        "audio": _by_flag("--mmproj FILE"),
        "embeddings": _by_flag("--embeddings --pooling mean"),
        "rerank": _by_flag("--reranking"),
        "tokenize": _seen(),
        "detokenize": _seen(),
        "count_tokens": _seen(),
        "fim": Capability(
            support="server", evidence="observed", note="the model needs fill-in-the-middle tokens"
        ),
        "lora": _by_flag("--lora FILE"),
        "metrics": _by_flag("--metrics"),
        "load": Capability(
            support="server", evidence="documented", note="router mode: start without a model"
        ),
        "unload": Capability(
            support="server", evidence="documented", note="router mode: start without a model"
        ),
        "version": _seen("build_info of GET /props"),
    },
    defaults={
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "typical_p": 1.0,
        "seed": "random",
        "max_tokens": "until the context is full",
        "repetition_penalty": 1.0,
        "repetition_window": 64,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "mirostat": 0,
        "n": 1,
    },
    min_context=4096,
    roles=frozenset({"local", "desktop", "edge", "server"}),
    memory="file",
    weight_formats=("gguf",),
    model_id="any",
    tested=("b11549 (xllamacpp 2026.10.11549, calls itself b0-unknown)",),
    start_command="llama-server -m {model} --host 127.0.0.1 --port 8080 -c 8192 --metrics",
)


def _renamed(wire: str, low: float | None = None, high: float | None = None) -> Rule:
    return Rule(
        outcome="translated", wire=wire, low=low, high=high, note=f"the wire name is {wire}"
    )


def stop_rule(stops: Sequence[str]) -> Rule:
    """Any number of stop strings; empty ones would mean nothing."""
    if all(stops):
        return Rule(wire="stop", value=list)
    return Rule(
        outcome="translated",
        wire="stop",
        value=lambda given: [stop for stop in given if stop],
        case="empty",
        note="empty stop strings were left out",
    )


SAMPLING: Final[Table] = {
    "temperature": sent("temperature", 0),
    "top_p": sent("top_p", 0, 1),
    "top_k": sent("top_k", 0),
    "min_p": sent("min_p", 0, 1),
    "typical_p": sent("typical_p", 0, 1),
    "seed": sent("seed", 0, 2**32 - 1),
    "max_tokens": sent("max_tokens", 1),
    "min_tokens": omitted("the server has no lower limit of tokens"),
    "stop": stop_rule,
    "repetition_penalty": _renamed("repeat_penalty", 0),
    "repetition_window": _renamed("repeat_last_n", 0),
    "frequency_penalty": sent("frequency_penalty"),
    "presence_penalty": sent("presence_penalty"),
    "logit_bias": Rule(
        outcome="translated",
        wire="logit_bias",
        value=lambda bias: [[int(token), float(by)] for token, by in bias.items()],
        note="as pairs: an object's keys would be read as text",
    ),
    "ignore_eos": sent("ignore_eos"),
    "mirostat": sent("mirostat", 0, 2),
    "mirostat_tau": sent("mirostat_tau", 0),
    "mirostat_eta": sent("mirostat_eta", 0),
    "logprobs": sent("logprobs"),
    "top_logprobs": sent("top_logprobs", 0),
    "n": sent("n", 1),
}
"""Ranges are enforced here because the server clamps what is outside of them without a word."""


def _batch_facts(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
    return overflow_facts(fault, match)


def _feature(name: str) -> Any:
    return lambda fault, match: {"feature": name, "rule": f"llamacpp.{name}"}


FAULTS: Final[tuple[Case, ...]] = (
    Case(error=EngineLoading, name="loading", status=(503,), text="loading model"),
    Case(
        error=Overloaded,
        name="no-slot",
        status=(503,),
        text="no slot available",
        facts=lambda fault, match: {"retry_after": None},
    ),
    Case(
        error=ContextOverflow,
        name="context",
        type="exceed_context_size_error",
        facts=overflow_facts,
        hint="shorten the conversation, or start the server with a larger -c",
    ),
    Case(
        error=ContextOverflow,
        name="batch",
        text=r"input \((?P<requested>\d+) tokens\) is too large to process"
        r"(?:.*batch size: (?P<limit>\d+))?",
        facts=_batch_facts,
        says="a text is longer than one batch of the server",
        hint="start the server with a larger -ub (and -b)",
    ),
    Case(
        error=Overloaded,
        name="kv-pool",
        text="context size has been exceeded",
        facts=lambda fault, match: {"retry_after": None},
        says="its slots share one KV cache, and together they filled it",
        hint="start the server with a larger -c, or with --no-kv-unified",
    ),
    Case(
        error=ModelNotFound,
        name="router-model",
        status=(400, 404),
        text=r"model '(?P<model>[^']*)' not found",
    ),
    Case(error=EngineFault, name="router-load", status=(500,), text="model name=.* failed to load"),
    Case(
        error=Unsupported,
        name="embeddings",
        text="does not support embeddings",
        facts=_feature("embeddings"),
        hint="start the server with --embeddings --pooling mean",
    ),
    Case(
        error=Unsupported,
        name="pooling",
        text="pooling type 'none'",
        facts=_feature("embeddings"),
        hint="start the server with --embeddings --pooling mean",
    ),
    Case(
        error=Unsupported,
        name="reranking",
        text="does not support reranking",
        facts=_feature("rerank"),
        hint="start the server with --reranking and a reranking model",
    ),
    Case(
        error=Unsupported,
        name="infill",
        text="infill is not supported",
        facts=_feature("fim"),
        hint="serve a model with fill-in-the-middle tokens, such as a coder model",
    ),
    Case(
        error=Unsupported,
        name="metrics",
        text="does not support (?:metrics|slots) endpoint",
        facts=_feature("metrics"),
        hint="start the server with --metrics",
    ),
    Case(
        error=Unsupported,
        name="images",
        text="image input is not supported",
        facts=_feature("images"),
        hint="start the server with --mmproj FILE and a model that sees",
    ),
    Case(
        error=Unsupported,
        name="audio",
        text="audio input is not supported",
        facts=_feature("audio"),
        hint="start the server with --mmproj FILE and a model that hears",
    ),
    Case(
        error=Unsupported,
        name="jinja",
        text="requires --jinja",
        facts=_feature("tools"),
        hint="start the server without --no-jinja",
    ),
    Case(
        error=BadRequest,
        name="parsing",
        status=(500,),
        text=r"^failed to (?:parse|decode|download|load (?:image|audio))|^cannot use both|^unknown |"
        r"missing tool|unsupported (?:content|param)|unable to generate parser|invalid type",
        says="it calls this its own fault, but the request is what it could not read",
    ),
)
"""Tests of the wire first: the server reports several mistakes of a client as 500."""


# ---------------------------------------------------------------------------------- probing


def facts_of(
    props: Mapping[str, Any],
    listing: Mapping[str, Any],
    adapters: Sequence[Mapping[str, Any]] = (),
) -> ServerFacts:
    """What a server with one model says of itself in `/props`, `/v1/models`, `/lora-adapters`."""
    cards = model_cards(listing)
    settings = props.get("default_generation_settings") or {}
    window, source = settings.get("n_ctx"), "default_generation_settings.n_ctx of GET /props"
    if not window and cards:
        window, source = cards[0].context_window, "meta.n_ctx of GET /v1/models"
    meta = cards[0].extra if cards else {}
    template = props.get("chat_template") or ""
    caps = props.get("chat_template_caps") or {}
    version, verified, notes = version_of(props)
    return ServerFacts(
        version=version,
        models=cards,
        context_window=window or None,
        context_source=source if window else "",
        trained_context=meta.get("n_ctx_train"),
        slots=props.get("total_slots"),
        modalities=tuple(name for name, on in (props.get("modalities") or {}).items() if on),
        capabilities=_narrow(props, caps, template),
        template_tools=caps.get("supports_tools"),
        verified=verified,
        notes=notes,
        extra={
            "defaults": _server_defaults(settings.get("params") or {}),
            "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
            "chat_template_caps": dict(caps),
            "lora": tuple(
                (item.get("id"), str(item.get("path") or item.get("task_name") or ""))
                for item in adapters
            ),
            "model_path": props.get("model_path"),
            "sleeping": props.get("is_sleeping"),
            "media_marker": props.get("media_marker"),
            "slots_route": props.get("endpoint_slots"),
            "meta": dict(meta),
        },
    )


def router_facts(props: Mapping[str, Any], listing: Mapping[str, Any]) -> ServerFacts:
    """What a router says of itself: its models, loaded or not; windows are known per model only."""
    version, verified, notes = version_of(props)
    return ServerFacts(
        version=version,
        models=model_cards(listing),
        verified=verified,
        notes=(*notes, "router mode: the first request to a model loads it"),
        capabilities={
            "load": Capability(support="native", evidence="probed"),
            "unload": Capability(support="native", evidence="probed"),
        },
        extra={"router": True, "max_models": props.get("max_instances")},
    )


def model_cards(listing: Mapping[str, Any]) -> tuple[ModelCard, ...]:
    """The models of `/v1/models`; in router mode each with its status."""
    cards = []
    for item in listing.get("data") or ():
        meta = item.get("meta") or {}
        status = (item.get("status") or {}).get("value")
        extra = {**meta, **({"status": item["status"]} if status is not None else {})}
        cards.append(
            ModelCard(
                id=item["id"],
                context_window=meta.get("n_ctx"),
                aliases=tuple(item.get("aliases") or ()),
                loaded=None if status is None else status in ("loaded", "sleeping"),
                extra=extra,
            )
        )
    return tuple(cards)


def version_of(props: Mapping[str, Any]) -> tuple[str | None, bool, tuple[str, ...]]:
    """Version, whether it was tested, and what to say about it."""
    version = props.get("build_info")
    match = re.match(r"b(\d+)", version or "")
    build = int(match[1]) if match else 0
    if build == 0:
        return version, True, ("the server does not know its build number",)
    if build > NEWEST_TESTED:
        return (
            version,
            False,
            (f"build {build} is newer than {NEWEST_TESTED}, the newest that was tested",),
        )
    return version, True, ()


def _narrow(
    props: Mapping[str, Any], caps: Mapping[str, Any], template: str
) -> dict[Feature, Capability]:
    found: dict[Feature, Capability] = {}
    probed = Capability(support="native", evidence="probed")
    modalities = props.get("modalities")
    if modalities is not None:
        no_eyes = Capability(
            support="none", evidence="probed", note="this model takes no images; --mmproj FILE"
        )
        found["images"] = found["image_urls"] = probed if modalities.get("vision") else no_eyes
        found["audio"] = (
            probed
            if modalities.get("audio")
            else Capability(
                support="none", evidence="probed", note="this model takes no audio; --mmproj FILE"
            )
        )
    if caps.get("supports_tools") is False:
        found["tools"] = Capability(
            support="emulated",
            evidence="probed",
            note="the chat template knows no tools: described in the prompt, enforced by a schema",
        )
    if template:
        thinks = "enable_thinking" in template or "<think>" in template
        found["reasoning"] = (
            probed
            if thinks
            else Capability(
                support="none", evidence="probed", note="the chat template has no thinking"
            )
        )
    if props.get("endpoint_metrics") is False and props.get("endpoint_slots") is False:
        found["metrics"] = Capability(
            support="none", evidence="probed", note="start the server with --metrics"
        )
    return found


_DEFAULT_NAMES: Final[Mapping[str, str]] = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repeat_penalty",
    "repetition_window": "repeat_last_n",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
    "ignore_eos": "ignore_eos",
}


def _server_defaults(params: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling defaults this very server was started with, by our field names."""
    told: dict[str, Any] = {}
    for ours, theirs in _DEFAULT_NAMES.items():
        if theirs in params:
            value = params[theirs]
            # The server keeps 32-bit floats: 0.800000011920929 is what it makes of 0.8.
            told[ours] = round(value, 6) if isinstance(value, float) else value
    limit = params.get("n_predict")
    if isinstance(limit, int) and limit > 0:
        told["max_tokens"] = limit
    return told
