"""Capability flags tell the truth both ways, for every engine and feature.

`none` refuses with Unsupported, and no request reaches the server; so does a feature that the
running server says it lacks. Anything else is sent as the receipt says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, get_args

import pytest

from enginekit.drivers.async_ import AsyncDriver
from enginekit.drivers.sync import SyncDriver
from enginekit.engine import Budgets, Engine, Operation
from enginekit.errors import EngineKitError, Unsupported
from enginekit.facts.engine import NONE, Feature, ModelCard, ServerFacts
from enginekit.operations import open_reply
from enginekit.types import (
    AudioPart,
    ChatRequest,
    CompletionRequest,
    Constraint,
    EmbedRequest,
    ImagePart,
    Message,
    RerankRequest,
    Sampling,
    TextPart,
    Tool,
    ToolChoice,
)
from tests.contract.replayed import ALL, engine_at
from tests.support.server import Server, json_reply

WEATHER = Tool(name="get_weather", parameters={"type": "object", "properties": {"city": {}}})
USER = Message(role="user", content="Say hi.")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(32)


def chat(*parts: Any, **more: Any) -> ChatRequest:
    message = Message(role="user", content=(TextPart(text="What?"), *parts)) if parts else USER
    return ChatRequest(model="tiny", messages=(message,), lossy="error", **more)


def text(**more: Any) -> CompletionRequest:
    more.setdefault("sampling", Sampling(max_tokens=5))
    return CompletionRequest(model="tiny", prompt="a", lossy="error", **more)


REQUESTS: dict[str, ChatRequest | CompletionRequest] = {
    "chat": chat(),
    "completion": text(),
    "stream": chat(),
    "tools": chat(tools=(WEATHER,)),
    "tool_choice_required": chat(tools=(WEATHER,), tool_choice=ToolChoice(mode="required")),
    "tool_choice_named": chat(
        tools=(WEATHER,), tool_choice=ToolChoice(mode="named", name="get_weather")
    ),
    "parallel_tool_calls": chat(tools=(WEATHER,), parallel_tool_calls=True),
    "stream_tools": chat(tools=(WEATHER,)),
    "json": chat(constraint=Constraint(kind="json")),
    "json_schema": chat(constraint=Constraint(kind="json_schema", value=SCHEMA, name="a")),
    "regex": chat(constraint=Constraint(kind="regex", value="(a|b)")),
    "grammar": chat(constraint=Constraint(kind="grammar", value='root ::= "a"')),
    "choice": chat(constraint=Constraint(kind="choice", value=("a", "b"))),
    "logprobs": chat(sampling=Sampling(logprobs=True)),
    "n": chat(sampling=Sampling(n=2)),
    "reasoning": chat(reasoning=True),
    "images": chat(ImagePart(data=IMAGE)),
    "image_urls": chat(ImagePart(url="http://127.0.0.1:9/a.png")),
    "audio": chat(AudioPart(data=b"RIFF" + bytes(40))),
    "fim": text(suffix="b"),
    "lora": chat(lora="pirate"),
    "context_per_request": chat(context_window=4096),
    "keep_alive": chat(keep_alive=60.0),
}

OPERATIONS: dict[str, Callable[[Engine], Operation[Any]]] = {
    "embeddings": lambda e: e.embed(EmbedRequest(model="tiny", texts=("a",))),
    "rerank": lambda e: e.rerank(RerankRequest(model="tiny", query="a", documents=("b", "c"))),
    "tokenize": lambda e: e.tokenize("a", model="tiny"),
    "detokenize": lambda e: e.detokenize([1], model="tiny"),
    "count_tokens": lambda e: e.count_tokens(chat()),
    "metrics": lambda e: e.load_state(),
    "load": lambda e: e.load("tiny"),
    "unload": lambda e: e.unload("tiny"),
}

BY_PROBE = ("version",)
"""Learnt from `probe()`, not asked for."""

SOFT = ("stream", "stream_tools", "parallel_tool_calls")
"""Never refused: a reply in one piece and a single call are what these merely permit to be more."""


WHERE_IT_IS: dict[tuple[str, str], ChatRequest | CompletionRequest] = {
    ("tgi", "n"): text(sampling=Sampling(n=2, max_tokens=5)),
    ("tgi", "reasoning"): chat(),
    ("mlc", "reasoning"): chat(),
}
"""Features that an engine has in one place only: TGI makes several texts but one chat reply, and
TGI and MLC tell thinking from the answer but have no switch for it."""


def operation(
    engine: Engine, feature: str, request: ChatRequest | CompletionRequest | None = None
) -> Operation[Any]:
    if feature in OPERATIONS:
        return OPERATIONS[feature](engine)
    budgets = Budgets(first_token=10.0, whole_reply=10.0)
    return open_reply(
        engine, request or REQUESTS[feature], stream=False, budgets=budgets, max_retries=0
    )


def run(kind: str, made: Operation[Any]) -> Any:
    if kind == "sync":
        return SyncDriver().run(made)

    async def once() -> Any:
        return await AsyncDriver().run(made)

    return asyncio.run(once())


def test_every_feature_is_asked_for_here():
    known = {*REQUESTS, *OPERATIONS, *BY_PROBE}
    assert known == set(get_args(Feature))


def features(*supports: str, soft: bool = False) -> list[tuple[str, str]]:
    """Engine and feature, of every engine; with `soft` also what is never refused."""
    return [
        (name, feature)
        for name in ALL
        for feature in get_args(Feature)
        if engine_at(name).profile.capability(feature).support in supports
        and feature not in BY_PROBE
        and (soft or feature not in SOFT)
    ]


@pytest.mark.parametrize("driver", ["sync", "async"])
@pytest.mark.parametrize(("name", "feature"), features("none"))
def test_what_an_engine_lacks_is_refused_and_nothing_is_sent(name, feature, driver):
    with Server() as server:
        with pytest.raises(Unsupported) as caught:
            run(driver, operation(engine_at(name, server.url), feature))
        assert server.requests == []
    assert caught.value.engine == name
    assert caught.value.rule or caught.value.feature


@pytest.mark.parametrize(
    ("name", "feature"), [pair for pair in features("server") if pair[1] in REQUESTS]
)
def test_what_a_server_says_it_lacks_is_refused_and_nothing_is_sent(name, feature):
    """The same for a feature that depends on the server, once the server has said no."""
    with Server() as server:
        engine = engine_at(name, server.url)
        cards = (ModelCard(id="tiny", context_window=2048),)
        engine.facts = ServerFacts(models=cards, context_window=2048, capabilities={feature: NONE})
        with pytest.raises(Unsupported):
            run("sync", operation(engine, feature))
        assert server.requests == []


@pytest.mark.parametrize(("name", "feature"), features("native", "emulated"))
def test_what_an_engine_has_is_sent(name, feature):
    """The request goes out; what this server, which knows no route, answers is its own affair."""
    with Server() as server:
        server.always(json_reply({"error": {"message": "no"}}, 400))
        engine = engine_at(name, server.url)
        with pytest.raises(EngineKitError) as caught:
            run("sync", operation(engine, feature, WHERE_IT_IS.get((name, feature))))
        assert server.requests, f"refused before anything was sent: {caught.value!r}"
