"""What is asked of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from enginekit.types.messages import Constraint, Message, Tool, ToolChoice
from enginekit.types.unset import UNSET, Maybe


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the reply is generated. Every field is UNSET until the caller sets it."""

    temperature: Maybe[float] = UNSET
    top_p: Maybe[float] = UNSET
    top_k: Maybe[int] = UNSET
    min_p: Maybe[float] = UNSET
    typical_p: Maybe[float] = UNSET
    seed: Maybe[int] = UNSET
    max_tokens: Maybe[int] = UNSET
    """Upper limit of generated tokens, reasoning included."""
    min_tokens: Maybe[int] = UNSET
    stop: Maybe[tuple[str, ...]] = UNSET
    repetition_penalty: Maybe[float] = UNSET
    repetition_window: Maybe[int] = UNSET
    """How many past tokens the repetition penalty looks at (`repeat_last_n`)."""
    frequency_penalty: Maybe[float] = UNSET
    presence_penalty: Maybe[float] = UNSET
    logit_bias: Maybe[Mapping[int, float]] = UNSET
    """Token id to bias added to its logit."""
    ignore_eos: Maybe[bool] = UNSET
    mirostat: Maybe[int] = UNSET
    mirostat_tau: Maybe[float] = UNSET
    mirostat_eta: Maybe[float] = UNSET
    logprobs: Maybe[bool] = UNSET
    top_logprobs: Maybe[int] = UNSET
    n: Maybe[int] = UNSET
    """How many alternative replies to one prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Fields that every kind of request has.

    Attributes:
        model: the name the engine serves the model under.
        engine_options: fields of the engine's own wire format, sent as they are (receipt: sent);
            for an engine that nests its options this is the top level, and a nested mapping merges.
        lossy: `"warn"` names an omitted tuning parameter in the receipt and one warning,
            `"error"` raises `Unsupported` instead.
        defaults: `"server"` leaves what is unset to the server, `"pinned"` sends one neutral set.
        request_id: passed to engines that log one; never derived from the prompt.
    """

    model: str
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    lossy: Literal["warn", "error"] = "warn"
    defaults: Literal["server", "pinned"] = "server"
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(Request):
    """A conversation to continue.

    Attributes:
        reasoning: UNSET leaves thinking to the server; False and True switch it; a string is an
            effort level (`"low"`, `"medium"`, `"high"`).
        parallel_tool_calls: False asks for at most one call.
        context_window: tokens, for engines that can change it per request (Ollama's `num_ctx`).
        keep_alive: seconds the model stays loaded afterwards; negative is for ever, 0 unloads.
        lora: name of an adapter, or pairs of adapter (its number or name) and scale; `()` is none.
        template_options: variables for the chat template (`chat_template_kwargs`).
    """

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    tools: tuple[Tool, ...] = ()
    tool_choice: Maybe[ToolChoice] = UNSET
    parallel_tool_calls: Maybe[bool] = UNSET
    constraint: Maybe[Constraint] = UNSET
    reasoning: Maybe[bool | str] = UNSET
    context_window: Maybe[int] = UNSET
    keep_alive: Maybe[float] = UNSET
    lora: Maybe[str | tuple[tuple[int | str, float], ...]] = UNSET
    template_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest(Request):
    """Text to continue, without a chat template; with `suffix` it is fill-in-the-middle."""

    prompt: str
    suffix: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    constraint: Maybe[Constraint] = UNSET
    echo: Maybe[bool] = UNSET
    context_window: Maybe[int] = UNSET
    keep_alive: Maybe[float] = UNSET
    lora: Maybe[str | tuple[tuple[int | str, float], ...]] = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest(Request):
    """Texts to embed, in order. `dimensions` cuts the vectors where the model supports it."""

    texts: tuple[str, ...]
    dimensions: Maybe[int] = UNSET
    truncate: bool = False
    """False raises ContextOverflow for a text that is too long; True lets the engine cut it."""
    keep_alive: Maybe[float] = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankRequest(Request):
    """Documents to order by relevance to a query. `top_n` UNSET returns all of them."""

    query: str
    documents: tuple[str, ...]
    top_n: Maybe[int] = UNSET


AnyRequest: TypeAlias = ChatRequest | CompletionRequest | EmbedRequest | RerankRequest
