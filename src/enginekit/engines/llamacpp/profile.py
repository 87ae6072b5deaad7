"""What is known of llama-server: its profile and its parameter tables.

Read in build b11434 and seen running as the server inside xllamacpp 2026.10.11549, which calls
itself `b0-unknown`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from enginekit.engines._params import Rule, Table, omitted, sent
from enginekit.facts.engine import Capability, EngineProfile

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
            support="server", evidence="observed", note="router mode: start without a model"
        ),
        "unload": Capability(
            support="server", evidence="observed", note="router mode: start without a model"
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
    sizing="context",
    weight_formats=("gguf",),
    model_id="any",
    tested=("b10488", "b11434", "b11549 (xllamacpp 2026.10.11549, calls itself b0-unknown)"),
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
