"""Read TGI's replies: chats in the OpenAI dialect with its traps, and the native `/generate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginekit.drivers.framing import SSE, Frames, Whole
from enginekit.engine import Engine
from enginekit.engines._decoder import ReplyDecoder, WholeBody
from enginekit.engines._json import parse_json
from enginekit.engines._openai_decode import OpenAIDecoder, OpenAIWholeDecoder
from enginekit.engines._required import bad_output
from enginekit.engines._wrap import Inner, Wrapper
from enginekit.engines.tgi.params import SLICE
from enginekit.types import Chunk, End, TokenLogprob, ToolCallDelta, Usage

HALF = (
    "the text was put together from its tokens: it ends in half a character, and the server then "
    "gives an empty one"
)
NOTIFY_ERROR = "notify_error"
"""TGI 2's own word for no call."""
DECIDED = (
    "the server first decided against a call and then answered in a second pass: the finish reason "
    "and the completion tokens are those of the decision, so max_tokens may have cut the text"
)


class TGIDecoder(OpenAIDecoder):
    """Chat and completion streams of `/v1`.

    Ids of calls are ours: the server's are "0" on every turn. A stream of tool calls never has a
    finish reason unless it was cut; there `[DONE]` after arguments that parse is the end.
    """

    def _calls_in(self, pieces: Any, choice: int) -> tuple[ToolCallDelta, ...]:
        return super()._calls_in([{**piece, "id": None} for piece in pieces], choice)

    def _done_mark(self, out: list[Chunk]) -> None:
        if not self._terminal and self._calls:
            broken = [call.name for call in self._whole_calls(cut=False) if call.problem]
            written = all("".join(call.arguments).strip() for call in self._calls.values())
            if broken or not written:
                self.failure = bad_output(
                    self._engine,
                    "the streamed tool call is not valid JSON: the server cuts its pieces out of "
                    "raw text",
                    hint="ask for tools without streaming",
                    partial="".join(self._texts),
                )
                return
            self._finish("tool_calls")
        super()._done_mark(out)


class EventPerToken(TGIDecoder):
    """A chunk for every token, empty ones included, so that tokens can be counted."""

    def _choice(self, choice: Mapping[str, Any], out: list[Chunk]) -> None:
        before = len(out)
        super()._choice(choice, out)
        if len(out) == before:
            out.append(Chunk())


class TGIWholeDecoder(OpenAIWholeDecoder):
    """A plain reply of `/v1`: an empty text with tokens counted is lost text, not an answer."""

    def _calls_in(self, pieces: Any, choice: int) -> tuple[ToolCallDelta, ...]:
        return super()._calls_in([{**piece, "id": None} for piece in pieces], choice)

    def _complete(self, out: list[Chunk], *, lost: bool = False) -> None:
        used = self._usage.completion_tokens if self._usage is not None else 0
        cut = self._finished.get(0) == "length"
        if cut and used and not self._calls and not any(self._texts) and self._choices == 1:
            self.failure = bad_output(
                self._engine,
                f"the answer came back empty though {used} tokens were generated: its last token "
                "is half a character",
                hint="stream it, or ask for another max_tokens",
            )
            return
        super()._complete(out, lost=lost)


class Decided(Wrapper):
    """Say what a text answer to a request with tools does not tell; an empty one is lost text."""

    def __init__(self, inner: Inner, engine: Engine) -> None:
        super().__init__(inner)
        self._engine = engine
        self._empty = True

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Any) -> None:
        self._empty = self._empty and not (chunk.text or chunk.reasoning)
        out.append(chunk)

    def _end(self, chunk: Chunk, end: End, out: list[Chunk]) -> None:
        if not end.tool_calls and self._empty:
            self.failure = bad_output(
                self._engine,
                "the server decided against a call and then answered with nothing",
                hint="send the request without tools, or ask for another max_tokens",
            )
            return
        if not end.tool_calls:
            end.repairs = (*end.repairs, DECIDED)
        super()._end(chunk, end, out)


class NotifyError(Wrapper):
    """Say that a call of TGI's own `notify_error` is no call: version 2 offers it beside the tools.

    Versions 2.0.1 to 2.3.0 (`router/src/infer`) add it to every grammar of tools, whatever the
    choice, and hand it on like a call; 2.3.1 makes its text the answer, as is done here. Where a
    call was required there is no answer in it.

    Args:
        forced: whether a call was required.
    """

    def __init__(self, inner: Inner, engine: Engine, *, forced: bool) -> None:
        super().__init__(inner)
        self._engine = engine
        self._forced = forced
        self._held: set[int] = set()

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Any) -> None:
        self._held |= {d.index for d in chunk.tool_calls if d.name == NOTIFY_ERROR}
        kept = tuple(delta for delta in chunk.tool_calls if delta.index not in self._held)
        if kept or not chunk.tool_calls or chunk.text or chunk.reasoning:
            out.append(Chunk(chunk.text, chunk.reasoning, kept, chunk.logprobs, index=chunk.index))

    def _end(self, chunk: Chunk, end: End, out: list[Chunk]) -> None:
        notes = [call for call in end.tool_calls if call.name == NOTIFY_ERROR]
        if notes:
            said = "" if notes[0].problem else str(notes[0].parsed().get("error") or "")
            if self._forced or not said:
                self.failure = bad_output(
                    self._engine,
                    f"the model made no call but TGI's own {NOTIFY_ERROR}: {said[:200]}",
                    hint="update TGI to 2.4 or later, where a call that is required is made",
                )
                return
            end.tool_calls = tuple(call for call in end.tool_calls if call.name != NOTIFY_ERROR)
            end.finish_reason = "tool_calls" if end.tool_calls else "stop"
            end.repairs = (*end.repairs, f"no call: the text is that of TGI's own {NOTIFY_ERROR}")
            out.append(Chunk(said))
        super()._end(chunk, end, out)


