"""Read MLC's replies: the OpenAI dialect, with tool calls as Python text and silent overflows."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from enginekit.engine import Engine
from enginekit.engines._decoder import tool_call_id
from enginekit.engines._openai_decode import OpenAIDecoder, OpenAIWholeDecoder
from enginekit.engines._wrap import Inner, Wrapper
from enginekit.errors import BadOutput, ContextOverflow
from enginekit.types import Chunk, End, ToolCall, ToolCallDelta

INVALID = "Got an invalid function call output from model"
PROSE = (
    "the server calls every answer that is no tool call an error: whether the token limit cut it is "
    "told from the token counts"
)


class _Full(OpenAIDecoder):
    """A prompt that fills the window to the last token is answered with nothing, under 200."""

    def _complete(self, out: list[Chunk], *, lost: bool = False) -> None:
        made = self._usage.completion_tokens if self._usage is not None else 0
        if self._finished.get(0) == "length" and not made and not any(self._texts):
            self.failure = ContextOverflow(
                f"{self._engine.name} at {self._engine.target.base_url} answered nothing, with "
                "finish reason length: the prompt fills the context window exactly",
                hint="shorten the conversation",
                engine=self._engine.name,
                url=self._engine.target.base_url,
                status=200,
                limit=self._engine.facts.context_window if self._engine.facts else None,
                requested=None,
            )
            return
        super()._complete(out, lost=lost)


class MLCDecoder(_Full):
    """Streams."""


class MLCWholeDecoder(_Full, OpenAIWholeDecoder):
    """Plain replies: with tools, prose and cut answers have the finish reason `error`."""

    def _breaks_off(self, raw: str) -> bool:
        return raw != "error" and super()._breaks_off(raw)

    def _complete(self, out: list[Chunk], *, lost: bool = False) -> None:
        if self._finished.get(0) == "error" and "".join(self._texts) == INVALID:
            self.failure = invalid(self._engine, INVALID)
            return
        super()._complete(out, lost=lost)


def invalid(engine: Engine, text: str) -> BadOutput:
    """The model wrote something that is no call."""
    return BadOutput(
        f"{engine.name} at {engine.target.base_url}: what the model wrote is no tool call: "
        f"{text[:200]!r}",
        hint="use a stronger model, or leave the option native_tools off",
        engine=engine.name,
        url=engine.target.base_url,
        partial=text,
    )


class PythonCalls(Wrapper):
    """The streamed text of choice 0 becomes tool calls, if that is what it is.

    The server parses calls only for plain replies, and drops their positional arguments; so replies
    to native tools are streamed and read here. Text that begins like a call is held back to the end,
    other text is given out as it comes.

    Args:
        limit: `max_tokens`, which tells a cut answer from a whole one: the server's finish reason
            is `tool_calls` in either case.
        window: tokens of prompt and answer together, if known, which does the same: at that many
            the server ends an answer (`request_state.cc`, case 6).
    """

    def __init__(
        self,
        inner: Inner,
        engine: Engine,
        tools: Sequence[str],
        *,
        turn: int,
        limit: int | None,
        window: int | None = None,
    ) -> None:
        super().__init__(inner)
        self._engine = engine
        self._names = tuple(tools)
        self._turn = turn
        self._limit = limit
        self._window = window
        self._held = ""
        self._prose = False

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Sequence[Chunk]) -> None:
        if chunk.index or not chunk.text or self._prose:
            out.append(chunk)
            return
        self._held += chunk.text
        self._prose = not self._may_be_call()
        text = self._held if self._prose else ""
        if text or chunk.reasoning or chunk.logprobs:
            out.append(Chunk(text, chunk.reasoning, logprobs=chunk.logprobs))

    def _may_be_call(self) -> bool:
        """Whether the text so far is the beginning of a call of one of the tools, or of a list."""
        start = self._held.lstrip()
        if start.startswith("["):
            return start[1:].lstrip()[:1] in ("", '"', "'")
        heads = (f"{name}(" for name in self._names)
        return any(start.startswith(head) or head.startswith(start) for head in heads)

    def _flush(self, out: list[Chunk]) -> None:
        if self._inner.failure is not None and self._held and not self._prose:
            out.append(Chunk(self._held))

    def _end(self, chunk: Chunk, end: End, out: list[Chunk]) -> None:
        text = "" if self._prose else self._held
        cut = self._cut(end)
        calls = parse_calls(text)
        if calls is None or any(name not in self._names for name, _, _ in calls):
            if text:
                out.append(Chunk(text))
            end.finish_reason = "length" if cut else "stop"
            end.repairs = (*end.repairs, PROSE)
        else:
            end.tool_calls = tuple(
                ToolCall(
                    id=tool_call_id(self._turn, place, name),
                    name=name,
                    arguments=arguments,
                    problem=problem,
                )
                for place, (name, arguments, problem) in enumerate(calls)
            )
            deltas = tuple(
                ToolCallDelta(place, call.id, call.name, call.arguments)
                for place, call in enumerate(end.tool_calls)
            )
            out.append(Chunk(tool_calls=deltas))
            end.finish_reason = "tool_calls"
            end.repairs = (*end.repairs, "the tool calls were read from Python text")
        super()._end(chunk, end, out)

    def _cut(self, end: End) -> bool:
        if end.usage is None:
            return False
        made, total = end.usage.completion_tokens, end.usage.total_tokens
        limited = self._limit is not None and made >= self._limit
        return limited or (self._window is not None and total >= self._window)


def parse_calls(text: str) -> list[tuple[str, str, str | None]] | None:
    """Calls in `f(a=1)` or `["f(a=1)", "g()"]`: name, JSON arguments, problem. None for prose.

    The list is JSON or Python, as the server reads it with `ast.literal_eval`
    (`convert_function_str_to_json` in python/mlc_llm/serve/engine_base.py). Nothing is evaluated:
    arguments are literals or they are a problem.
    """
    text = text.strip()
    sources: Any = [text]
    if text.startswith("["):
        sources = _list(text)
        if not isinstance(sources, list):
            return None
    calls = []
    for source in sources:
        call = _call(source) if isinstance(source, str) else None
        if call is None:
            return None
        calls.append(call)
    return calls or None


def _list(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _call(source: str) -> tuple[str, str, str | None] | None:
    try:
        tree = ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        return None
    arguments: dict[str, Any] = {}
    problem = "positional arguments have no names" if tree.args else None
    for keyword in tree.keywords:
        if keyword.arg is None:
            problem = "arguments are not literals"
            continue
        try:
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, RecursionError, MemoryError):
            problem = f"the argument {keyword.arg!r} is not a literal"
    try:
        written = json.dumps(arguments, ensure_ascii=False)
    except (TypeError, ValueError):
        written, problem = "{}", "the arguments are no JSON"
    return tree.func.id, written, problem


class ObjectOnly(Wrapper):
    """JSON mode gives any JSON value; what was asked for is an object."""

    def __init__(self, inner: Inner, engine: Engine) -> None:
        super().__init__(inner)
        self._engine = engine
        self._text: list[str] = []

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Sequence[Chunk]) -> None:
        if not chunk.index:
            self._text.append(chunk.text)
        out.append(chunk)

    def _end(self, chunk: Chunk, end: End, out: list[Chunk]) -> None:
        text = "".join(self._text)
        if end.finish_reason == "stop" and not _is_object(text):
            self.failure = BadOutput(
                f"{self._engine.name} at {self._engine.target.base_url}: a JSON object was asked "
                f"for, and this came: {text[:200]!r}",
                hint="give a schema",
                engine=self._engine.name,
                url=self._engine.target.base_url,
                partial=text,
            )
            return
        super()._end(chunk, end, out)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), Mapping)
    except ValueError:
        return False
