"""LangChain messages to ours. Pure; the caller's messages are never changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, ToolMessage

from enginekit.errors import Unsupported
from enginekit.langchain._content import CALL_BLOCKS, REASONING_BLOCKS, part_of, reasoning_of
from enginekit.types import Message, Part, Role, TextPart, ToolCall

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "tool": "tool",
}


def to_messages(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """Our messages for LangChain's.

    Raises Unsupported for a role or a content block that no engine could be given.
    """
    out: list[Message] = []
    for message in messages:
        convert = _CONVERTERS.get(message.type)
        if convert is None:
            raise Unsupported(
                f"a message of type {message.type!r} cannot be sent to a model",
                feature="messages",
                rule=f"langchain.message.{message.type}",
            )
        convert(message, out)
    return tuple(out)


# ---------------------------------------------------------------------------------- by type


def _human(message: BaseMessage, out: list[Message]) -> None:
    content = message.content
    if isinstance(content, str):
        out.append(Message(role="user", content=content, name=message.name))
        return
    _turn_with_results("user", content, message.name, out)


def _system(message: BaseMessage, out: list[Message]) -> None:
    developer = message.additional_kwargs.get("__openai_role__") == "developer"
    role: Role = "developer" if developer else "system"
    out.append(Message(role=role, content=_content(message.content, role), name=message.name))


def _chat(message: BaseMessage, out: list[Message]) -> None:
    if not isinstance(message, ChatMessage):
        raise TypeError(f"a message of type chat is a {type(message).__name__}")
    role = _ROLES.get(message.role)
    if role is None:
        raise Unsupported(
            f"role {message.role!r} is not one that engines know",
            hint="use one of system, developer, user, assistant, tool",
            feature="messages",
            rule="langchain.role",
        )
    out.append(Message(role=role, content=_content(message.content, role), name=message.name))


def _ai(message: BaseMessage, out: list[Message]) -> None:
    if not isinstance(message, AIMessage):
        raise TypeError(f"a message of type ai is a {type(message).__name__}")
    calls = _calls(message)
    reasoning = message.additional_kwargs.get("reasoning_content")
    content: str | tuple[Part, ...]
    if isinstance(message.content, str):
        content = message.content
    else:
        known = {call.id for call in calls}
        thoughts: list[str] = []
        rest: list[str | Mapping[str, Any]] = []
        for block in message.content:
            kind = None if isinstance(block, str) else block.get("type")
            if kind in REASONING_BLOCKS and not isinstance(block, str):
                thoughts.append(reasoning_of(block))
            elif kind in CALL_BLOCKS and not isinstance(block, str):
                extra = _call_in_content(block, known)
                if extra is not None:
                    calls.append(extra)
            else:
                rest.append(block)
        content = _content(rest, "assistant")
        if reasoning is None and thoughts:
            reasoning = "".join(thoughts)
    out.append(
        Message(
            role="assistant",
            content=content,
            tool_calls=tuple(calls),
            reasoning=reasoning,
            name=message.name,
        )
    )


def _tool(message: BaseMessage, out: list[Message]) -> None:
    if not isinstance(message, ToolMessage):
        raise TypeError(f"a message of type tool is a {type(message).__name__}")
    call_id = message.tool_call_id
    out.append(
        Message(
            role="tool",
            content=_content(message.content, "tool"),
            tool_call_id=call_id,
            tool_name=message.name or _name_of_call(call_id, out),
            tool_error=message.status == "error",
        )
    )


def _function(message: BaseMessage, out: list[Message]) -> None:
    """The ancestor of ToolMessage: it names the function and has no call id."""
    out.append(
        Message(role="tool", content=_content(message.content, "tool"), tool_name=message.name)
    )


_CONVERTERS: Mapping[str, Callable[[BaseMessage, list[Message]], None]] = {
    "human": _human,
    "HumanMessageChunk": _human,
    "ai": _ai,
    "AIMessageChunk": _ai,
    "system": _system,
    "SystemMessageChunk": _system,
    "tool": _tool,
    "ToolMessageChunk": _tool,
    "function": _function,
    "FunctionMessageChunk": _function,
    "chat": _chat,
    "ChatMessageChunk": _chat,
}


# ---------------------------------------------------------------------------------- pieces


def _content(content: Any, role: Role) -> str | tuple[Part, ...]:
    if isinstance(content, str):
        return content
    parts = tuple(part_of(block, role) for block in content)
    if not parts:
        return ""
    if len(parts) == 1 and isinstance(parts[0], TextPart):
        return parts[0].text
    return parts


def _turn_with_results(
    role: Role, content: Sequence[Any], name: str | None, out: list[Message]
) -> None:
    """A user turn whose blocks may hold tool results, as Anthropic writes them."""
    rest: list[Any] = []
    for block in content:
        if isinstance(block, Mapping) and block.get("type") == "tool_result":
            call_id = str(block.get("tool_use_id") or "")
            out.append(
                Message(
                    role="tool",
                    content=_content(block.get("content") or "", "tool"),
                    tool_call_id=call_id,
                    tool_name=_name_of_call(call_id, out),
                    tool_error=bool(block.get("is_error")),
                )
            )
        else:
            rest.append(block)
    if rest or not content:
        out.append(Message(role=role, content=_content(rest, role), name=name))


def _calls(message: AIMessage) -> list[ToolCall]:
    calls = [
        ToolCall(
            id=call["id"] or f"call_{number}",
            name=call["name"],
            arguments=json.dumps(call["args"], ensure_ascii=False),
        )
        for number, call in enumerate(message.tool_calls)
    ]
    calls += [
        ToolCall(
            id=broken["id"] or f"call_{number}",
            name=broken["name"] or "",
            arguments=broken["args"] or "",
            problem=broken["error"] or "arguments are not valid JSON",
        )
        for number, broken in enumerate(message.invalid_tool_calls, len(calls))
    ]
    return calls


def _call_in_content(block: Mapping[str, Any], known: set[str]) -> ToolCall | None:
    """A tool call that stands in the content only; None when `tool_calls` has it as well."""
    call_id = block.get("id")
    if block.get("type") not in ("tool_use", "tool_call") or call_id in known:
        return None
    arguments = block.get("input", block.get("args", {}))
    return ToolCall(
        id=str(call_id or f"call_{len(known)}"),
        name=str(block["name"]),
        arguments=arguments
        if isinstance(arguments, str)
        else json.dumps(arguments, ensure_ascii=False),
    )


def _name_of_call(call_id: str, earlier: Sequence[Message]) -> str | None:
    for message in reversed(earlier):
        for call in message.tool_calls:
            if call.id == call_id:
                return call.name
    return None
