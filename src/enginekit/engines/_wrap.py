"""Decoders around decoders: what an engine does not do by itself, done to its chunks.

A wrapper satisfies the Decoder contract and can be stacked. It costs a call per chunk, so it is
only put around replies that need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from enginekit.errors import EngineKitError
from enginekit.types import Chunk, End


class Inner(Protocol):
    """A decoder that can be ended early; `ReplyDecoder` and every wrapper are."""

    done: bool
    failure: EngineKitError | None

    def feed(self, data: bytes) -> list[Chunk]:
        """As `Decoder.feed`."""
        ...

    def eof(self) -> list[Chunk]:
        """As `Decoder.eof`."""
        ...

    def abort(self, error: EngineKitError) -> list[Chunk]:
        """As `Decoder.abort`."""
        ...

    def finish_early(self, reason: str, repair: str) -> End:
        """End the reply now."""
        ...


class Wrapper:
    """Base: passes everything through. A subclass overrides `_chunk` and, if it holds, `_flush`."""

    def __init__(self, inner: Inner) -> None:
        self.done = False
        self.failure: EngineKitError | None = None
        self._inner = inner
        self._idle = False
        """A subclass sets it once nothing is left to do but to hand chunks on."""

    def feed(self, data: bytes) -> list[Chunk]:
        """As `Decoder.feed`; straight through once there is nothing left to do."""
        chunks = self._inner.feed(data)
        if self._idle and not self._inner.done and self._inner.failure is None:
            return chunks
        return self._pass(chunks)

    def eof(self) -> list[Chunk]:
        """As `Decoder.eof`."""
        return [] if self._over else self._pass(self._inner.eof())

    def abort(self, error: EngineKitError) -> list[Chunk]:
        """As `Decoder.abort`."""
        return [] if self._over else self._pass(self._inner.abort(error))

    def finish_early(self, reason: str, repair: str) -> End:
        """End the reply now; what was held back is the caller's loss, it asked for the end."""
        self.done = True
        return self._inner.finish_early(reason, repair)

    @property
    def early(self) -> bool:
        """Whether the reply was ended on our side while the server goes on."""
        return bool(getattr(self._inner, "early", False))

    @property
    def _over(self) -> bool:
        return self.done or self.failure is not None

    def _pass(self, chunks: list[Chunk]) -> list[Chunk]:
        out: list[Chunk] = []
        place, ended = 0, bool(chunks) and chunks[-1].end is not None
        while place < len(chunks):
            chunk = chunks[place]
            place += 1
            if chunk.end is not None:
                self._flush(out)
                self._end(chunk, chunk.end, out)
            elif self._idle:
                stop = len(chunks) - ended
                out.extend(chunks[place - 1 : stop])
                place = stop
                continue
            else:
                self._chunk(chunk, out, chunks[place:] if self._cuts else ())
            if self._over:
                return out
        if self._inner.failure is not None:
            self._flush(out)
            self.failure = self._inner.failure
        return out

    # -- for subclasses -----------------------------------------------------------------

    _cuts = False
    """Whether `_chunk` wants `rest`, which `_stop` needs: slicing it for every chunk costs."""

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Sequence[Chunk]) -> None:
        """Take one chunk that is not the end; `rest` is what was decoded together with it."""
        out.append(chunk)

    def _flush(self, out: list[Chunk]) -> None:
        """Give out what was held back: the reply is over, or broken."""

    def _end(self, chunk: Chunk, end: End, out: list[Chunk]) -> None:
        """Take the last chunk."""
        out.append(chunk)
        self.done = True

    def _stop(self, reason: str, repair: str, out: list[Chunk], rest: Sequence[Chunk]) -> None:
        """End here: with the server's own end if it came along, else without its token counts."""
        self.done = True
        ends = [chunk.end for chunk in rest if chunk.end is not None]
        if not ends:
            lost = f"{repair}; the server's token counts were not waited for"
            out.append(Chunk(end=self._inner.finish_early(reason, lost)))
            return
        counted = f"{repair}; the token counts include what was cut off"
        end = replace(ends[0], repairs=(*ends[0].repairs, counted))
        end.finish_reason = "length" if reason == "length" else "stop"
        out.append(Chunk(end=end))


