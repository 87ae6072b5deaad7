"""llama-server's native generation format, which fill-in-the-middle answers in.

Until the end of 2024 `/v1/completions` did, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from enginekit.drivers.framing import SSE
from enginekit.engine import Engine
from enginekit.engines._decoder import ReplyDecoder
from enginekit.engines._json import parse_json
from enginekit.engines._openai_decode import OpenAIDecoder
from enginekit.engines._openai_fields import is_bare_error, read_timings
from enginekit.types import Chunk, TokenLogprob, Usage


class InfillDecoder(ReplyDecoder):
    """Events `{"content", "tokens", "stop": false, …}`, the last one with `"stop": true`.

    There is no `[DONE]`. The last event carries settings, token counts and timings.
    """

    def __init__(self, engine: Engine, *, choices: int = 1, turn: int = 0, path: str = "") -> None:
        super().__init__(engine, SSE(), choices=choices, turn=turn, path=path)

    def _event(self, payload: bytes, out: list[Chunk]) -> None:
        event = parse_json(payload)
        if event.get("error") or is_bare_error(event):
            self._refused(payload)
            return
        text = event["content"]
        logprobs = tuple(
            _probability(entry) for entry in event.get("completion_probabilities") or ()
        )
        if text or logprobs:
            self._texts.append(text)
            out.append(Chunk(text, logprobs=logprobs or None))
        if event.get("stop"):
            self._last(event, out)

    def _last(self, event: Mapping[str, Any], out: list[Chunk]) -> None:
        self._model = event.get("model")
        prompt, generated = event["tokens_evaluated"], event["tokens_predicted"]
        timings = event.get("timings") or {}
        cached = timings.get("cache_n")
        self._usage = Usage(prompt, generated, prompt + generated, cached)
        if timings:
            self._timings = read_timings(timings)
            self._extra["timings"] = timings
        if event.get("stopping_word"):
            self._extra["stop_reason"] = event["stopping_word"]
        self._extra["truncated"] = event.get("truncated")
        self._finish(event.get("stop_type") or "eos")
        self._complete(out)


class EitherDecoder(OpenAIDecoder):
    """Events of the dialect, or native ones in their place."""

    def _no_choices(self, event: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        if "content" not in event or "stop" not in event:
            return super()._no_choices(event)
        reason = None
        if event["stop"]:
            limited = event.get("stopped_limit") or event.get("stop_type") == "limit"
            reason = "length" if limited else "stop"
            prompt = int(event.get("tokens_evaluated") or 0)
            generated = int(event.get("tokens_predicted") or 0)
            self._usage = Usage(prompt, generated, prompt + generated)
        return ({"index": 0, "text": event["content"], "finish_reason": reason},)


def _probability(entry: Mapping[str, Any]) -> TokenLogprob:
    raw = entry.get("bytes")
    return TokenLogprob(
        entry.get("token") or "",
        entry["logprob"],
        None if raw is None else bytes(raw),
        entry.get("id"),
        tuple(_probability(other) for other in entry.get("top_logprobs") or ()),
    )
