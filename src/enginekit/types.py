"""What crosses an engine's boundary: requests in, chunks and replies out, and the receipt.

Everything here is data. Nothing depends on an engine, a client library or a framework.

A field the caller left alone is `UNSET`, which is not `None`: it is not sent, and the receipt says
which default of the server is in effect instead.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

_T = TypeVar("_T")


class _Unset(enum.Enum):
    UNSET = "UNSET"

    def __bool__(self) -> Literal[False]:
        return False

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = _Unset.UNSET
"""Not given. Distinct from `None`, zero and the empty string."""

Maybe: TypeAlias = _T | Literal[_Unset.UNSET]

JsonSchema: TypeAlias = Mapping[str, Any]
"""A JSON schema as a plain mapping."""

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "error"]
"""Why a reply ended, normalised; the engine's own word is in `End.raw_finish_reason`."""


# ---------------------------------------------------------------------------------- messages


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """A piece of text inside a message of several parts."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """An image, by exactly one of `data` (the raw bytes) or `url` (http, https or data:)."""

    data: bytes | None = None
    url: str | None = None
    mime_type: str = "image/png"
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioPart:
    """Audio, by exactly one of `data` (the raw bytes) or `url`; `format` is e.g. `"wav"`."""

    data: bytes | None = None
    url: str | None = None
    format: str = "wav"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePart:
    """A document (PDF and so on) by its raw bytes; no engine here reads one natively today."""

    data: bytes
    mime_type: str
    name: str | None = None


Part: TypeAlias = TextPart | ImagePart | AudioPart | FilePart


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A whole tool call.

    `arguments` is the JSON text as the model wrote it, never repaired. `problem` is None when it is
    a JSON object, else one sentence of why it is not.
    """

    id: str
    name: str
    arguments: str
    problem: str | None = None

    def parsed(self) -> dict[str, Any]:
        """The arguments as a dict. Raises ValueError when they are not a JSON object."""
        value = json.loads(self.arguments) if self.arguments.strip() else {}
        if not isinstance(value, dict):
            raise ValueError(f"arguments of tool call {self.name!r} are not a JSON object")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Attributes:
        content: text, or parts in order.
        tool_calls: what the assistant asked for in this turn (role `assistant`).
        tool_call_id: which call this answers (role `tool`).
        tool_name: the name of the tool that was called (role `tool`); some engines need it.
        tool_error: the tool failed; no engine has a field for it, the text carries it.
        reasoning: the thinking that preceded `content` (role `assistant`).
        name: the participant's name.
    """

    role: Role
    content: str | tuple[Part, ...] = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    tool_name: str | None = None
    tool_error: bool = False
    reasoning: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """All text of the message, parts joined without a separator."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function the model may call. `parameters` is a JSON schema of type object."""

    name: str
    description: str = ""
    parameters: JsonSchema = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """Whether and which tool must be called; `name` only with mode `"named"`."""

    mode: Literal["auto", "none", "required", "named"]
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What the text of the reply must match.

    Attributes:
        kind: `json` (any JSON object), `json_schema`, `regex`, `choice` or `grammar` (GBNF).
        value: the schema (mapping), pattern (str), alternatives (tuple of str) or grammar (str);
            None for `json`.
        name: a name for the schema, where a wire format wants one.
        strict: the caller's wish for strict schema adherence, where a wire format has it.
    """

    kind: Literal["json", "json_schema", "regex", "choice", "grammar"]
    value: Any = None
    name: str = "answer"
    strict: bool | None = None


# ---------------------------------------------------------------------------------- requests


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
        lora: name of an adapter, or pairs of adapter id and scale.
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
    lora: Maybe[str | tuple[tuple[int, float], ...]] = UNSET
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
    lora: Maybe[str | tuple[tuple[int, float], ...]] = UNSET


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


# ---------------------------------------------------------------------------------- receipt

Outcome = Literal["sent", "translated", "emulated", "omitted", "refused"]


class Entry(NamedTuple):
    """What became of one field of a request.

    Attributes:
        field: the field's name (`"sampling.top_k"`, `"tools"`, `"messages"`); `"-"` for something
            the engine needs that the caller did not ask for.
        outcome: sent as it is, translated to another shape, emulated by other means, omitted
            (tuning only) or refused.
        rule: stable id of the rule that decided, `"<dialect>.<field>[.<case>]"`.
        wire: path in the body (`"options.top_k"`), several joined by a space, "" if none.
        note: one sentence where the outcome is not plain `sent`.
    """

    field: str
    outcome: Outcome
    rule: str
    wire: str = ""
    note: str = ""


@dataclass(slots=True, kw_only=True)
class Receipt:
    """What was sent, field by field, to which engine; and which server defaults were in effect.

    Attributes:
        defaults: field name to the server's own value for what was left unset, where known.
        repairs: what was mended in the reply (usage lost, stop text cut off, call lifted), one
            sentence each.
    """

    engine: str
    engine_version: str | None = None
    url: str = ""
    entries: list[Entry] = field(default_factory=list)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    repairs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def outcome(self, name: str) -> Outcome | None:
        """The outcome of one field, or None if the request did not have it set."""
        for entry in self.entries:
            if entry.field == name:
                return entry.outcome
        return None

    @property
    def omitted(self) -> tuple[str, ...]:
        """Names of the fields that were left out."""
        return tuple(entry.field for entry in self.entries if entry.outcome == "omitted")

    def to_dict(self) -> dict[str, Any]:
        """A plain JSON-able mapping, for metadata, logs and traces."""
        return {
            "engine": self.engine,
            "engine_version": self.engine_version,
            "url": self.url,
            "entries": [entry._asdict() for entry in self.entries],
            "defaults": dict(self.defaults),
            "repairs": list(self.repairs),
            "notes": list(self.notes),
        }


# ---------------------------------------------------------------------------------- replies


class Usage(NamedTuple):
    """Token counts as the engine gave them. `cached_tokens` is a part of `prompt_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class Timings(NamedTuple):
    """Where the time went, in seconds, as the engine measured it; None where it does not say."""

    load: float | None = None
    queue: float | None = None
    prompt: float | None = None
    generation: float | None = None
    total: float | None = None


class TokenLogprob(NamedTuple):
    """One generated token, its natural-log probability and the alternatives at that place."""

    token: str
    logprob: float
    bytes: bytes | None = None
    id: int | None = None
    top: tuple[TokenLogprob, ...] = ()


class ToolCallDelta:
    """A piece of a tool call. `id` and `name` come once, on the first piece of an `index`."""

    __slots__ = ("arguments", "id", "index", "name")

    def __init__(
        self, index: int, id: str | None = None, name: str | None = None, arguments: str = ""
    ) -> None:
        self.index = index
        self.id = id
        self.name = name
        self.arguments = arguments

    def __repr__(self) -> str:
        return f"ToolCallDelta({self.index}, {self.id!r}, {self.name!r}, {self.arguments!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ToolCallDelta):
            return NotImplemented
        return (self.index, self.id, self.name, self.arguments) == (
            other.index,
            other.id,
            other.name,
            other.arguments,
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(slots=True, kw_only=True)
class End:
    """What is known once a reply is complete. Its presence on a chunk is the terminal fact.

    Attributes:
        usage: None when the engine did not say, or when the stream was cut between the finish
            reason and the usage (then `repairs` of the receipt says so).
        tool_calls: the whole calls, assembled from the deltas.
        extra: fields of the engine's own, as they came (`stop_reason`, Ollama durations, …).
    """

    finish_reason: FinishReason
    raw_finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    model: str | None = None
    id: str | None = None
    system_fingerprint: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    repairs: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


class Chunk:
    """One decoded event: new text, new reasoning, pieces of tool calls, or the end.

    A plain slotted class and not a dataclass because one is built per token. `index` is the choice
    (0 unless `n` was asked for). The last chunk of a stream, and only it, carries `end`.
    """

    __slots__ = ("end", "index", "logprobs", "reasoning", "text", "tool_calls")

    def __init__(
        self,
        text: str = "",
        reasoning: str = "",
        tool_calls: tuple[ToolCallDelta, ...] = (),
        logprobs: tuple[TokenLogprob, ...] | None = None,
        end: End | None = None,
        index: int = 0,
    ) -> None:
        self.text = text
        self.reasoning = reasoning
        self.tool_calls = tool_calls
        self.logprobs = logprobs
        self.end = end
        self.index = index

    def __repr__(self) -> str:
        shown = [
            f"{name}={value!r}"
            for name in ("text", "reasoning", "tool_calls", "logprobs", "end", "index")
            if (value := getattr(self, name))
        ]
        return f"Chunk({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Chunk):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]


@dataclass(slots=True, kw_only=True)
class Reply:
    """A whole answer: the fold of a complete stream.

    `alternatives` holds choices 1, 2, … when `n` was asked for; `end` is that of the whole stream.
    """

    text: str
    end: End
    receipt: Receipt
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    alternatives: tuple[str, ...] = ()

    @property
    def finish_reason(self) -> FinishReason:
        """Why the reply ended."""
        return self.end.finish_reason

    @property
    def usage(self) -> Usage | None:
        """Token counts, or None when the engine gave none."""
        return self.end.usage


@dataclass(slots=True, kw_only=True)
class Embeddings:
    """One vector per text, in the order of the request."""

    vectors: Sequence[Sequence[float]]
    receipt: Receipt
    model: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A document of a RerankRequest by its index, with the engine's relevance score."""

    index: int
    score: float


@dataclass(slots=True, kw_only=True)
class Ranking:
    """Scores, best first."""

    scores: Sequence[Score]
    receipt: Receipt
    model: str | None = None
