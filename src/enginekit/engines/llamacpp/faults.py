"""What the refusals of llama-server mean; it reports several mistakes of a client as 500."""

from __future__ import annotations

from typing import Any, Final

from enginekit.engines._fault import Case, overflow_facts
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineFault,
    EngineLoading,
    ModelNotFound,
    Overloaded,
    Unsupported,
)


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
    Case(  # the same, told by a proxy that keeps the sentence and not the type
        error=ContextOverflow,
        name="context-text",
        text=r"(?:request \((?P<requested>\d+) tokens\) )?exceeds the available context size"
        r"(?: \((?P<limit>\d+) tokens\))?",
        facts=overflow_facts,
        hint="shorten the conversation, or start the server with a larger -c",
    ),
    Case(
        error=ContextOverflow,
        name="batch",
        text=r"input (?:\((?P<requested>\d+) tokens\) )?is too large to process"
        r"(?:.*batch size: (?P<limit>\d+))?",
        facts=overflow_facts,
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
    Case(
        error=EngineFault,
        name="router-load",
        status=(500,),
        text="model name=.* failed to load",
        hint="look at the server's log",
    ),
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
        error=BadRequest,
        name="image-away",
        status=(500,),
        text="cannot make GET request|failed to download image",
        says="it could not fetch an image from its URL",
        hint="send the bytes of the image instead of its URL",
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
        text="requires --jinja|unsupported param: tool",
        facts=_feature("tools"),
        hint="start the server without --no-jinja (one from before December 2025: with --jinja)",
    ),
    Case(
        error=Unsupported,
        name="stream-tools",
        text="cannot use tools with stream",
        facts=_feature("stream_tools"),
        hint="llama.cpp streams tool calls since June 2025",
    ),
    Case(
        error=Unsupported,
        name="alternatives",
        text="only one completion choice is allowed",
        facts=_feature("n"),
        hint="send the request several times, or use a newer server",
    ),
    Case(
        error=BadRequest,
        name="parsing",
        status=(500,),
        text=r"^failed to (?:parse|decode|download|load (?:image|audio))|^cannot use both|^unknown |"
        r"missing tool|unsupported (?:content|param)|unable to generate parser|invalid type",
        says="it calls this its own fault, but the request is what it could not read",
    ),
    Case(
        error=EngineFault,
        name="fault",
        status=(500,),
        facts=lambda fault, match: {"retryable": False},
        hint="it calls mistakes of a request its own fault, too: its log says which it was",
    ),
)
"""Tests of the wire first: the server reports several mistakes of a client as 500."""
