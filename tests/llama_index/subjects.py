"""Whom the contract suite talks to: three engines' wires on loopback, and a real llama.cpp.

The wires and the scripted weights answer the same prompts in the same way, so that one set of exact
expectations holds for all: a greeting, MUSE (thinks first), CALL (one tool call), CALLS (two),
PERSON (JSON), LONG (never ends by itself).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index.core.tools import FunctionTool

from enginekit.llama_index import EngineKitLLM
from tests.langchain.wires import Answer, LlamaCpp, Ollama, Wire
from tests.support.scripted import GREETING, THOUGHT
from tests.support.server import Reply, Seen, json_reply, sse

PERSON = '{"name": "Ann", "age": 31}'
GREETING_PIECES = ("Hello", " there!", " A café", " is", " near.")
ROME = ("call_rome", "get_weather", ('{"ci', 'ty": "Ro', 'me"}'))
OSLO = ("call_oslo", "get_weather", ('{"city": "Os', 'lo"}'))
SUM = ("call_sum", "add", ('{"a": 2,', ' "b": 3}'))


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def tools() -> list[FunctionTool]:
    """The tools that the scripted model calls."""
    return [FunctionTool.from_defaults(get_weather), FunctionTool.from_defaults(add)]


class Subject:
    """One engine to run the contract on."""

    def __init__(self, settings: Mapping[str, Any], wire: Wire | None = None) -> None:
        self.settings = dict(settings)
        self.wire = wire

    def llm(self, **more: Any) -> EngineKitLLM:
        """An LLM that talks to it and does not retry."""
        return EngineKitLLM(**{**self.settings, "max_retries": 0, "timeout": 30, **more})


def on_wire(wire: Wire) -> Subject:
    """Let a loopback server answer as the scripted weights do."""
    server = wire.server

    def chat(seen: Seen) -> Reply:
        return wire.render(_answer(seen.json), seen.json)

    server.on(wire.path, chat)
    server.on("/v1/completions", _completion)
    if isinstance(wire, Ollama):
        server.on("/api/generate", _generate)
    return Subject(wire.settings, wire)


def last_text(body: Mapping[str, Any]) -> str:
    """The text of the last message; "" unless the user wrote it."""
    message = body["messages"][-1]
    content = message.get("content") or ""
    if message["role"] != "user":
        return ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def _answer(body: Mapping[str, Any]) -> Answer:
    last = last_text(body)
    wants_calls = bool(body.get("tools"))
    limit = body.get("max_tokens") or (body.get("options") or {}).get("num_predict")
    if "MUSE" in last:
        return Answer(reasoning=("Greet ", "them back."), text=GREETING_PIECES)
    if "PERSON" in last:
        return Answer(text=('{"name"', ': "Ann", "a', 'ge": 31}'))
    if "LONG" in last and limit:
        return Answer(text=("one ",) * int(limit), finish="length")
    if "CALLS" in last and wants_calls:
        return Answer(calls=(OSLO, SUM), finish="tool_calls")
    if "CALL" in last and wants_calls:
        return Answer(calls=(ROME,), finish="tool_calls")
    if "CALL" in last and "name of the function" in str(body["messages"]):
        # A forced call on an engine that cannot force one: emulated by a schema.
        return Answer(text=('{"name": "get_weather",', ' "arguments": {"city": "Rome"}}'))
    return Answer(text=GREETING_PIECES)


def _completion(seen: Seen) -> Reply:
    body = seen.json
    head = {"id": "cmpl-1", "object": "text_completion", "model": body["model"]}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}

    def choice(text: str, finish: str | None) -> list[dict[str, Any]]:
        return [{"index": 0, "text": text, "finish_reason": finish}]

    if not body.get("stream"):
        return json_reply({**head, "choices": choice(GREETING, "stop"), "usage": usage})
    return sse(
        *({**head, "choices": choice(piece, None)} for piece in GREETING_PIECES),
        {**head, "choices": choice("", "stop")},
        {**head, "choices": [], "usage": usage},
        "data: [DONE]\n\n",
    )


def _generate(seen: Seen) -> Reply:
    from tests.support.server import ndjson

    head = {"model": seen.json["model"], "created_at": "2026-11-23T03:53:48Z"}
    last = {**head, "response": "", "done": True, "done_reason": "stop"}
    last |= {"prompt_eval_count": 3, "eval_count": 5}
    if not seen.json.get("stream", True):
        return json_reply({**last, "response": GREETING})
    pieces = ({**head, "response": piece, "done": False} for piece in GREETING_PIECES)
    return ndjson(*pieces, last)


__all__ = [
    "GREETING",
    "PERSON",
    "THOUGHT",
    "LlamaCpp",
    "Subject",
    "last_text",
    "on_wire",
    "tools",
]
