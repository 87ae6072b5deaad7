"""A tool call that was required and did not come is bad output, never an answer."""

from __future__ import annotations

from collections.abc import Sequence

from enginekit.engine import Engine
from enginekit.engines._wrap import Inner, Wrapper
from enginekit.errors import BadOutput
from enginekit.types import Chunk, End


def bad_output(engine: Engine, why: str, *, hint: str, partial: str = "") -> BadOutput:
    """The engine is well, but what it sent is not what was asked for."""
    return BadOutput(
        f"{engine.name} at {engine.target.base_url}: {why}",
        hint=hint,
        engine=engine.name,
        url=engine.target.base_url,
        partial=partial,
    )


class CallRequired(Wrapper):
    """A reply without a call where one was required is bad output.

    Seen on real servers: TGI answers with an empty call, vLLM with a call that the token limit cut
    and that comes as text.
    """

    def __init__(self, inner: Inner, engine: Engine) -> None:
        super().__init__(inner)
        self._engine = engine
        self._text: list[str] = []

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Sequence[Chunk]) -> None:
        self._text.append(chunk.text)
        out.append(chunk)

    def _end(self, chunk: Chunk, end: End, out: list[Chunk]) -> None:
        if end.tool_calls:
            super()._end(chunk, end, out)
            return
        cut = "; the token limit cut the reply" if end.finish_reason == "length" else ""
        self.failure = bad_output(
            self._engine,
            f"a tool call was required, but none came{cut}",
            hint="use a stronger model, or raise max_tokens",
            partial="".join(self._text),
        )
