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
from enginekit.engines._decoder import NONSENSE, ReplyDecoder, WholeBody, arguments_problem
from enginekit.engines._json import parse_json
from enginekit.engines._openai_fields import (
    is_bare_error,
    is_stream,
    pieces_of,
    read_logprobs,
    read_timings,
    read_usage,
    remark_of,
    text_of,
    without_mark,
)
from enginekit.engines._required import bad_output
from enginekit.errors import EngineKitError, MalformedReply, StreamTruncated
from enginekit.types import Chunk, ToolCallDelta

DONE: Final = b"[DONE]"

NOT_STREAMED: Final = "the server answered in one piece though a stream was asked for"
STREAMED: Final = "the server streamed though a whole reply was asked for"


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
        self._begun = False
        self._remark = ""
        self._places: dict[int, int] = {}

    def feed(self, data: bytes) -> list[Chunk]:
        """Chunks that these bytes complete; stops at the first fault."""
        out: list[Chunk] = []
        if not self._begun:
            self._begin(data)
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

    def _begin(self, data: bytes) -> None:
        """No line of an event stream begins like a document: a server, or a gateway before it, may
        answer with one whatever was asked for."""
        start = data.lstrip()[:1]
        self._begun = bool(start)
        if start in (b"{", b"[", b"<", b'"'):
            self._frames = Whole()

    def eof(self) -> list[Chunk]:
        """The body ended cleanly: whole if the terminal fact was seen, else truncated."""
        if isinstance(self._frames, Whole) and not self.done and self.failure is None:
            return self._document(without_mark(self._frames.eof() or b""))
        return super().eof()

    def _document(self, body: bytes) -> list[Chunk]:
        """A whole body in place of a stream: an error, or the reply in one piece."""
        out: list[Chunk] = []
        self._repairs.append(NOT_STREAMED)
        self._read(body, out)
        if self.failure is None:
            self._end_or(out, self._truncated("the reply has no finish reason"))
        return out if self.failure is None else []

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

    def _truncated(self, what: str) -> StreamTruncated:
        return super()._truncated(
            f"{what} (it had said {self._remark!r})" if self._remark else what
        )

    def _take(self, event: Mapping[str, Any], payload: bytes, out: list[Chunk]) -> None:
        """Read one whole event by the long road."""
        if event.get("error") or event.get("object") == "error" or is_bare_error(event):
            self._refused(payload)
            return
        self._remark = remark_of(event) or self._remark
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
        text = text_of(body.get("content") or choice.get("text") or "")
        reasoning = (
            body.get("reasoning_content") or body.get("reasoning") or body.get("thinking") or ""
        )
        if index == 0:
            if text:
                self._texts.append(text)
            if reasoning:
                self._reasonings.append(reasoning)
        calls = self._calls_in(pieces_of(body), index)
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
        before = {one.id: place for place, one in self._calls.items()}
        for place, piece in enumerate(pieces):
            function = piece.get("function") or {}
            arguments = function.get("arguments")
            if arguments is None:
                arguments = ""
            elif not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            call = None if piece.get("id") is None else str(piece["id"])
            name, index = function.get("name"), piece.get("index")
            if index is not None and int(index) >= 0:
                at = self._place_at(int(index), call, name)
            elif len(pieces) == 1:
                at = self._place_of(call, name)
            else:  # several without places: calls seen before, else new ones in their order
                at = before.get(call or "", place + len(before) if name else place)
            delta = self._delta(at, call, name, arguments)
            # A busy vLLM puts the name and the first arguments of a call into one event as two
            # pieces; frameworks join pieces of different events only.
            first = deltas.setdefault(delta.index, delta)
            if first is not delta:
                first.name = first.name or delta.name
                first.arguments += delta.arguments
        return tuple(deltas.values())

    def _place_at(self, index: int, call: str | None, name: str | None) -> int:
        """The place of a piece with an index: its own, unless a whole call with another id is there
        already. Some servers give each of several calls the index 0."""
        place = self._places.get(index, index)
        known = self._calls.get(place)
        if known is None or not call or not name or known.id == call:
            return place
        written = "".join(known.arguments)
        if not written.strip() or arguments_problem(written) is not None:
            return place
        self._places[index] = place = max(self._calls) + 1
        return place

    def _place_of(self, call: str | None, name: str | None) -> int:
        """The place of a piece without index: the call it names again, a new one, else the last."""
        last = max(self._calls, default=-1)
        if last < 0:
            return 0
        known = (place for place, one in self._calls.items() if call and one.id == call)
        return next(known, last + 1 if name else last)


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
        self._streams = False

    def _no_choices(self, event: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """A whole reply has choices. Raises KeyError when the key lacks."""
        return super()._no_choices(event) if self._streams else event["choices"] or ()

    def _events(self, body: bytes, out: list[Chunk]) -> None:
        """A stream in place of a whole reply."""
        self._streams = True
        self._repairs.append(STREAMED)
        frames = SSE()
        payloads = frames.feed(body)
        if (rest := frames.eof()) is not None and self._is_whole(rest):
            payloads.append(rest)
        for payload in payloads:
            if payload.strip():
                self._read(payload, out)
            if self.done or self.failure is not None:
                return

    def abort(self, error: EngineKitError) -> list[Chunk]:
        """As `ReplyDecoder.abort`; what had come of a stream is read first."""
        out: list[Chunk] = []
        if not self.done and self.failure is None:
            body = self._frames.eof() or b""
            if is_stream(body):
                self._events(body, out)
        out += super().abort(error)
        return out if self.failure is None else []

    def _whole(self, body: bytes, out: list[Chunk]) -> None:
        body = without_mark(body)
        if is_stream(body):
            self._events(body, out)
        else:
            super()._whole(body, out)


def _has_more(delta: Mapping[str, Any]) -> bool:
    return bool(
        delta.get("tool_calls")
        or delta.get("function_call")
        or delta.get("reasoning_content")
        or delta.get("reasoning")
        or delta.get("thinking")
    )
