"""What is said to a server while a cassette is made, and again when it is replayed.

The requests are fixed, so that a replay can find each answer by its request; the scripted weights
make the answers known word for word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from enginekit.errors import ContextOverflow, EngineKitError, ModelNotFound
from enginekit.facts.engine import Feature
from enginekit.kit.client import Client
from enginekit.operations import Folder
from enginekit.types import ChatRequest, Message, Reply, Sampling, Tool, ToolChoice
from tests.support.scripted import GREETING, THOUGHT

WEATHER = Tool(
    name="get_weather",
    description="Look up the weather in a city",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
ADD = Tool(
    name="add",
    parameters={"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}},
)


def ask(text: str, limit: int = 64, **more: Any) -> ChatRequest:
    return ChatRequest(
        model=more.pop("model", ""),
        messages=(Message(role="user", content=text),),
        sampling=Sampling(temperature=0.0, max_tokens=limit),
        **more,
    )


def whole(client: Client, request: ChatRequest) -> Reply:
    return client.chat(request)


def stream(client: Client, request: ChatRequest) -> Reply:
    folder = Folder()
    opened = client.stream(request)
    for chunk in opened:
        folder.add(chunk)
    return folder.reply(opened.receipt)


def calls(reply: Reply) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, call.parsed()) for call in reply.tool_calls]


def greets(reply: Reply) -> bool:
    return reply.text.strip() == GREETING and reply.finish_reason == "stop"


def is_cut(reply: Reply) -> bool:
    return reply.finish_reason == "length" and reply.usage.completion_tokens == 5


def one_call(reply: Reply) -> bool:
    return calls(reply) == [("get_weather", {"city": "Rome"})]


def two_calls(reply: Reply) -> bool:
    return calls(reply) == [("get_weather", {"city": "Oslo"}), ("add", {"a": 2, "b": 3})]


def a_weather_call(reply: Reply) -> bool:
    return [name for name, _ in calls(reply)] == ["get_weather"]


def thinks(reply: Reply) -> bool:
    return THOUGHT in reply.reasoning + reply.text and GREETING in reply.text


Ask = Callable[[Client, ChatRequest], Reply]
CASES: dict[str, tuple[Ask, ChatRequest, Callable[[Reply], bool]]] = {
    "greeting": (whole, ask("Hi."), greets),
    "greeting, streamed": (stream, ask("Hi."), greets),
    "cut by the limit": (whole, ask("LONG", 5), is_cut),
    "cut by the limit, streamed": (stream, ask("LONG", 5), is_cut),
    "thinking": (whole, ask("MUSE"), thinks),
    "thinking, streamed": (stream, ask("MUSE"), thinks),
    "one call": (whole, ask("CALL", tools=(WEATHER, ADD)), one_call),
    "two calls, streamed": (stream, ask("CALLS", 200, tools=(WEATHER, ADD)), two_calls),
    "a forced call": (
        whole,
        ask(
            "CALL",
            120,
            tools=(WEATHER,),
            tool_choice=ToolChoice(mode="named", name="get_weather"),
        ),
        a_weather_call,
    ),
}

NEEDS: dict[str, Feature] = {"two calls, streamed": "parallel_tool_calls"}
"""What a case asks of an engine by its nature; without it, the case is left out."""

REFUSALS: dict[str, tuple[ChatRequest, type[EngineKitError] | None]] = {
    "too long": (ask("word " * 9000), ContextOverflow),
    "unknown model": (ask("Hi.", model="scripted-x"), ModelNotFound),
}


def run(client: Client) -> dict[str, str]:
    """Everything in order; what went wrong, by case. Empty when all is as it must be."""
    wrong: dict[str, str] = {}
    client.connect()
    for name, (how, request, right) in CASES.items():
        if (
            name in NEEDS
            and client.engine.of(client.model).capability(NEEDS[name]).support == "none"
        ):
            continue
        try:
            reply = how(client, request)
        except EngineKitError as error:
            wrong[name] = repr(error)
            continue
        if not right(reply):
            wrong[name] = f"{reply.finish_reason} {reply.text!r} {reply.tool_calls}"
    for name, (request, expected) in REFUSALS.items():
        try:
            reply = whole(client, request)
        except EngineKitError as error:
            if expected is None or not isinstance(error, expected):
                wrong[name] = repr(error)
        else:
            if reply.receipt.outcome("model") != "translated":
                wrong[name] = f"no error: {reply.text!r}"
    return wrong
