"""Read replies of `/api/chat` and `/api/generate`: JSON lines when streamed, one object when whole.

The terminal fact is `"done": true`, on whatever line it comes and whatever else that line carries:
models with a Jinja template put all their tool calls on it. HTTP 200 proves nothing. When its runner
reports an error, or repeats one token thirty times, Ollama ends the body cleanly and says no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from enginekit.drivers.framing import NDJSON, Frames, Whole
from enginekit.engine import Engine
from enginekit.engines._decoder import NONSENSE, ReplyDecoder, WholeBody
from enginekit.engines._json import parse_json
from enginekit.engines._wrap import Inner, Wrapper
from enginekit.errors import BadOutput, EngineKitError, MalformedReply, StreamTruncated
from enginekit.types import Chunk, End, Timings, TokenLogprob, ToolCallDelta, Usage

REPEATS: Final = 30
"""Identical tokens in a row after which the server ends a reply without saying so."""

STRAIGHT: Final = "switch thinking off for this request: reasoning=False"
"""What makes Ollama apply `format` from the first token on a model that can think."""

ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
_KINDS: Final[Mapping[str, type]] = {"object": dict, "array": list, "string": str}

_NANO: Final = 1e-9
_DURATIONS: Final = (
    "total_duration",
    "load_duration",
    "prompt_eval_duration",
    "eval_duration",
)
_REMOTE: Final = ("remote_model", "remote_host")
_LOADED: Final = ("load", "unload")


class OllamaDecoder(ReplyDecoder):
    """One JSON object a line. Complete at the line that says `"done": true`.

    Args:
        limit: the `num_predict` that was sent, or None; tells a reply cut by the context window
            from one cut by its own limit.
    """

    _cut_breaks_calls = False  # A call that the limit cut is never sent; those that come are whole.

    def __init__(
        self,
        engine: Engine,
        *,
        turn: int = 0,
        path: str = "",
        limit: int | None = None,
        frames: Frames | None = None,
    ) -> None:
        super().__init__(engine, NDJSON() if frames is None else frames, turn=turn, path=path)
        self._limit = limit
        self._broke = False

    def abort(self, error: EngineKitError) -> list[Chunk]:
        """As `ReplyDecoder.abort`: a broken connection is not the server's way to hide an error."""
        self._broke = True
        return super().abort(error)

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
                try:
                    event = quick(payload)
                except ValueError:
                    event = parse_json(payload)
                if len(event) == 4 and event.get("done") is False:
                    message = event.get("message")
                    if message and len(message) == 2 and (text := message.get("content")):
                        texts.append(text)
                        out.append(Chunk(text))
                        continue
                self._take(event if exact else parse_json(payload), payload, out)
            except NONSENSE as error:
                self._nonsense(payload, error)
            if self.done or self.failure is not None:
                break
        return out

    def _event(self, payload: bytes, out: list[Chunk]) -> None:
        self._take(parse_json(payload), payload, out)

    def _take(self, event: Mapping[str, Any], payload: bytes, out: list[Chunk]) -> None:
        """Read one whole object by the long road. Content comes before the end it may carry."""
        if event.get("error"):
            self._refused(payload)
            return
        message = event.get("message")
        # The server always writes `done`; a line that has neither it nor text is none of its own.
        done = event["done"] if message is None and "response" not in event else event.get("done")
        if message is None:
            message, text = event, event.get("response") or ""
        else:
            text = message.get("content") or ""
        reasoning = message.get("thinking") or ""
        calls = self._calls_in(message.get("tool_calls") or ())
        found = event.get("logprobs")
        logprobs = tuple(read_logprob(entry) for entry in found) if found else None
        if self._model is None:
            self._model = event.get("model") or None
        if text:
            self._texts.append(text)
        if reasoning:
            self._reasonings.append(reasoning)
        if text or reasoning or calls or logprobs:
            out.append(Chunk(text, reasoning, calls, logprobs))
        if done is True:
            self._finished_by(event, out)
        elif done:
            raise ValueError(f"'done' is {done!r}")

    def _calls_in(self, calls: Sequence[Mapping[str, Any]]) -> tuple[ToolCallDelta, ...]:
        """Whole calls, numbered as they come: older servers give no index, or 0 to each."""
        deltas = []
        for call in calls:
            function = call.get("function") or call
            arguments = function.get("arguments")
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments or {}, ensure_ascii=False)
            name = function["name"]
            deltas.append(self._delta(len(self._calls), call.get("id") or None, name, arguments))
        return tuple(deltas)

    def _finished_by(self, event: Mapping[str, Any], out: list[Chunk]) -> None:
        reason = event.get("done_reason") or "stop"
        if reason in _LOADED:
            self._malformed(f"it {reason}ed the model and answered nothing: the request was empty")
            return
        self._usage = read_usage(event)
        self._timings = read_timings(event)
        for name in (*_DURATIONS, *_REMOTE):
            if event.get(name):
                self._extra[name] = event[name]
        if reason == "length" and self._cut_by_window:
            self._extra["cut_by"] = "context window"
        self._finish(reason)
        self._complete(out)

    @property
    def _cut_by_window(self) -> bool:
        if self._limit is None:
            return True
        return self._usage is not None and self._usage.completion_tokens < self._limit

    def _truncated(self, what: str) -> StreamTruncated:
        error = super()._truncated(what)
        if self._broke:
            return error
        if repeats(self._texts):
            why = (
                f"the server ends a reply without a word after {REPEATS} identical tokens in a row"
            )
            hint = "raise repetition_penalty or temperature"
        else:
            why = "Ollama hides an error of its model runner this way"
            hint = (
                "the server's log has the reason (journalctl -u ollama, or ollama serve's output)"
            )
        return StreamTruncated(
            f"{error.message}; {why}",
            hint=hint,
            engine=error.engine,
            url=error.url,
            partial=error.partial,
            partial_reasoning=error.partial_reasoning,
        )


