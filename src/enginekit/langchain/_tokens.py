"""Token counts: by the engine's own tokenizer, else an estimate that says it is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from langchain_core.messages import BaseMessage, get_buffer_string
from langchain_core.messages.utils import count_tokens_approximately

from enginekit.errors import EngineError, NoEngine
from enginekit.kit.client import Client
from enginekit.langchain._messages import to_messages
from enginekit.langchain._tools import openai_tool, to_tools
from enginekit.types import ChatRequest

Tokenizer: TypeAlias = Callable[[str], list[int]]

APPROXIMATE = "approximate (4 characters a token)"


class TokenCount(int):
    """A number of tokens; `source` says who counted."""

    source: str

    def __new__(cls, value: int, source: str = APPROXIMATE) -> TokenCount:
        made = super().__new__(cls, value)
        made.source = source
        return made

    def __repr__(self) -> str:
        return f"TokenCount({int(self)}, source={self.source!r})"

    def __reduce__(self) -> tuple[type[TokenCount], tuple[int, str]]:
        return TokenCount, (int(self), self.source)


def of_text(client: Client, text: str, custom: Tokenizer | None) -> TokenCount:
    """Tokens of a text. Approximate when no engine is there or it has no tokenizer route."""
    if custom is not None:
        return TokenCount(len(custom(text)), "custom_get_token_ids")
    try:
        count, engine = client.count_by(text)
    except (EngineError, NoEngine):
        return TokenCount(-(-len(text) // 4))
    return TokenCount(count, f"{engine}'s own tokenizer")


def of_messages(
    client: Client,
    messages: Sequence[BaseMessage],
    tools: Sequence[Any] | None,
    custom: Tokenizer | None,
) -> TokenCount:
    """Tokens of a prompt, its tools included, after the chat template where the engine says."""
    if custom is not None:
        text = get_buffer_string(list(messages))
        return TokenCount(len(custom(text)), "custom_get_token_ids")
    request = ChatRequest(
        model="", messages=to_messages(messages), tools=to_tools(tools) if tools else ()
    )
    try:
        count, engine = client.count_by(request)
    except (EngineError, NoEngine):
        formatted: list[Any] | None = [openai_tool(tool) for tool in tools] if tools else None
        return TokenCount(count_tokens_approximately(list(messages), tools=formatted))
    return TokenCount(count, f"{engine}'s own tokenizer")
