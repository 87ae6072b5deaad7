"""Messages to the OpenAI wire shape, with every engine's peculiarity as data.

`wire_messages` is pure: it returns the list for the body and one sentence for each thing that did
not go out as it came in. What a policy does not allow is refused through `Refusal`, which the
caller turns into `Unsupported` with its own rule id.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from enginekit.engines._decoder import arguments_problem
from enginekit.types import AudioPart, FilePart, ImagePart, Message, Part, TextPart, ToolCall


class Refusal(Exception):
    """A message has something that the policy does not allow."""

    def __init__(self, feature: str, why: str) -> None:
        super().__init__(why)
        self.feature = feature
        self.why = why


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagePolicy:
    """How one engine wants its messages.

    Attributes:
        system: `anywhere`; `first` joins all system messages into one at the start; `user` puts
            their text before the first user message, for a template without a system role.
        developer: `keep` the role, or send it as `system`.
        call_content: what the content of an assistant turn that only calls tools is.
        arguments: tool call arguments in the history as JSON `string` or as `object`.
        reasoning: the wire field that carries an assistant turn's reasoning back, or "" to strip it.
        tool_name: send the tool's name with its result.
        names: send the participant's name.
        images: `any`, `data` (bytes and data: URLs only) or `none`.
        audio: whether audio parts are taken.
    """

    system: Literal["anywhere", "first", "user"] = "anywhere"
    developer: Literal["keep", "system"] = "keep"
    call_content: Literal["empty", "null", "absent"] = "empty"
    arguments: Literal["string", "object"] = "string"
    reasoning: str = ""
    tool_name: bool = True
    names: bool = True
    images: Literal["any", "data", "none"] = "any"
    audio: bool = True


def wire_messages(
    messages: Sequence[Message], policy: MessagePolicy
) -> tuple[list[dict[str, Any]], list[str]]:
    """The messages as the wire wants them, and what was changed on the way.

    Raises Refusal for a part that the policy does not take.
    """
    notes: list[str] = []
    placed = _place_system(messages, policy, notes)
    return [_wire_message(message, policy, notes) for message in placed], list(dict.fromkeys(notes))


def add_instruction(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """The messages with `text` at the end of the leading system message, or as a new one."""
    if messages and messages[0].role in ("system", "developer"):
        first = messages[0]
        joined = f"{first.text}\n\n{text}" if first.text else text
        return (Message(role=first.role, content=joined, name=first.name), *messages[1:])
    return (Message(role="system", content=text), *messages)


def _place_system(
    messages: Sequence[Message], policy: MessagePolicy, notes: list[str]
) -> Sequence[Message]:
    if policy.system == "anywhere":
        return messages
    system = [m for m in messages if m.role in ("system", "developer")]
    rest = [m for m in messages if m.role not in ("system", "developer")]
    if not system:
        return messages
    text = "\n\n".join(m.text for m in system if m.text)
    if policy.system == "user":
        for place, message in enumerate(rest):
            if message.role == "user":
                rest[place] = _with_text_before(message, text)
                notes.append("the template has no system role: its text leads the first user turn")
                return rest
        return [Message(role="user", content=text), *rest]
    if len(system) > 1 or messages[0] is not system[0]:
        notes.append("system messages were joined into one at the start")
        return [Message(role="system", content=text), *rest]
    return messages


def _with_text_before(message: Message, text: str) -> Message:
    content: str | tuple[Part, ...]
    if isinstance(message.content, str):
        content = f"{text}\n\n{message.content}"
    else:
        content = (TextPart(text=f"{text}\n\n"), *message.content)
    return Message(role=message.role, content=content, name=message.name)


def _wire_message(message: Message, policy: MessagePolicy, notes: list[str]) -> dict[str, Any]:
    role: str = message.role
    if role == "developer" and policy.developer == "system":
        role = "system"
        notes.append("role developer was sent as system")
    wire: dict[str, Any] = {"role": role, "content": _content(message, policy)}
    if message.role == "tool":
        _tool_result(wire, message, policy, notes)
    elif message.name is not None:
        if policy.names:
            wire["name"] = message.name
        else:
            notes.append("participants' names were left out: the engine has no field for them")
    if message.tool_calls:
        wire["tool_calls"] = [_wire_call(call, policy, notes) for call in message.tool_calls]
        if not wire["content"]:
            if policy.call_content == "absent":
                del wire["content"]
            else:
                wire["content"] = None if policy.call_content == "null" else ""
    if message.reasoning is not None:
        if policy.reasoning:
            wire[policy.reasoning] = message.reasoning
        else:
            notes.append("reasoning of earlier turns was left out: the engine takes none back")
    return wire


def _tool_result(
    wire: dict[str, Any], message: Message, policy: MessagePolicy, notes: list[str]
) -> None:
    wire["tool_call_id"] = message.tool_call_id or ""
    if policy.tool_name and message.tool_name:
        wire["name"] = message.tool_name
    if message.tool_error and isinstance(wire["content"], str):
        if not wire["content"].lower().startswith("error"):
            wire["content"] = f"Error: {wire['content']}"
        notes.append("a failed tool result is marked by its text: the wire has no field for it")


def _wire_call(call: ToolCall, policy: MessagePolicy, notes: list[str]) -> dict[str, Any]:
    text = call.arguments if call.arguments.strip() else "{}"
    if arguments_problem(text) is not None:
        # Servers parse these when they render the template, and fail the whole request.
        notes.append("a broken tool call of an earlier turn was wrapped so that its JSON is valid")
        text = json.dumps({"invalid_arguments": call.arguments}, ensure_ascii=False)
    arguments: Any = text if policy.arguments == "string" else json.loads(text)
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _content(message: Message, policy: MessagePolicy) -> str | list[dict[str, Any]]:
    if isinstance(message.content, str):
        return message.content
    if all(isinstance(part, TextPart) for part in message.content):
        # Several engines' templates take a plain string only, or join parts without a separator.
        return message.text
    return [_wire_part(part, policy) for part in message.content]


def _wire_part(part: Part, policy: MessagePolicy) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, ImagePart):
        image: dict[str, Any] = {"url": _image_url(part, policy)}
        if part.detail is not None:
            image["detail"] = part.detail
        return {"type": "image_url", "image_url": image}
    if isinstance(part, AudioPart):
        if not policy.audio:
            raise Refusal("audio", "the model it serves does not take audio")
        if part.data is None:
            raise Refusal("audio", "audio is taken as bytes only, not by URL")
        encoded = base64.b64encode(part.data).decode("ascii")
        return {"type": "input_audio", "input_audio": {"data": encoded, "format": part.format}}
    if isinstance(part, FilePart):
        raise Refusal("files", f"it reads no documents ({part.mime_type}); extract the text first")
    raise Refusal("messages", f"a part of type {type(part).__name__} is unknown")


def _image_url(part: ImagePart, policy: MessagePolicy) -> str:
    if policy.images == "none":
        raise Refusal("images", "the model it serves does not take images")
    if part.data is not None:
        encoded = base64.b64encode(part.data).decode("ascii")
        return f"data:{part.mime_type};base64,{encoded}"
    if part.url is None:
        raise Refusal("images", "an image part has neither bytes nor a URL")
    if policy.images == "data" and not part.url.startswith("data:"):
        raise Refusal("image_urls", "it takes images as bytes only, not by URL")
    return part.url
