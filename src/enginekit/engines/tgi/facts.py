"""What is known of TGI: its profile, what its refusals mean, what `/info` says.

Seen running as 3.3.7 (its router calls itself 3.3.6-dev0) on CPU, and the same router over a
scripted backend. TGI 2 was not seen: its facts are documented ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from enginekit.engines._fault import Case, Fault
from enginekit.errors import (
    BadOutput,
    BadRequest,
    ContextOverflow,
    EngineDied,
    EngineFault,
    Overloaded,
    Unsupported,
)
from enginekit.facts.engine import Capability, EngineProfile, Feature, Load, ModelCard, ServerFacts

NEWEST_TESTED: Final = (3, 3)
"""Newest minor version that was seen running."""
GRAMMAR_FLAG: Final = "unless the server runs with --disable-grammar-support"
IMAGES: Final = (
    "a vision model: when /info calls it image-text-to-text, or with the option images = true; "
    "a text model reads the image's base64 as text, with HTTP 200"
)


def _seen(note: str = "") -> Capability:
    return Capability(support="native", evidence="observed", note=note)


def _none(note: str) -> Capability:
    return Capability(support="none", evidence="observed", note=note)


PROFILE: Final = EngineProfile(
    name="tgi",
    title="Hugging Face TGI",
    wire="OpenAI chat completions and native /generate, SSE",
    docs_url="https://huggingface.co/docs/text-generation-inference",
    default_url="http://127.0.0.1:3000",
    capabilities={
        "chat": _seen("needs a chat template in tokenizer_config.json or chat_template.json"),
        "completion": _seen("the native /generate"),
        "stream": _seen(),
        "tools": _seen(GRAMMAR_FLAG),
        "tool_choice_required": _seen("the server may answer {}: that is an error here"),
        "tool_choice_named": _seen("as required"),
        "parallel_tool_calls": _none("one call at a time"),
        "stream_tools": Capability(
            support="emulated",
            evidence="observed",
            note="streamed calls come broken: tools are asked for whole, and come in one piece",
        ),
        "json": _none("a grammar needs a schema with properties"),
        "json_schema": _seen("with properties at the root; at most 1024 tokens; " + GRAMMAR_FLAG),
        "regex": _seen("at most 1024 tokens; " + GRAMMAR_FLAG),
        "grammar": _none("TGI has JSON schemas and regular expressions only"),
        "choice": Capability(
            support="emulated", evidence="observed", note="a regular expression of the texts"
        ),
        "logprobs": _seen("at most 5 alternatives"),
        "n": Capability(
            support="native", evidence="observed", note="text completions only, as best_of"
        ),
        "reasoning": _seen("inline <think> is split off; there is no switch"),
        "images": Capability(support="server", evidence="observed", note=IMAGES),
        "image_urls": Capability(support="server", evidence="observed", note=IMAGES),
        "audio": _none("no audio part"),
        "embeddings": _none("a separate product does: text-embeddings-inference"),
        "rerank": _none("a separate product does: text-embeddings-inference"),
        "tokenize": _seen(),
        "count_tokens": _seen("/chat_tokenize"),
        "fim": _none("suffix is refused"),
        "lora": Capability(support="server", note="--lora-adapters"),
        "metrics": _seen(),
        "version": _seen("GET /info"),
    },
    defaults={
        "temperature": "chat samples at 1.0, text completions are greedy",
        "top_p": "off",
        "max_tokens": "the rest of max_total_tokens",
        "n": 1,
    },
    min_context=2048,
    roles=frozenset({"server", "production"}),
    memory="preallocate",
    sizing="warmed-pool",
    weight_formats=("safetensors",),
    model_id="any",
    tested=("3.3.7",),
    start_command="text-generation-launcher --model-id {model} --hostname 127.0.0.1 --port 3000",
    retired="TGI is in maintenance mode since December 2025; "
    "its README names vLLM, SGLang, llama.cpp and MLX as successors.",
)


# ---------------------------------------------------------------------------------- faults


def _feature(name: str) -> Any:
    return lambda fault, match: {"feature": name, "rule": f"tgi.{name}"}


def _both(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
    """Prompt and output, as the server added them up."""
    assert match is not None
    return {
        "limit": int(match["limit"]),
        "requested": int(match["prompt"]) + int(match["output"]),
    }


_SHORTEN = "shorten the conversation, or start the server with a larger --max-total-tokens"

FAULTS: Final[tuple[Case, ...]] = (
    Case(
        error=Overloaded,
        name="overloaded",
        text="^model is overloaded",
        facts=lambda fault, match: {"retry_after": None},
        hint="raise --max-concurrent-requests, or send fewer at a time",
    ),
    Case(
        error=ContextOverflow,
        name="total",
        text=r"`inputs` tokens \+ `max_new_tokens` must be <= (?P<limit>\d+)\. "
        r"given: (?P<prompt>\d+) `inputs` tokens and (?P<output>\d+)",
        facts=_both,
        hint=_SHORTEN,
    ),
    Case(
        error=ContextOverflow,
        name="input",
        text=r"`inputs` must have less than (?P<limit>\d+) tokens\. given: (?P<requested>\d+)",
        hint="shorten the conversation, or start the server with a larger --max-input-tokens",
    ),
    Case(
        error=BadOutput,
        name="call",
        text="failed to parse generated text",
        says="the model wrote no whole tool call",
        hint="raise max_tokens, use a stronger model or a simpler tool",
    ),
    Case(
        error=Unsupported,
        name="grammar",
        text="grammar is not supported",
        facts=_feature("json_schema"),
        hint="start the server without --disable-grammar-support",
    ),
    Case(
        error=Unsupported,
        name="modality",
        text="image modality is not supported",
        facts=_feature("images"),
        says="the model does not see",
        hint="serve a vision model, or leave the images out",
    ),
    Case(
        error=Unsupported,
        name="alternatives",
        text=r"`top_n_tokens` != 0 is not allowed",
        facts=_feature("logprobs"),
        hint="ask for log-probabilities without alternatives",
    ),
    Case(
        error=Unsupported,
        name="best-of",
        text=r"`best_of` != 1 is not allowed",
        facts=_feature("n"),
        hint="start the server with a larger --max-best-of, or send the request several times",
    ),
    Case(error=Unsupported, name="suffix", text="^suffix is not supported", facts=_feature("fim")),
    Case(
        error=Unsupported,
        name="template",
        text="template error: template not found",
        facts=_feature("chat"),
        says="it found no chat template (chat_template.jinja is not read)",
        hint="start the server with --tokenizer-config-path, or use text completions",
    ),
    Case(
        error=BadRequest,
        name="request",
        text="^(?:input validation|template|tool) error|not supported when streaming"
        "|^missing template|^number of prompts exceeds"
        "|^failed to (?:deserialize|parse the request)",
    ),
    Case(
        error=BadRequest,
        name="regex",
        text=r"^request failed during generation: server error:$",
        says="the regular expression does not compile",
    ),
    Case(
        error=BadRequest,
        name="payload",
        status=(413,),
        hint="start the server with a larger --payload-limit",
    ),
    Case(
        error=EngineDied,
        name="shard",
        text="transport error|error trying to connect",
        says="its model shard is gone",
        hint="look at the launcher's log; under the launcher the server ends by itself after this",
    ),
    Case(
        error=EngineDied,
        name="unhealthy",
        status=(503,),
        text="^unhealthy",
        says="its model shard does not answer",
    ),
    Case(error=EngineFault, name="incomplete", text="^incomplete generation"),
    Case(error=EngineFault, name="generation", text="^request failed during generation"),
)
"""Texts decide: an error inside a `/v1` stream says 422 whatever happened."""


# ---------------------------------------------------------------------------------- probing


def facts_of(info: Mapping[str, Any], *, images: bool = False) -> ServerFacts:
    """What a server says of itself in `GET /info`. `images` is the option of that name."""
    version = info.get("version")
    verified, notes = judge_version(version)
    kind = info.get("model_pipeline_tag")
    sees = images or kind == "image-text-to-text"
    capabilities: dict[Feature, Capability] = {}
    sight = (
        Capability(support="native", evidence="probed", note="image-text-to-text")
        if sees
        else Capability(support="none", evidence="probed", note=IMAGES)
    )
    capabilities["images"] = capabilities["image_urls"] = sight
    model = str(info.get("model_id") or "")
    window = info.get("max_total_tokens")
    return ServerFacts(
        version=version,
        models=(
            ModelCard(
                id=model,
                context_window=window,
                aliases=("tgi",),
                loaded=True,
                extra={"revision": info.get("model_sha"), "pipeline": kind},
            ),
        )
        if model
        else (),
        context_window=window,
        context_source="max_total_tokens of GET /info" if window else "",
        modalities=("text", "image") if sees else ("text",),
        capabilities=capabilities,
        verified=verified,
        notes=(PROFILE.retired, *notes),
        extra={
            name: info[name]
            for name in (
                "max_input_tokens",
                "max_concurrent_requests",
                "max_stop_sequences",
                "max_best_of",
                "docker_label",
            )
            if info.get(name) is not None
        },
    )


def judge_version(version: str | None) -> tuple[bool, tuple[str, ...]]:
    """Whether this version was tested, and what to say if not."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    if match is None:
        return True, ()
    found = (int(match[1]), int(match[2]))
    newest = ".".join(map(str, NEWEST_TESTED))
    if found > NEWEST_TESTED:
        return False, (f"TGI {version} is newer than {newest}, the newest that was tested",)
    if found < (3, 0):
        return False, (f"TGI {version} was never seen running; the facts are those of {newest}",)
    return True, ()


def load_of(metrics: Mapping[str, float]) -> Load:
    """TGI's metrics in the common shape. A series is absent until its first use."""

    def count(name: str) -> int | None:
        value = metrics.get(f"tgi_{name}")
        return None if value is None else int(value)

    return Load(
        running=count("batch_current_size"),
        waiting=count("queue_size"),
        prompt_tokens_total=count("request_input_length_sum"),
        generated_tokens_total=count("request_generated_tokens_sum"),
        extra={
            name.removeprefix("tgi_"): value
            for name, value in metrics.items()
            if name.startswith("tgi_") and not name.endswith("_bucket")
        },
    )
