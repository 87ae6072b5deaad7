"""Tool calls by constrained output, for servers that cannot force a call or have no tool template.

The reply is constrained to `{"name": …, "arguments": {…}}` by a JSON schema, the tools are described
in the prompt, and `LiftedCall` turns the constrained text into a tool call, streaming its arguments
as they come.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from enginekit.engine import Engine
from enginekit.engines._decoder import arguments_problem, tool_call_id
from enginekit.engines._wrap import Inner, Wrapper
from enginekit.errors import BadOutput
from enginekit.types import Chunk, End, Message, Tool, ToolCall, ToolCallDelta

LIFTED: Final = "the tool call was lifted from schema-constrained text"


# ---------------------------------------------------------------------------------- the request


def call_schema(tools: Sequence[Tool], *, answer: bool = False) -> dict[str, Any]:
    """A schema that a call of one of `tools`, or with `answer` a plain answer, satisfies.

    Definitions inside a tool's parameters move to the root, renamed, because `#/$defs/…` would
    point into nothing otherwise.
    """
    definitions: dict[str, Any] = {}
    forms = [_call_form(tool, definitions) for tool in tools]
    if answer:
        forms.append(_object({"answer": {"type": "string"}}))
    schema: dict[str, Any] = forms[0] if len(forms) == 1 else {"anyOf": forms}
    return {**schema, "$defs": definitions} if definitions else schema


def call_text(tools: Sequence[Tool], *, answer: bool = False) -> str:
    """What the system message says about the tools and the form of the reply."""
    lines = [
        json.dumps(
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
            ensure_ascii=False,
        )
        for tool in tools
    ]
    shape = '{"name": <name of the function>, "arguments": <object with its arguments>}'
    ask = (
        f"To call a function, reply with {shape}. To answer without one, reply with "
        '{"answer": <your answer>}. Reply with that one JSON object and nothing else.'
        if answer
        else f"Call one function now: reply with one JSON object {shape} and nothing else."
    )
    return "You have these functions, as JSON schemas:\n" + "\n".join(lines) + "\n" + ask


def as_text(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A history of tool calls as plain turns, for a template that knows no tools."""
    out: list[Message] = []
    for message in messages:
        if message.role == "tool":
            name = message.tool_name or "the function"
            failed = "Error from" if message.tool_error else "Result of"
            out.append(Message(role="user", content=f"{failed} {name}: {message.text}"))
        elif message.tool_calls:
            calls = "\n".join(
                f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments or "{}"}}}'
                for call in message.tool_calls
            )
            text = f"{message.text}\n{calls}" if message.text else calls
            out.append(Message(role="assistant", content=text, reasoning=message.reasoning))
        else:
            out.append(message)
    return tuple(out)


def _call_form(tool: Tool, definitions: dict[str, Any]) -> dict[str, Any]:
    parameters = dict(tool.parameters)
    prefix = f"{tool.name}."
    for keyword in ("$defs", "definitions"):
        for name, inner in dict(parameters.pop(keyword, {})).items():
            definitions[prefix + name] = _moved(inner, prefix)
    arguments = _moved(parameters, prefix)
    arguments.setdefault("type", "object")
    return _object({"name": {"const": tool.name}, "arguments": arguments})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _moved(schema: Any, prefix: str) -> Any:
    """The schema with its references pointing at the definitions' new places."""
    if isinstance(schema, Mapping):
        moved = {key: _moved(value, prefix) for key, value in schema.items()}
        reference = moved.get("$ref")
        if isinstance(reference, str):
            for root in ("#/$defs/", "#/definitions/"):
                if reference.startswith(root):
                    moved["$ref"] = f"#/$defs/{prefix}{reference.removeprefix(root)}"
        return moved
    if isinstance(schema, list | tuple):
        return [_moved(item, prefix) for item in schema]
    return schema


# ---------------------------------------------------------------------------------- the reply

_CALL_HEAD: Final = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)'
)
_ANSWER_HEAD: Final = re.compile(r'\s*\{\s*"answer"\s*:\s*(?=")')


