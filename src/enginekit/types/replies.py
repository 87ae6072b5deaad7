"""What comes back: chunks, the end of a reply, whole replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from enginekit.types.messages import ToolCall
from enginekit.types.receipt import Receipt

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "error"]
"""Why a reply ended, normalised; the engine's own word is in `End.raw_finish_reason`."""


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
