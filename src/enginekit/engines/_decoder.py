"""What every reply decoder shares: completeness, assembly of tool calls, and honest failures.

A subclass implements `_event`: it reads one payload, appends at most one `Chunk` to `out`, and
records facts through the `_…` helpers. The rule of the whole library lives here and only here: a
reply is complete when its terminal fact was seen (`_finish`), not at `[DONE]` and not at EOF.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Any, Final

from enginekit.drivers.framing import Frames
from enginekit.engine import NONSENSE as NONSENSE
from enginekit.engine import Engine
from enginekit.engines._json import parse_json, plain, quickest
from enginekit.errors import (
    EngineKitError,
    EngineTimeout,
    MalformedReply,
    StreamTruncated,
)
from enginekit.types import (
    Chunk,
    End,
    FinishReason,
    Timings,
    ToolCall,
    ToolCallDelta,
    Usage,
)

USAGE_LOST = "usage lost: the stream was cut after the finish reason and before the token counts"


class _OpenCall:
    """A tool call of which pieces are still coming."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self, id: str, name: str) -> None:
        self.id = id
        self.name = name
        self.arguments: list[str] = []


class ReplyDecoder(ABC):
    """Base of all reply decoders. Pure: no I/O, no clock.

    Args:
        engine: whose reply this is; makes the errors.
        frames: how the body is cut into payloads.
        choices: how many alternatives were asked for; each needs its own finish reason.
        turn: how many messages the request had; makes tool call ids deterministic where the
            server gives none or useless ones.
        wants_usage: whether missing token counts mean that they were lost.
    """

    def __init__(
        self,
        engine: Engine,
        frames: Frames,
        *,
        choices: int = 1,
        turn: int = 0,
        wants_usage: bool = True,
        path: str = "",
    ) -> None:
        self.done = False
        self.failure: EngineKitError | None = None
        self.early = False
        self._engine = engine
        self._frames = frames
        self._choices = choices
        self._turn = turn
        self._wants_usage = wants_usage
        self._path = path
        self._quick = quickest()
        self._exact = self._quick is plain
        self._texts: list[str] = []
        self._reasonings: list[str] = []
        self._calls: dict[int, _OpenCall] = {}
        self._finished: dict[int, str] = {}
        self._usage: Usage | None = None
        self._timings: Timings | None = None
        self._model: str | None = None
        self._id: str | None = None
        self._fingerprint: str | None = None
        self._repairs: list[str] = []
        self._extra: dict[str, Any] = {}

    # -- the Decoder contract -----------------------------------------------------------

    def feed(self, data: bytes) -> list[Chunk]:
        """Chunks that these bytes complete; stops at the first fault."""
        out: list[Chunk] = []
        try:
            payloads = self._frames.feed(data)
        except MalformedReply as error:
            self._malformed(str(error))
            return out
        for payload in payloads:
            self._read(payload, out)
            if self.done or self.failure is not None:
                break
        return out

    def eof(self) -> list[Chunk]:
        """The body ended cleanly: whole if the terminal fact was seen, else truncated."""
        out: list[Chunk] = []
        if self.done or self.failure is not None:
            return out
        rest = self._frames.eof()
        if rest is not None and self._is_whole(rest):
            self._read(rest, out)
        if not self.done and self.failure is None:
            self._end_or(out, self._truncated("the reply ended without a finish reason"))
        return out

    def abort(self, error: EngineKitError) -> list[Chunk]:
        """The transport failed: whole if the terminal fact was seen, else `error` with the text."""
        out: list[Chunk] = []
        if self.done or self.failure is not None:
            return out
        if isinstance(error, EngineTimeout):
            error.partial = "".join(self._texts)
            self._end_or(out, error)
        else:
            truncated = self._truncated(f"the connection broke before the reply was whole: {error}")
            truncated.__cause__ = error
            self._end_or(out, truncated)
        return out

    def finish_early(self, reason: str, repair: str) -> End:
        """End a reply that its reader has had enough of (a stop string found on our side).

        `repair` is the sentence for the receipt; token counts that had not come yet stay None.
        """
        self.early = True
        if self._normalise(self._finished.get(0, "error")) == "error":
            self._finished[0] = reason
        self._repairs.append(repair)
        out: list[Chunk] = []
        self._complete(out)
        end = out[0].end
        assert end is not None
        return end

    # -- for subclasses -----------------------------------------------------------------

    @abstractmethod
    def _event(self, payload: bytes, out: list[Chunk]) -> None:
        """Read one payload. May raise ValueError, KeyError, TypeError for nonsense."""

    def _is_whole(self, rest: bytes) -> bool:
        """Whether what was left at EOF is a whole payload and not a torn one."""
        if rest == b"[DONE]":
            return True
        try:
            parse_json(rest)
        except ValueError:
            return False
        return True

    def _finish(self, reason: Any, index: int = 0) -> None:
        """The terminal fact of one choice; some servers write an object with the `type` of it."""
        if isinstance(reason, dict):
            reason = reason.get("type") or "stop"
        self._finished[index] = str(reason)

    @property
    def _terminal(self) -> bool:
        return len(self._finished) >= self._choices

    def _delta(self, index: int, id: str | None, name: str | None, arguments: str) -> ToolCallDelta:
        """Note a piece of a tool call and return it with id and name on the first piece only."""
        call = self._calls.get(index)
        if call is None:
            call = self._calls[index] = _OpenCall(
                id or tool_call_id(self._turn, index, name or ""), name or ""
            )
            call.arguments.append(arguments)
            return ToolCallDelta(index, call.id, call.name, arguments)
        if name and not call.name:
            call.name = name
            call.arguments.append(arguments)
            return ToolCallDelta(index, None, name, arguments)
        call.arguments.append(arguments)
        return ToolCallDelta(index, None, None, arguments)

    def _complete(self, out: list[Chunk], *, lost: bool = False) -> None:
        """Everything is there: append the chunk that carries `end`."""
        raw = self._finished.get(0, "stop")
        if self._breaks_off(raw):
            self.failure = self._truncated(f"the server ended the reply with finish reason {raw!r}")
            return
        if lost and self._wants_usage and self._usage is None:
            self._repairs.append(USAGE_LOST)
        reason = self._normalise(raw)
        if raw.lower() not in _FINISH:
            self._repairs.append(f"the finish reason {raw!r} is not known: taken for a stop")
        calls = self._whole_calls(cut=reason == "length")
        if calls and reason == "stop":
            reason = "tool_calls"
        end = End(
            finish_reason=reason,
            raw_finish_reason=raw,
            usage=self._usage,
            timings=self._timings,
            model=self._model,
            id=self._id,
            system_fingerprint=self._fingerprint,
            tool_calls=calls,
            repairs=tuple(self._repairs),
            extra=self._extra,
        )
        out.append(Chunk(end=end))
        self.done = True

    def _breaks_off(self, raw: str) -> bool:
        """Whether this finish reason (`abort`, `error`, …) means that the reply is no answer."""
        return self._normalise(raw) == "error"

    def _normalise(self, raw: str) -> FinishReason:
        """The engine's finish reason in our vocabulary; a word that nobody knows is taken for stop."""
        return _FINISH.get(raw.lower(), "stop")

    def _whole_calls(self, *, cut: bool) -> tuple[ToolCall, ...]:
        calls = []
        last = max(self._calls, default=-1)
        for index in sorted(self._calls):
            call = self._calls[index]
            arguments = "".join(call.arguments)
            problem = arguments_problem(arguments)
            if cut and index == last and self._cut_breaks_calls:
                problem = "the reply was cut by the token limit inside this call"
            calls.append(ToolCall(id=call.id, name=call.name, arguments=arguments, problem=problem))
        return tuple(calls)

    _cut_breaks_calls = True
    """Whether a finish reason of `length` means that the last call is broken even if it parses."""

    # -- failures -----------------------------------------------------------------------

    def _read(self, payload: bytes, out: list[Chunk]) -> None:
        try:
            self._event(payload, out)
        except NONSENSE as error:
            self._nonsense(payload, error)

    def _nonsense(self, payload: bytes, error: Exception) -> None:
        """A payload could not be read: leave a MalformedReply that shows it."""
        shown = payload[:200].decode("utf-8", "replace")
        self._malformed(f"an event is not what its protocol says ({error!r}): {shown}")
        if self.failure is not None:
            self.failure.__cause__ = error

    def _malformed(self, what: str) -> None:
        self.failure = MalformedReply(
            f"{self._engine.name} at {self._engine.target.base_url} sent a malformed reply: {what}",
            engine=self._engine.name,
            url=self._engine.target.base_url,
            partial="".join(self._texts),
        )

    def _refused(self, body: bytes, status: int = 200) -> None:
        """An error event inside the stream, or a 200 that is an error."""
        error = self._engine.failure(status, {}, body, path=self._path)
        if hasattr(type(error), "partial"):
            error.partial = "".join(self._texts)  # type: ignore[attr-defined]
        self.failure = error

    def _truncated(self, what: str) -> StreamTruncated:
        partial = "".join(self._texts)
        return StreamTruncated(
            f"{self._engine.name} at {self._engine.target.base_url}: {what}; "
            f"{len(partial)} characters had come",
            engine=self._engine.name,
            url=self._engine.target.base_url,
            partial=partial,
            partial_reasoning="".join(self._reasonings),
        )

    def _end_or(self, out: list[Chunk], error: EngineKitError) -> None:
        if self._terminal:
            self._complete(out, lost=True)
        else:
            self.failure = error


