"""Our replies and chunks to LlamaIndex's responses.

Streams are built without pydantic's validation, because an object is made per token and everything
in it was made here; at import the result is compared with a normally built one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from pydantic import BaseModel

from enginekit.types import Chunk, End, Receipt, Reply, TokenLogprob, ToolCall

_M = TypeVar("_M", bound=BaseModel)

_ASSISTANT: Final = MessageRole.ASSISTANT
_set: Final = object.__setattr__
INVALID: Final = "invalid_tool_calls"
"""Key of a response's `additional_kwargs`: tool call id to why its arguments cannot be used."""


def _unchecked(cls: type[_M], values: dict[str, Any]) -> _M:
    made = cls.__new__(cls)
    _set(made, "__dict__", values)
    _set(made, "__pydantic_fields_set__", set(values))
    _set(made, "__pydantic_extra__", None)
    _set(made, "__pydantic_private__", None)
    return made


def _checked(cls: type[_M], values: dict[str, Any]) -> _M:
    return cls(**values)


def _builder(make: Callable[[type[Any], dict[str, Any]], Any]) -> ChatResponse:
    text = make(TextBlock, {"block_type": "text", "text": "a"})
    message = make(ChatMessage, {"role": _ASSISTANT, "additional_kwargs": {}, "blocks": [text]})
    response: ChatResponse = make(
        ChatResponse,
        {
            "message": message,
            "raw": None,
            "delta": "a",
            "logprobs": None,
            "additional_kwargs": {},
        },
    )
    return response


def same_object(one: ChatResponse, other: ChatResponse) -> bool:
    """Whether two responses agree in their values and in what pydantic knows of them."""
    pairs: list[tuple[BaseModel, BaseModel]] = [
        (one, other),
        (one.message, other.message),
        (one.message.blocks[0], other.message.blocks[0]),
    ]
    return one.model_dump() == other.model_dump() and all(
        a.__dict__.keys() == b.__dict__.keys()
        and a.__pydantic_fields_set__ == b.__pydantic_fields_set__
        and a.__pydantic_extra__ == b.__pydantic_extra__
        and a.__pydantic_private__ == b.__pydantic_private__
        for a, b in pairs
    )


def _fastest() -> Callable[[type[Any], dict[str, Any]], Any]:
    # A later llama-index-core or pydantic may keep more in an object than we know of.
    try:
        same = same_object(_builder(_unchecked), _builder(_checked))
    except Exception:
        same = False
    return _unchecked if same else _checked


_make: Final = _fastest()


# ---------------------------------------------------------------------------------- pieces


def raw_of(end: End, receipt: Receipt, model: str, *, with_receipt: bool) -> dict[str, Any]:
    """What a response's `raw` holds: plain data, with `usage` as LlamaIndex's counters read it."""
    raw: dict[str, Any] = {
        "model": end.model or model,
        "finish_reason": end.finish_reason,
        "raw_finish_reason": end.raw_finish_reason,
        "engine": receipt.engine,
    }
    if receipt.engine_version:
        raw["engine_version"] = receipt.engine_version
    if end.id:
        raw["id"] = end.id
    if end.system_fingerprint:
        raw["system_fingerprint"] = end.system_fingerprint
    if end.usage is not None:
        raw["usage"] = {k: v for k, v in end.usage._asdict().items() if v is not None}
    if end.timings is not None:
        raw["timings"] = {k: v for k, v in end.timings._asdict().items() if v is not None}
    if end.extra:
        raw["extra"] = dict(end.extra)
    if receipt.passed_over:
        raw["passed_over"] = list(receipt.passed_over)
    if with_receipt:
        raw["receipt"] = receipt.to_dict()
    return raw


def _counts(end: End) -> dict[str, Any]:
    if end.usage is None:
        return {}
    return {
        "prompt_tokens": end.usage.prompt_tokens,
        "completion_tokens": end.usage.completion_tokens,
        "total_tokens": end.usage.total_tokens,
    }


def _extras(end: End) -> dict[str, Any]:
    found = _counts(end)
    broken = {call.id: call.problem for call in end.tool_calls if call.problem}
    if broken:
        found[INVALID] = broken
    return found


def _call_block(call: ToolCall) -> ToolCallBlock:
    """A whole call; broken arguments stay the text that the model wrote."""
    return ToolCallBlock(
        tool_call_id=call.id,
        tool_name=call.name,
        tool_kwargs=call.arguments if call.problem else call.parsed(),
    )


