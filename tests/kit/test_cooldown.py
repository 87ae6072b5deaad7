"""A list of engines whose first one is black-holed: only the first call waits for it.

The server's address neither accepts nor refuses; the clock of the cooldown is moved by hand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage

from enginekit.config import load
from enginekit.errors import ConfigError
from enginekit.kit.server_facts import forget_facts
from enginekit.langchain import EngineKitChat
from enginekit.llama_index import EngineKitLLM
from tests.langchain.wires import VLLM, Answer, Ollama
from tests.support.server import Server
from tests.support.silent import Silent

SETTINGS: dict[str, Any] = {
    "engine": "vllm,ollama",
    "model": "llama3.1",
    "timeout": {"connect": 0.1},
}
Ask = Callable[[Any], Awaitable[tuple[str, list[str]]]]
"""Ask a model once: who answered, and who was passed over."""


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Silent]:
    """Where vLLM should be; Ollama answers."""
    forget_facts()
    with Silent() as hole, Server() as server:
        monkeypatch.setenv("ENGINEKIT_VLLM_URL", hole.url)
        monkeypatch.setenv("ENGINEKIT_OLLAMA_URL", server.url)
        Ollama(server).says(Answer(text=("Hel", "lo")))
        yield hole


def told(found: Any) -> tuple[str, list[str]]:
    return found["engine"], found.get("passed_over", [])


async def invoke(model: Any) -> tuple[str, list[str]]:
    return told(model.invoke("hi").response_metadata)


async def ainvoke(model: Any) -> tuple[str, list[str]]:
    return told((await model.ainvoke("hi")).response_metadata)


async def stream(model: Any) -> tuple[str, list[str]]:
    first, *more = model.stream("hi")
    for chunk in more:
        first += chunk
    return told(first.response_metadata)


async def astream(model: Any) -> tuple[str, list[str]]:
    first, *more = [chunk async for chunk in model.astream("hi")]
    for chunk in more:
        first += chunk
    return told(first.response_metadata)


HI = [ChatMessage(content="hi")]


async def chat(model: Any) -> tuple[str, list[str]]:
    return told(model.chat(HI).raw)


async def achat(model: Any) -> tuple[str, list[str]]:
    return told((await model.achat(HI)).raw)


async def stream_chat(model: Any) -> tuple[str, list[str]]:
    return told(list(model.stream_chat(HI))[-1].raw)


async def astream_chat(model: Any) -> tuple[str, list[str]]:
    return told([response async for response in await model.astream_chat(HI)][-1].raw)


WAYS: list[tuple[type[Any], Ask]] = [
    *((EngineKitChat, ask) for ask in (invoke, ainvoke, stream, astream)),
    *((EngineKitLLM, ask) for ask in (chat, achat, stream_chat, astream_chat)),
]


@pytest.mark.parametrize(("cls", "ask"), WAYS)
async def test_a_silent_engine_is_waited_for_once_a_cooldown(
    silent: Silent, cls: type[Any], ask: Ask
) -> None:
    now = [100.0]
    model = cls(**SETTINGS)
    model.client.resting.clock = lambda: now[0]
    # The very first call looks for the engines before it opens anything; it waits once, too.
    engine, (why,) = await ask(model)
    assert (engine, "not asked, because it did not answer 0 s ago" in why) == ("ollama", True)
    now[0] += 12
    engine, (why,) = await ask(model)
    assert engine == "ollama"
    assert why.startswith("vllm: not asked, because it did not answer 12 s ago (")
    assert "no connection within 0.1 s" in why
    assert "asked again in 18 s" in why
    now[0] += 18
    _, (why,) = await ask(model)
    assert "not asked" not in why
    assert "no connection within 0.1 s" in why
    now[0] += 30
    silent.end()
    with Server(port=silent.port) as server:
        VLLM(server).says(Answer(text=("Hello",)))
        assert await ask(model) == ("vllm", [])


async def test_a_crowd_does_not_wait_one_after_the_other(silent: Silent) -> None:
    model = EngineKitChat(**SETTINGS)
    model.client.resting.clock = lambda: 100.0
    replies = await asyncio.gather(*(model.ainvoke("hi") for _ in range(50)))
    assert all("not asked" in r.response_metadata["passed_over"][0] for r in replies)


async def test_an_instance_for_each_call_does_not_wait_anew(silent: Silent) -> None:
    """As services make one a request, and `configurable_fields` one a call."""
    now = [100.0]
    EngineKitChat(**SETTINGS).client.resting.clock = lambda: now[0]
    assert "no connection" in (await ainvoke(EngineKitChat(**SETTINGS)))[1][0]
    now[0] += 3
    for ask in (invoke, ainvoke):
        _, (why,) = await ask(EngineKitChat(**SETTINGS))
        assert "did not answer 3 s ago" in why
    _, (why,) = await chat(EngineKitLLM(**SETTINGS))
    assert "did not answer 3 s ago" in why
    # Another budget is another question.
    patient = {**SETTINGS, "timeout": {"connect": 0.2}}
    _, (why,) = await ainvoke(EngineKitChat(**patient))
    assert "0 s ago (http" in why
    assert "within 0.2 s" in why


def test_the_cooldown_is_a_setting(silent: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    model = EngineKitChat(**SETTINGS, cooldown=0)
    for _ in range(2):
        (why,) = model.invoke("hi").response_metadata["passed_over"]
        assert "not asked" not in why
    monkeypatch.setenv("ENGINEKIT_COOLDOWN", "7.5")
    model = EngineKitChat(**SETTINGS)
    model.invoke("hi")
    assert "cooldown=7.5" in model.invoke("hi").response_metadata["passed_over"][0]
    monkeypatch.setenv("ENGINEKIT_COOLDOWN", "-1")
    with pytest.raises(ConfigError, match="cooldown must be at least 0"):
        load().value("cooldown")


def test_connecting_asks_an_engine_that_rests(silent: Silent) -> None:
    now = [100.0]
    model = EngineKitLLM(**SETTINGS)
    model.client.resting.clock = lambda: now[0]
    model.connect()
    now[0] += 20
    model.connect()
    now[0] += 20
    raw = model.chat(HI).raw
    assert "did not answer 20 s ago" in raw["passed_over"][0]


def test_the_connect_budget_holds_for_what_is_asked_before_a_reply(silent: Silent) -> None:
    """The default is 5 s; an engine is asked what it is before it gets a prompt."""
    model = EngineKitChat(**{**SETTINGS, "timeout": {"connect": 0.25}})
    (why,) = model.invoke("hi").response_metadata["passed_over"]
    assert "no connection within 0.25 s" in why
