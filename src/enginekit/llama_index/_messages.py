"""LlamaIndex chat messages to ours. The caller's messages are never changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole, ThinkingBlock, ToolCallBlock

from enginekit.errors import Unsupported
from enginekit.llama_index._content import to_content
from enginekit.types import Message, Role, ToolCall

_ROLES: Mapping[MessageRole, Role] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "developer",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


def to_messages(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Our messages for LlamaIndex's.

    A tool result keeps its `tool_call_id`; one without belongs to the first call that has no result
    yet. Raises Unsupported for a content block that no engine could be given.
    """
    out: list[Message] = []
    for message in messages:
        role = _ROLES[message.role]
        if role == "assistant":
            out.append(_assistant(message, out))
        elif role == "tool":
            out.append(_tool(message, out))
        else:
            out.append(
                Message(
                    role=role, content=to_content(message.blocks, role), name=_name(message, role)
                )
            )
    return tuple(out)


def _name(message: ChatMessage, role: Role) -> str | None:
    name = message.additional_kwargs.get("name")
    return name if isinstance(name, str) and role != "tool" else None


def _assistant(message: ChatMessage, earlier: Sequence[Message]) -> Message:
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    rest: list[Any] = []
    start = sum(len(one.tool_calls) for one in earlier)
    for block in message.blocks:
        if isinstance(block, ThinkingBlock):
            thoughts.append(block.content or "")
        elif isinstance(block, ToolCallBlock):
            number = start + len(calls)
            calls.append(
                _call(block.tool_call_id, block.tool_name, block.tool_kwargs, f"call_{number}")
            )
        else:
            rest.append(block)
    if not calls:
        # Other integrations keep the calls in OpenAI's spelling, as dicts or as the SDK's objects.
        for number, call in enumerate(message.additional_kwargs.get("tool_calls") or (), start):
            calls.append(_openai_call(call, f"call_{number}"))
    return Message(
        role="assistant",
        content=to_content(rest, "assistant"),
        tool_calls=tuple(calls),
        reasoning="".join(thoughts) or None,
        name=_name(message, "assistant"),
    )


def _call(
    call_id: str | None, name: str, arguments: Mapping[str, Any] | str, otherwise: str
) -> ToolCall:
    if not isinstance(arguments, str):
        text = json.dumps(arguments, ensure_ascii=False)
        return ToolCall(id=call_id or otherwise, name=name, arguments=text)
    try:
        whole = isinstance(json.loads(arguments or "{}"), dict)
    except ValueError:
        whole = False
    return ToolCall(
        id=call_id or otherwise,
        name=name,
        arguments=arguments,
        problem=None if whole else "arguments are not a JSON object",
    )


def _openai_call(call: Any, otherwise: str) -> ToolCall:
    def read(value: Any, key: str) -> Any:
        return value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)

    function = read(call, "function")
    if function is None:
        raise Unsupported(
            f"a tool call in additional_kwargs is not understood: {call!r}",
            hint="put calls into the message's blocks: ToolCallBlock(tool_name=…, tool_kwargs=…)",
            feature="messages",
            rule="llama_index.tool_calls",
        )
    return _call(
        read(call, "id"), str(read(function, "name")), read(function, "arguments") or "", otherwise
    )


def _tool(message: ChatMessage, earlier: Sequence[Message]) -> Message:
    extra = message.additional_kwargs
    name = extra.get("name") or extra.get("tool_name")
    call = _answered(extra.get("tool_call_id"), name, earlier)
    return Message(
        role="tool",
        content=to_content(message.blocks, "tool"),
        tool_call_id=extra.get("tool_call_id") or (call.id if call else None),
        tool_name=name or (call.name if call else None),
    )


def _answered(call_id: str | None, name: str | None, earlier: Sequence[Message]) -> ToolCall | None:
    """The call that a result answers: by its id, else the first of that name without a result."""
    done = {message.tool_call_id for message in earlier}
    for message in reversed(earlier):
        for call in message.tool_calls:
            if call_id is not None:
                if call.id == call_id:
                    return call
            elif call.id not in done and name in (None, call.name):
                return call
    return None
