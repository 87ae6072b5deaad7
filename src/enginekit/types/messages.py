"""Messages, their parts, tools and constraints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

JsonSchema: TypeAlias = Mapping[str, Any]
"""A JSON schema as a plain mapping."""

Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """A piece of text inside a message of several parts."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """An image, by exactly one of `data` (the raw bytes) or `url` (http, https or data:)."""

    data: bytes | None = None
    url: str | None = None
    mime_type: str = "image/png"
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioPart:
    """Audio, by exactly one of `data` (the raw bytes) or `url`; `format` is e.g. `"wav"`."""

    data: bytes | None = None
    url: str | None = None
    format: str = "wav"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePart:
    """A document (PDF and so on) by its raw bytes; no engine here reads one natively today."""

    data: bytes
    mime_type: str
    name: str | None = None


Part: TypeAlias = TextPart | ImagePart | AudioPart | FilePart


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A whole tool call.

    `arguments` is the JSON text as the model wrote it, never repaired. `problem` is None when it is
    a JSON object, else one sentence of why it is not.
    """

    id: str
    name: str
    arguments: str
    problem: str | None = None

    def parsed(self) -> dict[str, Any]:
        """The arguments as a dict. Raises ValueError when they are not a JSON object."""
        value = json.loads(self.arguments) if self.arguments.strip() else {}
        if not isinstance(value, dict):
            raise ValueError(f"arguments of tool call {self.name!r} are not a JSON object")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Attributes:
        content: text, or parts in order.
        tool_calls: what the assistant asked for in this turn (role `assistant`).
        tool_call_id: which call this answers (role `tool`).
        tool_name: the name of the tool that was called (role `tool`); some engines need it.
        tool_error: the tool failed; no engine has a field for it, the text carries it.
        reasoning: the thinking that preceded `content` (role `assistant`).
        name: the participant's name.
    """

    role: Role
    content: str | tuple[Part, ...] = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    tool_name: str | None = None
    tool_error: bool = False
    reasoning: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """All text of the message, parts joined without a separator."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function the model may call. `parameters` is a JSON schema of type object."""

    name: str
    description: str = ""
    parameters: JsonSchema = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """Whether and which tool must be called; `name` only with mode `"named"`."""

    mode: Literal["auto", "none", "required", "named"]
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What the text of the reply must match.

    Attributes:
        kind: `json` (any JSON object), `json_schema`, `regex`, `choice` or `grammar` (GBNF).
        value: the schema (mapping), pattern (str), alternatives (tuple of str) or grammar (str);
            None for `json`.
        name: a name for the schema, where a wire format wants one.
        strict: the caller's wish for strict schema adherence, where a wire format has it.
        shown: tell the model the schema in the prompt as well. Engines enforce it on the output and
            do not show it, so without this a model must guess what the keys mean.
    """

    kind: Literal["json", "json_schema", "regex", "choice", "grammar"]
    value: Any = None
    name: str = "answer"
    strict: bool | None = None
    shown: bool = False
