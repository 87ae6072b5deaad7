"""The tool-calling half of the LLM: preparing a call, and reading the calls in an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, ToolCallBlock
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from pydantic_core import from_json

from enginekit.llama_index._errors import BadReply
from enginekit.llama_index._replies import INVALID
from enginekit.llama_index._tools import openai_tool

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool


class ToolCalling(FunctionCallingLLM):
    """Native tool calling; engines without it have it emulated by a schema."""

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Keywords of the chat call; `tool_choice` may also be given, and wins."""
        messages = list(chat_history or ())
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        if user_msg is not None:
            messages.append(user_msg)
        choice = kwargs.pop("tool_choice", None)
        made: dict[str, Any] = {"messages": messages, **kwargs}
        specs = [openai_tool(tool) for tool in tools]
        if specs:
            made["tools"] = specs
            made["parallel_tool_calls"] = allow_parallel_tool_calls
            if choice is None and tool_required:
                choice = "required"
            if choice is not None:
                made["tool_choice"] = choice
        return made

    def _validate_chat_with_tools_response(
        self,
        response: ChatResponse,
        tools: Sequence[BaseTool],
        allow_parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> ChatResponse:
        """At most one call where no more were allowed; the rest are counted, not hidden."""
        calls = [b for b in response.message.blocks if isinstance(b, ToolCallBlock)]
        if allow_parallel_tool_calls or len(calls) < 2:
            return response
        dropped = {id(block) for block in calls[1:]}
        message = response.message
        extra = dict(message.additional_kwargs)
        extra["tool_calls"] = extra.get("tool_calls", [])[:1]
        blocks = [block for block in message.blocks if id(block) not in dropped]
        return response.model_copy(
            update={
                "message": message.model_copy(
                    update={"blocks": blocks, "additional_kwargs": extra}
                ),
                "additional_kwargs": {
                    **response.additional_kwargs,
                    "dropped_tool_calls": len(dropped),
                },
            }
        )

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls in a response.

        In a response that is still being streamed: as far as their arguments can be read. In a whole
        one broken arguments raise `BadReply`, which is also a ValueError; they never become `{}`.
        """
        whole = response.raw is not None or response.delta is None
        problems = response.additional_kwargs.get(INVALID) or {}
        found: list[ToolSelection] = []
        for number, block in enumerate(response.message.blocks):
            if not isinstance(block, ToolCallBlock):
                continue
            arguments = arguments_of(block, problems)
            if isinstance(arguments, str):
                partial = None if whole else partial_arguments(str(block.tool_kwargs))
                if partial is None:
                    if not whole:
                        continue
                    raise BadReply(
                        f"the model called {block.tool_name!r} but {arguments}",
                        hint="raise max_tokens" if "token limit" in arguments else None,
                        partial=str(block.tool_kwargs),
                    )
                arguments = partial
            found.append(
                ToolSelection(
                    tool_id=block.tool_call_id or f"call_{number}",
                    tool_name=block.tool_name,
                    tool_kwargs=arguments,
                )
            )
        if not found and error_on_no_tool_call:
            raise BadReply(
                "expected at least one tool call, but the model made none",
                hint="tool_required=True forces one",
                partial=response.message.content or "",
            )
        return found


def arguments_of(block: ToolCallBlock, problems: Mapping[str, str]) -> dict[str, Any] | str:
    """A call's arguments, or one sentence of why they cannot be used."""
    known = problems.get(block.tool_call_id or "")
    if known:
        return known
    if not isinstance(block.tool_kwargs, str):
        return block.tool_kwargs
    if not block.tool_kwargs.strip():
        return {}
    try:
        value = json.loads(block.tool_kwargs)
    except ValueError as error:
        return f"arguments are not valid JSON: {error}"
    if not isinstance(value, dict):
        return f"arguments are JSON {type(value).__name__}, not an object"
    return value


def partial_arguments(text: str) -> dict[str, Any] | None:
    """What can be read of arguments that are still being written; None when nothing can."""
    try:
        value = from_json(text, allow_partial="trailing-strings") if text.strip() else {}
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