class OllamaWholeDecoder(WholeBody, OllamaDecoder):
    """One object. `"done": false` under HTTP 200 is a failure, an empty body too."""

    _not_whole = 'the reply says "done": false'

    def __init__(
        self, engine: Engine, *, turn: int = 0, path: str = "", limit: int | None = None
    ) -> None:
        super().__init__(engine, turn=turn, path=path, limit=limit, frames=Whole())


class KeepsForm(Wrapper):
    """Hold the server to the form it was asked for.

    With thinking on, Ollama applies `format` only once the model has thought; a model that answers
    at once is not constrained at all. A reply that ended by itself and does not fit is BadOutput.
    """

    def __init__(
        self,
        inner: Inner,
        engine: Engine,
        schema: Mapping[str, Any] = ANY_OBJECT,
        *,
        hint: str = STRAIGHT,
    ) -> None:
        super().__init__(inner)
        self._engine = engine
        self._schema = schema
        self._hint = hint
        self._texts: list[str] = []

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Sequence[Chunk]) -> None:
        if chunk.text:
            self._texts.append(chunk.text)
        out.append(chunk)

    def _end(self, chunk: Chunk, end: End, out: list[Chunk]) -> None:
        text = "".join(self._texts)
        if end.finish_reason == "stop" and not fits(text, self._schema):
            self.failure = BadOutput(
                f"{self._engine.name} at {self._engine.target.base_url} did not keep to the JSON "
                f"form that was asked for: {text[:200]!r}",
                hint=self._hint,
                engine=self._engine.name,
                url=self._engine.target.base_url,
                partial=text,
            )
            return
        super()._end(chunk, end, out)


def fits(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether a text is JSON of the outer form of a schema: its type and the keys it requires.

    Enough to tell an answer that was constrained from one that was not.
    """
    try:
        value = json.loads(text)
    except ValueError:
        return False
    kind = _KINDS.get(str(schema.get("type")))
    if kind is not None and not isinstance(value, kind):
        return False
    required = schema.get("required")
    if not isinstance(value, dict) or not isinstance(required, list | tuple):
        return True
    return all(name in value for name in required)


def repeats(texts: Sequence[str]) -> bool:
    """Whether a reply ends in `REPEATS` copies of one piece, streamed or in a single text.

    The server takes the space around a piece off before it compares: blank pieces are all alike.
    """
    if len(texts) >= REPEATS:
        return len({text.strip() for text in texts[-REPEATS:]}) == 1
    text = "".join(texts)
    if len(text) - len(text.rstrip()) >= REPEATS:
        return True
    for size in range(1, len(text) // REPEATS + 1):
        if text.endswith(text[len(text) - size :] * REPEATS):
            return True
    return False


def read_usage(event: Mapping[str, Any]) -> Usage | None:
    """Token counts of a final object; a count of zero is left out by the server."""
    prompt, completion = event.get("prompt_eval_count"), event.get("eval_count")
    if prompt is None and completion is None:
        return None
    prompt, completion = int(prompt or 0), int(completion or 0)
    return Usage(prompt, completion, prompt + completion)


def read_timings(event: Mapping[str, Any]) -> Timings | None:
    """Durations of a final object, which are in nanoseconds, in seconds."""
    total, load, prompt, generation = (
        None if (value := event.get(name)) is None else value * _NANO for name in _DURATIONS
    )
    if total is None and load is None and prompt is None and generation is None:
        return None
    return Timings(load=load, prompt=prompt, generation=generation, total=total)


def read_logprob(entry: Mapping[str, Any]) -> TokenLogprob:
    """One entry of `logprobs`. The end token has none."""
    raw = entry.get("bytes")
    return TokenLogprob(
        entry.get("token") or "",
        float(entry["logprob"]),
        None if raw is None else bytes(raw),
        None,
        tuple(read_logprob(other) for other in entry.get("top_logprobs") or ()),
    )