class LiftedCall(Wrapper):
    """Constrained text of choice 0 becomes one tool call (or, where allowed, a plain answer).

    Args:
        engine: named by the errors.
        names: the tools there are.
        turn: how many messages the request had, for the call's id.
        answer: whether a plain answer is allowed.
        hint: what helps when the reply has no call.

    Sets `failure` to BadOutput when the reply has no call although one was required, among them
    `{}` and output that the token limit cut before the name was whole.
    """

    def __init__(
        self,
        inner: Inner,
        engine: Engine,
        names: Collection[str],
        *,
        turn: int = 0,
        answer: bool = False,
        hint: str = "use a stronger model or a simpler tool",
    ) -> None:
        super().__init__(inner)
        self._engine = engine
        self._hint = hint
        self._names = names
        self._turn = turn
        self._answer = answer
        self._all: list[str] = []
        self._held = ""
        self._mode = "head"
        self._name = ""
        self._arguments: list[str] = []
        self._value = JsonCut()

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Sequence[Chunk]) -> None:
        if chunk.index or not chunk.text:
            out.append(chunk)
            return
        self._all.append(chunk.text)
        self._held += chunk.text
        text = ""
        calls: tuple[ToolCallDelta, ...] = ()
        if self._mode == "head":
            calls = self._head()
        if self._mode == "call":
            calls = self._more(calls)
        elif self._mode == "answer":
            text, self._held = self._value.string(self._held)
            if self._value.closed:
                self._mode = "tail"
        if text or calls or chunk.reasoning or chunk.logprobs:
            out.append(Chunk(text, chunk.reasoning, calls, chunk.logprobs))

    def _head(self) -> tuple[ToolCallDelta, ...]:
        if self._answer and (match := _ANSWER_HEAD.match(self._held)):
            self._held = self._held[match.end() :]
            self._mode = "answer"
        elif match := _CALL_HEAD.match(self._held):
            name = json.loads(match[1])
            if name not in self._names:
                return ()
            self._held = self._held[match.end() :]
            self._name = name
            self._mode = "call"
            return (ToolCallDelta(0, tool_call_id(self._turn, 0, name), name, ""),)
        return ()

    def _more(self, first: tuple[ToolCallDelta, ...]) -> tuple[ToolCallDelta, ...]:
        size = self._value.object(self._held)
        piece, self._held = self._held[:size], self._held[size:]
        self._arguments.append(piece)
        if self._value.closed:
            self._mode = "tail"
        if first:
            first[0].arguments = piece
            return first
        return (ToolCallDelta(0, None, None, piece),) if piece else ()

    def _end(self, chunk: Chunk, end: End, out: list[Chunk]) -> None:
        if self._mode == "head" and not self._whole(out):
            self._bad(end)
            return
        if self._mode == "answer" or (self._mode == "tail" and not self._name):
            end.repairs = (*end.repairs, "the answer was taken out of schema-constrained JSON")
        if self._name:
            arguments = "".join(self._arguments)
            problem = arguments_problem(arguments)
            if not self._value.closed and end.finish_reason == "length":
                problem = "the reply was cut by the token limit inside this call"
            call = ToolCall(
                id=tool_call_id(self._turn, 0, self._name),
                name=self._name,
                arguments=arguments,
                problem=problem,
            )
            end.tool_calls = (call,)
            if problem is None:
                end.finish_reason = "tool_calls"
            end.repairs = (*end.repairs, LIFTED)
        super()._end(chunk, end, out)

    def _whole(self, out: list[Chunk]) -> bool:
        """A reply whose keys came in another order is read at the end, in one piece."""
        try:
            value = json.loads("".join(self._all))
        except ValueError:
            return False
        if not isinstance(value, dict):
            return False
        if self._answer and isinstance(value.get("answer"), str):
            out.append(Chunk(value["answer"]))
            self._mode = "tail"
            return True
        arguments = value.get("arguments")
        if value.get("name") not in self._names or not isinstance(arguments, dict):
            return False
        self._name = value["name"]
        self._arguments = [json.dumps(arguments, ensure_ascii=False)]
        self._value.closed = True
        made = tool_call_id(self._turn, 0, self._name)
        out.append(Chunk(tool_calls=(ToolCallDelta(0, made, self._name, self._arguments[0]),)))
        return True

    def _bad(self, end: End) -> None:
        text = "".join(self._all)
        cut = end.finish_reason == "length"
        why = (
            "the token limit cut it before the call's name was whole"
            if cut
            else "it is not a call of one of the tools given"
        )
        self.failure = BadOutput(
            f"{self._engine.name} at {self._engine.target.base_url}: a tool call was required, "
            f"but {why}: {text[:200]!r}",
            hint="raise max_tokens" if cut else self._hint,
            engine=self._engine.name,
            url=self._engine.target.base_url,
            partial=text,
        )


