"""The fields of the OpenAI dialect, as tolerant as its many servers are different."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from enginekit.engines._fault import code_of
from enginekit.types import Timings, TokenLogprob, Usage


def without_mark(body: bytes) -> bytes:
    """A document without the end mark of a stream, which some gateways append to it."""
    bare = body.strip()
    if bare[:1] == b"{" and bare.endswith(b"data: [DONE]"):
        return bare.removesuffix(b"data: [DONE]")
    return body


def is_stream(body: bytes) -> bool:
    """Whether a body is an event stream, whatever was asked for and its headers say."""
    return body.lstrip()[:6] in (b"data: ", b"data:{", b"event:") or body[:1] == b":"


def is_bare_error(event: Mapping[str, Any]) -> bool:
    """An error without an envelope: FastAPI's `{"detail": …}`, or the fields of one by themselves.

    Every server known to send the latter gives a code or a status, or calls itself an error. A
    message alone may be a gateway's news of what it waits for (`remark_of`).
    """
    if "choices" in event:
        return False
    if event.get("detail"):
        return True
    if not isinstance(event.get("message"), str):
        return False
    code = code_of(event)
    named = f"{event.get('object')} {event.get('type')}".lower()
    return "error" in named or (bool(code) and str(code) != "200")


def remark_of(event: Mapping[str, Any]) -> str:
    """What an event says that is neither a piece of the reply nor surely an error; empty for none.

    It ends nothing. Should the reply end without its terminal fact, it is the likeliest reason.
    """
    message = event.get("message")
    return message[:200] if isinstance(message, str) and "choices" not in event else ""


def pieces_of(body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The tool calls of a message or delta; the older single `function_call` counts as one."""
    if calls := body.get("tool_calls"):
        # TGI before 3.3 streams one call as itself, not in a list.
        return [calls] if isinstance(calls, Mapping) else [call for call in calls if call]
    if function := body.get("function_call"):
        return [{"index": 0, "function": function}]
    return ()


def text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = (content,)
    return "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)


def read_usage(usage: Mapping[str, Any]) -> Usage:
    """Token counts of an OpenAI `usage` object, with the details where they are given."""
    prompt = int(usage.get("prompt_tokens") or 0)
    completion = int(usage.get("completion_tokens") or 0)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
    return Usage(
        prompt,
        completion,
        int(usage.get("total_tokens") or prompt + completion),
        None if cached is None else int(cached),
        None if thought is None else int(thought),
    )


def read_timings(timings: Mapping[str, Any]) -> Timings:
    """llama.cpp's `timings`, which are in milliseconds, in seconds."""
    prompt = timings.get("prompt_ms")
    generation = timings.get("predicted_ms")
    return Timings(
        prompt=None if prompt is None else prompt / 1000,
        generation=None if generation is None else generation / 1000,
        total=None if prompt is None or generation is None else (prompt + generation) / 1000,
    )


def read_logprobs(found: Mapping[str, Any] | list[Any]) -> tuple[TokenLogprob, ...] | None:
    """Log-probabilities in the chat shape (`content[]`) or the old one of completions (`tokens[]`).

    A null log-probability (the first token of an echoed prompt has none) becomes NaN.
    """
    if isinstance(found, list):
        return tuple(_logprob(entry) for entry in found)
    if content := found.get("content"):
        return tuple(_logprob(entry) for entry in content)
    tokens = found.get("tokens")
    if not tokens:
        return None
    values = found.get("token_logprobs") or [None] * len(tokens)
    tops = found.get("top_logprobs") or [None] * len(tokens)
    return tuple(
        TokenLogprob(
            token,
            _number(value),
            top=tuple(TokenLogprob(other, _number(at)) for other, at in (top or {}).items()),
        )
        for token, value, top in zip(tokens, values, tops)
    )


def _logprob(entry: Mapping[str, Any]) -> TokenLogprob:
    raw = entry.get("bytes")
    return TokenLogprob(
        entry.get("token") or "",
        _number(entry.get("logprob")),
        None if raw is None else bytes(raw),
        entry.get("id"),
        tuple(_logprob(other) for other in entry.get("top_logprobs") or ()),
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
