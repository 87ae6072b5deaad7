"""Messages, tools and schemas as Ollama's chat route wants them.

Content is a string, and images are base64 in a list of their own beside it; a tool result carries
the tool's name; arguments of earlier calls are objects. A string there is a 400.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from enginekit.engines._messages import MessagePolicy, Refusal, wire_messages
from enginekit.types import Message, Tool

POLICY: Final = MessagePolicy(
    developer="system",
    arguments="object",
    reasoning="thinking",
    names=False,
    images="data",
)

_FIRST_IMAGE: Final = "images go out beside the text of their message, before it"


def ollama_messages(
    messages: Sequence[Message], policy: MessagePolicy = POLICY
) -> tuple[list[dict[str, Any]], list[str]]:
    """The messages for the body, and a sentence for each thing that changed on the way.

    Raises Refusal for what cannot go out: an image by URL, a document.
    """
    named, notes = _with_tool_names(messages)
    wire, changed = wire_messages(named, policy)
    notes += changed
    for message in wire:
        if message["role"] == "tool":
            if name := message.pop("name", None):
                message["tool_name"] = name
            if not message["tool_call_id"]:
                del message["tool_call_id"]
        for call in message.get("tool_calls") or ():
            del call["type"]
        if isinstance(message.get("content"), list):
            _split(message, notes)
    return wire, list(dict.fromkeys(notes))


def _with_tool_names(messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """Tool results know the id of their call; Ollama's templates want the tool's name."""
    names: dict[str, str] = {}
    out: list[Message] = []
    notes: list[str] = []
    for message in messages:
        names.update((call.id, call.name) for call in message.tool_calls)
        name = names.get(message.tool_call_id or "")
        if message.role == "tool" and message.tool_name is None and name is not None:
            message = replace(message, tool_name=name)
            notes.append("a tool result was given the name of the tool it answers for")
        out.append(message)
    return out, notes


def _split(message: dict[str, Any], notes: list[str]) -> None:
    """Parts to a string and a list of base64."""
    texts: list[str] = []
    media: list[str] = []
    for part in message["content"]:
        if part["type"] == "text":
            texts.append(part["text"])
            continue
        if texts:
            notes.append(_FIRST_IMAGE)
        if part["type"] == "input_audio":
            media.append(part["input_audio"]["data"])
            continue
        image = part["image_url"]
        if "detail" in image:
            notes.append("the detail of an image was left out: Ollama has no field for it")
        media.append(_payload(image["url"]))
    message["content"] = "".join(texts)
    message["images"] = media


def _payload(url: str) -> str:
    """The base64 inside a data: URL; a prefix would be a 400."""
    head, comma, data = url.partition(",")
    if not comma:
        raise Refusal("images", "a data: URL without a comma holds no image")
    if head.endswith(";base64"):
        return data
    return base64.b64encode(unquote_to_bytes(data)).decode("ascii")


# ---------------------------------------------------------------------------------- tools

_SHOWN: Final = frozenset({"type", "items", "description", "enum", "properties", "required"})
"""Keywords of a tool's parameters that reach the model (besides `anyOf` and definitions)."""

_DEPTH: Final = 12


def ollama_tool(tool: Tool, notes: list[str]) -> dict[str, Any]:
    """A tool for the body. References are written out, because the server drops them.

    Adds a sentence to `notes` for keywords that the server leaves out of the prompt.
    """
    definitions = {**tool.parameters.get("definitions", {}), **tool.parameters.get("$defs", {})}
    body = {k: v for k, v in tool.parameters.items() if k not in ("$defs", "definitions")}
    lost: set[str] = set()
    parameters = _written_out(body, definitions, lost, 0)
    parameters.setdefault("type", "object")
    parameters.setdefault("properties", {})
    if lost:
        notes.append(
            f"of the parameters of {tool.name!r} the server does not show the model: "
            + ", ".join(sorted(lost))
        )
    if tool.strict is not None:
        notes.append("strict was left out: Ollama does not enforce the parameters of a tool")
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": parameters,
        },
    }


def _written_out(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], lost: set[str], depth: int
) -> dict[str, Any]:
    reference = schema.get("$ref")
    if isinstance(reference, str):
        name = reference.rpartition("/")[2]
        if name in definitions and depth < _DEPTH:
            rest = {k: v for k, v in schema.items() if k != "$ref"}
            return _written_out({**definitions[name], **rest}, definitions, lost, depth + 1)
    out: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword == "properties" and isinstance(value, Mapping):
            out[keyword] = {
                name: _inner(inner, definitions, lost, depth) for name, inner in value.items()
            }
        elif keyword in ("items", "anyOf"):
            out[keyword] = (
                [_inner(inner, definitions, lost, depth) for inner in value]
                if isinstance(value, list | tuple)
                else _inner(value, definitions, lost, depth)
            )
        else:
            if keyword not in _SHOWN and keyword != "title":
                lost.add(keyword)
            out[keyword] = value
    return out


def _inner(schema: Any, definitions: Mapping[str, Any], lost: set[str], depth: int) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    return _written_out(schema, definitions, lost, depth + 1)
