"""What is known of vLLM: its profile, its parameter tables, what its refusals mean.

Seen running as 0.32.0 on CPU; request bodies of Ray Serve LLM are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from enginekit.engines._vllm_faults import TOOL_FLAGS
from enginekit.engines._vllm_wire import tools_by_parser
from enginekit.facts.engine import (
    Capability,
    EngineProfile,
    Evidence,
    Feature,
    ModelCard,
    ServerFacts,
)

NEWEST_TESTED: Final = (0, 32)
"""Newest minor version that was seen running."""


def _seen(note: str = "") -> Capability:
    return Capability(support="native", evidence="observed", note=note)


def _by_flag(note: str) -> Capability:
    return Capability(support="server", evidence="observed", note=note)


PROFILE: Final = EngineProfile(
    name="vllm",
    title="vLLM",
    wire="OpenAI chat completions, SSE",
    docs_url="https://docs.vllm.ai",
    default_url="http://127.0.0.1:8000",
    capabilities={
        "chat": _seen(),
        "completion": _seen(),
        "stream": _seen(),
        "tools": _by_flag(TOOL_FLAGS),
        "tool_choice_required": _by_flag("--tool-call-parser NAME"),
        "tool_choice_named": _by_flag("--tool-call-parser NAME"),
        "parallel_tool_calls": _seen(),
        "stream_tools": _seen(),
        "json": _seen(),
        "json_schema": _seen(),
        "regex": _seen(),
        "grammar": _seen("GBNF or Lark, by the structured-outputs backend"),
        "choice": _seen(),
        "logprobs": _seen("at most --max-logprobs, 20 by default"),
        "n": _seen(),
        "reasoning": _by_flag("--reasoning-parser NAME; without it thinking comes inline"),
        "images": _by_flag("a multimodal model"),
        "image_urls": _by_flag("a multimodal model; --allowed-media-domains limits the fetching"),
        "audio": _by_flag("a multimodal model"),
        "embeddings": _by_flag("--runner pooling --convert embed"),
        "rerank": _by_flag("a scoring model started with --runner pooling"),
        "tokenize": _seen(),
        "detokenize": _seen(),
        "count_tokens": _seen(),
        "fim": _by_flag("a model whose completions know fill-in-the-middle"),
        "lora": _by_flag("--enable-lora --lora-modules name=path"),
        "metrics": _seen(),
        "load": _by_flag("--enable-sleep-mode and VLLM_SERVER_DEV_MODE=1"),
        "unload": _by_flag("--enable-sleep-mode and VLLM_SERVER_DEV_MODE=1"),
        "version": _seen("GET /version"),
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
    roles=frozenset({"server", "cluster", "production"}),
    memory="preallocate",
    sizing="paged-pool",
    weight_formats=("safetensors",),
    model_id="served",
    tested=("0.32.0",),
    start_command="vllm serve {model} --host 127.0.0.1 --port 8000 " + TOOL_FLAGS,
)


# ---------------------------------------------------------------------------------- probing


def facts_of(
    version: Mapping[str, Any], listing: Mapping[str, Any], *, tools: bool | None = None
) -> ServerFacts:
    """What a server says of itself in `/version` and `/v1/models`.

    `tools` is what a trial call told: True when it takes tools, None when none was made.
    """
    cards = model_cards(listing)
    told = version.get("version")
    verified, notes = judge_version(told)
    capabilities: dict[Feature, Capability] = {}
    if tools is not None:
        capabilities = tool_capabilities(tools)
    windows = [card.context_window for card in cards if card.context_window]
    return ServerFacts(
        version=told,
        models=cards,
        context_window=min(windows) if windows else None,
        context_source="max_model_len of GET /v1/models" if windows else "",
        capabilities=capabilities,
        verified=verified,
        notes=notes,
        extra={
            "lora": tuple(card.id for card in cards if card.extra.get("parent")),
        },
    )


def tool_capabilities(native: bool, evidence: Evidence = "probed") -> dict[Feature, Capability]:
    """The capabilities of a server that was started with, or without, a tool parser."""
    return tools_by_parser(native, evidence, TOOL_FLAGS)


def model_cards(listing: Mapping[str, Any]) -> tuple[ModelCard, ...]:
    """The models of `/v1/models`: one for each served name and each LoRA adapter."""
    return tuple(
        ModelCard(
            id=item["id"],
            context_window=item.get("max_model_len"),
            loaded=True,
            extra={"root": item.get("root"), "parent": item.get("parent")},
        )
        for item in listing.get("data") or ()
    )


def judge_version(version: str | None) -> tuple[bool, tuple[str, ...]]:
    """Whether this version was tested, and what to say if not."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    if match is None:
        return True, ()
    if (int(match[1]), int(match[2])) > NEWEST_TESTED:
        newest = ".".join(map(str, NEWEST_TESTED))
        return False, (f"vLLM {version} is newer than {newest}, the newest that was tested",)
    return True, ()
