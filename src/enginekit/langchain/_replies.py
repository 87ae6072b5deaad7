"""Our replies and chunks to LangChain's messages. Pure.

Rules that the merge of chunks dictates (see `docs/langchain.md`): whatever is a scalar appears once,
on the last chunk; tool pieces carry their name and id once and an index from a range of its own;
text and tool pieces never share a chunk; arguments that are not whole stay not whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from enginekit.langchain._fast import text_chunk_maker
from enginekit.types import Chunk, End, Receipt, Reply, TokenLogprob, ToolCall, Usage

PROVIDER = "enginekit"
"""`response_metadata["model_provider"]`: LangChain keeps equal values when it merges chunks."""

FIRST_TOOL_INDEX = 1000
"""Added to the wire's index of a tool call: LangChain numbers text and reasoning blocks from 0 and
merges whatever shares an index, a tool call into a text block included."""


def to_result(reply: Reply, *, model: str, with_receipt: bool) -> ChatResult:
    """A whole reply; alternatives (`n`) become further generations."""
    metadata = end_metadata(reply.end, reply.receipt, model, with_receipt=with_receipt)
    if reply.logprobs:
        metadata["logprobs"] = {"content": logprob_rows(reply.logprobs)}
    calls, broken = split_calls(reply.tool_calls)
    extra = {"reasoning_content": reply.reasoning} if reply.reasoning else {}
    message = AIMessage(
        content=reply.text,
        additional_kwargs=extra,
        tool_calls=calls,
        invalid_tool_calls=broken,
        usage_metadata=usage_metadata(reply.end.usage),
        response_metadata=metadata,
    )
    generations = [ChatGeneration(message=message)]
    for text in reply.alternatives:
        other = AIMessage(content=text, response_metadata={**metadata, "alternative": True})
        generations.append(ChatGeneration(message=other))
    return ChatResult(generations=generations)


def split_calls(calls: Iterable[ToolCall]) -> tuple[list[Any], list[Any]]:
    """Tool calls whose arguments are a JSON object, and those whose are not."""
    good: list[Any] = []
    broken: list[Any] = []
    for call in calls:
        if call.problem is None:
            good.append(
                {"name": call.name, "args": call.parsed(), "id": call.id, "type": "tool_call"}
            )
        else:
            broken.append(
                {
                    "name": call.name,
                    "args": call.arguments,
                    "id": call.id,
                    "error": call.problem,
                    "type": "invalid_tool_call",
                }
            )
    return good, broken


def usage_metadata(usage: Usage | None) -> UsageMetadata | None:
    """Token counts under LangChain's names; the details are parts of the totals."""
    if usage is None:
        return None
    made: UsageMetadata = {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.cached_tokens is not None:
        made["input_token_details"] = {"cache_read": usage.cached_tokens}
    if usage.reasoning_tokens is not None:
        made["output_token_details"] = {"reasoning": usage.reasoning_tokens}
    return made


def end_metadata(end: End, receipt: Receipt, model: str, *, with_receipt: bool) -> dict[str, Any]:
    """`response_metadata` of a complete reply; `model` is used when the server did not say."""
    metadata: dict[str, Any] = {
        "model_name": end.model or model,
        "model_provider": PROVIDER,
        "finish_reason": end.finish_reason,
        "engine": receipt.engine,
    }
    if receipt.engine_version is not None:
        metadata["engine_version"] = receipt.engine_version
    if end.raw_finish_reason is not None and end.raw_finish_reason != end.finish_reason:
        metadata["raw_finish_reason"] = end.raw_finish_reason
    if end.id is not None:
        metadata["id"] = end.id
    if end.system_fingerprint is not None:
        metadata["system_fingerprint"] = end.system_fingerprint
    if end.timings is not None:
        metadata["timings"] = {
            name: seconds for name, seconds in end.timings._asdict().items() if seconds is not None
        }
    if receipt.passed_over:
        metadata["passed_over"] = list(receipt.passed_over)
    if with_receipt:
        metadata["receipt"] = compact_receipt(receipt)
    return metadata


def compact_receipt(receipt: Receipt) -> dict[str, Any]:
    """The receipt by outcome: `sent` lists names, every other outcome maps a name to why.

    `added` lists the wire's fields that enginekit itself needs. Empty groups are left out.
    JSON-able.
    """
    made: dict[str, Any] = {"engine": receipt.engine, "url": receipt.url, "sent": []}
    sent = made["sent"]
    for field, outcome, rule, wire, note in receipt.entries:
        if outcome == "sent":
            if field == "-":
                made.setdefault("added", []).append(wire or rule)
            else:
                sent.append(field)
            continue
        group = made.get(outcome)
        if group is None:
            group = made[outcome] = {}
        group[field] = note or wire or rule
    if receipt.defaults:
        made["defaults"] = dict(receipt.defaults)
    if receipt.repairs:
        made["repairs"] = list(receipt.repairs)
    if receipt.notes:
        made["notes"] = list(receipt.notes)
    return made


def logprob_rows(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Log probabilities as OpenAI spells them."""
    return [
        {
            "token": one.token,
            "logprob": one.logprob,
            "bytes": None if one.bytes is None else list(one.bytes),
            "top_logprobs": [
                {
                    "token": top.token,
                    "logprob": top.logprob,
                    "bytes": None if top.bytes is None else list(top.bytes),
                }
                for top in one.top
            ],
        }
        for one in logprobs
    ]


# ---------------------------------------------------------------------------------- streams


class ChunkWriter:
    """Turns one stream's chunks into LangChain's, remembering what the last one needs.

    Args:
        model: the name asked for, used when the server does not say.
        receipt: the stream's; read when the stream ends, because repairs are noted until then.
        with_receipt: whether the last chunk carries it.
    """

    __slots__ = ("_indices", "_model", "_receipt", "_text_chunk", "_with_receipt")

    def __init__(self, receipt: Receipt, *, model: str, with_receipt: bool) -> None:
        self._receipt = receipt
        self._model = model
        self._with_receipt = with_receipt
        self._indices: dict[int, None] = {}
        self._text_chunk = text_chunk_maker()

    def write(self, chunk: Chunk) -> Sequence[ChatGenerationChunk]:
        """The chunks that this one becomes: one, but two when text and tool pieces came together."""
        text, reasoning, logprobs = chunk.text, chunk.reasoning, chunk.logprobs
        if not (reasoning or logprobs or chunk.tool_calls) and chunk.end is None:
            return (self._text_chunk(text, {}, {}),) if text else ()
        out: list[ChatGenerationChunk] = []
        if text or reasoning or logprobs:
            extra = {"reasoning_content": reasoning} if reasoning else {}
            metadata = {"logprobs": {"content": logprob_rows(logprobs)}} if logprobs else {}
            out.append(self._text_chunk(text, extra, metadata))
        if chunk.tool_calls:
            out.append(self._pieces(chunk))
        if chunk.end is not None:
            self._finish(chunk.end, out)
        return out

    def _pieces(self, chunk: Chunk) -> ChatGenerationChunk:
        pieces = []
        for delta in chunk.tool_calls:
            self._indices.setdefault(delta.index)
            pieces.append(_piece(delta.index, delta.id, delta.name, delta.arguments))
        return ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=pieces))

    def _finish(self, end: End, out: list[ChatGenerationChunk]) -> None:
        if end.tool_calls and not self._indices:
            pieces = [
                _piece(number, call.id, call.name, call.arguments)
                for number, call in enumerate(end.tool_calls)
            ]
            self._indices = dict.fromkeys(range(len(pieces)))
            out.append(
                ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=pieces))
            )
        spoilers = [
            _piece(index, None, None, unmendable(call.arguments))
            for index, call in zip(sorted(self._indices), end.tool_calls, strict=False)
            if call.problem is not None
        ]
        if spoilers:
            out.append(
                ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=spoilers))
            )
        self._receipt.repairs.extend(end.repairs)
        out.append(
            ChatGenerationChunk(
                message=AIMessageChunk(
                    content="",
                    usage_metadata=usage_metadata(end.usage),
                    response_metadata=end_metadata(
                        end, self._receipt, self._model, with_receipt=self._with_receipt
                    ),
                    chunk_position="last",
                )
            )
        )


def _piece(index: int, id: str | None, name: str | None, arguments: str) -> Any:
    return {
        "name": name,
        "args": arguments,
        "id": id,
        "index": FIRST_TOOL_INDEX + index,
        "type": "tool_call_chunk",
    }


def unmendable(arguments: str) -> str:
    """What to append to broken arguments so that LangChain's repair of partial JSON gives up.

    It closes open strings, objects and arrays by itself and would call `{"city": "Par` whole. A
    closer that matches nothing open is the one thing it does not mend.
    """
    stack: list[str] = []
    inside = escaped = False
    for char in arguments:
        if inside:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                inside = False
        elif char == '"':
            inside = True
        elif char in "{[":
            stack.append("}" if char == "{" else "]")
        elif char in "}]" and stack:
            stack.pop()
    wrong = "]" if not stack or stack[-1] == "}" else "}"
    return ('""' if escaped else '"' if inside else "") + wrong