class OneSlice(Wrapper):
    """Constrained output of more than one slice is not what its grammar says."""

    def __init__(self, inner: Inner, engine: Engine) -> None:
        super().__init__(inner)
        self._engine = engine

    def _end(self, chunk: Chunk, end: End, out: list[Chunk]) -> None:
        if end.usage is not None and end.usage.completion_tokens > SLICE:
            self.failure = bad_output(
                self._engine,
                f"the constrained output is {end.usage.completion_tokens} tokens long, and after "
                f"{SLICE} the server begins its grammar anew",
                hint=f"set max_tokens to at most {SLICE}, and ask for less at a time",
            )
            return
        super()._end(chunk, end, out)


class GenerateDecoder(ReplyDecoder):
    """`/generate_stream`: one event per token; complete with a non-null `generated_text`.

    Args:
        logprobs: whether the caller asked for them; the server always sends them.
        per_token: a chunk for every token, empty ones included.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        choices: int = 1,
        turn: int = 0,
        path: str = "/generate_stream",
        logprobs: bool = False,
        per_token: bool = False,
        frames: Frames | None = None,
    ) -> None:
        super().__init__(engine, SSE() if frames is None else frames, choices=choices, path=path)
        self._logprobs = logprobs
        self._per_token = per_token

    def _event(self, payload: bytes, out: list[Chunk]) -> None:
        event = parse_json(payload)
        if event.get("error"):
            self._refused(payload)
            return
        token = event["token"]
        text = "" if token.get("special") else token.get("text") or ""
        logprobs = (_logprob(token, event.get("top_tokens") or ()),) if self._logprobs else None
        if text:
            self._texts.append(text)
        if text or logprobs or self._per_token:
            out.append(Chunk(text, logprobs=logprobs))
        if (whole := event.get("generated_text")) is not None:
            self._last(whole, event.get("details") or {}, out)

    def _last(self, whole: str, details: Mapping[str, Any], out: list[Chunk]) -> None:
        told = "".join(self._texts)
        if whole.startswith(told) and len(whole) > len(told):
            out.append(Chunk(whole[len(told) :]))
            self._texts.append(whole[len(told) :])
        elif told and not whole:
            self._repairs.append(HALF)
        made, prompt = details.get("generated_tokens"), details.get("input_length")
        if made is not None and prompt is not None:
            self._usage = Usage(prompt, made, prompt + made)
        if details.get("seed") is not None:
            self._extra["seed"] = details["seed"]
        self._finish(details.get("finish_reason") or "stop")
        self._complete(out)


class GenerateWholeDecoder(WholeBody, GenerateDecoder):
    """`/generate`: one document, with the other sequences of `best_of` as further choices."""

    _not_whole = "the reply is not whole"

    def __init__(self, engine: Engine, **more: Any) -> None:
        super().__init__(engine, frames=Whole(), **more)

    def _event(self, payload: bytes, out: list[Chunk]) -> None:
        value = parse_json(payload)
        if isinstance(value, list):  # `POST /` answers with a list of one
            value = value[0]
        if value.get("error"):
            self._refused(payload)
            return
        details = value.get("details") or {}
        self._sequence(value["generated_text"], details, 0, out)
        others = details.get("best_of_sequences") or ()
        for index, other in enumerate(others, start=1):
            self._sequence(other["generated_text"], other, index, out)
        made = [details.get("generated_tokens"), *(o.get("generated_tokens") for o in others)]
        prompt = len(details.get("prefill") or ())
        if prompt and None not in made:
            used = sum(count for count in made if count)
            self._usage = Usage(prompt, used, prompt + used)
        elif made[0] is not None:
            self._extra["generated_tokens"] = sum(count for count in made if count)
        if details.get("seed") is not None:
            self._extra["seed"] = details["seed"]
        self._complete(out)

    def _sequence(
        self, text: str, details: Mapping[str, Any], index: int, out: list[Chunk]
    ) -> None:
        tokens = details.get("tokens") or ()
        pieces = "".join(token["text"] for token in tokens if not token.get("special"))
        if not text and pieces:
            text = pieces
            self._repairs.append(HALF)
        tops = details.get("top_tokens") or [()] * len(tokens)
        logprobs = (
            tuple(_logprob(token, top) for token, top in zip(tokens, tops))
            if self._logprobs and tokens
            else None
        )
        if index == 0 and text:
            self._texts.append(text)
        if text or logprobs:
            out.append(Chunk(text, logprobs=logprobs, index=index))
        self._finish(details.get("finish_reason") or "stop", index)


def _logprob(token: Mapping[str, Any], top: Any) -> TokenLogprob:
    others = tuple(
        TokenLogprob(other["text"], _number(other.get("logprob")), None, other.get("id"))
        for other in top or ()
    )
    return TokenLogprob(token["text"], _number(token.get("logprob")), None, token.get("id"), others)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