def _openai_calls(calls: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """The calls as LlamaIndex's older code looks for them."""
    return {
        "tool_calls": [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in calls
        ]
    }


def _message(text: str, thinking: ThinkingBlock | None, calls: Sequence[ToolCall]) -> ChatMessage:
    blocks: list[ContentBlock] = []
    extra: dict[str, Any] = {}
    if thinking is not None:
        blocks.append(thinking)
    if text or not calls:
        blocks.append(_make(TextBlock, {"block_type": "text", "text": text}))
    if calls:
        blocks.extend(map(_call_block, calls))
        extra = _openai_calls([(call.id, call.name, call.arguments) for call in calls])
    message: ChatMessage = _make(
        ChatMessage, {"role": _ASSISTANT, "additional_kwargs": extra, "blocks": blocks}
    )
    return message


def _logprobs(tokens: Sequence[TokenLogprob]) -> list[list[LogProb]]:
    """Per token the alternatives at its place, or the token alone."""
    return [[_logprob(one) for one in token.top or (token,)] for token in tokens]


def _logprob(token: TokenLogprob) -> LogProb:
    raw = token.token.encode() if token.bytes is None else token.bytes
    return LogProb(token=token.token, logprob=token.logprob, bytes=list(raw))


# ---------------------------------------------------------------------------------- whole


def chat_response(reply: Reply, model: str, *, with_receipt: bool) -> ChatResponse:
    """A whole reply."""
    raw = raw_of(reply.end, reply.receipt, model, with_receipt=with_receipt)
    if reply.alternatives:
        raw["alternatives"] = list(reply.alternatives)
    thinking = None
    if reply.reasoning:
        tokens = reply.usage.reasoning_tokens if reply.usage is not None else None
        thinking = ThinkingBlock(content=reply.reasoning, num_tokens=tokens)
    response: ChatResponse = _make(
        ChatResponse,
        {
            "message": _message(reply.text, thinking, reply.tool_calls),
            "raw": raw,
            "delta": None,
            "logprobs": _logprobs(reply.logprobs) if reply.logprobs else None,
            "additional_kwargs": _extras(reply.end),
        },
    )
    return response


def to_completion(response: ChatResponse) -> CompletionResponse:
    """The text of a chat response."""
    blocks = response.message.blocks
    text = blocks[0].text if len(blocks) == 1 and type(blocks[0]) is TextBlock else None
    made: CompletionResponse = _make(
        CompletionResponse,
        {
            "text": (response.message.content or "") if text is None else text,
            "additional_kwargs": response.additional_kwargs,
            "raw": response.raw,
            "logprobs": response.logprobs,
            "delta": response.delta,
        },
    )
    return made


# ---------------------------------------------------------------------------------- streams


class StreamWriter:
    """Turns the chunks of one reply into cumulative responses, one for each chunk.

    While a call is being written its `ToolCallBlock.tool_kwargs` is the text that has come; in the
    last response it is the parsed arguments, or still the text when they are broken.
    """

    __slots__ = ("_calls", "_logprobs", "_model", "_receipt", "_text", "_thinking", "_with")

    def __init__(self, receipt: Receipt, model: str, *, with_receipt: bool) -> None:
        self._receipt = receipt
        self._model = model
        self._with = with_receipt
        self._text = ""
        self._thinking: ThinkingBlock | None = None
        self._calls: dict[int, list[str]] = {}
        self._logprobs: list[list[LogProb]] = []

    def write(self, chunk: Chunk) -> ChatResponse:
        """The response after this chunk."""
        if chunk.end is not None:
            return self._last(chunk)
        self._text = text = self._text + chunk.text
        block: Any = _make(TextBlock, {"block_type": "text", "text": text})
        blocks = [block]
        extra: dict[str, Any] = {}
        kwargs: dict[str, Any] = {}
        if chunk.reasoning or self._thinking is not None:
            if chunk.reasoning:
                extra["thinking_delta"] = chunk.reasoning
                before = self._thinking.content or "" if self._thinking is not None else ""
                self._thinking = ThinkingBlock(content=before + chunk.reasoning)
            blocks = [self._thinking, block]
        if chunk.tool_calls or self._calls:
            blocks, kwargs = self._with_calls(chunk, blocks)
        logprobs = None
        if chunk.logprobs:
            self._logprobs = [*self._logprobs, *_logprobs(chunk.logprobs)]
        if self._logprobs:
            logprobs = self._logprobs
        response: ChatResponse = _make(
            ChatResponse,
            {
                "message": _make(
                    ChatMessage,
                    {"role": _ASSISTANT, "additional_kwargs": kwargs, "blocks": blocks},
                ),
                "raw": None,
                "delta": chunk.text,
                "logprobs": logprobs,
                "additional_kwargs": extra,
            },
        )
        return response

    def _with_calls(self, chunk: Chunk, blocks: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        for delta in chunk.tool_calls:
            call = self._calls.setdefault(delta.index, ["", "", ""])
            call[0] = call[0] or delta.id or ""
            call[1] = call[1] or delta.name or ""
            call[2] += delta.arguments
        calls = [(one[0], one[1], one[2]) for one in self._calls.values()]
        if not self._text:
            blocks = blocks[:-1]
        blocks = blocks + [
            ToolCallBlock(tool_call_id=call_id, tool_name=name, tool_kwargs=text)
            for call_id, name, text in calls
        ]
        return blocks, _openai_calls(calls)

    def _last(self, chunk: Chunk) -> ChatResponse:
        end = chunk.end
        assert end is not None
        self._text += chunk.text
        self._receipt.repairs.extend(end.repairs)
        thinking = self._thinking
        extra = _extras(end)
        if chunk.reasoning:
            extra["thinking_delta"] = chunk.reasoning
        if thinking is not None or chunk.reasoning:
            before = thinking.content or "" if thinking is not None else ""
            tokens = end.usage.reasoning_tokens if end.usage is not None else None
            thinking = ThinkingBlock(content=before + chunk.reasoning, num_tokens=tokens)
        if chunk.logprobs:
            self._logprobs = [*self._logprobs, *_logprobs(chunk.logprobs)]
        response: ChatResponse = _make(
            ChatResponse,
            {
                "message": _message(self._text, thinking, end.tool_calls),
                "raw": raw_of(end, self._receipt, self._model, with_receipt=self._with),
                "delta": chunk.text,
                "logprobs": self._logprobs or None,
                "additional_kwargs": extra,
            },
        )
        return response