class WholeBody(ReplyDecoder):
    """A reply that is one document, put before a decoder of events; HTTP 200 alone is not success."""

    _not_whole = "the reply has no finish reason"
    """What is said of a document that can be read and has no terminal fact."""

    def feed(self, data: bytes) -> list[Chunk]:
        """Nothing: the document is complete at the end of the body."""
        try:
            self._frames.feed(data)
        except MalformedReply as error:
            self._malformed(str(error))
        return []

    def eof(self) -> list[Chunk]:
        """The whole reply, or a failure; an empty body is one."""
        out: list[Chunk] = []
        if self.done or self.failure is not None:
            return out
        body = self._frames.eof() or b""
        if not body.strip():
            self.failure = self._truncated("the reply was empty")
            return out
        self._whole(body, out)
        if self.failure is None and not self.done:
            if self._terminal:
                self._complete(out)
            else:
                self.failure = self._truncated(self._not_whole)
        return out if self.failure is None else []

    def _whole(self, body: bytes, out: list[Chunk]) -> None:
        """Read the document."""
        self._read(body, out)


_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "word": "stop",
    "length": "length",
    "limit": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "abort": "error",
    "preempt": "error",
    "aborted": "error",
    "cancelled": "error",
    "error": "error",
    "parse_error": "error",
    "timeout": "error",
    "repetition": "length",
    "max_tokens": "length",
    "max_length": "length",
    "model_length": "length",
    "context_length": "length",
    "end_turn": "stop",
    "stop_token": "stop",
    "completed": "stop",
    "tool_use": "tool_calls",
    "tool_call": "tool_calls",
    "safety": "content_filter",
}


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")


_STRICT: Final = json.JSONDecoder(parse_constant=_no_number)
"""Python also reads NaN and Infinity, which no server would take back."""


def arguments_problem(arguments: str) -> str | None:
    """None when `arguments` is the JSON text of an object (or empty), else what is wrong."""
    if not arguments.strip():
        return None
    try:
        value = _STRICT.decode(arguments)
    except ValueError as error:
        return f"arguments are not valid JSON: {error}"
    except RecursionError:
        return "arguments are nested too deeply to be read"
    if not isinstance(value, dict):
        return f"arguments are JSON {type(value).__name__}, not an object"
    return None


def tool_call_id(turn: int, index: int, name: str) -> str:
    """An id for a call the server gave none: the same for the same place in a conversation.

    Random ids would make recorded conversations unreplayable; the tool's name alone would make two
    parallel calls of one tool collide.
    """
    digest = hashlib.sha256(f"{turn}\0{index}\0{name}".encode()).hexdigest()
    return f"call_{digest[:24]}"
