"""`timeout=1` bounds whatever a call asks of a server, the prompt or not: no wait is left out but
that for a model to load, which has its own budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from enginekit.engine import Call, Effect, Gather, Open, Operation
from enginekit.errors import EngineKitError, EngineTimeout
from enginekit.kit.client import Client
from enginekit.kit.server_facts import forget_facts
from enginekit.types import ChatRequest, EmbedRequest, Message, RerankRequest
from tests.langchain.wires import Answer, Ollama
from tests.support.server import Reply, Server

CHAT = ChatRequest(model="", messages=(Message(role="user", content="hi"),))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    forget_facts()
    yield
    forget_facts()


def waits(operation: Operation[Any]) -> list[float]:
    """How long each thing that is asked may take, on a server that answers none of them."""
    found: list[float] = []
    step, sent = operation.send, None
    while True:
        try:
            effect: Effect = step(sent)  # type: ignore[arg-type]
        except (StopIteration, EngineKitError):
            return found
        match effect:
            case Call():
                found.append(effect.timeout)
            case Gather():
                found.append(effect.deadline)
            case Open():
                found.append(effect.budgets.first_token)
        step, sent = operation.throw, EngineTimeout("silent")  # type: ignore[assignment]


@pytest.mark.parametrize("engine", ["ollama", "llamacpp", "vllm", "tgi", "mlc", "rayserve"])
@pytest.mark.parametrize("model", ["llama3.1", None])
def test_every_wait_of_every_call_is_bounded(engine: str, model: str | None) -> None:
    budgets = {"connect": 1, "load": 1, "first_token": 1, "between_tokens": 1, "whole_reply": 1}
    settings = {
        "engine": engine,
        "base_url": "http://127.0.0.1:1",
        "model": model,
        "timeout": budgets,
    }
    # Ollama loads for a request in silence: its load is in the answer, beside the answer's second.
    most = 2 if engine == "ollama" else 1
    for make in (
        lambda client: client._settle(),
        lambda client: client._open(CHAT, stream=True),
        lambda client: client._connect(),
        lambda client: client._embed(EmbedRequest(model="", texts=("a",))),
        lambda client: client._rerank(RerankRequest(model="", query="q", documents=("a",))),
        lambda client: client._count(CHAT),
        lambda client: client._ids("text", None),
        lambda client: client._on_engine(lambda e, _: e.models()),
    ):
        found = waits(make(Client(settings)))
        assert all(seconds <= most for seconds in found), found


def test_one_number_bounds_all_but_loads() -> None:
    settings = {"engine": "vllm", "base_url": "http://127.0.0.1:1", "model": "m", "timeout": 1}
    embed = EmbedRequest(model="", texts=("a",))
    assert max(waits(Client(settings)._embed(embed))) <= 1
    assert max(waits(Client(settings)._open(CHAT, stream=True))) <= 1
    loading = waits(Client({**settings, "engine": "ollama"})._embed(embed))
    assert max(loading) == 600  # its answer has the load in it


def test_a_server_too_slow_to_say_what_it_is_is_asked_again_by_the_next_call() -> None:
    with Server() as server:
        Ollama(server).says(Answer(text=("Hello",)))
        version = server._scripts[None, "/api/version"][0]
        server.on("/api/version", Reply(fault="slow_first_byte", delay=60))
        client = Client(
            {"engine": "ollama", "base_url": server.url, "model": "llama3.1", "timeout": 0.3}
        )
        assert client.chat(CHAT).text == "Hello"
        assert client.facts is None
        server.on("/api/version", version)
        assert client.chat(CHAT).text == "Hello"
        assert client.facts is not None