class LiftedAnswer(LiftedCall):
    """One of several texts, taken out of the JSON object that the schema made of it."""

    def _bad(self, end: End) -> None:
        text = "".join(self._all)
        self.failure = BadOutput(
            f"{self._engine.name} at {self._engine.target.base_url}: one of the choices was asked "
            f"for, and this came: {text[:200]!r}",
            hint="raise max_tokens" if end.finish_reason == "length" else "use a stronger model",
            engine=self._engine.name,
            url=self._engine.target.base_url,
            partial=text,
        )


class LiftedString(Wrapper):
    """Text of choice 0 that is one JSON string, without its quotes and escapes.

    For servers that know a pattern only as a part of a JSON schema.

    Args:
        engine: named by the error.
        choices: the texts allowed, where they are known.
        hint: what helps when the server did not keep to the form.

    Sets `failure` to BadOutput when the reply is no JSON string, or none of `choices`: a server
    that does not apply the schema answers in prose under HTTP 200.
    """

    def __init__(
        self,
        inner: Inner,
        engine: Engine,
        *,
        choices: Collection[str] = (),
        hint: str = "use a stronger model",
    ) -> None:
        super().__init__(inner)
        self._engine = engine
        self._choices = choices
        self._hint = hint
        self._all: list[str] = []
        self._lifted: list[str] = []
        self._held = ""
        self._value = JsonCut()

    def _chunk(self, chunk: Chunk, out: list[Chunk], rest: Sequence[Chunk]) -> None:
        if chunk.index or not chunk.text:
            out.append(chunk)
            return
        self._all.append(chunk.text)
        text = ""
        if not self._value.closed:
            self._held += chunk.text
            if not self._lifted and self._held.strip() and self._held.lstrip()[0] != '"':
                self._bad()
                return
            text, self._held = self._value.string(self._held)
            self._lifted.append(text)
        if text or chunk.reasoning or chunk.logprobs:
            out.append(Chunk(text, chunk.reasoning, logprobs=chunk.logprobs))

    def _end(self, chunk: Chunk, end: End, out: list[Chunk]) -> None:
        if end.finish_reason == "stop":
            fits = not self._choices or "".join(self._lifted) in self._choices
            if not self._value.closed or not fits:
                self._bad()
                return
        end.repairs = (*end.repairs, "the text was taken out of a JSON string")
        super()._end(chunk, end, out)

    def _bad(self) -> None:
        text = "".join(self._all)
        self.failure = BadOutput(
            f"{self._engine.name} at {self._engine.target.base_url} did not keep to the form that "
            f"was asked for: {text[:200]!r}",
            hint=self._hint,
            engine=self._engine.name,
            url=self._engine.target.base_url,
            partial=text,
        )


class JsonCut:
    """Finds, piece by piece, where one JSON object or string ends."""

    __slots__ = ("_depth", "_escaped", "_inside", "_opened", "closed")

    def __init__(self) -> None:
        self.closed = False
        self._depth = 0
        self._inside = False
        self._escaped = False
        self._opened = False

    def object(self, text: str) -> int:
        """How many characters of `text` belong to the object; sets `closed` at its last brace."""
        for place, character in enumerate(text):
            if self._inside:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._inside = False
            elif character == '"':
                self._inside = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.closed = True
                    return place + 1
        return len(text)

    def string(self, text: str) -> tuple[str, str]:
        """The decoded part of a JSON string that is settled, and what has to wait for more."""
        if not self._opened:
            text = text.lstrip()
            if not text:
                return "", ""
            self._opened = True
            text = text[1:]
        place = 0
        while place < len(text):
            character = text[place]
            if character == '"':
                self.closed = True
                break
            if character == "\\":
                size = _escape_size(text, place)
                if size == 0:
                    break
                place += size
            else:
                place += 1
        return json.loads(f'"{text[:place]}"', strict=False), text[place:]


def _escape_size(text: str, place: int) -> int:
    """Length of the escape at `place`, surrogate pairs whole; 0 when more text is needed."""
    if place + 1 >= len(text):
        return 0
    if text[place + 1] != "u":
        return 2
    if place + 6 > len(text):
        return 0
    if text[place + 2 : place + 4].lower() not in ("d8", "d9", "da", "db"):
        return 6
    if not "\\u".startswith(text[place + 6 : place + 8]):
        return 6
    return 12 if place + 12 <= len(text) else 0
