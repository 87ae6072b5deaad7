"""Split inline `<think>…</think>` into reasoning, wherever the bytes were cut.

Only a reply that *begins* with the tag is split: a tag further on is text about tags. Servers that
split by themselves are recognised by their first reasoning, and left alone from then on.
"""

from __future__ import annotations

from collections.abc import Sequence

from enginekit.engines._wrap import Inner, Wrapper, overlap
from enginekit.types import Chunk, End, TokenLogprob

OPEN = "<think>"
CLOSE = "</think>"


class ThinkSplitter(Wrapper):
    """Text inside the leading think block becomes `Chunk.reasoning`; both parts are trimmed.

    A block that is never closed (cut by the token limit) is reasoning to its end. Only choice 0 is
    split.
    """

    def __init__(self, inner: Inner, *, opening: str = OPEN, closing: str = CLOSE) -> None:
        super().__init__(inner)
        self._opening = opening
        self._closing = closing
        self._held = ""
        self._state = "start"
        self._split = False
        self._said = False

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Sequence[Chunk]) -> None:
        if chunk.reasoning and self._state == "start":
            self._flush(out)
            self._switch_off()
        if self._state == "off" or chunk.index or not chunk.text:
            out.append(chunk)
            return
        self._held += chunk.text
        before = len(out)
        if self._state == "start":
            self._begin(out)
        if self._state == "inside":
            self._inside(out)
        if self._state == "after":
            self._after(out)
        self._carry(chunk.logprobs, before, out)
        if chunk.tool_calls or chunk.reasoning:
            out.append(Chunk(reasoning=chunk.reasoning, tool_calls=chunk.tool_calls))

    def _begin(self, out: list[Chunk]) -> None:
        lead = self._held.lstrip()
        if len(lead) < len(self._opening) and self._opening.startswith(lead):
            return
        if not lead.startswith(self._opening):
            self._switch_off()
            self._flush(out)
            return
        self._held = lead[len(self._opening) :]
        self._state = "inside"
        self._split = True

    def _inside(self, out: list[Chunk]) -> None:
        if not self._said:
            self._held = self._held.lstrip()
        at = self._held.find(self._closing)
        if at >= 0:
            self._reason(self._held[:at].rstrip(), out)
            self._held = self._held[at + len(self._closing) :]
            self._state = "after"
            return
        ready = self._held[: len(self._held) - overlap(self._held, self._closing)].rstrip()
        self._reason(ready, out)
        self._held = self._held[len(ready) :]

    def _after(self, out: list[Chunk]) -> None:
        self._held = self._held.lstrip()
        if self._held:
            self._switch_off()
            self._flush(out)

    def _switch_off(self) -> None:
        """The rest of the reply is passed on as it is."""
        self._state = "off"
        self._idle = True

    def _reason(self, text: str, out: list[Chunk]) -> None:
        if text:
            self._said = True
            out.append(Chunk(reasoning=text))

    def _flush(self, out: list[Chunk]) -> None:
        held, self._held = self._held, ""
        if self._state == "inside":
            self._reason(held.rstrip(), out)
        elif held and self._state != "after":
            out.append(Chunk(held))

    @staticmethod
    def _carry(logprobs: tuple[TokenLogprob, ...] | None, before: int, out: list[Chunk]) -> None:
        if not logprobs:
            return
        if len(out) > before:
            out[-1].logprobs = logprobs
        else:
            out.append(Chunk(logprobs=logprobs))

    def _end(self, chunk: Chunk, end: End, out: list[Chunk]) -> None:
        if self._split:
            end.repairs = (*end.repairs, "inline thinking was split from the answer")
        super()._end(chunk, end, out)


class AnswerInReasoning(Wrapper):
    """A finished reply that is all reasoning is given as text, too.

    vLLM's reasoning parsers take an answer without any think tag for reasoning, all of it, and
    leave the content null. Only choice 0, only when the model stopped by itself.
    """

    def __init__(self, inner: Inner) -> None:
        super().__init__(inner)
        self._reasoning: list[str] = []
        self._answered = False

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Sequence[Chunk]) -> None:
        if not chunk.index:
            if chunk.reasoning and not self._answered:
                self._reasoning.append(chunk.reasoning)
            self._answered = self._idle = self._answered or bool(chunk.text or chunk.tool_calls)
        out.append(chunk)

    def _end(self, chunk: Chunk, end: End, out: list[Chunk]) -> None:
        text = "".join(self._reasoning)
        if text.strip() and not self._answered and end.finish_reason == "stop":
            out.append(Chunk(text))
            end.repairs = (
                *end.repairs,
                "the server's reasoning parser took the whole answer for thinking: given as text",
            )
        super()._end(chunk, end, out)
