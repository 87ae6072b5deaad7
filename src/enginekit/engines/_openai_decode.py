"""Read replies of the OpenAI dialect: chat and completions, streamed and whole.

The stream decoder is the hot path of the library: an event costs little more than its
`json.loads`. The common event, a piece of text and nothing else, takes a short road; what is rare
(roles, finish reasons, usage, logprobs, tool calls, errors) takes the long one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from enginekit.drivers.framing import SSE, Frames, Whole
from enginekit.engine import Engine
from enginekit.engines._decoder import NONSENSE, ReplyDecoder, WholeBody
from enginekit.engines._json import parse_json
from enginekit.engines._required import bad_output
from enginekit.errors import MalformedReply
from enginekit.types import Chunk, Timings, TokenLogprob, ToolCallDelta, Usage

DONE: Final = b"[DONE]"


class OpenAIDecoder(ReplyDecoder):
    """Server-sent events of `chat.completion.chunk` or `text_completion` objects.

    Complete when every choice has its finish reason. `[DONE]` ends the reading and proves nothing:
    vLLM sends it after errors, too. The chunk with `end` comes at `[DONE]` or at the end of the
    body, so that the usage event is in it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        choices: int = 1,
        turn: int = 0,
        wants_usage: bool = True,
        path: str = "",
        frames: Frames | None = None,
    ) -> None:
        super().__init__(
            engine,
            SSE() if frames is None else frames,
            choices=choices,
            turn=turn,
            wants_usage=wants_usage,
            path=path,
        )

    def feed(self, data: bytes) -> list[Chunk]:
        """Chunks that these bytes complete; stops at the first fault."""
        out: list[Chunk] = []
        try:
            payloads = self._frames.feed(data)
        except MalformedReply as error:
            self._malformed(str(error))
            return out
        texts, quick, exact = self._texts, self._quick, self._exact
        for payload in payloads:
            try:
                if payload == DONE:
                    self._done_mark(out)
                    return out
                try:
                    event = quick(payload)
                except ValueError:
                    event = parse_json(payload)
                choices = event.get("choices")
                if choices and len(choices) == 1 and self._id is not None:
                    choice = choices[0]
                    delta = choice.get("delta")
                    if (
                        delta
                        and choice.get("finish_reason") is None
                        and not choice.get("logprobs")
                        and not choice.get("index")
                        and (text := delta.get("content"))
                        and (len(delta) == 1 or not _has_more(delta))
                        and "error" not in event
                        and not event.get("usage")
                    ):
                        texts.append(text)
                        out.append(Chunk(text))
                        continue
                self._take(event if exact else parse_json(payload), payload, out)
            except NONSENSE as error:
                bare = payload.strip()
                if bare == DONE:
                    self._done_mark(out)
                    return out
                if bare:  # an event without data says nothing: some servers ping so
                    self._nonsense(payload, error)
            if self.failure is not None:
                break
        return out

    def _event(self, payload: bytes, out: list[Chunk]) -> None:
        if payload == DONE:
            self._done_mark(out)
        else:
            self._take(parse_json(payload), payload, out)

    def _done_mark(self, out: list[Chunk]) -> None:
        if self._terminal:
            self._complete(out)
        else:
            self.failure = self._truncated("the stream ended with [DONE] and no finish reason")

    def _complete(self, out: list[Chunk], *, lost: bool = False) -> None:
        """A reply that says it is a call and holds nothing at all is bad output, not an answer."""
        called = self._normalise(self._finished.get(0, "")) == "tool_calls"
        if called and not self._calls and not any(self._texts):
            self.failure = bad_output(
                self._engine,
                "the reply ended with finish reason tool_calls, but no call came",
                hint="what the model wrote was no call its server could read: use a stronger model",
                partial="".join(self._reasonings),
            )
            return
        super()._complete(out, lost=lost)

    def _take(self, event: Mapping[str, Any], payload: bytes, out: list[Chunk]) -> None:
        """Read one whole event by the long road."""
        if event.get("error") or event.get("object") == "error":
            self._refused(payload)
            return
        if isinstance(usage := event.get("usage"), Mapping) and usage:
            self._usage = read_usage(usage)
        if timings := event.get("timings"):
            self._timings = read_timings(timings)
            self._extra["timings"] = timings
        if self._id is None:
            self._id = event.get("id")
        if self._model is None:
            self._model = event.get("model")
        if fingerprint := event.get("system_fingerprint"):
            self._fingerprint = fingerprint
        if metrics := event.get("metrics"):
            self._extra["metrics"] = metrics
        for choice in event.get("choices") or self._no_choices(event):
            self._choice(choice, out)

    def _no_choices(self, event: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """An event without choices brings something else; one that calls itself a piece of the
        reply and brings nothing at all is no event of this protocol. Raises KeyError for it."""
        empty = "choices" not in event and not event.get("usage")
        if empty and str(event.get("object") or "").endswith((".chunk", "completion")):
            raise KeyError("choices")
        return ()

    def _choice(self, choice: Mapping[str, Any], out: list[Chunk]) -> None:
        index = int(choice.get("index") or 0)
        # A stream's last event may repeat the whole message beside its empty delta.
        body = (choice["delta"] if "delta" in choice else choice.get("message")) or {}
        text = _text(body.get("content") or choice.get("text") or "")
        reasoning = (
            body.get("reasoning_content") or body.get("reasoning") or body.get("thinking") or ""
        )
        if index == 0:
            if text:
                self._texts.append(text)
            if reasoning:
                self._reasonings.append(reasoning)
        calls = self._calls_in(_pieces(body), index)
        found = choice.get("logprobs")
        logprobs = read_logprobs(found) if found else None
        if text or reasoning or calls or logprobs:
            out.append(Chunk(text, reasoning, tool_calls=calls, logprobs=logprobs, index=index))
        if reason := choice.get("finish_reason"):
            self._finish(reason, index)
        if isinstance(usage := choice.get("usage"), Mapping) and usage:  # some servers count here
            self._usage = read_usage(usage)
            if choice.get("stop_reason") is not None:
                self._extra["stop_reason"] = choice["stop_reason"]

    def _calls_in(
        self, pieces: Sequence[Mapping[str, Any]], choice: int
    ) -> tuple[ToolCallDelta, ...]:
        # Encoders refuse tools together with n > 1, so the calls of other choices cannot come.
        if not pieces or choice:
            return ()
        deltas: dict[int, ToolCallDelta] = {}
        for place, piece in enumerate(pieces):
            function = piece.get("function") or {}
            arguments = function.get("arguments")
            if arguments is None:
                arguments = ""
            elif not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            call = None if piece.get("id") is None else str(piece["id"])
            name, index = function.get("name"), piece.get("index")
            if index is None:
                index = place if len(pieces) > 1 else self._place_of(call, name)
            delta = self._delta(int(index), call, name, arguments)
            # A busy vLLM puts the name and the first arguments of a call into one event as two
            # pieces; frameworks join pieces of different events only.
            first = deltas.setdefault(delta.index, delta)
            if first is not delta:
                first.name = first.name or delta.name
                first.arguments += delta.arguments
        return tuple(deltas.values())

    def _place_of(self, call: str | None, name: str | None) -> int:
        """The place of a piece without index: the call it names again, a new one, else the last."""
        last = max(self._calls, default=-1)
        if last < 0:
            return 0
        if call:
            known = (place for place, one in self._calls.items() if one.id == call)
            return next(known, last + 1)
        return last + 1 if name else last


class OpenAIWholeDecoder(WholeBody, OpenAIDecoder):
    """One `chat.completion` or `text_completion` object; HTTP 200 alone is not success.

    A choice without a finish reason is a truncated reply, an empty body too.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        choices: int = 1,
        turn: int = 0,
        wants_usage: bool = True,
        path: str = "",
    ) -> None:
        super().__init__(
            engine,
            choices=choices,
            turn=turn,
            wants_usage=wants_usage,
            path=path,
            frames=Whole(),
        )

    def _no_choices(self, event: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """A whole reply has choices. Raises KeyError when the key lacks."""
        return event["choices"] or ()


def _pieces(body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The tool calls of a message or delta; the older single `function_call` counts as one."""
    if calls := body.get("tool_calls"):
        return [call for call in calls if call]
    if function := body.get("function_call"):
        return [{"index": 0, "function": function}]
    return ()


def _has_more(delta: Mapping[str, Any]) -> bool:
    return bool(
        delta.get("tool_calls")
        or delta.get("function_call")
        or delta.get("reasoning_content")
        or delta.get("reasoning")
        or delta.get("thinking")
    )


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
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


def read_logprobs(found: Mapping[str, Any]) -> tuple[TokenLogprob, ...] | None:
    """Log-probabilities in the chat shape (`content[]`) or the old one of completions (`tokens[]`).

    A null log-probability (the first token of an echoed prompt has none) becomes NaN.
    """
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