class StopCutter(Wrapper):
    """Enforce stop strings on the text of choice 0; the stop text is never part of the answer.

    Text that may be the beginning of a stop string is held back until that is settled. Of several,
    the one that is complete first counts, as on a server that looks after each token; so it does
    not matter how the text was cut into chunks.
    """

    _cuts = True

    def __init__(self, inner: Inner, stops: Sequence[str]) -> None:
        super().__init__(inner)
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Sequence[Chunk]) -> None:
        if chunk.index or not chunk.text:
            out.append(chunk)
            return
        text = self._held + chunk.text
        self._held = ""
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, stop = min(found)
            self._emit(text[:at], chunk, out)
            self._stop("stop", f"cut at the stop string {stop!r} by enginekit", out, rest)
            return
        keep = max(overlap(text, stop) for stop in self._stops) if self._stops else 0
        if keep:
            self._held = text[-keep:]
            text = text[:-keep]
        self._emit(text, chunk, out)

    def _emit(self, text: str, chunk: Chunk, out: list[Chunk]) -> None:
        if text or chunk.reasoning or chunk.tool_calls or chunk.logprobs:
            out.append(Chunk(text, chunk.reasoning, chunk.tool_calls, chunk.logprobs))

    def _flush(self, out: list[Chunk]) -> None:
        if self._held:
            out.append(Chunk(self._held))
            self._held = ""


class TokenLimit(Wrapper):
    """Enforce `max_tokens` where the server overshoots; counts chunks, so one must be one token."""

    _cuts = True

    def __init__(self, inner: Inner, limit: int) -> None:
        super().__init__(inner)
        self._limit = limit
        self._seen = 0

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Sequence[Chunk]) -> None:
        out.append(chunk)
        if chunk.index == 0:
            self._seen += 1
            if self._seen >= self._limit and not (rest and rest[0].end is not None):
                repair = f"cut after {self._limit} tokens by enginekit"
                self._stop("length", repair, out, rest)


class PrefixStrip(Wrapper):
    """Take back the text of a prefilled assistant turn, which some servers repeat in the answer."""

    def __init__(self, inner: Inner, prefix: str) -> None:
        super().__init__(inner)
        self._prefix = prefix
        self._held: list[Chunk] = []
        self._settled = not prefix
        self._stripped = False

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Sequence[Chunk]) -> None:
        if self._settled or chunk.index or not chunk.text:
            out.append(chunk)
            return
        self._held.append(chunk)
        text = "".join(held.text for held in self._held)
        if len(text) >= len(self._prefix) or not self._prefix.startswith(text):
            self._settle(text, out)

    def _settle(self, text: str, out: list[Chunk]) -> None:
        self._settled = True
        if not text.startswith(self._prefix):
            out.extend(self._held)
        else:
            self._stripped = True
            left = text[len(self._prefix) :]
            logprobs = [entry for held in self._held for entry in held.logprobs or ()]
            if left or logprobs:
                out.append(Chunk(left, logprobs=tuple(logprobs) or None))
        self._held.clear()

    def _flush(self, out: list[Chunk]) -> None:
        out.extend(self._held)
        self._held.clear()

    def _end(self, chunk: Chunk, end: End, out: list[Chunk]) -> None:
        if self._stripped:
            end.repairs = (*end.repairs, "the prefilled text, which the server repeats, was cut")
        super()._end(chunk, end, out)


class Echo(Wrapper):
    """Put the prompt in front of the text, for a server that ignores `echo`."""

    def __init__(self, inner: Inner, prompt: str) -> None:
        super().__init__(inner)
        self._prompt = prompt
        self._seen: set[int] = set()

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Sequence[Chunk]) -> None:
        if chunk.index not in self._seen:
            self._seen.add(chunk.index)
            out.append(Chunk(self._prompt, index=chunk.index))
        out.append(chunk)

    def _flush(self, out: list[Chunk]) -> None:
        if 0 not in self._seen and self._inner.failure is None:
            self._seen.add(0)
            out.append(Chunk(self._prompt))


class FirstCallOnly(Wrapper):
    """Keep one tool call where several were not wanted and the server makes them all the same."""

    def __init__(self, inner: Inner) -> None:
        super().__init__(inner)
        self._first: int | None = None

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Sequence[Chunk]) -> None:
        if not chunk.tool_calls:
            out.append(chunk)
            return
        if self._first is None:
            self._first = chunk.tool_calls[0].index
        kept = tuple(delta for delta in chunk.tool_calls if delta.index == self._first)
        if kept or chunk.text or chunk.reasoning or chunk.logprobs:
            out.append(Chunk(chunk.text, chunk.reasoning, kept, chunk.logprobs, index=chunk.index))

    def _end(self, chunk: Chunk, end: End, out: list[Chunk]) -> None:
        dropped = len(end.tool_calls) - 1
        if dropped > 0:
            end.tool_calls = end.tool_calls[:1]
            end.repairs = (
                *end.repairs,
                f"{dropped} further tool call{'s' if dropped > 1 else ''} dropped: "
                "parallel_tool_calls is off and the server does not heed it",
            )
        super()._end(chunk, end, out)


def overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` are a proper beginning of `mark`."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0
